"""Raw features as one flat table row per sample, for boosted trees."""

from collections.abc import Iterable

import numpy as np

from m2m_tf.baselines import naive
from m2m_tf.config import DatasetSpec
from m2m_tf.data import schema, windows

# Days over which a sample's own columns are summed, beside the lookback.
_SPANS = (3, 7, 14, 28)
# The same for the columns of totals over all scenarios.
_TOTAL_SPANS = (7,)
_LEVEL_FLOOR = 0.05


def fit_vocabularies(
    spec: DatasetSpec, batches: Iterable[dict[str, np.ndarray]]
) -> dict[str, list[bytes]]:
    """Values of each categorical raw feature in the training batches.

    Example:

    >>> batches = list(data.raw("train", batch_size=64).as_numpy_iterator())
    >>> fit_vocabularies(data.spec, batches)["scenario"]
    [b'booked', b'video', b'walk_in']
    """
    seen = {name: set() for name in _categorical_names(spec)}
    for raw in batches:
        for name, values in seen.items():
            values.update(_as_bytes(raw[name]))
    return {name: sorted(values) for name, values in seen.items()}


def tabular_features(
    spec: DatasetSpec,
    raw: dict[str, np.ndarray],
    vocabularies: dict[str, list[bytes]],
) -> tuple[np.ndarray, list[str], list[str]]:
    """One row of numbers per sample, from what was known at its cutoff.

    Columns: totals of each sequence column over its last days; the last 7
    days of each task, one by one; each day and the sum of each known-future
    column; logs of the tasks' past levels; days since the last activity and
    days observed; categories as codes (0 where not in `vocabularies`);
    numeric attributes; week of the year and month of the cutoff, and its
    weekday where cutoffs differ in it.

    Args:
        spec: The dataset spec.
        raw: Raw features (`schema.raw_features`), arrays `[B, ...]`.
        vocabularies: From `fit_vocabularies`.

    Returns:
        Tuple of float32 array `[B, D]`, D column names, and the names of
        those among them that hold codes.

    Example:

    >>> batches = list(data.raw("train", batch_size=16).as_numpy_iterator())
    >>> vocabularies = fit_vocabularies(data.spec, batches)
    >>> features, names, _ = tabular_features(
    ...     data.spec, batches[0], vocabularies
    ... )
    >>> features.shape == (16, len(names))
    True
    """
    table = {}
    for key, names in schema.past_sequences(spec).items():
        table |= _totals(spec, np.asarray(raw[key]), names)
    table |= _recent_days_and_levels(spec, raw)
    if spec.known_future:
        table |= _known_future(spec, np.asarray(raw[schema.KNOWN_FUTURE]))
    table["days_since_activity"] = _days_since_activity(spec, raw)
    table["days_observed"] = np.asarray(raw[schema.DAYS_OBSERVED])
    cutoff = np.asarray(raw[schema.CUTOFF]).astype("datetime64[D]")
    year, month = cutoff.astype("datetime64[Y]"), cutoff.astype("M8[M]")
    table["month"] = (month - year.astype("M8[M]")).astype(int) + 1
    if spec.stride % 7:
        # Else the same in all rows.
        table["weekday"] = cutoff.astype(int) % 7
    table["week_of_year"] = (cutoff - year.astype("M8[D]")).astype(int) // 7
    for name, tensor in schema.raw_features(spec).items():
        if tensor.dtype == "float32" and tensor.shape == ():
            table[name] = np.asarray(raw[name])
    for name, vocabulary in vocabularies.items():
        table[name] = _codes(raw[name], vocabulary)
    features = np.stack(
        [np.asarray(column, "float32") for column in table.values()], axis=1
    )
    return features, list(table), list(vocabularies)


def _totals(spec, sequence, names):
    table = {}
    for index, name in enumerate(names):
        spans = _SPANS if name in spec.value_columns else _TOTAL_SPANS
        short = [span for span in spans if span < spec.lookback]
        for span in [*short, spec.lookback]:
            total = sequence[:, -span:, index].sum(axis=1)
            table[f"{name}_last_{span}"] = total
    return table


def _recent_days_and_levels(spec, raw):
    daily = naive.daily_task_values(spec, raw)
    table = {}
    for index, task in enumerate(spec.task_names):
        for day in range(min(7, spec.lookback)):
            table[f"{task}_{day}_days_ago"] = daily[:, -1 - day, index]
    for name, levels in naive.naive_forecasts(spec, raw).items():
        for index, task in enumerate(spec.task_names):
            table[f"{task}_log_{name}"] = np.log(
                levels[:, index] + _LEVEL_FLOOR
            )
    return table


def _known_future(spec, values):
    table = {}
    for index, name in enumerate(spec.known_future):
        for day in range(spec.horizon):
            table[f"{name}_in_{day + 1}_days"] = values[:, day, index]
        table[f"{name}_sum"] = values[:, :, index].sum(axis=1)
    return table


def _days_since_activity(spec, raw):
    """0 if the cutoff day was active, lookback if no day was."""
    if spec.activity in spec.behavior + spec.performance:
        active = windows.active_days(spec, raw)
    else:
        active = (naive.daily_task_values(spec, raw) != 0).any(axis=-1)
    backwards = active[:, ::-1]
    return np.where(active.any(axis=1), backwards.argmax(axis=1), spec.lookback)


def _categorical_names(spec):
    return [
        name
        for name, tensor in schema.raw_features(spec).items()
        if tensor.dtype == "string"
    ]


def _codes(values, vocabulary):
    """Place in the vocabulary, from 1; 0 for values not in it."""
    known = {value: code for code, value in enumerate(vocabulary, start=1)}
    return [
        known.get(value, schema.OUT_OF_VOCABULARY)
        for value in _as_bytes(values)
    ]


def _as_bytes(values):
    return [
        value.encode() if isinstance(value, str) else bytes(value)
        for value in np.asarray(values)
    ]
