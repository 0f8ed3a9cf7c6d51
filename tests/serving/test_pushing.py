import dataclasses
import fcntl
import filecmp
import os
import random
import shutil
import signal
import time
import types

import numpy as np
import pytest
import tensorflow as tf
from tables import SMALL_MODEL

from m2m_tf import files, training
from m2m_tf.config import PushSettings
from m2m_tf.data.dataset import ForecastData
from m2m_tf.export import CONTRACT_FILE, EVALUATED_FOLDER, export_model
from m2m_tf.models import build_model
from m2m_tf.serving import pushing
from m2m_tf.serving.pushing import RECEIPT_FILE, PushRefused, push, rollback
from m2m_tf.versions import versions_of

# What two epochs on a dozen clinics give passes, what forecasts a hundred
# times too much does not.
LENIENT = PushSettings(tolerance=9.0, min_samples=1)
CHECK_FRESH_PROCESS = pushing._check_fresh_process


@pytest.fixture(scope="module")
def served(clinic_data, exported, tmp_path_factory):
    """A folder with two versions, pushed one after the other."""
    folder = tmp_path_factory.mktemp("served")
    for number in "12":
        version = push(exported, clinic_data, folder, LENIENT)
        assert version == folder / number
        pass_for(version, f"model {number}")
    return folder


def pass_for(version, model):
    """Makes a version pass for another model, of the same forecasts."""
    contract = files.read_json(version / CONTRACT_FILE)
    files.write_json(version / CONTRACT_FILE, contract | {"model": model})


@pytest.fixture
def same_process(monkeypatch):
    """Without the check in a process of its own, which loads TensorFlow."""
    monkeypatch.setattr(pushing, "_check_fresh_process", lambda *_: None)


@pytest.fixture
def copy(served, same_process, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(served, tmp_path / "served")


def numbers(folder):
    return [int(path.name) for path in versions_of(folder)]


def export_changed(clinic_data, folder, change):
    """Exports an untrained model whose weights a function changes."""
    preprocessor = clinic_data.preprocessor
    model = build_model(
        preprocessor.model_inputs,
        SMALL_MODEL,
        preprocessor.statistics.label_means,
    )
    model.set_weights([change(w) for w in model.get_weights()])
    export_model(model, preprocessor, folder)
    return folder


@pytest.fixture(scope="module")
def worse(clinic_data, tmp_path_factory):
    """A model that is worse than the naive forecasts."""
    folder = tmp_path_factory.mktemp("worse")
    return export_changed(clinic_data, folder, lambda w: w + 0.1)


@pytest.fixture(scope="module")
def not_finite(clinic_data, tmp_path_factory):
    """A model whose forecasts are not finite."""
    folder = tmp_path_factory.mktemp("not_finite")
    return export_changed(clinic_data, folder, lambda w: w * np.float32("nan"))


def test_a_pushed_version_is_the_candidate_and_its_receipt(served, exported):
    for version, compared_with in zip(
        versions_of(served), (None, 1), strict=True
    ):
        receipt = files.read_json(version / RECEIPT_FILE)
        assert receipt["compared_with"] == compared_with
        assert receipt["from"] == str(exported / "1")
        assert len(receipt["slices"]) == 9
        for row in receipt["slices"]:
            ours = row["poisson_deviance_candidate"]
            for rival in ("last_week", "history_mean"):
                bar = row[f"poisson_deviance_{rival}"]
                assert ours <= 10 * bar or ours < 0.9 * 7
            if compared_with:
                assert ours == row["poisson_deviance_serving"]
                assert row["nmae_candidate_median"] is not None
        difference = filecmp.dircmp(version, exported / "1")
        assert not difference.left_only and not difference.diff_files
        assert tf.saved_model.load(str(version)).signatures["predict"]


def test_a_step_back_is_refused_slice_by_slice(clinic_data, copy, worse):
    with pytest.raises(PushRefused) as refusal:
        push(worse, clinic_data, copy, LENIENT)
    text = str(refusal.value)
    assert "nothing has changed" in text and "`serving` is version 2" in text
    assert "Poisson deviance of the candidate" in text
    assert ", of history_mean " in text and ", of serving " in text
    assert numbers(copy) == [1, 2]
    # Slices that are too small to be judged are judged together.
    few = PushSettings(tolerance=9.0, min_samples=10_000)
    with pytest.raises(PushRefused, match=r"in booked \+ video \+ walk_in"):
        push(worse, clinic_data, copy, few)
    assert numbers(copy) == [1, 2]


def test_small_scenarios_are_judged_together():
    scenario = np.array(["a"] * 5 + ["b"] * 2 + ["c"] * 3)
    pooled = {
        least: dict(
            zip(
                *np.unique(pushing._pooled(scenario, least), return_counts=True)
            )
        )
        for least in (1, 3, 4, 6)
    }
    assert pooled == {
        1: {"a": 5, "b": 2, "c": 3},
        # One alone stays by itself, and is not judged.
        3: {"a": 5, "b": 2, "c": 3},
        4: {"a": 5, "b + c": 5},
        6: {"a + b + c": 10},
    }


@pytest.mark.parametrize(("forecast", "refused"), [(0.1, 0), (1.0, 1)])
def test_where_nothing_happens_a_tolerance_is_of_the_usual_mean(
    forecast, refused
):
    statistics = types.SimpleNamespace(label_means=[50.0])
    data = types.SimpleNamespace(
        spec=types.SimpleNamespace(task_names=("visits",)),
        preprocessor=types.SimpleNamespace(statistics=statistics),
    )
    labels = np.repeat([50.0, 0.0], 200)[:, None]
    sample = {
        "scenario": np.repeat(["open", "closed"], 200),
        "y_true": labels,
        "candidate": np.where(labels, labels, forecast),
        "last_week": labels,
    }
    _, problems = pushing._compare(data, sample, PushSettings(), ())
    # Deviance is 2 forecasts; a tenth of a tenth of 50 is 0.5.
    assert len(problems) == refused


@pytest.mark.usefixtures("same_process")
def test_a_new_task_is_compared_with_no_served_one(
    clinic_data, exported, tmp_path
):
    spec = dataclasses.replace(
        clinic_data.spec, tasks=clinic_data.spec.tasks[:-1]
    )
    before = ForecastData.prepare(spec, tmp_path / "records")
    served = export_changed(before, tmp_path / "served", lambda w: w)
    version = push(exported, clinic_data, served, LENIENT)
    receipt = files.read_json(version / RECEIPT_FILE)
    assert receipt["compared_with"] == 1
    compared = {
        row["task"]
        for row in receipt["slices"]
        if {"poisson_deviance_serving", "nmae_serving_median"} <= row.keys()
    }
    assert compared == set(spec.task_names)


def test_what_has_seen_test_days_is_compared_on_the_others(
    clinic_data, exported, copy, tmp_path
):
    candidate = shutil.copytree(exported, tmp_path / "candidate")
    # More than one cutoff in the test split.
    spec = dataclasses.replace(clinic_data.spec, stride=2)
    data = ForecastData.prepare(spec, tmp_path / "records")
    cutoffs = np.concatenate(
        [raw["cutoff"] for raw in data.raw("test", 64)]
    ).astype("datetime64[D]")
    served = files.read_json(copy / "2" / CONTRACT_FILE)

    def compared(seen, model):
        files.write_json(
            copy / "2" / CONTRACT_FILE, served | {"trained_through": str(seen)}
        )
        pass_for(candidate / "1", model)
        version = push(candidate, data, copy, LENIENT)
        receipt = files.read_json(version / RECEIPT_FILE)
        shutil.rmtree(version)
        return receipt["compared_with"], sum(
            row["n"] for row in receipt["slices"] if row["task"] == "visits"
        )

    middle = np.sort(np.unique(cutoffs))[1]
    assert compared(cutoffs.min(), "a") == (2, len(cutoffs))
    assert compared(middle, "b") == (2, (cutoffs >= middle).sum())
    # None is left: it is compared with the naive forecasts alone.
    assert compared(cutoffs.max() + 1, "c") == (None, len(cutoffs))


@pytest.mark.usefixtures("same_process")
def test_what_answers_nan_is_replaced(
    clinic_data, exported, not_finite, tmp_path
):
    served = shutil.copytree(not_finite, tmp_path / "served")
    version = push(exported, clinic_data, served, LENIENT)
    assert files.read_json(version / RECEIPT_FILE)["compared_with"] is None


def test_forecasts_that_are_not_finite_are_refused(
    clinic_data, copy, not_finite
):
    with pytest.raises(PushRefused, match="negative or not finite"):
        push(not_finite, clinic_data, copy, LENIENT)
    assert numbers(copy) == [1, 2]


def with_judged(model, judged, folder):
    """A model as if it were the refit of another."""
    shutil.copytree(versions_of(model)[-1], folder / "1")
    shutil.copytree(versions_of(judged)[-1], folder / "1" / EVALUATED_FOLDER)
    return folder


def test_of_a_refit_model_the_one_before_it_is_judged(
    clinic_data, exported, worse, copy, tmp_path
):
    candidate = with_judged(exported, exported, tmp_path / "good")
    version = push(candidate, clinic_data, copy, LENIENT)
    receipt = files.read_json(version / RECEIPT_FILE)
    for row in receipt["slices"]:
        # The judged ones of both versions are the same.
        assert (
            row["poisson_deviance_candidate"] == row["poisson_deviance_serving"]
        )
        assert row["poisson_deviance_refit"] is not None
    # Of the served version, too, the judged one is the bar.
    pass_for(version, "model 3")
    (version / "saved_model.pb").write_bytes(b"never loaded")
    push(candidate, clinic_data, copy, LENIENT)
    assert numbers(copy) == [1, 2, 3, 4]
    candidate = with_judged(exported, worse, tmp_path / "judged_worse")
    pass_for(candidate / "1", "model 5")
    with pytest.raises(PushRefused, match="deviance of the candidate"):
        push(candidate, clinic_data, copy, LENIENT)
    assert numbers(copy) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "name, message",
    [
        ("worse", "of the refit .*, of history_mean"),
        ("not_finite", r"\(refit\) are negative or not finite"),
    ],
)
def test_a_refit_model_that_went_wrong_is_refused(
    clinic_data, exported, copy, tmp_path, request, name, message
):
    model = request.getfixturevalue(name)
    candidate = with_judged(model, exported, tmp_path / "refit")
    with pytest.raises(PushRefused, match=message) as refusal:
        push(candidate, clinic_data, copy, LENIENT)
    assert "of the candidate" not in str(refusal.value)
    assert numbers(copy) == [1, 2]


def test_what_callers_rely_on_must_stay(clinic_data, exported, copy):
    path = copy / "2" / CONTRACT_FILE
    contract = files.read_json(path)
    contract["horizon"] = 14
    contract["inputs"]["scenario_budget"] = {"shape": [], "dtype": "float32"}
    contract["tasks"] = contract["tasks"][::-1]
    contract["outputs"]["visits_total"] = "of all scenarios"
    contract["signatures"]["totals"] = {}
    contract["tasks"][-1] |= {"kind": "binary", "column": "open_days"}
    files.write_json(path, contract)
    with pytest.raises(
        PushRefused,
        match="callers of version 2 would break: horizon differs, inputs "
        "scenario_budget differs, output visits_total is missing, signature "
        "totals is missing, visits was the binary of open_days and is the "
        r"count of visits, tasks do not begin with \['open', 'fees', 'vis",
    ):
        push(exported, clinic_data, copy, LENIENT)


def test_scenarios_may_come_if_the_settings_say_so(clinic_data, exported, copy):
    path = copy / "2" / CONTRACT_FILE
    contract = files.read_json(path)
    known = contract["scenarios"]
    files.write_json(path, contract | {"scenarios": [*known, "by_post"]})
    with pytest.raises(PushRefused, match=r"scenarios \['by_post'\] are gone"):
        push(exported, clinic_data, copy, LENIENT)
    files.write_json(path, contract | {"scenarios": known[1:]})
    with pytest.raises(PushRefused, match="are new.*new_scenarios: true"):
        push(exported, clinic_data, copy, LENIENT)
    assert numbers(copy) == [1, 2]
    allowed = dataclasses.replace(LENIENT, new_scenarios=True)
    push(exported, clinic_data, copy, allowed)
    assert numbers(copy) == [1, 2, 3]


@pytest.mark.parametrize(
    "script, message",
    [
        ("raise SystemExit('no such op')", "cannot answer with it: no such op"),
        (
            pushing._SMOKE_SCRIPT.replace("v.numpy()", "v.numpy() + 1"),
            "gives other forecasts of",
        ),
    ],
)
def test_another_process_must_agree(
    clinic_data, exported, copy, monkeypatch, script, message
):
    monkeypatch.setattr(pushing, "_check_fresh_process", CHECK_FRESH_PROCESS)
    monkeypatch.setattr(pushing, "_SMOKE_SCRIPT", script)
    with pytest.raises(PushRefused, match=message):
        push(exported, clinic_data, copy, LENIENT)
    assert numbers(copy) == [1, 2]


def test_rollback_goes_back_and_numbers_go_on(copy):
    files.write_text(copy / "1" / "mark", "first")
    files.write_text(copy / "2" / "mark", "second")
    assert rollback(copy) == copy / "3"
    assert (copy / "3" / "mark").read_text() == "first"
    assert files.read_json(copy / "3" / RECEIPT_FILE)["copy_of"] == 1
    with pytest.raises(PushRefused, match="no version before 1 is left"):
        rollback(copy)
    assert numbers(copy) == [1, 2, 3]


def test_what_was_rolled_back_from_never_comes_back(
    clinic_data, exported, copy
):
    """1 good, 2 bad, back to 1; 4 bad, back to 1 again, and no further."""
    assert rollback(copy) == copy / "3"
    assert push(exported, clinic_data, copy, LENIENT) == copy / "4"
    assert rollback(copy) == copy / "5"
    receipt = files.read_json(copy / "5" / RECEIPT_FILE)
    assert (receipt["copy_of"], receipt["withdrawn"]) == (1, [2, 4])
    with pytest.raises(PushRefused, match=r"\[2, 4\] were rolled back"):
        rollback(copy)


def test_the_same_model_is_not_published_once_more(
    clinic_data, trained, copy, tmp_path
):
    model = training.load_model(trained[0])
    # States of random generators, which an export holds, differ.
    model(next(iter(clinic_data.train(8)))[0], training=True)
    for name in "ab":
        export_model(model, clinic_data.preprocessor, tmp_path / name)
    assert push(tmp_path / "a", clinic_data, copy, LENIENT) == copy / "3"
    assert push(tmp_path / "b", clinic_data, copy, LENIENT) == copy / "3"
    assert not pushing.is_withdrawn(tmp_path / "b", copy)
    assert rollback(copy) == copy / "4"
    assert pushing.is_withdrawn(tmp_path / "b", copy)
    with pytest.raises(PushRefused, match="has been rolled back from"):
        push(tmp_path / "b", clinic_data, copy, LENIENT)


def test_back_from_a_model_that_was_pushed_twice_is_another_one(
    exported, worse, tmp_path
):
    shutil.copytree(exported / "1", tmp_path / "1")
    for number in "23":
        shutil.copytree(worse / "1", tmp_path / number)
    version = rollback(tmp_path)
    assert version.name == "4"
    assert pushing._same(version, exported / "1")
    with pytest.raises(PushRefused, match="no version before 1 is left"):
        rollback(tmp_path)


def test_a_model_that_was_rolled_back_from_is_not_pushed_again(
    clinic_data, exported, worse, copy
):
    blind = PushSettings(tolerance=1e12, min_samples=1)
    assert push(worse, clinic_data, copy, blind) == copy / "3"
    assert rollback(copy) == copy / "4"
    with pytest.raises(PushRefused, match="has been rolled back from"):
        push(worse, clinic_data, copy, blind)
    assert push(exported, clinic_data, copy, LENIENT) == copy / "5"
    with pytest.raises(PushRefused, match="has been rolled back from"):
        push(worse, clinic_data, copy, blind)
    assert numbers(copy) == [1, 2, 3, 4, 5]


def test_what_is_judged_is_what_is_published(
    clinic_data, exported, worse, copy, tmp_path, monkeypatch
):
    candidate = shutil.copytree(exported, tmp_path / "candidate")

    def check_and_export_anew(*arguments):
        CHECK_FRESH_PROCESS(*arguments)
        shutil.rmtree(candidate / "1")
        shutil.copytree(worse / "1", candidate / "1")

    monkeypatch.setattr(pushing, "_check_fresh_process", check_and_export_anew)
    version = push(candidate, clinic_data, copy, LENIENT)
    models = [pushing._model_of(x) for x in (version, exported / "1")]
    assert models[0] == models[1]
    assert files.read_json(version / RECEIPT_FILE)["model"] == models[0]


def test_a_model_goes_among_versions_alone(
    clinic_data, exported, copy, tmp_path
):
    for folder, message in (
        (copy / "2", "is a version itself"),
        (tmp_path, "holds other things than versions .*'served'"),
    ):
        with pytest.raises(PushRefused, match=message):
            push(exported, clinic_data, folder, LENIENT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["served"]
    with pytest.raises(PushRefused, match="there is no such folder"):
        rollback(tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


def test_broken_versions_are_named_and_never_published(
    clinic_data, exported, copy
):
    (copy / "2" / "saved_model.pb").unlink()
    with pytest.raises(PushRefused, match="2: is no whole .*saved_model.pb"):
        push(exported, clinic_data, copy, LENIENT)
    shutil.copytree(copy / "1", copy / "3")
    files.write_json(copy / "3" / RECEIPT_FILE, {})
    assert rollback(copy) == copy / "4"
    assert files.read_json(copy / "4" / RECEIPT_FILE)["copy_of"] == 1
    weights = copy / "1" / "variables" / "variables.data-00000-of-00001"
    for name in ("5", "6"):
        shutil.copytree(copy / "1", copy / name)
        pass_for(copy / name, f"model {name}")
        files.write_json(copy / name / RECEIPT_FILE, {})
    os.truncate(copy / "5" / weights.relative_to(copy / "1"), 1000)
    # Five is there, but cannot be loaded.
    assert rollback(copy) == copy / "7"
    assert files.read_json(copy / "7" / RECEIPT_FILE)["copy_of"] == 1
    candidate = shutil.copytree(exported, copy.parent / "candidate")
    os.truncate(candidate / "1" / weights.relative_to(copy / "1"), 1000)
    with pytest.raises(PushRefused, match="candidate/1: cannot be loaded"):
        push(candidate, clinic_data, copy, LENIENT)
    os.truncate(copy / "7" / weights.relative_to(copy / "1"), 1000)
    with pytest.raises(PushRefused, match="served/7: cannot be loaded"):
        push(exported, clinic_data, copy, LENIENT)
    assert numbers(copy) == [1, 2, 3, 4, 5, 6, 7]
    shutil.rmtree(copy / "7")
    shutil.rmtree(copy / "6")
    shutil.rmtree(copy / "5")
    (copy / "4" / RECEIPT_FILE).write_text("")
    with pytest.raises(PushRefused, match="push.json: is no JSON"):
        rollback(copy)


def test_only_the_last_versions_are_kept_which_may_be_links(
    clinic_data, exported, copy, tmp_path
):
    (copy / "1").rename(tmp_path / "first")
    (copy / "1").symlink_to(tmp_path / "first")
    settings = dataclasses.replace(LENIENT, keep=2)
    push(exported, clinic_data, copy, settings)
    assert numbers(copy) == [2, 3]
    assert (tmp_path / "first" / "saved_model.pb").exists()
    assert not list(copy.glob(".tmp-*"))


def test_two_pushes_at_once_are_one(clinic_data, exported, copy):
    with open(copy / ".push.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="another push is going on"):
            rollback(copy)
    assert rollback(copy)


def same(ours, theirs):
    listed = [
        sorted(p.relative_to(x) for p in x.rglob("*")) for x in (ours, theirs)
    ]
    return listed[0] == listed[1] and all(
        (ours / p).read_bytes() == (theirs / p).read_bytes()
        for p in listed[0]
        if (ours / p).is_file()
    )


def test_kill_at_any_moment_leaves_whole_versions(copy, tmp_path):
    """50 processes that publish and prune are killed at random moments."""
    source = shutil.copytree(copy / "2", tmp_path / "source")
    receipt = files.read_json(source / RECEIPT_FILE)
    draw = random.Random(0)
    interrupted = 0
    for _ in range(50):
        before = len(versions_of(copy))
        child = os.fork()
        if not child:
            try:
                while True:
                    with pushing._only_push(copy):
                        pushing._publish(source, copy, receipt)
                        pushing._keep_last(copy, 3)
            finally:
                os._exit(1)
        time.sleep(draw.uniform(0.001, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        interrupted += bool(list(copy.glob(".tmp-*")))
        # Killed between its version and the pruning, a push leaves one more.
        assert 2 <= len(versions_of(copy)) <= max(before, 3) + 1
        newest = versions_of(copy)[-1]
        assert same(newest, source) or newest.name == "2"
    assert interrupted > 5
    with pushing._only_push(copy):
        pushing._keep_last(copy, 3)
    assert len(versions_of(copy)) <= 3
    assert rollback(copy) and not list(copy.glob(".tmp-*"))
    assert tf.saved_model.load(str(versions_of(copy)[-1])).signatures
