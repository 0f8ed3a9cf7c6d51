"""The only code that knows past from future: cutoffs, splits, gaps, labels.

A *cutoff* is the last day seen. Its inputs are the `lookback` days up to and
including it, its labels the `horizon` days after it. Days are counted from the
dataset's first day (day 0).
"""

import dataclasses
import datetime
import math

import numpy as np
import tensorflow as tf

from m2m_tf.config import DatasetSpec, SplitDates
from m2m_tf.data import schema

EPOCH = datetime.date(1970, 1, 1)
SPLIT_NAMES = ("train", "validation", "test")
LABELS = "labels"


class SplitError(ValueError):
    """The dates of a spec leave a split without a cutoff."""


@dataclasses.dataclass(frozen=True)
class Splits:
    """Cutoffs (day numbers, ascending) of each split.

    At least `horizon` days lie between the label periods of two splits
    (section 5.1.1: "no less than one week").
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


def day_number(spec: DatasetSpec, date: datetime.date) -> int:
    """Days from the dataset's first day to `date`."""
    return (date - spec.start).days


def date_of(spec: DatasetSpec, day: int) -> datetime.date:
    """The calendar day of a day number."""
    return spec.start + datetime.timedelta(days=int(day))


def all_cutoffs(spec: DatasetSpec) -> tuple[int, ...]:
    """Every `stride`-th day, counted back from the last one with full labels.

    The first has a full lookback.
    """
    last = spec.num_days - 1 - spec.horizon
    first = spec.lookback - 1
    return tuple(range(last, first - 1, -spec.stride))[::-1]


def make_splits(spec: DatasetSpec) -> Splits:
    """Splits the cutoffs by time and keeps label periods apart.

    Raises:
        SplitError: If a split would be empty; says how many days there are
            and how many are needed.
    """
    cutoffs = all_cutoffs(spec)
    if not cutoffs:
        raise SplitError(
            f"The panel covers {spec.num_days} days ({spec.start} to "
            f"{spec.end}), fewer than lookback + horizon = "
            f"{spec.lookback + spec.horizon}. Give more days or a shorter "
            "lookback."
        )
    if isinstance(spec.split, SplitDates):
        train, validation, test = _split_by_dates(spec, cutoffs)
    else:
        train, validation, test = _split_by_shares(spec, cutoffs)
    splits = Splits(train, validation, test)
    for name in SPLIT_NAMES:
        if not getattr(splits, name):
            raise SplitError(
                f"The {name} split is empty: {len(cutoffs)} cutoffs from "
                f"{date_of(spec, cutoffs[0])} to "
                f"{date_of(spec, cutoffs[-1])}, stride {spec.stride}. Give "
                "more days, a smaller stride, or other split dates."
            )
    return splits


def last_fit_day(spec: DatasetSpec) -> int:
    """The last training label day: nothing fitted may see a later one."""
    return make_splits(spec).train[-1] + spec.horizon


def cut_windows(spec: DatasetSpec, record: dict, cutoffs) -> dict:
    """Cuts one entity's record into samples, in TensorFlow ops.

    Args:
        spec: The dataset spec.
        record: One record (`schema.record_tensors`).
        cutoffs: Day numbers, int `[C]`.

    Returns:
        Dict of tensors with `S · C` rows, scenario-major: the raw features
        (`schema.raw_features`), `entity`, `labels` `[rows, tasks]` and
        `active` (bool: the sample meets `spec.activity`). Labels of a cutoff
        whose horizon passes the last day are meaningless.
    """
    cutoffs = tf.convert_to_tensor(cutoffs, tf.int32)
    seen = cutoffs[:, None] + tf.range(1 - spec.lookback, 1)
    values = record[schema.VALUES]
    # The rule: inputs are gathered from `seen`, whose last day is the cutoff.
    past = tf.gather(values, tf.maximum(seen, 0), axis=1)
    past = tf.where((seen >= 0)[None, :, :, None], past, 0.0)
    features = _sequences(spec, past, scenario_axis=0)
    num_scenarios = tf.shape(values)[0]
    num_rows = num_scenarios * tf.size(cutoffs)
    features = {
        name: tf.reshape(tensor, tf.concat([[num_rows], tensor.shape[2:]], 0))
        for name, tensor in features.items()
    }
    for name, tensor in _time_features(spec, cutoffs).items():
        features[name] = tf.tile(tensor, [num_scenarios])
    for name, tensor in record.items():
        if name == schema.VALUES:
            continue
        tensor = tf.convert_to_tensor(tensor)
        if is_scenario_s(name):
            features[name] = tf.repeat(tensor, tf.size(cutoffs))
        else:
            features[name] = tf.repeat(tensor[None], num_rows)
    features["active"] = tf.reshape(_is_active(spec, past), [num_rows])
    labels = _labels(spec, values, cutoffs)
    features[LABELS] = tf.reshape(labels, [num_rows, len(spec.tasks)])
    return features


def cut_latest(spec: DatasetSpec, grid: dict) -> dict:
    """Cuts the last day's windows of a grid, whose labels nobody knows yet.

    Args:
        spec: The dataset spec.
        grid: G entities in S scenarios each (`panel.Grids`).

    Returns:
        Dict of tensors with `G · S` rows, entity-major: the raw features
        (`schema.raw_features`) and `entity`.
    """
    last = spec.num_days - 1
    past = tf.convert_to_tensor(grid[schema.VALUES])[:, :, -spec.lookback :]
    missing = spec.lookback - past.shape[2]
    past = tf.pad(past, [[0, 0], [0, 0], [missing, 0], [0, 0]])
    num_entities, num_scenarios = past.shape[:2]
    num_rows = num_entities * num_scenarios
    features = {
        name: tf.reshape(tensor, [num_rows, *tensor.shape[2:]])
        for name, tensor in _sequences(spec, past, scenario_axis=1).items()
    }
    for name, value in _time_features(spec, tf.constant(last)).items():
        features[name] = tf.fill([num_rows], value)
    entity, scenario = np.divmod(np.arange(num_rows), num_scenarios)
    for name, values in grid.items():
        if name != schema.VALUES:
            index = scenario if is_scenario_s(name) else entity
            features[name] = tf.gather(values, index)
    return features


def with_totals(spec: DatasetSpec, values, axis: int):
    """Columns of one entity's scenarios, with their totals beside them.

    Args:
        spec: The dataset spec; without cross-scenario totals nothing changes.
        values: Tensor `[..., columns]`.
        axis: Axis of the scenarios.

    Returns:
        Tensor `[..., columns]` or `[..., 2 * columns]`.
    """
    if not spec.cross_scenario_totals:
        return values
    total = tf.reduce_sum(values, axis=axis, keepdims=True)
    joined = tf.concat([values, tf.broadcast_to(total, tf.shape(values))], -1)
    joined.set_shape([*values.shape[:-1], 2 * values.shape[-1]])
    return joined


def _split_by_shares(spec, cutoffs):
    """Shares of the cutoffs that are left when the gaps are taken out."""
    # From the last cutoff of one split to the first of the next lie the label
    # days of the one and a gap of `horizon` days.
    skipped = math.ceil(2 * spec.horizon / spec.stride) - 1
    usable = max(0, len(cutoffs) - 2 * skipped)
    num_train = round(spec.split.train * usable)
    num_validation = round(spec.split.validation * usable)
    first = num_train + skipped
    second = first + num_validation + skipped
    return (
        cutoffs[:num_train],
        cutoffs[first : first + num_validation],
        cutoffs[second:],
    )


def _split_by_dates(spec, cutoffs):
    """Splits whose labels end by the given dates, with gaps between them."""
    train_end = day_number(spec, spec.split.train_end)
    validation_end = day_number(spec, spec.split.validation_end)
    train = tuple(c for c in cutoffs if c + spec.horizon <= train_end)
    later = tuple(c for c in cutoffs if c >= train_end + spec.horizon)
    validation = tuple(c for c in later if c + spec.horizon <= validation_end)
    test = tuple(c for c in later if c >= validation_end + spec.horizon)
    return train, validation, test


def is_scenario_s(name: str) -> bool:
    """Whether a raw feature belongs to the scenario, not to the entity."""
    return name == schema.SCENARIO or name.startswith(schema.SCENARIO_PREFIX)


def _columns(spec, names):
    return [spec.value_columns.index(name) for name in names]


def _time_features(spec, cutoffs):
    first_day = (spec.start - EPOCH).days
    return {
        schema.CUTOFF: tf.cast(cutoffs + first_day, tf.int64),
        schema.DAYS_OBSERVED: tf.cast(
            tf.minimum(cutoffs + 1, spec.lookback), tf.int64
        ),
    }


def _sequences(spec, past, scenario_axis):
    """Splits `past` `[?, ?, L, F]` into the sequences by role."""
    # In the order of `spec.value_columns`.
    behavior, performance, known_future = tf.split(
        past,
        [len(spec.behavior), len(spec.performance), len(spec.known_future)],
        axis=-1,
    )
    sequences = {
        schema.BEHAVIOR_SEQUENCE: behavior,
        schema.PERFORMANCE_SEQUENCE: performance,
    }
    for name, own in sequences.items():
        sequences[name] = with_totals(spec, own, axis=scenario_axis)
    if spec.known_future:
        # A value on day d concerns day d + horizon: the last `horizon` days
        # seen tell of the days to be predicted.
        sequences[schema.KNOWN_FUTURE] = known_future[:, :, -spec.horizon :]
    return sequences


def _is_active(spec, past):
    if spec.activity is None:
        return tf.ones(tf.shape(past)[:2], tf.bool)
    (column,) = _columns(spec, [spec.activity])
    return tf.reduce_any(past[..., column] != 0, axis=-1)


def _labels(spec, values, cutoffs):
    """Labels `[S, C, tasks]` from the `horizon` days after each cutoff."""
    future = cutoffs[:, None] + tf.range(1, spec.horizon + 1)
    future = tf.minimum(future, tf.shape(values)[1] - 1)
    columns = _columns(spec, [task.column for task in spec.tasks])
    daily = tf.gather(tf.gather(values, columns, axis=-1), future, axis=1)
    labels = tf.reduce_sum(daily, axis=2)
    binary = tf.constant([task.kind == "binary" for task in spec.tasks])
    return tf.where(binary, tf.cast(labels > 0, labels.dtype), labels)
