"""Lets a model into the folder that a server watches, or keeps it out."""

import collections
import contextlib
import dataclasses
import datetime
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from m2m_tf import evaluation, files
from m2m_tf.baselines import naive
from m2m_tf.config import PushSettings
from m2m_tf.data import schema, windows
from m2m_tf.data.dataset import ForecastData
from m2m_tf.export import (
    CONTRACT_FILE,
    EVALUATED_FOLDER,
    EXTRA_FOLDER,
    DamagedModel,
    load_version,
)
from m2m_tf.signatures import (
    EXPLAIN,
    PREDICT,
    PREDICT_ALL_SCENARIOS,
    serialize_example,
)
from m2m_tf.versions import (
    SAVED_MODEL_FILE,
    latest_version,
    next_version,
    versions_of,
)

RECEIPT_FILE = f"{EXTRA_FOLDER}/push.json"
_LOCK_FILE = ".push.lock"
_WEIGHTS_FILE = "variables/variables.data-00000-of-00001"
_BATCH = 1024
_CANDIDATE, _REFIT, _SERVING = "candidate", "refit", "serving"
_MODELS = (_CANDIDATE, _REFIT, _SERVING)
_NAIVE = (naive.LAST_WEEK, naive.HISTORY_MEAN)
# What must not differ between a version and the next: callers rely on it.
_FIXED = ("lookback", "horizon")
_FIXED_PARTS = ("inputs", "sequence_columns")
# A score below this share of the mean label is as good as perfect, and the
# tolerance is of this much: a naive forecast of what never changes is perfect.
_NEGLIGIBLE = 0.1
_SMOKE_ROWS = 16
_SMOKE_SECONDS = 300
# Answers where neither this library nor its layers can be imported.
_SMOKE_SCRIPT = """
import sys
sys.modules["m2m_tf"] = None
import numpy as np, tensorflow as tf
examples = [x.numpy() for x in tf.data.TFRecordDataset(sys.argv[2])]
model = tf.saved_model.load(sys.argv[1])
forecasts = model.signatures["serving_default"](examples=tf.constant(examples))
np.savez(sys.argv[3], **{k: v.numpy() for k, v in forecasts.items()})
"""


class PushRefused(RuntimeError):
    """A model that must not take the place of the one that is served."""


def push(
    candidate: str | os.PathLike,
    data: ForecastData,
    folder: str | os.PathLike,
    settings: PushSettings | None = None,
) -> pathlib.Path:
    """Publishes a model as the next version, if it is no step back.

    Of a model that was trained anew on all days (`training.refit`), the one
    that was evaluated before is judged in its place, and compared with that of
    the newest version. Test rows whose days the latter was trained on, as
    after another `split`, do not count. The refit model itself must be no
    worse than the naive forecasts there.

    On the same test rows no slice (task × scenario) of at least `min_samples`
    rows may be worse than the naive forecasts, or than the newest version of
    the folder, by more than `tolerance`: in the Poisson deviance of the mean
    and, against the version, in the NMAE of the median. (Of a score below a
    tenth of the mean label, the tolerance is of that tenth; where all labels
    are 0, of the task's usual mean.) All forecasts
    must be finite and not negative, and a process of its own must load the
    model and give the same ones. The version's inputs and outputs must still
    be there, and so must its scenarios; new ones only if the settings say so.
    The model that is served already, of whatever export, is not published
    once more.

    The version appears by a rename: a crash at any moment leaves the folder
    with the old versions, or with the new one as well.

    Args:
        candidate: Folder of the SavedModel or of its versions.
        data: The data whose test split decides.
        folder: Folder that the server watches.
        settings: Tolerances, and how many versions are kept.

    Returns:
        Folder of the published version, or of the newest one if it is the
        same model.

    Raises:
        PushRefused: If the model fails a check; nothing has changed.
        FileNotFoundError: If there is no candidate.
        RuntimeError: If another push into the folder is going on.

    Example:

    >>> settings = PushSettings(tolerance=10.0)
    >>> push("saved_models/clinics", data, "served", settings).name
    '1'
    """
    settings = settings or PushSettings()
    source = latest_version(candidate).resolve()
    folder = pathlib.Path(folder)
    _check_place(folder)
    with _only_push(folder):
        versions = versions_of(folder)
        version = next_version(folder)
        serving = versions[-1] if versions else None
        if serving is not None:
            if lacking := _lacking(serving):
                raise PushRefused(
                    f"{serving}: is no whole version, {lacking} is missing. "
                    "Remove the folder, or copy it there whole."
                )
            if _same(source, serving):
                return serving
            _check_same_contract(source, serving, settings.new_scenarios)
        # Judged is the copy that is published: what lies at the source may
        # be replaced meanwhile.
        with files.replacing(version) as copy:
            shutil.copytree(source, copy)
            receipt = _judge(copy, source, serving, data, settings)
            files.write_json(copy / RECEIPT_FILE, receipt)
        _keep_last(folder, settings.keep)
    return version


def _check_place(folder):
    """A model goes into a folder of versions, and nowhere else."""
    if (folder / SAVED_MODEL_FILE).exists():
        raise PushRefused(
            f"{folder}: is a version itself. Give the folder that it lies in."
        )
    if not folder.is_dir():
        return
    others = [
        path.name
        for path in folder.iterdir()
        if not path.name.startswith(".") and not path.name.isdigit()
    ]
    if others and not versions_of(folder):
        raise PushRefused(
            f"{folder}: holds other things than versions of a model "
            f"({sorted(others)[0]!r}). Give a folder of its own."
        )


def _judge(copy, source, serving, data, settings):
    """The receipt of a copy of the candidate that may be published."""
    model = _model_of(copy)
    withdrawn_models = _withdrawn_models(serving) if serving else []
    if model in withdrawn_models:
        raise PushRefused(
            f"{source}: this model has been rolled back from. Train another "
            f"one, or push to another folder than {copy.parent}."
        )
    rivals = {_CANDIDATE: copy}
    if (judged := _judged(copy)) != copy:
        rivals = {_CANDIDATE: judged, _REFIT: copy}
    if serving is not None:
        rivals[_SERVING] = _judged(serving)
    try:
        sample, first, wrong = _forecast_test_rows(rivals, data)
    except DamagedModel as error:
        # Its copy, which goes, has another name than the candidate.
        raise PushRefused(str(error).replace(str(copy), str(source))) from error
    served_tasks = ()
    if _SERVING in sample:
        contract = files.read_json(serving / CONTRACT_FILE)
        served_tasks = [task["name"] for task in contract["tasks"]]
    problems = [
        f"{count} forecasts of {output} ({key}) are negative or not finite"
        for (key, output), count in wrong.items()
    ]
    if not problems:
        slices, problems = _compare(data, sample, settings, served_tasks)
    if problems:
        raise PushRefused(_refusal(source, serving, problems))
    _check_fresh_process(copy, source, *first)
    return {
        "pushed": _now(),
        "from": str(source),
        "model": model,
        "compared_with": int(serving.name) if _SERVING in sample else None,
        "settings": dataclasses.asdict(settings),
        "slices": slices,
        "withdrawn": _withdrawn(serving) if serving else [],
        "withdrawn_models": withdrawn_models,
    }


def rollback(folder: str | os.PathLike) -> pathlib.Path:
    """Publishes the version before the newest one again, as a new version.

    Numbers never go back, so that a server, and whoever reads its logs, sees
    one more version. After a rollback, another one goes a version further
    back. What has been rolled back from is never published again, nor what is
    no whole version.

    Args:
        folder: Folder that the server watches.

    Returns:
        Folder of the published version.

    Raises:
        PushRefused: If there is no version to go back to.

    Example:

    >>> rollback("served")  # Of versions 1 and 2, version 1 again.
    PosixPath('served/3')
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise PushRefused(f"{folder}: there is no such folder.")
    with _only_push(folder):
        versions = versions_of(folder)
        if not versions:
            raise PushRefused(f"{folder}: holds no version.")
        newest = _origin(versions[-1])
        withdrawn = sorted({*_withdrawn(versions[-1]), newest})
        withdrawn_models = _withdrawn_models(versions[-1])
        earlier = [
            path
            for path in versions
            if not _lacking(path)
            and _origin(path) not in withdrawn
            and _model_of(path) not in withdrawn_models
        ]
        # Where a model was pushed twice, back is another one.
        others = [path for path in earlier if not _same(path, versions[-1])]
        newest_first = reversed(others or earlier)
        back = next(filter(_can_be_loaded, newest_first), None)
        if back is None:
            raise PushRefused(
                f"{folder}: no version before {newest} is left to go back to. "
                f"There are {[int(path.name) for path in versions]}"
                + (
                    f", and {before} were rolled back from."
                    if (before := _withdrawn(versions[-1]))
                    else "."
                )
            )
        receipt = _receipt(back) | {
            "pushed": _now(),
            "copy_of": _origin(back),
            "withdrawn": withdrawn,
            "withdrawn_models": _withdrawn_models(versions[-1], back),
        }
        return _publish(back, folder, receipt)


def is_withdrawn(
    candidate: str | os.PathLike, folder: str | os.PathLike
) -> bool:
    """Whether a model has been rolled back from in a folder of versions.

    Example:

    >>> is_withdrawn("saved_models/clinics", "served")
    False
    """
    versions = versions_of(folder)
    withdrawn = _withdrawn_models(versions[-1]) if versions else []
    return bool(withdrawn) and _model_of(latest_version(candidate)) in withdrawn


@contextlib.contextmanager
def _only_push(folder):
    """Holds the folder's lock; clears what killed pushes have left."""
    message = (
        f"{folder}: another push is going on. Try again when it has ended."
    )
    with files.only_one(folder / _LOCK_FILE, message):
        files.remove_abandoned(folder)
        yield


def _check_same_contract(candidate, serving, new_scenarios):
    ours, theirs = (
        files.read_json(version / CONTRACT_FILE)
        for version in (candidate, serving)
    )
    parts = [f"{key} differs" for key in _FIXED if ours[key] != theirs[key]]
    for key in _FIXED_PARTS:
        differing = sorted(
            name
            for name in {*ours[key], *theirs[key]}
            if ours[key].get(name) != theirs[key].get(name)
        )
        parts += [f"{key} {name} differs" for name in differing]
    missing = sorted(set(theirs["outputs"]) - set(ours["outputs"]))
    parts += [f"output {name} is missing" for name in missing]
    # Contracts of early versions have none.
    missing = sorted(set(theirs.get("signatures", ())) - {*ours["signatures"]})
    parts += [f"signature {name} is missing" for name in missing]
    tasks = {task["name"]: task for task in ours["tasks"]}
    for task in theirs["tasks"]:
        now = tasks.get(task["name"], task)
        if now != task:
            parts.append(
                f"{task['name']} was the {task['kind']} of {task['column']} "
                f"and is the {now['kind']} of {now['column']}"
            )
    order = [task["name"] for task in theirs["tasks"]]
    if (
        EXPLAIN in theirs.get("signatures", ())
        and set(order) <= set(tasks)
        and list(tasks)[: len(order)] != order
    ):
        parts.append(
            f"tasks do not begin with {order}, which is an axis of {EXPLAIN}"
        )
    known, before = set(ours["scenarios"]), set(theirs["scenarios"])
    if gone := sorted(before - known):
        parts.append(f"scenarios {gone} are gone")
    if (new := sorted(known - before)) and not new_scenarios:
        parts.append(
            f"scenarios {new} are new, which changes the shapes of "
            f"{PREDICT_ALL_SCENARIOS} (allow it by `push: {{new_scenarios: "
            "true}` in the run's config, and `m2m-tf run` it again)"
        )
    if parts:
        raise PushRefused(
            f"{candidate}: callers of version {serving.name} would break: "
            f"{', '.join(parts)}. Push it to a folder of its own."
        )


def _forecast_test_rows(versions, data):
    """Labels, scenarios, and forecasts of all versions and naive ones.

    Beside them the first rows by themselves: what the model to be published
    was given, and what it said; and how many values of which output of it
    are negative or not finite. A served version with such values is left out:
    nothing can be worse. Rows that it was trained on are left out, too.
    """
    published = _REFIT if _REFIT in versions else _CANDIDATE
    spec = data.spec
    names = list(schema.raw_features(spec))
    # The models live as long as their signatures are used.
    models = {key: load_version(path) for key, path in versions.items()}
    parts = {}
    first = None
    wrong = collections.Counter()
    for raw in tqdm(
        data.raw("test", _BATCH).as_numpy_iterator(),
        total=-(-data.num_samples("test") // _BATCH),
        desc="checking",
        unit=" batches",
        mininterval=2,
    ):
        inputs = {name: raw[name] for name in names}
        row = {
            "y_true": raw[windows.LABELS],
            "scenario": schema.as_text(raw[schema.SCENARIO]),
            "cutoff": raw[schema.CUTOFF],
        }
        for key, model in models.items():
            told = model.signatures[PREDICT](
                **{name: tf.constant(x) for name, x in inputs.items()}
            )
            # A task that a served version has not is not compared with it.
            tasks = [task for task in spec.task_names if task in told]
            row[key] = _columns(told, spec, "mean", row.get(_CANDIDATE))
            for name, values in told.items() if key != _SERVING else ():
                values = values.numpy()
                if count := int((~np.isfinite(values) | (values < 0)).sum()):
                    wrong[key, name] += count
            if schema.output_name(tasks[0], "median") in told:
                row[key + evaluation.MEDIAN_SUFFIX] = _columns(
                    told, spec, "median", row[_CANDIDATE]
                )
            if not parts and key == published:
                first = tuple(
                    {k: np.asarray(x)[:_SMOKE_ROWS] for k, x in values.items()}
                    for values in (inputs, told)
                )
        row |= naive.naive_forecasts(spec, raw)
        for name, values in row.items():
            parts.setdefault(name, []).append(values)
    sample = {name: np.concatenate(x) for name, x in parts.items()}
    served = [name for name in sample if name.startswith(_SERVING)]
    if not all(
        np.isfinite(sample[name]).all() and (sample[name] >= 0).all()
        for name in served
    ):
        sample = _without_serving(sample)
    elif served:
        sample = _unseen(sample, versions[_SERVING])
    return sample, first, wrong


def _without_serving(sample):
    return {
        name: values
        for name, values in sample.items()
        if not name.startswith(_SERVING)
    }


def _unseen(sample, served):
    """The rows whose labels a served model has not been trained on.

    They are all rows unless splits have changed or tables become shorter.
    Where none are left it cannot be compared with.
    """
    # Contracts of early versions have none.
    told = files.read_json(served / CONTRACT_FILE).get("trained_through")
    if told is None:
        return sample
    unseen = sample["cutoff"] >= np.datetime64(told, "D").astype("int64")
    if not unseen.any():
        return _without_serving(sample)
    return {name: values[unseen] for name, values in sample.items()}


def _columns(told, spec, part, otherwise):
    """Values `[B, T]`, those of `otherwise` for tasks that are not told."""
    columns = []
    for index, task in enumerate(spec.task_names):
        values = told.get(schema.output_name(task, part))
        columns.append(
            otherwise[:, index, None] if values is None else values.numpy()
        )
    return np.concatenate(columns, axis=1)


def _judged(version):
    """Where the model lies that a version's scores are of."""
    evaluated = version / EVALUATED_FOLDER
    return evaluated if evaluated.exists() else version


def _check_fresh_process(candidate, source, inputs, expected):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        with tf.io.TFRecordWriter(str(folder / "examples")) as writer:
            for index in range(len(inputs[schema.CUTOFF])):
                row = {name: values[index] for name, values in inputs.items()}
                writer.write(serialize_example(row))
        # It runs elsewhere.
        path = str(candidate.resolve())
        command = [sys.executable, "-c", _SMOKE_SCRIPT, path]
        command += [str(folder / "examples"), str(folder / "forecasts.npz")]
        try:
            subprocess.run(
                command,
                check=True,
                capture_output=True,
                text=True,
                timeout=_SMOKE_SECONDS,
                cwd=folder,
            )
        except subprocess.SubprocessError as error:
            output = (getattr(error, "stderr", None) or str(error)).strip()
            raise PushRefused(
                f"{source}: a process of its own cannot answer with it: "
                f"{output.splitlines()[-1]}"
            ) from error
        told = np.load(folder / "forecasts.npz")
        for name, values in expected.items():
            if not np.allclose(told[name], values, rtol=1e-4, atol=1e-5):
                raise PushRefused(
                    f"{source}: a process of its own gives other forecasts "
                    f"of {name}: {told[name].ravel()[:3]} instead of "
                    f"{values.ravel()[:3]}."
                )


def _compare(data, sample, settings, served_tasks):
    """Scores of each slice, and what is wrong with the candidate."""
    scenario = _pooled(sample["scenario"], settings.min_samples)
    names = sorted(set(scenario))
    tasks = data.spec.task_names
    scores = evaluation.evaluate_forecasts(
        sample["y_true"],
        {
            name: values
            for name, values in sample.items()
            if name in _NAIVE or name.startswith(_MODELS)
        },
        np.searchsorted(names, scenario),
        tasks,
        names,
    )
    checks = [
        ("Poisson deviance", "poisson_deviance", _CANDIDATE, rival)
        for rival in (*_NAIVE, _SERVING)
        if rival in scores
    ]
    if _REFIT in scores:
        checks += [
            ("Poisson deviance", "poisson_deviance", _REFIT, rival)
            for rival in _NAIVE
        ]
    median = evaluation.MEDIAN_SUFFIX
    if _SERVING + median in scores:
        medians = (_CANDIDATE + median, _SERVING + median)
        checks.append(("NMAE of the median", "nmae", *medians))
    usual = dict(
        zip(tasks, data.preprocessor.statistics.label_means, strict=True)
    )
    slices, problems = [], []
    for index, cell in enumerate(scores[_CANDIDATE]["cells"]):
        row = {k: cell[k] for k in ("task", "scenario", "n")}
        row["judged"] = cell["n"] >= settings.min_samples or len(names) == 1
        for text, metric, ours, theirs in checks:
            if theirs.startswith(_SERVING) and cell["task"] not in served_tasks:
                continue
            value = scores[ours]["cells"][index][metric]
            bar = scores[theirs]["cells"][index][metric]
            row[f"{metric}_{ours}"], row[f"{metric}_{theirs}"] = value, bar
            if value is None or bar is None or not row["judged"]:
                continue
            # An NMAE is a share of the mean label already.
            unit = 1.0
            if metric == "poisson_deviance":
                # Where nothing happened, a naive forecast of 0 is perfect.
                unit = cell["mean_label"] or usual[cell["task"]]
            least = max(bar, _NEGLIGIBLE * unit)
            if value > bar + settings.tolerance * least:
                problems.append(
                    f"{cell['task']} in {cell['scenario']}: {text} of the "
                    f"{ours.removesuffix(median)} {value:.4g}, of "
                    f"{theirs.removesuffix(median)} {bar:.4g}"
                )
        slices.append(row)
    return slices, problems


def _pooled(scenario, min_samples):
    """Scenarios, with one name for all that have too few samples to judge.

    Together they may have enough; and a model of which no slice were judged
    could be anything.
    """
    names, place, counts = np.unique(
        scenario, return_inverse=True, return_counts=True
    )
    small = counts < min_samples
    if small.sum() < 2:
        return scenario
    pool = " + ".join(names[small])
    return np.where(small, pool, names.astype(object))[place]


def _refusal(candidate, serving, problems):
    lines = [f"{candidate}: refused, and nothing has changed."]
    lines += [f"  - {problem}" for problem in problems]
    if serving is not None:
        lines.append(f"`{_SERVING}` is version {serving.name}.")
    lines.append(
        "`push: {tolerance: ...}` in the run's config sets how much worse a "
        "slice may be, `min_samples` which slices count; then `m2m-tf run` it "
        "again. Forecasts of it all the same: `m2m-tf predict --model "
        f"{candidate.parent} ...`."
    )
    return "\n".join(lines)


def _model_of(version):
    """What a version's model is known by, in whatever export."""
    contract = files.read_json(version / CONTRACT_FILE)
    if "model" in contract:
        return contract["model"]
    # An export of before 0.7.0: its copies alone are known again.
    with open(version / _WEIGHTS_FILE, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _same(version, other):
    """Whether two versions are the same model, told in the same way."""
    return (
        not _lacking(other)
        and _model_of(version) == _model_of(other)
        and files.read_json(version / CONTRACT_FILE)
        == files.read_json(other / CONTRACT_FILE)
    )


def _publish(source, folder, receipt):
    version = next_version(folder)
    with files.replacing(version) as temporary:
        shutil.copytree(source, temporary)
        files.write_json(temporary / RECEIPT_FILE, receipt)
    return version


def _keep_last(folder, keep):
    for path in versions_of(folder)[:-keep]:
        # The name goes first, so that no half version is ever seen.
        files.remove_folder(path)


def _receipt(version):
    path = version / RECEIPT_FILE
    try:
        return files.read_json(path) if path.exists() else {}
    except ValueError as error:
        raise PushRefused(
            f"{path}: is no JSON, as after a copy that broke off. Copy the "
            f"version again or remove it. Received: {error}."
        ) from error


def _origin(version):
    """Number that a version had when it was pushed."""
    return _receipt(version).get("copy_of", int(version.name))


def _withdrawn(version):
    """Numbers of what had been rolled back from when it was published."""
    return _receipt(version).get("withdrawn", [])


def _withdrawn_models(version, in_its_place=None):
    """Models that had been rolled back from when a version was published.

    With what is published in its place, the version's own as well.
    """
    models = set(_receipt(version).get("withdrawn_models", []))
    if in_its_place is not None and not _lacking(version):
        models.add(_model_of(version))
        models.discard(_model_of(in_its_place))
    return sorted(models)


def _lacking(version):
    """What a version lacks to be served and compared with, if anything."""
    for name in (
        SAVED_MODEL_FILE,
        "variables/variables.index",
        _WEIGHTS_FILE,
        CONTRACT_FILE,
    ):
        if not (version / name).exists():
            return name
    return None


def _can_be_loaded(version):
    try:
        load_version(version)
    except DamagedModel as error:
        print(f"left out: {error}")
        return False
    return True


def _now():
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
