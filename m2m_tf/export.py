"""SavedModel with the preprocessing inside, for TF Serving."""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    predict_pb2,
    prediction_log_pb2,
    regression_pb2,
)

from m2m_tf import files, model_card, signatures
from m2m_tf.config import DatasetSpec
from m2m_tf.data import schema
from m2m_tf.features import Preprocessor
from m2m_tf.forecast import LOWER, MEDIAN, UPPER, has_shape
from m2m_tf.models import ForecastModel
from m2m_tf.versions import SAVED_MODEL_FILE, next_version

EXTRA_FOLDER = "assets.extra"
CONTRACT_FILE = f"{EXTRA_FOLDER}/m2m_contract.json"
CARD_FILE = f"{EXTRA_FOLDER}/model_card.md"
EVALUATED_FOLDER = f"{EXTRA_FOLDER}/evaluated"
# The name that TF Serving looks for.
WARMUP_FILE = f"{EXTRA_FOLDER}/tf_serving_warmup_requests"


class DamagedModel(ValueError):
    """A SavedModel that cannot be loaded."""


def load_version(version: str | os.PathLike):
    """Loads an exported version, whose signatures live as long as it does.

    Raises:
        DamagedModel: If it cannot be loaded, with its name.

    Example:

    >>> sorted(load_version("saved_models/clinics/1").signatures)[:2]
    ['explain', 'predict']
    """
    try:
        return tf.saved_model.load(str(version))
    # What a damaged file raises is TensorFlow's: of any kind.
    except Exception as error:
        raise DamagedModel(
            f"{version}: cannot be loaded, as after a copy that broke off. "
            f"Copy it again. Received: {error}"
        ) from error


def export_model(
    model: ForecastModel,
    preprocessor: Preprocessor,
    folder: str | os.PathLike,
    card: Mapping | None = None,
    evaluated: str | os.PathLike | None = None,
) -> pathlib.Path:
    """Writes the next version of a servable model, whole or not at all.

    Signatures are those of `signatures.make_signatures`. Beside the model, in
    `assets.extra`, lie `m2m_contract.json` (inputs, outputs, defaults and
    the order of columns and scenarios), `model_card.md`, and
    `tf_serving_warmup_requests`, which TF Serving replays before it answers.

    The SavedModel needs neither m2m_tf nor Keras.

    Args:
        model: A trained model.
        preprocessor: The one that it was trained with.
        folder: Folder of the model's versions, `saved_models/<name>`.
        card: What is known of the training, see `model_card.format_card`.
        evaluated: Of a model that was trained anew on the days that it was
            judged by (`training.refit`): the exported version of the one that
            was judged. It is kept in `assets.extra`, where no server looks,
            so that `push` has an honest one to judge this and the next by.

    Returns:
        Folder of the new version, `<folder>/<version>`.

    Example:

    >>> export_model(model, data.preprocessor, "saved_models/new").name
    '1'
    """
    made = signatures.make_signatures(model, preprocessor)
    version = next_version(folder)
    with files.replacing(version) as temporary:
        _write_saved_model(temporary, model, preprocessor, made)
        _name_regress_methods(temporary, made)
        (temporary / EXTRA_FOLDER).mkdir(exist_ok=True)
        if evaluated is not None:
            shutil.copytree(evaluated, temporary / EVALUATED_FOLDER)
        contract = make_contract(preprocessor.spec) | {
            "trained_through": preprocessor.statistics.last_day,
            "vocabularies": preprocessor.statistics.vocabularies,
            "scenarios": list(preprocessor.known_scenarios),
            "outputs": _describe_outputs(model, preprocessor.spec),
            "signatures": _describe_signatures(temporary),
            "model": _identity(model, preprocessor),
        }
        files.write_json(temporary / CONTRACT_FILE, contract)
        files.write_text(
            temporary / CARD_FILE,
            model_card.format_card(
                model, preprocessor, card or {}, is_refit=evaluated is not None
            ),
        )
        _write_warmup(temporary / WARMUP_FILE, preprocessor, made)
    return version


def make_contract(spec: DatasetSpec) -> dict:
    """What a caller of the model must know, as JSON values.

    An input with a `default` may be left out of a `tf.Example`; null stands
    for NaN.

    Example:

    >>> make_contract(data.spec)["lookback"]
    28
    """
    defaults = signatures.default_values(spec)
    inputs = {}
    for name, tensor in schema.raw_features(spec).items():
        inputs[name] = {"shape": list(tensor.shape), "dtype": tensor.dtype}
        if name in defaults:
            inputs[name]["default"] = _json_value(defaults[name])
    return {
        "lookback": spec.lookback,
        "horizon": spec.horizon,
        "tasks": [
            {"name": task.name, "kind": task.kind, "column": task.column}
            for task in spec.tasks
        ],
        "inputs": inputs,
        "sequence_columns": {
            schema.BEHAVIOR_SEQUENCE: list(schema.behavior_names(spec)),
            schema.PERFORMANCE_SEQUENCE: list(schema.performance_names(spec)),
            schema.KNOWN_FUTURE: list(spec.known_future),
        },
    }


def draw_rows(
    contract: Mapping[str, object], count: int
) -> dict[str, np.ndarray]:
    """Random inputs of the `predict` signature, the same at each call.

    Args:
        contract: What `export_model` has written beside the model.
        count: Number of rows.

    Returns:
        Name → array `[count, ...]` of each raw feature: categories from the
        vocabularies, counts of one half on average.

    Example:

    >>> place = "saved_models/clinics/1/assets.extra/m2m_contract.json"
    >>> rows = draw_rows(files.read_json(pathlib.Path(place)), count=16)
    >>> rows["behavior_sequence"].shape
    (16, 28, 4)
    """
    rng = np.random.default_rng(0)
    columns = {}
    for name, tensor in contract["inputs"].items():
        shape = (count, *tensor["shape"])
        if tensor["dtype"] == "string":
            # No value at all was known of an attribute that nobody has.
            values = contract["vocabularies"][name] or [""]
            known = np.array([x.encode() for x in values], object)
            columns[name] = known[rng.integers(len(known), size=shape)]
        elif tensor["dtype"] == "int64":
            columns[name] = np.full(shape, contract["lookback"], "int64")
        else:
            columns[name] = rng.poisson(0.5, shape).astype("float32")
    return columns


def _identity(model, preprocessor):
    """Hash of what was learned, by which a model is known again.

    The files of a SavedModel are no such thing: they hold states of random
    generators, and names and an order that differ from export to export.
    """
    learned = dataclasses.asdict(preprocessor.statistics)
    # Nothing is learned from how many rows lie in the test days.
    del learned["num_samples"]
    found = hashlib.sha256(json.dumps(learned, sort_keys=True).encode())
    for weight in model.get_weights():
        found.update(f"{weight.dtype}{weight.shape}".encode())
        found.update(np.ascontiguousarray(weight))
    return found.hexdigest()[:16]


def _json_value(array):
    if array.dtype.kind == "S":
        return array.item().decode()
    if array.dtype.kind == "f" and np.isnan(array).any():
        return None
    return array.tolist()


def _describe_outputs(model, spec):
    parts = {"mean": "mean"}
    if has_shape(model.output[spec.task_names[0]]):
        parts |= {
            "median": f"quantile {MEDIAN}",
            "lower": f"quantile {LOWER}",
            "upper": f"quantile {UPPER}",
        }
    return {
        schema.output_name(task, part): f"{text} of {task} over the horizon"
        for task in spec.task_names
        for part, text in parts.items()
    }


def _describe_signatures(version):
    """Names, dtypes and shapes (-1: any size) as the SavedModel has them."""
    graph = saved_model_pb2.SavedModel.FromString(
        (version / SAVED_MODEL_FILE).read_bytes()
    )
    return {
        name: {
            "method": definition.method_name,
            "inputs": _describe_tensors(definition.inputs),
            "outputs": _describe_tensors(definition.outputs),
        }
        for name, definition in graph.meta_graphs[0].signature_def.items()
        if not name.startswith("__")
    }


def _describe_tensors(tensors):
    return {
        name: {
            "dtype": tf.dtypes.as_dtype(tensor.dtype).name,
            "shape": [axis.size for axis in tensor.tensor_shape.dim],
        }
        for name, tensor in sorted(tensors.items())
    }


def _write_saved_model(version, model, preprocessor, made):
    """The signatures, and the variables and tables that they read.

    Not by `keras.export.ExportArchive`, which traces every signature twice,
    and the model by itself: tracing is most of the time of an export.
    """
    state = tf.Module()
    state.variables_of_model = [weight.value for weight in model.weights]
    state.lookup_tables = preprocessor.lookup_tables
    tf.saved_model.save(
        state,
        str(version),
        {
            name: tf.function(
                signature.function,
                input_signature=[signature.inputs],
                autograph=False,
            )
            for name, signature in made.items()
        },
    )


def _name_regress_methods(version, made):
    """Says which signatures are for the Regress API.

    `tf.saved_model.save` calls every signature one for Predict.
    """
    utils = tf.compat.v1.saved_model.signature_def_utils
    updater = utils.MethodNameUpdater(str(version))
    for name in made:
        if name.startswith(signatures.REGRESS_PREFIX):
            updater.replace_method_name(
                name,
                tf.compat.v1.saved_model.signature_constants.REGRESS_METHOD_NAME,
            )
    updater.save()


def _write_warmup(path, preprocessor, made):
    """One request for each signature: a row of an entity without history."""
    spec = preprocessor.spec
    row = _blank_row(schema.raw_features(spec), spec, preprocessor)
    example = signatures.serialize_example(row)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for name, signature in made.items():
            log = prediction_log_pb2.PredictionLog()
            if name.startswith(signatures.REGRESS_PREFIX):
                request = regression_pb2.RegressionRequest()
                request.input.example_list.examples.append(
                    tf.train.Example.FromString(example)
                )
                target = log.regress_log.request
            elif isinstance(signature.inputs, tf.TensorSpec):
                request = _predict_request(
                    {signature.inputs.name: np.array([example], object)}
                )
                target = log.predict_log.request
            else:
                values = row
                if name == signatures.PREDICT_ALL_SCENARIOS:
                    values = _blank_row(
                        signatures.all_scenarios_features(preprocessor),
                        spec,
                        preprocessor,
                    )
                request = _predict_request(
                    {key: value[None] for key, value in values.items()}
                )
                target = log.predict_log.request
            target.CopyFrom(request)
            target.model_spec.signature_name = name
            writer.write(log.SerializeToString())


def _predict_request(inputs):
    request = predict_pb2.PredictRequest()
    for name, values in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
    return request


def _blank_row(tensors, spec, preprocessor):
    """Zeros and defaults in the first scenario that the model knows."""
    row = {}
    defaults = signatures.default_values(spec)
    for name, tensor in tensors.items():
        if tensor.dtype == "string":
            row[name] = np.array(b"")
        else:
            row[name] = np.zeros(tensor.shape, tensor.dtype)
        if name in defaults and defaults[name].shape == tensor.shape:
            row[name] = defaults[name]
    if schema.SCENARIO in row:
        first = preprocessor.known_scenarios[0]
        row[schema.SCENARIO] = np.array(first.encode())
    return row
