"""One network per task: embedding and MLP."""

from m2m_tf.data import schema
from m2m_tf.models.forecast_model import ForecastModel
from m2m_tf.models.multi_task import (
    dense_rows,
    features_with_attributes,
    multi_task_model,
)


def single_task(
    spec: schema.ModelInputSpec, *, view_dim=256, **options
) -> ForecastModel:
    """A network for each task, embeddings and backbone included.

    The networks share no weight. Trained together by an optimiser that works
    weight by weight (Adam, clipping by value), each learns what it would
    learn alone.

    Arguments are those of `ModelSettings`, and `label_means` as in `m2m`.

    Example:

    >>> model = single_task(data.preprocessor.model_inputs, view_dim=16)
    >>> model.output["visits"].shape
    (None, 1)
    """

    def encode(inputs, spec, regularizer, **options):
        return {
            f"{name}_bottom": features_with_attributes(
                inputs, spec, regularizer, f"task_{name}_", **options
            )
            for name in spec.task_names
        }

    def represent(features, regularizer):
        return dense_rows(features, view_dim, regularizer, name="tasks")

    return multi_task_model(
        "single_task",
        spec,
        represent,
        encode=encode,
        view_dim=view_dim,
        **options,
    )
