"""Forecasts for every entity in every scenario, from tables.

Calls the SavedModel alone, which holds its preprocessing: no layer of this
library.
"""

import collections
import concurrent.futures
import dataclasses
import datetime
import json
import os
import pathlib
import shutil

import numpy as np
import polars as pl
import polars.selectors as cs
from tqdm import tqdm

from m2m_tf import __version__, files
from m2m_tf.config import DatasetSpec, fingerprint
from m2m_tf.data import panel, schema, validation, windows
from m2m_tf.export import CONTRACT_FILE, load_version, make_contract
from m2m_tf.signatures import PREDICT
from m2m_tf.versions import latest_version

# Rows of a call of the model.
BATCH = 1024
# Batches cut before they are asked for: enough to hide the reading of the
# next chunk behind the model's work on this one.
_BATCHES_AHEAD = 16
_END_OF_CHUNK = object()
_PARTS = "part-*.parquet"
# Of the folder beside a single file that is being written.
_PARTS_ENDING = ".parts"
_STATE_FILE = "scoring.json"


class ContractError(ValueError):
    """A model and a dataset spec that do not fit together."""


@dataclasses.dataclass(frozen=True)
class ScoringSummary:
    """What `score_tables` has written.

    Args:
        forecasts: Number of forecast rows.
        unknown: Categorical input → number of forecasts whose value the model
            has not seen in training, or is empty. They are forecast as
            unknown ones.
        inactive: Number of forecasts for an entity in a scenario without the
            spec's `activity` in the lookback, such as no sample of training
            or of the test was.
        concerns: Sentences about days of which the panel has no row or far
            fewer than usual, and which so count as zeros.

    Example:

    >>> print(ScoringSummary(forecasts=1200, unknown={"scenario": 40}))
    1,200 forecasts (value empty or not seen in training: scenario in 40)
    """

    forecasts: int
    unknown: dict[str, int]
    inactive: int = 0
    concerns: tuple[str, ...] = ()

    def __str__(self):
        notes = []
        if self.unknown:
            parts = [f"{name} in {n:,}" for name, n in self.unknown.items()]
            notes.append(
                f"value empty or not seen in training: {', '.join(parts)}"
            )
        if self.inactive:
            notes.append(
                f"{self.inactive:,} without activity in the lookback, of which "
                "nothing was learned"
            )
        notes += [f"mind: {concern}" for concern in self.concerns]
        told = f" ({'; '.join(notes)})" if notes else ""
        return f"{self.forecasts:,} forecasts{told}"


def score_tables(
    model: str | os.PathLike,
    spec: DatasetSpec,
    cutoff: datetime.date,
    output: str | os.PathLike,
    chunk_rows: int = panel.CHUNK_ROWS,
) -> ScoringSummary:
    """Scores every (entity, scenario) of the tables at one cutoff.

    Entities, scenarios and categories that the model has never seen are
    served by its out-of-vocabulary rows. Memory is bounded by `chunk_rows`.

    Args:
        model: Folder of a SavedModel or of its versions.
        spec: Spec of the tables. They may have grown past its `end`.
        cutoff: Last day seen; any day that the tables cover.
        output: Parquet file to write (`.parquet`), or a folder of parts:
            entity, scenario, cutoff and, for each task, the mean forecast of
            the next days; median and bounds of the 80 % interval too, if
            the model gives them. `recently_active`, with an `activity` in
            the spec, tells whether there was any in the lookback. An
            interrupted scoring into a folder is gone on with by the same
            call.
        chunk_rows: Panel rows held at a time, about.

    Returns:
        What was written, and what in it the model has never seen.

    Raises:
        ContractError: If the spec's columns are not the model's, `output` is
            no place for forecasts, or the folder holds something else.
        DataValidationError: If the tables break the data contract.
        DamagedModel: If the SavedModel cannot be loaded.
        FileNotFoundError: If there is none.

    Example:

    >>> spec = DatasetSpec.load("spec.yaml")
    >>> score_tables("saved_models/clinics", spec, spec.end, "week.parquet")
    ScoringSummary(forecasts=36, unknown={}, inactive=8, concerns=())
    """
    output = pathlib.Path(output)
    _check_output(output, spec)
    version = latest_version(model)
    vocabularies = _check_contract(version, spec)
    if cutoff < spec.start:
        raise ContractError(
            f"The cutoff must not lie before {spec.start}, the first day of "
            f"the spec. Received: {cutoff}."
        )
    first = max(spec.start, cutoff - datetime.timedelta(days=spec.lookback - 1))
    covered = spec.end
    # Nothing later than the cutoff is read at all.
    spec = dataclasses.replace(spec, start=first, end=cutoff)
    validation.validate_for_scoring(spec)
    # A panel is sparse: days not yet written would pass for days of zeros.
    newest, newest_of_all = panel.newest_days(spec)
    if cutoff > covered and (newest_of_all is None or cutoff > newest_of_all):
        raise ContractError(
            f"{spec.panel}: the last day is {newest}. Received: cutoff "
            f"{cutoff}. Add the days in between, or forecast from {newest}."
        )
    days_without_rows = (cutoff - (newest or first)).days
    if newest is None or days_without_rows >= spec.horizon:
        raise ContractError(
            f"{spec.panel}: has no row in the {days_without_rows} days up to "
            f"the cutoff, {cutoff}, which would count as zeros. Add the rows, "
            f"or forecast from an earlier day (newest before it: {newest})."
        )
    concerns = validation.concerns_of_days(spec)
    grids = panel.Grids(spec, chunk_rows, scratch=output.parent)
    scoring = _Scoring(version, spec, cutoff, vocabularies, grids, concerns)
    if output.suffix != ".parquet":
        return scoring.write_parts(output)
    with files.replacing(output) as temporary:
        files.remove_abandoned(output.parent, output.name + _PARTS_ENDING)
        parts = temporary.with_name(temporary.name + _PARTS_ENDING)
        try:
            summary = scoring.write_parts(parts)
            # Not a pattern: a folder's name may look like one.
            written = sorted(parts.glob(_PARTS))
            pl.scan_parquet(written, glob=False).sink_parquet(temporary)
        finally:
            if parts.exists():
                shutil.rmtree(parts)
    return summary


def _check_output(output, spec):
    """Forecasts must not take another format's name, or a table's place."""
    if output.suffix != ".parquet":
        if output.suffix[1:].isalpha():
            raise ContractError(
                "`output` must be a .parquet file, or a folder for parts of "
                f"it. Received: {output}."
            )
    elif output.is_dir():
        raise ContractError(
            f"{output}: is a folder and would be lost. Give another file."
        )
    for table in spec.tables.values():
        table = table.resolve()
        if output.resolve() == table:
            raise ContractError(
                f"{output}: is a table of the spec and would be lost. Give "
                "another file."
            )
        if output.resolve().is_relative_to(table):
            raise ContractError(
                f"{output}: lies in a table of the spec, and would be read as "
                "a part of it. Give another folder."
            )


class _Scoring:
    """Forecasts of one cutoff, written a chunk of entities at a time."""

    def __init__(self, version, spec, cutoff, vocabularies, grids, concerns):
        self._version = version
        self._spec = spec
        self._cutoff = cutoff
        self._vocabularies = vocabularies
        self._grids = grids
        self._concerns = concerns
        # It lives as long as its signature is used.
        self._model = load_version(version)
        self._predict = self._model.signatures[PREDICT]

    def write_parts(self, folder):
        """Writes what the folder lacks; returns the summary of all of it."""
        state = self._state_of(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # First: whose half-written part it is must be known, too.
        files.write_json(folder / _STATE_FILE, state)
        with tqdm(
            total=self._grids.num_pairs,
            initial=sum(x["forecasts"] for x in state["parts"].values()),
            desc="scoring",
            unit=" forecasts",
            mininterval=2,
        ) as bar:
            # JSON has no whole numbers as keys.
            missing = [
                chunk
                for chunk in range(self._grids.num_chunks)
                if str(chunk) not in state["parts"]
            ]
            cut = _ahead(self._cut(missing), _BATCHES_AHEAD)
            for chunk in missing:
                batches = iter(cut.__next__, _END_OF_CHUNK)
                table, unknown = self._score(batches, bar)
                inactive = 0
                if schema.RECENTLY_ACTIVE in table.columns:
                    inactive = int((~table[schema.RECENTLY_ACTIVE]).sum())
                with files.replacing(_part(folder, chunk)) as temporary:
                    table.write_parquet(temporary)
                state["parts"][str(chunk)] = {
                    "forecasts": len(table),
                    "unknown": unknown,
                    "inactive": inactive,
                    "infinite": _not_finite(table),
                }
                files.write_json(folder / _STATE_FILE, state)
        parts = state["parts"].values()
        totals = {
            name: sum(part["unknown"][name] for part in parts)
            for name in self._vocabularies
        }
        return ScoringSummary(
            sum(part["forecasts"] for part in parts),
            {name: count for name, count in totals.items() if count},
            sum(part["inactive"] for part in parts),
            (*self._concerns, *_infinite(parts)),
        )

    def _state_of(self, folder):
        """What a folder holds of these very forecasts, or a blank state."""
        blank = {"key": self._key(), "parts": {}}
        path = folder / _STATE_FILE
        files.remove_abandoned(folder)
        if path.exists():
            state = files.read_json(path)
            if state["key"] == blank["key"]:
                state["parts"] = {
                    chunk: told
                    for chunk, told in state["parts"].items()
                    if _part(folder, chunk).exists()
                }
                return state
        elif not folder.exists() or not any(folder.iterdir()):
            return blank
        raise ContractError(
            f"{folder}: holds something else than forecasts of this model, "
            "cutoff and these tables. Give a new or an empty folder."
        )

    def _key(self):
        """Of everything that the parts depend on."""
        spec = self._spec
        tables = [
            file
            for table in spec.tables.values()
            for file in panel.table_files(table)
        ]
        model = [path for path in self._version.rglob("*") if path.is_file()]
        return fingerprint(
            __version__,
            spec,
            self._cutoff.isoformat(),
            self._grids.num_chunks,
            # The hash that entities are dealt by may differ in another one.
            pl.__version__,
            [
                (
                    str(path.resolve()),
                    path.stat().st_size,
                    path.stat().st_mtime_ns,
                )
                for path in (*tables, *sorted(model))
            ],
        )

    def _cut(self, chunks):
        """Grids and their windows, with a mark after those of a chunk."""
        for chunk in chunks:
            for grid in self._grids.read(chunk, BATCH):
                rows = windows.cut_latest(self._spec, grid)
                del grid[schema.VALUES]
                yield grid, rows
            yield _END_OF_CHUNK

    def _score(self, batches, bar):
        """Forecasts of a chunk, and how often each input was unknown."""
        spec = self._spec
        names = list(schema.raw_features(spec))
        outputs = _in_task_order(
            self._predict.structured_outputs, spec.task_names
        )
        told = {name: [] for name in outputs}
        grids, active = [], []
        # Of a known-future column not all of the lookback is seen.
        with_activity = spec.activity in spec.behavior + spec.performance
        for grid, rows in batches:
            answer = self._predict(**{name: rows[name] for name in names})
            for name in outputs:
                told[name].append(answer[name].numpy()[:, 0])
            grids.append(grid)
            if with_activity:
                past = {
                    key: rows[key].numpy()
                    for key in schema.past_sequences(spec)
                }
                active += windows.active_days(spec, past).any(axis=1).tolist()
            bar.update(len(told[outputs[0]][-1]))
        ids = _strings(grids, schema.ENTITY).to_frame(spec.entity)
        scenarios = _strings(grids, schema.SCENARIO).to_frame(spec.scenario)
        table = ids.join(
            scenarios, how="cross", maintain_order="left_right"
        ).with_columns(
            pl.lit(self._cutoff).alias(schema.CUTOFF),
            *(
                [pl.Series(schema.RECENTLY_ACTIVE, active, pl.Boolean)]
                if with_activity
                else []
            ),
            *[
                pl.Series(name, np.concatenate(told[name] or [[]]), pl.Float32)
                for name in outputs
            ],
        )
        unknown = {}
        for name, known in self._vocabularies.items():
            # Of an entity or of a scenario: each stands in many rows.
            values = _strings(grids, name)
            count = int((~values.is_in(known)).sum())
            unknown[name] = count * len(table) // max(len(values), 1)
        return table, unknown


def _not_finite(table):
    """Column → number of forecasts that overflowed, where any did."""
    counts = table.select((~cs.float().is_finite()).sum()).row(0, named=True)
    return {name: count for name, count in counts.items() if count}


def _infinite(parts):
    """Concerns about forecasts that are no numbers, output by output."""
    totals = collections.Counter()
    for part in parts:
        totals.update(part["infinite"])
    return [
        f"{count:,} forecasts of {name} are not finite; the model has learned "
        "from nothing like these rows"
        for name, count in sorted(totals.items())
    ]


def _part(folder, chunk):
    return folder / f"part-{int(chunk):06d}.parquet"


def _strings(grids, name):
    """What the grids of a chunk tell by entity or scenario."""
    if windows.is_scenario_s(name):
        # All grids have the same ones.
        grids = grids[:1]
    values = [value for grid in grids for value in grid[name].tolist()]
    return pl.Series(values, dtype=pl.String)


def _ahead(items, depth):
    """The items; a thread makes the next ones while one is worked on."""
    items = iter(items)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        coming = collections.deque(
            pool.submit(next, items, None) for _ in range(depth)
        )
        while (item := coming.popleft().result()) is not None:
            coming.append(pool.submit(next, items, None))
            yield item


def _in_task_order(outputs, task_names):
    """Output names: each task's mean, then its median and interval."""
    return [
        name
        for task in task_names
        for part in schema.FORECAST_PARTS
        if (name := schema.output_name(task, part)) in outputs
    ]


def _check_contract(version, spec):
    """Returns the vocabularies of a model that fits the spec."""
    path = version / CONTRACT_FILE
    if not path.exists():
        raise ContractError(
            f"{version}: has no {CONTRACT_FILE}. Export the model again with "
            "`m2m-tf export`."
        )
    try:
        theirs = dict(files.read_json(path))
    except (TypeError, ValueError) as error:
        raise ContractError(
            f"{path}: is no JSON object, as after a copy that broke off. Copy "
            f"the version again. Received: {error}."
        ) from error
    ours = json.loads(json.dumps(make_contract(spec)))
    differing = [key for key in ours if ours[key] != theirs.get(key)]
    if differing:
        key = differing[0]
        raise ContractError(
            f"The spec does not fit the model in {differing}: {key} must be "
            f"{theirs.get(key)}. Received: {ours[key]}."
        )
    return theirs["vocabularies"]
