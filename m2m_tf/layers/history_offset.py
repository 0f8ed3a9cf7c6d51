"""A trained offset from the advertiser's own recent level."""

import keras
from keras import initializers, ops


@keras.saving.register_keras_serializable("m2m_tf")
class HistoryOffset(keras.layers.Layer):
    """Adds weighted logs of past totals to the log rates.

    For task t and J past totals h_tj of the sample, each over its own span
    of days:

        output_t = log_rate_t + Σ_j w_tj log h_tj

    This is an exposure offset as in Poisson regression, with a trained
    exponent w_tj. It is an option beyond the paper: the network then only
    has to learn how the coming days differ from the past ones.

    Computed in float32 whatever the global dtype policy, because an error in
    a log rate is a relative error of the rate.

    Args:
        initial_weights: J numbers, w_tj at the start, the same for all tasks.
        dtype: Defaults to `"float32"`, not to the global policy.
        **kwargs: Keras layer arguments, such as `name`.

    Call arguments:
        log_rate: Float tensor `[batch, num_tasks]`.
        log_history: Float tensor `[batch, num_tasks, J]`, finite: the caller
            adds a constant to totals that may be zero before the logarithm.

    Input shape:
        `[batch, num_tasks]` and `[batch, num_tasks, J]`.

    Output shape:
        `[batch, num_tasks]`.

    Example:

    >>> log_rate = keras.ops.zeros((8, 5))
    >>> log_history = keras.ops.ones((8, 5, 2))
    >>> HistoryOffset((0.5, 0.25))(log_rate, log_history).shape
    TensorShape([8, 5])
    """

    def __init__(self, initial_weights=(0.5, 0.25), dtype="float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)
        self.initial_weights = self._check_initial_weights(initial_weights)

    def build(self, log_rate_shape, log_history_shape):
        num_tasks = log_rate_shape[-1]
        expected = (num_tasks, len(self.initial_weights))
        if tuple(log_history_shape[1:]) != expected:
            raise ValueError(
                "`log_history` must have shape [batch, num_tasks, J] = "
                f"[batch, {expected[0]}, {expected[1]}], with J the number of "
                "`initial_weights`. Received: log_history.shape="
                f"{tuple(log_history_shape)}"
            )
        self.input_spec = keras.layers.InputSpec(ndim=2, axes={-1: num_tasks})
        self.history_weights = self.add_weight(
            name="history_weights",
            shape=expected,
            # Broadcast along the tasks.
            initializer=initializers.Constant(list(self.initial_weights)),
        )

    def call(self, log_rate, log_history):
        offset = ops.sum(log_history * self.history_weights, axis=-1)
        return log_rate + offset

    def _check_initial_weights(self, initial_weights):
        try:
            weights = tuple(float(weight) for weight in initial_weights)
        except (TypeError, ValueError):
            weights = ()
        if not weights:
            raise ValueError(
                "`initial_weights` must be a non-empty sequence of numbers. "
                f"Received: initial_weights={initial_weights!r}"
            )
        return weights

    def compute_output_shape(self, log_rate_shape, log_history_shape):
        return log_rate_shape

    def get_config(self):
        config = super().get_config()
        config.update({"initial_weights": self.initial_weights})
        return config
