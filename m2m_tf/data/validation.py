"""Checks tables against the data contract.

`validate_tables` reports every problem of every table at once, each with file,
column, row count and an example, and what is allowed but hardly meant.
"""

import dataclasses
import datetime
import pathlib
from collections.abc import Sequence

import numpy as np
import polars as pl

from m2m_tf.config import AttributeColumns, DatasetSpec
from m2m_tf.data import schema, windows
from m2m_tf.data.panel import (
    as_day,
    columns_of_parts,
    read_panel,
    read_profile,
    read_scenarios,
    reading,
    rows_of_days,
    scan_table,
    table_files,
)

# Sums over a window and over scenarios must be finite in float32 (3e38), too.
_LARGEST = 1e30
# What is always smaller drowns in the floors of levels and features.
_SMALLEST = 1e-4
# A largest value may be so many times the one of this rank: sizes of
# advertisers, as unlike as they are, have no such gap between ten of them.
_MOST_TIMES, _RANK = 1000, 10
# A table with rows on fewer of its days is one of weeks or months, perhaps.
_LEAST_DAYS = 2 / 7
# How many rows of a key there are; hardly a column is so called.
_COUNT = "_m2m_tf_count"
# What polars adds to the name of a CSV's column that the header has twice.
_AGAIN = "_duplicated_0"
# What a column must hold.
_TEXT = "one value a row"
_NUMBERS = "numbers"
_DAYS = "days as YYYY-MM-DD or YYYYMMDD, or as dates"


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
        rows = "1 row" if self.count == 1 else f"{self.count} rows"
        where = f"{rows}; example: " if self.count else ""
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

    `concerns` are sentences about what is allowed but hardly meant.

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
    cutoffs: dict[str, int]
    concerns: tuple[str, ...]

    def __str__(self):
        cutoffs = ", ".join(f"{k} {v}" for k, v in self.cutoffs.items())
        lines = [
            f"{self.entities:,} entities, {self.scenarios} scenarios, "
            f"{self.pairs:,} pairs, {self.panel_rows:,} panel rows, "
            f"{self.first_day} to {self.last_day}; cutoffs: {cutoffs}"
        ]
        return "\n".join(lines + [f"mind: {text}" for text in self.concerns])


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


def concerns_of_days(spec: DatasetSpec) -> tuple[str, ...]:
    """Tells days without rows, or with far fewer than is usual, in sentences.

    Example:

    >>> concerns_of_days(DatasetSpec.load("spec.yaml"))
    ()
    """
    return tuple(_day_concerns(spec, _rows_by_day(spec).collect()))


def require_keys(
    path: pathlib.Path, ids: Sequence[str], date: str | None = None
) -> None:
    """Checks the ids and days of a table that has no spec yet.

    Args:
        path: The table.
        ids: Its columns of ids.
        date: Its column of days, if it has one.

    Raises:
        DataValidationError: With every problem found.
        FileNotFoundError, ValueError: If it cannot be opened at all.

    Example:

    >>> require_keys(pathlib.Path("panel.parquet"), ["clinic"], "day")
    """
    wanted = dict.fromkeys(ids, _TEXT)
    if date is not None:
        wanted[date] = _DAYS
    problems = _column_problems(path, wanted)
    if not problems:
        frame = scan_table(path)
        with reading(path):
            for key in ids:
                problems += _empty_ids(frame, path, key)
            if date is not None:
                problems += _day_problems(frame, path, date)
    if problems:
        raise DataValidationError(problems)


def holds_numbers(dtype: pl.DataType) -> bool:
    """Whether a column of this type is read as numbers, if its values are.

    Example:

    >>> holds_numbers(pl.Boolean()), holds_numbers(pl.Date())
    (True, False)
    """
    return _can_hold(dtype, _NUMBERS)


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
        with reading(spec.profile):
            problems += _attribute_problems(
                spec.profile, spec.entity, spec.profile_columns
            )
    if complete.get("scenarios"):
        with reading(spec.scenarios):
            problems += _attribute_problems(
                spec.scenarios, spec.scenario, spec.scenario_columns
            )
    if complete["panel"]:
        with reading(spec.panel):
            problems += _panel_problems(spec, only_days)
    return problems, complete


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
    csv = [file for file in table_files(path) if file.suffix == ".csv"]
    for file in csv:
        header = scan_table(file).collect_schema().names()
        if len(header) == 1 and (sign := set(";\t|") & set(header[0])):
            return [
                Problem(
                    str(file.relative_to(path.parent)),
                    repr(header[0]),
                    0,
                    "is one column of several; separate fields by commas, and "
                    "write decimals with a point",
                    f"separated by: {sign.pop()!r}",
                )
            ]
        with reading(file):
            scan_table(file).select(pl.all().count()).collect()
    dtypes, parts = scan_table(path).collect_schema(), columns_of_parts(path)
    problems = []
    for name, content in wanted.items():
        if name not in dtypes:
            message = "is missing; add it or correct its name"
            example = _alike_or_all(name, dtypes.names())
        elif not _can_hold(dtypes[name], content):
            message = f"is of a type that is not read; write {content}"
            example = f"type: {dtypes[name]}"
        elif (again := name + _AGAIN) in dtypes and csv:
            message = "stands in the header twice; take one out or rename it"
            example = f"the second is read as {again}"
        elif lacking := [part for part in parts if name not in parts[part]]:
            message = (
                "is missing in a file of the folder; add it there or correct "
                "its name"
            )
            example = f"{len(lacking)} such, the first {lacking[0]}"
        else:
            continue
        problems.append(Problem(path.name, name, 0, message, example))
    return problems


def _alike_or_all(name, present):
    """The column that was meant, or all that there are."""

    def plain(text):
        return text.strip().casefold()

    for other in present:
        if plain(other) == plain(name):
            return f"there is {other!r}"
    return f"columns present: {present}"


def _can_hold(dtype, content):
    if content == _TEXT:
        return not dtype.is_nested()
    if dtype in (pl.String, pl.Null):
        return True
    if content == _DAYS:
        return dtype in (pl.Date, pl.Datetime) or dtype.is_integer()
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
    # Quotes show an empty value, and blanks at the ends.
    if not example or example != example.strip():
        example = repr(example)
    return [Problem(path.name, column, count, message, example)]


def _number_problems(frame, path, columns, may_be_missing=False):
    """Values that are no number that can be added up."""
    problems = []
    for name in columns:
        value = pl.col(name).cast(pl.Float64, strict=False)
        if not may_be_missing:
            problems += _find(
                frame,
                path,
                name,
                pl.col(name).is_null() | value.is_nan().fill_null(False),
                "has missing values; write 0 where nothing happened",
            )
        problems += _find(
            frame,
            path,
            name,
            value.is_null() & pl.col(name).is_not_null(),
            "has values that are no numbers; write them as 1234.5, without "
            "units, signs or blanks",
        )
        problems += _find(
            frame,
            path,
            name,
            # In polars' order NaN is greater than any number.
            value.is_not_nan() & (value.abs() > _LARGEST),
            f"has values that are infinite or beyond {_LARGEST:g}; correct "
            "them",
        )
    return problems


def _key_problems(frame, path, key):
    """Missing or repeated keys of an attribute table."""
    repeated = frame.group_by(pl.col(key).cast(pl.String)).len(_COUNT)
    return _empty_ids(frame, path, key) + _find(
        repeated, path, key, pl.col(_COUNT) > 1, "lists an id more than once"
    )


def _empty_ids(frame, path, key):
    text = pl.col(key).cast(pl.String)
    wrong = pl.col(key).is_null() | (text.str.strip_chars() == "")
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
    date = as_day(spec.date, frame.collect_schema()[spec.date])
    if only_days:
        in_days = date.is_between(spec.start, spec.end)
        frame = frame.filter(in_days | date.is_null())
    if scan_table(path).head(1).collect().is_empty():
        message = "has no value, as the table has no row; fill it"
        return [Problem(path.name, spec.date, 0, message, "0 rows")]
    problems = []
    for key in (spec.entity, spec.scenario):
        problems += _empty_ids(frame, path, key)
    problems += _day_problems(frame, path, spec.date)
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


def _day_problems(frame, path, column):
    """Days that cannot be read, or are more than days."""
    dtype = frame.collect_schema()[column]
    problems = _find(
        frame,
        path,
        column,
        as_day(column, dtype).is_null(),
        "has dates that are missing or not written YYYY-MM-DD",
    )
    if isinstance(dtype, pl.Datetime):
        zoned = pl.lit(dtype.time_zone is not None)
        midnight = pl.col(column).dt.time() == pl.time(0)
        problems += _find(
            frame,
            path,
            column,
            zoned | ~midnight,
            "holds instants, not days; convert them to the local trading day "
            "first",
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
    inside = date.is_between(spec.start, spec.end)
    days = frame.filter(inside).select(date.unique().sort()).collect()
    return problems + _gap_problems(spec, days[spec.date].to_list())


def _gap_problems(spec, days):
    """Days without a row that nobody means to count as zeros."""
    if not days:
        return []
    lead, trail = (days[0] - spec.start).days, (spec.end - days[-1]).days
    problems = []

    def add(message, example):
        problems.append(
            Problem(spec.panel.name, spec.date, 0, message, example)
        )

    if lead >= spec.horizon:
        add(
            f"has no row in the {lead} days from `start` ({spec.start}), "
            "which would count as zeros; correct `start` or add the rows",
            f"oldest: {days[0]}",
        )
    if trail >= spec.horizon:
        add(
            f"has no row in the {trail} days up to `end` ({spec.end}), which "
            "would count as zeros; correct `end` or add the rows",
            f"newest: {days[-1]}",
        )
    gaps = [later - day for day, later in zip(days, days[1:], strict=False)]
    if gaps and max(gaps).days > spec.num_days / 2:
        before = gaps.index(max(gaps))
        add(
            "has no row in most of the days, which would count as zeros; "
            "correct the dates before or after them, or `start` and `end`",
            f"none between {days[before]} and {days[before + 1]}",
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
        "007, 7.0 or '7 '); add them there, or write them alike",
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
    rows = rows_of_days(spec)
    values = pl.col(list(spec.value_columns))
    pairs, days, top = pl.collect_all(
        [
            rows.select(spec.entity, spec.scenario).unique(),
            _rows_by_day(spec),
            # Of fewer rows: all.
            rows.select(values.top_k(_RANK)),
        ]
    )
    concerns = [*_day_concerns(spec, days), *_outliers(spec, top)]
    for key in (spec.entity, spec.scenario):
        concerns += _alike(pairs[key].unique())
    return Summary(
        entities=pairs[spec.entity].n_unique(),
        scenarios=pairs[spec.scenario].n_unique(),
        pairs=len(pairs),
        panel_rows=days[_COUNT].sum(),
        first_day=days[spec.date][0],
        last_day=days[spec.date][-1],
        cutoffs={
            name: len(getattr(splits, name)) for name in windows.SPLIT_NAMES
        },
        concerns=(*concerns, *_never_known(spec)),
    )


def _rows_by_day(spec):
    return rows_of_days(spec).group_by(spec.date).len(_COUNT).sort(spec.date)


def _day_concerns(spec, days):
    """See `concerns_of_days`; `days` are the `_rows_by_day`."""
    first, last = days[spec.date][0], days[spec.date][-1]
    concerns = []
    if last < spec.end:
        concerns.append(
            f"no row is newer than {last}; the days up to {spec.end} count as "
            "zeros"
        )
    rows = np.zeros((last - first).days + 1, int)
    rows[(days[spec.date] - first).dt.total_days()] = days[_COUNT]
    if len(days) < _LEAST_DAYS * len(rows):
        concerns.append(
            f"only {len(days)} of {len(rows)} days have rows, the others "
            "count as zeros; is it a table of weeks or months? The panel has "
            "a row for each day"
        )
    elif len(rows) >= 14:  # Else some days have no other of their weekday.
        concerns += _thin_days(first, rows)
    return concerns


def _thin_days(first, rows):
    """What to tell of days with far fewer rows than is usual."""
    # Usual is what the same weekday has in the four weeks on both sides.
    weeks = 4
    padded = np.pad(rows.astype(float), 7 * weeks, constant_values=np.nan)
    around = [
        padded[7 * week :][: len(rows)]
        for week in range(2 * weeks + 1)
        if week != weeks
    ]
    usual = np.nanmedian(around, axis=0)
    # By far more than by chance, if rows come one by one.
    few = (3 * rows < usual) & (usual - rows > 3 * np.sqrt(usual))
    numbers = np.flatnonzero(few).tolist()
    if not numbers:
        return []
    shown = ", ".join(
        f"{first + datetime.timedelta(day)} ({rows[day]:,}, usually "
        f"{usual[day]:,.0f})"
        for day in dict.fromkeys([numbers[0], numbers[-1]])
    )
    have = "1 day has" if len(numbers) == 1 else f"{len(numbers)} days have"
    return [
        f"{have} far fewer rows than is usual on the weekday: {shown}; were "
        "they loaded whole? What has no row counts as zeros",
    ]


def _outliers(spec, top):
    """Concerns about values that are far larger than all but a few."""
    concerns = []
    for name in spec.value_columns:
        largest, least = top[name].max(), top[name].min()
        if len(top) < _RANK or not largest > _MOST_TIMES * least > 0:
            continue
        keys = pl.col(spec.entity, spec.scenario, spec.date)
        row = rows_of_days(spec).filter(pl.col(name) == largest).select(keys)
        place = ", ".join(str(key) for key in row.first().collect().row(0))
        concerns.append(
            f"{name} is {largest:,.0f} at ({place}), and its {_RANK}th largest "
            f"value {least:,.4g}; is it a mistake? Means and weights of losses "
            "follow it"
        )
    return concerns


def _alike(ids):
    """Concerns about ids that may be the same, written otherwise."""
    written = pl.col(ids.name)
    groups = (
        ids.to_frame()
        .group_by(
            written.str.strip_chars()
            .str.to_lowercase()
            .str.strip_chars_start("0")
            .alias(_COUNT)
        )
        .agg(written.sort())
        .filter(written.list.len() > 1)
        .sort(_COUNT)
    )
    if groups.is_empty():
        return []
    one, other = groups[ids.name][0][:2]
    return [
        f"{len(groups)} of {ids.name}'s ids are written in several ways that "
        f"differ in blanks, case or zeros in front, as {one!r} and {other!r}; "
        "if they are the same, write them alike: each has a history of its own"
    ]


def _never_known(spec):
    """Concerns about attributes that no row of their table has."""
    concerns = []
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
            concerns.append(
                f"no row of {path.name} has a value of {', '.join(names)}"
            )
    return concerns
