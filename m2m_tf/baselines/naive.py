"""Forecasts that repeat the past; they bound what a model must beat."""

import numpy as np

from m2m_tf.config import DatasetSpec
from m2m_tf.data import schema

LAST_WEEK = "last_week"
HISTORY_MEAN = "history_mean"


def naive_forecasts(
    spec: DatasetSpec, raw: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Each task's total over `horizon` days at its past daily mean.

    Padded days do not count: a history that is shorter than the days that
    are averaged gives the mean of the days observed. For binary tasks a
    day's value is 1 where its column is above zero, and the forecast is
    capped at 1: `"last_week"` is then 1 where any of the last days was
    active, `"history_mean"` the expected number of active days, at most 1.

    Args:
        spec: The dataset spec.
        raw: Raw features (`schema.raw_features`), arrays `[B, ...]`.

    Returns:
        Dict of float64 arrays `[B, tasks]`: `"last_week"` from the last
        `horizon` days, `"history_mean"` from the whole lookback.

    Example:

    >>> raw = next(data.raw("test", batch_size=16).as_numpy_iterator())
    >>> naive_forecasts(data.spec, raw)["last_week"].shape
    (16, 3)
    """
    daily = daily_task_values(spec, raw)
    return {
        LAST_WEEK: _at_past_mean(spec, raw, daily, spec.horizon),
        HISTORY_MEAN: _at_past_mean(spec, raw, daily, spec.lookback),
    }


def daily_task_values(
    spec: DatasetSpec, raw: dict[str, np.ndarray]
) -> np.ndarray:
    """Past daily values of each task, float64 `[B, lookback, tasks]`.

    The task's column of the sample's own scenario; 0 or 1 for binary tasks.

    Example:

    >>> raw = next(data.raw("test", batch_size=16).as_numpy_iterator())
    >>> daily_task_values(data.spec, raw).shape
    (16, 28, 3)
    """
    columns = [
        schema.performance_names(spec).index(task.column) for task in spec.tasks
    ]
    sequence = np.asarray(raw[schema.PERFORMANCE_SEQUENCE])
    daily = sequence[:, :, columns].astype("float64")
    return np.where(spec.is_binary, daily > 0, daily)


def cap_binary(spec: DatasetSpec, forecasts: np.ndarray) -> np.ndarray:
    """Forecasts `[B, tasks]` with those of binary tasks at most 1.

    Example:

    >>> cap_binary(data.spec, np.array([[3.0, 90.5, 1.2]]))
    array([[ 3. , 90.5,  1. ]])
    """
    return np.where(spec.is_binary, np.minimum(forecasts, 1.0), forecasts)


def _at_past_mean(spec, raw, daily, days):
    total = daily[:, -days:].sum(axis=1)
    observed = np.asarray(raw[schema.DAYS_OBSERVED])
    counted = np.clip(observed, 1, min(days, spec.lookback))[:, None]
    return cap_binary(spec, total / counted * spec.horizon)
