"""One HTML file that says how good a run's forecasts are."""

import base64
import os
import pathlib
from collections.abc import Mapping, Sequence

import jinja2

from m2m_tf import files

_TEMPLATE = "report.html.j2"
_METRIC_TITLES = {
    "nmae": "NMAE",
    "smape": "SMAPE",
    "poisson_deviance": "Poisson deviance",
}
_NOTES = (
    "Overall scores are unweighted means over the cells task × scenario that "
    "have a value, so a small scenario counts as much as a large one.",
    "NMAE = Σ|forecast − label| / Σ label. 0 is perfect; 1 is what a forecast "
    "of 0 everywhere scores. Cells whose labels are all 0 have none.",
    "SMAPE = mean of |forecast − label| / ((forecast + label) / 2), from 0 to "
    "2; a term in which both are 0 counts as 0. It gives 2 to any positive "
    "forecast of a true 0, so a forecast of the mean scores badly where most "
    "labels are 0, and “always 0” well. Read it beside the share of zeros.",
    "Poisson deviance is least for the mean. Forecasts below 1e-9 count as "
    "1e-9: scores of forecasts that contain zeros, such as last_week, depend "
    "on that limit, and medians are not scored by it.",
    "Mean or median: the model is trained to forecast the mean, which adds up "
    "over advertisers and days and is what the deviance judges. NMAE is least "
    "for the median, which is often 0 where sales are rare; rows named "
    "…_median hold medians.",
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
    naive: str = "history_mean",
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
        model: Name in `metrics` of the forecast whose cells are listed.
        figures: PNG files with their captions.
        settings: Settings of the run; nested mappings are shown with dotted
            names.
        naive: Name of the forecast shown beside it; left out if absent.

    Raises:
        ValueError: If `model` is not in `metrics`, or a figure is no PNG.
        OSError: If a figure cannot be read.

    Example:

    >>> write_report(
    ...     "report.html",
    ...     title="Demo",
    ...     summary={"test samples": 21043},
    ...     metrics=evaluate_forecasts(...),
    ...     model="m2m",
    ...     figures=[("cells.png", "Errors by task and scenario.")],
    ... )
    """
    if model not in metrics:
        raise ValueError(
            f"`model` must be one of {list(metrics)}. Received: model={model!r}"
        )
    naive = naive if naive in metrics else None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("m2m_tf"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["metric"] = _metric
    html = environment.get_template(_TEMPLATE).render(
        title=title,
        headline=_headline(metrics, model, naive),
        summary={name: _text(value) for name, value in summary.items()},
        metric_titles=_METRIC_TITLES,
        overall={name: scores["overall"] for name, scores in metrics.items()},
        best=_best(metrics),
        model=model,
        naive=naive,
        cells=_cells(metrics, model, naive),
        figures=[(_data_uri(png), caption) for png, caption in figures],
        settings=_flat(settings or {}),
        notes=_NOTES,
    )
    files.write_text(path, html)


def _headline(metrics, model, naive):
    """Title, value and remark of each headline number."""
    numbers = []
    for metric, title in _METRIC_TITLES.items():
        value = metrics[model]["overall"][metric]
        remark = ""
        if naive is not None:
            other = metrics[naive]["overall"][metric]
            remark = f"{naive}: {_metric(other)}"
            if value is not None and other:
                remark += f" ({100 * (value / other - 1):+.0f} %)"
        numbers.append((title, _metric(value), remark))
    return numbers


def _best(metrics):
    """The lowest overall value of each metric, None where there is none."""
    best = {}
    for metric in _METRIC_TITLES:
        values = [scores["overall"][metric] for scores in metrics.values()]
        best[metric] = min(
            (value for value in values if value is not None), default=None
        )
    return best


def _cells(metrics, model, naive):
    """Pairs (model's cell, the naive forecast's or None)."""
    others = {}
    if naive is not None:
        for cell in metrics[naive]["cells"]:
            others[cell["task"], cell["scenario"]] = cell
    return [
        (cell, others.get((cell["task"], cell["scenario"])))
        for cell in metrics[model]["cells"]
    ]


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


def _metric(value):
    return "–" if value is None else f"{value:.3f}"


def _text(value):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
