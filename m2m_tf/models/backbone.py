"""Inputs and backbone (SPEC section 2) that all builders share."""

import math

import keras

from m2m_tf import layers
from m2m_tf.data import schema
from m2m_tf.regularizers import L2

# Starting weights of the two history levels: that of the lookback, and the
# mean of it and that of the last `horizon` days.
HISTORY_WEIGHTS = (0.5, 0.25)


def model_inputs(spec: schema.ModelInputSpec) -> dict:
    """Name → `keras.Input` of each model input."""
    return {
        name: keras.Input(tensor.shape, dtype=tensor.dtype, name=name)
        for name, tensor in spec.tensors().items()
    }


def feature_vector(
    inputs: dict, spec: schema.ModelInputSpec, *, prefix="", **options
):
    """F of eq. 5: both sequences, known-future columns, dense features.

    Args:
        inputs: The model's inputs.
        spec: Sizes of the inputs.
        prefix: Goes before the layers' names, for a model with several.
        **options: See `feature_parts`.

    Returns:
        Tensor `[batch, D]`.
    """
    return keras.layers.Concatenate(name=f"{prefix}features")(
        feature_parts(inputs, spec, prefix=prefix, **options)
    )


def feature_parts(
    inputs: dict,
    spec: schema.ModelInputSpec,
    *,
    context,
    embedding_dim,
    regularizer,
    num_heads=2,
    pooling="flatten",
    use_transformer=True,
    dropout=0.0,
    prefix="",
) -> list:
    """The parts of F before they are joined, tensors `[batch, ...]`.

    Args:
        context: Embedded attributes to append, or an empty list.
        dropout: Share of the embedded parts that is dropped in training. The
            dense features are left whole: counts are products of levels and
            exposure, of which a missing factor spoils the rest.
    """
    parts = []
    for name, sizes in (
        (schema.BEHAVIOR_SEQUENCE, spec.behavior_sizes),
        (schema.PERFORMANCE_SEQUENCE, spec.performance_sizes),
    ):
        if not sizes:
            continue
        encoder = layers.SequenceEncoder(
            sizes,
            embedding_dim=embedding_dim,
            num_heads=num_heads,
            pooling=pooling,
            use_transformer=use_transformer,
            embeddings_regularizer=regularizer,
            kernel_regularizer=regularizer,
            name=f"{prefix}{name}_encoder",
        )
        parts.append(
            encoder(inputs[name], sequence_mask=inputs[schema.SEQUENCE_MASK])
        )
    if spec.known_future_sizes:
        embedded = layers.ColumnEmbedding(
            spec.known_future_sizes,
            embedding_dim=embedding_dim,
            embeddings_regularizer=regularizer,
            name=f"{prefix}known_future_embedding",
        )(inputs[schema.KNOWN_FUTURE])
        parts.append(
            keras.layers.Flatten(name=f"{prefix}known_future_days")(embedded)
        )
    parts += context
    if dropout:
        parts = [
            keras.layers.Dropout(dropout, name=f"{prefix}dropout_{index}")(part)
            for index, part in enumerate(parts)
        ]
    return [*parts, inputs[schema.DENSE_FEATURES]]


def attribute_vector(
    inputs: dict,
    spec: schema.ModelInputSpec,
    *,
    embedding_dim,
    regularizer,
    prefix="",
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
                    name=f"{prefix}{name}_embedding",
                )(inputs[name])
            )
    if len(parts) == 1:
        return parts[0]
    return keras.layers.Concatenate(name=f"{prefix}attributes")(parts)


def forecast_heads(
    representations,
    inputs: dict,
    spec: schema.ModelInputSpec,
    *,
    label_means,
    history_offset,
    head_normalization,
    likelihood,
    regularizer,
) -> dict:
    """Heads of all tasks, with the offset from the entity's own history.

    Args:
        representations: Tensor `[batch, num_tasks, width]`.
        inputs: The model's inputs.
        spec: Sizes of the inputs.
        label_means: Mean training label of each task, from whose logs the
            heads start; None starts all rates from 1.
        history_offset: Whether to add `layers.HistoryOffset`.
        head_normalization: Whether the representations are normalised (Ba
            et al., "Layer Normalization", 2016).
        likelihood: See `ModelSettings`.
        regularizer: Regularizer of the heads' kernels.

    Returns:
        `{task: log rate [batch, 1]}`, or with the hurdle likelihood `{task:
        parameters [batch, 4]}`, of which the first is the log rate.
    """
    if head_normalization:
        # Scale and shift would be the heads' own, and tasks would share them.
        representations = keras.layers.LayerNormalization(
            center=False, scale=False, name="head_normalization"
        )(representations)
    offset_share = sum(HISTORY_WEIGHTS) if history_offset else 0.0
    log_means = None
    if label_means is not None:
        log_means = [math.log(mean) for mean in _positive(label_means)]
    outputs = layers.LogRateHeads(
        initial_log_rates=log_means
        and [(1 - offset_share) * value for value in log_means],
        kernel_regularizer=regularizer,
        name="heads",
    )(representations)
    if history_offset:
        outputs = layers.HistoryOffset(HISTORY_WEIGHTS, name="history_offset")(
            outputs, inputs[schema.LOG_HISTORY]
        )
    if likelihood == "poisson":
        # A rate is the exponential of these: half precision would round them
        # to steps of some per cent.
        outputs = keras.layers.Reshape(
            (-1, 1), dtype="float32", name="log_rates"
        )(outputs)
    else:
        outputs = layers.HurdleHeads(
            initial_log_rates=log_means,
            label_limits=[spec.label_limits.get(x) for x in spec.task_names],
            kernel_regularizer=regularizer,
            name="hurdle_heads",
        )(representations, outputs)
    return {
        name: outputs[:, index] for index, name in enumerate(spec.task_names)
    }


def _positive(label_means):
    label_means = [float(mean) for mean in label_means]
    if not all(0 < mean < math.inf for mean in label_means):
        raise ValueError(
            "`label_means` must be positive, one for each task. Received: "
            f"label_means={label_means}"
        )
    return label_means


def make_regularizer(l2):
    """α‖W‖² of eq. 19, or None for α = 0."""
    return L2(l2) if l2 else None
