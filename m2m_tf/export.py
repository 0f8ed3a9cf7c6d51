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
from m2m_tf.forecast import LOWER, MEDIAN, UPPER, has_shape, task_forecasts
from m2m_tf.models import ForecastModel

CONTRACT_FILE = "assets.extra/m2m_contract.json"


def export_model(
    model: ForecastModel,
    preprocessor: Preprocessor,
    folder: str | os.PathLike,
) -> pathlib.Path:
    """Writes the next version of a servable model, whole or not at all.

    Signatures, both giving `{task: mean forecast, float32 [batch, 1]}` and,
    from a model with the hurdle likelihood, `<task>_median`, `<task>_lower`
    and `<task>_upper` (the median and the bounds of the 80 % interval):

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

    def forecast(raw):
        outputs = model(preprocessor(raw), training=False)
        forecasts = {}
        for task, whole in zip(
            spec.tasks, preprocessor.statistics.whole_labels, strict=True
        ):
            parts = task_forecasts(outputs[task.name], task, whole)
            for part, values in parts.items():
                forecasts[output_name(task.name, part)] = values
        return forecasts

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
            "vocabularies": preprocessor.statistics.vocabularies,
            "outputs": _describe_outputs(model, spec),
        }
        contract.write_text(json.dumps(values, indent=2))
    return version


def output_name(task_name: str, part: str) -> str:
    """Name of a signature's output; a task's mean bears the task's name."""
    return task_name if part == "mean" else f"{task_name}_{part}"


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


def _describe_outputs(model, spec):
    parts = {"mean": "mean"}
    if has_shape(model.output[spec.task_names[0]]):
        parts |= {
            "median": f"quantile {MEDIAN}",
            "lower": f"quantile {LOWER}",
            "upper": f"quantile {UPPER}",
        }
    return {
        output_name(task, part): f"{text} of {task} over the horizon"
        for task in spec.task_names
        for part, text in parts.items()
    }


def _parsing(tensors):
    return {
        name: tf.io.FixedLenFeature(tensor.shape, tensor.dtype)
        for name, tensor in tensors.items()
    }


def _next_version(folder):
    versions = [int(p.name) for p in folder.glob("*") if p.name.isdigit()]
    return max(versions, default=0) + 1
