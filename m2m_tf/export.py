"""SavedModel with the preprocessing inside, for TF Serving."""

import json
import os
import pathlib

import keras
import tensorflow as tf

from m2m_tf import files
from m2m_tf.config import DatasetSpec
from m2m_tf.data import schema
from m2m_tf.features import Preprocessor
from m2m_tf.models import ForecastModel

CONTRACT_FILE = "assets.extra/m2m_contract.json"


def export_model(
    model: ForecastModel,
    preprocessor: Preprocessor,
    folder: str | os.PathLike,
) -> pathlib.Path:
    """Writes the next version of a servable model, whole or not at all.

    Signatures, both giving `{task: mean forecast, float32 [batch, 1]}`:

    - `predict`: the named tensors of `schema.raw_features`.
    - `serving_default`: `examples`, serialized `tf.Example`s of the same.

    The SavedModel needs neither m2m_tf nor Keras.

    Args:
        model: A trained model.
        preprocessor: The one that it was trained with.
        folder: Folder of the model's versions, `saved_models/<name>`.

    Returns:
        Folder of the new version, `<folder>/<version>`.
    """
    folder = pathlib.Path(folder)
    spec = preprocessor.spec
    tensors = schema.raw_features(spec)
    binary = {task.name for task in spec.tasks if task.kind == "binary"}

    def forecast(raw):
        log_rates = model(preprocessor(raw), training=False)
        rates = {
            name: tf.exp(tf.cast(log_rate, tf.float32))
            for name, log_rate in log_rates.items()
        }
        return {
            name: tf.minimum(rate, 1.0) if name in binary else rate
            for name, rate in rates.items()
        }

    def parse_and_forecast(examples):
        return forecast(tf.io.parse_example(examples, _parsing(tensors)))

    archive = keras.export.ExportArchive()
    archive.track(preprocessor)
    archive.track(model)
    archive.add_endpoint(
        "serving_default",
        parse_and_forecast,
        input_signature=[tf.TensorSpec([None], tf.string, name="examples")],
    )
    archive.add_endpoint(
        "predict",
        forecast,
        input_signature=[
            {
                name: tf.TensorSpec(
                    (None, *tensor.shape), tensor.dtype, name=name
                )
                for name, tensor in tensors.items()
            }
        ],
    )
    version = folder / str(_next_version(folder))
    with files.replacing(version) as temporary:
        archive.write_out(str(temporary), verbose=False)
        contract = temporary / CONTRACT_FILE
        contract.parent.mkdir(exist_ok=True)
        values = make_contract(spec) | {
            "vocabularies": preprocessor.statistics.vocabularies
        }
        contract.write_text(json.dumps(values, indent=2))
    return version


def make_contract(spec: DatasetSpec) -> dict:
    """What a caller of the model must know, as JSON values."""
    return {
        "lookback": spec.lookback,
        "horizon": spec.horizon,
        "tasks": [
            {"name": task.name, "kind": task.kind, "column": task.column}
            for task in spec.tasks
        ],
        "inputs": {
            name: {"shape": list(tensor.shape), "dtype": tensor.dtype}
            for name, tensor in schema.raw_features(spec).items()
        },
        "sequence_columns": {
            schema.BEHAVIOR_SEQUENCE: list(schema.behavior_names(spec)),
            schema.PERFORMANCE_SEQUENCE: list(schema.performance_names(spec)),
            schema.KNOWN_FUTURE: list(spec.known_future),
        },
    }


def _parsing(tensors):
    return {
        name: tf.io.FixedLenFeature(tensor.shape, tensor.dtype)
        for name, tensor in tensors.items()
    }


def _next_version(folder):
    versions = [int(p.name) for p in folder.glob("*") if p.name.isdigit()]
    return max(versions, default=0) + 1
