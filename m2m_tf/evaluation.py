"""Scores of several forecasts on the same samples, cell by cell."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from m2m_tf.baselines.naive import HISTORY_MEAN, LAST_WEEK
from m2m_tf.forecast import LOWER, UPPER
from m2m_tf.metrics import score_cells

METRIC_TITLES = {
    "nmae": "NMAE",
    "smape": "SMAPE",
    "poisson_deviance": "Poisson deviance",
}
METRIC_NAMES = tuple(METRIC_TITLES)
# Metrics of which the mean forecast is the best.
_MEAN_METRICS = ("nmae", "poisson_deviance")
# How far from its level the coverage of an interval may be.
_COVERAGE_TOLERANCE = 0.03
# How far the sum of all forecasts may be from that of the labels.
_BIAS_TOLERANCE = 0.1
# Scores that are no further apart are level.
_LEVEL = 1.01
# What marks a forecast of medians.
MEDIAN_SUFFIX = "_median"


def evaluate_forecasts(
    y_true,
    forecasts: Mapping[str, np.ndarray],
    scenario,
    task_names: Sequence[str],
    scenario_names: Sequence[str],
) -> dict[str, dict]:
    """Scores each forecast per (task, scenario) and over all of these cells.

    A name that ends in `"_median"` has no Poisson deviance (None): medians of
    0 would be scored by the clip of `metrics.MIN_RATE` alone. So are naive
    forecasts of 0 where something happened; they keep their deviance, to be
    read with that in mind.

    Args:
        y_true: Labels `[N, T]`, not negative.
        forecasts: Name → forecasts `[N, T]`, not negative (rates, not logs).
        scenario: Index of each row's scenario, int `[N]`.
        task_names: Names of the T tasks.
        scenario_names: Names of the scenarios.

    Returns:
        Values that JSON can hold: for each forecast a dict of

        - `"overall"`: `nmae`, `smape` and `poisson_deviance`, each the
          unweighted mean over the cells that have a value;
        - `"cells"`: a list of dicts of `task`, `scenario`, `n`,
          `zero_share` and `mean_label` of the labels, `mean_forecast`, and
          the three metrics.
          Cells without samples are left out.

        None stands for a value that does not exist, such as the NMAE of
        labels that are all 0.

    Raises:
        ValueError: If shapes or names do not match, or values are negative
            or not finite.

    Example:

    >>> result = evaluate_forecasts(
    ...     [[1.0], [3.0]], {"m2m": [[2.0], [2.0]]}, [0, 0], ["clicks"], ["tv"]
    ... )
    >>> result["m2m"]["overall"]["nmae"]
    0.5
    """
    y_true = np.asarray(y_true, "float64")
    scenario = np.asarray(scenario)
    if y_true.ndim != 2 or y_true.shape[1] != len(task_names):
        raise ValueError(
            "`y_true` must have shape [N, T] with a column for each of "
            f"{list(task_names)}. Received: y_true.shape={y_true.shape}"
        )
    if not forecasts:
        raise ValueError(
            "`forecasts` must hold one forecast at least. "
            f"Received: forecasts={forecasts!r}"
        )
    result = {}
    labels = None
    for name, forecast in forecasts.items():
        try:
            scores = score_cells(
                y_true, forecast, scenario, len(scenario_names)
            )
        except ValueError as error:
            raise ValueError(f"Forecast {name!r}: {error}") from error
        labels = labels or _label_cells(
            y_true, scenario, task_names, scenario_names
        )
        if name.endswith(MEDIAN_SUFFIX):
            scores["poisson_deviance"][:] = np.nan
        result[name] = {
            "overall": {m: _mean(scores[m]) for m in METRIC_NAMES},
            "cells": [
                facts
                | {"mean_forecast": _cell_mean(forecast, scenario, *cell)}
                | {m: _number(scores[m][cell]) for m in METRIC_NAMES}
                for cell, facts in labels.items()
            ],
        }
    return result


def evaluate_intervals(
    y_true,
    intervals: Mapping[str, np.ndarray],
    scenario,
    task_names: Sequence[str],
    scenario_names: Sequence[str],
) -> dict:
    """How often labels lie within the 80 % interval, per cell and overall.

    An interval of whole numbers holds more than its level: if 85 % of the
    labels are surely 0, no interval covers 80 % of them. So two shares are
    told. `closed` counts labels from `lower` to `upper`, both included.
    `coverage` counts a label on an edge by the part of its probability that
    lies between the levels 0.1 and 0.9, so that a right distribution scores
    0.8 in any cell (the non-randomised PIT of Czado, Gneiting and Held,
    Biometrics 2009).

    Args:
        y_true: Labels `[N, T]`.
        intervals: `lower`, `upper`, `below` and `up_to`, each `[N, T]`, see
            `evaluation_run.SplitForecasts`.
        scenario: Index of each row's scenario, int `[N]`.
        task_names: Names of the T tasks.
        scenario_names: Names of the scenarios.

    Returns:
        Dict of `level`, `coverage` and `closed` (unweighted means over
        cells) and `cells`.

    Example:

    >>> intervals = {"lower": [[1.0]], "upper": [[3.0]]}
    >>> intervals |= {"below": [[0.4]], "up_to": [[0.6]]}
    >>> told = evaluate_intervals([[2.0]], intervals, [0], ["clicks"], ["tv"])
    >>> told["coverage"]
    1.0
    """
    y_true, scenario = np.asarray(y_true), np.asarray(scenario)
    below = np.asarray(intervals["below"], "float64")
    up_to = np.asarray(intervals["up_to"], "float64")
    width = up_to - below
    share = np.clip(up_to, LOWER, UPPER) - np.clip(below, LOWER, UPPER)
    inside = (below >= LOWER) & (below <= UPPER)
    # A label without probability of its own is inside or outside.
    covered = np.where(width > 1e-6, share / np.maximum(width, 1e-6), inside)
    closed = (y_true >= intervals["lower"]) & (y_true <= intervals["upper"])
    cells = []
    for (task, index), facts in _label_cells(
        y_true, scenario, task_names, scenario_names
    ).items():
        rows = scenario == index
        cells.append(
            facts
            | {
                "coverage": float(covered[rows, task].mean()),
                "closed": float(closed[rows, task].mean()),
            }
        )
    return {
        "level": UPPER - LOWER,
        "coverage": float(np.mean([cell["coverage"] for cell in cells])),
        "closed": float(np.mean([cell["closed"] for cell in cells])),
        "cells": cells,
    }


def format_interval(result: Mapping) -> str:
    """One line of `evaluate_intervals`' result, for a terminal.

    Example:

    >>> format_interval({"level": 0.8, "coverage": 0.795, "closed": 0.94})
    '80% interval: 79.5% of labels inside, 94.0% with those on its edges'
    """
    return (
        f"{result['level']:.0%} interval: {result['coverage']:.1%} of labels "
        f"inside, {result['closed']:.1%} with those on its edges"
    )


def find_concerns(
    result: Mapping[str, dict],
    model: str,
    interval: Mapping | None = None,
) -> list[str]:
    """What speaks against a model's scores, in sentences.

    Args:
        result: What `evaluate_forecasts` returned.
        model: Name in `result` of the model's mean forecast.
        interval: What `evaluate_intervals` returned, or None.

    Returns:
        A sentence for each overall score (NMAE, Poisson deviance) and each
        other mean forecast that is better; one if slices (task × scenario)
        are worse than a naive forecast; and one if the interval's coverage
        is more than 0.03 from its level. Scores within 1 % are level. One
        for the tasks whose forecasts sum up to 10 % more or less than came.

    Example:

    >>> forecasts = {"m2m": [[2.0], [2.0]], "history_mean": [[1.0], [2.0]]}
    >>> result = evaluate_forecasts(
    ...     [[1.0], [3.0]], forecasts, [0, 0], ["clicks"], ["tv"]
    ... )
    >>> for concern in find_concerns(result, "m2m"):
    ...     print(concern)
    NMAE of m2m is 100% above history_mean's (0.500 against 0.250).
    Poisson deviance of m2m is 142% above history_mean's (0.523 against 0.216).
    1 of 1 slices has a higher Poisson deviance than a naive forecast; the worst
    is clicks in tv (0.523, history_mean 0.216).
    """
    concerns = []
    for metric in _MEAN_METRICS:
        ours = result[model]["overall"][metric]
        for name, scores in result.items():
            other = scores["overall"][metric]
            if name == model or name.endswith(MEDIAN_SUFFIX):
                continue
            if ours is not None and other and ours > _LEVEL * other:
                concerns.append(
                    f"{METRIC_TITLES[metric]} of {model} is "
                    f"{ours / other - 1:.0%} above {name}'s "
                    f"({ours:.3f} against {other:.3f})."
                )
    if sums := _biased_sums(result[model]["cells"]):
        concerns.append(f"Mean forecasts of {model} sum up to {sums}.")
    if slices := _slices_behind(result, model):
        concerns.append(slices)
    if interval is not None:
        level, coverage = interval["level"], interval["coverage"]
        if abs(coverage - level) > _COVERAGE_TOLERANCE:
            width = "narrow" if coverage < level else "wide"
            concerns.append(
                f"{coverage:.1%} of the labels are inside the {level:.0%} "
                f"interval: it is too {width}."
            )
    return concerns


def _biased_sums(cells):
    """Which tasks' sums over all samples are far from what came, and how."""
    sums = {}
    for cell in cells:
        told, came = sums.get(cell["task"], (0.0, 0.0))
        sums[cell["task"]] = (
            told + cell["n"] * cell["mean_forecast"],
            came + cell["n"] * cell["mean_label"],
        )
    return ", ".join(
        f"{told / came:.0%} of all {task}"
        for task, (told, came) in sums.items()
        if came and abs(told / came - 1) > _BIAS_TOLERANCE
    )


def _slices_behind(result, model):
    """A sentence on the cells in which a naive forecast is better, or None."""
    metric = "poisson_deviance"
    naive = [name for name in (HISTORY_MEAN, LAST_WEEK) if name in result]
    behind, scored = [], 0
    for index, cell in enumerate(result[model]["cells"]):
        ours = cell[metric]
        if ours is None or not cell["mean_label"]:
            # Where nothing happened, a naive forecast of 0 is perfect.
            continue
        scored += 1
        others = [
            (result[name]["cells"][index][metric], name) for name in naive
        ]
        other, name = min(others, default=(math.inf, ""))
        if ours > other:
            worst = (ours / other if other else math.inf, ours, other, name)
            behind.append((*worst, cell["task"], cell["scenario"]))
    if not behind or model in naive:
        return None
    _, ours, other, name, task, scenario = max(behind)
    have = "have" if len(behind) > 1 else "has"
    return (
        f"{len(behind)} of {scored} slices {have} a higher Poisson deviance "
        f"than a naive forecast; the worst is {task} in {scenario} "
        f"({ours:.3f}, {name} {other:.3f})."
    )


def format_table(result: Mapping[str, dict], cells_of: str | None = None):
    """Plain text of `evaluate_forecasts`' result, for a terminal.

    Args:
        result: What `evaluate_forecasts` returned.
        cells_of: Name of the forecast whose cells are listed as well, or
            None for the overall scores alone.

    Returns:
        The lines as one string; `-` stands for a value that does not exist.

    Example:

    >>> result = evaluate_forecasts(
    ...     [[1.0], [3.0]], {"m2m": [[2.0], [2.0]]}, [0, 0], ["clicks"], ["tv"]
    ... )
    >>> print(format_table(result))
    forecast   NMAE  SMAPE  Poisson deviance
    m2m       0.500  0.533             0.523
    """
    rows = [["forecast", *METRIC_TITLES.values()]]
    for name, scores in result.items():
        rows.append([name, *_metric_texts(scores["overall"])])
    text = _aligned(rows, num_names=1)
    if cells_of is None:
        return text
    if cells_of not in result:
        raise ValueError(
            f"`cells_of` must be one of {list(result)}. "
            f"Received: cells_of={cells_of!r}"
        )
    rows = [
        ["task", "scenario", "n", "zeros", "mean", "forecast"]
        + ["NMAE", "SMAPE", "deviance"]
    ]
    for cell in result[cells_of]["cells"]:
        rows.append(
            [
                cell["task"],
                cell["scenario"],
                f"{cell['n']:,}",
                f"{cell['zero_share']:.0%}",
                f"{cell['mean_label']:.3g}",
                f"{cell['mean_forecast']:.3g}",
                *_metric_texts(cell),
            ]
        )
    return f"{text}\n\n{cells_of}\n{_aligned(rows, num_names=2)}"


def _label_cells(y_true, scenario, task_names, scenario_names):
    """(task, scenario) indices → what the labels of the cell are like."""
    cells = {}
    for task, task_name in enumerate(task_names):
        for index, scenario_name in enumerate(scenario_names):
            labels = y_true[scenario == index, task]
            if labels.size:
                cells[task, index] = {
                    "task": task_name,
                    "scenario": scenario_name,
                    "n": int(labels.size),
                    "zero_share": float((labels == 0).mean()),
                    "mean_label": float(labels.mean()),
                }
    return cells


def _cell_mean(forecast, scenario, task, index):
    return float(np.asarray(forecast)[scenario == index, task].mean())


def _mean(values):
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else None


def _number(value):
    return None if np.isnan(value) else float(value)


def _metric_texts(scores):
    values = [scores[name] for name in METRIC_NAMES]
    return ["-" if value is None else f"{value:.3f}" for value in values]


def _aligned(rows, num_names):
    """Names to the left, numbers to the right, two spaces between."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if index < num_names else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells))
    return "\n".join(lines)
