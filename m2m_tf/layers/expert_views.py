"""Several independent networks on one input, computed together."""

import keras
import tensorflow as tf
from keras import activations, initializers, ops, regularizers

from m2m_tf.layers._arguments import require_positive_int, require_positive_ints
from m2m_tf.layers._fan_in import step_divisor
from m2m_tf.regularizers import of_fraction


@keras.saving.register_keras_serializable("m2m_tf")
class ExpertViews(keras.layers.Layer):
    """k independent multi-layer perceptrons of the same input.

    Eq. 6 of the paper, with F the encoded features:

        E_i = MLP_i(F),  i = 1..k

    Every layer of an MLP, the last included, ends with the activation. The
    kernels of the k experts are stacked, `[num_experts, units, d_in]`, so
    that a layer of all experts is one matrix product. Those of more than 512
    inputs are held as a multiple, and the product divided by it, so that a
    step of Adam moves them no further than a layer of 512.

    Args:
        num_experts: k, number of experts. The paper does not give it.
        units: Width of a view, d_view.
        hidden_units: Widths of the layers before the last.
        activation: Activation of every layer.
        kernel_regularizer: Regularizer of the kernels.
        **kwargs: Keras layer arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: F, float tensor `[batch, d_in]`.

    Input shape:
        `[batch, d_in]`.

    Output shape:
        `[batch, num_experts, units]`.

    Example:

    >>> ExpertViews(num_experts=4, units=8)(keras.ops.ones((2, 16))).shape
    TensorShape([2, 4, 8])
    """

    def __init__(
        self,
        num_experts=4,
        units=256,
        hidden_units=(),
        activation="leaky_relu",
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_experts = require_positive_int("num_experts", num_experts)
        self.units = require_positive_int("units", units)
        self.hidden_units = require_positive_ints(
            "hidden_units", hidden_units, allow_empty=True
        )
        self.activation = activations.get(activation)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)

    def build(self, input_shape):
        if len(input_shape) != 2 or input_shape[-1] is None:
            raise ValueError(
                "`inputs` must have shape [batch, d_in] with a known last "
                f"axis. Received: inputs.shape={tuple(input_shape)}"
            )
        self.kernels = []
        self.biases = []
        input_dim = input_shape[-1]
        self.input_spec = keras.layers.InputSpec(ndim=2, axes={-1: input_dim})
        for index, units in enumerate((*self.hidden_units, self.units)):
            divisor = step_divisor(input_dim)
            kernel = self.add_weight(
                name=f"kernel_{index}",
                # A row for each unit, in which the products are quicker than
                # with a row for each input.
                shape=(self.num_experts, units, input_dim),
                # He et al.'s, of which 2 is the scale. The axes are named
                # because Keras would count the experts' as a part of the
                # fan-in.
                initializer=initializers.VarianceScaling(
                    2.0 * divisor**2, input_axes=[2], output_axes=[1]
                ),
                regularizer=of_fraction(self.kernel_regularizer, divisor),
            )
            bias = self.add_weight(
                name=f"bias_{index}",
                shape=(self.num_experts, units),
                initializer="zeros",
            )
            self.kernels.append(kernel)
            self.biases.append(bias)
            input_dim = units

    def call(self, inputs):
        # All experts' units side by side. The kernel's gradient has the
        # kernel's form; that of `ops.transpose(kernel)` is transposed again,
        # which takes a third as long as its product.
        kernel = ops.reshape(self.kernels[0], (-1, inputs.shape[-1]))
        hidden = tf.matmul(inputs, kernel, transpose_b=True)
        hidden = hidden / step_divisor(inputs.shape[-1])
        hidden = ops.reshape(hidden, (-1, *self.biases[0].shape))
        hidden = self.activation(hidden + self.biases[0])
        for kernel, bias in zip(self.kernels[1:], self.biases[1:]):
            # b: batch, e: expert, i: width before, o: width after
            product = ops.einsum("bei,eoi->beo", hidden, kernel)
            product = product / step_divisor(hidden.shape[-1])
            hidden = self.activation(product + bias)
        return hidden

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.num_experts, self.units)

    def get_config(self):
        config = super().get_config()
        config.update(
            {
                "num_experts": self.num_experts,
                "units": self.units,
                "hidden_units": self.hidden_units,
                "activation": activations.serialize(self.activation),
                "kernel_regularizer": regularizers.serialize(
                    self.kernel_regularizer
                ),
            }
        )
        return config
