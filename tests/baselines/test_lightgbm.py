import sys

import numpy as np
import pytest

from m2m_tf.baselines import lightgbm, naive_forecasts
from m2m_tf.data import schema

pytest.importorskip("lightgbm")


def heavy_tailed(seed, rows=3000):
    """Counts with a level over five powers of ten and one real effect."""
    rng = np.random.default_rng(seed)
    level = np.exp(rng.normal(1.0, 3.0, rows))
    effect = rng.integers(0, 2, rows)
    labels = rng.poisson(level * (1 + effect))
    features = np.stack([np.log(level), effect, rng.normal(size=rows)], axis=1)
    return features.astype("float32"), labels.astype("float64"), level


@pytest.mark.parametrize("objective", ["poisson", "l1"])
def test_learns_the_effect_on_heavy_tails(objective):
    features, labels, level = heavy_tailed(0)
    val_features, val_labels, val_level = heavy_tailed(1)
    trees = lightgbm.fit(
        features, labels, val_features, val_labels, level, val_level, objective
    )
    new, truth, new_level = heavy_tailed(2)
    forecast = trees.predict(new, new_level)
    assert np.isfinite(forecast).all()
    assert (forecast >= 0).all()
    error = np.abs(forecast - truth).sum()
    assert error < 0.5 * np.abs(new_level - truth).sum()


def test_l1_forecasts_zero_where_most_are_zero():
    rng = np.random.default_rng(3)
    labels = rng.poisson(0.2, 8000).astype("float64")
    features = rng.normal(size=(8000, 2)).astype("float32")
    level = np.full(8000, 0.2)
    half = slice(0, 4000), slice(4000, 8000)
    medians, means = (
        lightgbm.fit(
            features[half[0]],
            labels[half[0]],
            features[half[1]],
            labels[half[1]],
            level[half[0]],
            level[half[1]],
            objective,
        ).predict(features, level)
        for objective in ("l1", "poisson")
    )
    assert np.median(medians) == 0
    assert means.mean() == pytest.approx(labels.mean(), rel=0.1)


def smape(labels, forecasts):
    terms = [
        0.0 if y == f == 0 else 2 * abs(f - y) / (f + y)
        for y, f in zip(labels, forecasts, strict=True)
    ]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("whole", [True, False])
def test_medians_have_zeros_where_that_makes_smape_least(whole):
    rng = np.random.default_rng(5)
    features = rng.normal(size=(3000, 1)).astype("float32")
    rate = np.exp(features[:, 0])
    labels = rng.poisson(rate) * (1.0 if whole else 0.35)
    level = np.ones(3000)
    fitted = lightgbm.fit(
        *(features[:2000], labels[:2000]),
        *(features[2000:], labels[2000:]),
        *(level[:2000], level[2000:]),
        "l1",
    )
    # As they are, without zeros or rounding.
    sums = lightgbm.FittedTrees(fitted.booster, "l1")
    new, truth = features[2000:], labels[2000:]
    as_they_are = sums.predict(new, level[2000:])
    tried = [
        smape(truth, np.where(as_they_are <= threshold, 0, as_they_are))
        for threshold in np.unique(as_they_are)
    ]
    cut = np.where(as_they_are <= fitted.zero_up_to, 0, as_they_are)
    assert smape(truth, cut) == pytest.approx(min(tried))
    assert smape(truth, cut) < 0.9 * smape(truth, as_they_are)
    expected = np.rint(cut) if whole else cut
    np.testing.assert_array_equal(fitted.predict(new, level[2000:]), expected)
    assert 0 < (expected == 0).mean() < 1


def test_forecast_of_every_task(spec, make_raw):
    train = [make_raw(500, seed) for seed in range(4)]
    validation, test = [make_raw(400, 10)], [make_raw(300, 11), make_raw(7, 12)]
    labels = np.concatenate([raw.pop("labels") for raw in test])
    forecasts = lightgbm.forecast(spec, train, validation, test)
    again = lightgbm.forecast(spec, train, validation, test)
    naive = np.concatenate(
        [naive_forecasts(spec, raw)["history_mean"] for raw in test]
    )
    assert list(forecasts) == ["lightgbm", "lightgbm_median"]
    for name, forecast in forecasts.items():
        assert forecast.shape == (307, 3)
        assert forecast[:, 2].max() <= 1
        assert np.abs(forecast - labels).sum() < np.abs(naive - labels).sum()
        np.testing.assert_array_equal(again[name], forecast)


def test_amounts_may_be_told_in_any_unit(spec, make_raw):
    def forecasts(unit):
        splits = []
        for rows, seed in ((1500, 0), (400, 10), (300, 11)):
            raw = make_raw(rows, seed)
            # No whole numbers, else they would be counts.
            raw["labels"] = raw["labels"] + np.float32([0.5, 0, 0])
            raw["labels"] *= np.float32([unit, 1, 1])
            names = schema.performance_names(spec)
            for column in ("fees", "total_fees"):
                raw[schema.PERFORMANCE_SEQUENCE][:, :, names.index(column)] *= (
                    unit
                )
            splits.append([raw])
        labels = splits[2][0]["labels"]
        told = lightgbm.forecast(spec, *splits)
        return [
            np.abs(told[name] - labels)[:, 0].sum() / labels[:, 0].sum()
            for name in ("lightgbm", "lightgbm_median")
        ]

    np.testing.assert_allclose(forecasts(1e-5), forecasts(1e-2), rtol=0.1)


def test_rejects_unknown_objective_and_lengths():
    features, labels, level = heavy_tailed(0, rows=10)
    rows = (features, labels)
    with pytest.raises(ValueError, match=r"\['l1', 'poisson'\].*'huber'"):
        lightgbm.fit(*rows, *rows, level, level, "huber")
    with pytest.raises(ValueError, match="10, 10 and 9 rows"):
        lightgbm.fit(*rows, *rows, level[1:], level)


def test_says_how_to_install(spec, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ImportError, match=r"pip install 'm2m_tf\[lightgbm\]'"):
        lightgbm.forecast(spec, [], [], [])


def test_trees_of_each_scenario_know_only_their_own(spec, make_raw):
    train = [make_raw(500, seed) for seed in range(4)]
    validation, test = [make_raw(400, 10)], [make_raw(300, 11)]
    labels = test[0].pop("labels")
    scenario = test[0]["scenario"].astype(str)
    first = scenario == scenario[0]
    pooled = lightgbm.forecast(spec, train, validation, test)
    own = lightgbm.forecast(spec, train, validation, test, per_scenario=True)
    assert not np.allclose(own["lightgbm"], pooled["lightgbm"])
    # Labels of other scenarios do not reach a scenario's own trees.
    for raw in train:
        other = raw["scenario"].astype(str) != scenario[0]
        raw["labels"] = raw["labels"].copy()
        raw["labels"][other] += 50
    changed = lightgbm.forecast(
        spec, train, validation, test, per_scenario=True
    )
    np.testing.assert_array_equal(
        changed["lightgbm"][first], own["lightgbm"][first]
    )
    assert changed["lightgbm"].shape == labels.shape
    assert not np.allclose(changed["lightgbm"][~first], own["lightgbm"][~first])


def test_a_scenario_with_few_rows_takes_the_trees_of_all(spec, make_raw):
    train = [make_raw(60, seed) for seed in range(2)]
    validation, test = [make_raw(60, 10)], [make_raw(30, 11)]
    pooled = lightgbm.forecast(spec, train, validation, test)
    own = lightgbm.forecast(spec, train, validation, test, per_scenario=True)
    np.testing.assert_array_equal(own["lightgbm"], pooled["lightgbm"])


def test_a_scenario_without_a_label_takes_the_trees_of_all(spec, make_raw):
    train = [make_raw(600, seed) for seed in range(2)]
    validation, test = [make_raw(60, 10)], [make_raw(30, 11)]
    scenario = test[0]["scenario"][0]
    for raw in train:
        raw["labels"] = raw["labels"].copy()
        raw["labels"][raw["scenario"] == scenario, 0] = 0
    first = test[0]["scenario"] == scenario
    pooled = lightgbm.forecast(spec, train, validation, test)
    own = lightgbm.forecast(spec, train, validation, test, per_scenario=True)
    for name, values in own.items():
        np.testing.assert_array_equal(values[first], pooled[name][first])
    assert not np.allclose(own["lightgbm"][~first], pooled["lightgbm"][~first])
