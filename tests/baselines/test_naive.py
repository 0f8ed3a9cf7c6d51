import numpy as np

from m2m_tf.baselines import naive_forecasts
from m2m_tf.baselines.naive import cap_binary
from m2m_tf.data import schema


def slow_forecast(spec, raw, row, days):
    """One row, one day at a time."""
    observed = int(raw[schema.DAYS_OBSERVED][row])
    first = max(spec.lookback - days, spec.lookback - observed)
    result = []
    for task in spec.tasks:
        column = spec.performance.index(task.column)
        total = count = 0
        for day in range(first, spec.lookback):
            value = raw[schema.PERFORMANCE_SEQUENCE][row, day, column]
            if task.kind == "binary":
                value = 1 if value > 0 else 0
            total, count = total + value, count + 1
        expected = total / count * spec.horizon
        if task.kind == "binary":
            expected = min(expected, 1)
        result.append(expected)
    return result


def test_matches_slow_loop(spec, make_raw):
    raw = make_raw(25)
    # Short histories: their first days are padding.
    for row, observed in ((0, 1), (1, 3), (2, 6)):
        raw[schema.DAYS_OBSERVED][row] = observed
        raw[schema.PERFORMANCE_SEQUENCE][row, :-observed] = 0
    forecasts = naive_forecasts(spec, raw)
    days = {"last_week": spec.horizon, "history_mean": spec.lookback}
    assert forecasts.keys() == days.keys()
    for name, span in days.items():
        expected = [slow_forecast(spec, raw, row, span) for row in range(25)]
        np.testing.assert_allclose(forecasts[name], expected, rtol=1e-6)


def test_hand_computed(spec, make_raw):
    raw = make_raw(1)
    sequence = np.zeros_like(raw[schema.PERFORMANCE_SEQUENCE])
    sequence[0, :, 0] = [5, 0, 0, 0, 0, 0, 1, 0, 2, 0]
    raw[schema.PERFORMANCE_SEQUENCE] = sequence
    forecasts = naive_forecasts(spec, raw)
    # fees, visits, open: the last 4 of 10 days hold 1 + 2 visits.
    np.testing.assert_allclose(forecasts["last_week"], [[0, 3, 1]])
    np.testing.assert_allclose(forecasts["history_mean"], [[0, 3.2, 1]])
    sequence[0, 6:, 0] = 0
    forecasts = naive_forecasts(spec, raw)
    # One active day in ten: 0.4 active days expected in four.
    np.testing.assert_allclose(forecasts["last_week"], [[0, 0, 0]])
    np.testing.assert_allclose(forecasts["history_mean"], [[0, 2, 0.4]])


def test_totals_over_scenarios_do_not_matter(spec, make_raw):
    raw = make_raw(5)
    before = naive_forecasts(spec, raw)
    raw[schema.PERFORMANCE_SEQUENCE][:, :, len(spec.performance) :] += 9
    after = naive_forecasts(spec, raw)
    for name, forecast in before.items():
        np.testing.assert_array_equal(after[name], forecast)


def test_cap_binary(spec):
    np.testing.assert_array_equal(
        cap_binary(spec, np.array([[3.0, 3.0, 3.0]])), [[3, 3, 1]]
    )
