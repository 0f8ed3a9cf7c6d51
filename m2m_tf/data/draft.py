"""A first spec and config for tables that nobody has described yet."""

import math
import os
import pathlib
import re

import polars as pl
import yaml

from m2m_tf import files
from m2m_tf.config import TRAINING_PRESETS, DatasetSpec, parse
from m2m_tf.data import panel as panels, windows

SPEC_FILE, CONFIG_FILE = "spec.yaml", "config.yaml"
# Lookbacks and strides in days, the better ones first: whole weeks, so that
# weekdays weigh alike, and what the paper looks back.
_WINDOWS = ((40, 7), (28, 7), (28, 3), (28, 1), (14, 3), (14, 1), (7, 1))
# With fewer training cutoffs a shorter stride is better.
_MIN_CUTOFFS = 8
# The preset that is drafted: its epochs are for so many samples.
_PRESET, _SAMPLES, _MOST_EPOCHS = "small", 100_000, 20
_SPEC_HEAD = """\
# A draft by `m2m-tf init`: look at each role, above all at these.
# - behavior: move here what the entity itself did, out of `performance`.
# - tasks: leave those that are to be forecast.
# - activity: what must have happened in the lookback for a sample to count.
# What each key means: docs/data_contract.md, docs/how_to/own_data.md.
"""
_CONFIG_HEAD = """\
# A draft by `m2m-tf init`. All settings: docs/settings.md.
"""


def write_draft(
    folder: str | os.PathLike,
    panel: str | os.PathLike,
    entity: str,
    scenario: str,
    date: str,
    profile: str | os.PathLike | None = None,
    scenarios: str | os.PathLike | None = None,
) -> DatasetSpec:
    """Writes a spec and a config that fit the tables, to be looked through.

    All columns of numbers of the panel become `performance`, since a table
    does not tell what the entity did and what came of it, and those without
    negative values tasks. Attributes are numeric where all their values are
    numbers. Lookback and stride are the longest that give enough cutoffs.

    Args:
        folder: Where `spec.yaml` and `config.yaml` go.
        panel: Panel table, see `DatasetSpec`.
        entity: Its column of entities' ids.
        scenario: Its column of scenarios' ids.
        date: Its column of days.
        profile: Table of entities' attributes, or None.
        scenarios: Table of scenarios' attributes, or None.

    Returns:
        The spec.

    Raises:
        ValueError: If a file is there already, a column is not, days cannot
            be read or are too few, or no column can be a task.

    Example:

    >>> columns = {"entity": "clinic", "scenario": "visit_kind", "date": "day"}
    >>> spec = write_draft("draft", "panel.parquet", **columns)
    >>> spec.task_names
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
    values, num_pairs = _panel_values(panel, entity, scenario, date)
    for table, columns, path, key in (
        ("profile", "profile_columns", profile, entity),
        ("scenarios", "scenario_columns", scenarios, scenario),
    ):
        if path is not None:
            values[table] = str(pathlib.Path(path).resolve())
            values[columns] = _attributes(pathlib.Path(path), key)
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
    for path, head, content in zip(
        targets, (_SPEC_HEAD, _CONFIG_HEAD), (values, config), strict=True
    ):
        text = yaml.safe_dump(
            content,
            sort_keys=False,
            default_flow_style=None,
            allow_unicode=True,
            width=100,
        )
        files.write_text(path, head + text)
    return DatasetSpec.load(targets[0])


def _panel_values(path, entity, scenario, date):
    """Keys of a spec that the panel tells, and its number of pairs."""
    frame = panels.scan_table(path)
    dtypes = frame.collect_schema()
    _require_columns(path, dtypes, entity, scenario, date)
    numbers = _columns_of_numbers(frame, (entity, scenario, date))
    day = panels.as_day(date, dtypes[date])
    pairs = pl.struct(pl.col(entity, scenario).cast(pl.String))
    told = frame.select(
        day.min().alias("start"),
        day.max().alias("end"),
        day.null_count().alias("unread"),
        pairs.n_unique().alias("pairs"),
        *[
            pl.struct(
                least=_number(name).min(),
                filled=(_number(name) != 0).sum(),
            ).alias(f"values of {name}")
            for name in numbers
        ],
    )
    told = told.collect().row(0, named=True)
    if told["unread"]:
        raise ValueError(
            f"{path}: {told['unread']} values of {date!r} are no days; write "
            "them as YYYY-MM-DD, or as dates."
        )
    filled = {
        name: facts["filled"]
        for name in numbers
        if (facts := told[f"values of {name}"])["filled"]
        and facts["least"] >= 0
    }
    if not filled:
        raise ValueError(
            f"{path}: has no column of numbers, none negative and not all 0, "
            f"that could be forecast. Columns: {dict(dtypes)}."
        )
    tasks = {}
    for name in filled:
        tasks.setdefault(_as_name(name), name)
    values = {
        "name": _as_name(path.stem),
        "panel": str(path.resolve()),
        "entity": entity,
        "scenario": scenario,
        "date": date,
        "start": told["start"],
        "end": told["end"],
        "behavior": [],
        "performance": numbers,
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


def _attributes(path, key):
    frame = panels.scan_table(path)
    dtypes = frame.collect_schema()
    _require_columns(path, dtypes, key)
    numeric = _columns_of_numbers(frame, (key,))
    categorical = [
        name
        for name, dtype in dtypes.items()
        if name not in (key, *numeric)
        and not (dtype.is_nested() or dtype.is_temporal())
    ]
    return {"categorical": categorical, "numeric": numeric}


def _columns_of_numbers(frame, keys):
    """Columns all of whose values are numbers; those of CSV files are text."""
    names = [
        name
        for name, dtype in frame.collect_schema().items()
        if name not in keys and not (dtype.is_nested() or dtype.is_temporal())
    ]
    told = frame.select(
        (
            (_number(name).is_not_null() | pl.col(name).is_null()).all()
            & pl.col(name).is_not_null().any()
        ).alias(name)
        for name in names
    )
    told = told.collect().to_dict()
    return [name for name in told if told[name].item()]


def _number(name):
    return pl.col(name).cast(pl.Float64, strict=False)


def _require_columns(path, dtypes, *names):
    if missing := [name for name in names if name not in dtypes]:
        raise ValueError(
            f"{path}: has no column {missing}. Columns: {dtypes.names()}."
        )


def _with_windows(values):
    """The spec with the first lookback and stride that will do."""
    possible = []
    for lookback, stride in _WINDOWS:
        spec = parse(
            DatasetSpec, values | {"lookback": lookback, "stride": stride}
        )
        try:
            splits = windows.make_splits(spec)
        except windows.SplitError as error:
            told = error
            continue
        possible.append((spec, splits))
        if len(splits.train) >= _MIN_CUTOFFS:
            return spec, splits
    if not possible:
        raise told
    return max(possible, key=lambda found: len(found[1].train))


def _epochs(samples):
    least = TRAINING_PRESETS[_PRESET].epochs
    wanted = math.ceil(least * _SAMPLES / max(samples, 1))
    return min(max(wanted, least), _MOST_EPOCHS)
