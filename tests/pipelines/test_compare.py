import dataclasses
import datetime
import json
import shutil

import numpy as np
import pytest
import yaml
from tables import (
    SMALL_MODEL,
    SMALL_TRAINING,
    write_accented_tables,
    write_clinic_tables,
)
from tensorboard.backend.event_processing import event_accumulator

from m2m_tf import __version__, files, tensorboard
from m2m_tf.config import (
    ConfigError,
    DatasetSpec,
    EarlierTables,
    StudyConfig,
    to_values,
)
from m2m_tf.data import panel, windows
from pipelines import compare
from pipelines.compare import StudyError, run_study


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    spec = write_accented_tables(tmp_path_factory.mktemp("study"))
    return StudyConfig(
        name="clinics",
        data={"clinics": spec},
        model=SMALL_MODEL,
        training=dataclasses.replace(SMALL_TRAINING, epochs=1),
        models=("m2m", "mmoe"),
        seeds=(0, 1),
        search=(
            {"training": {"learning_rate": 0.001}},
            {"training": {"learning_rate": 0.01}},
        ),
        sweeps={"knowledge_dim": (2,), "lookback": (14, 28)},
    )


@pytest.fixture(scope="module")
def folders(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    run_study(config, folder / "results", folder / "runs")
    return folder


@pytest.mark.slow
def test_page_tells_every_model_and_what_it_was_made_by(folders):
    page = (folders / "results" / "clinics.md").read_text()
    for text in (
        "| mmoe | 2 |",
        "last_week",
        "### M2M minus rival: NMAE",
        "learning_rate 0.01",
        f"Seeds: 0, 1. Versions: m2m_tf {__version__}, tensorflow",
        "80 % intervals",
    ):
        assert text in page, text
    assert (folders / "results/clinics/clinics_differences.png").exists()


@pytest.mark.slow
def test_a_training_that_diverges_stops_no_other(
    config, folders, tmp_path, monkeypatch
):
    """Of MMoE one candidate and a seed; of M2M the files are there."""
    shutil.copytree(folders, tmp_path / "study")
    results = tmp_path / "study" / "results"
    for path in (results / "clinics" / "clinics").glob("*mmoe*.json"):
        path.unlink()
    train = compare.training.train
    started = []

    def diverging(data, model, settings, folder):
        started.append((settings.learning_rate, settings.seed))
        if settings.learning_rate == 0.001 or settings.seed == 1:
            raise compare.training.TrainingError("The loss | is infinite.")
        return train(data, model, settings, folder)

    monkeypatch.setattr(compare.training, "train", diverging)
    for _ in range(2):
        run_study(config, results, tmp_path / "study" / "runs")
        assert started == [(0.001, 0), (0.01, 0), (0.01, 0), (0.01, 1)]
    page = (results / "clinics.md").read_text()
    failed = page.partition("## Runs that failed")[2].partition("\n## ")[0]
    assert failed.count("The loss \\| is infinite.") == 2
    assert failed.count("`clinics/search_mmoe-") == 1
    assert "| mmoe | 1 |" in page and "| m2m | 2 |" in page
    search = page.partition("## Search")[2]
    assert "| mmoe | learning_rate 0.001 | - |" in search
    assert not any((tmp_path / "study").rglob("trainings/*"))

    def failing(*_):
        raise compare.training.TrainingError("No epoch gave a finite loss.")

    # Where all candidates have failed the model is left out.
    monkeypatch.setattr(compare.training, "train", failing)
    for path in (results / "clinics" / "clinics").glob("*mmoe*.json"):
        path.unlink()
    run_study(config, results, tmp_path / "study" / "runs")
    page = (results / "clinics.md").read_text()
    assert page.count("No epoch gave a finite loss.") == 2
    assert "| m2m | 2 |" in page and "| mmoe | 1 |" not in page
    for path in (results / "clinics" / "clinics").glob("search_m2m*.json"):
        path.unlink()
    with pytest.raises(StudyError, match="Every candidate of M2M has failed"):
        run_study(config, results, tmp_path / "study" / "runs", "knowledge_dim")


@pytest.mark.slow
def test_one_small_file_for_each_run(folders):
    files = list((folders / "results/clinics/clinics").glob("*-seed*.json"))
    searched = [path for path in files if path.name.startswith("search_")]
    assert (len(files), len(searched)) == (2 * 2 + 2 * 2, 2 * 2)
    assert max(path.stat().st_size for path in files) < 100_000
    run = json.loads(next(p for p in files if p not in searched).read_text())
    assert run["split"] == "test" and set(run["sums"]) >= {"mean_error"}
    searched = json.loads(searched[0].read_text())
    assert searched["split"] == "validation" and "sums" not in searched


@pytest.mark.slow
def test_logs_of_every_training_are_kept_small(folders):
    work = folders / "runs" / "compare_clinics" / "clinics"
    assert not list((work / "trainings").iterdir())
    logs = list((work / tensorboard.LOGS_FOLDER).iterdir())
    assert len(logs) == 2 * 2 + 2 * 2
    for folder in logs:
        events = event_accumulator.EventAccumulator(str(folder / "best"))
        events.Reload()
        tags = events.Tags()["tensors"]
        assert "validation_best/poisson_deviance" in tags
        searched = folder.name.startswith("search_")
        assert ("validation_best/validation_score" in tags) == searched
        size = sum(x.stat().st_size for x in folder.rglob("*") if x.is_file())
        assert size < 100_000


@pytest.mark.slow
def test_goes_on_where_it_stopped(config, folders, monkeypatch):
    results = folders / "results" / "clinics" / "clinics"
    gone = next(results.glob("mmoe-*-seed1.json"))
    before = gone.read_text()
    gone.unlink()
    started = []
    run = compare._Study._run

    def counted(self, dataset, model, *rest, **options):
        started.append(model)
        return run(self, dataset, model, *rest, **options)

    monkeypatch.setattr(compare._Study, "_run", counted)
    run_study(config, folders / "results", folders / "runs")
    assert started == ["mmoe"]
    ours, theirs = json.loads(gone.read_text()), json.loads(before)
    assert ours["sums"] == theirs["sums"]


@pytest.mark.slow
def test_interrupted_it_tells_what_is_finished(config, folders, monkeypatch):
    gone = next((folders / "results/clinics/clinics").glob("mmoe-*-seed1.json"))
    kept = gone.read_text()
    gone.unlink()
    page = folders / "results" / "clinics.md"
    page.unlink()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare._Study, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_study(config, folders / "results", folders / "runs")
    gone.write_text(kept)
    assert "| m2m | 2 |" in page.read_text()
    assert "| mmoe | 1 |" in page.read_text()


def test_two_comparisons_at_once_are_one(config, tmp_path):
    work = tmp_path / "runs" / "compare_clinics"
    with files.only_one(work / ".lock", ""):
        with pytest.raises(RuntimeError, match="another comparison is going"):
            run_study(config, tmp_path / "results", tmp_path / "runs")
    assert not (tmp_path / "results").exists()


def test_an_ablation_is_m2m_without_its_part(config, tmp_path):
    study = compare._Study(config, tmp_path, tmp_path, print)
    for part in ("meta_tower", "meta_attention"):
        settings, _ = study._settings(f"m2m_without_{part}", {})
        assert settings == dataclasses.replace(config.model, **{part: False})


def test_files_of_rivals_outlive_changes_of_m2m_alone(config, tmp_path):
    def key(study, model):
        return compare._Study(study, tmp_path, tmp_path, print)._key(model, {})

    own = dataclasses.replace(config.model, share_meta_across_tasks=False)
    changed = dataclasses.replace(config, model=own)
    assert key(changed, "mmoe") == key(config, "mmoe")
    assert key(changed, "m2m") != key(config, "m2m")
    everyone = dataclasses.replace(config.model, dropout=0.25)
    changed = dataclasses.replace(config, model=everyone)
    assert key(changed, "mmoe") != key(config, "mmoe")


@pytest.mark.slow
def test_sweeps_train_m2m_with_each_value(config, folders):
    config = dataclasses.replace(config, seeds=(0,))
    for sweep in config.sweeps:
        run_study(config, folders / "results", folders / "runs", sweep=sweep)
    page = (folders / "results" / "clinics.md").read_text()
    assert "### knowledge_dim" in page and "### lookback" in page
    assert (folders / "results/clinics/sweep_lookback.png").exists()


def test_swept_lookbacks_are_scored_on_the_same_samples(config, folders):
    config = dataclasses.replace(config, seeds=(0,))
    run_study(config, folders / "results", folders / "runs", sweep="lookback")
    (folder,) = {p.parent for p in folders.rglob("sweep_lookback_*.json")}
    base = files.read_json(folder / "labels.json")["labels"]
    short, same = (
        files.read_json(path)["labels"]
        for value in (14, 28)
        for path in folder.glob(f"sweep_lookback_{value}_of_14-*-seed0.json")
    )
    # The clinics' own lookback is 28 days; fewer are active in 14.
    assert short == same
    for name, values in short.items():
        assert np.all(np.array(values) <= np.array(base[name]))
        assert 0.5 * np.sum(base[name]) < np.sum(values) < np.sum(base[name])


@pytest.mark.slow
def test_a_sweep_may_come_first(config, tmp_path):
    alone = dataclasses.replace(
        config, search=(), seeds=(0,), sweeps={"lookback": (28,)}
    )
    page = run_study(
        alone, tmp_path / "results", tmp_path / "runs", sweep="lookback"
    )
    assert "### lookback" in page.read_text()


def test_a_sweep_tells_runs_of_its_settings_and_seeds_alone(
    config, tmp_path, monkeypatch
):
    config = dataclasses.replace(
        config, search=(), sweeps={"knowledge_dim": (2, 4)}
    )

    def fake(self, dataset, model, changes, path, seed, name):
        files.write_compact_json(path, {"seed": seed, "name": name})

    monkeypatch.setattr(compare._Study, "_run", fake)

    def swept(config):
        study = compare._Study(config, tmp_path, tmp_path / "runs", print)
        study.sweep("knowledge_dim")
        return study.collect()["sweeps"]["knowledge_dim"]

    expected = {
        value: [
            {"seed": seed, "name": f"sweep_knowledge_dim_{value}"}
            for seed in config.seeds
        ]
        for value in (2, 4)
    }
    assert swept(config) == expected
    wider = dataclasses.replace(config.model, view_dim=24)
    changed = dataclasses.replace(config, model=wider, seeds=(1,))
    assert swept(changed) == {v: rows[1:] for v, rows in expected.items()}


def test_results_of_other_data_are_not_added_to(config, tmp_path):
    spec = write_clinic_tables(tmp_path / "tables")
    results, runs = tmp_path / "results", tmp_path / "runs"
    config = dataclasses.replace(config, data={"clinics": spec})
    study = compare._Study(config, results, runs, print)
    compare._Dataset(study, "clinics").prepare()
    compare._Dataset(study, "clinics").check()
    write_clinic_tables(tmp_path / "tables", seed=1)
    for sweep in (None, "knowledge_dim"):
        with pytest.raises(StudyError, match="other data.*name.*'panel': "):
            run_study(config, results, runs, sweep=sweep)
    small = {"name": "simulator", "advertisers": 50, "days": 140}
    study = StudyConfig("made", {"made": small})
    labels = results / "made" / "made" / "labels.json"
    before = to_values(study.data["made"]) | {"advertisers": 40}
    files.write_json(labels, {"data": before, "fingerprint": {}})
    with pytest.raises(
        StudyError, match=r"\{'advertisers': 50\} instead of .* 40\}"
    ):
        run_study(study, results, runs)


def test_earlier_tables_are_what_they_were(config, tmp_path):
    end = datetime.date(2025, 6, 14)
    path = write_clinic_tables(tmp_path / "now")
    # Files of that day, which hold no later row.
    cut = write_clinic_tables(tmp_path / "then", end=str(end))
    rows = DatasetSpec.load(cut).panel
    frame = panel.scan_table(rows).collect()
    frame.filter(frame["day"] <= end).write_parquet(rows)
    config = dataclasses.replace(
        config, data={"earlier": EarlierTables(path, end), "cut": cut}
    )
    study = compare._Study(config, tmp_path / "results", tmp_path, print)
    data = {}
    for label in config.data:
        dataset = compare._Dataset(study, label)
        dataset.check()
        data[label] = dataset.prepare()
        dataset.check()
    earlier, cut = data.values()
    assert earlier.spec.identity == cut.spec.identity
    assert earlier.splits == cut.splits
    assert earlier.preprocessor.statistics == cut.preprocessor.statistics
    labels = [
        files.read_json(study.results / label / "labels.json") for label in data
    ]
    for name in ("samples", "labels", "forecasts"):
        assert labels[0][name] == labels[1][name]
    assert labels[0]["data"] == {"spec": "spec.yaml", "end": "2025-06-14"}


def test_an_end_that_leaves_too_few_days_is_refused_before_work(
    config, tmp_path
):
    path = write_clinic_tables(tmp_path / "tables")
    for month, error in ((4, windows.SplitError), (7, ConfigError)):
        earlier = EarlierTables(path, datetime.date(2025, month, 5))
        study = dataclasses.replace(config, data={"clinics": earlier})
        with pytest.raises(error):
            run_study(study, tmp_path / "results", tmp_path / "runs")
    assert not (tmp_path / "results").exists()


def test_tables_are_those_of_the_source(tmp_path):
    small = {"name": "simulator", "advertisers": 50, "days": 140}
    for advertisers in (50, 50, 60):
        source = small | {"advertisers": advertisers}
        study = StudyConfig("made", {"made": source})
        told = []
        # Other results, as where the first were stopped in their tables.
        results = tmp_path / f"results_{advertisers}"
        study = compare._Study(study, results, tmp_path / "runs", told.append)
        spec = compare._Dataset(study, "made").load_spec()
        assert len(panel.read_profile(spec)) == advertisers
    path = compare._Dataset(study, "made").spec_path
    text = path.read_text()
    assert "stride: 7" in text
    path.write_text(text.replace("stride: 7", "stride: 3"))
    compare._Dataset(study, "made").prepare()
    assert "without true_rates" in told[-1]
    labels = files.read_json(results / "made" / "made" / "labels.json")
    assert set(labels["forecasts"]) == {"last_week", "history_mean"}


def test_unknown_sweep_is_refused_before_work(config, tmp_path):
    with pytest.raises(StudyError, match="one of.*lookback.*'depth'"):
        run_study(config, tmp_path / "r", tmp_path / "w", sweep="depth")
    assert not list(tmp_path.iterdir())


def test_known_future_activity_is_refused_before_a_lookback_sweep(
    config, tmp_path
):
    spec = write_clinic_tables(tmp_path / "tables")
    values = yaml.safe_load(spec.read_text()) | {"activity": "appointments"}
    spec.write_text(yaml.safe_dump(values))
    changed = dataclasses.replace(config, data={"clinics": spec})
    with pytest.raises(StudyError, match="`activity` among.*'appointments'"):
        run_study(changed, tmp_path / "r", tmp_path / "w", sweep="lookback")
    left = [path.name for path in (tmp_path / "w").rglob("*") if path.is_file()]
    assert not (tmp_path / "r").exists() and left == [".lock"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"models": ["m2m", "gpt"]}, "`models` must be some of.*'gpt'"),
        ({"sweeps": {"depth": [1]}}, "`sweeps` must name.*'depth'"),
        ({"sweeps": {"name": ["m2m"]}}, "`sweeps` must name.*'name'"),
        ({"search": [{"model": {"name": "mmoe"}}]}, "`models` names them"),
        (
            {"sweeps": {"knowledge_dim": [0]}},
            r"sweeps: model:\s+knowledge_dim: ",
        ),
        ({"sweeps": {"pooling": ["last", "lsat"]}}, "pooling: .*'lsat'"),
        ({"sweeps": {"lookback": [0]}}, "`lookback` must be whole.*0"),
        ({"search": [{"model": {"depth": 1}}]}, "depth: is not a setting"),
        ({"search": [{"data": {}}]}, "changes of `model` and `training`"),
        ({"seeds": []}, "seeds"),
    ],
)
def test_wrong_configs_say_what_is_wrong(config, changes, message, tmp_path):
    values = to_values(config) | changes
    for key in ("model", "training"):
        values[key] = {}
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=message):
        StudyConfig.load(path)
