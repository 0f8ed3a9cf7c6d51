"""Encodes a sequence of days of categorical columns as one vector."""

import keras
from keras import initializers, ops, regularizers

from m2m_tf.layers._arguments import require_positive_int, require_positive_ints
from m2m_tf.layers.column_embedding import ColumnEmbedding

_POOLINGS = ("flatten", "mean", "last", "attention")
# Far below any score, yet finite: a row without a real day then has a
# uniform softmax (which the mask sets to zero) instead of 0 / 0.
_MASKED_SCORE = -1e9


@keras.saving.register_keras_serializable("m2m_tf")
class SequenceEncoder(keras.layers.Layer):
    """Embedding, transformer layer and pooling of one sequence.

    For a sequence X of `lookback` days, each day's embedded columns with a
    trainable position embedding concatenated (section 4.1.1 of the paper),
    multi-head self-attention follows (eq. 2-4):

        Attention(Q, K, V) = softmax(Q Kᵀ / √d) V
        head_i = Attention(X W_i^Q, X W_i^K, X W_i^V)
        MH(X) = concat(head_1, ..., head_h) W^H

    where d is the width of a head, the input's width over the number of
    heads. (The paper's eq. 2 prints V inside the softmax, a typo.) There is
    no feed-forward part and no non-linearity: the expert views follow.
    Projections have no bias, as in eq. 3-4; a bias of the keys could not be
    learned anyway, because the softmax cancels it. The days are then pooled
    to the fixed-length vector of eq. 5.

    Padded days are neither attended to nor pooled. A row with padded days
    only is encoded as zeros.

    Args:
        vocabulary_sizes: Positive integers, vocabulary size of each column,
            see `ColumnEmbedding`.
        embedding_dim: Width of a column's embedding.
        num_heads: h, number of attention heads.
        pooling: How days become one vector. `"flatten"` concatenates them
            (zeros for padded days), `"mean"` averages the real days,
            `"last"` takes the last real day, `"attention"` averages the real
            days with the softmax of their products with a trained vector.
        use_transformer: False pools the embedded days directly, the paper's
            ablation without transformer layer.
        position_dim: Width of the position embedding. Defaults to
            `embedding_dim`.
        embeddings_regularizer: Regularizer of column and position embeddings.
        kernel_regularizer: Regularizer of the projections and of the vector
            of the attention pooling.
        **kwargs: Keras layer arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Integer tensor `[batch, lookback, num_columns]` of ids.
        sequence_mask: Boolean or integer tensor `[batch, lookback]`, true
            for a real day. None if all days are real. It is not named `mask` or
            `inputs_mask`, because Keras fills such arguments by itself.

    Input shape:
        `[batch, lookback, num_columns]`, the last two known, and
        `[batch, lookback]`.

    Output shape:
        `[batch, lookback * width]` for `"flatten"`, else `[batch, width]`,
        with `width = num_columns * embedding_dim + position_dim`.

    Example:

    >>> ids = keras.ops.zeros((8, 40, 3), dtype="int32")
    >>> SequenceEncoder((10, 10, 7), pooling="mean")(ids).shape
    TensorShape([8, 64])
    """

    def __init__(
        self,
        vocabulary_sizes,
        embedding_dim=16,
        num_heads=2,
        pooling="flatten",
        use_transformer=True,
        position_dim=None,
        embeddings_regularizer=None,
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.vocabulary_sizes = require_positive_ints(
            "vocabulary_sizes", vocabulary_sizes
        )
        self.embedding_dim = require_positive_int(
            "embedding_dim", embedding_dim
        )
        self.num_heads = require_positive_int("num_heads", num_heads)
        if pooling not in _POOLINGS:
            raise ValueError(
                f"`pooling` must be one of {_POOLINGS}. "
                f"Received: pooling={pooling!r}"
            )
        self.pooling = pooling
        self.use_transformer = use_transformer
        if position_dim is None:
            position_dim = embedding_dim
        self.position_dim = require_positive_int("position_dim", position_dim)
        self.embeddings_regularizer = regularizers.get(embeddings_regularizer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        if use_transformer and self._width() % num_heads:
            raise ValueError(
                "`num_heads` must divide the width of a day, "
                "num_columns * embedding_dim + position_dim = "
                f"{self._width()}; change it or `num_heads`. "
                f"Received: num_heads={num_heads}"
            )
        # Ids that arrive as floats must not be rounded to half precision.
        self.autocast = False

    def build(self, inputs_shape, sequence_mask_shape=None):
        if len(inputs_shape) != 3 or None in inputs_shape[1:]:
            raise ValueError(
                "`inputs` must have shape [batch, lookback, num_columns] "
                "with known last two axes. "
                f"Received: inputs.shape={tuple(inputs_shape)}"
            )
        batch, lookback, _ = inputs_shape
        width = self._width()
        self.column_embedding = ColumnEmbedding(
            self.vocabulary_sizes,
            self.embedding_dim,
            embeddings_regularizer=self.embeddings_regularizer,
            dtype=self.dtype_policy,
            name="column_embedding",
        )
        self.column_embedding.build(inputs_shape)
        self.position_embeddings = self.add_weight(
            name="position_embeddings",
            shape=(lookback, self.position_dim),
            initializer=initializers.VarianceScaling(1.0, mode="fan_out"),
            regularizer=self.embeddings_regularizer,
        )
        if self.use_transformer:
            self.self_attention = keras.layers.MultiHeadAttention(
                self.num_heads,
                key_dim=width // self.num_heads,
                use_bias=False,
                kernel_regularizer=self.kernel_regularizer,
                dtype=self.dtype_policy,
                name="self_attention",
            )
            day_shape = (batch, lookback, width)
            self.self_attention.build(day_shape, day_shape)
        if self.pooling == "attention":
            self.pooling_vector = self.add_weight(
                name="pooling_vector",
                shape=(width,),
                initializer=initializers.VarianceScaling(1.0, mode="fan_in"),
                regularizer=self.kernel_regularizer,
            )

    def call(self, inputs, sequence_mask=None):
        days = self._embed(inputs)
        if sequence_mask is None:
            sequence_mask = ops.ones_like(inputs[:, :, 0])
        sequence_mask = ops.cast(sequence_mask, "bool")
        if self.use_transformer:
            if self.pooling == "last":
                return self._attend_from_last_day(days, sequence_mask)
            days = self._attend_from_all_days(days, sequence_mask)
        if self.pooling == "flatten":
            mask = ops.cast(sequence_mask, days.dtype)
            return ops.reshape(
                days * ops.expand_dims(mask, axis=-1),
                (-1, days.shape[1] * days.shape[2]),
            )
        return self._pool(days, sequence_mask)

    def _pool(self, days, sequence_mask):
        weights = self._day_weights(days, sequence_mask)
        # [batch, 1, lookback] @ [batch, lookback, width]
        pooled = ops.matmul(
            ops.expand_dims(weights, axis=1), ops.cast(days, "float32")
        )
        return ops.cast(ops.squeeze(pooled, axis=1), self.compute_dtype)

    def _attend_from_all_days(self, days, sequence_mask):
        """What `self_attention` gives, `[batch, lookback, width]`.

        A projection is one product with the days of all rows. Keras makes one
        for each row, whose kernel gradients are then summed over the rows.
        """
        width = days.shape[-1]
        query_kernel, key_kernel, value_kernel, output_kernel = (
            ops.reshape(kernel, (width, width)) for kernel in self._kernels()
        )
        all_days = ops.reshape(days, (-1, width))

        def project(kernel, axes):
            heads = ops.reshape(
                ops.matmul(all_days, kernel),
                (-1, days.shape[1], self.num_heads, width // self.num_heads),
            )
            return ops.transpose(heads, axes)

        query = project(query_kernel, (0, 2, 1, 3))
        key = project(key_kernel, (0, 2, 3, 1))
        value = project(value_kernel, (0, 2, 1, 3))
        # [batch, 1, 1, lookback]: no query may look at a padded key.
        mask = ops.expand_dims(sequence_mask, (1, 2))
        weights = self._attention_weights(ops.matmul(query, key), mask)
        heads = ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))
        output = ops.matmul(ops.reshape(heads, (-1, width)), output_kernel)
        return ops.reshape(output, (-1, *days.shape[1:]))

    def _attend_from_last_day(self, days, sequence_mask):
        """What `self_attention` gives for the last real day, `[B, width]`.

        Only the last day is pooled, so only it asks. Nothing is then gained
        by projecting all days: Q (X W^K)ᵀ = (Q W^Kᵀ) Xᵀ and α (X W^V) =
        (α X) W^V, the right sides of which project one vector instead of
        `lookback` ones.
        """
        query_kernel, key_kernel, value_kernel, output_kernel = self._kernels()
        last = self._pool(days, sequence_mask)
        # b: batch, d: day, h: head, w: width of a day, k: width of a head
        query = ops.einsum("bw,whk->bhk", last, query_kernel)
        query = ops.einsum("bhk,whk->bhw", query, key_kernel)
        scores = ops.einsum("bhw,bdw->bhd", query, days)
        mask = ops.expand_dims(sequence_mask, 1)
        weights = self._attention_weights(scores, mask)
        pooled = ops.matmul(weights, days)
        heads = ops.einsum("bhw,whk->bhk", pooled, value_kernel)
        output = ops.einsum("bhk,hkw->bw", heads, output_kernel)
        real = ops.any(sequence_mask, axis=1, keepdims=True)
        return output * ops.cast(real, output.dtype)

    def _kernels(self):
        """W^Q, W^K, W^V `[width, heads, head]` and W^H `[heads, head, width]`.

        `head` is the width of a head.
        """
        attention = self.self_attention
        projections = (
            attention.query_dense,
            attention.key_dense,
            attention.value_dense,
            attention.output_dense,
        )
        for layer in projections:
            # Its kernel would be whole numbers then, without their scale.
            if mode := getattr(layer, "quantization_mode", None):
                raise ValueError(
                    f"{type(self).__name__} cannot be quantized. Leave it out "
                    "of `quantize`, or use mixed_bfloat16. Received: "
                    f"{layer.name} with quantization_mode={mode!r}."
                )
        return [
            ops.cast(layer.kernel, self.compute_dtype) for layer in projections
        ]

    def _attention_weights(self, scores, mask):
        """softmax(Q Kᵀ / √d) of eq. 2 over the days that `mask` has True."""
        head_dim = self._width() // self.num_heads
        scores = ops.cast(scores, "float32") / head_dim**0.5
        weights = ops.softmax(ops.where(mask, scores, _MASKED_SCORE), axis=-1)
        return ops.cast(weights, self.compute_dtype)

    def _embed(self, inputs):
        embedded = self.column_embedding(inputs)
        positions = ops.cast(self.position_embeddings, self.compute_dtype)
        positions = ops.tile(
            ops.expand_dims(positions, axis=0), (ops.shape(inputs)[0], 1, 1)
        )
        return ops.concatenate([embedded, positions], axis=-1)

    def _day_weights(self, days, sequence_mask):
        """Weight of each day in the pooled vector: float32, 0 if padded."""
        mask = ops.cast(sequence_mask, "float32")
        if self.pooling == "mean":
            num_days = ops.sum(mask, axis=-1, keepdims=True)
            return mask / ops.maximum(num_days, 1.0)
        if self.pooling == "last":
            # Real days from here on: 1 at the last real day.
            remaining = ops.flip(ops.cumsum(ops.flip(mask, 1), axis=1), 1)
            return mask * ops.cast(remaining < 1.5, "float32")
        pooling_vector = ops.cast(self.pooling_vector, "float32")
        scores = ops.matmul(ops.cast(days, "float32"), pooling_vector)
        scores = ops.where(sequence_mask, scores, _MASKED_SCORE)
        return mask * ops.softmax(scores, axis=-1)

    def _width(self):
        num_columns = len(self.vocabulary_sizes)
        return num_columns * self.embedding_dim + self.position_dim

    def compute_output_shape(self, inputs_shape, sequence_mask_shape=None):
        if self.pooling == "flatten":
            return (inputs_shape[0], inputs_shape[1] * self._width())
        return (inputs_shape[0], self._width())

    def get_config(self):
        config = super().get_config()
        config.update(
            {
                "vocabulary_sizes": self.vocabulary_sizes,
                "embedding_dim": self.embedding_dim,
                "num_heads": self.num_heads,
                "pooling": self.pooling,
                "use_transformer": self.use_transformer,
                "position_dim": self.position_dim,
                "embeddings_regularizer": regularizers.serialize(
                    self.embeddings_regularizer
                ),
                "kernel_regularizer": regularizers.serialize(
                    self.kernel_regularizer
                ),
            }
        )
        return config
