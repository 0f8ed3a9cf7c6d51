"""Functional builders by name; each takes `ModelSettings`' arguments."""

import dataclasses

from m2m_tf.config import ModelSettings
from m2m_tf.data.schema import ModelInputSpec
from m2m_tf.models.cgc import cgc
from m2m_tf.models.cross_stitch import cross_stitch
from m2m_tf.models.ensemble import ensemble as ensemble
from m2m_tf.models.forecast_model import ForecastModel as ForecastModel
from m2m_tf.models.m2m import explanation as explanation, m2m as m2m
from m2m_tf.models.mmoe import mmoe
from m2m_tf.models.mran import mran
from m2m_tf.models.shared_bottom import shared_bottom
from m2m_tf.models.single_task import single_task

BUILDERS = {
    builder.__name__: builder
    for builder in (
        m2m,
        single_task,
        shared_bottom,
        cross_stitch,
        mmoe,
        mran,
        cgc,
    )
}
# Settings that only some builders have a use for. The rest are for all, so
# that one word in a config swaps the model.
_M2M_ONLY = (
    "knowledge_dim",
    "num_meta_layers",
    "meta_rank",
    "share_meta_across_tasks",
    "meta_attention",
    "meta_tower",
    "context_in_backbone",
    "meta_l2",
)
_WITH_EXPERTS = ("m2m", "mmoe", "cgc")


def build_model(
    spec: ModelInputSpec, settings: ModelSettings, label_means=None
) -> ForecastModel:
    """Builds the model that `settings` name.

    Args:
        spec: Sizes of the inputs.
        settings: Which builder, and its arguments.
        label_means: Mean training label of each task, or None.

    Raises:
        TypeError: If `settings` are no `ModelSettings`.

    Example:

    >>> settings = ModelSettings(name="mmoe", view_dim=16)
    >>> model = build_model(data.preprocessor.model_inputs, settings)
    >>> list(model.output)
    ['visits', 'fees', 'open']
    """
    if not isinstance(settings, ModelSettings):
        raise TypeError(
            "`settings` must be ModelSettings, such as MODEL_PRESETS['small']. "
            f"Received: {settings!r}."
        )
    arguments = dataclasses.asdict(settings)
    for name in unused_settings(settings.name):
        del arguments[name]
    builder = BUILDERS[arguments.pop("name")]
    return builder(spec, label_means=label_means, **arguments)


def unused_settings(name: str) -> tuple[str, ...]:
    """Fields of `ModelSettings` that a builder has no use for.

    Args:
        name: Key of `BUILDERS`.

    Example:

    >>> "num_experts" in unused_settings("mmoe")
    False
    """
    unused = () if name == "m2m" else _M2M_ONLY
    return unused if name in _WITH_EXPERTS else (*unused, "num_experts")
