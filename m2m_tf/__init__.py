"""M2M: multi-scenario multi-task forecasts of every advertiser.

Importing the package registers its layers, losses and metrics with Keras, so
that saved models load without `custom_objects`.
"""

from m2m_tf import layers as layers
from m2m_tf.config import (
    MODEL_PRESETS as MODEL_PRESETS,
    TRAINING_PRESETS as TRAINING_PRESETS,
    DatasetSpec as DatasetSpec,
    ModelSettings as ModelSettings,
    RunConfig as RunConfig,
    TrainingSettings as TrainingSettings,
)
from m2m_tf.losses import (
    HurdleLoss as HurdleLoss,
    PoissonLogRate as PoissonLogRate,
    joint_hurdle as joint_hurdle,
    joint_poisson as joint_poisson,
)
from m2m_tf.metrics import (
    NMAE as NMAE,
    SMAPE as SMAPE,
    PoissonDeviance as PoissonDeviance,
)
from m2m_tf.models import build_model as build_model, m2m as m2m

# isort: split
from m2m_tf.data.dataset import ForecastData as ForecastData
from m2m_tf.export import export_model as export_model
from m2m_tf.training import train as train

__version__ = "0.8.0"
