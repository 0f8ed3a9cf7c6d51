"""Figures of a run as PNG files.

Drawn with matplotlib's objects, not `pyplot`, which keeps figures in a global
state and needs a display unless told otherwise. `COLOURS` are Okabe and Ito's,
which stay apart for colour-blind readers; what colour says, place or hatching
says too.
"""

import os
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from m2m_tf import files
from m2m_tf.comparison import Difference

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_HATCHES = ("", "//", "..", "xx", "\\\\", "++")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_TITLES = {
    "loss": "Joint loss (weighted sum over the tasks)",
    "overall_nmae": "NMAE, mean over the cells",
    "overall_smape": "SMAPE, mean over the cells (0 to 2)",
    "overall_poisson_deviance": "Poisson deviance, mean over the cells",
}
_DPI = 144
# Letters of a tick label in a line.
_LABEL_WIDTH = 12
# More than these cannot be read, and some hundreds not be drawn.
_MOST_SCENARIOS = 12
# Groups of forecasts of equal size, of which means are drawn.
_NUM_GROUPS = 10


def plot_cells(metrics: Mapping[str, dict], path: str | os.PathLike) -> None:
    """Bars of NMAE and SMAPE per task × scenario (the paper's figure 5).

    Of more than 12 scenarios those with the most samples are shown.

    Args:
        metrics: What `evaluation.evaluate_forecasts` returned, of which the
            first six forecasts are shown.
        path: PNG file to write.

    Example:

    >>> from m2m_tf.evaluation import evaluate_forecasts
    >>> metrics = evaluate_forecasts(
    ...     [[1.0], [3.0]], {"m2m": [[2.0], [2.0]]}, [0, 0], ["clicks"], ["tv"]
    ... )
    >>> plot_cells(metrics, "cells.png")
    """
    names = list(metrics)[: len(COLOURS)]
    cells = metrics[names[0]]["cells"]
    tasks = _unique(cell["task"] for cell in cells)
    all_scenarios = _unique(cell["scenario"] for cell in cells)
    samples = {cell["scenario"]: cell["n"] for cell in cells}
    largest = sorted(all_scenarios, key=samples.get, reverse=True)
    largest = set(largest[:_MOST_SCENARIOS])
    scenarios = [name for name in all_scenarios if name in largest]
    labels = [_wrap(name) for name in scenarios]
    lines = max(label.count("\n") for label in labels)
    figure, axes = _panels(
        len(tasks),
        2,
        width=max(4.6, 0.95 * len(scenarios)),
        height=1.75 + 0.15 * lines,
    )
    for row, task in enumerate(tasks):
        for column, metric in enumerate(("nmae", "smape")):
            axis = axes[row, column]
            for index, name in enumerate(names):
                values = {
                    cell["scenario"]: cell[metric]
                    for cell in metrics[name]["cells"]
                    if cell["task"] == task
                }
                _bars(axis, values, scenarios, index, len(names), name)
            axis.set_title(f"{task}: {metric.upper()}")
            axis.set_ylabel(f"{metric.upper()} (no unit)")
            axis.set_xticks(range(len(scenarios)))
            axis.set_xticklabels(labels, fontsize=9)
    title = "Errors by task and scenario (lower is better)"
    if len(scenarios) < len(all_scenarios):
        title += (
            f", the {len(scenarios)} largest of {len(all_scenarios)} scenarios"
        )
    figure.suptitle(title)
    _legend_below(figure, axes[0, 0], len(names))
    _save(figure, path)


def plot_calibration(
    y_true,
    rates,
    task_names: Sequence[str],
    path: str | os.PathLike,
) -> None:
    """Mean label against mean forecast, by tenths of the forecast.

    Points on the diagonal: the forecast is right on average at that level.
    Both axes are linear up to the least positive value, so that 0 has its
    place, and logarithmic above. Equal forecasts are never split.

    Args:
        y_true: Labels `[N, T]`.
        rates: Forecasts of the mean `[N, T]`.
        task_names: Names of the T tasks.
        path: PNG file to write.

    Example:

    >>> rates = np.linspace(1.0, 5.0, 100)[:, None]
    >>> labels = np.random.default_rng(0).poisson(rates)
    >>> plot_calibration(labels, rates, ["clicks"], "calibration.png")
    """
    y_true, rates = np.asarray(y_true, float), np.asarray(rates, float)
    if y_true.shape != rates.shape or y_true.shape[1:] != (len(task_names),):
        raise ValueError(
            "`y_true` and `rates` must have shape [N, T] with a column for "
            f"each of {list(task_names)}. Received: "
            f"y_true.shape={y_true.shape}, rates.shape={rates.shape}"
        )
    columns = min(3, len(task_names))
    figure, axes = _panels(
        -(-len(task_names) // columns), columns, width=3.5, height=3.4
    )
    for axis, task, labels, forecast in zip(
        axes.flat, task_names, y_true.T, rates.T, strict=False
    ):
        groups = _group_means(labels, forecast, _NUM_GROUPS)
        _calibration_axis(axis, *groups)
        axis.set_title(task)
        axis.set_xlabel("mean forecast (the task's unit)")
        axis.set_ylabel("mean label (the task's unit)")
    for axis in axes.flat[len(task_names) :]:
        axis.set_visible(False)
    figure.suptitle("Calibration: groups of equal size, ordered by forecast")
    _legend_below(figure, axes[0, 0], 2)
    _save(figure, path)


def plot_learning_curves(
    history: Sequence[Mapping[str, float]], path: str | os.PathLike
) -> None:
    """Loss and overall metrics by epoch, training and validation.

    Args:
        history: One dict per epoch with `"epoch"` (from 1) and any of
            `"loss"`, `"overall_nmae"`, `"overall_smape"` and
            `"overall_poisson_deviance"`, with and without `"val_"` before.
        path: PNG file to write.

    Example:

    >>> history = [{"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": 2.5}]
    >>> plot_learning_curves(history, "learning.png")
    """
    shown = [
        name
        for name in _TITLES
        if any(name in row or f"val_{name}" in row for row in history)
    ]
    if not shown:
        raise ValueError(
            f"`history` must hold one of {list(_TITLES)} in some epoch. "
            f"Received: history={list(history)!r}"
        )
    columns = min(2, len(shown))
    figure, axes = _panels(
        -(-len(shown) // columns), columns, width=4.6, height=2.9
    )
    epochs = [row["epoch"] for row in history]
    for axis, name in zip(axes.flat, shown, strict=False):
        for index, (prefix, label) in enumerate(
            (("", "training"), ("val_", "validation"))
        ):
            values = [row.get(prefix + name, np.nan) for row in history]
            axis.plot(
                epochs,
                np.array(values, float),
                color=COLOURS[index],
                marker=_MARKERS[index],
                markersize=4,
                linestyle=("--", "-")[index],
                label=label,
            )
        axis.set_title(_TITLES[name])
        axis.set_xlabel("epoch")
        axis.set_ylabel("value (no unit)")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(color="#dddddd", linewidth=0.6)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    figure.suptitle("Learning curves")
    _legend_below(figure, axes[0, 0], 2)
    _save(figure, path)


def plot_expert_attention(
    scores,
    task_names: Sequence[str],
    scenario_names: Sequence[str],
    path: str | os.PathLike,
) -> None:
    """Heat maps of the mean attention on each expert (α of eq. 15).

    Of more than 12 scenarios the first that have samples are shown.

    Args:
        scores: Mean attention scores `[T, S, k]`, each row of k adding up to
            1; NaN for scenarios without samples.
        task_names: Names of the T tasks.
        scenario_names: Names of the S scenarios.
        path: PNG file to write.

    Example:

    >>> scores = np.full((2, 3, 4), 0.25)
    >>> tasks, scenarios = ["clicks", "sales"], ["tv", "radio", "web"]
    >>> plot_expert_attention(scores, tasks, scenarios, "attention.png")
    """
    scores = np.asarray(scores, float)
    expected = (len(task_names), len(scenario_names))
    if scores.ndim != 3 or scores.shape[:2] != expected:
        raise ValueError(
            "`scores` must have shape [T, S, k] = "
            f"[{expected[0]}, {expected[1]}, k]. "
            f"Received: scores.shape={scores.shape}"
        )
    empty = np.isnan(scores).all(axis=(0, 2))
    shown = np.sort(np.argsort(empty, kind="stable")[:_MOST_SCENARIOS])
    scores = scores[:, shown]
    title = "Attention on experts, mean over the samples"
    if len(shown) < len(scenario_names):
        title += f",\n{len(shown)} of {len(scenario_names)} scenarios"
    columns = min(3, len(task_names))
    labels = [_wrap(scenario_names[index]) for index in shown]
    lines = max(1 + label.count("\n") for label in labels)
    figure, axes = _panels(
        -(-len(task_names) // columns),
        columns,
        width=1.9 + 0.55 * scores.shape[2],
        height=1.3 + len(shown) * max(0.3, 0.18 * lines),
    )
    for axis, task, values in zip(axes.flat, task_names, scores, strict=False):
        image = axis.imshow(values, vmin=0, vmax=1, cmap="cividis")
        axis.set_aspect("auto")
        for (row, column), value in np.ndenumerate(values):
            axis.text(
                column,
                row,
                "-" if np.isnan(value) else f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color="black" if value > 0.55 or np.isnan(value) else "white",
            )
        axis.set_title(task)
        axis.set_xlabel("expert")
        axis.set_xticks(range(scores.shape[2]))
        axis.set_xticklabels(range(1, scores.shape[2] + 1))
        axis.set_yticks(range(len(shown)))
        axis.set_yticklabels(labels)
    for axis in axes.flat[len(task_names) :]:
        axis.set_visible(False)
    figure.suptitle(title)
    figure.colorbar(
        image, ax=axes, label="attention score (share of 1)", shrink=0.8
    )
    _save(figure, path)


def plot_differences(
    differences: Mapping[str, Mapping[str, Difference]],
    path: str | os.PathLike,
) -> None:
    """Differences of M2M to each rival with their intervals, by metric.

    Args:
        differences: Metric's title → rival → `comparison.Difference`.
        path: PNG file to write.

    Example:

    >>> ours = Difference(-0.02, -0.03, -0.01, is_clear=True)
    >>> differences = {"NMAE": {"mmoe": ours}}
    >>> plot_differences(differences, "differences.png")
    """
    rivals = list(next(iter(differences.values())))
    figure, axes = _panels(
        1, len(differences), width=3.6, height=0.32 * len(rivals) + 0.8
    )
    places = np.arange(len(rivals))[::-1]
    for axis, (title, by_rival) in zip(
        axes[0], differences.items(), strict=True
    ):
        value, low, high = np.array([by_rival[name][:3] for name in rivals]).T
        axis.axvline(0, color="#666666", linestyle="--")
        axis.errorbar(
            value,
            places,
            xerr=[value - low, high - value],
            fmt="o",
            color=COLOURS[0],
            capsize=3,
        )
        axis.set_yticks(places, rivals)
        axis.set_title(title)
        axis.locator_params(axis="x", nbins=4)
        axis.set_xlabel("M2M − rival")
        axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    for axis in axes[0, 1:]:
        axis.tick_params(labelleft=False)
    figure.suptitle("Left of the line M2M is better (95 % intervals)")
    _save(figure, path)


def plot_sweep(
    values: Mapping[int, Sequence[float]], setting: str, path: str | os.PathLike
) -> None:
    """Overall NMAE of M2M by the value of a setting (figure 6 of the paper).

    Args:
        values: Setting's value → NMAE of each seed.
        setting: Name of the setting.
        path: PNG file to write.

    Example:

    >>> values = {8: [0.52, 0.54], 16: [0.51, 0.53]}
    >>> plot_sweep(values, "knowledge_dim", "sweep.png")
    """
    figure, axes = _panels(1, 1, width=4.6, height=2.6)
    axis = axes[0, 0]
    places = np.arange(len(values))
    for index, seeds in enumerate(values.values()):
        axis.plot(
            np.full(len(seeds), places[index]),
            seeds,
            marker="o",
            linestyle="none",
            color=COLOURS[0],
            alpha=0.5,
            label="a seed" if index == 0 else None,
        )
    axis.plot(
        places,
        [np.mean(seeds) for seeds in values.values()],
        color=COLOURS[1],
        marker="s",
        label="mean",
    )
    axis.set_xticks(places, [str(value) for value in values])
    axis.set_xlabel(setting)
    axis.set_ylabel("NMAE, mean over the cells")
    axis.grid(color="#dddddd", linewidth=0.6)
    _legend_below(figure, axis, 2)
    _save(figure, path)


def _panels(rows, columns, width, height):
    """A figure with a grid of axes `[rows, columns]`; sizes in inches."""
    figure = Figure(
        figsize=(columns * width, rows * height + 0.9), layout="constrained"
    )
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.06)
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, axes


def _save(figure, path):
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=_DPI, format="png")


def _legend_below(figure, axis, num_columns):
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(num_columns, 3),
        frameon=False,
    )


def _bars(axis: Axes, values, scenarios, index, count, label):
    width = 0.84 / count
    places = np.arange(len(scenarios)) + (index - (count - 1) / 2) * width
    heights = [values.get(name) for name in scenarios]
    axis.bar(
        places,
        [np.nan if height is None else height for height in heights],
        width,
        color=COLOURS[index],
        hatch=_HATCHES[index],
        edgecolor="white",
        linewidth=0.4,
        label=label,
    )


def _group_means(labels, forecast, num_groups):
    """Mean forecast and mean label of each group, ascending `[groups]`."""
    edges = np.quantile(forecast, np.linspace(0, 1, num_groups + 1)[1:-1])
    group = np.searchsorted(np.unique(edges), forecast, side="left")
    count = np.bincount(group)
    filled = count > 0
    means = [
        np.bincount(group, weights=values)[filled] / count[filled]
        for values in (forecast, labels)
    ]
    return means


def _calibration_axis(axis, forecast, labels):
    both = np.concatenate([forecast, labels])
    positive = both[both > 0]
    least = positive.min() if positive.size else 1.0
    # Powers of ten, so that ticks fall on round numbers.
    least = 10.0 ** np.floor(np.log10(least))
    most = 2.0 * max(both.max(), least)
    axis.set_xscale("symlog", linthresh=least)
    axis.set_yscale("symlog", linthresh=least)
    for ruler in (axis.xaxis, axis.yaxis):
        # More powers of ten than these would run into each other.
        ruler.get_major_locator().set_params(numticks=4)
    low = -0.3 * least
    axis.set_xlim(low, most)
    axis.set_ylim(low, most)
    axis.plot(
        [0, most],
        [0, most],
        color="#666666",
        linestyle="--",
        label="forecast = label",
    )
    axis.plot(
        forecast,
        labels,
        color=COLOURS[0],
        marker="o",
        linestyle="none",
        label="group of samples",
    )
    axis.grid(color="#dddddd", linewidth=0.6)


def _wrap(name):
    """Breaks long names so that neighbouring tick labels do not touch."""
    lines = textwrap.wrap(name.replace("_", "_ "), _LABEL_WIDTH) or [name]
    return _plain("\n".join(line.replace("_ ", "_") for line in lines))


def _plain(name):
    """A user's name as it is: two dollars would make a formula of it."""
    return name.replace("$", r"\$")


def _unique(names):
    return list(dict.fromkeys(names))
