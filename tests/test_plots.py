import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.image import imread

from m2m_tf import plots
from m2m_tf.evaluation import evaluate_forecasts

TASKS = ["clicks", "sales"]
SCENARIOS = ["shelf", "display_mailer", "coupon"]


@pytest.fixture
def samples():
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.4, 5.0, (300, 2))
    return rng.poisson(rates).astype(float), rates, rng.integers(0, 3, 300)


@pytest.fixture
def metrics(samples):
    y_true, rates, scenario = samples
    y_true[scenario == 2] = 0  # NMAE does not exist there.
    forecasts = {"m2m": rates, "last_week": rates + 1, "lightgbm": rates}
    return evaluate_forecasts(y_true, forecasts, scenario, TASKS, SCENARIOS)


def assert_drawn(path):
    image = imread(path)
    assert min(image.shape[:2]) > 200
    assert image[..., :3].std() > 0.02


def test_cells(metrics, tmp_path):
    path = tmp_path / "new_folder" / "cells.png"
    plots.plot_cells(metrics, path)
    assert_drawn(path)
    # The global state of pyplot knows nothing of it.
    assert pyplot.get_fignums() == []
    assert [item.name for item in path.parent.iterdir()] == ["cells.png"]


def test_dollars_of_a_scenario_are_no_formula(samples, tmp_path):
    y_true, rates, scenario = samples
    names = [r"$\no_formula$", "from $5 to $6", "_^{"]
    metrics = evaluate_forecasts(y_true, {"m2m": rates}, scenario, TASKS, names)
    plots.plot_cells(metrics, tmp_path / "cells.png")
    scores = np.full((2, 3, 4), 0.25)
    path = tmp_path / "attention.png"
    plots.plot_expert_attention(scores, TASKS, names, path)
    assert_drawn(path)


def test_of_many_scenarios_some_are_drawn(tmp_path):
    rng = np.random.default_rng(0)
    scenario = np.concatenate([np.arange(400), rng.integers(30, 54, 2000)])
    y_true = rng.poisson(3.0, (2400, 2)).astype(float)
    names = [f"scenario {i}" for i in range(400)]
    metrics = evaluate_forecasts(
        y_true, {"m2m": y_true + 1}, scenario, TASKS, names
    )
    path = tmp_path / "cells.png"
    plots.plot_cells(metrics, path)
    assert_drawn(path)
    assert max(imread(path).shape) < 4000
    scores = np.full((2, 400, 4), 0.25)
    scores[:, :30] = np.nan
    path = tmp_path / "attention.png"
    plots.plot_expert_attention(scores, TASKS, names, path)
    assert_drawn(path)
    assert max(imread(path).shape) < 2000


@pytest.mark.parametrize("case", ["usual", "zeros", "constant", "one_row"])
def test_calibration(samples, tmp_path, case):
    y_true, rates, _ = samples
    if case == "zeros":
        y_true, rates = 0 * y_true, 0 * rates
    elif case == "constant":
        rates = np.full_like(rates, 2.5)
    elif case == "one_row":
        y_true, rates = y_true[:1], rates[:1]
    path = tmp_path / "calibration.png"
    plots.plot_calibration(y_true, rates, TASKS, path)
    assert_drawn(path)


def test_calibration_groups_match_slow_loop():
    rng = np.random.default_rng(1)
    forecast = rng.gamma(1.0, 2.0, 100)
    labels = rng.poisson(forecast).astype(float)
    order = sorted(range(100), key=lambda row: forecast[row])
    groups = [order[start : start + 25] for start in range(0, 100, 25)]
    means = plots._group_means(labels, forecast, 4)
    for got, values in zip(means, (forecast, labels), strict=True):
        expected = [sum(values[row] for row in g) / 25 for g in groups]
        np.testing.assert_allclose(got, expected)


def test_calibration_does_not_split_equal_forecasts():
    forecast = np.array([0.0] * 8 + [1.0, 2.0])
    labels = np.array([0.0] * 7 + [8.0, 1.0, 3.0])
    means, mean_labels = plots._group_means(labels, forecast, 10)
    np.testing.assert_allclose(means, [0, 1, 2])
    np.testing.assert_allclose(mean_labels, [1, 1, 3])


def test_calibration_rejects_other_shapes(samples, tmp_path):
    y_true, rates, _ = samples
    with pytest.raises(ValueError, match=r"rates.shape=\(300, 1\)"):
        plots.plot_calibration(y_true, rates[:, :1], TASKS, tmp_path / "c.png")


def test_learning_curves(tmp_path):
    path = tmp_path / "history.png"
    history = [
        {"epoch": 1, "loss": 2.0, "val_loss": 2.1, "val_overall_nmae": 0.7},
        {"epoch": 2, "loss": 1.5, "val_loss": 1.9, "val_overall_nmae": 0.6},
    ]
    plots.plot_learning_curves(history, path)
    assert_drawn(path)
    plots.plot_learning_curves(history[:1], path)
    assert_drawn(path)
    with pytest.raises(ValueError, match=r"`history` must hold one of"):
        plots.plot_learning_curves([{"epoch": 1}], path)


def test_attention_of_long_names_is_high_enough(tmp_path):
    names = [f"a_rather_long_name_of_the_scenario_{i}" for i in range(5)]
    names.append("w" * 40)
    scores = np.full((len(TASKS), len(names), 4), 0.25)
    path = tmp_path / "attention.png"
    # A warning of axes that collapsed would be an error.
    plots.plot_expert_attention(scores, TASKS, names, path)
    assert path.exists()


def test_expert_attention(tmp_path):
    path = tmp_path / "attention.png"
    scores = np.full((2, 3, 4), 0.25)
    scores[0, 1] = np.nan
    plots.plot_expert_attention(scores, TASKS, SCENARIOS, path)
    assert_drawn(path)
    with pytest.raises(ValueError, match=r"\[2, 3, k\].*\(3, 2, 4\)"):
        plots.plot_expert_attention(
            scores.swapaxes(0, 1), TASKS, SCENARIOS, path
        )
