"""Cross-stitch networks: Misra et al., CVPR 2016."""

from m2m_tf import layers
from m2m_tf.data import schema
from m2m_tf.models.forecast_model import ForecastModel
from m2m_tf.models.multi_task import multi_task_model


def cross_stitch(
    spec: schema.ModelInputSpec, *, view_dim=256, **options
) -> ForecastModel:
    """A network for each task, mixed before each layer of its tower.

    The backbone is shared, as in all rivals but `single_task`.

    Arguments are those of `ModelSettings`, and `label_means` as in `m2m`.

    Example:

    >>> model = cross_stitch(data.preprocessor.model_inputs, view_dim=16)
    >>> model.output["visits"].shape
    (None, 1)
    """

    def represent(features, regularizer):
        return layers.ExpertViews(
            len(spec.task_names),
            view_dim,
            kernel_regularizer=regularizer,
            name="task_networks",
        )(features)

    return multi_task_model(
        "cross_stitch",
        spec,
        represent,
        view_dim=view_dim,
        stitched=True,
        **options,
    )
