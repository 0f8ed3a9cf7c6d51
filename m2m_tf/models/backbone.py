"""Inputs and backbone (SPEC section 2) that all builders share."""

import keras

from m2m_tf import layers
from m2m_tf.data import schema


def model_inputs(spec: schema.ModelInputSpec) -> dict:
    """Name → `keras.Input` of each model input."""
    return {
        name: keras.Input(tensor.shape, dtype=tensor.dtype, name=name)
        for name, tensor in spec.tensors().items()
    }


def feature_vector(
    inputs: dict,
    spec: schema.ModelInputSpec,
    *,
    embedding_dim,
    num_heads,
    pooling,
    use_transformer,
    context,
    dropout,
    regularizer,
):
    """F of eq. 5: both sequences, known-future columns, dense features.

    Args:
        context: Further vectors `[batch, ...]` to append, or an empty list.

    Returns:
        Tensor `[batch, D]`.
    """
    parts = []
    for name, sizes in (
        (schema.BEHAVIOR_SEQUENCE, spec.behavior_sizes),
        (schema.PERFORMANCE_SEQUENCE, spec.performance_sizes),
    ):
        encoder = layers.SequenceEncoder(
            sizes,
            embedding_dim=embedding_dim,
            num_heads=num_heads,
            pooling=pooling,
            use_transformer=use_transformer,
            embeddings_regularizer=regularizer,
            kernel_regularizer=regularizer,
            name=f"{name}_encoder",
        )
        parts.append(
            encoder(inputs[name], sequence_mask=inputs[schema.SEQUENCE_MASK])
        )
    if spec.known_future_sizes:
        embedded = layers.ColumnEmbedding(
            spec.known_future_sizes,
            embedding_dim=embedding_dim,
            embeddings_regularizer=regularizer,
            name="known_future_embedding",
        )(inputs[schema.KNOWN_FUTURE])
        parts.append(keras.layers.Flatten(name="known_future_days")(embedded))
    parts.append(inputs[schema.DENSE_FEATURES])
    features = keras.layers.Concatenate(name="features")(parts + context)
    if dropout:
        features = keras.layers.Dropout(dropout, name="dropout")(features)
    return features


def attribute_vector(
    inputs: dict, spec: schema.ModelInputSpec, *, embedding_dim, regularizer
):
    """Embedded scenario and profile attributes [S, A] of eq. 8."""
    parts = []
    for name, sizes in (
        (schema.SCENARIO_FEATURES, spec.scenario_sizes),
        (schema.PROFILE_FEATURES, spec.profile_sizes),
    ):
        if sizes:
            parts.append(
                layers.ColumnEmbedding(
                    sizes,
                    embedding_dim=embedding_dim,
                    embeddings_regularizer=regularizer,
                    name=f"{name}_embedding",
                )(inputs[name])
            )
    if len(parts) == 1:
        return parts[0]
    return keras.layers.Concatenate(name="attributes")(parts)
