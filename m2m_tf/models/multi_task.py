"""What the rivals of M2M have in common: all but how tasks share."""

import keras

from m2m_tf import layers
from m2m_tf.data import schema
from m2m_tf.models import backbone
from m2m_tf.models.forecast_model import ForecastModel


def multi_task_model(
    name: str,
    spec: schema.ModelInputSpec,
    represent,
    *,
    view_dim,
    num_tower_layers=2,
    history_offset=False,
    head_normalization=False,
    likelihood="poisson",
    l2=1e-6,
    label_means=None,
    stitched=False,
    encode=None,
    **backbone_options,
) -> ForecastModel:
    """Inputs → backbone → `represent` → a tower per task → heads.

    Inputs, backbone, heads and loss are those of `m2m`. Scenario and profile
    attributes are features of the backbone, as in the paper's comparison
    (section 5.1.2).

    Args:
        name: Name of the model.
        spec: Sizes of the inputs.
        represent: Function of what `encode` gives and a regularizer, giving
            a representation of each task `[batch, num_tasks, view_dim]`.
        view_dim: Width of each tower layer.
        num_tower_layers: Dense layers of a tower.
        history_offset, head_normalization, likelihood, l2, label_means: See
            `ModelSettings` and `m2m`.
        stitched: Whether a cross-stitch unit stands before each tower layer.
        encode: Function of inputs, spec and regularizer that encodes them;
            None: `features_with_attributes`, giving F `[batch, D]`.
        **backbone_options: Further arguments of `encode`.
    """
    inputs = backbone.model_inputs(spec)
    regularizer = backbone.make_regularizer(l2)
    encode = encode or features_with_attributes
    features = encode(inputs, spec, regularizer, **backbone_options)
    hidden = represent(features, regularizer)
    for index in range(num_tower_layers):
        if stitched:
            hidden = layers.CrossStitch(name=f"cross_stitch_{index}")(hidden)
        hidden = layers.TaskDense(
            view_dim, kernel_regularizer=regularizer, name=f"tower_{index}"
        )(hidden)
    outputs = backbone.forecast_heads(
        hidden,
        inputs,
        spec,
        label_means=label_means,
        history_offset=history_offset,
        head_normalization=head_normalization,
        likelihood=likelihood,
        regularizer=regularizer,
    )
    return ForecastModel(inputs, outputs, name=name)


def features_with_attributes(
    inputs, spec, regularizer, prefix="", *, embedding_dim=16, **options
):
    """F with scenario and profile attributes appended, `[batch, D]`."""
    attributes = backbone.attribute_vector(
        inputs,
        spec,
        embedding_dim=embedding_dim,
        regularizer=regularizer,
        prefix=prefix,
    )
    return backbone.feature_vector(
        inputs,
        spec,
        embedding_dim=embedding_dim,
        context=[attributes],
        regularizer=regularizer,
        prefix=prefix,
        **options,
    )


def dense_rows(parts, view_dim, regularizer, name):
    """Each part through a dense layer of its own, one row each.

    `ExpertViews` with one expert is that layer: of many inputs it is moved by
    a step as M2M's are.

    Args:
        parts: Name of the layer → its input `[batch, ...]`.
        view_dim: Width of a row.
        regularizer: Regularizer of the kernels.
        name: Name of the layer that joins the rows.

    Returns:
        Tensor `[batch, len(parts), view_dim]`.
    """
    rows = [
        layers.ExpertViews(
            1, view_dim, kernel_regularizer=regularizer, name=layer
        )(part)
        for layer, part in parts.items()
    ]
    if len(rows) == 1:
        return rows[0]
    return keras.layers.Concatenate(axis=1, name=name)(rows)


def gated_experts(spec, num_experts, num_own_experts, view_dim):
    """`represent` of MMoE and CGC: expert views under a gate of each task.

    Args:
        spec: Sizes of the inputs.
        num_experts: Experts that all tasks share.
        num_own_experts: Experts that each task has to itself, beside them.
        view_dim: Width of an expert view.
    """
    num_tasks = len(spec.task_names)

    def represent(features, regularizer):
        expert_views = layers.ExpertViews(
            num_experts + num_tasks * num_own_experts,
            view_dim,
            kernel_regularizer=regularizer,
            name="expert_views",
        )(features)
        return layers.GatedExperts(
            num_tasks,
            num_own_experts,
            kernel_regularizer=regularizer,
            name="gates",
        )(features, expert_views)

    return represent
