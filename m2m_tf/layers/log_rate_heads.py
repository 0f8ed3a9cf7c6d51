"""One linear unit per task, giving the log of the task's Poisson rate."""

import keras
import numpy as np
from keras import ops, regularizers

from m2m_tf.layers._arguments import optional_floats, require_one_per_task


@keras.saving.register_keras_serializable("m2m_tf")
class LogRateHeads(keras.layers.Layer):
    """Log rate of each task from its own representation.

    `log_rate_t = w_t · L_t + b_t` (SPEC section 3, *Head*). Computed in
    float32 whatever the policy, since the rate is its exponential.

    Args:
        initial_log_rates: Sequence of one number per task, b_t at the start;
            None starts from zero. The log of the mean training label spares
            the first steps the search for each task's scale.
        kernel_regularizer: Regularizer of w.
        dtype: Dtype of weights and computation, float32 by default.
        **kwargs: Keras layer arguments, such as `name`.

    Call arguments:
        inputs: L, float tensor `[batch, num_tasks, width]`.

    Output shape:
        `[batch, num_tasks]`.

    Raises:
        ValueError: If the number of initial log rates is not that of tasks.

    Example:

    >>> LogRateHeads()(keras.random.normal((8, 5, 16))).shape
    TensorShape([8, 5])
    """

    def __init__(
        self,
        initial_log_rates=None,
        kernel_regularizer=None,
        dtype="float32",
        **kwargs,
    ):
        super().__init__(dtype=dtype, **kwargs)
        self.initial_log_rates = optional_floats(initial_log_rates)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)

    def build(self, input_shape):
        num_tasks, width = input_shape[1:]
        values = self.initial_log_rates
        require_one_per_task("initial_log_rates", values, num_tasks)
        if values is None:
            values = [0.0] * num_tasks
        self.kernel = self.add_weight(
            name="kernel",
            shape=(num_tasks, width),
            # Small, so that training starts at the initial log rates: an
            # exponential turns a log rate that is 3 too high into 20 times.
            initializer=keras.initializers.RandomNormal(stddev=0.01),
            regularizer=self.kernel_regularizer,
        )
        self.bias = self.add_weight(
            name="bias",
            shape=(num_tasks,),
            initializer=lambda shape, dtype=None: ops.convert_to_tensor(
                np.array(values), dtype
            ),
        )

    def call(self, inputs):
        # b: batch, t: task, d: width
        return ops.einsum("btd,td->bt", inputs, self.kernel) + self.bias

    def compute_output_shape(self, input_shape):
        return tuple(input_shape[:2])

    def get_config(self):
        return super().get_config() | {
            "initial_log_rates": self.initial_log_rates,
            "kernel_regularizer": regularizers.serialize(
                self.kernel_regularizer
            ),
        }
