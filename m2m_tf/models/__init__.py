"""Functional builders by name; each takes `ModelSettings`' arguments."""

import dataclasses

from m2m_tf.config import ModelSettings
from m2m_tf.data.schema import ModelInputSpec
from m2m_tf.models.forecast_model import ForecastModel as ForecastModel
from m2m_tf.models.m2m import expert_attention as expert_attention, m2m as m2m

BUILDERS = {"m2m": m2m}


def build_model(
    spec: ModelInputSpec, settings: ModelSettings, label_means=None
) -> ForecastModel:
    """Builds the model that `settings` name.

    Args:
        spec: Sizes of the inputs.
        settings: Which builder, and its arguments.
        label_means: Mean training label of each task, or None.

    Raises:
        ValueError: If `settings.name` is no known builder.
    """
    if settings.name not in BUILDERS:
        raise ValueError(
            f"`name` must be one of {sorted(BUILDERS)}. "
            f"Received: name={settings.name!r}"
        )
    arguments = dataclasses.asdict(settings)
    builder = BUILDERS[arguments.pop("name")]
    return builder(spec, label_means=label_means, **arguments)
