"""Multi-gate mixture of experts: Ma et al., KDD 2018."""

from m2m_tf import layers
from m2m_tf.data import schema
from m2m_tf.models.forecast_model import ForecastModel
from m2m_tf.models.multi_task import multi_task_model


def mmoe(
    spec: schema.ModelInputSpec, *, num_experts=4, view_dim=256, **options
) -> ForecastModel:
    """Shared experts, one softmax gate and one tower for each task.

    Arguments are those of `ModelSettings`, and `label_means` as in `m2m`.
    """

    def represent(features, regularizer):
        expert_views = layers.ExpertViews(
            num_experts,
            view_dim,
            kernel_regularizer=regularizer,
            name="expert_views",
        )(features)
        return layers.GatedExperts(
            len(spec.task_names),
            kernel_regularizer=regularizer,
            name="gates",
        )(features, expert_views)

    return multi_task_model(
        "mmoe", spec, represent, view_dim=view_dim, **options
    )
