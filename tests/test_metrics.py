import math

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from m2m_tf import metrics
from m2m_tf.metrics import (
    NMAE,
    SMAPE,
    CellMetrics,
    PoissonDeviance,
    score_cells,
)

METRICS = [NMAE, SMAPE, PoissonDeviance]
NAMES = ["nmae", "smape", "poisson_deviance"]


def slow_score(name, y_true, y_pred):
    """One element at a time, in Python floats; NaN if there is no value."""
    top = bottom = 0.0
    for y, rate in zip(y_true, y_pred, strict=True):
        y, rate = float(y), float(rate)
        if name == "nmae":
            top, bottom = top + abs(rate - y), bottom + y
        elif name == "smape":
            if y != 0 or rate != 0:
                top += abs(rate - y) / ((rate + y) / 2)
            bottom += 1
        else:
            rate = max(rate, 1e-9)
            if y > 0:
                top += 2 * (y * math.log(y / rate) - y + rate)
            else:
                top += 2 * rate
            bottom += 1
    return top / bottom if bottom > 0 else math.nan


def random_batch(seed, size):
    rng = np.random.default_rng(seed)
    y_true = rng.poisson(rng.gamma(0.5, 8.0, size)).astype("float32")
    y_pred = rng.gamma(0.5, 8.0, size).astype("float32")
    y_pred[::7] = 0.0
    return y_true, y_pred


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        # |1-2| + |3-2| + |0-1| = 3 over 1 + 3 + 0 = 4.
        (NMAE(), 0.75),
        # (1/1.5 + 1/2.5 + 1/0.5) / 3.
        (SMAPE(), (2 / 3 + 2 / 5 + 2) / 3),
        # 2 (log ½ + 1), 2 (3 log 1.5 - 1), 2 · 1, over 3.
        (
            PoissonDeviance(),
            2 * (math.log(0.5) + 1 + 3 * math.log(1.5) - 1 + 1) / 3,
        ),
    ],
)
def test_hand_computed(metric, expected):
    metric.update_state([1.0, 3.0, 0.0], [2.0, 2.0, 1.0])
    assert float(metric.result()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("metric_class", METRICS)
def test_perfect_forecast_scores_zero(metric_class):
    metric = metric_class(dtype="float64")
    metric.update_state([0.0, 1.5, 7.0], [0.0, 1.5, 7.0])
    assert float(metric.result()) == pytest.approx(0.0, abs=1e-8)


def test_zeros():
    smape = SMAPE()
    smape.update_state([0.0, 0.0, 0.0, 4.0], [0.0, 0.0, 1e-6, 0.0])
    np.testing.assert_allclose(smape.result(), (0 + 0 + 2 + 2) / 4)
    nmae = NMAE()
    nmae.update_state([0.0, 0.0], [1.0, 2.0])
    assert np.isnan(nmae.result())
    deviance = PoissonDeviance()
    deviance.update_state([0.0, 2.0], [0.0, 0.0])
    # ŷ is raised to 1e-9: 2 (2 log(2e9) - 2), over two elements.
    np.testing.assert_allclose(
        deviance.result(), 2 * math.log(2e9) - 2, rtol=1e-6
    )


@pytest.mark.parametrize("metric_class", METRICS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_matches_slow_loop_per_group(metric_class, dtype):
    y_true, y_pred = random_batch(0, 200)
    groups = np.random.default_rng(1).integers(0, 4, 200)
    groups[groups == 2] = 1
    metric = metric_class(num_groups=4, dtype=dtype)
    metric.update_state(y_true, y_pred, groups=groups)
    expected = [
        slow_score(metric.name, y_true[groups == g], y_pred[groups == g])
        for g in range(4)
    ]
    np.testing.assert_allclose(metric.group_results(), expected, rtol=1e-4)
    assert np.isnan(metric.group_results()[2])
    np.testing.assert_allclose(metric.result(), np.nanmean(expected), rtol=1e-4)


@pytest.mark.parametrize("metric_class", METRICS)
def test_uneven_batches_equal_one_batch(metric_class):
    y_true, y_pred = random_batch(2, 90)
    groups = np.arange(90) % 3
    whole, parts = metric_class(3), metric_class(3)
    whole.update_state(y_true, y_pred, groups=groups)
    for start, stop in [(0, 7), (7, 80), (80, 90)]:
        rows = slice(start, stop)
        parts.update_state(y_true[rows], y_pred[rows], groups=groups[rows])
    np.testing.assert_allclose(
        parts.group_results(), whole.group_results(), rtol=1e-5
    )
    parts.reset_state()
    assert np.isnan(parts.result())


@pytest.mark.parametrize("metric_class", METRICS)
def test_log_rates_and_column_vectors(metric_class):
    y_true, y_pred = random_batch(3, 40)
    y_pred = y_pred + 0.1
    rates, logs = metric_class(), metric_class(from_log_rate=True)
    rates.update_state(y_true, y_pred)
    logs.update_state(y_true, np.log(y_pred)[:, None])
    np.testing.assert_allclose(logs.result(), rates.result(), rtol=1e-5)


def test_smape_of_a_log_rate_beyond_all_bounds_is_two():
    metric = SMAPE(from_log_rate=True)
    metric.update_state([1.0, 2.0], [100.0, np.log(2.0)])
    assert float(metric.result()) == pytest.approx(1.0)


@pytest.mark.parametrize("metric_class", METRICS)
def test_weights_repeat_and_mask(metric_class):
    repeated, weighted = metric_class(), metric_class()
    repeated.update_state([1.0, 4.0, 4.0], [2.0, 3.0, 3.0])
    weighted.update_state(
        [1.0, 4.0, math.nan], [2.0, 3.0, 1.0], sample_weight=[1.0, 2.0, 0.0]
    )
    np.testing.assert_allclose(weighted.result(), repeated.result(), rtol=1e-6)
    masked = metric_class()
    masked.update_state([1.0], [2.0], sample_weight=[0.0])
    assert np.isnan(masked.result())


@pytest.mark.parametrize("metric_class", METRICS)
@hypothesis.given(
    rows=st.lists(
        st.tuples(
            st.one_of(st.just(0.0), st.floats(1e-3, 1e5)),
            st.one_of(st.just(0.0), st.floats(1e-3, 1e5)),
        ),
        min_size=1,
        max_size=20,
    )
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_any_counts_match_slow_loop(metric_class, rows):
    y_true, y_pred = np.array(rows).T
    metric = metric_class(dtype="float64")
    metric.update_state(y_true, y_pred)
    expected = slow_score(metric.name, y_true, y_pred)
    np.testing.assert_allclose(metric.result(), expected, rtol=1e-6, atol=1e-6)
    if metric.name == "smape":
        assert float(metric.result()) <= 2 + 1e-12


@pytest.mark.parametrize("metric_class", METRICS)
def test_jit_compiled_update(metric_class):
    y_true, y_pred = random_batch(4, 30)
    groups = np.arange(30) % 2
    eager, compiled = metric_class(2), metric_class(2)
    eager.update_state(y_true, y_pred, groups=groups)
    update = tf.function(compiled.update_state, jit_compile=True)
    update(y_true, y_pred, groups=tf.constant(groups))
    np.testing.assert_allclose(
        compiled.group_results(), eager.group_results(), rtol=1e-5
    )


@pytest.mark.parametrize("jit_compile", [False, True])
def test_in_compile(jit_compile):
    features = np.ones((50, 2), "float32")
    y_true, _ = random_batch(5, 50)
    model = keras.Sequential([keras.layers.Dense(1, "softplus")])
    model.compile(
        "sgd", "mse", metrics=[m() for m in METRICS], jit_compile=jit_compile
    )
    scores = model.evaluate(
        features, y_true, batch_size=16, verbose=0, return_dict=True
    )
    rates = model.predict(features, verbose=0)[:, 0]
    for name in NAMES:
        expected = slow_score(name, y_true, rates)
        assert scores[name] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("metric_class", METRICS)
def test_serialization(metric_class):
    metric = metric_class(3, True, name="score", dtype="float64")
    config = keras.saving.serialize_keras_object(metric)
    restored = keras.saving.deserialize_keras_object(config)
    assert isinstance(restored, metric_class)
    assert restored.get_config() == metric.get_config()


def cell_batch(seed, size, num_tasks=2, num_scenarios=3):
    rng = np.random.default_rng(seed)
    y_true = rng.poisson(2.0, (size, num_tasks)).astype("float32")
    y_pred = rng.gamma(2.0, 1.0, (size, num_tasks)).astype("float32")
    scenario = rng.integers(0, num_scenarios, size)
    return y_true, y_pred, scenario


def test_score_cells_matches_slow_loop():
    y_true, y_pred, scenario = cell_batch(6, 60)
    scores = score_cells(y_true, y_pred, scenario, num_scenarios=4)
    for name in NAMES:
        assert scores[name].shape == (2, 4)
        assert np.isnan(scores[name][:, 3]).all()
        for task in range(2):
            for group in range(3):
                rows = scenario == group
                expected = slow_score(
                    name, y_true[rows, task], y_pred[rows, task]
                )
                assert scores[name][task, group] == pytest.approx(expected)


def test_cell_metrics_match_score_cells():
    y_true, y_pred, scenario = cell_batch(7, 60)
    metric = CellMetrics(["clicks", "sales"], num_scenarios=4)
    for rows in (slice(0, 11), slice(11, 60)):
        metric.update_state(
            {"clicks": y_true[rows, :1], "sales": y_true[rows, 1]},
            {
                # The order of a dict's keys does not matter.
                "sales": np.log(y_pred[rows, 1:]),
                "clicks": np.log(y_pred[rows, 0]),
            },
            scenario[rows],
        )
    expected = score_cells(y_true, y_pred, scenario, num_scenarios=4)
    result = metric.result()
    for name, cells in metric.cells().items():
        np.testing.assert_allclose(cells, expected[name], rtol=1e-4)
        np.testing.assert_allclose(
            result[f"overall_{name}"], np.nanmean(expected[name]), rtol=1e-4
        )
    metric.reset_state()
    assert np.isnan(metric.cells()["nmae"]).all()


def test_cell_metrics_weights():
    labels = {"clicks": [1.0, 5.0], "sales": [2.0, 7.0]}
    logs = {"clicks": [0.0, 0.0], "sales": [0.0, 0.0]}
    metric = CellMetrics(["clicks", "sales"], num_scenarios=1)
    metric.update_state(labels, logs, [0, 0], sample_weight=[1.0, 0.0])
    np.testing.assert_allclose(metric.cells()["nmae"], [[0.0], [0.5]])
    metric.reset_state()
    weights = {"clicks": [0.0, 1.0], "sales": [1.0, 0.0]}
    metric.update_state(labels, logs, [0, 0], sample_weight=weights)
    np.testing.assert_allclose(metric.cells()["nmae"], [[0.8], [0.5]])
    metric.reset_state()
    partial = {"clicks": [0.0, 1.0], "sales": None}
    metric.update_state(labels, logs, [0, 0], sample_weight=partial)
    np.testing.assert_allclose(metric.cells()["nmae"], [[0.8], [7 / 9]])


@keras.saving.register_keras_serializable("m2m_tf_tests")
class ScenarioModel(keras.Model):
    """Hands the scenario to the metric, as a forecast model does."""

    cell_metrics = None

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self.cell_metrics.update_state(y, y_pred, x["scenario"])
        return super().compute_metrics(x, y, y_pred, sample_weight)


def test_cell_metrics_in_fit():
    y_true, _, scenario = cell_batch(8, 64)
    inputs = {"scenario": keras.Input((), dtype="int32", name="scenario")}
    hidden = keras.layers.Embedding(3, 4)(inputs["scenario"])
    outputs = {
        name: keras.layers.Dense(1, name=name)(hidden)
        for name in ("clicks", "sales")
    }
    model = ScenarioModel(inputs, outputs)
    model.cell_metrics = CellMetrics(["clicks", "sales"], num_scenarios=3)
    model.compile("sgd", dict.fromkeys(outputs, "mse"), jit_compile=True)
    labels = {"clicks": y_true[:, 0], "sales": y_true[:, 1]}
    data = ({"scenario": scenario.astype("int32")}, labels)
    history = model.fit(
        *data, validation_data=data, batch_size=24, epochs=2, verbose=0
    ).history
    logs = model.predict(data[0], verbose=0)
    rates = np.exp(np.concatenate([logs["clicks"], logs["sales"]], axis=1))
    expected = score_cells(y_true, rates, scenario, 3)
    for name in NAMES:
        assert history[f"val_overall_{name}"][-1] == pytest.approx(
            expected[name].mean(), rel=1e-4
        )


def test_cell_metrics_serialization():
    metric = CellMetrics(["a", "b"], num_scenarios=2, name="total")
    config = keras.saving.serialize_keras_object(metric)
    restored = keras.saving.deserialize_keras_object(config)
    assert restored.get_config() == metric.get_config()
    assert list(restored.result()) == [f"total_{name}" for name in NAMES]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NMAE(0), r"`num_groups` must be .* num_groups=0"),
        (lambda: NMAE(dtype="bfloat16"), "`dtype` must be .*bfloat16"),
        (
            lambda: SMAPE(2).update_state([1.0], [1.0]),
            r"`groups` must be given .* groups=None, num_groups=2",
        ),
        (
            lambda: SMAPE().update_state([1.0], [1.0, 2.0]),
            "`y_true` and `y_pred` must have as many .* 1, y_pred with 2",
        ),
        (lambda: CellMetrics([], 2), r"`task_names` must be .*=\[\]"),
        (
            lambda: CellMetrics(["a"], 1).update_state({}, {"a": [1.0]}, [0]),
            r"each of \['a'\]\. Received: keys=\[\], missing=\['a'\]",
        ),
        (
            lambda: score_cells([[1.0]], [[-1.0]], [0], 1),
            r"`y_pred` must be finite and not negative.*-1\.0",
        ),
        (
            lambda: score_cells([[math.nan]], [[1.0]], [0], 1),
            r"`y_true` must be finite and not negative.*nan",
        ),
        (
            lambda: score_cells([[1.0]], [[1.0]], [3], 2),
            r"`scenario` must be in \[0, 2\).*scenario=3 in 1 row",
        ),
        (
            lambda: score_cells([[1.0]], [[1.0, 2.0]], [0], 2),
            r"must have shape \[N, T\].*y_pred.shape=\(1, 2\)",
        ),
        (lambda: score_cells([1.0], [1.0], [0], 2), r"shape \[N, T\]"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_public_metrics_reload():
    assert metrics.MIN_RATE == 1e-9
    for metric_class in [*METRICS, CellMetrics]:
        registered = keras.saving.get_registered_name(metric_class)
        assert registered == f"m2m_tf>{metric_class.__name__}"


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_float64_takes_numbers_as_they_are(kind):
    metric = NMAE(dtype="float64")
    metric.update_state(kind([16777216.0]), kind([16777217.0]))
    assert float(metric.result()) == 1 / 16777216
