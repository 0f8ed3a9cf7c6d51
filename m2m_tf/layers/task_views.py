"""Trained vectors that stand for the tasks."""

import keras
from keras import activations, initializers, ops, regularizers

from m2m_tf.layers._arguments import require_positive_int


@keras.saving.register_keras_serializable("m2m_tf")
class TaskViews(keras.layers.Layer):
    """One trained view of each task, the same for every sample.

    Eq. 7 of the paper:

        T_t = MLP(Embedding(t)),  t = 1..m

    with one dense layer and its activation as MLP. The views depend on the
    task alone, never on the sample or its scenario.

    A functional Keras model holds a layer only if it is called on one of the
    model's tensors. `inputs` is such an anchor: any tensor will do and its
    values are never read. The result has no batch axis.

    Args:
        num_tasks: m, number of tasks.
        units: Width of a view, d_view.
        embedding_dim: Width of the embedding.
        activation: Activation of the dense layer.
        embeddings_regularizer: Regularizer of the embedding.
        kernel_regularizer: Regularizer of the dense kernel.
        **kwargs: Keras layer arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Any tensor of the model. Its values are not used.

    Input shape:
        Any.

    Output shape:
        `[num_tasks, units]`.

    Example:

    >>> TaskViews(num_tasks=5, units=8)(keras.ops.ones((2, 16))).shape
    TensorShape([5, 8])
    """

    def __init__(
        self,
        num_tasks,
        units=256,
        embedding_dim=16,
        activation="leaky_relu",
        embeddings_regularizer=None,
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_tasks = require_positive_int("num_tasks", num_tasks)
        self.units = require_positive_int("units", units)
        self.embedding_dim = require_positive_int(
            "embedding_dim", embedding_dim
        )
        self.activation = activations.get(activation)
        self.embeddings_regularizer = regularizers.get(embeddings_regularizer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)

    def build(self, input_shape):
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.num_tasks, self.embedding_dim),
            # As in ColumnEmbedding, a row's norm starts at about 1.
            initializer=initializers.VarianceScaling(1.0, mode="fan_out"),
            regularizer=self.embeddings_regularizer,
        )
        self.dense = keras.layers.Dense(
            self.units,
            activation=self.activation,
            kernel_initializer="he_normal",
            kernel_regularizer=self.kernel_regularizer,
            dtype=self.dtype_policy,
            name="dense",
        )
        self.dense.build((self.num_tasks, self.embedding_dim))

    def call(self, inputs):
        # All tasks at once, so the lookup of eq. 7 is the table itself.
        return self.dense(ops.convert_to_tensor(self.embeddings))

    def compute_output_shape(self, input_shape):
        return (self.num_tasks, self.units)

    def get_config(self):
        config = super().get_config()
        config.update(
            {
                "num_tasks": self.num_tasks,
                "units": self.units,
                "embedding_dim": self.embedding_dim,
                "activation": activations.serialize(self.activation),
                "embeddings_regularizer": regularizers.serialize(
                    self.embeddings_regularizer
                ),
                "kernel_regularizer": regularizers.serialize(
                    self.kernel_regularizer
                ),
            }
        )
        return config
