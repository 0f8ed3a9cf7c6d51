import numpy as np
import pytest
from scipy import stats

from m2m_tf import comparison
from m2m_tf.metrics import score_cells


@pytest.fixture
def sample():
    rng = np.random.default_rng(0)
    n = 4000
    y_true = rng.poisson(2.0, (n, 2)).astype("float64")
    entity = np.array([f"e{i % 300}" for i in range(n)])
    return {
        "y_true": y_true,
        "scenario": rng.integers(0, 3, n),
        "groups": comparison.entity_groups(entity),
        "mean": rng.gamma(2.0, 1.0, (n, 2)),
        "median": rng.poisson(2.0, (n, 2)).astype("float64"),
    }


def sums_of(sample, **changes):
    part = sample | changes
    labels = comparison.label_sums(
        part["y_true"], part["scenario"], part["groups"], 3
    )
    return labels, comparison.forecast_sums(
        part["y_true"],
        part["mean"],
        part["median"],
        part["scenario"],
        part["groups"],
        3,
    )


def test_cell_values_are_those_of_the_metrics(sample):
    labels, sums = sums_of(sample)
    for forecast, prefix in (("mean", ""), ("median", "median_")):
        scores = score_cells(
            sample["y_true"], sample[forecast], sample["scenario"], 3
        )
        for metric in ("nmae", "smape"):
            np.testing.assert_allclose(
                comparison.cell_values(sums, labels, prefix + metric),
                scores[metric],
            )
        if forecast == "mean":
            np.testing.assert_allclose(
                comparison.cell_values(sums, labels, "deviance"),
                scores["poisson_deviance"],
            )


def test_an_entity_is_always_in_the_same_group():
    first = comparison.entity_groups(["a", "b", "c"])
    again = comparison.entity_groups(["c", "a", "a", "b"])
    assert again.tolist() == [first[2], first[0], first[0], first[1]]
    many = comparison.entity_groups([f"x{i}" for i in range(2000)])
    assert len(np.unique(many)) == comparison.NUM_GROUPS


def test_equal_runs_differ_by_nothing(sample):
    labels, sums = sums_of(sample)
    result = comparison.difference([sums], [sums], labels, "nmae")
    assert result == (0.0, 0.0, 0.0, False)


def test_a_better_forecast_has_an_interval_below_zero(sample):
    labels, sums = sums_of(sample)
    _, better = sums_of(sample, mean=np.full_like(sample["mean"], 2.0))
    value, low, high, is_clear = comparison.difference(
        [better], [sums], labels, "nmae"
    )
    assert low < value < high < 0
    # Another training might have come to anything.
    assert not is_clear
    twice = comparison.difference([better] * 2, [sums] * 2, labels, "nmae")
    assert twice == (value, low, high, True)
    scarce = dict(labels)
    scarce["count"] = labels["count"] * (np.arange(comparison.NUM_GROUPS) < 9)
    few = comparison.difference([better] * 2, [sums] * 2, scarce, "nmae")
    assert not few.is_clear
    plain = comparison.overall(
        comparison.cell_values(better, labels, "nmae")
    ) - comparison.overall(comparison.cell_values(sums, labels, "nmae"))
    assert value == pytest.approx(plain)


def test_interval_has_the_width_of_the_spread_over_samples(sample):
    # Two forecasts of equal quality: over new samples the difference varies
    # about as much as the bootstrap of one sample says.
    rng = np.random.default_rng(1)
    differences, widths = [], []
    for _ in range(40):
        changes = {
            "y_true": rng.poisson(2.0, sample["y_true"].shape).astype(float)
        }
        labels, ours = sums_of(
            sample, mean=rng.gamma(2.0, 1.0, sample["mean"].shape), **changes
        )
        _, theirs = sums_of(
            sample, mean=rng.gamma(2.0, 1.0, sample["mean"].shape), **changes
        )
        value, low, high, _ = comparison.difference(
            [ours], [theirs], labels, "nmae"
        )
        differences.append(value)
        widths.append((high - low) / (2 * 1.96))
    assert 0.6 < np.mean(widths) / np.std(differences) < 1.5


@pytest.mark.parametrize("groups", [10, 32])
def test_interval_of_few_groups_is_that_of_the_t_test(groups):
    differences = np.zeros(comparison.NUM_GROUPS)
    # Symmetric, as the t test takes them to be.
    differences[:groups] = stats.norm.ppf((np.arange(groups) + 0.5) / groups)
    count = np.zeros((1, 1, comparison.NUM_GROUPS))
    count[..., :groups] = 1.0
    found = comparison.difference(
        [{"mean_deviance": count * differences}],
        [{"mean_deviance": 0.0 * count}],
        {"label": count, "count": count},
        "deviance",
    )
    half = stats.t.ppf(0.975, groups - 1) * stats.sem(differences[:groups])
    assert found.value == pytest.approx(0.0, abs=1e-12)
    assert -found.low == pytest.approx(half, rel=0.15)
    assert found.high == pytest.approx(half, rel=0.15)


def test_seeds_widen_the_interval(sample):
    labels, sums = sums_of(sample)
    _, worse = sums_of(sample, mean=sample["mean"] + 1.0)
    _, other = sums_of(sample, mean=np.full_like(sample["mean"], 2.0))

    def width(ours):
        found = comparison.difference(ours, [other] * 2, labels, "nmae")
        return found.high - found.low

    assert width([sums, worse]) > 2 * width([sums, sums])


@pytest.mark.parametrize("seeds", [2, 3])
def test_seeds_alike_are_rarely_told_apart(seeds):
    """Two models that differ by chance alone, with few seeds of each.

    Drawing seeds with replacement would call 36 % and 21 % different.
    """
    rng = np.random.default_rng(2)
    scenario = np.zeros(comparison.NUM_GROUPS, int)
    groups = np.arange(comparison.NUM_GROUPS)
    y_true = np.ones((comparison.NUM_GROUPS, 1))
    labels = comparison.label_sums(y_true, scenario, groups, 1)

    def trained():
        mean = y_true + rng.lognormal(0.0, 0.1)
        return comparison.forecast_sums(
            y_true, mean, y_true, scenario, groups, 1
        )

    outside = 0
    for _ in range(60):
        ours, theirs = ([trained() for _ in range(seeds)] for _ in range(2))
        found = comparison.difference(ours, theirs, labels, "nmae")
        outside += found.is_clear
    assert outside / 60 < 0.12


def test_lists_keep_six_digits(sample):
    _, sums = sums_of(sample)
    lists = comparison.to_lists(sums)
    for name, values in sums.items():
        np.testing.assert_allclose(lists[name], values, rtol=1e-5)
