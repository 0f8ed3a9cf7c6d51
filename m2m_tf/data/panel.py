"""Reads the tables of the data contract.

`iter_records` turns valid tables into one record per entity, a bounded number
of rows at a time; `m2m_tf.data.validation` says whether they are valid.
"""

import collections
import contextlib
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
from m2m_tf.data import schema

# Panel rows that `iter_records` holds at a time.
CHUNK_ROWS = 2_000_000
_ENDINGS = (".parquet", ".csv")
# How Hive and Spark call the folder of rows whose value is null.
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
# Columns that are added to those of a table, which hardly has one so called:
# the file that a row comes from, while a folder is read; the number of its day
# and of its entity; the part that it is copied to.
_FILE, _DAY, _NUMBER, _PART = (
    f"_m2m_tf_{name}" for name in ("file", "day", "number", "part")
)
# A copy of the rows in parts, and the most of them: each is written through
# a buffer of its own.
_SCRATCH, _MOST_PARTS = "rows", 64
# What SQL writes behind a day that it takes for an instant.
_MIDNIGHT = r"[ T]00:00:00(\.0+)?$"


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
    with reading(path):
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
            f"{path}: there is no such table. Check the path: in a spec it "
            "is relative to the spec's folder; it is of a file or folder of "
            "this machine, without `~` or `*`."
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
            "path: in a spec it is relative to the spec's folder."
        )
    return found


def _scan_files(paths, **options):
    """Opens files of the same columns."""
    path = paths[0]
    if path.suffix not in _ENDINGS:
        raise ValueError(
            f"{path}: tables are .parquet or .csv files, or folders of them. "
            "Unpack, convert or rename it. "
            f"Received: {path.suffix or 'no ending'}."
        )
    options["glob"] = False  # A folder's name may look like one.
    if path.suffix == ".parquet":
        frame = pl.scan_parquet(paths, hive_partitioning=False, **options)
    else:
        frame = pl.scan_csv(paths, infer_schema=False, **options)
    with reading(path):
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
def reading(path: pathlib.Path) -> Iterator[None]:
    """Says which table it is that polars cannot read.

    Raises:
        ValueError: In place of what polars raises.

    Example:

    >>> with reading(pathlib.Path("profile.csv")):
    ...     table = scan_table(pathlib.Path("profile.csv")).collect()
    """
    try:
        yield
    except pl.exceptions.PolarsError as error:
        advice = "write it again"
        if path.is_dir():
            advice = "write its files again, each column of one type in all"
        if any(file.suffix == ".csv" for file in table_files(path)):
            advice += (
                "; CSV in UTF-8, each row with as many fields as the header, "
                "decimals with a point and values that hold a comma in quotes"
            )
        # Below its first line stand options of functions of polars.
        told = str(error).partition("\n")[0]
        raise ValueError(
            f"{path}: cannot be read as a table; {advice}. Received: {told}."
        ) from error


def columns_of_parts(path: pathlib.Path) -> dict[str, list[str]]:
    """Names of the columns of each file of a table, and of its folders.

    Example:

    >>> columns_of_parts(pathlib.Path("profile.csv"))
    {'profile.csv': ['clinic', 'town', 'beds']}
    """
    if path.is_file():
        return {path.name: _scan_files([path]).collect_schema().names()}
    return {
        str(file.relative_to(path)): [
            *_scan_files([file]).collect_schema().names(),
            *_told_by_folders(file, path),
        ]
        for file in table_files(path)
    }


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
                rows_of_days(spec).select(spec.entity),
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
    num_rows = rows_of_days(spec).select(pl.len()).collect().item()
    return max(1, math.ceil(num_rows / chunk_rows))


def rows_of_days(spec: DatasetSpec) -> pl.LazyFrame:
    """The panel's rows from `spec.start` to `spec.end`, see `read_panel`.

    Example:

    >>> spec = DatasetSpec.load("spec.yaml")
    >>> rows_of_days(spec).select(pl.len()).collect().item()
    2818
    """
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
        rows = rows_of_days(self._spec)
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
    seen = rows_of_days(spec).select(pl.col(spec.scenario).unique().sort())
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

    >>> frame = pl.DataFrame({"day": ["2025-03-01", "20250302", "3.3.2025"]})
    >>> frame.select(as_day("day", pl.String))["day"].to_list()
    [datetime.date(2025, 3, 1), datetime.date(2025, 3, 2), None]
    """
    value = pl.col(name)
    if dtype.is_integer():
        return value.cast(pl.String).str.to_date("%Y%m%d", strict=False)
    if dtype != pl.String:
        return value.cast(pl.Date, strict=False)
    # A year of two digits would be one of the first century.
    day = pl.coalesce(
        value.str.replace(_MIDNIGHT, "").str.to_date("%Y-%m-%d", strict=False),
        value.str.to_date("%Y%m%d", strict=False),
    )
    return pl.when(day.dt.year() > 1000).then(day).alias(name)


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
