import json
import math

import numpy as np
import pytest
from scipy import stats

from m2m_tf.evaluation import (
    evaluate_forecasts,
    evaluate_intervals,
    find_concerns,
    format_interval,
    format_table,
)

TASKS = ["clicks", "sales"]
SCENARIOS = ["shelf", "display", "coupon"]
# Clicks and sales of four samples; nothing is ever sold on display, and
# coupon has no sample.
Y_TRUE = np.array([[1.0, 10.0], [3.0, 0.0], [0.0, 0.0], [4.0, 0.0]])
SCENARIO = np.array([0, 0, 1, 1])


@pytest.fixture
def result():
    forecasts = {
        "m2m": np.array([[2.0, 6.0], [2.0, 1.0], [1.0, 0.5], [5.0, 0.5]]),
        "m2m_median": np.array([[1.0, 5.0], [2.0, 0], [0, 0], [4.0, 0]]),
        "last_week": np.zeros((4, 2)),
    }
    return evaluate_forecasts(Y_TRUE, forecasts, SCENARIO, TASKS, SCENARIOS)


def test_cells_hand_computed(result):
    cells = result["m2m"]["cells"]
    places = [(cell["task"], cell["scenario"]) for cell in cells]
    assert places == [
        ("clicks", "shelf"),
        ("clicks", "display"),
        ("sales", "shelf"),
        ("sales", "display"),
    ]
    assert [cell["n"] for cell in cells] == [2, 2, 2, 2]
    assert [cell["zero_share"] for cell in cells] == [0.0, 0.5, 0.5, 1.0]
    assert [cell["mean_label"] for cell in cells] == [2.0, 2.0, 5.0, 0.0]
    assert [cell["mean_forecast"] for cell in cells] == [2.0, 3.0, 3.5, 0.5]
    assert [cell["nmae"] for cell in cells] == [0.5, 0.5, 0.5, None]
    smape = [cell["smape"] for cell in cells]
    np.testing.assert_allclose(
        smape, [(2 / 3 + 2 / 5) / 2, (2 + 2 / 9) / 2, (0.5 + 2) / 2, 2]
    )
    # Twice the forecast where nothing happened.
    assert cells[3]["poisson_deviance"] == pytest.approx(1.0)


def test_overall_is_unweighted_mean_over_cells(result):
    for scores in result.values():
        for metric in ("nmae", "smape"):
            values = [cell[metric] for cell in scores["cells"]]
            values = [value for value in values if value is not None]
            assert scores["overall"][metric] == pytest.approx(
                sum(values) / len(values)
            )
    assert result["m2m"]["overall"]["nmae"] == pytest.approx(0.5)
    assert result["last_week"]["overall"]["nmae"] == pytest.approx(1.0)


def test_medians_have_no_deviance(result):
    median = result["m2m_median"]
    assert median["overall"]["poisson_deviance"] is None
    assert {cell["poisson_deviance"] for cell in median["cells"]} == {None}
    # A naive zero is scored with the clip at 1e-9: 2 (10 log 1e10 - 10) / 2.
    naive = result["last_week"]["cells"][2]["poisson_deviance"]
    assert naive == pytest.approx(10 * math.log(1e10) - 10)


def test_result_is_strict_json(result):
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_all_labels_zero():
    result = evaluate_forecasts(
        [[0.0]], {"m2m": [[0.5]]}, [0], ["clicks"], ["shelf"]
    )
    assert result["m2m"]["overall"] == {
        "nmae": None,
        "smape": pytest.approx(2.0),
        "poisson_deviance": pytest.approx(1.0),
    }


def test_table(result):
    lines = format_table(result).splitlines()
    assert lines[0].split() == [
        "forecast",
        "NMAE",
        "SMAPE",
        "Poisson",
        "deviance",
    ]
    assert lines[1].split()[:2] == ["m2m", "0.500"]
    assert lines[2].endswith("-")
    assert len({len(line) for line in lines}) == 1
    cells = format_table(result, cells_of="m2m").splitlines()[5:]
    assert cells[0] == "m2m"
    told = [line.split()[:7] for line in cells[2:]]
    assert told[0] == ["clicks", "shelf", "2", "0%", "2", "2", "0.500"]
    assert told[3] == ["sales", "display", "2", "100%", "0", "0.5", "-"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"y_true": Y_TRUE[:, :1]},
            r"for each of \['clicks', 'sales'\].*y_true.shape=\(4, 1\)",
        ),
        ({"forecasts": {}}, "must hold one forecast .*forecasts={}"),
        (
            {"forecasts": {"m2m": Y_TRUE, "bad": -Y_TRUE}},
            "Forecast 'bad': `y_pred` must be finite and not negative",
        ),
        ({"scenario": SCENARIO + 2}, r"must be in \[0, 3\).*scenario=3"),
    ],
)
def test_errors(changes, message):
    arguments = {
        "y_true": Y_TRUE,
        "forecasts": {"m2m": Y_TRUE},
        "scenario": SCENARIO,
        "task_names": TASKS,
        "scenario_names": SCENARIOS,
    }
    with pytest.raises(ValueError, match=message):
        evaluate_forecasts(**(arguments | changes))


def test_table_rejects_unknown_forecast(result):
    with pytest.raises(ValueError, match="must be one of .*'mmoe'"):
        format_table(result, cells_of="mmoe")


def test_interval_of_a_right_distribution_covers_its_level():
    """Poisson labels with their own levels: 0.8 in cells of any rate."""
    rng = np.random.default_rng(0)
    n, rates = 40_000, np.array([0.1, 3.0])
    y = rng.poisson(rates, (n, 2))
    result = evaluate_intervals(
        y,
        {
            "lower": np.broadcast_to(stats.poisson.ppf(0.1, rates), y.shape),
            "upper": np.broadcast_to(stats.poisson.ppf(0.9, rates), y.shape),
            "below": stats.poisson.cdf(y - 1, rates),
            "up_to": stats.poisson.cdf(y, rates),
        },
        np.zeros(n, int),
        ["rare", "often"],
        ["tv"],
    )
    for cell in result["cells"]:
        assert cell["coverage"] == pytest.approx(0.8, abs=0.01)
        assert cell["closed"] > 0.85
    assert "80% interval: 80." in format_interval(result)


def test_interval_of_amounts_is_in_or_out():
    level = np.array([[0.05], [0.1], [0.5], [0.95]])
    result = evaluate_intervals(
        np.array([[1.0], [2.0], [3.0], [9.0]]),
        {
            "lower": np.full((4, 1), 2.0),
            "upper": np.full((4, 1), 8.0),
            "below": level,
            "up_to": level,
        },
        np.zeros(4, int),
        ["sales"],
        ["tv"],
    )
    assert result["coverage"] == result["closed"] == 0.5


def test_concerns_are_what_is_better(result):
    # NMAE of m2m is 0.5 in each cell, of all-zero forecasts 1.
    assert find_concerns(result, "m2m") == [
        "Mean forecasts of m2m sum up to 125% of all clicks, 80% of all sales."
    ]
    assert find_concerns(result, "last_week")[0] == (
        "NMAE of last_week is 100% above m2m's (1.000 against 0.500)."
    )


def test_slices_behind_a_naive_forecast_are_a_concern():
    y_true = np.tile([[4.0, 2.0]], (6, 1))
    scenario = np.array([0, 0, 1, 1, 2, 2])
    y_true[scenario == 2] = 0.0  # Where 0 is a perfect forecast.
    ours = y_true.copy()
    ours[scenario == 0, 0] = 8.0
    ours[scenario == 1, 0] = 5.0
    ours[scenario == 2] = 0.5
    forecasts = {"m2m": ours}
    for name, factor in (("last_week", 1.5), ("history_mean", 1.4)):
        forecasts[name] = y_true * factor
    # Much worse in one slice, a little in none of the others.
    result = evaluate_forecasts(y_true, forecasts, scenario, TASKS, SCENARIOS)
    told = find_concerns(result, "m2m")[-1]
    assert told.startswith(
        "1 of 4 slices has a higher Poisson deviance than a naive forecast; "
        "the worst is clicks in shelf (2.455, history_mean 0.5"
    )
    forecasts["history_mean"] = y_true * 1.01
    result = evaluate_forecasts(y_true, forecasts, scenario, TASKS, SCENARIOS)
    told = find_concerns(result, "m2m")[-1]
    assert told.startswith("2 of 4 slices have") and "clicks in shelf" in told


@pytest.mark.parametrize(
    ("coverage", "width"),
    [(0.72, "narrow"), (0.771, None), (0.829, None), (0.84, "wide")],
)
def test_coverage_far_from_its_level_is_a_concern(result, coverage, width):
    interval = {"level": 0.8, "coverage": coverage}
    told = find_concerns(result, "m2m", interval)[1:]
    if width is None:
        assert told == []
    else:
        (concern,) = told
        assert concern.startswith(f"{coverage:.1%} of the labels are inside")
        assert concern.endswith(f"too {width}.")
