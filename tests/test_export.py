import dataclasses
import filecmp
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tables import SMALL_MODEL, write_clinic_tables
from tensorflow_serving.apis import prediction_log_pb2

from m2m_tf import files, signatures, training
from m2m_tf.config import DatasetSpec
from m2m_tf.data import schema, validation
from m2m_tf.data.dataset import ForecastData
from m2m_tf.evaluation import METRIC_TITLES
from m2m_tf.evaluation_run import (
    evaluate_run,
    forecast_split,
    lightgbm_forecasts,
)
from m2m_tf.export import (
    CARD_FILE,
    CONTRACT_FILE,
    EVALUATED_FOLDER,
    WARMUP_FILE,
    export_model,
)
from m2m_tf.forecast import task_forecasts
from m2m_tf.model_card import format_card
from m2m_tf.models import BUILDERS, build_model
from m2m_tf.serving.batch_scoring import score_tables

# Loads the model where m2m_tf cannot be imported.
SCRIPT = """
import sys
sys.modules["m2m_tf"] = None
import numpy as np, tensorflow as tf
raw = dict(np.load(sys.argv[2], allow_pickle=False))
examples = [x.numpy() for x in tf.data.TFRecordDataset(sys.argv[4])]
model = tf.saved_model.load(sys.argv[1])
named = {k: tf.constant(v) for k, v in raw.items()}
first = model.signatures["predict"](**named)
second = model.signatures["serving_default"](examples=tf.constant(examples))
np.savez(sys.argv[3], **{"a_" + k: v for k, v in first.items()},
         **{"b_" + k: v for k, v in second.items()})
"""


SCORES = {
    "data_fingerprint": {"panel": "0123"},
    "forecasts": {"m2m": {"overall": dict.fromkeys(METRIC_TITLES)}},
    "cells": [],
}


@pytest.fixture(scope="module")
def raw(clinic_data):
    batch = next(iter(clinic_data.raw("test", 16).as_numpy_iterator()))
    return {name: batch[name] for name in schema.raw_features(clinic_data.spec)}


@pytest.mark.slow
def test_fresh_process_without_the_library_agrees(
    clinic_data, trained, exported, raw, tmp_path
):
    # A file of its own: NumPy's strings would lose a last byte of zero.
    with tf.io.TFRecordWriter(str(tmp_path / "in.tfrecord")) as writer:
        for row in range(16):
            writer.write(
                signatures.serialize_example(
                    {k: v[row] for k, v in raw.items()}
                )
            )
    texts = {k: v.astype("S") for k, v in raw.items() if v.dtype == object}
    np.savez(tmp_path / "in.npz", **(raw | texts))
    subprocess.run(
        [
            sys.executable,
            "-c",
            SCRIPT,
            str(exported / "1"),
            str(tmp_path / "in.npz"),
            str(tmp_path / "out.npz"),
            str(tmp_path / "in.tfrecord"),
        ],
        check=True,
        timeout=300,
        cwd=tmp_path,
    )
    got = np.load(tmp_path / "out.npz")
    model = training.load_model(trained[0])
    outputs = model(clinic_data.preprocessor(raw), training=False)
    statistics = clinic_data.preprocessor.statistics
    for task, whole, limit in zip(
        clinic_data.spec.task_names,
        statistics.whole_labels,
        statistics.label_limits,
        strict=True,
    ):
        output = outputs[task]
        for part, values in task_forecasts(output, whole, limit).items():
            name = schema.output_name(task, part)
            for signature in "ab":
                np.testing.assert_allclose(
                    got[f"{signature}_{name}"], values, rtol=1e-5, atol=1e-6
                )
        rate = np.exp(output[:, :1])
        if task == "open":
            rate = np.minimum(rate, 1)
        np.testing.assert_allclose(got[f"a_{task}"], rate, rtol=1e-5)


def test_contract_lists_inputs_and_columns(exported, clinic_data):
    contract = json.loads((exported / "1" / CONTRACT_FILE).read_text())
    assert contract["inputs"]["scenario"] == {"shape": [], "dtype": "string"}
    assert contract["inputs"]["profile_beds"] == {
        "shape": [],
        "dtype": "float32",
        "default": None,
    }
    assert contract["scenarios"] == contract["vocabularies"]["scenario"]
    assert contract["inputs"]["behavior_sequence"]["shape"] == [28, 4]
    assert contract["sequence_columns"]["behavior_sequence"] == [
        "staff",
        "open_hours",
        "total_staff",
        "total_open_hours",
    ]
    assert str(clinic_data.spec.panel.parent) not in json.dumps(contract)
    assert contract["outputs"]["visits"].startswith("mean of visits")
    assert contract["outputs"]["fees_upper"].startswith("quantile 0.9 of fees")


def test_contract_has_the_signatures_as_they_are(exported):
    signatures = tf.saved_model.load(str(exported / "1")).signatures
    contract = json.loads((exported / "1" / CONTRACT_FILE).read_text())
    described = contract["signatures"]
    assert set(described) == set(signatures)
    for name, signature in signatures.items():
        _, inputs = signature.structured_input_signature
        for kind, tensors in (
            ("inputs", inputs),
            ("outputs", signature.structured_outputs),
        ):
            assert described[name][kind] == {
                key: {
                    "dtype": tensor.dtype.name,
                    "shape": [-1 if n is None else n for n in tensor.shape],
                }
                for key, tensor in tensors.items()
            }
        assert described[name]["method"] == "tensorflow/serving/" + (
            "regress" if name.startswith("regress_") else "predict"
        )


def test_warmup_requests_are_answered(exported):
    """What TF Serving replays when it loads the model."""
    model = tf.saved_model.load(str(exported / "1"))
    asked = set()
    for record in tf.data.TFRecordDataset(str(exported / "1" / WARMUP_FILE)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = getattr(log, log.WhichOneof("log_type")).request
        name = request.model_spec.signature_name
        asked.add(name)
        if name.startswith("regress_"):
            (example,) = request.input.example_list.examples
            inputs = {"inputs": tf.constant([example.SerializeToString()])}
        else:
            inputs = {
                key: tf.constant(tf.make_ndarray(value))
                for key, value in request.inputs.items()
            }
        for values in model.signatures[name](**inputs).values():
            assert values.dtype == tf.string or np.isfinite(values).all()
    assert asked == set(model.signatures)


def test_card_tells_of_data_scores_and_settings(
    clinic_data, trained, exported, tmp_path
):
    text = (exported / "1" / CARD_FILE).read_text()
    assert "# m2m on clinics" in text and "Nothing is known here" in text
    model = training.load_model(trained[0])
    metrics = evaluate_run(
        clinic_data,
        model,
        trained[1],
        tmp_path,
        config={"model": {}, "training": {}},
    )
    card = {"metrics": metrics, "settings": {"training": {"epochs": 2}}}
    text = format_card(model, clinic_data.preprocessor, card)
    assert f"panel `{clinic_data.fingerprint['panel']}`" in text
    assert '"epochs": 2' in text
    cell = metrics["cells"][0]
    row = f"| {cell['task']} | {cell['scenario']} | {cell['n']} |"
    median = metrics["forecasts"]["m2m_median"]["cells"][0]
    assert row in text
    assert f"| {cell['nmae']:.3f} | {median['nmae']:.3f} |" in text
    assert "SMAPE of the median" in text
    assert "Poisson deviance of the median" not in text


def test_a_refit_model_keeps_the_one_that_was_judged(
    clinic_data, all_days, trained, exported, tmp_path
):
    model = training.load_model(trained[0])
    card = {"metrics": SCORES}
    version = export_model(
        model, all_days.preprocessor, tmp_path, card, exported / "1"
    )
    kept = version / EVALUATED_FOLDER
    assert not filecmp.dircmp(kept, exported / "1").diff_files
    assert tf.saved_model.load(str(kept)).signatures["predict"]
    through = [
        files.read_json(place / CONTRACT_FILE)["trained_through"]
        for place in (version, kept)
    ]
    assert through == ["2025-06-28", "2025-05-31"]
    text = (version / CARD_FILE).read_text()
    assert "learned from is 2025-06-28" in text and " train. " in text
    assert "so it has no scores of its own" in text
    text = format_card(model, clinic_data.preprocessor, card)
    assert "learned from is 2025-05-31" in text and " test. " in text
    assert "no scores of its own" not in text


def test_versions_count_up_and_a_failure_leaves_none(
    clinic_data, trained, tmp_path, monkeypatch
):
    model = training.load_model(trained[0])
    first = export_model(model, clinic_data.preprocessor, tmp_path)
    assert first.name == "1"

    def fail(spec):
        raise OSError("disk full")

    monkeypatch.setattr("m2m_tf.export.make_contract", fail)
    with pytest.raises(OSError, match="disk full"):
        export_model(model, clinic_data.preprocessor, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_nothing_told_of_days_exceeds_the_horizon(tmp_path):
    tasks = [
        {"name": "visits", "column": "visits"},
        {"name": "days", "column": "open_days"},
    ]
    path = write_clinic_tables(tmp_path / "tables", tasks=tasks)
    data = ForecastData.prepare(DatasetSpec.load(path), tmp_path / "records")
    # A model to which seven times the days are to be expected.
    means = [mean * 7 for mean in data.preprocessor.statistics.label_means]
    settings = dataclasses.replace(SMALL_MODEL, likelihood="hurdle")
    model = build_model(data.preprocessor.model_inputs, settings, means)
    test = forecast_split(data, model)
    told = test.forecasts | lightgbm_forecasts(data, trees={"num_leaves": 4})
    assert {"m2m", "m2m_median", "last_week", "lightgbm"} < set(told)
    told |= test.intervals
    for name, values in told.items():
        assert values[:, 1].max() <= 7, name
    assert told["upper"][:, 1].max() == 7 < told["upper"][:, 0].max()
    version = export_model(model, data.preprocessor, tmp_path / "m")
    raw = next(data.raw("test", 64).as_numpy_iterator())
    served = tf.saved_model.load(str(version)).signatures["predict"](
        **{x: tf.constant(raw[x]) for x in schema.raw_features(data.spec)}
    )
    for part in ("median", "lower", "upper"):
        assert served[f"days_{part}"].numpy().max() <= 7
    assert served["days"].numpy().max() <= 7


LESS_KNOWN = {
    "behavior": {"behavior": []},
    "attributes": {
        "profile": None,
        "profile_columns": {},
        "scenarios": None,
        "scenario_columns": {},
    },
}


@pytest.mark.parametrize("unknown", LESS_KNOWN)
def test_what_need_not_be_known(tmp_path, unknown):
    """From tables to answers without behavior, or with the panel alone."""
    path = write_clinic_tables(tmp_path / "tables", **LESS_KNOWN[unknown])
    spec = DatasetSpec.load(path)
    validation.validate_tables(spec)
    data = ForecastData.prepare(spec, tmp_path / "records")
    sizes = data.preprocessor.model_inputs
    means = data.preprocessor.statistics.label_means
    for name in BUILDERS:
        settings = dataclasses.replace(SMALL_MODEL, name=name)
        model = build_model(sizes, settings, means)
        absent = "behavior_sequence", "profile_features"
        assert absent[unknown == "attributes"] not in model.input
        if name == "m2m":
            version = export_model(model, data.preprocessor, tmp_path / "m")
    raw = next(data.raw("test", 8).as_numpy_iterator())
    rows = {name: raw[name] for name in schema.raw_features(spec)}
    served = tf.saved_model.load(str(version))
    told = served.signatures["predict"](
        **{name: tf.constant(x) for name, x in rows.items()}
    )
    examples = [
        signatures.serialize_example({k: x[i] for k, x in rows.items()})
        for i in range(8)
    ]
    same = served.signatures["serving_default"](examples=tf.constant(examples))
    np.testing.assert_allclose(told["fees"], same["fees"], rtol=1e-5)
    summary = score_tables(version, spec, spec.end, tmp_path / "week.parquet")
    assert summary.forecasts == 36
    forecasts = lightgbm_forecasts(data, trees={"num_leaves": 4})
    assert np.isfinite(forecasts["lightgbm"]).all()
