"""A first spec and config for tables that nobody has described yet."""

import contextlib
import dataclasses
import datetime
import math
import os
import pathlib
import re

import polars as pl
import yaml

from m2m_tf import files
from m2m_tf.config import (
    TRAINING_PRESETS,
    AttributeColumns,
    DatasetSpec,
    parse,
)
from m2m_tf.data import panel as panels, validation, windows

SPEC_FILE, CONFIG_FILE = "spec.yaml", "config.yaml"
# Lookbacks and strides in days, the better ones first: whole weeks, so that
# weekdays weigh alike, and what the paper looks back.
_WINDOWS = ((40, 7), (28, 7), (28, 3), (28, 1), (14, 3), (14, 1), (7, 1))
# With fewer training cutoffs a shorter stride is better.
_MIN_CUTOFFS = 8
# The preset that is drafted: its epochs are for so many samples.
_PRESET, _SAMPLES, _MOST_EPOCHS = "small", 100_000, 20
# A text is an attribute unless so many rows have nearly all a value of their
# own, as names and addresses are.
_MANY, _OWN = 50, 0.9
# Days of several rows that it takes to tell that a column is the calendar's.
_MIN_DAYS = 10
_DAY, _ROWS = "_m2m_tf_day", "_m2m_tf_rows"
_SPEC_HEAD = """\
# A draft by `m2m-tf init`: look at each role, above all at these.
# - behavior: move here what the entity itself did, out of `performance`.
# - tasks: leave those that are to be forecast.
# - activity: what must have happened in the lookback for a sample to count.
# - profile_columns, scenario_columns: codes, such as of areas, are categorical.
# What each key means: docs/data_contract.md, docs/how_to/own_data.md.
"""
_CONFIG_HEAD = """\
# A draft by `m2m-tf init`. All settings: docs/settings.md.
"""


@dataclasses.dataclass(frozen=True)
class Draft:
    """What `write_draft` has written.

    Attributes:
        spec: The spec.
        notes: What was left out of it, and why, in sentences.

    Example:

    >>> columns = {"entity": "clinic", "scenario": "visit_kind", "date": "day"}
    >>> write_draft("draft", "panel.parquet", **columns).notes
    ()
    """

    spec: DatasetSpec
    notes: tuple[str, ...]


def write_draft(
    folder: str | os.PathLike,
    panel: str | os.PathLike,
    entity: str,
    scenario: str,
    date: str,
    profile: str | os.PathLike | None = None,
    scenarios: str | os.PathLike | None = None,
) -> Draft:
    """Writes a spec and a config that fit the tables, to be looked through.

    The panel's columns of numbers become `performance`, since a table does
    not tell what the entity did and what came of it, but for attributes and
    numbers of rows; and those of them tasks that have no negative values and
    are no shares. Attributes are numeric where all their values are numbers.
    Lookback and stride are the longest that give enough cutoffs. What is left
    out is told.

    Args:
        folder: Where `spec.yaml` and `config.yaml` go.
        panel: Panel table, see `DatasetSpec`.
        entity: Its column of entities' ids.
        scenario: Its column of scenarios' ids.
        date: Its column of days.
        profile: Table of entities' attributes, or None.
        scenarios: Table of scenarios' attributes, or None.

    Returns:
        The spec, and notes that the file holds, too.

    Raises:
        DataValidationError: If a column of ids or days cannot be read.
        ValueError: If a file is there already, days are too few, or no column
            can be a task.

    Example:

    >>> columns = {"entity": "clinic", "scenario": "visit_kind", "date": "day"}
    >>> write_draft("draft", "panel.parquet", **columns).spec.task_names
    ('staff', 'open_hours', 'visits', 'fees', 'open_days', 'appointments')
    """
    folder, panel = pathlib.Path(folder), pathlib.Path(panel)
    targets = [folder / name for name in (SPEC_FILE, CONFIG_FILE)]
    for path in targets:
        if path.exists():
            raise ValueError(
                f"{path}: is there already and would be lost. Give another "
                "folder, or take it away."
            )
    notes = []
    values, num_pairs = _panel_values(panel, entity, scenario, date, notes)
    for table, columns, path, key in (
        ("profile", "profile_columns", profile, entity),
        ("scenarios", "scenario_columns", scenarios, scenario),
    ):
        if path is not None:
            path = pathlib.Path(path)
            values[table] = str(path.resolve())
            values[columns] = _attributes(path, key, notes)
    spec, splits = _with_windows(values)
    for table in spec.tables:
        values[table] = os.path.relpath(values[table], folder.resolve())
    values |= {"lookback": spec.lookback, "stride": spec.stride}
    epochs = _epochs(num_pairs * len(splits.train))
    config = {
        "name": values["name"].strip("_") or "panel",
        "data": SPEC_FILE,
        "model": {"preset": _PRESET},
        "training": {"preset": _PRESET, "epochs": epochs},
    }
    told = "".join(f"# {note}.\n" for note in notes)
    for path, head, content in zip(
        targets,
        (_SPEC_HEAD + told, _CONFIG_HEAD),
        (values, config),
        strict=True,
    ):
        text = yaml.safe_dump(
            content,
            sort_keys=False,
            default_flow_style=None,
            allow_unicode=True,
            width=100,
        )
        files.write_text(path, head + text)
    return Draft(DatasetSpec.load(targets[0]), tuple(notes))


def _panel_values(path, entity, scenario, date, notes):
    """Keys of a spec that the panel tells, and its number of pairs."""
    validation.require_keys(path, (entity, scenario), date)
    frame = panels.scan_table(path)
    dtypes = frame.collect_schema()
    day = panels.as_day(date, dtypes[date])
    keys = (entity, scenario, date)
    numbers = _panel_numbers(frame, day, keys, path, notes)
    pairs = pl.struct(pl.col(entity, scenario).cast(pl.String))
    told = frame.select(
        day.min().alias("start"),
        day.max().alias("end"),
        pairs.n_unique().alias("pairs"),
        pl.len().alias(_ROWS),
        *[
            pl.struct(
                least=_number(name).min(),
                negative=(_number(name) < 0).sum(),
                most=_number(name).max(),
                filled=(_number(name) != 0).sum(),
                whole=(_number(name) % 1 == 0).all(),
            ).alias(f"values of {name}")
            for name in numbers
        ],
    )
    told = told.collect().row(0, named=True)
    values_of = {name: told[f"values of {name}"] for name in numbers}
    for name in _numbers_of_rows(frame, values_of, told[_ROWS]):
        del values_of[name]
        notes.append(
            f"Left out {path.name}, {name}: a number of the row, each has "
            "its own"
        )
    filled = {}
    for name, facts in values_of.items():
        if facts["negative"]:
            notes.append(
                f"No task of {path.name}, {name}: {facts['negative']:,} "
                f"values are negative, the least {facts['least']:g}"
            )
        elif not facts["filled"]:
            notes.append(f"No task of {path.name}, {name}: all values are 0")
        elif facts["most"] <= 1 and not facts["whole"]:
            notes.append(
                f"No task of {path.name}, {name}: from {facts['least']:g} to "
                f"{facts['most']:g}, as shares are, whose sums over days mean "
                "nothing"
            )
        else:
            filled[name] = facts["filled"]
    if not filled:
        raise ValueError(
            f"{path}: has no column of numbers, none negative, not all 0 and "
            f"no shares, that could be forecast. Columns: {dict(dtypes)}."
            + "".join(f"\n  {note}" for note in notes)
        )
    tasks = {}
    for name in filled:
        task = _as_name(name)
        if task in tasks:
            notes.append(
                f"No task of {path.name}, {name}: its name would be that of "
                f"{tasks[task]}"
            )
        tasks.setdefault(task, name)
    values = {
        "name": _as_name(path.resolve().stem),
        "panel": str(path.resolve()),
        "entity": entity,
        "scenario": scenario,
        "date": date,
        "start": told["start"],
        "end": told["end"],
        "behavior": [],
        "performance": list(values_of),
        "tasks": [
            {"name": task, "column": column, "weight": "inverse_mean"}
            for task, column in tasks.items()
        ],
        "activity": max(filled, key=filled.get),
    }
    return values, told["pairs"]


def _as_name(text):
    """Letters, digits and _ in place of what a name may not hold."""
    name = re.sub(r"\W", "_", text, flags=re.ASCII)
    return f"_{name}" if name[:1].isdigit() else name


def _panel_numbers(frame, day, keys, path, notes):
    """The panel's columns of numbers, in its order; notes on the others."""
    dtypes = frame.collect_schema()
    names = [name for name in dtypes if name not in keys]
    fillings = _fillings(
        frame, [n for n in names if validation.holds_numbers(dtypes[n])]
    )
    found = []
    for name in names:
        facts = fillings.get(name)
        if _is_index(name):
            reason = "an index, as pandas writes it"
        elif facts is None:
            reason = f"of type {dtypes[name]}"
        elif facts["wrong"]:
            reason = _no_numbers(facts)
        elif not facts["filled"]:
            reason = "no row has a value"
        else:
            found.append(name)
            continue
        notes.append(f"Left out {path.name}, {name}: {reason}")
    for name in _same_all_day(frame, day, found):
        found.remove(name)
        notes.append(
            f"Left out {path.name}, {name}: the same in all rows of a day; "
            "models know the calendar"
        )
    entity, scenario, _ = keys
    for key, table in ((entity, "profile"), (scenario, "scenarios")):
        for name in _same_all_along(frame, key, found):
            found.remove(name)
            notes.append(
                f"Left out {path.name}, {name}: the same in all rows of a "
                f"{key}; an attribute, which `{table}` may have"
            )
    return found


def _attributes(path, key, notes):
    validation.require_keys(path, (key,))
    frame = panels.scan_table(path)
    dtypes = frame.collect_schema()
    names = [name for name in dtypes if name != key]
    fillings = _fillings(
        frame, [n for n in names if validation.holds_numbers(dtypes[n])]
    )
    flat = [
        name
        for name, dtype in dtypes.items()
        if not (dtype.is_nested() or dtype.is_temporal())
    ]
    rows, *distinct = (
        frame.select(pl.len(), pl.col(flat).n_unique()).collect().row(0)
    )
    distinct = dict(zip(flat, distinct, strict=True))
    found = {"categorical": [], "numeric": []}
    for name in names:
        facts = fillings.get(name, {"wrong": 1, "filled": 1})
        if _is_index(name):
            reason = "an index, as pandas writes it"
        elif name not in distinct:
            reason = f"of type {dtypes[name]}"
        elif not _may_be_input(name):
            reason = (
                "its name, as one of an input of the model, may hold only "
                "letters from a to z, digits and the signs _ . - /"
            )
        elif not facts["filled"]:
            reason = "no row has a value"
        elif not facts["wrong"]:
            found["numeric"].append(name)
            continue
        elif rows >= _MANY and distinct[name] > _OWN * rows:
            reason = "nearly every row has a value of its own"
        else:
            found["categorical"].append(name)
            if facts["wrong"] < facts["filled"]:
                notes.append(
                    f"Categorical {path.name}, {name}: {_no_numbers(facts)}"
                )
            continue
        notes.append(f"Left out {path.name}, {name}: {reason}")
    return found


def _may_be_input(name):
    try:
        AttributeColumns(categorical=(name,))
    except ValueError:
        return False
    return True


def _is_index(name):
    """Whether pandas calls so the index that it writes beside the columns."""
    return re.fullmatch(r"|Unnamed: \d+|__index_level_\d+__", name) is not None


def _fillings(frame, names):
    """Of each column: values, those that are no numbers, one of them."""
    if not names:
        return {}
    told = frame.select(
        pl.struct(
            filled=pl.col(name).count(),
            wrong=wrong.sum(),
            example=pl.col(name).filter(wrong).first().cast(pl.String),
        ).alias(name)
        for name in names
        for wrong in [_number(name).is_null() & pl.col(name).is_not_null()]
    )
    return told.collect().row(0, named=True)


def _no_numbers(facts):
    return (
        f"{facts['wrong']:,} of {facts['filled']:,} values are no numbers, "
        f"such as {facts['example']!r}"
    )


def _same_all_day(frame, day, names):
    """Columns that differ between days alone: they tell of the calendar."""
    spans = _spans(frame, day.alias(_DAY), names, least_rows=2)
    if len(spans) < _MIN_DAYS:
        return []
    return [name for name in names if _is_one_each(spans[name])]


def _same_all_along(frame, key, names):
    """Columns that differ between a key's values alone, never by day."""
    spans = _spans(frame, key, names, least_rows=_MIN_DAYS)
    return [
        name
        for name in names
        if _is_one_each(spans[name])
        # That a day has no value tells of it.
        and not spans[name].struct.field("missing").sum()
    ]


def _spans(frame, group, names, least_rows):
    """Least and most of each column in each group of so many rows."""
    by_group = frame.group_by(group).agg(
        pl.len().alias(_ROWS),
        *[
            pl.struct(
                least=value.min(), most=value.max(), missing=value.null_count()
            ).alias(name)
            for name in names
            for value in [_number(name)]
        ],
    )
    return by_group.filter(pl.col(_ROWS) >= least_rows).collect()


def _is_one_each(spans):
    """Whether each group has one value, and not all the same one."""
    least, most = (spans.struct.field(x) for x in ("least", "most"))
    return least.equals(most) and least.n_unique() > 1


def _numbers_of_rows(frame, facts, rows):
    """Columns of whole numbers, close together, of which each row has one."""
    dense = [
        name
        for name, told in facts.items()
        if told["whole"] and rows - 1 <= told["most"] - told["least"] < 2 * rows
    ]
    if rows < _MANY or not dense:
        return []
    distinct = frame.select(pl.col(dense).n_unique()).collect().row(0)
    return [name for name, n in zip(dense, distinct, strict=True) if n == rows]


def _number(name):
    return pl.col(name).cast(pl.Float64, strict=False)


def _with_windows(values):
    """The spec with the first lookback and stride that will do."""
    possible = []
    for lookback, stride in _WINDOWS:
        spec = parse(
            DatasetSpec,
            values | {"lookback": lookback, "stride": stride},
            f"the draft of {values['panel']}",
        )
        try:
            splits = windows.make_splits(spec)
        except windows.SplitError:
            continue
        possible.append((spec, splits))
        if len(splits.train) >= _MIN_CUTOFFS:
            return spec, splits
    if not possible:
        raise ValueError(
            f"{values['panel']}: {spec.num_days} days, {spec.start} to "
            f"{spec.end}, are too few to train, choose and test on; give "
            f"{_least_days(spec)} or more."
        )
    return max(possible, key=lambda found: len(found[1].train))


def _least_days(spec):
    """Days that a spec needs."""
    while True:
        spec = dataclasses.replace(
            spec, end=spec.end + datetime.timedelta(days=1)
        )
        with contextlib.suppress(windows.SplitError):
            windows.make_splits(spec)
            return spec.num_days


def _epochs(samples):
    least = TRAINING_PRESETS[_PRESET].epochs
    wanted = math.ceil(least * _SAMPLES / max(samples, 1))
    return min(max(wanted, least), _MOST_EPOCHS)
