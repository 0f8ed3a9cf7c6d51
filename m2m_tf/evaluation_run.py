"""Scores a trained model on the test split and writes the run's results."""

import dataclasses
import os
import pathlib

import numpy as np
import polars as pl
import tensorflow as tf
from tqdm import tqdm

from m2m_tf import evaluation, files, plots, report, tensorboard, training
from m2m_tf.baselines import naive_forecasts
from m2m_tf.data import schema, windows
from m2m_tf.data.dataset import ForecastData
from m2m_tf.evaluation import MEDIAN_SUFFIX
from m2m_tf.forecast import (
    has_shape,
    poisson_median,
    task_forecasts,
    task_levels,
)
from m2m_tf.models import ForecastModel, explanation
from m2m_tf.models.m2m import EXPERT_ATTENTION

METRICS_FILE = "metrics.json"
_FORECASTS_FILE = "test_forecasts.parquet"
_PLOTS_FOLDER = "plots"
_REPORT_FILE = "report.html"
# What `evaluate_run` leaves in a run's folder.
OUTPUTS = (METRICS_FILE, _FORECASTS_FILE, _PLOTS_FOLDER, _REPORT_FILE)
_BATCH = 1024


@dataclasses.dataclass(frozen=True)
class SplitForecasts:
    """Everything said of the samples of a split; N samples, T tasks.

    Args:
        entity: Entity ids `[N]`.
        scenario: Scenario indices `[N]`, 0 for unknown ones.
        scenario_id: Scenario ids `[N]`, as the tables have them.
        cutoff: Days since 1970-01-01 `[N]`.
        y_true: Labels `[N, T]`.
        forecasts: Forecast name → `[N, T]`.
        intervals: None for a model that only gives means, else a dict of
            `[N, T]`: `lower` and `upper` of the 80 % interval, and the levels
            of the label, `below` = P(Y < y) and `up_to` = P(Y ≤ y).
        attention: Mean expert attention `[T, S, k]`, NaN without samples; None
            for a model that has none.

    Example:

    >>> test = forecast_split(data, model)
    >>> test.y_true.shape == test.intervals["lower"].shape
    True
    """

    entity: np.ndarray
    scenario: np.ndarray
    scenario_id: np.ndarray
    cutoff: np.ndarray
    y_true: np.ndarray
    forecasts: dict[str, np.ndarray]
    intervals: dict[str, np.ndarray] | None
    attention: np.ndarray | None


class _Batches:
    """Raw batches of a split as NumPy arrays; can be read more than once."""

    def __init__(self, data, split):
        self._dataset = data.raw(split, _BATCH)

    def __iter__(self):
        return self._dataset.as_numpy_iterator()


class ForecastError(ValueError):
    """A model whose forecasts are no numbers."""


def forecast_split(
    data: ForecastData, model: ForecastModel, split: str = "test"
) -> SplitForecasts:
    """Forecasts every sample of a split with the model and naively.

    The model's forecasts are called `<model.name>` (means) and
    `<model.name>_median`: of the model's own distribution with the hurdle
    likelihood, else of a Poisson distribution with the forecast mean.

    Raises:
        ForecastError: If a mean is not finite.

    Example:

    >>> forecasts = forecast_split(data, model, "validation").forecasts
    >>> list(forecasts)[:2]
    ['m2m', 'm2m_median']
    """
    spec = data.spec
    num_scenarios = len(data.preprocessor.scenario_names)
    attention_model = explanation(model)
    step = _make_step(data, model, attention_model)
    names = list(schema.raw_features(spec))
    parts, naive = [], []
    attention, counts = 0.0, np.zeros(num_scenarios)
    batches = tqdm(
        _Batches(data, split),
        total=-(-data.num_samples(split) // _BATCH),
        desc=f"{split} forecasts",
        unit=" batches",
        mininterval=2,
    )
    for raw in batches:
        outputs = step({name: raw[name] for name in names}, raw[windows.LABELS])
        outputs = {name: x.numpy() for name, x in outputs.items()}
        one_hot = np.eye(num_scenarios)[outputs["scenario"]]
        if attention_model is not None:
            attention += np.einsum(
                "bs,btk->tsk", one_hot, outputs.pop("attention")
            )
        counts += one_hot.sum(0)
        outputs["entity"] = schema.as_text(raw[schema.ENTITY])
        outputs["scenario_id"] = schema.as_text(raw[schema.SCENARIO])
        outputs["cutoff"] = raw[schema.CUTOFF]
        outputs["y_true"] = raw[windows.LABELS]
        parts.append(outputs)
        naive.append(naive_forecasts(spec, raw))
    joined = _joined(parts)
    if attention_model is None:
        attention = None
    else:
        with np.errstate(invalid="ignore"):
            attention = attention / counts[None, :, None]
    mean = joined.pop("mean")
    if bad := int((~np.isfinite(mean)).sum()):
        raise ForecastError(
            f"{bad:,} of {mean.size:,} mean forecasts of {model.name} are not "
            "finite. Train it with a lower `learning_rate`, or with "
            "`head_normalization: true`."
        )
    if "median" in joined:
        median = joined.pop("median")
        intervals = {
            name: joined.pop(name)
            for name in ("lower", "upper", "below", "up_to")
        }
    else:
        median = np.where(spec.is_binary, mean > 0.5, poisson_median(mean))
        intervals = None
    forecasts = {model.name: mean, model.name + MEDIAN_SUFFIX: median}
    return SplitForecasts(
        **joined,
        forecasts=forecasts | _joined(naive),
        intervals=intervals,
        attention=attention,
    )


def lightgbm_forecasts(
    data: ForecastData, split: str = "test", seed: int = 0, **options
) -> dict[str, np.ndarray]:
    """Fits LightGBM on the training split and forecasts another one.

    `options` are further arguments of `baselines.lightgbm.forecast`.

    Returns:
        Dict of `[N, T]`, see `baselines.lightgbm.forecast`.

    Example:

    >>> list(lightgbm_forecasts(data, trees={"num_leaves": 7}))
    ['lightgbm', 'lightgbm_median']
    """
    from m2m_tf.baselines import lightgbm

    forecasts = lightgbm.forecast(
        data.spec,
        *(_Batches(data, name) for name in ("train", "validation", split)),
        seed=seed,
        **options,
    )
    # Trees are not to be held back by what the model is told.
    limits = [x or np.inf for x in data.preprocessor.statistics.label_limits]
    return {name: np.minimum(x, limits) for name, x in forecasts.items()}


def _make_step(data, model, attention_model):
    """Function of raw features and labels, giving NumPy-ready tensors."""
    tasks = data.preprocessor.label_ranges()

    @tf.function
    def step(raw, labels):
        inputs = data.preprocessor(raw)
        outputs = model(inputs, training=False)
        columns = {}
        for index, (task, whole, limit) in enumerate(tasks):
            output = outputs[task]
            told = task_forecasts(output, whole, limit)
            if has_shape(output):
                levels = task_levels(output, labels[:, index], whole, limit)
                for name, level in zip(("below", "up_to"), levels, strict=True):
                    told[name] = level[:, None]
            for name, values in told.items():
                columns.setdefault(name, []).append(values)
        result = {name: tf.concat(x, axis=1) for name, x in columns.items()}
        result["scenario"] = inputs[schema.SCENARIO_FEATURES][:, 0]
        if attention_model is not None:
            result["attention"] = attention_model(inputs, training=False)[
                EXPERT_ATTENTION
            ]
        return result

    return step


def _joined(parts):
    return {
        name: np.concatenate([part[name] for part in parts])
        for name in parts[0]
    }


def evaluate_run(
    data: ForecastData,
    model: ForecastModel,
    history: list[dict],
    folder: str | os.PathLike,
    *,
    config: dict,
    with_lightgbm: bool = False,
) -> dict:
    """Writes metrics.json, test_forecasts.parquet, plots/ and report.html.

    Args:
        data: Prepared data.
        model: The trained model.
        history: One dict of losses and metrics per epoch.
        folder: The run's folder.
        config: Settings, as plain values.
        with_lightgbm: Whether LightGBM is fitted and scored as well.

    Returns:
        What metrics.json holds: `overall` and `cells` of the model's mean
        forecast, `forecasts` with the same of every forecast, and
        `interval` with the coverage of the 80 % interval, if there is one.

    Example:

    >>> metrics = evaluate_run(
    ...     data,
    ...     model,
    ...     history=[{"epoch": 1, "loss": 2.0, "val_loss": 3.0}],
    ...     folder="runs/new",
    ...     config={"model": {}, "training": {}},
    ... )
    forecast ...
    >>> sorted(metrics["overall"])
    ['nmae', 'poisson_deviance', 'smape']
    """
    folder = pathlib.Path(folder)
    scenario_names = data.preprocessor.scenario_names
    test = forecast_split(data, model)
    if with_lightgbm:
        test.forecasts.update(lightgbm_forecasts(data))
    scores = evaluation.evaluate_forecasts(
        test.y_true,
        test.forecasts,
        test.scenario,
        data.spec.task_names,
        scenario_names,
    )
    metrics = {
        "dataset": data.spec.name,
        "num_samples": data.preprocessor.statistics.num_samples,
        "data_fingerprint": data.fingerprint,
        "overall": scores[model.name]["overall"],
        "cells": scores[model.name]["cells"],
        "forecasts": scores,
    }
    print(evaluation.format_table(scores, cells_of=model.name))
    if test.intervals is not None:
        metrics["interval"] = evaluation.evaluate_intervals(
            test.y_true,
            test.intervals,
            test.scenario,
            data.spec.task_names,
            scenario_names,
        )
        print(evaluation.format_interval(metrics["interval"]))
    for concern in evaluation.find_concerns(
        scores, model.name, metrics.get("interval")
    ):
        print(f"mind: {concern}")
    with files.replacing(folder / _FORECASTS_FILE) as path:
        _forecast_table(data, test).write_parquet(path)
    figures = _write_plots(
        data, test, model.name, scores, history, folder / _PLOTS_FOLDER
    )
    _write_report(data, model.name, metrics, figures, history, config, folder)
    files.write_json(folder / METRICS_FILE, metrics)
    return metrics


def _forecast_table(data, test):
    columns = {
        data.spec.entity: test.entity,
        data.spec.scenario: test.scenario_id,
        schema.CUTOFF: pl.from_epoch(pl.Series(test.cutoff), "d"),
    }
    for index, task in enumerate(data.spec.task_names):
        columns[f"{task}_actual"] = test.y_true[:, index]
        for name, values in test.forecasts.items():
            columns[f"{task}_{name}"] = values[:, index].astype("float32")
        for name, values in (test.intervals or {}).items():
            columns[schema.output_name(task, name)] = values[:, index]
    return pl.DataFrame(columns)


def _write_plots(data, test, model_name, scores, history, folder):
    """Writes the plots; returns (path, caption) of each."""
    tasks = data.spec.task_names
    scenarios = data.preprocessor.scenario_names
    seen = [i for i in range(len(scenarios)) if (test.scenario == i).any()]
    horizon = data.spec.horizon
    captions = {
        "cells": "Error of each task in each scenario on the test split, "
        "beside what it is held against. Lower is better.",
        "calibration": f"Mean total of the next {horizon} days against the "
        "forecast, by tenths of the forecast. On the diagonal the forecast is "
        "right on average.",
        "learning": "Loss and overall metrics by epoch. The best epoch by "
        "validation loss is the one that is kept.",
        "attention": "Mean attention of each task on each expert, by scenario "
        "(eq. 15 of the paper).",
    }
    with files.replacing(folder) as temporary:
        temporary.mkdir()
        plots.plot_cells(scores, temporary / "cells.png")
        plots.plot_calibration(
            test.y_true,
            test.forecasts[model_name],
            tasks,
            temporary / "calibration.png",
        )
        plots.plot_learning_curves(history, temporary / "learning.png")
        if test.attention is None:
            del captions["attention"]
        else:
            plots.plot_expert_attention(
                test.attention[:, seen],
                tasks,
                [scenarios[i] for i in seen],
                temporary / "attention.png",
            )
        tensorboard.write_images(
            [(temporary / f"{x}.png", text) for x, text in captions.items()],
            temporary,
        )
    return [(folder / f"{x}.png", text) for x, text in captions.items()]


def _write_report(data, model_name, metrics, figures, history, config, folder):
    spec = data.spec
    splits = data.splits
    days = {
        name: f"{windows.date_of(spec, getattr(splits, name)[0])} to "
        f"{windows.date_of(spec, getattr(splits, name)[-1])}"
        for name in windows.SPLIT_NAMES
    }
    summary = {
        "Dataset": spec.description or spec.name,
        "Forecast": f"totals of {spec.horizon} days from {spec.lookback} "
        "days before",
        **{
            f"{name.capitalize()} samples": f"{count:,} (cutoffs {days[name]})"
            for name, count in metrics["num_samples"].items()
        },
        "Epochs trained": len(history),
    }
    if concerns := training.find_concerns(history):
        summary["Training"] = " ".join(concerns)
    if config.get("refit"):
        summary["Model to be exported"] = (
            "trained anew on all days, those of the test as well; what is "
            "told here is of the model before, which had not seen them"
        )
    report.write_report(
        folder / _REPORT_FILE,
        title=f"{model_name} on {spec.name}",
        summary=summary,
        metrics=metrics["forecasts"],
        model=model_name,
        figures=figures,
        settings={
            "model": config["model"],
            "training": config["training"],
            "data fingerprint": metrics["data_fingerprint"],
        },
        interval=metrics.get("interval"),
    )
