"""Reads and validates the tables of the data contract.

`validate_tables` reports every problem of every table at once, each with file,
column, row count and an example. `iter_records` turns valid tables into one
record per entity, a bounded number of rows at a time.
"""

import collections
import contextlib
import dataclasses
import datetime
import hashlib
import math
import os
import pathlib
import urllib.parse
from collections.abc import Iterator

import numpy as np
import polars as pl

from m2m_tf import files
from m2m_tf.config import AttributeColumns, DatasetSpec, fingerprint
from m2m_tf.data import schema, windows

# Panel rows that `iter_records` holds at a time.
CHUNK_ROWS = 2_000_000
# Sums over a window and over scenarios must be finite in float32 (3e38), too.
_LARGEST = 1e30
# What is always smaller drowns in the floors of levels and features.
_SMALLEST = 1e-4
_ENDINGS = (".parquet", ".csv")
# How Hive and Spark call the folder of rows whose value is null.
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
# Columns that are added to those of a table, which hardly has one so called:
# the file that a row comes from, while a folder is read; the number of its day
# and of its entity; the part that it is copied to; how many rows are alike.
_FILE, _DAY, _NUMBER, _PART, _COUNT = (
    f"_m2m_tf_{name}" for name in ("file", "day", "number", "part", "count")
)
# A copy of the rows in parts, and the most of them: each is written through
# a buffer of its own.
_SCRATCH, _MOST_PARTS = "rows", 64
# What polars adds to the name of a CSV's column that the header has twice.
_AGAIN = "_duplicated_0"
# What a column must hold.
_TEXT = "one value a row"
_NUMBERS = "numbers"
_DAYS = "days as YYYY-MM-DD, or as dates"


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing wrong with a table.

    `count` is the number of rows that it concerns, 0 if it is the column as a
    whole; `example` then says what else there is to know.

    Example:

    >>> print(Problem("panel.csv", "clicks", 2, "is negative", "-1.0"))
    panel.csv, column clicks: is negative (2 rows; example: -1.0)
    """

    file: str
    column: str
    count: int
    message: str
    example: str

    def __str__(self):
        where = f"{self.count} rows; example: " if self.count else ""
        return (
            f"{self.file}, column {self.column}: {self.message} "
            f"({where}{self.example})"
        )


class DataValidationError(ValueError):
    """Tables that break the data contract.

    Attributes:
        problems: List of `Problem`.
    """

    def __init__(self, problems):
        self.problems = list(problems)
        lines = [f"  {problem}" for problem in self.problems]
        count = "1 place" if len(lines) == 1 else f"{len(lines)} places"
        super().__init__(
            f"The tables break the data contract in {count}:\n"
            + "\n".join(lines)
        )


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a valid dataset holds, for people.

    Example:

    >>> validate_tables(DatasetSpec.load("spec.yaml")).entities
    12
    """

    entities: int
    scenarios: int
    pairs: int
    panel_rows: int
    first_day: datetime.date
    last_day: datetime.date
    end: datetime.date
    cutoffs: dict[str, int]
    never_known: dict[str, list[str]]

    def __str__(self):
        cutoffs = ", ".join(f"{k} {v}" for k, v in self.cutoffs.items())
        lines = [
            f"{self.entities:,} entities, {self.scenarios} scenarios, "
            f"{self.pairs:,} pairs, {self.panel_rows:,} panel rows, "
            f"{self.first_day} to {self.last_day}; cutoffs: {cutoffs}"
        ]
        if self.last_day < self.end:
            lines.append(
                f"mind: no row is newer than {self.last_day}; the days up to "
                f"`end` ({self.end}) count as zeros"
            )
        lines += [
            f"mind: no row of {file} has a value of {', '.join(names)}"
            for file, names in self.never_known.items()
        ]
        return "\n".join(lines)


def scan_table(path: pathlib.Path) -> pl.LazyFrame:
    """Opens a table lazily; values of CSV files come as strings.

    A table is a Parquet or CSV file, or a folder of such files, in folders of
    their own if need be: the rows of all. A folder `day=2025-03-01`, as Hive
    and Spark write them, gives its files' rows a column `day`. Names that
    begin with `_` or `.` are passed over.

    Raises:
        FileNotFoundError: If there is no such file, or none in the folder.
        ValueError: If a file's ending is neither .parquet nor .csv, or it
            does not hold such a table.

    Example:

    >>> scan_table(pathlib.Path("profile.csv")).collect_schema().names()
    ['clinic', 'town', 'beds']
    """
    if path.is_file():
        return _scan_files([path])
    # Files of the same columns are one scan: polars has a thread for each.
    alike = collections.defaultdict(dict)
    for file in table_files(path):
        dtypes = _scan_files([file]).collect_schema()
        # A column of the file goes before one that its folder tells of.
        told = {
            name: value
            for name, value in _told_by_folders(file, path).items()
            if name not in dtypes
        }
        kind = (file.suffix, tuple(dtypes.items()), tuple(told))
        alike[kind][file] = told
    frames = [
        _scan_files(list(told_by_file), include_file_paths=_FILE)
        .with_columns(
            pl.col(_FILE)
            .replace_strict(
                [str(file) for file in told_by_file],
                [told[name] for told in told_by_file.values()],
                return_dtype=pl.String,
            )
            .alias(name)
            for name in kind[-1]
        )
        .drop(_FILE)
        for kind, told_by_file in alike.items()
    ]
    with _reading(path):
        frame = pl.concat(frames, how="diagonal_relaxed")
        frame.collect_schema()
    return frame


def table_files(path: pathlib.Path) -> list[pathlib.Path]:
    """The files that a table consists of, see `scan_table`.

    Example:

    >>> table_files(pathlib.Path("profile.csv"))
    [PosixPath('profile.csv')]
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path}: there is no such table. Check the path in the spec "
            "(paths are relative to the spec's folder)."
        )
    found = sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and not any(
            part.startswith(("_", ".")) for part in file.relative_to(path).parts
        )
    )
    if other := [file for file in found if file.suffix not in _ENDINGS]:
        raise ValueError(
            f"{path}: {len(other)} of its files are neither .parquet nor .csv "
            "(in small letters) and would be missing in the table. Unpack or "
            "rename them, or move them elsewhere. Received: "
            f"{other[0].relative_to(path)}."
        )
    if not found:
        raise FileNotFoundError(
            f"{path}: the folder holds no .parquet or .csv file. Check the "
            "path in the spec (paths are relative to the spec's folder)."
        )
    return found


def _scan_files(paths, **options):
    """Opens files of the same columns."""
    path = paths[0]
    if path.suffix not in _ENDINGS:
        raise ValueError(
            f"{path}: tables are .parquet or .csv files, or folders of them. "
            f"Received: {path.suffix or 'no ending'}."
        )
    options["glob"] = False  # A folder's name may look like one.
    if path.suffix == ".parquet":
        frame = pl.scan_parquet(paths, hive_partitioning=False, **options)
    else:
        frame = pl.scan_csv(paths, infer_schema=False, **options)
    with _reading(path):
        frame.collect_schema()
    return frame


def _told_by_folders(file, table):
    """What folders called `column=value` tell of a file's rows."""
    pairs = [
        part.split("=", 1)
        for part in file.relative_to(table).parent.parts
        if "=" in part
    ]
    return {
        name: None if value == _HIVE_NULL else urllib.parse.unquote(value)
        for name, value in pairs
    }


@contextlib.contextmanager
def _reading(path):
    """Says which file it is that polars cannot read."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        advice = "write it again"
        if path.suffix != ".parquet":
            advice += (
                "; CSV in UTF-8, each row with as many fields as the header, "
                "decimals with a point and values that hold a comma in quotes"
            )
        # Below its first line stand options of functions of polars.
        told = str(error).partition("\n")[0]
        raise ValueError(
            f"{path}: cannot be read as a table; {advice}. Received: {told}."
        ) from error


def table_fingerprints(spec: DatasetSpec) -> dict[str, str]:
    """Hash of the spec and of each table, to tell what has changed.

    Where the tables lie does not matter, nor a comment in the spec's file.

    Example:

    >>> list(table_fingerprints(data.spec))
    ['spec', 'panel', 'profile', 'scenarios']
    """
    return {"spec": fingerprint(spec.identity)} | {
        name: _hash(path) for name, path in spec.tables.items()
    }


def _hash(path):
    try:
        paths = table_files(path)
    except FileNotFoundError:
        return "absent"  # Validation will say so.
    hashes = []
    for part in paths:
        with open(part, "rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest()[:16])
    if path.is_file():
        return hashes[0]
    names = [str(part.relative_to(path)) for part in paths]
    return fingerprint(dict(zip(names, hashes, strict=True)))


def read_panel(spec: DatasetSpec) -> pl.LazyFrame:
    """The panel with keys as strings, `date` as Date, values as Float32.

    Example:

    >>> panel = read_panel(DatasetSpec.load("spec.yaml"))
    >>> panel.collect_schema()["visits"]
    Float32
    """
    frame = scan_table(spec.panel)
    dtypes = frame.collect_schema()
    return frame.select(
        pl.col(spec.entity).cast(pl.String),
        pl.col(spec.scenario).cast(pl.String),
        as_day(spec.date, dtypes[spec.date]),
        *[
            pl.col(name).cast(pl.Float32, strict=False)
            for name in spec.value_columns
        ],
    )


def newest_days(
    spec: DatasetSpec,
) -> tuple[datetime.date | None, datetime.date | None]:
    """The newest day with a row up to `spec.end`, and of all; None: no row.

    Example:

    >>> newest_days(DatasetSpec.load("spec.yaml"))
    (datetime.date(2025, 6, 28), datetime.date(2025, 6, 28))
    """
    day = pl.col(spec.date)
    return (
        read_panel(spec)
        .select(
            day.filter(day <= spec.end).max().alias("until_end"),
            day.max().alias("all"),
        )
        .collect()
        .row(0)
    )


def read_profile(spec: DatasetSpec) -> pl.DataFrame:
    """The profile: entity id, categorical (String), numeric (Float32).

    Missing values are empty texts and NaN. Without the table: the entities
    of the panel.

    Example:

    >>> read_profile(DatasetSpec.load("spec.yaml")).columns
    ['clinic', 'town', 'beds']
    """
    if spec.profile is None:
        return _ids_until_end(spec, spec.entity)
    return _read_attributes(spec.profile, spec.entity, spec.profile_columns)


def read_scenarios(spec: DatasetSpec) -> pl.DataFrame:
    """The scenario table: id, categorical (String), numeric (Float32).

    Missing values are empty texts and NaN. Without the table: the scenarios
    of the panel.

    Example:

    >>> table = read_scenarios(DatasetSpec.load("spec.yaml"))
    >>> table["visit_kind"].to_list()
    ['booked', 'video', 'walk_in']
    """
    if spec.scenarios is None:
        return _ids_until_end(spec, spec.scenario)
    return _read_attributes(
        spec.scenarios, spec.scenario, spec.scenario_columns
    )


def validate_tables(spec: DatasetSpec, later_rows: bool = False) -> Summary:
    """Checks the tables against the data contract (docs/data_contract.md).

    Args:
        spec: The dataset spec.
        later_rows: Whether the panel may have rows after `spec.end`. What
            they hold is not looked at, but for their ids.

    Returns:
        A `Summary` of the valid dataset.

    Raises:
        DataValidationError: With every problem found.
        FileNotFoundError, ValueError: If a file cannot be opened at all.
        SplitError: If the dates leave a split empty.

    Example:

    >>> print(validate_tables(DatasetSpec.load("spec.yaml")))
    12 entities, 3 scenarios, ... pairs, ...
    """
    splits = windows.make_splits(spec)
    problems, complete = _table_problems(spec, only_days=later_rows)
    if complete["panel"]:
        problems += _reserved_names(spec)
        problems += _range_problems(spec, later_rows)
        if complete.get("scenarios"):
            problems += _unlisted(spec, spec.scenario, spec.scenarios)
        if complete.get("profile"):
            problems += _unlisted(spec, spec.entity, spec.profile)
        if not problems:
            problems += _empty_tasks(spec)
    if problems:
        raise DataValidationError(problems)
    return _summarise(spec, splits)


def validate_for_scoring(spec: DatasetSpec) -> None:
    """Checks the rows from `spec.start` to `spec.end` before scoring them.

    Unlike `validate_tables` it accepts days outside the spec (they are not
    read), entities and scenarios that no attribute table lists (they are
    scored as unknown ones), and any number of days.

    Raises:
        DataValidationError: With every problem found.

    Example:

    >>> validate_for_scoring(DatasetSpec.load("spec.yaml"))
    """
    problems, _ = _table_problems(spec, only_days=True)
    if problems:
        raise DataValidationError(problems)


def _table_problems(spec, only_days=False):
    """Problems of single tables, and which tables have all columns."""
    problems = []
    wanted = {
        "panel": {
            spec.entity: _TEXT,
            spec.scenario: _TEXT,
            spec.date: _DAYS,
            **dict.fromkeys(spec.value_columns, _NUMBERS),
        },
        "profile": _wanted_attributes(spec.entity, spec.profile_columns),
        "scenarios": _wanted_attributes(spec.scenario, spec.scenario_columns),
    }
    complete = {}
    for table, path in spec.tables.items():
        found = _column_problems(path, wanted[table])
        problems += found
        complete[table] = not found
    if complete.get("profile"):
        with _reading(spec.profile):
            problems += _attribute_problems(
                spec.profile, spec.entity, spec.profile_columns
            )
    if complete.get("scenarios"):
        with _reading(spec.scenarios):
            problems += _attribute_problems(
                spec.scenarios, spec.scenario, spec.scenario_columns
            )
    if complete["panel"]:
        with _reading(spec.panel):
            problems += _panel_problems(spec, only_days)
    return problems, complete


def iter_records(
    spec: DatasetSpec,
    chunk_rows: int = CHUNK_ROWS,
    scratch: str | os.PathLike | None = None,
) -> Iterator[dict]:
    """Yields one record per entity (`schema.record_tensors`), NumPy values.

    A record holds the scenarios that the panel has a row of.

    Args:
        spec: The dataset spec.
        chunk_rows: Panel rows held at a time, about.
        scratch: Folder for a copy of a panel of more rows, see `_Rows`.

    Example:

    >>> record = next(iter_records(DatasetSpec.load("spec.yaml")))
    >>> scenarios, days, columns = record["values"].shape
    >>> days, columns
    (120, 6)
    """
    scenarios, profile = _scenario_table(spec), read_profile(spec)
    rows = _Rows(spec, profile, count_chunks(spec, chunk_rows), scratch)
    for chunk in range(rows.num_chunks):
        its_rows, its_profile = rows.read(chunk)
        its_rows = its_rows.sort(spec.entity, spec.scenario, _DAY)
        yield from _chunk_records(spec, its_rows, its_profile, scenarios)


class Grids:
    """Every scenario of every entity as arrays, some entities at a time.

    They hold each scenario of the scenario table and of the panel and each
    entity of the panel and of the profile, with zeros where the panel has no
    row.

    Args:
        spec: The dataset spec.
        chunk_rows: Panel rows and pairs held at a time, about.
        scratch: Folder for a copy of a panel of more rows, see `_Rows`.

    Attributes:
        num_chunks: Number of chunks of the entities.
        num_pairs: Number of (entity, scenario) in all chunks.

    Example:

    >>> grids = Grids(DatasetSpec.load("spec.yaml"))
    >>> grids.num_pairs
    36
    >>> next(grids.read(chunk=0, pairs=9))["values"].shape
    (3, 3, 120, 6)
    """

    def __init__(
        self,
        spec: DatasetSpec,
        chunk_rows: int = CHUNK_ROWS,
        scratch: str | os.PathLike | None = None,
    ):
        self._spec = spec
        self._scenarios = _scenario_table(spec)
        profile = read_profile(spec)
        entities = pl.concat(
            [
                _rows_of_days(spec).select(spec.entity),
                profile.lazy().select(spec.entity),
            ]
        )
        count = entities.select(pl.col(spec.entity).n_unique()).collect()
        self.num_pairs = count.item() * len(self._scenarios)
        self.num_chunks = max(
            count_chunks(spec, chunk_rows),
            math.ceil(self.num_pairs / chunk_rows),
        )
        self._rows = _Rows(spec, profile, self.num_chunks, scratch)

    def read(self, chunk: int, pairs: int) -> Iterator[dict]:
        """Yields the grids of a chunk, whose panel rows are held at once.

        Args:
            chunk: Number of the chunk, below `num_chunks`.
            pairs: Most pairs of a grid, G · S; one entity's are never parted.

        Yields:
            Dict of `entity` `[G]`, `scenario` `[S]`, `values` `[G, S, days,
            columns]`, attributes of scenarios `[S]` and of entities `[G]`.
        """
        spec, scenarios = self._spec, self._scenarios
        names = scenarios[spec.scenario].to_list()
        entities = max(1, pairs // len(names))
        rows, profile = self._rows.read(chunk)
        every = pl.concat([rows[spec.entity], profile[spec.entity]])
        profile = (
            every.unique()
            .sort()
            .to_frame()
            .join(profile, on=spec.entity, how="left", maintain_order="left")
            .with_columns(
                pl.col(spec.profile_columns.categorical).fill_null(""),
                pl.col(spec.profile_columns.numeric).fill_null(float("nan")),
            )
        )
        position = {name: index for index, name in enumerate(names)}
        # Rows of a grid must lie next to each other; a number is sorted in
        # a quarter of the time of an id.
        rows = rows.join(
            profile.select(spec.entity).with_row_index(_NUMBER),
            on=spec.entity,
        ).sort(_NUMBER)
        number = rows[_NUMBER].to_numpy()
        scenario = rows[spec.scenario].replace_strict(
            position, return_dtype=pl.Int64
        )
        scenario, day = scenario.to_numpy(), rows[_DAY].to_numpy()
        columns = rows.select(spec.value_columns).to_numpy()
        attributes = {
            schema.SCENARIO_PREFIX + name: scenarios[name].to_numpy()
            for name in spec.scenario_columns.names
        }
        for first in range(0, len(profile), entities):
            grid = profile[first : first + entities]
            values = np.zeros(
                (len(grid), len(names), spec.num_days, columns.shape[1]),
                np.float32,
            )
            its = slice(*np.searchsorted(number, [first, first + entities]))
            values[number[its] - first, scenario[its], day[its]] = columns[its]
            yield {
                schema.ENTITY: grid[spec.entity].to_numpy(),
                schema.SCENARIO: np.array(names, object),
                schema.VALUES: values,
                **attributes,
                **{
                    schema.PROFILE_PREFIX + name: grid[name].to_numpy()
                    for name in spec.profile_columns.names
                },
            }


def count_chunks(spec: DatasetSpec, chunk_rows: int = CHUNK_ROWS) -> int:
    """Number of chunks of entities of about `chunk_rows` panel rows each.

    Example:

    >>> count_chunks(DatasetSpec.load("spec.yaml"), chunk_rows=1000)
    3
    """
    num_rows = _rows_of_days(spec).select(pl.len()).collect().item()
    return max(1, math.ceil(num_rows / chunk_rows))


def _rows_of_days(spec):
    days = pl.col(spec.date).is_between(spec.start, spec.end)
    return read_panel(spec).filter(days)


def _ids_until_end(spec, key):
    """Ids of the panel's rows, also before `start`, as a table lists them."""
    rows = read_panel(spec).filter(pl.col(spec.date) <= spec.end)
    return rows.select(pl.col(key).unique().sort()).collect()


class _Rows:
    """Rows of the panel and of the profile, a chunk of entities at a time.

    The first reading of a panel of several chunks copies its rows into parts
    that hold a few chunks each, so that the tables are gone through once, not
    once for each chunk.
    """

    def __init__(self, spec, profile, num_chunks, scratch):
        self.num_chunks = num_chunks
        self._spec = spec
        self._profile = profile
        self._scratch = scratch
        self._folder = None
        self._chunk = pl.col(spec.entity).hash(seed=0) % num_chunks
        if scratch is not None:
            files.remove_abandoned(scratch, _SCRATCH)

    def read(self, chunk):
        """Rows of a chunk's entities, with day numbers, and of the profile."""
        spec = self._spec
        rows = self._of_panel(chunk).with_columns(
            (pl.col(spec.date) - spec.start).dt.total_days().alias(_DAY)
        )
        return rows, self._profile.filter(self._chunk == chunk)

    def _of_panel(self, chunk):
        rows = _rows_of_days(self._spec)
        if self.num_chunks == 1:
            return rows.collect()
        if self._folder is None:
            self._folder, self._parts = self._deal(rows)
        number = chunk % _MOST_PARTS
        if number not in self._parts:
            return rows.clear().collect()
        dealt = _scan_files(self._parts[number])
        return dealt.filter(self._chunk == chunk).collect()

    def _deal(self, rows):
        folder = files.scratch_folder(self._scratch, _SCRATCH)
        rows.sink_parquet(
            pl.PartitionBy(
                folder.name,
                key={_PART: self._chunk % _MOST_PARTS},
                include_key=False,
            ),
            mkdir=True,
        )
        parts = {
            number: sorted(
                pathlib.Path(folder.name, f"{_PART}={number}").glob("*.parquet")
            )
            for number in range(_MOST_PARTS)
        }
        return folder, {number: part for number, part in parts.items() if part}


def _chunk_records(spec, rows, profile, scenarios):
    attributes = {
        row[spec.entity]: row for row in profile.iter_rows(named=True)
    }
    unknown = {name: "" for name in spec.profile_columns.categorical} | {
        name: float("nan") for name in spec.profile_columns.numeric
    }
    table = {row[spec.scenario]: row for row in scenarios.iter_rows(named=True)}
    for (entity,), frame in rows.partition_by(
        spec.entity, as_dict=True, maintain_order=True
    ).items():
        names = frame[spec.scenario].unique(maintain_order=True).to_list()
        position = {name: index for index, name in enumerate(names)}
        index = frame[spec.scenario].replace_strict(position).to_numpy()
        values = np.zeros(
            (len(names), spec.num_days, len(spec.value_columns)), np.float32
        )
        values[index, frame[_DAY].to_numpy()] = frame.select(
            spec.value_columns
        ).to_numpy()
        record = {
            schema.ENTITY: entity,
            schema.SCENARIO: np.array(names, object),
            schema.VALUES: values,
        }
        for name in spec.scenario_columns.names:
            numeric = name in spec.scenario_columns.numeric
            record[schema.SCENARIO_PREFIX + name] = np.array(
                [table[key][name] for key in names],
                np.float32 if numeric else object,
            )
        known = attributes.get(entity, unknown)
        for name in spec.profile_columns.names:
            record[schema.PROFILE_PREFIX + name] = known[name]
        yield record


def _scenario_table(spec):
    """The scenario table, with rows for panel scenarios it does not list.

    Validated tables list them all; scoring accepts new ones, with attributes
    unknown (empty, NaN), which fall to the out-of-vocabulary rows.
    """
    table = read_scenarios(spec)
    seen = _rows_of_days(spec).select(pl.col(spec.scenario).unique().sort())
    new = seen.collect().join(
        table, on=spec.scenario, how="anti", maintain_order="left"
    )
    new = new.with_columns(
        *[pl.lit("").alias(n) for n in spec.scenario_columns.categorical],
        *[
            pl.lit(float("nan"), pl.Float32).alias(n)
            for n in spec.scenario_columns.numeric
        ],
    )
    return pl.concat([table, new.select(table.columns)])


def as_day(name: str, dtype: pl.DataType) -> pl.Expr:
    """The day that a column's value is, null where it is none.

    Example:

    >>> frame = pl.DataFrame({"day": ["2025-03-01", "1.3.2025"]})
    >>> frame.select(as_day("day", pl.String))["day"].to_list()
    [datetime.date(2025, 3, 1), None]
    """
    if dtype == pl.String:
        return pl.col(name).str.to_date("%Y-%m-%d", strict=False)
    return pl.col(name).cast(pl.Date, strict=False)


def _read_attributes(path, key, columns: AttributeColumns):
    frame = scan_table(path)
    dtypes = frame.collect_schema()

    def text(name):
        value = pl.col(name)
        if dtypes[name].is_float():
            value = value.fill_nan(None)
        return value.cast(pl.String).fill_null("")

    return (
        frame.select(
            pl.col(key).cast(pl.String),
            *[text(n) for n in columns.categorical],
            *[
                pl.col(n).cast(pl.Float32, strict=False).fill_null(float("nan"))
                for n in columns.numeric
            ],
        )
        .sort(key)
        .collect()
    )


def _wanted_attributes(key, columns: AttributeColumns):
    return {
        key: _TEXT,
        **dict.fromkeys(columns.categorical, _TEXT),
        **dict.fromkeys(columns.numeric, _NUMBERS),
    }


def _column_problems(path, wanted):
    """Columns that are not there, or of a type that cannot be read.

    All rows of a CSV file are read for it, too, since one with more fields
    than the header is an error only where all columns are read
    (pola-rs/polars#28350).
    """
    frame = scan_table(path)
    dtypes = frame.collect_schema()
    names = dtypes.names()
    if len(names) == 1 and (sign := set(";\t|") & set(names[0])):
        return [
            Problem(
                path.name,
                repr(names[0]),
                0,
                "is one column of several; separate fields by commas, and "
                "write decimals with a point",
                f"separated by: {sign.pop()!r}",
            )
        ]
    for file in table_files(path):
        if file.suffix == ".csv":
            with _reading(file):
                _scan_files([file]).select(pl.all().count()).collect()
    problems = []
    has_csv = any(file.suffix == ".csv" for file in table_files(path))
    parts = _columns_of_parts(path)
    for name, content in wanted.items():
        if name not in dtypes:
            message = "is missing; add it or correct the spec"
            example = f"columns present: {dtypes.names()}"
        elif not _can_hold(dtypes[name], content):
            message = f"is of a type that is not read; write {content}"
            example = f"type: {dtypes[name]}"
        elif (again := name + _AGAIN) in dtypes and has_csv:
            message = "stands in the header twice; take one out or rename it"
            example = f"the second is read as {again}"
        elif lacking := [part for part in parts if name not in parts[part]]:
            message = (
                "is missing in a file of the folder; add it there or correct "
                "the spec"
            )
            example = f"{len(lacking)} such, the first {lacking[0]}"
        else:
            continue
        problems.append(Problem(path.name, name, 0, message, example))
    return problems


def _columns_of_parts(path):
    """Names of the columns of each file of a folder; of no file of none."""
    if path.is_file():
        return {}
    return {
        str(file.relative_to(path)): {
            *_scan_files([file]).collect_schema().names(),
            *_told_by_folders(file, path),
        }
        for file in table_files(path)
    }


def _can_hold(dtype, content):
    if content == _TEXT:
        return not dtype.is_nested()
    if dtype in (pl.String, pl.Null):
        return True
    if content == _DAYS:
        return dtype in (pl.Date, pl.Datetime)
    return dtype.is_numeric() or dtype == pl.Boolean


def _find(frame, path, column, wrong, message, show=None):
    """Zero or one `Problem`: rows of `frame` where `wrong` holds."""
    shown = pl.col(column) if show is None else show
    found = (
        frame.filter(wrong)
        .select(
            pl.len().alias("count"),
            shown.first().cast(pl.String).alias("example"),
        )
        .collect()
    )
    count, example = found.row(0)
    if not count:
        return []
    # Quotes show an empty or blank value.
    example = repr(example) if example in (None, "") else example
    return [Problem(path.name, column, count, message, example)]


def _number_problems(frame, path, columns, may_be_missing=False):
    """Values that are no number that can be added up."""
    problems = []
    for name in columns:
        value = pl.col(name).cast(pl.Float64, strict=False)
        # In polars' order NaN is greater than any number.
        wrong = value.is_not_nan() & (value.abs() > _LARGEST)
        if may_be_missing:
            kinds, advice = "infinite", ""
            wrong |= value.is_null() & pl.col(name).is_not_null()
        else:
            kinds = "missing, NaN, infinite"
            advice = "; write 0 where nothing happened"
            wrong |= value.is_null() | value.is_nan()
        problems += _find(
            frame,
            path,
            name,
            wrong.fill_null(False),
            f"has values that are {kinds}, beyond {_LARGEST:g} or not "
            f"numbers{advice}",
        )
    return problems


def _key_problems(frame, path, key):
    """Missing or repeated keys of an attribute table."""
    repeated = frame.group_by(pl.col(key).cast(pl.String)).len(_COUNT)
    return _empty_ids(frame, path, key) + _find(
        repeated, path, key, pl.col(_COUNT) > 1, "lists an id more than once"
    )


def _empty_ids(frame, path, key):
    wrong = pl.col(key).is_null() | (pl.col(key).cast(pl.String) == "")
    if frame.collect_schema()[key].is_float():
        wrong |= pl.col(key).is_nan()
    return _find(frame, path, key, wrong, "has empty ids")


def _attribute_problems(path, key, columns):
    frame = scan_table(path)
    return _key_problems(frame, path, key) + _number_problems(
        frame, path, columns.numeric, may_be_missing=True
    )


def _panel_problems(spec, only_days):
    frame, path = scan_table(spec.panel), spec.panel
    dtype = frame.collect_schema()[spec.date]
    date = as_day(spec.date, dtype)
    if only_days:
        in_days = date.is_between(spec.start, spec.end)
        frame = frame.filter(in_days | date.is_null())
    problems = []
    for key in (spec.entity, spec.scenario):
        problems += _empty_ids(frame, path, key)
    problems += _find(
        frame,
        path,
        spec.date,
        date.is_null(),
        "has dates that are missing or not written YYYY-MM-DD",
    )
    if isinstance(dtype, pl.Datetime):
        zoned = pl.lit(dtype.time_zone is not None)
        midnight = pl.col(spec.date).dt.time() == pl.time(0)
        problems += _find(
            frame,
            path,
            spec.date,
            zoned | ~midnight,
            "holds instants, not days; convert them to the local trading day "
            "first",
        )
    keys = (
        pl.col(spec.entity).cast(pl.String),
        pl.col(spec.scenario).cast(pl.String),
        date,
    )
    if _may_repeat(frame, keys):
        problems += _find(
            frame.group_by(keys).len(_COUNT),
            path,
            f"({spec.entity}, {spec.scenario}, {spec.date})",
            (pl.col(_COUNT) > 1) & pl.col(spec.date).is_not_null(),
            "keys stand on more than one row; add the rows up, or keep one if "
            "they are copies",
            show=pl.format("{}, {}, {}", spec.entity, spec.scenario, spec.date),
        )
    suspects = _suspicious_columns(frame, spec.value_columns)
    problems += _number_problems(frame, path, suspects)
    labels = {task.column for task in spec.tasks}
    for name in suspects:
        if name in labels:
            problems += _find(
                frame,
                path,
                name,
                pl.col(name).cast(pl.Float64, strict=False) < 0,
                "is a label and must not be negative; give what is taken "
                "back, such as refunds, a column of its own",
            )
    return problems


def _may_repeat(frame, keys):
    """Whether keys may stand on two rows: in a third of an exact search.

    Equal keys have equal hashes, so as many hashes as rows rule it out.
    """
    hashes = pl.struct(keys).hash(seed=0)
    return frame.select(hashes.n_unique() < pl.len()).collect().item()


def _suspicious_columns(frame, columns):
    """Columns that may hold a value that is no finite number, or negative.

    One pass instead of one for each column and check: a sum is finite only if
    all its terms are.
    """
    values = [pl.col(name).cast(pl.Float64, strict=False) for name in columns]
    found = frame.select(
        (
            ~(value.abs().max() <= _LARGEST)
            | ~value.sum().is_finite()
            | (value.null_count() > 0)
            | (value.min() < 0)
        )
        .fill_null(False)
        .alias(name)
        for name, value in zip(columns, values, strict=True)
    ).collect()
    return [name for name in columns if found[name].item()]


def _reserved_names(spec):
    return _find(
        scan_table(spec.panel),
        spec.panel,
        spec.scenario,
        pl.col(spec.scenario).cast(pl.String) == schema.UNKNOWN_SCENARIO,
        "holds the name that reports give to all unknown scenarios; give "
        "this one another",
    )


def _range_problems(spec, later_rows):
    frame = scan_table(spec.panel)
    date = as_day(spec.date, frame.collect_schema()[spec.date])
    if later_rows:
        frame = frame.filter(date <= spec.end)
    problems = _find(
        frame,
        spec.panel,
        spec.date,
        ~date.is_between(spec.start, spec.end),
        f"has dates outside {spec.start} to {spec.end}; correct the rows or "
        "`start` and `end` of the spec",
    )
    last = frame.select(date.max()).collect().item()
    if last is not None and (spec.end - last).days >= spec.horizon:
        problems.append(
            Problem(
                spec.panel.name,
                spec.date,
                0,
                f"has no row in the {(spec.end - last).days} days up to "
                f"`end` ({spec.end}), which would count as zeros; correct "
                "`end` or add the rows",
                f"newest: {last}",
            )
        )
    return problems


def _unlisted(spec, key, path):
    """Panel ids that an attribute table does not list."""
    ids = pl.col(key).cast(pl.String)
    rows = scan_table(spec.panel).select(ids).drop_nulls()
    listed = scan_table(path).select(ids)
    return _find(
        rows.join(listed, on=key, how="anti"),
        spec.panel,
        key,
        pl.lit(True),
        f"has ids that {path.name} does not list, compared as text (7 is not "
        "007 or 7.0); add them there, or write them alike",
    )


def _empty_tasks(spec):
    """Tasks whose labels in the training label days teach nothing."""
    splits = windows.make_splits(spec)
    first = windows.date_of(spec, splits.train[0] + 1)
    last = windows.date_of(spec, windows.last_fit_day(spec))
    rows = read_panel(spec).filter(pl.col(spec.date).is_between(first, last))
    columns = list(dict.fromkeys(task.column for task in spec.tasks))
    largest = rows.select(pl.col(columns).max()).collect()
    problems = []
    for task in spec.tasks:
        value = largest[task.column][0] or 0.0
        if value <= 0:
            message = (
                f"is zero on every training label day ({first} to {last}), so "
                f"task {task.name!r} cannot be learned; drop the task or give "
                "more data"
            )
        elif value < _SMALLEST:
            message = (
                f"is below {_SMALLEST:g} on every training label day; give it "
                "in a smaller unit, so that usual values are above 1"
            )
        else:
            continue
        problems.append(
            Problem(
                spec.panel.name,
                task.column,
                0,
                message,
                f"largest: {value:g}",
            )
        )
    return problems


def _summarise(spec, splits):
    panel = _rows_of_days(spec)
    pair = pl.struct(spec.entity, spec.scenario)
    counts = panel.select(
        pl.col(spec.entity).n_unique().alias("entities"),
        pl.col(spec.scenario).n_unique().alias("scenarios"),
        pair.n_unique().alias("pairs"),
        pl.len().alias("panel_rows"),
        pl.col(spec.date).min().alias("first_day"),
        pl.col(spec.date).max().alias("last_day"),
    ).collect()
    return Summary(
        **counts.row(0, named=True),
        end=spec.end,
        cutoffs={
            name: len(getattr(splits, name)) for name in windows.SPLIT_NAMES
        },
        never_known=_never_known(spec),
    )


def _never_known(spec):
    """File of an attribute table → attributes that none of its rows has."""
    found = {}
    for path, read, columns in (
        (spec.profile, read_profile, spec.profile_columns),
        (spec.scenarios, read_scenarios, spec.scenario_columns),
    ):
        if not columns.names:
            continue
        rows = read(spec)
        names = [n for n in columns.categorical if (rows[n] == "").all()]
        names += [n for n in columns.numeric if rows[n].is_nan().all()]
        if names:
            found[path.name] = names
    return found
