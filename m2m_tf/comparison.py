"""Scores of many runs as sums over groups of entities, and what they tell.

A run's forecasts are reduced to sums per (task, scenario, group of entities):
small enough to keep for ever, and enough to score any selection of cells and
to draw bootstrap samples of entities again and again.
"""

import typing
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special

from m2m_tf.metrics import NMAE, SMAPE, PoissonDeviance

# Name of the best possible forecasts, where a dataset tells them.
TRUE_RATES = "true_rates"
# Entities are drawn by groups of them, by a hash of their id.
NUM_GROUPS = 32
_DRAWS = 2000
# Fewer groups of entities with labels cannot tell how entities differ.
_MIN_GROUPS = 10
_DIGITS = 6

# Metric → (sum above, sum below); a cell's value is their ratio.
METRICS = {
    "nmae": ("mean_error", "label"),
    "deviance": ("mean_deviance", "count"),
    # Tasks of different units on one scale, as λ = 1 / mean has them.
    "relative_deviance": ("mean_deviance", "label"),
    "median_nmae": ("median_error", "label"),
    "median_smape": ("median_smape", "count"),
    "smape": ("mean_smape", "count"),
}


def entity_groups(entity: Sequence[str]) -> np.ndarray:
    """Group of each entity id, int `[N]` in `[0, NUM_GROUPS)`.

    A hash of the id: the same entity is in the same group in every run.

    Example:

    >>> groups = entity_groups(["clinic_1", "clinic_2", "clinic_1"])
    >>> bool(groups[0] == groups[2])
    True
    """
    ids, index = np.unique(np.asarray(entity), return_inverse=True)
    groups = np.array([zlib.crc32(str(i).encode()) % NUM_GROUPS for i in ids])
    return groups[index]


def label_sums(y_true, scenario, groups, num_scenarios: int) -> dict:
    """Sums of labels and counts, `{name: [T, S, NUM_GROUPS]}`.

    Example:

    >>> groups = entity_groups(["a", "b"])
    >>> labels = label_sums([[1.0], [3.0]], [0, 0], groups, num_scenarios=1)
    >>> labels["label"].shape, float(labels["label"].sum())
    ((1, 1, 32), 4.0)
    """
    y_true = np.asarray(y_true, "float64")
    terms = {"label": y_true, "count": np.ones_like(y_true)}
    return _sums(terms, scenario, groups, num_scenarios)


def forecast_sums(
    y_true, mean, median, scenario, groups, num_scenarios: int
) -> dict:
    """Sums of errors of one run, `{name: [T, S, NUM_GROUPS]}`.

    The terms are those of `metrics.NMAE`, `SMAPE` and `PoissonDeviance`.

    Args:
        y_true: Labels `[N, T]`.
        mean: Mean forecasts `[N, T]`.
        median: Median forecasts `[N, T]`.
        scenario: Index of each row's scenario `[N]`.
        groups: From `entity_groups`, `[N]`.
        num_scenarios: S.

    Example:

    >>> y_true, mean, median = [[1.0], [3.0]], [[2.0], [3.0]], [[1.0], [2.0]]
    >>> groups = entity_groups(["a", "b"])
    >>> sums = forecast_sums(y_true, mean, median, [0, 0], groups, 1)
    >>> float(sums["mean_error"].sum()), float(sums["median_error"].sum())
    (1.0, 1.0)
    """
    y_true = np.asarray(y_true, "float64")
    terms = {}
    for name, forecast in (("mean", mean), ("median", median)):
        forecast = np.asarray(forecast, "float64")
        for metric, kind in ((NMAE, "error"), (SMAPE, "smape")):
            term, _ = metric().terms(y_true, forecast)
            terms[f"{name}_{kind}"] = np.asarray(term)
    mean = np.asarray(mean, "float64")
    term, _ = PoissonDeviance().terms(y_true, mean)
    terms["mean_deviance"] = np.asarray(term)
    return _sums(terms, scenario, groups, num_scenarios)


def cell_values(sums: Mapping, labels: Mapping, metric: str) -> np.ndarray:
    """A metric's value in each cell, `[..., T, S]`; NaN where undefined.

    Example:

    >>> y_true, forecast = [[1.0], [3.0]], [[2.0], [3.0]]
    >>> scenario, groups = [0, 1], entity_groups(["a", "b"])
    >>> labels = label_sums(y_true, scenario, groups, 2)
    >>> sums = forecast_sums(y_true, forecast, forecast, scenario, groups, 2)
    >>> cell_values(sums, labels, "nmae")
    array([[1., 0.]])
    """
    above, below = METRICS[metric]
    return _ratio(
        np.asarray(sums[above]).sum(-1), np.asarray(labels[below]).sum(-1)
    )


def overall(values: np.ndarray, scenarios: Sequence[int] | None = None):
    """Unweighted mean over the cells that have a value.

    Args:
        values: `[..., T, S]`.
        scenarios: Indices of the scenarios that count; None: all.

    Example:

    >>> values = np.array([[0.2, 0.4], [0.6, np.nan]])
    >>> round(float(overall(values)), 3)
    0.4
    >>> round(float(overall(values, scenarios=[0])), 3)
    0.4
    """
    if scenarios is not None:
        values = values[..., list(scenarios)]
    return np.nanmean(values, axis=(-2, -1))


class Difference(typing.NamedTuple):
    """Our overall metric minus theirs; below 0 ours is better.

    Attributes:
        value: The difference.
        low: Lower end of its 95 % interval.
        high: Upper end.
        is_clear: Whether the interval excludes 0, with at least two seeds of
            both and ten groups of entities to tell it from.

    Example:

    >>> Difference(-0.2, -0.3, -0.1, is_clear=True).value
    -0.2
    """

    value: float
    low: float
    high: float
    is_clear: bool


def difference(
    ours: Sequence[Mapping],
    theirs: Sequence[Mapping],
    labels: Mapping,
    metric: str,
    scenarios: Sequence[int] | None = None,
    cell: tuple[int, int] | None = None,
) -> Difference:
    """Our overall metric minus theirs, and its 95 % interval.

    Each draw takes `NUM_GROUPS` groups of entities with replacement, the same
    for both. Its distance from the sample is widened, as Student's t is wider
    than the normal distribution: the bootstrap of a few groups is too narrow
    (Hesterberg, "What Teachers Should Know About the Bootstrap", 2015). The
    metric is the mean over the seeds; how far another handful of seeds would
    lie from it is drawn from the t distribution of Welch's test, of the
    seeds' values with those groups. Drawing a few seeds with replacement
    instead gives intervals that are far too narrow: with two seeds of each,
    one third would exclude 0 where nothing differs. Of a single seed the
    spread is not known, and the interval tells of entities alone.

    Args:
        ours: One result of `forecast_sums` for each seed.
        theirs: The same of the other model.
        labels: From `label_sums`.
        metric: Key of `METRICS`.
        scenarios: Indices of the scenarios that count; None: all.
        cell: (task, scenario) of the only cell that counts, or None.

    Example:

    >>> y_true, scenario = np.full((64, 1), 4.0), np.zeros(64, int)
    >>> groups = entity_groups([f"clinic_{i}" for i in range(64)])
    >>> labels = label_sums(y_true, scenario, groups, 1)
    >>> ours, theirs = (
    ...     [forecast_sums(y_true, y_true + off, y_true, scenario, groups, 1)]
    ...     for off in (1.0, 2.0)
    ... )
    >>> difference(ours, theirs, labels, "nmae")[:3]
    (-0.25, -0.25, -0.25)
    """
    rng = np.random.default_rng(0)
    weights = rng.multinomial(
        NUM_GROUPS, np.full(NUM_GROUPS, 1 / NUM_GROUPS), size=_DRAWS
    )
    # The first draw is the sample itself.
    weights = np.concatenate([np.ones((1, NUM_GROUPS)), weights])
    by_seed = [
        _drawn(runs, labels, metric, weights, scenarios, cell)
        for runs in (ours, theirs)
    ]
    count = np.asarray(labels["count"])
    if cell is not None:
        count = count[cell[0], cell[1]]
    elif scenarios is not None:
        count = count[:, list(scenarios)]
    groups = int(count.reshape(-1, NUM_GROUPS).any(axis=0).sum())
    values = by_seed[0].mean(0) - by_seed[1].mean(0)
    values[1:] = values[0] + _widening(groups) * (values[1:] - values[0])
    values[1:] += _away(*by_seed, rng)[1:]
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    enough = min(len(ours), len(theirs)) > 1 and groups >= _MIN_GROUPS
    is_clear = bool(enough and (low > 0 or high < 0))
    return Difference(float(values[0]), float(low), float(high), is_clear)


def _widening(groups):
    """How much too near to the sample draws of so many groups are."""
    if groups < 2:
        return 1.0
    spread = np.sqrt(groups / (groups - 1))
    return spread * special.stdtrit(groups - 1, 0.975) / special.ndtri(0.975)


def _away(ours, theirs, rng):
    """How far differences of seeds' means may lie from the true ones."""
    square, freedom = np.zeros(ours.shape[1]), np.zeros(ours.shape[1])
    for by_seed in (ours, theirs):
        if len(by_seed) > 1:
            part = by_seed.var(0, ddof=1) / len(by_seed)
            square += part
            freedom += part**2 / (len(by_seed) - 1)
    varies = freedom > 0
    freedom = square**2 / np.where(varies, freedom, 1.0)
    drawn = rng.standard_t(np.where(varies, freedom, 1.0))
    return np.where(varies, drawn * np.sqrt(square), 0.0)


def _drawn(runs, labels, metric, weights, scenarios, cell):
    """The metric of each seed in each draw, `[seeds, draws]`."""
    above, below = METRICS[metric]
    lower = np.einsum("tsg,dg->dts", np.asarray(labels[below]), weights)
    by_seed = []
    for sums in runs:
        upper = np.einsum("tsg,dg->dts", np.asarray(sums[above]), weights)
        values = _ratio(upper, lower)
        by_seed.append(
            overall(values, scenarios)
            if cell is None
            else values[:, cell[0], cell[1]]
        )
    return np.array(by_seed)


def to_lists(sums: Mapping[str, np.ndarray]) -> dict:
    """Plain values of sums, rounded to six digits, for JSON.

    Example:

    >>> to_lists({"label": np.array([1.0, 2.0000001])})
    {'label': [1, 2]}
    """
    return {name: _rounded(np.asarray(values)) for name, values in sums.items()}


def _rounded(values):
    if values.ndim:
        return [_rounded(part) for part in values]
    number = float(f"{float(values):.{_DIGITS}g}")
    return int(number) if number.is_integer() else number


def _ratio(above, below):
    filled = below > 0
    return np.where(filled, above / np.where(filled, below, 1.0), np.nan)


def _sums(terms, scenario, groups, num_scenarios):
    index = np.asarray(scenario) * NUM_GROUPS + np.asarray(groups)
    size = num_scenarios * NUM_GROUPS
    return {
        name: np.stack(
            [
                np.bincount(index, column, size).reshape(num_scenarios, -1)
                for column in values.T
            ]
        )
        for name, values in terms.items()
    }
