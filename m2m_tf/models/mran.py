"""Multiple relational attention network: Zhao et al., KDD 2019."""

from m2m_tf import layers
from m2m_tf.data import schema
from m2m_tf.models import backbone
from m2m_tf.models.forecast_model import ForecastModel
from m2m_tf.models.multi_task import dense_rows, multi_task_model


def mran(
    spec: schema.ModelInputSpec, *, view_dim=256, **options
) -> ForecastModel:
    """Attention among features, from tasks to features, and among tasks.

    A field is one of the parts that the other models join to F (each encoded
    sequence, known-future days, dense features, attributes), brought to the
    width `view_dim` by a dense layer.

    Arguments are those of `ModelSettings`, and `label_means` as in `m2m`.

    Example:

    >>> model = mran(data.preprocessor.model_inputs, view_dim=16)
    >>> model.output["visits"].shape
    (None, 1)
    """

    def encode(inputs, spec, regularizer, *, embedding_dim=16, **others):
        attributes = backbone.attribute_vector(
            inputs,
            spec,
            embedding_dim=embedding_dim,
            regularizer=regularizer,
        )
        parts = backbone.feature_parts(
            inputs,
            spec,
            context=[attributes],
            embedding_dim=embedding_dim,
            regularizer=regularizer,
            **others,
        )
        fields = {f"field_{index}": part for index, part in enumerate(parts)}
        return dense_rows(fields, view_dim, regularizer, name="fields")

    def represent(fields, regularizer):
        return layers.TaskRelationAttention(
            len(spec.task_names),
            kernel_regularizer=regularizer,
            name="task_relations",
        )(fields)

    return multi_task_model(
        "mran",
        spec,
        represent,
        encode=encode,
        view_dim=view_dim,
        **options,
    )
