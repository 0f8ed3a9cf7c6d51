"""Customized gate control: Tang et al., RecSys 2020 (PLE of one level)."""

from m2m_tf import layers
from m2m_tf.data import schema
from m2m_tf.models.forecast_model import ForecastModel
from m2m_tf.models.multi_task import multi_task_model


def cgc(
    spec: schema.ModelInputSpec, *, num_experts=4, view_dim=256, **options
) -> ForecastModel:
    """Shared experts and one of its own for each task, under the task's gate.

    `num_experts` are the shared ones.

    Arguments are those of `ModelSettings`, and `label_means` as in `m2m`.
    """

    def represent(features, regularizer):
        expert_views = layers.ExpertViews(
            num_experts + len(spec.task_names),
            view_dim,
            kernel_regularizer=regularizer,
            name="expert_views",
        )(features)
        return layers.GatedExperts(
            len(spec.task_names),
            num_own_experts=1,
            kernel_regularizer=regularizer,
            name="gates",
        )(features, expert_views)

    return multi_task_model(
        "cgc", spec, represent, view_dim=view_dim, **options
    )
