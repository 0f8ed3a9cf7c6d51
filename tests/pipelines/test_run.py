import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest
import yaml
from tables import write_accented_tables, write_clinic_tables

from m2m_tf import files
from m2m_tf.config import RunConfig, to_values
from m2m_tf.export import CONTRACT_FILE, EVALUATED_FOLDER
from m2m_tf.serving import pushing
from m2m_tf.versions import versions_of
from pipelines import cli, local_runner, steps
from pipelines.pipeline import Workspace, make_steps

MODEL = {
    "preset": "small",
    "view_dim": 8,
    "num_experts": 2,
    "knowledge_dim": 4,
    "num_tower_layers": 1,
    "meta_rank": 2,
    "likelihood": "hurdle",
}
TRAINING = {
    "preset": "small",
    "members": 1,
    "epochs": 2,
    "batch_size": 32,
}


def write_config(folder, spec, **changes):
    path = folder / f"{changes.get('name', 'clinics')}.yaml"
    values = {
        "name": "clinics",
        "data": str(spec),
        "model": MODEL,
        "training": TRAINING,
        "evaluation": {"lightgbm": True},
        # Two epochs on a dozen clinics may well be worse than naive.
        "push": {"tolerance": 100.0},
    }
    path.write_text(yaml.safe_dump(values | changes))
    return path


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder where `m2m-tf run` was run on the clinic tables."""
    folder = tmp_path_factory.mktemp("workspace")
    spec = write_accented_tables(folder / "tables")
    config = write_config(folder, spec)
    before = pathlib.Path.cwd()
    os.chdir(folder)
    try:
        assert cli.main(["run", str(config)]) == 0
    finally:
        os.chdir(before)
    return folder


def run_again(workspace, capsys, config="clinics.yaml"):
    folders = [
        "--runs",
        workspace / "runs",
        "--models",
        workspace / "saved_models",
    ]
    status = cli.main(["run", str(workspace / config), *map(str, folders)])
    assert status == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_run_leaves_all_results(workspace):
    run = workspace / "runs" / "clinics"
    metrics = files.read_json(run / "metrics.json")
    assert set(metrics["overall"]) == {"nmae", "smape", "poisson_deviance"}
    assert len(metrics["cells"]) == 9
    assert 0 <= metrics["interval"]["coverage"] <= 1
    assert set(metrics["forecasts"]) == {
        "m2m",
        "m2m_median",
        "last_week",
        "history_mean",
        "lightgbm",
        "lightgbm_median",
    }
    assert "<html" in (run / "report.html").read_text()
    assert len(list((run / "plots").glob("*.png"))) == 4
    assert pl.read_parquet(run / "forecasts.parquet").height == 36
    test = pl.read_parquet(run / "test_forecasts.parquet")
    assert test.height == metrics["num_samples"]["test"]
    assert (workspace / "saved_models/clinics/1/saved_model.pb").exists()


@pytest.mark.slow
def test_metrics_of_the_run_follow_from_its_forecasts(workspace):
    run = workspace / "runs" / "clinics"
    metrics = files.read_json(run / "metrics.json")
    table = pl.read_parquet(run / "test_forecasts.parquet")
    covered, cells = [], []
    for task in ("visits", "fees", "open"):
        for (_,), rows in table.group_by("visit_kind"):
            error = (rows[f"{task}_m2m"] - rows[f"{task}_actual"]).abs().sum()
            cells.append(error / rows[f"{task}_actual"].sum())
            below, up_to = (
                rows[f"{task}_{name}"].to_numpy() for name in ("below", "up_to")
            )
            share = np.clip(up_to, 0.1, 0.9) - np.clip(below, 0.1, 0.9)
            inside = (below >= 0.1) & (below <= 0.9)
            width = up_to - below
            with np.errstate(divide="ignore", invalid="ignore"):
                part = np.where(width > 1e-6, share / width, inside)
            covered.append(part.mean())
    assert metrics["interval"]["coverage"] == pytest.approx(
        np.mean(covered), rel=1e-4
    )
    assert metrics["overall"]["nmae"] == pytest.approx(
        sum(cells) / len(cells), rel=1e-4
    )


@pytest.mark.slow
def test_one_word_swaps_the_model(workspace, capsys):
    write_config(
        workspace,
        workspace / "tables/spec.yaml",
        name="rival",
        model=MODEL | {"name": "mmoe"},
        evaluation={},
    )
    run_again(workspace, capsys, "rival.yaml")
    run = workspace / "runs" / "rival"
    metrics = files.read_json(run / "metrics.json")
    assert set(metrics["forecasts"]) > {"mmoe", "mmoe_median"}
    assert len(list((run / "plots").glob("*.png"))) == 3
    assert "mmoe on clinics" in (run / "report.html").read_text()
    assert pl.read_parquet(run / "forecasts.parquet").height == 36


@pytest.mark.slow
def test_refit_serves_what_has_learned_from_all_days(
    workspace, capsys, monkeypatch
):
    tables = shutil.copytree(workspace / "tables", workspace / "changing")
    write_config(
        workspace,
        tables / "spec.yaml",
        name="fresh",
        evaluation={},
        refit=True,
    )
    panel, evaluate = tables / "panel.parquet", steps.evaluate
    at_first = panel.read_bytes()

    def change_and_evaluate(work):
        pl.read_parquet(panel).write_parquet(panel, compression="gzip")
        evaluate(work)

    # The run goes on with the records of the tables as they were.
    with monkeypatch.context() as patch:
        patch.setattr(steps, "evaluate", change_and_evaluate)
        out = run_again(workspace, capsys, "fresh.yaml")
    assert panel.read_bytes() != at_first
    panel.write_bytes(at_first)
    assert "[4/7] refit: done" in out
    run = workspace / "runs" / "fresh"
    version = workspace / "saved_models/fresh/1"
    through = [
        files.read_json(place / CONTRACT_FILE)["trained_through"]
        for place in (version, version / EVALUATED_FOLDER)
    ]
    assert through == ["2025-06-28", "2025-05-31"]
    forecasts, before = (
        pl.read_parquet(workspace / "runs" / name / "forecasts.parquet")
        for name in ("fresh", "clinics")
    )
    assert forecasts.height == before.height
    assert not forecasts.equals(before)
    # The scores are of the model that has not seen the test split.
    scores, same = (
        files.read_json(workspace / "runs" / name / "metrics.json")
        for name in ("fresh", "clinics")
    )
    assert scores["overall"] == same["overall"]
    assert scores["data_fingerprint"] == same["data_fingerprint"]
    told = [
        "trained anew on all days" in (folder / "report.html").read_text()
        for folder in (run, workspace / "runs" / "clinics")
    ]
    assert told == [True, False]
    assert not list(run.rglob(".tmp-*"))
    again = run_again(workspace, capsys, "fresh.yaml")
    assert again.count("unchanged, skipped") == 7
    # As records that were made anew while a run had no refit.
    (path,) = run.rglob("preprocessor_of_all_days.json")
    path.unlink()
    assert cli.main(["export", str(run)]) == 0


@pytest.mark.slow
def test_second_run_skips_everything(workspace, capsys):
    out = run_again(workspace, capsys)
    assert out.count("unchanged, skipped") == 6
    assert "running" not in out


@pytest.mark.slow
def test_evaluate_export_push_and_rollback(workspace, capsys):
    run = workspace / "runs" / "clinics"
    served = workspace / "saved_models" / "elsewhere"
    before = files.read_json(run / "metrics.json")
    assert cli.main(["evaluate", str(run)]) == 0
    assert files.read_json(run / "metrics.json") == before
    assert cli.main(["export", str(run)]) == 0
    assert "evaluate: unchanged" in capsys.readouterr().out
    card = (run / "saved_model/1/assets.extra/model_card.md").read_text()
    assert f"{before['overall']['nmae']:.3f}" in card
    for _ in range(2):
        # Once: it is the same model.
        assert cli.main(["push", str(run), "--to", str(served)]) == 0
    assert "elsewhere/1" in capsys.readouterr().out
    contract = served / "1" / CONTRACT_FILE
    files.write_json(contract, files.read_json(contract) | {"model": "before"})
    assert cli.main(["push", str(run), "--to", str(served)]) == 0
    assert cli.main(["rollback", str(served)]) == 0
    assert "elsewhere/3" in capsys.readouterr().out
    assert [path.name for path in versions_of(served)] == ["1", "2", "3"]


@pytest.mark.slow
def test_predict_command(workspace, capsys):
    output = workspace / "out.parquet"
    status = cli.main(
        [
            "predict",
            "--model",
            str(workspace / "saved_models" / "clinics"),
            "--spec",
            str(workspace / "tables" / "spec.yaml"),
            "--cutoff",
            "2025-06-28",
            "--output",
            str(output),
        ]
    )
    assert status == 0 and "36 forecasts" in capsys.readouterr().out
    theirs = pl.read_parquet(workspace / "runs/clinics/forecasts.parquet")
    assert pl.read_parquet(output).equals(theirs)


@pytest.mark.slow
def test_killed_run_goes_on_and_leaves_nothing_half(tmp_path):
    spec = write_clinic_tables(tmp_path / "tables")
    config = write_config(
        tmp_path, spec, evaluation={}, training=TRAINING | {"epochs": 4}
    )
    command = [sys.executable, "-m", "pipelines.cli", "run", str(config)]
    history = tmp_path / "runs/clinics/training/history.json"
    temporary = tmp_path / "temporary"
    temporary.mkdir()

    def stopped_by(number, epochs):
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ | {"TMPDIR": str(temporary)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            if history.exists() and len(files.read_json(history)) >= epochs:
                break
            time.sleep(0.05)
        os.kill(process.pid, number)
        return process.communicate(timeout=60)[1], process.returncode

    told, status = stopped_by(signal.SIGTERM, epochs=1)
    assert "interrupted; run the same command again" in told and status == 130
    assert not list(temporary.iterdir())
    assert stopped_by(signal.SIGKILL, epochs=2)[1] == -signal.SIGKILL
    state = tmp_path / "runs/clinics/steps"
    assert files.read_json(state / "records.json")["done"]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert "records: unchanged, skipped" in result.stdout
    assert (tmp_path / "saved_models/clinics/1/saved_model.pb").exists()
    assert not list(tmp_path.rglob(".tmp-*/saved_model.pb"))


def test_a_command_says_what_it_has_to_say_alone(tmp_path):
    spec = write_clinic_tables(tmp_path / "tables")
    command = [sys.executable, "-m", "pipelines.cli", "validate", str(spec)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=300
    )
    assert result.stderr == ""
    assert result.stdout.startswith("valid: ")
    assert result.stdout.count("\n") == 1


def fake_steps(monkeypatch, ran):
    """Steps that write a file each, to see which of them run."""

    def make(name, output):
        def run(work):
            ran.append(name)
            files.write_text(work.folder / output, name)
            if name == "train":
                files.write_text(work.folder / "training/history.json", "[]")

        return run

    for name, output in (
        ("make_records", "records"),
        ("train", "training/model.keras"),
        ("predict", "forecasts.parquet"),
    ):
        monkeypatch.setattr(steps, name, make(name, output))

    def evaluate(work):
        ran.append("evaluate")
        for name in (
            "metrics.json",
            "test_forecasts.parquet",
            "plots",
            "report.html",
        ):
            files.write_text(work.folder / name, "")

    def export(work):
        ran.append("export")
        files.write_text(work.exported / "1", "")

    def push(work):
        ran.append("push")
        files.write_text(work.served / "1" / "saved_model.pb", "")

    monkeypatch.setattr(steps, "evaluate", evaluate)
    monkeypatch.setattr(steps, "export", export)
    monkeypatch.setattr(steps, "push", push)
    for check in ("check_tables", "check_model"):
        monkeypatch.setattr(steps, check, lambda work: None)


def test_only_steps_with_changed_inputs_run_again(tmp_path, monkeypatch):
    spec = write_clinic_tables(tmp_path / "tables", entities=2, days=60)
    ran = []
    fake_steps(monkeypatch, ran)

    def run(**changes):
        ran.clear()
        local_runner.run_pipeline(
            RunConfig.load(write_config(tmp_path, spec, **changes)),
            tmp_path / "runs",
            tmp_path / "models",
            report=lambda line: None,
        )
        return list(ran)

    every = ["make_records", "train", "evaluate", "export", "push", "predict"]
    assert run() == every
    assert run() == []
    # The same model is not published twice.
    assert run(push={"tolerance": 2.0}) == []
    # Nor, or forecast with, once it has been rolled back from.
    with monkeypatch.context() as patch:
        patch.setattr(pushing, "is_withdrawn", lambda *_: True)
        assert run() == ["push", "predict"]
    assert run() == ["push", "predict"]
    # Each file that a later step reads must be there.
    (tmp_path / "runs/clinics/training/model.keras").unlink()
    assert run() == ["train"]
    assert run(evaluation={"lightgbm": False}) == every[2:]
    assert (
        run(evaluation={"lightgbm": False}, training=TRAINING | {"seed": 1})
        == (every[1:])
    )
    pl.read_csv(tmp_path / "tables/profile.csv").with_columns(
        beds=pl.lit(1.0)
    ).write_csv(tmp_path / "tables/profile.csv")
    assert run(
        evaluation={"lightgbm": False}, training=TRAINING | {"seed": 1}
    ) == (every)
    (tmp_path / "runs/clinics/forecasts.parquet").unlink()
    assert run(
        evaluation={"lightgbm": False}, training=TRAINING | {"seed": 1}
    ) == ["predict"]


def test_what_cannot_work_costs_nothing(tmp_path, monkeypatch):
    spec = write_clinic_tables(tmp_path / "tables", entities=2, days=60)
    ran = []
    fake_steps(monkeypatch, ran)

    def run(**changes):
        local_runner.run_pipeline(
            RunConfig.load(write_config(tmp_path, spec, **changes)),
            tmp_path / "runs",
            tmp_path / "models",
            report=lambda line: None,
        )

    run()
    outputs = sorted((tmp_path / "runs").rglob("*"))

    def refuse(work):
        raise ValueError("refused")

    ran.clear()
    with monkeypatch.context() as patch:
        patch.setattr(steps, "check_model", refuse)
        config = (tmp_path / "runs" / "clinics" / "config.json").read_text()
        with pytest.raises(ValueError, match="refused"):
            run(training=TRAINING | {"seed": 1})
        assert sorted((tmp_path / "runs").rglob("*")) == outputs
        # What is there is of the settings before, which go on telling of it.
        told = (tmp_path / "runs" / "clinics" / "config.json").read_text()
        assert told == config
        spec.rename(spec.with_suffix(".away"))
        with pytest.raises(ValueError, match="spec.yaml: cannot be read"):
            run(training=TRAINING | {"seed": 1})
        spec.with_suffix(".away").rename(spec)
        told = (tmp_path / "runs" / "clinics" / "config.json").read_text()
        assert told == config
    # The right settings again: nothing is to be done.
    run()
    assert ran == []
    shutil.rmtree(tmp_path / "models" / "clinics" / "1")
    run()
    assert ran == ["push"]


def test_what_a_crash_has_left_stops_no_run(tmp_path, monkeypatch):
    """Links for outputs, and notes without content."""
    spec = write_clinic_tables(tmp_path / "tables", entities=2, days=60)
    ran = []
    fake_steps(monkeypatch, ran)
    config = RunConfig.load(write_config(tmp_path, spec))
    folders = tmp_path / "runs", tmp_path / "models"

    def run():
        ran.clear()
        local_runner.run_pipeline(config, *folders, report=lambda line: None)
        return list(ran)

    run()
    run_folder = tmp_path / "runs" / "clinics"
    elsewhere = tmp_path / "disk"
    (run_folder / "records").unlink()
    (elsewhere / "old").mkdir(parents=True)
    (run_folder / "records").symlink_to(elsewhere)
    (run_folder / "steps" / "records.json").write_text("")
    assert run() == ["make_records"]
    assert elsewhere.is_dir() and not (elsewhere / "old").exists()
    (run_folder / "config.json").write_text("")
    with pytest.raises(local_runner.RunError, match="config.json: is no JSON"):
        local_runner.load_run(run_folder)


def test_an_export_of_former_settings_is_not_pushed(tmp_path, monkeypatch):
    spec = write_clinic_tables(tmp_path / "tables", entities=2, days=60)
    fake_steps(monkeypatch, [])
    config = RunConfig.load(write_config(tmp_path, spec))
    folders = tmp_path / "runs", tmp_path / "models"
    local_runner.run_pipeline(config, *folders, report=lambda line: None)
    work = Workspace(config, *folders)
    local_runner.require_done(work, "export")
    other = dataclasses.replace(
        config, training=dataclasses.replace(config.training, seed=1)
    )
    work = Workspace(other, *folders)
    with pytest.raises(local_runner.RunError, match="Run `m2m-tf run` with"):
        local_runner.require_done(work, "export")


def test_nothing_is_trained_where_a_run_is_only_scored_or_exported(
    tmp_path, monkeypatch, capsys
):
    tables = tmp_path / "tables"
    spec = write_clinic_tables(tables, entities=2, days=60)
    ran = []
    fake_steps(monkeypatch, ran)
    config = RunConfig.load(write_config(tmp_path, spec))
    local_runner.run_pipeline(config, tmp_path / "runs", tmp_path / "models")
    beds = pl.read_csv(tables / "profile.csv").with_columns(beds=pl.lit(1.0))
    beds.write_csv(tables / "profile.csv")
    ran.clear()
    run = tmp_path / "runs" / "clinics"
    for command in ("evaluate", "export"):
        assert cli.main([command, str(run)]) == 2
        assert "step 'records' is not done" in capsys.readouterr().err
    assert ran == [] and (run / "training" / "model.keras").exists()


def test_an_interrupt_is_one_whatever_it_becomes(monkeypatch, capsys):
    def interrupted(options):
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        # As TensorFlow does where it calls Python.
        raise AttributeError("no keys")

    monkeypatch.setattr(cli, "_validate", interrupted)
    assert cli.main(["validate", "spec.yaml"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_two_runs_of_one_folder_do_not_mix(tmp_path, monkeypatch):
    spec = write_clinic_tables(tmp_path / "tables", entities=2, days=60)
    fake_steps(monkeypatch, [])
    config = RunConfig.load(write_config(tmp_path, spec))

    def run(work=None):
        local_runner.run_pipeline(
            config, tmp_path / "runs", tmp_path / "models"
        )

    with monkeypatch.context() as patch:
        patch.setattr(steps, "train", run)
        with pytest.raises(RuntimeError, match="another run is going on"):
            run()
    run()


def test_another_format_of_records_is_written_anew(tmp_path, monkeypatch):
    config = RunConfig(name="clinics", data=write_clinic_tables(tmp_path))
    ran = []
    fake_steps(monkeypatch, ran)
    for version in ("1.0.0", "1.0.0", "9.0.0"):
        monkeypatch.setattr(steps.tfds_builder.PanelSeries, "VERSION", version)
        local_runner.run_pipeline(config, tmp_path / "runs", until="records")
    assert ran == ["make_records"] * 2


def test_a_source_adds_a_step_that_makes_tables():
    config = RunConfig(name="x", data={"name": "complete_journey"})
    assert make_steps(config)[0].name == "tables"


def test_validate_command(clinic_spec, capsys):
    path = clinic_spec.panel.parent / "spec.yaml"
    assert cli.main(["validate", str(path)]) == 0
    assert "valid: 12 entities" in capsys.readouterr().out


def test_bad_input_is_one_message_and_status_2(tmp_path, capsys):
    assert cli.main(["run", str(tmp_path / "no.yaml")]) == 2
    captured = capsys.readouterr().err
    assert "no.yaml: cannot be read" in captured
    assert "Traceback" not in captured
    assert cli.main(["evaluate", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_a_run_is_named_as_its_folder(tmp_path):
    config = RunConfig(name="before", data=tmp_path / "spec.yaml")
    files.write_json(tmp_path / "after" / "config.json", to_values(config))
    with pytest.raises(local_runner.RunError, match="spec.*not at .*moved"):
        local_runner.load_run(tmp_path / "after")
    config.data.touch()
    assert local_runner.load_run(tmp_path / "after").name == "after"


def test_a_copied_project_reads_its_own_tables(tmp_path, monkeypatch):
    spec = write_clinic_tables(
        tmp_path / "project" / "tables", entities=2, days=60
    )
    fake_steps(monkeypatch, [])
    config = RunConfig.load(write_config(tmp_path / "project", spec))
    local_runner.run_pipeline(config, tmp_path / "project" / "runs")
    shutil.copytree(tmp_path / "project", tmp_path / "copy")
    for project in ("project", "copy"):
        run = local_runner.load_run(tmp_path / project / "runs" / "clinics")
        assert run.data.is_relative_to(tmp_path / project)
        assert run.data.exists()


def test_a_missing_extra_is_reported_before_any_work(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    monkeypatch.chdir(tmp_path)
    spec = write_clinic_tables(tmp_path / "tables", entities=2, days=60)
    assert cli.main(["run", str(write_config(tmp_path, spec))]) == 2
    assert "m2m_tf[lightgbm]" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_help_does_not_wait_for_tensorflow():
    script = (
        "import sys\nfrom pipelines import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: print('tensorflow' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout.endswith("False\n")


def test_help_of_each_command_has_an_example(capsys):
    commands = ("validate", "run", "train", "evaluate", "export", "predict")
    for name in (*commands, "push", "rollback", "simulate", "compare"):
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        assert f"example: m2m-tf {name}" in capsys.readouterr().out
