"""One set of head parameters from those of several networks."""

import math

import keras
from keras import ops


@keras.saving.register_keras_serializable("m2m_tf")
class MeanForecast(keras.layers.Layer):
    """Averages the forecasts of M networks for one task.

        log μ = log (1/M) Σ_m exp(log μ_m)

    so the mean is the mean of the networks' means. The parameters of the
    distribution (logit π, location, log scale; see `HurdleHeads`) are the
    means of the networks' parameters: a distribution of the same kind, less
    wide than a mixture. Computed in float32 whatever the policy.

    Args:
        dtype: Defaults to `"float32"`, not to the global policy.
        **kwargs: Keras layer arguments, such as `name`.

    Call arguments:
        inputs: Float tensor `[batch, M, P]`; the first of the P parameters
            is a log rate.

    Output shape:
        `[batch, P]`.

    Example:

    >>> MeanForecast()(keras.ops.zeros((8, 3, 4))).shape
    TensorShape([8, 4])
    """

    def __init__(self, dtype="float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)

    def call(self, inputs):
        log_rate = ops.logsumexp(inputs[..., :1], axis=1)
        log_rate = log_rate - math.log(inputs.shape[1])
        return ops.concatenate(
            [log_rate, ops.mean(inputs[..., 1:], axis=1)], axis=-1
        )

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[2])
