import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from m2m_tf import training
from m2m_tf.data import schema
from m2m_tf.export import CONTRACT_FILE, export_model, output_name
from m2m_tf.forecast import task_forecasts

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


def example_of(raw, row):
    def feature(values):
        values = np.asarray(values).ravel()
        if values.dtype.kind in "SO":
            return tf.train.Feature(
                bytes_list=tf.train.BytesList(value=list(values))
            )
        if values.dtype.kind == "i":
            return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))

    features = {name: feature(values[row]) for name, values in raw.items()}
    return tf.train.Example(
        features=tf.train.Features(feature=features)
    ).SerializeToString()


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
            writer.write(example_of(raw, row))
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
    whole = clinic_data.preprocessor.statistics.whole_labels
    for task, is_whole in zip(clinic_data.spec.tasks, whole, strict=True):
        output = outputs[task.name]
        for part, values in task_forecasts(output, task, is_whole).items():
            name = output_name(task.name, part)
            for signature in "ab":
                np.testing.assert_allclose(
                    got[f"{signature}_{name}"], values, rtol=1e-5, atol=1e-6
                )
        rate = np.exp(output[:, :1])
        if task.name == "open":
            rate = np.minimum(rate, 1)
        np.testing.assert_allclose(got[f"a_{task.name}"], rate, rtol=1e-5)


def test_contract_lists_inputs_and_columns(exported, clinic_data):
    contract = json.loads((exported / "1" / CONTRACT_FILE).read_text())
    assert contract["inputs"]["scenario"] == {"shape": [], "dtype": "string"}
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


def test_signature_names_and_shapes(exported):
    signatures = tf.saved_model.load(str(exported / "1")).signatures
    assert set(signatures) == {"serving_default", "predict"}
    for signature in signatures.values():
        outputs = signature.structured_outputs
        assert set(outputs) == {
            f"{task}{part}"
            for task in ("visits", "fees", "open")
            for part in ("", "_median", "_lower", "_upper")
        }
        assert all(tuple(x.shape)[1:] == (1,) for x in outputs.values())


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
