"""Each task's predictive distribution and its mean."""

import keras
import numpy as np
from keras import ops, regularizers

from m2m_tf.layers._arguments import optional_floats, require_one_per_task

# Least scale of the positive part: a scale of 0 would claim certainty.
_MIN_SCALE = 0.05
# Log μ, logit π, location and log scale.
NUM_PARAMETERS = 4


@keras.saving.register_keras_serializable("m2m_tf")
class HurdleHeads(keras.layers.Layer):
    """Parameters of a hurdle log-logistic distribution for each task.

    A label is 0 with probability π, else positive with a log-logistic
    distribution (a logistic one of its logarithm):

        logit π_t  = u_t · L_t + b_t - c_t h_t
        location_t = v_t · L_t + d_t + h_t
        scale_t    = softplus(w_t · L_t + e_t) + 0.05
        log μ_t    = sg[log(1 - π_t) + typical_t] + m_t · L_t + f_t
        typical_t  = location_t

    with L_t the tower's representation of task t, h_t its level and sg the
    stopped gradient. The distribution is learned by its likelihood, which
    a few huge labels do not rule. The mean μ_t starts from it and learns by
    the Poisson loss (eq. 20) how far the mean of the long tail lies above it.
    The gradient is stopped there, so that what is best for the mean cannot
    bend medians and intervals. Such a shape holds the many zeros and long
    tails of advertisers' counts, and any quantile of it is a formula, see
    `forecast.hurdle_quantile`. An option beyond the paper.

    Of a task with a limit n, such as days of which there are n, the mean
    starts from that of the distribution with all above n at n, a sum of n
    terms, where σ is the logistic function:

        typical_t = log Σ_(y = 1..n) P(Y_t ≥ y | Y_t > 0)
                  = log (1 + Σ_(y = 2..n) σ((location_t - log(y - 1/2))
                                            / scale_t))

    Computed in float32 whatever the policy.

    Args:
        initial_log_rates: Sequence of one number per task, the log μ at the
            start where h is the same; None starts f from zero.
        label_limits: Sequence of the most that a label can be, or None, for
            each task; None: no task has one.
        kernel_regularizer: Regularizer of u, v, w and m.
        dtype: Dtype of weights and computation, float32 by default.
        **kwargs: Keras layer arguments, such as `name`.

    Call arguments:
        inputs: L, float tensor `[batch, num_tasks, width]`.
        log_level: h, float tensor `[batch, num_tasks]`: the log of about
            what is to be expected.

    Output shape:
        `[batch, num_tasks, 4]`: log μ, logit π, location and log scale.

    Raises:
        ValueError: If the number of initial log rates or of limits is not
            that of tasks.

    Example:

    >>> representations = keras.random.normal((8, 5, 16))
    >>> HurdleHeads()(representations, keras.ops.zeros((8, 5))).shape
    TensorShape([8, 5, 4])
    """

    def __init__(
        self,
        initial_log_rates=None,
        label_limits=None,
        kernel_regularizer=None,
        dtype="float32",
        **kwargs,
    ):
        super().__init__(dtype=dtype, **kwargs)
        self.initial_log_rates = optional_floats(initial_log_rates)
        self.label_limits = None if label_limits is None else list(label_limits)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)

    def build(self, inputs_shape, log_level_shape):
        num_tasks, width = inputs_shape[1:]
        if log_level_shape[-1] != num_tasks:
            raise ValueError(
                f"`log_level` must have one level for each of {num_tasks} "
                f"tasks. Received: log_level.shape={tuple(log_level_shape)}."
            )
        require_one_per_task(
            "initial_log_rates", self.initial_log_rates, num_tasks
        )
        require_one_per_task("label_limits", self.label_limits, num_tasks)
        self.kernel = self.add_weight(
            name="kernel",
            shape=(num_tasks, width, NUM_PARAMETERS),
            initializer=keras.initializers.RandomNormal(stddev=0.01),
            regularizer=self.kernel_regularizer,
        )
        self.bias = self.add_weight(
            name="bias",
            shape=(num_tasks, NUM_PARAMETERS),
            initializer=self._initial_bias,
        )
        # At 1, with a bias of 0, odds of a zero start at 1 / exp(h).
        self.zero_slope = self.add_weight(
            name="zero_slope", shape=(num_tasks,), initializer="ones"
        )

    def call(self, inputs, log_level):
        # b: batch, t: task, d: width, p: parameter
        linear = ops.einsum("btd,tdp->btp", inputs, self.kernel) + self.bias
        zero_logit = linear[..., 0] - self.zero_slope * log_level
        location = linear[..., 1] + log_level
        log_scale = ops.log(ops.softplus(linear[..., 2]) + _MIN_SCALE)
        start = self._log_mean(zero_logit, location, log_scale)
        log_rate = ops.stop_gradient(start) + linear[..., 3]
        return ops.stack([log_rate, zero_logit, location, log_scale], axis=-1)

    def _log_mean(self, zero_logit, location, log_scale):
        """What log μ starts from, `[..., num_tasks]`, from tensors like it."""
        typical = location
        if any(self.label_limits or ()):
            limits = np.array([limit or 1 for limit in self.label_limits])
            y = np.arange(2, max(limits.max(), 2) + 1)
            counted = (y <= limits[:, None]).astype("float32")
            z = location[..., None] - np.log(y - 0.5).astype("float32")
            above = ops.sigmoid(z * ops.exp(-log_scale)[..., None])
            days = ops.log1p(ops.sum(counted * above, axis=-1))
            has_limit = [limit is not None for limit in self.label_limits]
            typical = ops.where(np.array(has_limit), days, location)
        return ops.log_sigmoid(-zero_logit) + typical

    def _initial_bias(self, shape, dtype=None):
        if self.initial_log_rates is None:
            return ops.zeros(shape, dtype)
        # Where h is the log rate, log μ shall be, too.
        rates = ops.convert_to_tensor(self.initial_log_rates, dtype)
        log_scale = ops.log(ops.softplus(ops.zeros_like(rates)) + _MIN_SCALE)
        of_mean = rates - self._log_mean(-rates, rates, log_scale)
        others = ops.zeros((shape[0], NUM_PARAMETERS - 1), dtype)
        return ops.concatenate([others, of_mean[:, None]], axis=1)

    def compute_output_shape(self, inputs_shape, log_level_shape):
        return (*inputs_shape[:2], NUM_PARAMETERS)

    def get_config(self):
        return super().get_config() | {
            "initial_log_rates": self.initial_log_rates,
            "label_limits": self.label_limits,
            "kernel_regularizer": regularizers.serialize(
                self.kernel_regularizer
            ),
        }
