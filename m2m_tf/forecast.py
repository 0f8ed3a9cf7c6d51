"""Means, medians and intervals from what a model puts out."""

import numpy as np
from keras import ops
from scipy import special

from m2m_tf.layers.hurdle_heads import NUM_PARAMETERS

# Levels of the quantiles that bound the 80 % interval, and the median's.
LOWER, MEDIAN, UPPER = 0.1, 0.5, 0.9
# From here on the median is told by its expansion.
_LARGE_RATE = 1e6


def poisson_median(rate):
    """The median of a Poisson distribution: least n with P(Y ≤ n) ≥ 1/2.

    The Poisson loss is minimised by the mean, NMAE by the median: where most
    labels are 0 the two differ much. Exact if Y given the inputs is Poisson,
    which real counts with a wider spread are not.

    Args:
        rate: Poisson means, finite and not negative, any shape.

    Returns:
        Float64 array of whole numbers, shaped like `rate`.

    Raises:
        ValueError: If a rate is negative or not finite.

    Example:

    >>> poisson_median([0.0, 0.5, 0.7, 2.0])
    array([0., 0., 1., 2.])
    """
    rate = np.asarray(rate, "float64")
    bad = ~np.isfinite(rate) | (rate < 0)
    if bad.any():
        raise ValueError(
            "`rate` must be finite and not negative. Received: "
            f"{bad.sum()} other value(s), the first {rate[bad][0]}"
        )
    # scipy.stats would do the same, at 0.7 s of every import of the library.
    small = np.minimum(rate, _LARGE_RATE)
    upper = np.ceil(special.pdtrik(0.5, small))
    lower = np.maximum(upper - 1, 0)
    median = np.where(special.pdtr(lower, small) >= 0.5, lower, upper)
    # Of large rates its expansion; from 2e10 on `pdtrik` gives NaN.
    median = np.where(rate > _LARGE_RATE, np.floor(rate + 1 / 3), median)
    return np.where(rate <= np.log(2), 0.0, median)


def has_shape(output) -> bool:
    """Whether a task's output describes a distribution beside its mean.

    Example:

    >>> has_shape(model.output["visits"])
    True
    """
    return output.shape[-1] > 1


def task_forecasts(output, whole, limit=None) -> dict:
    """What is told of one task: its mean, and median and interval if it can.

    The one place where a model's output becomes forecasts, for evaluation and
    for the exported model alike.

    Args:
        output: The model's output of the task, `[batch, 1]` or `[batch, 4]`.
        whole: Whether its labels are whole numbers.
        limit: Most that a label can be, which nothing told exceeds; None: no
            bound. If it is 1, quantiles are those of a coin with the mean: 0
            or 1, so that they cannot contradict it.

    Returns:
        Dict of float32 tensors `[batch, 1]`: `"mean"` and, from a model with
        the hurdle likelihood, `"median"`, `"lower"` and `"upper"`: the
        quantiles at `MEDIAN`, `LOWER` and `UPPER`.

    Example:

    >>> output = keras.ops.array([[0.0, -5.0, 1.0, 0.0]])
    >>> told = task_forecasts(output, whole=True)
    >>> {name: float(value[0, 0]) for name, value in told.items()}
    {'mean': 1.0, 'median': 3.0, 'lower': 1.0, 'upper': 24.0}
    >>> days = task_forecasts(output, whole=True, limit=7)
    >>> float(days["upper"][0, 0])
    7.0
    """
    mean = _mean(output, limit)
    forecasts = {"mean": mean}
    if has_shape(output):
        for name, level in (
            ("median", MEDIAN),
            ("lower", LOWER),
            ("upper", UPPER),
        ):
            if limit == 1:
                # 0 where P(Y = 0) reaches the level.
                quantile = ops.cast(1 - mean < level, "float32")
                quantile = ops.where(ops.isnan(mean), mean, quantile)
            else:
                quantile = hurdle_quantile(output, level, whole)[:, None]
            forecasts[name] = _at_most(quantile, limit)
    return forecasts


def task_levels(output, y, whole, limit=None):
    """P(Y < y) and P(Y ≤ y) of one task, as `task_forecasts` has it.

    Args:
        output: The model's output of the task, `[batch, 4]`.
        y: Labels `[batch]`.
        whole: Whether the task's labels are whole numbers.
        limit: Most that a label can be, or None.

    Returns:
        Tuple of two float32 tensors `[batch]`, see `hurdle_cdf`.

    Example:

    >>> output = keras.ops.log([[0.25, 1.0, 1.0, 1.0]])
    >>> below, up_to = task_levels(output, [0.0], whole=True, limit=1)
    >>> float(below[0]), float(up_to[0])
    (0.0, 0.75)
    """
    y = ops.cast(ops.convert_to_tensor(y), "float32")
    if limit == 1:
        zeros = 1 - _mean(output, limit)[:, 0]
        below = ops.where(y <= 0, 0.0, zeros)
        up_to = ops.where(y <= 0, zeros, 1.0)
    else:
        below, up_to = hurdle_cdf(output, y, whole)
    if limit is not None:
        # All that lies above the limit is told to be at it.
        below = ops.where(y > limit, 1.0, below)
        up_to = ops.where(y >= limit, 1.0, up_to)
    return below, up_to


def hurdle_quantile(parameters, level, whole):
    """The least value v with P(Y ≤ v) ≥ level.

    Args:
        parameters: Tensor `[..., 4]`, see `layers.HurdleHeads`.
        level: Number in (0, 1), or a tensor `[...]` of them.
        whole: Whether labels are whole numbers; quantiles then are, too.

    Returns:
        Float32 tensor `[...]`, not negative.

    Example:

    >>> parameters = [0.0, 0.0, 1.0, 0.0]  # A logit of 0: half are zeros.
    >>> [float(hurdle_quantile(parameters, p, whole=True)) for p in (0.4, 0.9)]
    [0.0, 11.0]
    """
    _, zero_logit, location, log_scale = _parts(parameters)
    above = (level - ops.sigmoid(zero_logit)) * (1 + ops.exp(zero_logit))
    share = ops.clip(above, 1e-6, 1 - 1e-6)
    logit = ops.log(share) - ops.log1p(-share)
    value = ops.exp(location + ops.exp(log_scale) * logit)
    if whole:
        value = ops.maximum(ops.ceil(value - 0.5), 1.0)
    # NaN stays NaN, which is no forecast of 0.
    return ops.where(above <= 0, 0.0, value)


def hurdle_cdf(parameters, y, whole):
    """P(Y < y) and P(Y ≤ y), between which the label's level lies.

    Args:
        parameters: Tensor `[..., 4]`, see `layers.HurdleHeads`.
        y: Values, not negative, `[...]`.
        whole: Whether labels are whole numbers.

    Returns:
        Tuple of two float32 tensors `[...]`. They are the same for a positive
        amount and differ at 0 and for counts.

    Example:

    >>> parameters = [0.0, 0.0, 1.0, 0.0]  # A logit of 0: half are zeros.
    >>> [float(p) for p in hurdle_cdf(parameters, 0.0, whole=True)]
    [0.0, 0.5]
    """
    _, zero_logit, location, log_scale = _parts(parameters)
    zeros = ops.sigmoid(zero_logit)
    y = ops.cast(ops.convert_to_tensor(y), "float32")

    def up_to(value):
        z = (ops.log(ops.maximum(value, 1e-6)) - location) * ops.exp(-log_scale)
        return zeros + (1 - zeros) * ops.sigmoid(z)

    half = 0.5 if whole else 0.0
    below, at = up_to(y - half), up_to(y + half)
    if whole:
        below = ops.where(y < 1.5, zeros, below)
    is_zero = y <= 0
    return ops.where(is_zero, 0.0, below), ops.where(is_zero, zeros, at)


def _mean(output, limit):
    return _at_most(ops.exp(ops.cast(output[:, :1], "float32")), limit)


def _at_most(values, limit):
    return values if limit is None else ops.minimum(values, float(limit))


def _parts(parameters):
    parameters = ops.cast(ops.convert_to_tensor(parameters), "float32")
    return [parameters[..., index] for index in range(NUM_PARAMETERS)]
