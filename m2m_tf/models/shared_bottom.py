"""Shared bottom: Caruana, "Multitask Learning", 1997."""

import keras

from m2m_tf import layers
from m2m_tf.data import schema
from m2m_tf.models.forecast_model import ForecastModel
from m2m_tf.models.multi_task import multi_task_model


def shared_bottom(
    spec: schema.ModelInputSpec, *, view_dim=256, **options
) -> ForecastModel:
    """One network for all tasks, then a tower for each.

    Arguments are those of `ModelSettings`, and `label_means` as in `m2m`.

    Example:

    >>> model = shared_bottom(data.preprocessor.model_inputs, view_dim=16)
    >>> model.output["visits"].shape
    (None, 1)
    """

    def represent(features, regularizer):
        bottom = layers.ExpertViews(
            1, view_dim, kernel_regularizer=regularizer, name="bottom"
        )(features)
        bottom = keras.layers.Reshape((view_dim,), name="bottom_row")(bottom)
        return keras.layers.RepeatVector(
            len(spec.task_names), name="for_each_task"
        )(bottom)

    return multi_task_model(
        "shared_bottom", spec, represent, view_dim=view_dim, **options
    )
