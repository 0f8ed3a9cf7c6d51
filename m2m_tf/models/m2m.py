"""M2M: Zhang et al., WSDM 2022."""

import keras

from m2m_tf import layers
from m2m_tf.data import schema
from m2m_tf.models import backbone
from m2m_tf.models.ensemble import MEMBER_PREFIX
from m2m_tf.models.forecast_model import ForecastModel

ATTENTION_LAYER = "meta_attention"
KNOWLEDGE_LAYER = "scenario_knowledge"
EXPERT_ATTENTION = "expert_attention"


def m2m(
    spec: schema.ModelInputSpec,
    *,
    embedding_dim=16,
    num_heads=2,
    pooling="flatten",
    use_transformer=True,
    num_experts=4,
    view_dim=256,
    knowledge_dim=64,
    num_meta_layers=3,
    num_tower_layers=2,
    meta_rank=None,
    share_meta_across_tasks=True,
    meta_attention=True,
    meta_tower=True,
    history_offset=False,
    head_normalization=False,
    context_in_backbone=False,
    likelihood="poisson",
    dropout=0.0,
    meta_l2=1e-6,
    l2=1e-6,
    label_means=None,
) -> ForecastModel:
    """Builds M2M (figure 3 of the paper) as a functional model.

    Defaults are the paper's sizes (section 5.1.3). Arguments are those of
    `ModelSettings`, which explains them, and:

    Args:
        spec: Sizes of the inputs, `Preprocessor.model_inputs`.
        label_means: Mean training label of each task; each head starts from
            its log. None starts all rates from 1.

    Returns:
        A `ForecastModel` from a dict of model inputs to `{task: log rate
        [batch, 1]}`, trained with `losses.PoissonLogRate`; with the hurdle
        likelihood to `{task: parameters [batch, 4]}`, trained with
        `losses.HurdleLoss`, see `layers.HurdleHeads`.

    Example:

    >>> from m2m_tf.losses import PoissonLogRate
    >>> model = m2m(data.preprocessor.model_inputs, view_dim=64)
    >>> model.compile("adam", loss=PoissonLogRate())
    >>> history = model.fit(
    ...     data.train(batch_size=16), shuffle=False, verbose=0
    ... )
    """
    # --- Inputs ---
    inputs = backbone.model_inputs(spec)
    l2_other = backbone.make_regularizer(l2)
    l2_meta = backbone.make_regularizer(meta_l2)

    # --- Backbone (eq. 2-8) ---
    attributes = backbone.attribute_vector(
        inputs, spec, embedding_dim=embedding_dim, regularizer=l2_other
    )
    features = backbone.feature_vector(
        inputs,
        spec,
        embedding_dim=embedding_dim,
        num_heads=num_heads,
        pooling=pooling,
        use_transformer=use_transformer,
        # Who generates nothing would else see neither scenario nor profile.
        context=[attributes]
        if context_in_backbone or not (meta_attention or meta_tower)
        else [],
        dropout=dropout,
        regularizer=l2_other,
    )
    expert_views = layers.ExpertViews(
        num_experts,
        view_dim,
        kernel_regularizer=l2_other,
        name="expert_views",
    )(features)
    scenario_knowledge = layers.ScenarioKnowledge(
        knowledge_dim, kernel_regularizer=l2_other, name=KNOWLEDGE_LAYER
    )(attributes)
    task_views = layers.TaskViews(
        len(spec.task_names),
        view_dim,
        kernel_regularizer=l2_other,
        name="task_views",
    )(scenario_knowledge)

    # --- Meta learning (eq. 9-18) ---
    meta_options = {
        "num_meta_layers": num_meta_layers,
        "rank": meta_rank,
        "share_meta_across_tasks": share_meta_across_tasks,
        "generator_regularizer": l2_meta,
        "kernel_regularizer": l2_other,
    }
    # The scores are no output; `explanation` takes them up.
    representations, _ = layers.MetaAttention(
        generated=meta_attention, name=ATTENTION_LAYER, **meta_options
    )(
        expert_views,
        task_views,
        scenario_knowledge,
        return_attention_scores=True,
    )
    representations = layers.MetaResidualTower(
        num_layers=num_tower_layers,
        generated=meta_tower,
        name="meta_tower",
        **meta_options,
    )(representations, scenario_knowledge)

    # --- Heads ---
    outputs = backbone.forecast_heads(
        representations,
        inputs,
        spec,
        label_means=label_means,
        history_offset=history_offset,
        head_normalization=head_normalization,
        likelihood=likelihood,
        regularizer=l2_other,
    )
    return ForecastModel(inputs, outputs, name="m2m")


def explanation(model: ForecastModel) -> keras.Model | None:
    """Model from the same inputs to what explains a forecast.

    Its outputs are `expert_attention`, α `[batch, num_tasks, num_experts]`
    (eq. 15), and `scenario_knowledge`, S `[batch, d]` (eq. 8).

    None for a model without task attention over experts. Experts of different
    networks have nothing to do with each other: of an ensemble the first
    member's are told.

    Example:

    >>> inputs, _ = next(iter(data.test(batch_size=16)))
    >>> explanation(model)(inputs)["expert_attention"].shape
    TensorShape([16, 3, 2])
    """
    names = [layer.name for layer in model.layers]
    if f"{MEMBER_PREFIX}0" in names:
        return explanation(model.get_layer(f"{MEMBER_PREFIX}0"))
    if not {ATTENTION_LAYER, KNOWLEDGE_LAYER} <= set(names):
        return None
    told = model.get_layer(ATTENTION_LAYER).output
    if not isinstance(told, (list, tuple)) or len(told) != 2:
        # A layer of one's own that bears the name.
        return None
    _, scores = told
    return keras.Model(
        model.inputs,
        {
            EXPERT_ATTENTION: scores,
            KNOWLEDGE_LAYER: model.get_layer(KNOWLEDGE_LAYER).output,
        },
    )
