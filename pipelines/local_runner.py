"""Runs a pipeline on this machine: skips what is done, resumes what is not."""

import dataclasses
import os
import pathlib
import shutil
import time

from m2m_tf import __version__, files
from m2m_tf.config import (
    RunConfig,
    fingerprint,
    from_folder,
    parse,
    to_values,
)
from pipelines.pipeline import Step, Workspace, make_steps
from pipelines.steps import check_extras

_STATE_FOLDER = "steps"
_CONFIG_FILE = "config.json"
_LOCK_FILE = ".lock"


class RunError(ValueError):
    """A run folder that does not hold what was asked for."""


def run_pipeline(
    config: RunConfig,
    runs: str | os.PathLike = "runs",
    models: str | os.PathLike = "saved_models",
    until: str | None = None,
    force: str | None = None,
    report=print,
) -> pathlib.Path:
    """Runs the steps of a config and returns the run's folder.

    A step is skipped when its settings, its input tables and the steps before
    it are those of its last finished run and its outputs are still there. A
    step that was interrupted is started again; training goes on from its last
    finished epoch.

    Args:
        config: The run's config.
        runs: Folder of all runs.
        models: Folder of all exported models.
        until: Name of the last step to run; None runs all.
        force: Name of a step to run even if nothing has changed.
        report: Called with each line of progress.

    Raises:
        ImportError: If a step needs an extra that is not installed.
        RuntimeError: If the run's folder is in use by another.
    """
    check_extras(config)
    work = Workspace(config, pathlib.Path(runs), pathlib.Path(models))
    busy = (
        f"{work.folder}: another run is going on there. Wait for it, or give "
        "this one another name."
    )
    with files.only_one(work.folder / _LOCK_FILE, busy):
        _run_steps(work, until, force, report)
    return work.folder


def _run_steps(work, until, force, report):
    config = work.config
    path = work.folder / _CONFIG_FILE
    before = path.read_text(encoding="utf-8") if path.exists() else None
    files.write_json(path, _noted(work))
    steps = make_steps(config)
    if until is not None:
        names = [step.name for step in steps]
        steps = steps[: names.index(until) + 1]
    begun = False
    try:
        for number, (step, key) in enumerate(_with_keys(work, steps), start=1):
            label = f"[{number}/{len(steps)}] {step.name}"
            if step.name != force and _is_done(work, step, key):
                report(f"{label}: unchanged, skipped")
                continue
            report(f"{label}: running")
            started = time.monotonic()
            resumes = step.name != force and _has_noted(
                work, step, key, done=False
            )
            if not resumes:
                step.check(work)
            begun = True
            _run_step(work, step, key, resumes)
            report(f"{label}: done in {time.monotonic() - started:.0f} s")
    except BaseException:
        # What is there is of the config before.
        if before is not None and not begun:
            files.write_text(path, before)
        raise


def _noted(work):
    values = to_values(work.config)
    if isinstance(work.config.data, pathlib.Path):
        # A project that is copied or moved reads its own tables, not those
        # that it was copied from.
        values["data"] = os.path.relpath(
            work.config.data.resolve(), work.folder.resolve()
        )
    return values


def _with_keys(work, steps):
    """Each step and a hash of all that it and the steps before it depend on.

    One at a time: a step may make what the next one's settings are read from.
    """
    key = __version__
    for step in steps:
        key = fingerprint(key, step.name, step.settings(work))
        yield step, key


def require_done(work: Workspace, name: str) -> None:
    """Refuses a run in which a step is not done as its settings are now.

    Raises:
        RunError: If the step, or one before it, has to be run.
    """
    for step, key in _with_keys(work, make_steps(work.config)):
        if not _is_done(work, step, key):
            raise RunError(
                f"{work.folder}: step {step.name!r} is not done with the run's "
                "tables and settings, and this version of m2m_tf, as they are "
                "now. Run `m2m-tf run` with the run's config first."
            )
        if step.name == name:
            return


def load_run(folder: str | os.PathLike) -> RunConfig:
    """The config that a run folder was made from, named as the folder is now.

    Raises:
        RunError: If the folder holds no run.
    """
    folder = pathlib.Path(folder).resolve()
    path = folder / _CONFIG_FILE
    if not path.exists():
        raise RunError(
            f"{folder}: holds no run ({_CONFIG_FILE} is missing). Give a "
            "folder that `m2m-tf run` or `m2m-tf train` has made."
        )
    try:
        values = files.read_json(path)
    except ValueError as error:
        raise RunError(
            f"{path}: is no JSON, as after a crash. Run `m2m-tf run` with the "
            f"config again. Received: {error}."
        ) from error
    if "data" in values:
        values["data"] = from_folder(path, values["data"])
    config = parse(RunConfig, values, source=str(path))
    if isinstance(config.data, pathlib.Path) and not config.data.exists():
        raise RunError(
            f"{folder}: its spec is not at {config.data}. A run may be moved "
            "together with its tables; otherwise run `m2m-tf run` with its "
            "config again."
        )
    return dataclasses.replace(config, name=folder.name)


def _state_path(work, step):
    return work.folder / _STATE_FOLDER / f"{step.name}.json"


def _is_done(work: Workspace, step: Step, key: str) -> bool:
    return _has_noted(work, step, key, done=True) and all(
        output.exists() for output in step.outputs(work)
    )


def _has_noted(work, step, key, done):
    """Whether the step has noted this, and no crash left it unreadable.

    Not done with the same inputs, it was interrupted: what it has left is gone
    on with. Anything else would mix two runs.
    """
    path = _state_path(work, step)
    try:
        return path.exists() and files.read_json(path) == {
            "key": key,
            "done": done,
        }
    except ValueError:
        return False


def _run_step(work, step, key, resumes):
    path = _state_path(work, step)
    if not resumes and not step.keeps_outputs:
        for output in step.outputs(work):
            _remove(output)
    files.write_json(path, {"key": key, "done": False})
    step.run(work)
    files.write_json(path, {"key": key, "done": True})


def _remove(path):
    if path.is_symlink() and path.is_dir():
        # A folder on another disk: what is in it goes, the link stays.
        for part in path.iterdir():
            _remove(part)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
