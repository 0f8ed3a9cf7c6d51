"""One embedding table for all categorical columns of an input."""

import keras
from keras import initializers, ops, regularizers

from m2m_tf.layers._arguments import require_positive_int, require_positive_ints


@keras.saving.register_keras_serializable("m2m_tf")
class ColumnEmbedding(keras.layers.Layer):
    """Embeds every column of a row of ids and concatenates the results.

    Section 4.1.1 of the paper: columns are discretised and each is embedded
    in `embedding_dim` dimensions. All columns live in one table of
    `sum(vocabulary_sizes)` rows, where column f starts at row
    `sum(vocabulary_sizes[:f])`: one lookup instead of one for each column.

    An id outside its column's vocabulary is clipped to the nearest id of the
    same column, so it never reads the rows of another column.

    Args:
        vocabulary_sizes: Positive integers. Column f holds ids in
            `[0, vocabulary_sizes[f])`.
        embedding_dim: Positive integer, width of one column's embedding.
        embeddings_regularizer: Regularizer of the table.
        **kwargs: Keras layer arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Integer tensor `[..., num_columns]` of ids.

    Input shape:
        `[..., num_columns]`.

    Output shape:
        `[..., num_columns * embedding_dim]`.

    Example:

    >>> ids = keras.ops.array([[2, 0], [1, 4]])
    >>> ColumnEmbedding((3, 5), embedding_dim=4)(ids).shape
    TensorShape([2, 8])
    """

    def __init__(
        self,
        vocabulary_sizes,
        embedding_dim=16,
        embeddings_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.vocabulary_sizes = require_positive_ints(
            "vocabulary_sizes", vocabulary_sizes
        )
        self.embedding_dim = require_positive_int(
            "embedding_dim", embedding_dim
        )
        self.embeddings_regularizer = regularizers.get(embeddings_regularizer)
        # Ids that arrive as floats must not be rounded to half precision.
        self.autocast = False

    def build(self, input_shape):
        if input_shape[-1] != len(self.vocabulary_sizes):
            raise ValueError(
                "The last axis of `inputs` must have one column for each of "
                f"the {len(self.vocabulary_sizes)} vocabulary sizes. "
                f"Received: inputs.shape={tuple(input_shape)}"
            )
        self.embedding = keras.layers.Embedding(
            sum(self.vocabulary_sizes),
            self.embedding_dim,
            # A row starts with a norm of about 1. Keras' default, ±0.05,
            # would make the scenario knowledge so small that generated
            # kernels hardly differ between scenarios at the start.
            embeddings_initializer=initializers.VarianceScaling(
                1.0, mode="fan_out"
            ),
            embeddings_regularizer=self.embeddings_regularizer,
            dtype=self.dtype_policy,
            name="embedding",
        )
        self.embedding.build(input_shape)

    def call(self, inputs):
        ids = ops.cast(inputs, "int32")
        sizes = ops.convert_to_tensor(self.vocabulary_sizes, dtype="int32")
        ids = ops.clip(ids, 0, sizes - 1)
        first_rows = ops.cumsum(sizes) - sizes
        embedded = self.embedding(ids + first_rows)
        # [..., num_columns, embedding_dim] to one axis, keeping the others.
        # All but one of them are known, or they are taken from the tensor.
        return ops.reshape(
            embedded, (*ops.shape(inputs)[:-1], self._output_dim())
        )

    def _output_dim(self):
        return len(self.vocabulary_sizes) * self.embedding_dim

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self._output_dim())

    def get_config(self):
        config = super().get_config()
        config.update(
            {
                "vocabulary_sizes": self.vocabulary_sizes,
                "embedding_dim": self.embedding_dim,
                "embeddings_regularizer": regularizers.serialize(
                    self.embeddings_regularizer
                ),
            }
        )
        return config
