"""Shape of each task's predictive distribution, beside its mean."""

import keras
from keras import ops, regularizers

# Least scale of the positive part: a scale of 0 would claim certainty.
_MIN_SCALE = 0.05


@keras.saving.register_keras_serializable("m2m_tf")
class HurdleHeads(keras.layers.Layer):
    """Parameters of a hurdle log-logistic distribution for each task.

    A label is 0 with probability π, else positive with a log-logistic
    distribution (a logistic one of its logarithm):

        logit π_t  = u_t · L_t + b_t - c_t log μ_t
        location_t = v_t · L_t + d_t + log μ_t
        scale_t    = softplus(w_t · L_t + e_t) + 0.05

    with L_t the tower's representation of task t and μ_t its predicted mean.
    The mean enters without its gradient, so that it is learned by the Poisson
    loss alone (eq. 20) and the shape only says how labels lie round it. Such
    a shape holds the many zeros and long tails of advertisers' counts, and
    any quantile of it is a formula, see `forecast.hurdle_quantile`. An option
    beyond the paper.

    Computed in float32 whatever the policy.

    Args:
        kernel_regularizer: Regularizer of u, v and w.
        **kwargs: Keras layer arguments, such as `name`.

    Call arguments:
        inputs: L, float tensor `[batch, num_tasks, width]`.
        log_rate: log μ, float tensor `[batch, num_tasks]`.

    Output shape:
        `[batch, num_tasks, 4]`: log μ, logit π, location and log scale.

    Example:

    >>> representations = keras.random.normal((8, 5, 16))
    >>> HurdleHeads()(representations, keras.ops.zeros((8, 5))).shape
    TensorShape([8, 5, 4])
    """

    def __init__(self, kernel_regularizer=None, dtype="float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)

    def build(self, inputs_shape, log_rate_shape):
        num_tasks, width = inputs_shape[1:]
        self.kernel = self.add_weight(
            name="kernel",
            shape=(num_tasks, width, 3),
            initializer=keras.initializers.RandomNormal(stddev=0.01),
            regularizer=self.kernel_regularizer,
        )
        self.bias = self.add_weight(
            name="bias", shape=(num_tasks, 3), initializer="zeros"
        )
        # At 1, with a bias of 0, odds of a zero start at 1 / mean.
        self.zero_slope = self.add_weight(
            name="zero_slope", shape=(num_tasks,), initializer="ones"
        )

    def call(self, inputs, log_rate):
        # b: batch, t: task, d: width, p: parameter
        shape = ops.einsum("btd,tdp->btp", inputs, self.kernel) + self.bias
        mean = ops.stop_gradient(log_rate)
        zero_logit = shape[..., 0] - self.zero_slope * mean
        location = shape[..., 1] + mean
        log_scale = ops.log(ops.softplus(shape[..., 2]) + _MIN_SCALE)
        return ops.stack([log_rate, zero_logit, location, log_scale], axis=-1)

    def compute_output_shape(self, inputs_shape, log_rate_shape):
        return (*log_rate_shape, 4)

    def get_config(self):
        return super().get_config() | {
            "kernel_regularizer": regularizers.serialize(
                self.kernel_regularizer
            ),
        }
