import dataclasses
import json
import re
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import tensorflow as tf
from browser import chromium
from matplotlib.figure import Figure
from tables import SMALL_MODEL, SMALL_TRAINING, write_clinic_tables
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.hparams import metadata

from m2m_tf import tensorboard, training
from m2m_tf.config import DatasetSpec
from m2m_tf.data.dataset import ForecastData
from m2m_tf.models import build_model

WAIT_S = 120
STEPS = 7  # Of an epoch: each is a point of the training loss.


def events(folder):
    """All that the files of a TensorBoard run hold."""
    found = event_accumulator.EventAccumulator(
        str(folder), size_guidance={event_accumulator.TENSORS: 0}
    )
    found.Reload()
    return found


def scalars(folder, tag):
    """(step, value) of each point."""
    return [
        (event.step, float(tf.make_ndarray(event.tensor_proto)))
        for event in events(folder).Tensors(tag)
    ]


def settings_of(folder):
    content = (
        events(folder)
        .SummaryMetadata(metadata.SESSION_START_INFO_TAG)
        .plugin_data.content
    )
    info = metadata.parse_session_start_info_plugin_data(content)
    return {
        name: getattr(value, value.WhichOneof("kind"))
        for name, value in info.hparams.items()
    }


@pytest.fixture(scope="module")
def logs(trained):
    return trained[0] / "tensorboard"


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """A run's folder as TensorBoard is pointed at: logs and plots."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "training").symlink_to(trained[0])
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([1, 2])
    (folder / "plots").mkdir()
    figure.savefig(folder / "plots" / "cells.png")
    tensorboard.write_images(
        [(folder / "plots" / "cells.png", "Errors of each task.")],
        folder / "plots",
    )
    return folder


def test_tags_are_grouped_by_metric_task_and_scenario(logs, clinic_data):
    losses = ["loss/total", "loss/visits", "loss/fees", "loss/open"]
    overall = [
        f"{metric}/overall" for metric in ("nmae", "smape", "poisson_deviance")
    ]
    assert set(events(logs / "train").Tags()["tensors"]) == {
        *losses,
        *overall,
        "learning_rate",
    }
    cells = [
        f"{metric}/{task}/{scenario}"
        for metric in ("nmae", "smape", "poisson_deviance")
        for task in clinic_data.spec.task_names
        for scenario in clinic_data.preprocessor.known_scenarios
    ]
    assert set(events(logs / "validation").Tags()["tensors"]) == {
        *losses,
        *overall,
        *cells,
    }


def test_curves_are_those_of_the_history(logs, trained):
    _, history = trained
    validation = scalars(logs / "validation", "poisson_deviance/overall")
    assert [step for step, _ in validation] == [STEPS, 2 * STEPS]
    for row, (_, value) in zip(history, validation, strict=True):
        assert value == pytest.approx(row["val_overall_poisson_deviance"])
    points = scalars(logs / "train", "loss/total")
    assert [step for step, _ in points] == list(range(1, 2 * STEPS + 1))
    for row, start in zip(history, (0, STEPS), strict=True):
        mean = np.mean([value for _, value in points[start : start + STEPS]])
        assert mean == pytest.approx(row["loss"], rel=1e-4)


def test_settings_lie_beside_the_scores_of_the_best_epoch(logs, trained):
    values = settings_of(logs / "best")
    assert values["model"] == "m2m" and values["dataset"] == "clinics"
    assert values["view_dim"] == 8 and values["batch_size"] == 32
    assert values["meta_rank"] == "none"
    best = min(trained[1], key=lambda row: row["val_loss"])
    for name, key in (("loss", "val_loss"), ("nmae", "val_overall_nmae")):
        _, value = scalars(logs / "best", f"validation_best/{name}")[-1]
        assert value == pytest.approx(best[key])


def test_settings_without_a_use_are_no_columns(clinic_data):
    rival = dataclasses.replace(SMALL_MODEL, name="mmoe")
    values = tensorboard.setting_values(clinic_data, rival, SMALL_TRAINING)
    assert values["model"] == "mmoe" and "meta_rank" not in values


def test_graph_has_the_layers_by_name(logs):
    found = events(logs / "train")
    assert found.Tags()["graph"]
    graph = found.Graph()
    names = {part for node in graph.node for part in node.name.split("/")}
    # A layer that is called again gets a number.
    assert {"meta_attention_1", "expert_views_1", "scenario_features"} <= names


def test_embeddings_are_those_of_the_best_model(logs, trained, clinic_data):
    model = training.load_model(trained[0])
    folder = logs / "best"
    names = (
        (folder / "scenario_features_embedding_metadata.tsv")
        .read_text()
        .splitlines()
    )
    assert names[0].split("\t") == ["scenario", "channel", "needs_booking"]
    assert [row.split("\t")[0] for row in names[1:]] == list(
        clinic_data.preprocessor.scenario_names
    )
    vectors = np.loadtxt(folder / "scenario_features_embedding.tsv")
    table = model.get_layer("scenario_features_embedding").embedding
    np.testing.assert_allclose(
        vectors, table.embeddings.numpy()[: len(vectors)], rtol=1e-5
    )
    tasks = (folder / "task_views_metadata.tsv").read_text().splitlines()
    assert tasks == [
        "task\tkind",
        "visits\tcount",
        "fees\tcount",
        "open\tbinary",
    ]
    np.testing.assert_allclose(
        np.loadtxt(folder / "task_views.tsv"),
        model.get_layer("task_views").embeddings.numpy(),
        rtol=1e-5,
    )


def test_names_alone_have_no_header(tmp_path):
    """TensorBoard takes a first line without a tab for the first name."""
    path = write_clinic_tables(
        tmp_path / "tables", scenarios=None, scenario_columns={}
    )
    data = ForecastData.prepare(DatasetSpec.load(path), tmp_path / "records")
    model = build_model(data.preprocessor.model_inputs, SMALL_MODEL)
    tensorboard.write_embeddings(model, data, tmp_path)
    names = tmp_path / "scenario_features_embedding_metadata.tsv"
    assert names.read_text().splitlines() == list(
        data.preprocessor.scenario_names
    )


def test_names_cannot_break_the_table(tmp_path):
    tensorboard._write_tsv(tmp_path / "x.tsv", [["walk\tin\nfirst", 1]])
    assert (tmp_path / "x.tsv").read_text() == "walk in first\t1\n"


def test_images_with_their_captions(run):
    found = events(run / "plots")
    assert found.Tags()["tensors"] == ["plots/cells"]
    assert "Errors of each task." in str(found.SummaryMetadata("plots/cells"))


@pytest.mark.slow
def test_a_resumed_training_writes_each_epoch_once(
    clinic_data, tmp_path, monkeypatch
):
    restored = training.RunRecord.on_epoch_begin

    def killed(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt
        restored(self, epoch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(training.RunRecord, "on_epoch_begin", killed)
        with pytest.raises(KeyboardInterrupt):
            training.train(clinic_data, SMALL_MODEL, SMALL_TRAINING, tmp_path)
    training.train(clinic_data, SMALL_MODEL, SMALL_TRAINING, tmp_path)
    logs = tmp_path / "tensorboard"
    steps = [step for step, _ in scalars(logs / "train", "loss/total")]
    assert steps == list(range(1, 2 * STEPS + 1))
    validation = scalars(logs / "validation", "nmae/visits/walk_in")
    assert [step for step, _ in validation] == [STEPS, 2 * STEPS]
    assert len(list((logs / "train").glob("*.graph"))) == 1


@pytest.mark.slow
def test_profile_of_some_steps(clinic_data, tmp_path):
    settings = dataclasses.replace(SMALL_TRAINING, epochs=2, profile_steps=3)
    training.train(clinic_data, SMALL_MODEL, settings, tmp_path)
    (profile,) = (tmp_path / "tensorboard/train").rglob("*.xplane.pb")
    # The steps' marks, which the profile's pages count by.
    text = profile.read_bytes()
    assert b"step_num" in text and b"train" in text


def test_a_study_keeps_what_is_small(trained, tmp_path):
    for _ in range(2):  # Again, after a kill between the two files.
        tensorboard.keep_logs(
            trained[0], tmp_path / "kept", {"validation_score": 0.25}
        )
    kept = tmp_path / "kept"
    assert scalars(kept / "best", "validation_best/validation_score") == [
        (0, 0.25)
    ]
    assert settings_of(kept / "best")["model"] == "m2m"
    assert not list(kept.rglob("*.graph"))
    assert sum(x.stat().st_size for x in kept.rglob("*") if x.is_file()) < 1e5


@pytest.fixture(scope="module")
def served(run):
    """Address of a TensorBoard process that has read the run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main"]
        + ["--logdir", str(run), "--host", "127.0.0.1", "--port", str(port)]
        + ["--load_fast", "false"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + WAIT_S
        while len(_runs(address)) < 4:
            assert process.poll() is None, "TensorBoard has stopped"
            assert time.monotonic() < deadline, "TensorBoard reads no runs"
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=WAIT_S)


def _runs(address):
    try:
        with urllib.request.urlopen(f"{address}/data/runs", timeout=30) as got:
            return json.load(got)
    except OSError:
        return []


@pytest.fixture(scope="module")
def page(served):
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(WAIT_S * 1000)
        yield page


def show(page, served, name):
    page.goto("about:blank")  # Else only the part behind # would change.
    page.goto(f"{served}/#{name}")


@pytest.mark.slow
def test_time_series_page_folds_by_metric(page, served):
    show(page, served, "timeseries")
    titles = page.locator(".group-title")
    titles.get_by_text("validation_best").wait_for()
    assert titles.all_inner_texts() == [
        "Pinned",
        "learning_rate",
        "loss",
        "nmae",
        "plots",
        "poisson_deviance",
        "smape",
        "validation_best",
    ]
    page.get_by_role("combobox", name="Filter tags (regex)").fill("nmae/visits")
    page.get_by_text("nmae/visits/walk_in").first.wait_for()


@pytest.mark.slow
def test_hparams_page_has_a_row_with_settings_and_scores(page, served):
    show(page, served, "hparams")
    table = page.locator("tf-hparams-table-view")
    for text in ("batch_size", "clinics", "validation_best/poisson_deviance"):
        table.get_by_text(text).first.wait_for()


@pytest.mark.slow
def test_projector_page_knows_the_scenarios(page, served):
    show(page, served, "projector")
    projector = page.frame_locator("iframe").frame_locator("iframe")
    projector.get_by_text("Points: 4").wait_for()
    projector.locator("[label=Search] input").fill("walk")
    projector.get_by_text("walk_in").first.wait_for()


@pytest.mark.slow
def test_images_page_shows_the_plots(page, served):
    show(page, served, "images")
    image = page.locator("tf-image-loader img").first
    image.wait_for()
    page.wait_for_function(
        "image => image.naturalWidth > 100", arg=image.element_handle()
    )


@pytest.mark.slow
def test_graphs_page_draws_the_model(page, served):
    show(page, served, "graphs")
    page.locator("text.nodelabel", has_text=re.compile("^m2m")).first.wait_for()
