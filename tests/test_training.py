import dataclasses
import html
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types

import keras
import numpy as np
import pytest
from tables import SMALL_MODEL, SMALL_TRAINING

from m2m_tf import config, files, training
from m2m_tf.evaluation_run import evaluate_run
from m2m_tf.models import build_model
from m2m_tf.models.forecast_model import ForecastModel

TESTS = pathlib.Path(__file__).parent
# Trains the clinics in a process of its own, so that it can be killed.
SCRIPT = """
import sys
sys.path[:0] = {paths!r}
from tables import SMALL_MODEL, SMALL_TRAINING
import dataclasses, keras, pathlib, time
from m2m_tf import training
from m2m_tf.config import DatasetSpec
from m2m_tf.data.dataset import ForecastData

class Slow(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        print("trained batch", batch, flush=True)
        time.sleep({pause})

fit = keras.Model.fit
keras.Model.fit = lambda self, *a, callbacks, **k: fit(
    self, *a, callbacks=[*callbacks, Slow()], **k
)
data = ForecastData.load(DatasetSpec.load({spec!r}), {records!r})
training.train(
    data,
    # Starts far off, so that the best epoch is not the first.
    dataclasses.replace(SMALL_MODEL, history_offset=False),
    dataclasses.replace(SMALL_TRAINING, epochs=3),
    {folder!r},
)
"""


@pytest.fixture
def start(clinic_data, clinic_records):
    """Function that starts the script to train in a folder."""
    spec = clinic_data.spec.panel.parent / "spec.yaml"

    def start(folder, pause=0.0):
        script = SCRIPT.format(
            paths=[str(TESTS), str(TESTS.parent / "examples")],
            spec=str(spec),
            records=str(clinic_records),
            folder=str(folder),
            pause=pause,
        )
        return _process(script)

    return start


def _process(script):
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"},
    )


def weights(folder):
    return training.load_model(folder).get_weights()


def test_training_leaves_a_model_history_and_logs(trained):
    folder, history = trained
    assert [row["epoch"] for row in history] == [1, 2]
    assert files.read_json(folder / "history.json") == history
    for name in ("loss", "val_loss", "val_overall_nmae"):
        assert all(np.isfinite(row[name]) for row in history)
    assert not list((folder / "backup").glob("*"))
    assert not list(folder.glob(".tmp-*"))


def test_validation_cells_are_those_of_the_best_model(clinic_data, trained):
    folder, history = trained
    best = min(history, key=lambda row: row["val_loss"])
    model = training.load_model(folder)
    training.compile_model(model, clinic_data, SMALL_TRAINING, 1)
    again = model.evaluate(
        clinic_data.validation(7), return_dict=True, verbose=0
    )
    # Batches of 7 instead of 32: the metrics are exact over uneven batches.
    for name in ("overall_nmae", "overall_smape", "overall_poisson_deviance"):
        assert again[name] == pytest.approx(best[f"val_{name}"], rel=1e-4)


@pytest.mark.slow
def test_killed_in_mid_epoch_and_run_again_gives_the_same(start, tmp_path):
    whole = start(tmp_path / "whole")
    assert whole.wait(timeout=300) == 0
    killed = start(tmp_path / "killed", pause=0.1)
    seen = 0
    deadline = time.monotonic() + 300
    for line in killed.stdout:
        # The progress bar may stand before it on the line.
        seen += "trained batch" in line
        # 8 batches an epoch: in the middle of the second.
        if seen == 12 or time.monotonic() > deadline:
            break
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert (
        files.read_json(tmp_path / "killed" / "history.json")[-1]["epoch"] == 1
    )
    again = start(tmp_path / "killed")
    assert again.wait(timeout=300) == 0
    for ours, theirs in zip(
        weights(tmp_path / "whole"), weights(tmp_path / "killed"), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    histories = [
        files.read_json(tmp_path / name / "history.json")
        for name in ("whole", "killed")
    ]
    # Or the weights above would be those of before the kill.
    assert min(histories[0], key=lambda row: row["val_loss"])["epoch"] > 1
    for ours, theirs in zip(*histories, strict=True):
        ours.pop("seconds"), theirs.pop("seconds")
        assert ours == theirs


@pytest.mark.slow
def test_a_step_is_traced_once_and_same_seed_gives_the_same_weights(
    clinic_data, trained, tmp_path, monkeypatch
):
    traces = []

    def train_step(self, data):
        traces.append(self.name)
        return keras.Model.train_step(self, data)

    monkeypatch.setattr(ForecastModel, "train_step", train_step, raising=False)
    training.train(clinic_data, SMALL_MODEL, SMALL_TRAINING, tmp_path / "same")
    assert len(traces) == 1
    for ours, theirs in zip(
        weights(trained[0]), weights(tmp_path / "same"), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    other = dataclasses.replace(SMALL_TRAINING, seed=1, epochs=1)
    training.train(clinic_data, SMALL_MODEL, other, tmp_path / "other")
    assert any(
        (ours != theirs).any()
        for ours, theirs in zip(
            weights(trained[0]), weights(tmp_path / "other")
        )
    )


class FakeModel:
    stop_training = False
    variables = ()
    optimizer = types.SimpleNamespace(variables=())

    def save(self, path):
        path.write_text("model")

    def save_weights(self, path):
        path.write_text("weights")


def run_record(folder, losses, patience=2):
    import tensorflow as tf

    record = training.RunRecord(
        folder, patience, tf.Variable(0, dtype="int64"), steps=1
    )
    record.set_model(FakeModel())
    for epoch, loss in enumerate(losses):
        record.on_epoch_begin(epoch)
        record.on_epoch_end(epoch, {"loss": loss, "val_loss": loss})
        if record.model.stop_training:
            break
    return record


def test_stops_after_epochs_without_a_better_loss(tmp_path):
    record = run_record(tmp_path, [3.0, 2.0, 2.5, 2.1, 1.0])
    assert len(record.history) == 4 and record.is_finished(10)


def test_a_run_that_has_ended_is_known_by_its_history(tmp_path):
    """It has no backup any more; one that was killed early has none yet."""
    run_record(tmp_path, [3.0, 2.0, 2.5]).discard_backup()
    for epochs, done in ((3, 3), (4, 0)):
        record = run_record(tmp_path, [])
        record.restore(None, epochs)
        assert record.epochs_done == len(record.history) == done
        assert record.is_finished(epochs) == bool(done)
    run_record(tmp_path, [3.0, 2.0, 2.5, 2.1, 1.0]).discard_backup()
    record = run_record(tmp_path, [])
    record.restore(None, 10)  # Patience had come to an end.
    assert record.is_finished(10) and record.epochs_done == 4


def test_a_finished_training_is_not_repeated(
    clinic_data, trained, tmp_path, monkeypatch
):
    folder = tmp_path / "finished"
    shutil.copytree(trained[0], folder)
    monkeypatch.setattr(keras.Model, "fit", None)
    history = training.train(clinic_data, SMALL_MODEL, SMALL_TRAINING, folder)
    assert history == files.read_json(folder / "history.json") == trained[1]


def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path):
    record = run_record(tmp_path, [float("nan")])
    # Killed here and run again, it goes no further either.
    assert record.is_finished(10)
    assert not (tmp_path / "model.keras").exists()


def test_a_full_disk_is_told_before_training(
    clinic_data, tmp_path, monkeypatch
):
    full = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(OSError, match="not the room for it. Make some"):
        training.train(clinic_data, SMALL_MODEL, SMALL_TRAINING, tmp_path)
    assert not (tmp_path / "history.json").exists()


def test_only_the_newest_backup_is_kept(tmp_path):
    run_record(tmp_path, [3.0, 2.0, 1.0])
    names = [path.name for path in (tmp_path / "backup").iterdir()]
    assert names == ["0003.weights.h5"]


def test_without_validation_the_last_finite_epoch_is_kept():
    rows = [{"loss": x} for x in (3.0, 2.0, 2.5, float("nan"))]
    assert training.best_epoch(rows) == 2
    assert training.best_epoch(rows[3:]) is None
    assert training.best_epoch([]) is None


@pytest.mark.slow
def test_refit_repeats_the_training_on_all_days(
    clinic_data, all_days, tmp_path
):
    settings = dataclasses.replace(SMALL_TRAINING, epochs=3, members=2)
    evaluated = tmp_path / "evaluated"
    training.train(clinic_data, SMALL_MODEL, settings, evaluated)
    # As if the second network had been best after its first epoch.
    path = evaluated / "member_1" / "history.json"
    rows = files.read_json(path)
    files.write_json(path, [rows[0] | {"val_loss": -1.0}, *rows[1:]])
    best = training.best_epoch(
        files.read_json(evaluated / "member_0" / "history.json")
    )
    folder = tmp_path / "refit"
    training.refit(all_days, SMALL_MODEL, settings, evaluated, folder)
    lengths = [
        len(files.read_json(folder / f"member_{index}" / "history.json"))
        for index in (0, 1)
    ]
    assert lengths == [best + 1, 1]
    model = training.load_model(folder)
    inputs, _ = next(iter(all_days.train(8)))
    assert np.isfinite(model.predict(inputs, verbose=0)["visits"]).all()
    assert not all(
        np.array_equal(ours, theirs)
        for ours, theirs in zip(
            weights(folder), weights(evaluated), strict=True
        )
    )
    # There was more to train on.
    steps = int(all_days.train(settings.batch_size).cardinality())
    assert steps > int(clinic_data.train(settings.batch_size).cardinality())


def test_refit_wants_all_days(clinic_data, trained, tmp_path):
    with pytest.raises(ValueError, match="holdout=False"):
        training.refit(
            clinic_data, SMALL_MODEL, SMALL_TRAINING, trained[0], tmp_path
        )
    assert not list(tmp_path.iterdir())


def test_refit_wants_a_finished_training(all_days, trained, tmp_path):
    folder = tmp_path / "killed"
    shutil.copytree(trained[0], folder)

    def refit():
        training.refit(
            all_days, SMALL_MODEL, SMALL_TRAINING, folder, tmp_path / "refit"
        )

    backup = folder / "backup" / "0001.weights.h5"
    backup.touch()
    with pytest.raises(training.TrainingError, match="no finished training"):
        refit()
    backup.unlink()
    rows = files.read_json(folder / "history.json")
    files.write_json(folder / "history.json", rows[:1])  # Killed before it.
    with pytest.raises(training.TrainingError, match="no finished training"):
        refit()
    (folder / "history.json").unlink()
    with pytest.raises(FileNotFoundError, match="history.json"):
        refit()


def test_the_folder_of_another_training_is_refused(
    clinic_data, trained, tmp_path
):
    folder = tmp_path / "used"
    shutil.copytree(trained[0], folder)
    model = (folder / "model.keras").read_bytes()
    wider = dataclasses.replace(SMALL_MODEL, view_dim=16)
    with pytest.raises(training.TrainingError, match=r"used: .*in: model\."):
        training.train(clinic_data, wider, SMALL_TRAINING, folder)
    # Of a version that did not note what it trained.
    (folder / "settings.json").unlink()
    with pytest.raises(training.TrainingError, match="holds another training"):
        training.train(clinic_data, SMALL_MODEL, SMALL_TRAINING, folder)
    assert (folder / "model.keras").read_bytes() == model


def test_diverging_training_says_what_to_change(clinic_data, tmp_path):
    settings = dataclasses.replace(SMALL_TRAINING, learning_rate=1e6, epochs=1)
    with pytest.raises(training.TrainingError, match="Lower `learning_rate`"):
        training.train(clinic_data, SMALL_MODEL, settings, tmp_path)


def test_a_training_that_diverges_later_keeps_its_best_and_says_so(
    clinic_data, tmp_path, monkeypatch, capsys
):
    def make_optimizer(settings, steps):
        return keras.optimizers.Adam(
            keras.optimizers.schedules.PiecewiseConstantDecay(
                [steps // settings.epochs], [settings.learning_rate, 1e6]
            )
        )

    monkeypatch.setattr(training, "make_optimizer", make_optimizer)
    settings = dataclasses.replace(SMALL_TRAINING, epochs=3)
    history = training.train(clinic_data, SMALL_MODEL, settings, tmp_path)
    assert len(history) == 2
    (concern,) = training.find_concerns(history)
    assert "loss of epoch 2 was not finite" in concern
    assert "model is that of epoch 1. Lower `learning_rate`" in concern
    assert f"mind: {concern}" in capsys.readouterr().out
    model = training.load_model(tmp_path)
    assert all(np.isfinite(weight).all() for weight in model.weights)
    assert training.find_concerns(history[:1]) == []
    assert training.find_concerns(history[1:]) == []
    evaluate_run(
        clinic_data,
        model,
        history,
        tmp_path,
        config={"model": {}, "training": {}},
    )
    told = html.unescape((tmp_path / "report.html").read_text("utf-8"))
    assert concern in told


@pytest.mark.parametrize("name", ["m2m", "cgc"])
def test_first_steps_at_the_papers_learning_rate_are_no_leaps(
    clinic_data, name
):
    """F holds 5,531 numbers; views were 5 times as large after two steps."""
    keras.utils.set_random_seed(1)
    settings = config.ModelSettings(name=name, view_dim=16, knowledge_dim=8)
    preprocessor = clinic_data.preprocessor
    model = build_model(
        preprocessor.model_inputs,
        settings,
        preprocessor.statistics.label_means,
    )
    training.compile_model(
        model, clinic_data, config.TRAINING_PRESETS["paper"], steps=100
    )
    layer = model.get_layer("expert_views")
    assert layer.kernels[0].shape[-1] > 5000
    views = keras.Model(model.inputs, layer.output)
    batches = iter(clinic_data.train(32))
    inputs, _ = next(batches)
    first = np.std(views(inputs))
    for _ in range(2):
        model.train_on_batch(*next(batches))
    assert 1 < np.std(views(inputs)) / first < 2


def test_optimizer_has_the_settings_of_the_paper():
    optimizer = training.make_optimizer(config.TRAINING_PRESETS["paper"], 10)
    assert optimizer.clipvalue == 3.0
    assert (optimizer.beta_1, optimizer.beta_2) == (0.9, 0.998)
    assert optimizer.epsilon == 1e-9
    assert float(optimizer.learning_rate) == pytest.approx(2e-3)


@pytest.mark.slow
def test_members_are_joined_and_finished_ones_are_kept(
    clinic_data, tmp_path, monkeypatch
):
    data = clinic_data
    settings = dataclasses.replace(SMALL_TRAINING, epochs=1, seed=3, members=2)
    seeds = []
    train_network = training._train_network

    def killed_once(data, model_settings, settings, *rest):
        seeds.append(settings.seed)
        if len(seeds) == 2:
            raise KeyboardInterrupt
        return train_network(data, model_settings, settings, *rest)

    monkeypatch.setattr(training, "_train_network", killed_once)
    with pytest.raises(KeyboardInterrupt):
        training.train(data, SMALL_MODEL, settings, tmp_path)
    assert not (tmp_path / "model.keras").exists()
    history = training.train(data, SMALL_MODEL, settings, tmp_path)
    assert seeds == [6, 7, 7]

    inputs, _ = next(iter(data.validation(16)))
    members = [
        training.load_model(tmp_path / f"member_{index}") for index in (0, 1)
    ]
    rates = [np.exp(member(inputs)["fees"][:, 0]) for member in members]
    assert not np.allclose(*rates)
    joined = training.load_model(tmp_path)
    np.testing.assert_allclose(
        np.exp(joined(inputs)["fees"][:, 0]), sum(rates) / 2, rtol=1e-4
    )
    losses = [
        files.read_json(tmp_path / f"member_{index}/history.json")[0]["loss"]
        for index in (0, 1)
    ]
    assert history == files.read_json(tmp_path / "history.json")
    assert [row["epoch"] for row in history] == [1]
    assert history[0]["loss"] == pytest.approx(sum(losses) / 2)


def test_what_the_caller_has_set_in_keras_is_kept(clinic_data, tmp_path):
    keras.config.disable_interactive_logging()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        short = dataclasses.replace(SMALL_TRAINING, epochs=1)
        training.train(clinic_data, SMALL_MODEL, short, tmp_path)
        model = training.load_model(tmp_path)

        assert not keras.config.is_interactive_logging_enabled()
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
        # The network's own is that of the settings.
        assert model.get_layer("heads").dtype_policy.name == "float32"
    finally:
        keras.config.set_dtype_policy("float32")
        keras.config.enable_interactive_logging()
