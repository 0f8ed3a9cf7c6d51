"""One network per task: embedding and MLP."""

import keras

from m2m_tf.data import schema
from m2m_tf.models.forecast_model import ForecastModel
from m2m_tf.models.multi_task import (
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
            name: features_with_attributes(
                inputs, spec, regularizer, f"{name}_", **options
            )
            for name in spec.task_names
        }

    def represent(features, regularizer):
        views = [
            keras.layers.Dense(
                view_dim,
                "leaky_relu",
                kernel_initializer="he_normal",
                kernel_regularizer=regularizer,
                name=f"{name}_bottom",
            )(task_features)
            for name, task_features in features.items()
        ]
        rows = [
            keras.layers.Reshape((1, view_dim), name=f"{name}_row")(view)
            for name, view in zip(features, views, strict=True)
        ]
        if len(rows) == 1:
            return rows[0]
        return keras.layers.Concatenate(axis=1, name="tasks")(rows)

    return multi_task_model(
        "single_task",
        spec,
        represent,
        encode=encode,
        view_dim=view_dim,
        **options,
    )
