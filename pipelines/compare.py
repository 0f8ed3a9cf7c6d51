"""`m2m-tf compare`: runs what a study lacks, then writes its page.

One small JSON file for each finished (dataset, model, seed) holds everything
that tables, intervals and plots are made of. What a file answers is never run
again, so a study goes on where it was stopped, on another machine too.
"""

import dataclasses
import importlib.metadata
import os
import pathlib
import shutil
import time

import numpy as np
import polars as pl

from m2m_tf import (
    __version__,
    comparison,
    evaluation_run,
    files,
    study_page,
    tensorboard,
    training,
)
from m2m_tf.baselines import naive
from m2m_tf.config import (
    ABLATIONS,
    NETWORKS,
    TREES,
    DatasetSpec,
    EarlierTables,
    SplitDates,
    StudyConfig,
    fingerprint,
    to_values,
)
from m2m_tf.data import schema, windows
from m2m_tf.data.dataset import ForecastData
from m2m_tf.data.panel import table_fingerprints
from m2m_tf.evaluation import MEDIAN_SUFFIX, evaluate_intervals
from m2m_tf.evaluation_run import ForecastError
from m2m_tf.models import unused_settings
from pipelines.steps import write_source_tables

LABELS_FILE = "labels.json"
_LOCK_FILE = ".lock"
_PACKAGES = ("tensorflow", "keras", "numpy", "lightgbm", "polars")


class StudyError(ValueError):
    """A study that was asked for something that it does not have."""


def run_study(
    config: StudyConfig,
    results: str | os.PathLike = "docs/results",
    runs: str | os.PathLike = "runs",
    sweep: str | None = None,
    command: str = "m2m-tf compare",
    report=print,
) -> pathlib.Path:
    """Runs what is missing and writes the page.

    Interrupted, it writes the page of what is finished. A training that
    diverges is noted on it, and the others go on.

    Args:
        config: The study.
        results: Folder of all results.
        runs: Folder of tables, records, TensorBoard logs and unfinished
            trainings.
        sweep: Setting of `config.sweeps` to run instead of the comparison.
        command: What the page says that it was made by.
        report: Called with each line of progress.

    Returns:
        Path of the page, `<results>/<name>.md`.

    Raises:
        StudyError: If the study has no such sweep, or its first dataset can't
            be swept over lookbacks.
        ImportError: If LightGBM takes part and is not installed.
        RuntimeError: If another comparison is going on in the same folders.
    """
    if sweep is not None and sweep not in config.sweeps:
        raise StudyError(
            f"`--sweep` must be one of {sorted(config.sweeps)}, which the "
            f"config lists under `sweeps`. Received: {sweep!r}."
        )
    if any(name in TREES for name in config.models):
        from m2m_tf.baselines import lightgbm

        lightgbm.import_lightgbm()
    study = _Study(
        config, pathlib.Path(results), pathlib.Path(runs), report=report
    )
    busy = (
        f"{study.work}: another comparison is going on there. Wait for it, or "
        "give this one another folder of runs."
    )
    with files.only_one(study.work / _LOCK_FILE, busy):
        try:
            if sweep is None:
                study.compare()
            else:
                study.sweep(sweep)
        except KeyboardInterrupt:
            study.write_page(command)
            raise
        return study.write_page(command)


@dataclasses.dataclass
class _Study:
    config: StudyConfig
    all_results: pathlib.Path
    runs: pathlib.Path
    report: object

    @property
    def results(self):
        return self.all_results / self.config.name

    @property
    def work(self):
        return self.runs / f"compare_{self.config.name}"

    def compare(self):
        config = self.config
        datasets = [_Dataset(self, label) for label in config.data]
        for dataset in datasets:
            dataset.check()
        chosen = {}
        for model in config.models:
            chosen[model] = self._search(datasets[0], model)
        # Seeds outermost: a study that is stopped early compares all models.
        for seed in config.seeds:
            for dataset in datasets:
                for model in config.models:
                    if chosen[model] is not None:
                        self._score(dataset, model, chosen[model], seed)

    def sweep(self, setting):
        values = self.config.sweeps[setting]
        label = next(iter(self.config.data))
        dataset = _Dataset(self, label)
        dataset.check()
        datasets = dict.fromkeys(values, dataset)
        if setting == "lookback":
            datasets = {
                value: _Dataset(self, label, value, min(values))
                for value in values
            }
            for swept in datasets.values():
                swept.load_spec()  # Refused before the search's trainings.
        dataset.prepare()  # The page tells of it, whatever is swept.
        changes = self._search(dataset, "m2m")
        if changes is None:
            raise StudyError(
                f"Every candidate of M2M has failed, see {self.results}.md, so "
                "there is nothing to sweep. Give `search` others."
            )
        for seed in self.config.seeds:
            for value in values:
                merged = _swept_changes(changes, setting, value)
                name = self._sweep_name(setting, value)
                self._score(datasets[value], "m2m", merged, seed, name)

    def write_page(self, command):
        return study_page.write_page(
            self.config, self.results, self.collect(), command=command
        )

    def collect(self):
        """Everything that the study's files tell, for the page."""
        chosen = {}
        search = {}
        first = _Dataset(self, next(iter(self.config.data)))
        for model in self.config.models:
            search[model] = self._tried(first, model)
            if all(trial["result"] for trial in search[model]):
                changes = _best(search[model])
                if changes is not None:
                    chosen[model] = changes
        datasets = {}
        for label in self.config.data:
            dataset = _Dataset(self, label)
            if not (dataset.folder / LABELS_FILE).exists():
                continue
            found = {}
            for model, changes in chosen.items():
                key = self._key(model, changes)
                if rows := self._finished(dataset, model, key):
                    found[model] = rows
            datasets[label] = {
                "labels": files.read_json(dataset.folder / LABELS_FILE),
                "models": found,
            }
        sweeps = {}
        trials = self._tried(first, "m2m")
        if all(trial["result"] for trial in trials):
            changes = _best(trials)
            if changes is not None:
                sweeps = {
                    setting: self._swept(first, setting, changes)
                    for setting in self.config.sweeps
                }
        return {
            "search": search,
            "datasets": datasets,
            "sweeps": sweeps,
            "failed": [
                {"file": str(path.relative_to(self.results))} | row
                for label in self.config.data
                for path in sorted((self.results / label).glob("*-seed*.json"))
                if "failed" in (row := files.read_json(path))
            ],
        }

    def _swept(self, dataset, setting, changes):
        """Finished runs of each value of a sweep."""
        found = {}
        for value in self.config.sweeps[setting]:
            name = self._sweep_name(setting, value)
            key = self._key("m2m", _swept_changes(changes, setting, value))
            found[value] = self._finished(dataset, name, key)
        return found

    def _finished(self, dataset, name, key):
        rows = [
            _read(dataset.path(name, key, seed)) for seed in self.config.seeds
        ]
        return [row for row in rows if row and "failed" not in row]

    def _sweep_name(self, setting, value):
        name = f"sweep_{setting}_{value}"
        if setting == "lookback":
            # Which samples are scored depends on the shortest one.
            name += f"_of_{min(self.config.sweeps[setting])}"
        return name

    def _search(self, dataset, model):
        """The best changes of a model, by the first dataset's validation."""
        trials = self._tried(dataset, model)
        for trial in trials:
            if trial["result"] is None:
                trial["result"] = self._run(
                    dataset, model, trial["changes"], trial["path"], None
                )
        return _best(trials)

    def _tried(self, dataset, model):
        candidates = (
            self.config.tree_search if model in TREES else self.config.search
        )
        trials = []
        for changes in candidates or ({},):
            path = None
            result = {}
            if len(candidates) > 1:
                key = self._key(model, changes)
                path = dataset.path(model, key, self.config.seeds[0], "search")
                result = _read(path)
            trials.append({"changes": changes, "path": path, "result": result})
        return (
            trials
            if len(candidates) > 1
            else [trials[0] | {"result": {"validation_score": None}}]
        )

    def _key(self, model, changes):
        if model in TREES:
            return fingerprint(changes, TREES[model])
        settings, train = self._settings(model, changes)
        unused = unused_settings(settings.name)
        return fingerprint(_changed(settings, unused), _changed(train))

    def _settings(self, model, changes):
        settings, train = self.config.changed(changes)
        own = (NETWORKS | ABLATIONS)[model]
        return dataclasses.replace(settings, **own), train

    def _score(self, dataset, model, changes, seed, name=None):
        key = self._key(model, changes)
        path = dataset.path(name or model, key, seed)
        if not path.exists():
            self._run(dataset, model, changes, path, seed, name)

    def _run(self, dataset, model, changes, path, seed, name=None):
        """Trains and scores one run; seed None: a search, on validation."""
        data = dataset.prepare()
        searched = seed is None
        seed = self.config.seeds[0] if searched else seed
        split = "validation" if searched else "test"
        self.report(f"{dataset.label}: {name or model}, seed {seed}, {split}")
        started = time.monotonic()
        folder = dataset.work / "trainings" / path.stem
        try:
            if model in TREES:
                result = self._run_trees(data, model, changes, seed, split)
            else:
                result = self._run_network(
                    data, model, changes, seed, split, folder
                )
        # The others' runs still tell something.
        except (training.TrainingError, ForecastError) as error:
            result = {"failed": str(error), "forecasts": None}
            self.report(f"failed: {error}")
        forecasts = result.pop("forecasts")
        result |= {
            "dataset": dataset.label,
            "model": name or model,
            "seed": seed,
            "split": split,
            "changes": changes,
            "seconds": round(time.monotonic() - started),
            "versions": _versions(),
        }
        if forecasts is not None:
            result |= dataset.kept_scores(data, split, forecasts)
        elif searched:
            result["validation_score"] = None
        if model not in TREES and forecasts is not None:
            # What else is worth keeping is in the result.
            tensorboard.keep_logs(
                folder,
                dataset.work / tensorboard.LOGS_FOLDER / path.stem,
                {"validation_score": result["validation_score"]}
                if searched
                else {},
            )
        files.write_compact_json(path, result)
        if folder.exists():
            # Only now: killed before, a study has nothing to train again.
            shutil.rmtree(folder)
        return result

    def _run_network(self, data, model, changes, seed, split, folder):
        settings, train = self._settings(model, changes)
        history = training.train(
            data, settings, dataclasses.replace(train, seed=seed), folder
        )
        network = training.load_model(folder)
        told = evaluation_run.forecast_split(data, network, split)
        result = {
            "settings": {
                "model": to_values(settings),
                "training": to_values(train),
            },
            "parameters": network.count_params(),
            "epochs": len(history),
            "validation_loss": min(row["val_loss"] for row in history),
            "forecasts": {
                "mean": told.forecasts[network.name],
                "median": told.forecasts[network.name + MEDIAN_SUFFIX],
            },
        }
        if told.intervals is not None:
            interval = evaluate_intervals(
                told.y_true,
                told.intervals,
                told.scenario,
                data.spec.task_names,
                data.preprocessor.scenario_names,
            )
            result["interval"] = {
                name: round(interval[name], 4)
                for name in ("level", "coverage", "closed")
            }
        return result

    def _run_trees(self, data, model, changes, seed, split):
        from m2m_tf.baselines import lightgbm

        forecasts = evaluation_run.lightgbm_forecasts(
            data, split, seed, trees=changes, **TREES[model]
        )
        return {
            "settings": changes | TREES[model],
            "forecasts": {
                "mean": forecasts[lightgbm.POISSON],
                "median": forecasts[lightgbm.MEDIAN],
            },
        }


class _Dataset:
    """Tables, records and result files of one dataset of a study.

    Args:
        study: The study.
        label: Key of its `data`.
        lookback: Days of a sequence, if not those of its spec.
        scored_within: Only samples active in so many days are scored. A
            longer lookback has samples that a shorter one has not.
    """

    def __init__(self, study, label, lookback=None, scored_within=None):
        self.label = label
        self.folder = study.results / label
        self.work = study.work / label
        self._source = study.config.data[label]
        self.lookback = lookback
        self._scored_within = scored_within
        self._report = study.report
        self._samples = {}

    def path(self, name, key, seed, kind=""):
        prefix = f"{kind}_" if kind else ""
        return self.folder / f"{prefix}{name}-{key[:8]}-seed{seed}.json"

    @property
    def _earlier(self):
        return isinstance(self._source, EarlierTables)

    @property
    def _made(self):
        """Whether the study makes the tables itself."""
        return not (self._earlier or isinstance(self._source, pathlib.Path))

    @property
    def spec_path(self):
        if self._made:
            return self.work / "tables" / "spec.yaml"
        return self._source.spec if self._earlier else self._source

    def check(self) -> None:
        """Refuses, before any training, what would fail or mix results.

        Raises:
            ConfigError: If it is no valid spec or does not cover its `end`.
            SplitError: If its dates leave a split empty.
            StudyError: If the files that are there tell of other data.
        """
        if not self._made:
            windows.make_splits(self._own_spec())
        labels = _read(self.folder / LABELS_FILE)
        if labels is None:
            return
        before, now = labels["data"], self._data()
        if not self._made:
            if before == now:
                before = labels["fingerprint"]
                now = table_fingerprints(self._own_spec())
        elif isinstance(before, dict):
            # Older files lack settings that were added later.
            before = to_values(type(self._source)(self._source.name)) | before
        if before != now:
            raise StudyError(
                f"{self.folder}: holds results of other data. Give the study "
                "or its data another name, or remove the folder and "
                f"{self.work}. Received: {_differing(now, before)} instead of "
                f"{_differing(before, now)}."
            )

    def _data(self):
        """What the study's config says of the data, as plain values."""
        if self._made:
            return to_values(self._source)
        # Where it lies does not matter.
        name = self.spec_path.name
        if self._earlier:
            return to_values(self._source) | {"spec": name}
        return name

    def _own_spec(self):
        """The spec of tables that are there, or have just been made."""
        spec = DatasetSpec.load(self.spec_path)
        return spec.until(self._source.end) if self._earlier else spec

    def load_spec(self) -> DatasetSpec:
        """The spec, with this lookback, of tables made at the first call.

        Raises:
            StudyError: If the tables can't be swept over lookbacks.
        """
        if self._made:
            self._make_tables()
        spec = self._own_spec()
        if self.lookback is not None:
            if spec.activity in spec.known_future:
                raise StudyError(
                    "A sweep of lookback needs an `activity` among `behavior` "
                    f"or `performance`. Received: activity={spec.activity!r}."
                )
            spec = dataclasses.replace(
                spec, lookback=self.lookback, split=_split_dates(spec)
            )
        return spec

    def _make_tables(self):
        """Those of the source, unless its own are there."""
        made = self.work / "source.json"
        if self.spec_path.exists() and _read(made) == self._data():
            return
        self._report(f"{self.label}: making tables")
        write_source_tables(self._source, self.spec_path.parent)
        files.write_json(made, self._data())

    def prepare(self) -> ForecastData:
        """The data, prepared at the first call, and the labels' file."""
        spec = self.load_spec()
        data = ForecastData.prepare(
            spec, self.work / "records", later_rows=self._earlier
        )
        if self.lookback is None:
            self._write_labels(data)
        return data

    def kept_scores(self, data, split, forecasts):
        """What a result keeps of its scores: of a search one figure."""
        scores = self._score(data, split, forecasts)
        labels = self._sample(data, split)["labels"]
        if split == "validation":
            values = comparison.cell_values(scores, labels, "relative_deviance")
            return {"validation_score": float(comparison.overall(values))}
        kept = {"sums": comparison.to_lists(scores)}
        if self.lookback is not None:
            # Of the samples active in the shortest lookback alone.
            kept["labels"] = comparison.to_lists(labels)
        return kept

    def _score(self, data, split, forecasts):
        sample = self._sample(data, split)
        return comparison.forecast_sums(
            sample["y_true"],
            forecasts["mean"][sample["scored"]],
            forecasts["median"][sample["scored"]],
            sample["scenario"],
            sample["groups"],
            sample["num_scenarios"],
        )

    def _sample(self, data, split):
        """Labels, scenarios and groups of a split, and naive forecasts."""
        if split not in self._samples:
            parts = {}
            for raw in data.raw(split, 1024).as_numpy_iterator():
                row = {
                    "y_true": raw[windows.LABELS],
                    "entity": schema.as_text(raw[schema.ENTITY]),
                    "name": schema.as_text(raw[schema.SCENARIO]),
                    "cutoff": raw["cutoff"],
                    "scored": windows.active_within(
                        data.spec, raw, self._scored_within
                    ),
                    **naive.naive_forecasts(data.spec, raw),
                }
                for name, values in row.items():
                    parts.setdefault(name, []).append(values)
            sample = {k: np.concatenate(x) for k, x in parts.items()}
            scored = sample["scored"]
            sample = {k: x[scored] for k, x in sample.items()}
            sample["scored"] = scored
            sample["scenario"] = data.preprocessor.scenario_ids(sample["name"])
            sample["groups"] = comparison.entity_groups(sample["entity"])
            sample["num_scenarios"] = len(data.preprocessor.scenario_names)
            sample["labels"] = comparison.label_sums(
                sample["y_true"],
                sample["scenario"],
                sample["groups"],
                sample["num_scenarios"],
            )
            self._samples[split] = sample
        return self._samples[split]

    def _write_labels(self, data):
        """What all runs on the dataset share, once."""
        path = self.folder / LABELS_FILE
        if path.exists():
            return
        sample = self._sample(data, "test")
        forecasts = {
            name: (sample[name], sample[name])
            for name in (naive.LAST_WEEK, naive.HISTORY_MEAN)
        }
        truth = self.spec_path.parent / f"{comparison.TRUE_RATES}.parquet"
        if truth.exists():
            rates = _true_rates(data.spec, sample, truth)
            if np.isfinite(rates).all():
                forecasts[comparison.TRUE_RATES] = rates
            else:
                self._report(
                    f"{self.label}: without {comparison.TRUE_RATES}, which "
                    "some samples do not have: the spec is not as `m2m-tf "
                    "simulate` has written it"
                )
        counts = {}
        for split in windows.SPLIT_NAMES:
            chosen = self._sample(data, split)
            counts[split] = np.bincount(
                chosen["scenario"], minlength=chosen["num_scenarios"]
            ).tolist()
        del self._samples["train"]
        values = {
            "data": self._data(),
            "fingerprint": data.fingerprint,
            "description": data.spec.description,
            "tasks": list(data.spec.task_names),
            "scenarios": list(data.preprocessor.scenario_names),
            "samples": counts,
            "entities": len(np.unique(sample["entity"])),
            "labels": comparison.to_lists(sample["labels"]),
            "forecasts": {
                name: comparison.to_lists(
                    self._score(data, "test", {"mean": mean, "median": median})
                )
                for name, (mean, median) in forecasts.items()
            },
        }
        files.write_compact_json(path, values)


def _differing(values, others):
    """The part of plain values that others do not have."""
    if not isinstance(values, dict) or not isinstance(others, dict):
        return values
    return {k: v for k, v in values.items() if others.get(k) != v}


def _true_rates(spec, sample, path):
    """Best possible means and medians of the samples, `[N, T]` each."""
    rows = pl.DataFrame(
        {
            spec.entity: sample["entity"],
            spec.scenario: sample["name"],
            "cutoff": pl.from_epoch(pl.Series(sample["cutoff"]), "d"),
        }
    )
    joined = rows.join(
        pl.read_parquet(path, glob=False),
        on=[spec.entity, spec.scenario, "cutoff"],
        how="left",
        maintain_order="left",
    )
    return tuple(
        joined.select(
            [pl.col(f"{task}_{kind}") for task in spec.task_names]
        ).to_numpy()
        for kind in ("mean", "median")
    )


def _split_dates(spec):
    """The spec's split by dates: shares depend on the lookback's cutoffs."""
    if isinstance(spec.split, SplitDates):
        return spec.split
    splits = windows.make_splits(spec)
    return SplitDates(
        *(
            windows.date_of(spec, cutoffs[-1] + spec.horizon)
            for cutoffs in (splits.train, splits.validation)
        )
    )


def _changed(settings, unused=()):
    """The settings in use that differ from their defaults, as plain values.

    A setting that is added later, off by default, so leaves a study's
    files valid, as does another value of one that the model does not take.
    """
    defaults = to_values(type(settings)())
    return {
        key: value
        for key, value in to_values(settings).items()
        if value != defaults[key] and key not in unused
    }


def _swept_changes(changes, setting, value):
    """Changes of a study's settings with one value of a sweep."""
    if setting == "lookback":
        return changes  # Which is the dataset's.
    return changes | {"model": changes.get("model", {}) | {setting: value}}


def _best(trials):
    """Changes of the trial with the least validation deviance.

    None if all of several have failed.
    """
    if len(trials) == 1:
        return trials[0]["changes"]
    trials = [trial for trial in trials if "failed" not in trial["result"]]
    if not trials:
        return None
    return min(trials, key=lambda trial: trial["result"]["validation_score"])[
        "changes"
    ]


def _read(path):
    return files.read_json(path) if path.exists() else None


def _versions():
    found = {"m2m_tf": __version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
