"""Multi-gate mixture of experts: Ma et al., KDD 2018."""

from m2m_tf.data import schema
from m2m_tf.models.forecast_model import ForecastModel
from m2m_tf.models.multi_task import gated_experts, multi_task_model


def mmoe(
    spec: schema.ModelInputSpec, *, num_experts=4, view_dim=256, **options
) -> ForecastModel:
    """Shared experts, one softmax gate and one tower for each task.

    Arguments are those of `ModelSettings`, and `label_means` as in `m2m`.

    Example:

    >>> model = mmoe(data.preprocessor.model_inputs, view_dim=16)
    >>> model.output["visits"].shape
    (None, 1)
    """
    return multi_task_model(
        "mmoe",
        spec,
        gated_experts(spec, num_experts, 0, view_dim),
        view_dim=view_dim,
        **options,
    )
