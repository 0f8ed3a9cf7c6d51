"""A dense layer with weights of its own for each task."""

import keras
from keras import activations, initializers, ops, regularizers

from m2m_tf.layers._arguments import require_positive_int


@keras.saving.register_keras_serializable("m2m_tf")
class TaskDense(keras.layers.Layer):
    """One ordinary dense layer per task, computed together.

        output_t = σ(h_t W_t + b_t)

    Stacked, it is the task-specific tower of shared-bottom, MMoE, CGC and
    cross-stitch networks.

    Args:
        units: Width of the output.
        activation: Activation σ.
        kernel_regularizer: Regularizer of the kernels.
        **kwargs: Keras layer arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: h, float tensor `[batch, num_tasks, d_in]`.

    Output shape:
        `[batch, num_tasks, units]`.

    Example:

    >>> TaskDense(8)(keras.ops.ones((2, 5, 16))).shape
    TensorShape([2, 5, 8])
    """

    def __init__(
        self,
        units,
        activation="leaky_relu",
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.units = require_positive_int("units", units)
        self.activation = activations.get(activation)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)

    def build(self, input_shape):
        if len(input_shape) != 3 or None in input_shape[1:]:
            raise ValueError(
                "`inputs` must have shape [batch, num_tasks, d_in] with known "
                f"last two axes. Received: inputs.shape={tuple(input_shape)}"
            )
        num_tasks, input_dim = input_shape[1:]
        self.kernel = self.add_weight(
            name="kernel",
            shape=(num_tasks, input_dim, self.units),
            # The axes are named because Keras would count the tasks' axis as
            # a part of the fan-in.
            initializer=initializers.HeNormal(input_axes=[1], output_axes=[2]),
            regularizer=self.kernel_regularizer,
        )
        self.bias = self.add_weight(
            name="bias", shape=(num_tasks, self.units), initializer="zeros"
        )

    def call(self, inputs):
        # b: batch, t: task, i: width before, o: width after
        outputs = ops.einsum("bti,tio->bto", inputs, self.kernel)
        return self.activation(outputs + self.bias)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:2], self.units)

    def get_config(self):
        return super().get_config() | {
            "units": self.units,
            "activation": activations.serialize(self.activation),
            "kernel_regularizer": regularizers.serialize(
                self.kernel_regularizer
            ),
        }
