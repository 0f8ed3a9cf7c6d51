"""Customized gate control: Tang et al., RecSys 2020 (PLE of one level)."""

from m2m_tf.data import schema
from m2m_tf.models.forecast_model import ForecastModel
from m2m_tf.models.multi_task import gated_experts, multi_task_model


def cgc(
    spec: schema.ModelInputSpec, *, num_experts=4, view_dim=256, **options
) -> ForecastModel:
    """Shared experts and one of its own for each task, under the task's gate.

    `num_experts` are the shared ones.

    Arguments are those of `ModelSettings`, and `label_means` as in `m2m`.

    Example:

    >>> model = cgc(data.preprocessor.model_inputs, view_dim=16)
    >>> model.output["visits"].shape
    (None, 1)
    """
    return multi_task_model(
        "cgc",
        spec,
        gated_experts(spec, num_experts, 1, view_dim),
        view_dim=view_dim,
        **options,
    )
