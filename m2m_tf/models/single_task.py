"""One network per task: embedding and MLP."""

import keras

from m2m_tf.data import schema
from m2m_tf.models import backbone
from m2m_tf.models.forecast_model import ForecastModel
from m2m_tf.models.multi_task import features_with_attributes


def single_task(
    spec: schema.ModelInputSpec,
    *,
    view_dim=256,
    num_tower_layers=2,
    history_offset=False,
    head_normalization=False,
    likelihood="poisson",
    l2=1e-6,
    label_means=None,
    **backbone_options,
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
    inputs = backbone.model_inputs(spec)
    regularizer = backbone.make_regularizer(l2)
    towers = []
    for name in spec.task_names:
        hidden = features_with_attributes(
            inputs, spec, regularizer, f"{name}_", **backbone_options
        )
        for index in range(1 + num_tower_layers):
            hidden = keras.layers.Dense(
                view_dim,
                "leaky_relu",
                kernel_initializer="he_normal",
                kernel_regularizer=regularizer,
                name=f"{name}_dense_{index}",
            )(hidden)
        towers.append(
            keras.layers.Reshape((1, view_dim), name=f"{name}_row")(hidden)
        )
    representations = towers[0]
    if len(towers) > 1:
        representations = keras.layers.Concatenate(axis=1, name="tasks")(towers)
    outputs = backbone.forecast_heads(
        representations,
        inputs,
        spec,
        label_means=label_means,
        history_offset=history_offset,
        head_normalization=head_normalization,
        likelihood=likelihood,
        regularizer=regularizer,
    )
    return ForecastModel(inputs, outputs, name="single_task")
