import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from m2m_tf.forecast import (
    hurdle_cdf,
    hurdle_quantile,
    poisson_median,
    task_forecasts,
    task_levels,
)
from m2m_tf.losses import hurdle_negative_log_likelihood


def slow_median(rate):
    """Adds probabilities until half is reached."""
    count, probability = 0, math.exp(-rate)
    total = probability
    while total < 0.5:
        count += 1
        probability *= rate / count
        total += probability
    return count


@hypothesis.given(st.floats(0, 50))
@hypothesis.settings(max_examples=200, deadline=None)
def test_matches_summed_probabilities(rate):
    # Within rounding of a step, either neighbour is right.
    allowed = {slow_median(rate * (1 - 1e-9)), slow_median(rate * (1 + 1e-9))}
    assert float(poisson_median(rate)) in allowed


def test_known_values_and_shape():
    # P(Y = 0) = exp(-rate) reaches 1/2 at rate = log 2 = 0.693.
    rates = np.array([[0.0, 0.69], [0.70, 2.0]], "float32")
    medians = poisson_median(rates)
    np.testing.assert_array_equal(medians, [[0.0, 0.0], [1.0, 2.0]])
    assert medians.dtype == np.float64


def test_stays_close_to_large_rates():
    rates = np.concatenate([np.geomspace(1e3, 1e15, 200), [1e17, 1e20, 1e30]])
    assert (np.abs(poisson_median(rates) - rates) <= 1).all()
    # What is told of large rates holds of smaller ones, too.
    rates = np.random.default_rng(0).uniform(1e4, 1e6, 500)
    expected = np.floor(rates + 1 / 3)
    # All but where a step lies within the terms that were left out.
    assert (poisson_median(rates) == expected).mean() > 0.99


@pytest.mark.parametrize("limit", [None, 1, 7])
@pytest.mark.parametrize("whole", [True, False])
def test_nan_is_no_forecast_of_zero(whole, limit):
    output = np.full((2, 4), np.nan, "float32")
    for values in task_forecasts(output, whole, limit).values():
        assert np.isnan(values).all()


@pytest.mark.parametrize("rate", [-0.1, math.nan, math.inf])
def test_rejects_what_is_no_rate(rate):
    with pytest.raises(ValueError, match="`rate` must be finite and not"):
        poisson_median([1.0, rate])


PARAMETERS = np.array(
    [[0.3, -1.0, 1.2, -0.5], [1.0, 2.0, 0.1, 0.4], [0.0, 0.1, 3.0, -1.5]],
    "float32",
)


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("level", [0.05, 0.1, 0.3, 0.5, 0.9, 0.99])
def test_quantile_of_counts_is_the_least_value_that_reaches_the_level(
    parameters, level
):
    counts = np.arange(5000, dtype="float32")
    repeated = np.repeat(parameters[None], len(counts), 0)
    losses = hurdle_negative_log_likelihood(counts, repeated)
    reached = np.cumsum(np.exp(-np.asarray(losses, "float64")))
    expected = counts[np.argmax(reached >= level)]
    assert float(hurdle_quantile(parameters, level, True)) == expected


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_levels_of_counts_are_sums_of_probabilities(parameters):
    counts = np.arange(200, dtype="float32")
    repeated = np.repeat(parameters[None], len(counts), 0)
    below, up_to = hurdle_cdf(repeated, counts, True)
    each = np.exp(-np.asarray(hurdle_negative_log_likelihood(counts, repeated)))
    np.testing.assert_allclose(up_to - below, each, atol=1e-4)
    np.testing.assert_allclose(below[1:], up_to[:-1], atol=1e-6)


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("level", [0.3, 0.9, 0.95])
def test_quantile_of_amounts_has_the_level(parameters, level):
    value = hurdle_quantile(parameters, level, False)
    below, up_to = hurdle_cdf(parameters, value, False)
    if float(value) == 0:
        assert float(up_to) >= level
    else:
        assert float(up_to) == pytest.approx(level, abs=1e-5)
        assert float(below) == pytest.approx(level, abs=1e-5)


def test_forecasts_of_a_binary_task_are_at_most_one():
    told = task_forecasts(PARAMETERS, whole=True, limit=1)
    assert set(told) == {"mean", "median", "lower", "upper"}
    assert all(float(np.max(values)) <= 1 for values in told.values())
    assert all(values.shape == (3, 1) for values in told.values())


@pytest.mark.parametrize(
    ("share", "quantiles"),
    [
        (0.007, (0, 0, 0)),
        (0.3, (0, 0, 1)),
        (0.6, (0, 1, 1)),
        (0.95, (1, 1, 1)),
        (1.7, (1, 1, 1)),
    ],
)
def test_quantiles_of_a_binary_task_are_those_of_its_mean(share, quantiles):
    # Parameters that say otherwise: never zero, far above 1.
    output = np.array([[np.log(share), -9.0, 5.0, 0.0]], "float32")
    told = task_forecasts(output, whole=True, limit=1)
    assert float(told["mean"][0, 0]) == pytest.approx(min(share, 1.0))
    found = [float(told[name][0, 0]) for name in ("lower", "median", "upper")]
    assert found == list(quantiles)


def test_levels_of_a_binary_task_are_those_of_its_mean():
    output = np.array([[np.log(0.3), -9.0, 5.0, 0.0]] * 2, "float32")
    below, up_to = task_levels(output, np.array([0.0, 1.0]), True, limit=1)
    np.testing.assert_allclose(below, [0.0, 0.7], rtol=1e-6)
    np.testing.assert_allclose(up_to, [0.7, 1.0], rtol=1e-6)


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_forecasts_of_days_are_those_of_the_least_of_them_and_the_horizon(
    parameters,
):
    # By sums: days Y' = min(Y, 7), so that all above 7 lies at 7.
    counts = np.arange(20_000, dtype="float32")
    repeated = np.repeat(parameters[None], len(counts), 0)
    losses = hurdle_negative_log_likelihood(counts, repeated)
    each = np.exp(-np.asarray(losses, "float64"))[:7]
    up_to = np.append(np.cumsum(each), 1.0)
    below = np.insert(np.cumsum(each), 0, 0.0)
    told = task_forecasts(parameters[None], whole=True, limit=7)
    for name, level in (("median", 0.5), ("lower", 0.1), ("upper", 0.9)):
        assert float(told[name][0, 0]) == np.argmax(up_to >= level)
    assert float(told["mean"][0, 0]) == pytest.approx(
        min(math.exp(parameters[0]), 7.0)
    )
    levels = task_levels(repeated[:8], counts[:8], whole=True, limit=7)
    np.testing.assert_allclose(levels[0], below, atol=1e-4)
    np.testing.assert_allclose(levels[1], up_to, atol=1e-4)
    # A label above the limit is above all that was told.
    levels = task_levels(repeated[:1], [8.0], whole=True, limit=7)
    assert [float(x[0]) for x in levels] == [1.0, 1.0]


def test_levels_of_counts_are_those_of_the_distribution():
    y = np.array([0.0, 2.0, 7.0], "float32")
    ours = task_levels(PARAMETERS, y, True)
    theirs = hurdle_cdf(PARAMETERS, y, True)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_a_model_of_rates_tells_means_alone():
    (mean,) = task_forecasts(PARAMETERS[:, :1], True).values()
    np.testing.assert_allclose(mean, np.exp(PARAMETERS[:, :1]), rtol=1e-6)
