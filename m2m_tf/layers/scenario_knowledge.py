"""The vector from which weights are generated."""

import keras
from keras import activations, regularizers

from m2m_tf.layers._arguments import require_positive_int, require_positive_ints


@keras.saving.register_keras_serializable("m2m_tf")
class ScenarioKnowledge(keras.layers.Layer):
    """Multi-layer perceptron of scenario attributes and advertiser profile.

    Eq. 8 of the paper, with S the scenario's attributes and A the profile,
    embedded and concatenated:

        S̃ = MLP([S, A])

    Args:
        units: d, width of the knowledge.
        hidden_units: Widths of the layers before the last.
        activation: Activation of every layer, the last included.
        kernel_regularizer: Regularizer of the kernels.
        **kwargs: Keras layer arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: [S, A], float tensor `[batch, d_in]`.

    Input shape:
        `[batch, d_in]`.

    Output shape:
        `[batch, units]`.

    Example:

    >>> ScenarioKnowledge(units=8)(keras.ops.ones((2, 16))).shape
    TensorShape([2, 8])
    """

    def __init__(
        self,
        units=64,
        hidden_units=(),
        activation="leaky_relu",
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.units = require_positive_int("units", units)
        self.hidden_units = require_positive_ints(
            "hidden_units", hidden_units, allow_empty=True
        )
        self.activation = activations.get(activation)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)

    def build(self, input_shape):
        self.dense_layers = []
        for index, units in enumerate((*self.hidden_units, self.units)):
            layer = keras.layers.Dense(
                units,
                activation=self.activation,
                kernel_initializer="he_normal",
                kernel_regularizer=self.kernel_regularizer,
                dtype=self.dtype_policy,
                name=f"dense_{index}",
            )
            layer.build(input_shape)
            self.dense_layers.append(layer)
            input_shape = layer.compute_output_shape(input_shape)

    def call(self, inputs):
        hidden = inputs
        for layer in self.dense_layers:
            hidden = layer(hidden)
        return hidden

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        config = super().get_config()
        config.update(
            {
                "units": self.units,
                "hidden_units": self.hidden_units,
                "activation": activations.serialize(self.activation),
                "kernel_regularizer": regularizers.serialize(
                    self.kernel_regularizer
                ),
            }
        )
        return config
