"""Losses of log rates and of whole predictive distributions."""

import math

import keras
from keras import ops

from m2m_tf.layers.hurdle_heads import NUM_PARAMETERS

# Stands for the lower end of an interval that reaches below 0.
_SMALLEST = 1e-6
# Weight of each task's likelihood beside its λ-weighted Poisson loss. Chosen
# on the validation split of Complete Journey among 0.2, 1 and 3: the tower
# learns more from a likelihood that huge labels cannot pull about.
_SHAPE_WEIGHT = 3.0


@keras.saving.register_keras_serializable("m2m_tf")
def poisson_log_rate(y_true, log_rate):
    """Poisson loss of each element, from the logarithm of the rate.

    Eq. 20 of the paper with ŷ = exp(log_rate):

        loss = ŷ - y log ŷ = exp(log_rate) - y_true * log_rate

    It is least where exp(log_rate) is the mean of y_true, and differs from
    the negative log likelihood by a term of y_true alone. Computed in
    float32 whatever the dtype of the arguments. Taking the logarithm of a
    rate instead, as `keras.losses.Poisson` does, needs a guard at zero and
    loses the gradient of small rates.

    Args:
        y_true: Labels, not negative, not necessarily integer. Same shape as
            `log_rate`, or one with or without a last axis of size 1.
        log_rate: Predicted LOG rates, any real numbers.

    Returns:
        Float32 tensor of the shape of `log_rate`.

    Example:

    >>> poisson_log_rate([1.0, 3.0], [0.0, 0.0])
    <tf.Tensor: shape=(2,), dtype=float32, numpy=array([1., 1.], dtype=float32)>
    """
    log_rate = ops.cast(ops.convert_to_tensor(log_rate), "float32")
    y_true = ops.cast(ops.convert_to_tensor(y_true), "float32")
    y_true = _match_rank(y_true, log_rate)
    return ops.exp(log_rate) - y_true * log_rate


@keras.saving.register_keras_serializable("m2m_tf")
class PoissonLogRate(keras.losses.Loss):
    """Mean Poisson loss of one task, from the logarithm of the rate.

    Eq. 20 of the paper, `mean(exp(log_rate) - y_true * log_rate)`; see
    `poisson_log_rate`. Predictions are LOG rates, not rates.

    For a model with a dict of outputs, `compile` with one such loss for each
    task and `loss_weights={task: λ_t}` minimises the sum Σ_t λ_t L^t of
    eq. 19; the layers' regularizers add its second term.

    What the mean of weighted elements divides by: the default
    `reduction="sum_over_batch_size"` divides by the number of all elements,
    those of weight zero included. Pass `"mean_with_sample_weight"` to divide
    by the sum of the weights, for instance when a weight of zero marks a
    missing label (in whose place any number stands, but not NaN).

    Args:
        reduction: Keras reduction of the elements' losses.
        name: Name of the loss.

    Example:

    >>> inputs = keras.Input((8,))
    >>> names = ["clicks", "sales"]
    >>> outputs = {n: keras.layers.Dense(1, name=n)(inputs) for n in names}
    >>> model = keras.Model(inputs, outputs)
    >>> model.compile(
    ...     loss={"clicks": PoissonLogRate(), "sales": PoissonLogRate()},
    ...     loss_weights={"clicks": 1.0, "sales": 0.1},
    ... )
    """

    def __init__(
        self, reduction="sum_over_batch_size", name="poisson_log_rate"
    ):
        # Rates of half precision have a relative error of almost 1 %.
        super().__init__(name=name, reduction=reduction, dtype="float32")

    def call(self, y_true, y_pred):
        return poisson_log_rate(y_true, y_pred)


def _match_rank(y_true, log_rate):
    """Aligns a last axis of size 1, which broadcasting would pair up."""
    true_rank, rate_rank = len(y_true.shape), len(log_rate.shape)
    last_axes = {size for x in (y_true, log_rate) for size in x.shape[-1:]}
    if true_rank == rate_rank and len(last_axes - {None}) <= 1:
        return y_true
    if true_rank == rate_rank - 1 and log_rate.shape[-1] == 1:
        return ops.expand_dims(y_true, axis=-1)
    if true_rank == rate_rank + 1 and y_true.shape[-1] == 1:
        return ops.squeeze(y_true, axis=-1)
    raise ValueError(
        "`y_true` and `log_rate` must have the same shape, apart from a last "
        "axis of size 1; a model with the hurdle likelihood is trained with "
        f"`joint_hurdle`. Received: y_true.shape={tuple(y_true.shape)}, "
        f"log_rate.shape={tuple(log_rate.shape)}"
    )


@keras.saving.register_keras_serializable("m2m_tf")
def hurdle_negative_log_likelihood(y_true, parameters, unit=1.0, limit=None):
    """-log P(y) of a hurdle log-logistic distribution, in nats.

    With G the logistic distribution function of (log y - location) / scale:

        P(0) = π,   P(y) = (1 - π) (G(y + 1/2) - G(y - 1/2))  for y > 1

    and G(y + 1/2) alone for 0 < y ≤ 1, so that the P of all counts add up
    to 1. (What G has below a millionth is left out there.)

    A label stands for the interval of one unit round it. That is exact for
    counts; for amounts it says that differences within a unit do not matter,
    and it keeps the likelihood of repeated values below 1. A label at the
    limit stands for all above it, (1 - π) (1 - G(y - 1/2)), as censored
    values do: who was active on each of seven days may be sure to be.

    Args:
        y_true: Labels, not negative, `[batch, 1]` or `[batch]`.
        parameters: `[batch, 4]`: log mean (not used), logit π, location and
            log scale, see `layers.HurdleHeads`.
        unit: What counts as 1 in the formula: 1 for counts, less for amounts
            that are mostly below 1, or they would all be told alike.
        limit: Most that a label can be, in the labels' own unit; None: no
            bound.

    Returns:
        Float32 tensor `[batch]`.

    Example:

    >>> parameters = [[0.0, 0.0, 1.0, 0.0]]  # A logit of 0: half are zeros.
    >>> hurdle_negative_log_likelihood([0.0], parameters).numpy().round(3)
    array([0.693], dtype=float32)
    """
    parameters = ops.cast(ops.convert_to_tensor(parameters), "float32")
    y_true = ops.reshape(
        ops.cast(ops.convert_to_tensor(y_true), "float32"), [-1]
    )
    zero_logit, location, log_scale = (parameters[:, i] for i in (1, 2, 3))
    labels, location = y_true, location - math.log(unit)
    is_zero = labels <= 0
    # Any positive number, where the label has no logarithm.
    y = ops.where(is_zero, 1.0, labels / unit)
    inverse = ops.exp(-log_scale)
    above = (ops.log(y + 0.5) - location) * inverse
    # All that lies below the first unit's middle is rounded up to it.
    low = ops.where(y > 1.0, y - 0.5, _SMALLEST)
    below = (ops.log(low) - location) * inverse
    # above - below, which is 0 in float32 where y is large, by itself.
    unit = ops.where(y > 1.0, 1.0, y + 0.5 - _SMALLEST)
    width = ops.log1p(unit / low) * inverse
    # log(σ(a) - σ(b)) = log σ(a) + log σ(-b) + log(1 - exp(b - a)).
    beyond = ops.log_sigmoid(-below)
    positive = beyond + ops.log_sigmoid(above) + ops.log(-ops.expm1(-width))
    if limit is not None:
        positive = ops.where(labels >= limit, beyond, positive)
    return -ops.where(
        is_zero,
        ops.log_sigmoid(zero_logit),
        ops.log_sigmoid(-zero_logit) + positive,
    )


@keras.saving.register_keras_serializable("m2m_tf")
class HurdleLoss(keras.losses.Loss):
    """Poisson loss of the mean and likelihood of the shape, of one task.

        mean_i(poisson_log_rate + shape_weight · negative log likelihood)

    Args:
        shape_weight: Weight of the likelihood.
        reduction: Keras reduction of the elements' losses.
        name: Name of the loss.
        unit: What a label's differences begin to matter at, see
            `hurdle_negative_log_likelihood`.
        limit: Most that a label can be, see there; None: no bound.

    Example:

    >>> loss = HurdleLoss(shape_weight=2.0)
    >>> parameters = keras.ops.array([[0.0, 0.0, 1.0, 0.0]])
    >>> round(float(loss([[0.0]], parameters)), 3)
    2.386
    """

    def __init__(
        self,
        shape_weight=1.0,
        reduction="sum_over_batch_size",
        name="hurdle_loss",
        unit=1.0,
        limit=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype="float32")
        self.shape_weight = float(shape_weight)
        self.unit = float(unit)
        self.limit = limit

    def call(self, y_true, y_pred):
        if y_pred.shape[-1] != NUM_PARAMETERS:
            raise ValueError(
                f"HurdleLoss takes the {NUM_PARAMETERS} parameters that a "
                "model of `likelihood: hurdle` gives for each task; one of "
                "`likelihood: poisson` is trained with `joint_poisson`. "
                f"Received: y_pred.shape={tuple(y_pred.shape)}."
            )
        mean = poisson_log_rate(y_true, y_pred[:, :1])
        shape = hurdle_negative_log_likelihood(
            y_true, y_pred, self.unit, self.limit
        )
        return ops.reshape(mean, [-1]) + self.shape_weight * shape

    def get_config(self):
        return super().get_config() | {
            "shape_weight": self.shape_weight,
            "unit": self.unit,
            "limit": self.limit,
        }


def joint_poisson(task_names):
    """One `PoissonLogRate` per output, as `compile(loss=...)` takes it.

    With `loss_weights` λ_t the compiled loss is the sum of eq. 19; the
    penalties α‖W‖² are the layers' own.

    Args:
        task_names: Names of the model's outputs.

    Returns:
        Dict of task name → `PoissonLogRate`.

    Example:

    >>> sorted(joint_poisson(["clicks", "sales"]))
    ['clicks', 'sales']
    """
    return {name: PoissonLogRate() for name in task_names}


def joint_hurdle(task_weights, label_units=None, label_limits=None):
    """One `HurdleLoss` per output, as `compile(loss=...)` takes it.

    Poisson losses are in units of the label and weighted by λ_t; likelihoods
    have none, so each enters the sum with weight 3, whatever its task's λ_t.

    Args:
        task_weights: Task name → λ_t, as given to `compile(loss_weights=)`.
        label_units: Task name → unit of its labels, see `HurdleLoss` and
            `Preprocessor.label_units`; None: 1 for all, as for counts.
        label_limits: Task name → most that its labels can be, or None, see
            `Preprocessor.label_limits`; None: no bounds.

    Raises:
        ValueError: If a weight is not above 0.

    Example:

    >>> joint_hurdle({"clicks": 0.5})["clicks"].shape_weight
    6.0
    """
    units, limits = label_units or {}, label_limits or {}
    for name, weight in task_weights.items():
        if not weight > 0:
            raise ValueError(
                "`task_weights` must be above 0; leave a task out of the spec "
                f"instead. Received: {name!r}: {weight}."
            )
    return {
        name: HurdleLoss(
            _SHAPE_WEIGHT / weight,
            unit=units.get(name, 1.0),
            limit=limits.get(name),
        )
        for name, weight in task_weights.items()
    }
