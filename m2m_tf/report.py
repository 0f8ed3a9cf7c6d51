"""One HTML file that says how good a run's forecasts are."""

import base64
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import jinja2
import markupsafe

from m2m_tf import files
from m2m_tf.baselines.naive import HISTORY_MEAN
from m2m_tf.data.schema import UNKNOWN_SCENARIO
from m2m_tf.evaluation import METRIC_TITLES, find_concerns

_TEMPLATE = "report.html.j2"
_NOTES = (
    (
        "Overall",
        "The unweighted mean over the cells task × scenario that have a "
        "value, so a small scenario counts as much as a large one.",
    ),
    (
        "NMAE",
        "How far off the forecasts are, as a share of what there was to "
        "forecast: Σ|forecast − label| / Σ label. 0 is perfect; 1 is what a "
        "forecast of 0 everywhere scores. Cells whose labels are all 0 have "
        "none.",
    ),
    (
        "SMAPE",
        "How far off each forecast is, as a share of its own size: the mean "
        "of |forecast − label| / ((forecast + label) / 2), from 0 to 2; a "
        "term in which both are 0 counts as 0. It gives 2 to any positive "
        "forecast of a true 0, so a forecast of the mean scores badly where "
        "most labels are 0, and “always 0” well. Read it beside the share of "
        "zeros.",
    ),
    (
        "Poisson deviance",
        "How unlikely the labels are if the forecasts were the means of "
        "Poisson distributions; 0 is perfect. It is in the task’s own unit, "
        "so compare it within a task only. It is least for the mean. "
        "Forecasts below 1e-9 count as 1e-9: scores of forecasts that contain "
        "zeros, such as last_week, depend on that limit, and medians are not "
        "scored by it.",
    ),
    (
        "Mean or median",
        "The model is trained to forecast the mean, which adds up over "
        "entities and days and is what the deviance judges. NMAE is least for "
        "the median, which is often 0 where most labels are; rows named "
        "…_median hold medians.",
    ),
)
_INTERVAL_NOTE = (
    "Interval",
    "The model also tells a range for each forecast. If it is right about how "
    "sure it is, the share of labels inside an 80% interval is 80%: fewer "
    "means too sure, more means not sure enough. Where labels are 0 or 1 a "
    "range cannot hold exactly 80%, so a label on the edge counts in part.",
)

_UNKNOWN_NOTE = (
    UNKNOWN_SCENARIO,
    "Scenarios of the test split that the training split has not seen, all "
    "together. The model does not know them by name, only by what the "
    "scenario table tells of them.",
)


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    summary: Mapping[str, object],
    metrics: Mapping[str, dict],
    model: str,
    figures: Sequence[tuple[str | os.PathLike, str]] = (),
    settings: Mapping[str, object] | None = None,
    interval: Mapping[str, object] | None = None,
) -> None:
    """Writes a self-contained HTML report.

    The figures are embedded, nothing is loaded from elsewhere, and the file
    is replaced whole or not at all.

    Args:
        path: HTML file to write.
        title: Heading.
        summary: What → value, shown first (such as dataset, samples, run
            time), in this order.
        metrics: What `evaluation.evaluate_forecasts` returned.
        model: Name in `metrics` of the forecast whose cells are listed,
            beside those of `"history_mean"` if `metrics` has it.
        figures: PNG files with their captions.
        settings: Settings of the run; nested mappings are shown with dotted
            names.
        interval: What `evaluation.evaluate_intervals` returned, for a model
            that tells intervals.

    Raises:
        ValueError: If `model` is not in `metrics`, or a figure is no PNG.
        OSError: If a figure cannot be read.

    Example:

    >>> from m2m_tf.evaluation import evaluate_forecasts
    >>> metrics = evaluate_forecasts(
    ...     [[1.0], [3.0]], {"m2m": [[2.0], [2.0]]}, [0, 0], ["clicks"], ["tv"]
    ... )
    >>> write_report(
    ...     "report.html",
    ...     title="Demo",
    ...     summary={"test samples": 2},
    ...     metrics=metrics,
    ...     model="m2m",
    ... )
    """
    if model not in metrics:
        raise ValueError(
            f"`model` must be one of {list(metrics)}. Received: model={model!r}"
        )
    naive = HISTORY_MEAN if HISTORY_MEAN in metrics else None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("m2m_tf"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["breakable"] = _breakable
    html = environment.get_template(_TEMPLATE).render(
        title=title,
        headline=_headline(metrics, model, naive, interval),
        concerns=find_concerns(metrics, model, interval),
        summary={name: _text(value) for name, value in summary.items()},
        metric_titles=METRIC_TITLES,
        overall={name: scores["overall"] for name, scores in metrics.items()},
        best=_best(metrics),
        model=model,
        naive=naive,
        cells=_cells(metrics, model, naive, interval),
        interval=interval,
        figures=[(_data_uri(png), caption) for png, caption in figures],
        settings=_flat(settings or {}),
        notes=_notes(metrics[model]["cells"], interval),
    )
    files.write_text(path, html)


def _notes(cells, interval):
    notes = list(_NOTES)
    if interval is not None:
        notes.append(_INTERVAL_NOTE)
    if any(cell["scenario"] == UNKNOWN_SCENARIO for cell in cells):
        notes.append(_UNKNOWN_NOTE)
    return notes


def _headline(metrics, model, naive, interval):
    """Title, value and remark of each headline number."""
    numbers = []
    for metric, title in METRIC_TITLES.items():
        value = metrics[model]["overall"][metric]
        remark = ""
        if naive is not None:
            other = metrics[naive]["overall"][metric]
            remark = f"{naive}: {_number(other)}"
            if value is not None and other:
                remark += f" ({100 * (value / other - 1):+.0f}%)"
        numbers.append((title, _number(value), remark))
    if interval is not None:
        title = f"Inside the {interval['level']:.0%} interval"
        remark = f"of the labels; aim: {interval['level']:.0%}"
        numbers.append((title, f"{interval['coverage']:.1%}", remark))
    return numbers


def _best(metrics):
    """The lowest overall value of each metric, None where there is none."""
    best = {}
    for metric in METRIC_TITLES:
        values = [scores["overall"][metric] for scores in metrics.values()]
        best[metric] = min(
            (value for value in values if value is not None), default=None
        )
    return best


def _cells(metrics, model, naive, interval):
    """(model's cell, the naive forecast's or None, coverage or None)."""
    others = _by_cell(metrics[naive]["cells"] if naive is not None else ())
    told = _by_cell(interval["cells"] if interval is not None else ())
    rows = []
    for place, cell in _by_cell(metrics[model]["cells"]).items():
        coverage = told[place]["coverage"] if told else None
        rows.append((cell, others.get(place), coverage))
    return rows


def _by_cell(cells):
    return {(cell["task"], cell["scenario"]): cell for cell in cells}


def _data_uri(path):
    content = pathlib.Path(path).read_bytes()
    if not content.startswith(b"\x89PNG"):
        raise ValueError(
            f"`figures` must be PNG files. Received: {os.fspath(path)!r}"
        )
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _flat(settings, prefix=""):
    """Nested mappings as {dotted name: text}."""
    flat = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + str(name)] = _text(value)
    return flat


def _breakable(name):
    """A name that may go on in the next line after each of its parts."""
    escaped = str(markupsafe.escape(name))
    return markupsafe.Markup(re.sub("([._])", r"\1<wbr>", escaped))


def _number(value):
    """About four digits, so that columns of all sizes can be read."""
    if value is None:
        return "–"
    size = abs(value)
    decimals = 3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0
    return f"{value:,.{decimals}f}"


def _text(value):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
