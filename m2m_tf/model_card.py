"""What a model is, what it was made from and how well it does, as Markdown."""

import importlib.metadata
import json
from collections.abc import Mapping

from m2m_tf.evaluation import MEDIAN_SUFFIX, METRIC_TITLES
from m2m_tf.features import Preprocessor
from m2m_tf.models import ForecastModel

_PACKAGES = ("tensorflow", "keras", "numpy")
_REFIT = (
    "The model that these scores are of had not seen the test split. This one "
    "was then trained anew with the same settings on all days, those of the "
    "validation and the test split as well, so it has no scores of its own."
)


def format_card(
    model: ForecastModel,
    preprocessor: Preprocessor,
    known: Mapping,
    is_refit: bool = False,
) -> str:
    """The card of a model (Mitchell et al., "Model Cards", FAT* 2019).

    Args:
        model: The exported model.
        preprocessor: The one inside of it.
        known: What is known of its making, each part optional: `metrics` (what
            metrics.json of a run holds) and `settings` (plain values).
        is_refit: Whether the scores are of an earlier model, and this one was
            trained on the days of these scores, too.

    Returns:
        Markdown.
    """
    spec = preprocessor.spec
    metrics = known.get("metrics")
    lines = [
        f"# {model.name} on {spec.name}",
        "",
        spec.description or f"Forecasts of {', '.join(spec.task_names)}.",
        "",
        f"From {spec.lookback} days of one {spec.entity} in one "
        f"{spec.scenario}, the totals of the next {spec.horizon} days: "
        f"{', '.join(spec.task_names)}. {model.count_params():,} parameters. "
        + ", ".join(f"{p} {importlib.metadata.version(p)}" for p in _PACKAGES)
        + ".",
        "",
        "## Data",
        "",
        f"Days from {spec.start} to {spec.end}; the last one that anything "
        f"was learned from is {preprocessor.statistics.last_day}. Samples: "
        + ", ".join(
            f"{count:,} {split}"
            for split, count in preprocessor.statistics.num_samples.items()
            if count
        )
        + ". Scenarios: "
        + ", ".join(preprocessor.known_scenarios)
        + ".",
    ]
    if metrics is not None:
        lines += ["", *_fingerprint(metrics), "", "## Scores", ""]
        if is_refit:
            lines += [_REFIT, ""]
        lines += [*_scores(metrics, model.name)]
    if "settings" in known:
        lines += ["", "## Settings", "", "```json"]
        lines += [json.dumps(known["settings"], indent=1), "```"]
    lines += ["", "## Limits", "", *_limits(metrics)]
    return "\n".join(lines) + "\n"


def _fingerprint(metrics):
    hashes = metrics["data_fingerprint"].items()
    yield (
        "SHA-256 of the tables, first 16 digits: "
        + ", ".join(f"{name} `{value}`" for name, value in hashes)
        + "."
    )


def _scores(metrics, model_name):
    """Overall scores, and those of each slice."""
    forecasts = metrics["forecasts"]
    kinds = {"mean": forecasts[model_name]}
    if model_name + MEDIAN_SUFFIX in forecasts:
        kinds["median"] = forecasts[model_name + MEDIAN_SUFFIX]
    columns = [
        (f"{title} of the {kind}", kind, metric)
        for metric, title in METRIC_TITLES.items()
        for kind in kinds
        if kinds[kind]["overall"][metric] is not None
    ]
    yield "Of the test split, scored once. Lower is better."
    yield ""
    titles = [title for title, _, _ in columns]
    yield "| task | scenario | samples | zeros | " + " | ".join(titles) + " |"
    yield "|---|---|" + "---:|" * (2 + len(titles))
    overall = [_number(kinds[k]["overall"][m]) for _, k, m in columns]
    yield f"| **all** | **mean of the slices** | | | {' | '.join(overall)} |"
    for index, cell in enumerate(metrics["cells"]):
        values = [_number(kinds[k]["cells"][index][m]) for _, k, m in columns]
        scenario = cell["scenario"].replace("|", r"\|")
        yield (
            f"| {cell['task']} | {scenario} | {cell['n']:,} | "
            f"{cell['zero_share']:.0%} | {' | '.join(values)} |"
        )
    if "interval" in metrics:
        yield ""
        yield (
            f"{metrics['interval']['coverage']:.1%} of the labels lie inside "
            f"the {metrics['interval']['level']:.0%} interval."
        )


def _number(value):
    return "-" if value is None else f"{value:.3f}"


def _limits(metrics):
    if metrics is None:
        yield "- Nothing is known here of how well the model forecasts."
    yield "- Entities, scenarios and categories that training has not seen are"
    yield "  forecast as unknown ones, with less to go by."
    yield "- Forecasts are of what would come of things as they are: no effect"
    yield "  of an action is estimated."
    yield "- What has changed since the last day that it has learned from is"
    yield "  not in the model. Score it anew before relying on it."
