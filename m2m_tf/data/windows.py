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

# Keys of stacked series alone.
_OWNER = "owner"
_TOTALS = "totals"


class SplitError(ValueError):
    """The dates of a spec leave a split without a cutoff."""


@dataclasses.dataclass(frozen=True)
class Splits:
    """Cutoffs (day numbers, ascending) of each split.

    At least `horizon` days lie between the label periods of two splits
    (section 5.1.1: "no less than one week").

    Example:

    >>> data.splits.test
    (112,)
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


def day_number(spec: DatasetSpec, date: datetime.date) -> int:
    """Days from the dataset's first day to `date`.

    Example:

    >>> day_number(data.spec, datetime.date(2025, 3, 8))
    7
    """
    return (date - spec.start).days


def date_of(spec: DatasetSpec, day: int) -> datetime.date:
    """The calendar day of a day number.

    Example:

    >>> date_of(data.spec, 7)
    datetime.date(2025, 3, 8)
    """
    return spec.start + datetime.timedelta(days=int(day))


def all_cutoffs(spec: DatasetSpec) -> tuple[int, ...]:
    """Every `stride`-th day, counted back from the last one with full labels.

    The first has a full lookback.

    Example:

    >>> all_cutoffs(data.spec)
    (28, 35, ...)
    """
    last = spec.num_days - 1 - spec.horizon
    first = spec.lookback - 1
    return tuple(range(last, first - 1, -spec.stride))[::-1]


def make_splits(spec: DatasetSpec) -> Splits:
    """Splits the cutoffs by time and keeps label periods apart.

    Raises:
        SplitError: If a split would be empty; says how many days there are
            and how many are needed.

    Example:

    >>> make_splits(data.spec).validation
    (98,)
    """
    cutoffs = _some_cutoffs(spec)
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
                f"{date_of(spec, cutoffs[-1])}, stride {spec.stride}. Between "
                f"the label days of two splits lie {spec.horizon} days. Give "
                f"more days, {'a smaller stride, ' * (spec.stride > 1)}a "
                "shorter lookback or horizon, or other split dates."
            )
    return splits


def hold_nothing_out(spec: DatasetSpec) -> Splits:
    """Every cutoff to train on: for a model that has been judged already.

    Raises:
        SplitError: If there is no cutoff.

    Example:

    >>> hold_nothing_out(data.spec).train[-1] == data.splits.test[-1]
    True
    """
    return Splits(_some_cutoffs(spec), (), ())


def last_fit_day(spec: DatasetSpec, splits: Splits | None = None) -> int:
    """The last training label day: nothing fitted may see a later one.

    Args:
        spec: The dataset spec.
        splits: Its splits, if not those of `make_splits`.

    Example:

    >>> last_fit_day(data.spec) == data.splits.train[-1] + data.spec.horizon
    True
    """
    splits = splits or make_splits(spec)
    return splits.train[-1] + spec.horizon


def stack_series(spec: DatasetSpec, records: dict) -> dict:
    """Lays the scenarios of many records one after another.

    Args:
        spec: The dataset spec.
        records: R records (`schema.record_tensors`) as
            `tf.data.Dataset.ragged_batch` joins them: what has an axis of
            scenarios is ragged.

    Returns:
        Dict of tensors, N series in all: what belongs to a scenario `[N, …]`,
        what belongs to an entity `[R, …]`, `_OWNER` `[N]`, the entity of each
        series, and `_TOTALS` `[R, days, columns]`, sums over an entity's
        scenarios, if the spec wants them.

    Example:

    >>> records = next(iter(data.records.ragged_batch(4)))
    >>> series = stack_series(data.spec, records)
    >>> series["values"].shape[1:]
    TensorShape([120, 6])
    """
    values = records[schema.VALUES]
    series = {
        name: tensor.values if isinstance(tensor, tf.RaggedTensor) else tensor
        for name, tensor in records.items()
    }
    series[_OWNER] = values.value_rowids()
    if spec.cross_scenario_totals:
        series[_TOTALS] = tf.reduce_sum(values, axis=1)
    return series


def active_samples(spec: DatasetSpec, series: dict, cutoffs) -> tf.Tensor:
    """The samples that meet `spec.activity`; nothing after a cutoff decides.

    Args:
        spec: The dataset spec.
        series: N series (`stack_series`).
        cutoffs: Day numbers, int `[C]`, ascending.

    Returns:
        Int32 `[samples, 2]`, series and cutoff, in the order of series.

    Example:

    >>> records = next(iter(data.records.ragged_batch(4)))
    >>> series = stack_series(data.spec, records)
    >>> samples = active_samples(data.spec, series, data.splits.test)
    >>> samples[0].numpy()
    array([  0, 112], dtype=int32)
    """
    cutoffs = tf.convert_to_tensor(cutoffs, tf.int32)
    values = series[schema.VALUES]
    if spec.activity is None:
        # A series is there because something happened in it, perhaps only
        # after the cutoff. To count it sooner would tell of the future.
        first = tf.zeros_like(cutoffs)
    else:
        values = tf.gather(values, _columns(spec, [spec.activity]), axis=-1)
        first = tf.maximum(cutoffs + 1 - spec.lookback, 0)
    # Days with activity before each day, so that windows are differences.
    active = tf.reduce_any(values != 0, axis=-1)
    days = tf.cumsum(tf.cast(active, tf.int32), axis=1)
    days = tf.pad(days, [[0, 0], [1, 0]])
    active = tf.gather(days, cutoffs + 1, axis=1) > tf.gather(
        days, first, axis=1
    )
    index = tf.cast(tf.where(active), tf.int32)
    return tf.stack([index[:, 0], tf.gather(cutoffs, index[:, 1])], axis=1)


def active_within(spec: DatasetSpec, raw: dict, days: int | None):
    """Whether samples meet `spec.activity` in fewer days than the lookback.

    Args:
        spec: The dataset spec.
        raw: Raw features of samples (`schema.raw_features`), NumPy arrays.
        days: The last days that count; None: all of the lookback, which
            every sample meets.

    Returns:
        Bool array `[N]`.

    Example:

    >>> raw = next(data.raw("test", batch_size=16).as_numpy_iterator())
    >>> bool(active_within(data.spec, raw, days=28).all())
    True
    """
    if days is None or spec.activity is None:
        return np.ones(len(raw[schema.CUTOFF]), bool)
    return active_days(spec, raw)[:, -days:].any(axis=1)


def active_days(spec: DatasetSpec, raw: dict):
    """On which days of the lookback `spec.activity` was not zero.

    Args:
        spec: The dataset spec, with an `activity`.
        raw: Raw features of samples (`schema.raw_features`), NumPy arrays.

    Returns:
        Bool array `[N, lookback]`.

    Example:

    >>> raw = next(data.raw("test", batch_size=16).as_numpy_iterator())
    >>> active_days(data.spec, raw).shape
    (16, 28)
    """
    key, names = schema.PERFORMANCE_SEQUENCE, schema.performance_names(spec)
    if spec.activity in spec.behavior:
        key, names = schema.BEHAVIOR_SEQUENCE, schema.behavior_names(spec)
    return np.asarray(raw[key])[:, :, names.index(spec.activity)] != 0


def cut_windows(spec: DatasetSpec, series: dict, samples) -> dict:
    """Cuts samples out of series, in TensorFlow ops.

    Args:
        spec: The dataset spec.
        series: N series (`stack_series`).
        samples: Series and cutoff of each sample, int32 `[B, 2]`.

    Returns:
        Dict of tensors with B rows: the raw features (`schema.raw_features`),
        `entity` and `labels` `[B, tasks]`. Labels of a cutoff whose horizon
        passes the last day are meaningless.

    Example:

    >>> records = next(iter(data.records.ragged_batch(4)))
    >>> series = stack_series(data.spec, records)
    >>> samples = active_samples(data.spec, series, data.splits.test)
    >>> cut_windows(data.spec, series, samples[:5])["labels"].shape
    TensorShape([5, 3])
    """
    index, cutoffs = samples[:, 0], samples[:, 1]
    owner = tf.gather(series[_OWNER], index)
    seen = cutoffs[:, None] + tf.range(1 - spec.lookback, 1)
    # Cutoffs of a split have a full lookback; to look at each day is slow.
    full = tf.reduce_all(seen >= 0)

    def past(values, rows):
        # The rule: inputs are gathered from `seen`, whose last day is the
        # cutoff.
        days = _gather_days(values, rows, tf.maximum(seen, 0))
        return tf.cond(
            full,
            lambda: days,
            lambda: tf.where((seen >= 0)[..., None], days, 0.0),
        )

    totals = None
    if spec.cross_scenario_totals:
        totals = past(series[_TOTALS], owner)
    features = _sequences(spec, past(series[schema.VALUES], index), totals)
    features |= _time_features(spec, cutoffs)
    for name, values in series.items():
        if name not in (schema.VALUES, _OWNER, _TOTALS):
            rows = index if is_scenario_s(name) else owner
            features[name] = tf.gather(values, rows)
    future = cutoffs[:, None] + tf.range(1, spec.horizon + 1)
    future = tf.minimum(future, tf.shape(series[schema.VALUES])[1] - 1)
    daily = _gather_days(series[schema.VALUES], index, future)
    features[LABELS] = _labels(spec, daily)
    return features


def cut_latest(spec: DatasetSpec, grid: dict) -> dict:
    """Cuts the last day's windows of a grid, whose labels nobody knows yet.

    Args:
        spec: The dataset spec.
        grid: G entities in S scenarios each (`panel.Grids`).

    Returns:
        Dict of tensors with `G · S` rows, entity-major: the raw features
        (`schema.raw_features`) and `entity`.

    Example:

    >>> from m2m_tf.data.panel import Grids
    >>> grid = next(Grids(data.spec).read(chunk=0, pairs=9))
    >>> cut_latest(data.spec, grid)["behavior_sequence"].shape
    TensorShape([9, 28, 4])
    """
    last = spec.num_days - 1
    past = tf.convert_to_tensor(grid[schema.VALUES])[:, :, -spec.lookback :]
    missing = spec.lookback - past.shape[2]
    past = tf.pad(past, [[0, 0], [0, 0], [missing, 0], [0, 0]])
    num_entities, num_scenarios = past.shape[:2]
    num_rows = num_entities * num_scenarios
    sequences = _sequences(spec, past, scenario_totals(spec, past))
    features = {
        name: tf.reshape(tensor, [num_rows, *tensor.shape[2:]])
        for name, tensor in sequences.items()
    }
    for name, value in _time_features(spec, tf.constant(last)).items():
        features[name] = tf.fill([num_rows], value)
    entity, scenario = np.divmod(np.arange(num_rows), num_scenarios)
    for name, values in grid.items():
        if name != schema.VALUES:
            index = scenario if is_scenario_s(name) else entity
            features[name] = tf.gather(values, index)
    return features


def scenario_totals(spec: DatasetSpec, values) -> tf.Tensor | None:
    """Sums over each entity's scenarios, told in every scenario.

    Args:
        spec: The dataset spec.
        values: Tensor `[entities, scenarios, days, columns]`.

    Returns:
        Tensor shaped like `values`; None if the spec wants no totals.

    Example:

    >>> values = tf.ones([2, 3, 28, 6])
    >>> float(scenario_totals(data.spec, values)[0, 0, 0, 0])
    3.0
    """
    if not spec.cross_scenario_totals:
        return None
    totals = tf.reduce_sum(values, axis=1, keepdims=True)
    return tf.ensure_shape(
        tf.broadcast_to(totals, tf.shape(values)), values.shape
    )


def _some_cutoffs(spec):
    cutoffs = all_cutoffs(spec)
    if not cutoffs:
        raise SplitError(
            f"The panel covers {spec.num_days} days ({spec.start} to "
            f"{spec.end}), fewer than lookback + horizon = "
            f"{spec.lookback + spec.horizon}. Give more days or a shorter "
            "lookback."
        )
    return cutoffs


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
    """Whether a raw feature belongs to the scenario, not to the entity.

    Example:

    >>> is_scenario_s("scenario_channel"), is_scenario_s("profile_town")
    (True, False)
    """
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


def _gather_days(values, rows, days):
    """Days `[B, n]` of the series `rows` `[B]` of `values`: `[B, n, F]`."""
    # One index a day instead of two: a fifth of the time less.
    first = tf.cast(rows, tf.int64) * tf.shape(values, tf.int64)[1]
    all_days = tf.reshape(values, [-1, values.shape[-1]])
    return tf.gather(all_days, first[:, None] + tf.cast(days, tf.int64))


def _sequences(spec, past, totals):
    """Splits `past` `[…, L, F]` by role, each beside its own `totals`."""

    def by_role(values):
        # In the order of `spec.value_columns`.
        sizes = [len(spec.behavior), len(spec.performance)]
        return tf.split(values, [*sizes, len(spec.known_future)], axis=-1)

    behavior, performance, known_future = by_role(past)
    if totals is not None:
        behavior_totals, performance_totals, _ = by_role(totals)
        behavior = tf.concat([behavior, behavior_totals], -1)
        performance = tf.concat([performance, performance_totals], -1)
    sequences = {}
    if spec.behavior:
        sequences[schema.BEHAVIOR_SEQUENCE] = behavior
    sequences[schema.PERFORMANCE_SEQUENCE] = performance
    if spec.known_future:
        # A value on day d concerns day d + horizon: the last `horizon` days
        # seen tell of the days to be predicted.
        sequences[schema.KNOWN_FUTURE] = known_future[..., -spec.horizon :, :]
    return sequences


def _labels(spec, daily):
    """Labels `[B, tasks]` of the days `[B, horizon, F]` to be predicted."""
    columns = _columns(spec, [task.column for task in spec.tasks])
    labels = tf.reduce_sum(tf.gather(daily, columns, axis=-1), axis=1)
    return tf.where(spec.is_binary, tf.cast(labels > 0, labels.dtype), labels)
