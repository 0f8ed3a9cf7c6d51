"""Scores a trained model on the test split and writes the run's results."""

import dataclasses
import os
import pathlib

import numpy as np
import polars as pl
import tensorflow as tf
from tqdm import tqdm

from m2m_tf import evaluation, files, plots, report
from m2m_tf.baselines import naive_forecasts
from m2m_tf.data import schema, windows
from m2m_tf.data.dataset import ForecastData
from m2m_tf.evaluation import MEDIAN_SUFFIX
from m2m_tf.forecast import poisson_median
from m2m_tf.models import ForecastModel, expert_attention

_BATCH = 1024


@dataclasses.dataclass(frozen=True)
class TestForecasts:
    """Everything said of the test samples; N samples, T tasks.

    Args:
        entity: Entity ids `[N]`.
        scenario: Scenario indices `[N]`, 0 for unknown ones.
        cutoff: Days since 1970-01-01 `[N]`.
        y_true: Labels `[N, T]`.
        forecasts: Forecast name → `[N, T]`.
        attention: Mean expert attention `[T, S, k]`, NaN without samples; None
            for a model that has none.
    """

    __test__ = False  # Not a test, whatever pytest thinks of the name.

    entity: np.ndarray
    scenario: np.ndarray
    cutoff: np.ndarray
    y_true: np.ndarray
    forecasts: dict[str, np.ndarray]
    attention: np.ndarray | None


class _Batches:
    """Raw batches of a split as NumPy arrays; can be read more than once."""

    def __init__(self, data, split):
        self._dataset = data.raw(split, _BATCH)

    def __iter__(self):
        return self._dataset.as_numpy_iterator()


def forecast_test(
    data: ForecastData, model: ForecastModel, with_lightgbm: bool = False
) -> TestForecasts:
    """Forecasts every test sample with the model and what it is held against.

    Args:
        data: Prepared data.
        model: A trained model.
        with_lightgbm: Whether LightGBM is fitted and scored as well.
    """
    spec = data.spec
    num_scenarios = len(data.preprocessor.scenario_names)
    attention_model = expert_attention(model)
    attention, counts = 0.0, np.zeros(num_scenarios)

    @tf.function
    def step(raw):
        inputs = data.preprocessor(raw)
        log_rates = model(inputs, training=False)
        rates = [tf.exp(log_rates[name])[:, 0] for name in spec.task_names]
        outputs = {
            "rates": tf.stack(rates, axis=1),
            "scenario": inputs[schema.SCENARIO_FEATURES][:, 0],
        }
        if attention_model is not None:
            outputs["attention"] = attention_model(inputs, training=False)
        return outputs

    names = list(schema.raw_features(spec))
    columns = {"entity": [], "scenario": [], "cutoff": [], "y_true": []}
    forecasts = {}
    binary = np.array([task.kind == "binary" for task in spec.tasks])
    batches = tqdm(
        _Batches(data, "test"),
        total=-(-data.num_samples("test") // _BATCH),
        desc="test forecasts",
        unit=" batches",
        mininterval=2,
    )
    for raw in batches:
        outputs = step({name: raw[name] for name in names})
        rates, scenario = outputs["rates"].numpy(), outputs["scenario"].numpy()
        mean = np.where(binary, np.minimum(rates, 1.0), rates)
        median = np.where(binary, mean > 0.5, poisson_median(rates))
        parts = {model.name: mean, model.name + MEDIAN_SUFFIX: median}
        for name, values in (parts | naive_forecasts(spec, raw)).items():
            forecasts.setdefault(name, []).append(values)
        one_hot = np.eye(num_scenarios)[scenario]
        if attention_model is not None:
            attention += np.einsum(
                "bs,btk->tsk", one_hot, outputs["attention"].numpy()
            )
        counts += one_hot.sum(0)
        columns["entity"].append(raw[schema.ENTITY].astype(str))
        columns["scenario"].append(scenario)
        columns["cutoff"].append(raw[schema.CUTOFF])
        columns["y_true"].append(raw[windows.LABELS])
    forecasts = {name: np.concatenate(x) for name, x in forecasts.items()}
    if with_lightgbm:
        from m2m_tf.baselines import lightgbm

        forecasts |= lightgbm.forecast(
            spec,
            *(_Batches(data, split) for split in windows.SPLIT_NAMES),
            num_threads=os.cpu_count() or 1,
        )
    if attention_model is None:
        attention = None
    else:
        with np.errstate(invalid="ignore"):
            attention = attention / counts[None, :, None]
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return TestForecasts(**joined, forecasts=forecasts, attention=attention)


def evaluate_run(
    data: ForecastData,
    model: ForecastModel,
    history: list[dict],
    folder: str | os.PathLike,
    *,
    config: dict,
    data_fingerprint: dict,
    with_lightgbm: bool = False,
) -> dict:
    """Writes metrics.json, test_forecasts.parquet, plots/ and report.html.

    Args:
        data: Prepared data.
        model: The trained model.
        history: One dict of losses and metrics per epoch.
        folder: The run's folder.
        config: Settings, as plain values.
        data_fingerprint: Hashes of the tables.
        with_lightgbm: Whether LightGBM is fitted and scored as well.

    Returns:
        What metrics.json holds: `overall` and `cells` of the model's mean
        forecast, and `forecasts` with the same of every forecast.
    """
    folder = pathlib.Path(folder)
    scenario_names = data.preprocessor.scenario_names
    test = forecast_test(data, model, with_lightgbm)
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
        "data_fingerprint": data_fingerprint,
        "overall": scores[model.name]["overall"],
        "cells": scores[model.name]["cells"],
        "forecasts": scores,
    }
    print(evaluation.format_table(scores, cells_of=model.name))
    with files.replacing(folder / "test_forecasts.parquet") as path:
        _forecast_table(data, test).write_parquet(path)
    figures = _write_plots(
        data, test, model.name, scores, history, folder / "plots"
    )
    _write_report(data, model.name, metrics, figures, history, config, folder)
    files.write_json(folder / "metrics.json", metrics)
    return metrics


def _forecast_table(data, test):
    names = np.array(data.preprocessor.scenario_names)
    columns = {
        data.spec.entity: test.entity,
        data.spec.scenario: names[test.scenario],
        "cutoff": pl.Series(test.cutoff.astype("int32")).cast(pl.Date),
    }
    for index, task in enumerate(data.spec.task_names):
        columns[f"{task}_actual"] = test.y_true[:, index]
        for name, values in test.forecasts.items():
            columns[f"{task}_{name}"] = values[:, index].astype("float32")
    return pl.DataFrame(columns)


def _write_plots(data, test, model_name, scores, history, folder):
    """Writes the plots; returns (path, caption) of each."""
    tasks = data.spec.task_names
    scenarios = data.preprocessor.scenario_names
    seen = [i for i in range(len(scenarios)) if (test.scenario == i).any()]
    horizon = data.spec.horizon
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
        if test.attention is not None:
            plots.plot_expert_attention(
                test.attention[:, seen],
                tasks,
                [scenarios[i] for i in seen],
                temporary / "attention.png",
            )
    figures = [
        (
            folder / "cells.png",
            "Error of each task in each scenario on the test split, beside "
            "what it is held against. Lower is better.",
        ),
        (
            folder / "calibration.png",
            f"Mean total of the next {horizon} days against the forecast, by "
            "tenths of the forecast. On the diagonal the forecast is right "
            "on average.",
        ),
        (
            folder / "learning.png",
            "Loss and overall metrics by epoch. The best epoch by validation "
            "loss is the one that is evaluated and exported.",
        ),
        (
            folder / "attention.png",
            "Mean attention of each task on each expert, by scenario "
            "(eq. 15 of the paper).",
        ),
    ]
    return [figure for figure in figures if figure[0].exists()]


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
    report.write_report(
        folder / "report.html",
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
    )
