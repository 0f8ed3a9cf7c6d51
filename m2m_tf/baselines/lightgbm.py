"""Boosted trees on hand-made features, one model per task.

LightGBM is an extra (`pip install m2m_tf[lightgbm]`), imported here alone.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from tqdm import tqdm

from m2m_tf.baselines import naive
from m2m_tf.baselines.tabular import fit_vocabularies, tabular_features
from m2m_tf.config import DatasetSpec
from m2m_tf.data import schema, windows
from m2m_tf.features.preprocessing import label_unit
from m2m_tf.metrics import SMAPE

POISSON = "lightgbm"
MEDIAN = "lightgbm_median"
# Fewer training rows than this, and a scenario uses the pooled trees.
_MIN_SCENARIO_ROWS = 200

_MAX_ROUNDS = 150
_PATIENCE = 20
_TREES = {
    "learning_rate": 0.15,
    "num_leaves": 31,
    "min_data_in_leaf": 50,
    "max_bin": 63,
    "feature_fraction": 0.3,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 1.0,
    # A category needs many rows before it gets a split of its own.
    "min_data_per_group": 200,
    "force_col_wise": True,
    "deterministic": True,
    "verbosity": -1,
}
# Steps of log rates are capped: on heavy tails an early leaf would otherwise
# send a few rates beyond all bounds.
_OBJECTIVES = {
    "poisson": {"max_delta_step": 1.0, "poisson_max_delta_step": 0.7},
    "l1": {},
}


@dataclasses.dataclass(frozen=True)
class FittedTrees:
    """Trees and how their sums become forecasts; made by `fit`.

    Attributes:
        booster: A LightGBM `Booster`.
        objective: `"poisson"` or `"l1"`.
        zero_up_to: Medians up to this are forecast as 0.
        whole: Whether medians are rounded, because labels are whole.

    Example:

    >>> rng = np.random.default_rng(0)
    >>> features, levels = rng.normal(size=(500, 3)), np.ones(500)
    >>> labels = rng.poisson(np.exp(features[:, 0]))
    >>> trees = fit(features, labels, features, labels, levels, levels)
    >>> trees.predict(features[:2], levels[:2]).shape
    (2,)
    """

    booster: object
    objective: str
    zero_up_to: float = 0.0
    whole: bool = False

    def predict(self, features, init_level) -> np.ndarray:
        """Forecasts `[N]`, not negative, from features `[N, D]`.

        Args:
            features: Float32 `[N, D]`, columns as in `fit`.
            init_level: Naive forecasts `[N]`, as in `fit`.
        """
        raw = self.booster.predict(features, raw_score=True)
        scale = _scale(init_level)
        if self.objective == "poisson":
            return scale * np.exp(raw)
        medians = scale * np.maximum(raw, 0.0)
        medians = np.where(medians > self.zero_up_to, medians, 0.0)
        return np.rint(medians) if self.whole else medians


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    val_features: np.ndarray,
    val_labels: np.ndarray,
    init_level: np.ndarray,
    val_init_level: np.ndarray,
    objective: str = "poisson",
    categorical: Sequence[int] = (),
    seed: int = 0,
    trees: Mapping[str, object] | None = None,
) -> FittedTrees:
    """Fits one task's trees, stopped early on validation data.

    Both objectives learn a factor of scale = 0.9 · init_level + 0.05, since
    trees alone cannot extrapolate to the largest entities. `"poisson"`
    starts boosting from log(scale). `"l1"` fits label / scale with weights
    scale, and Σ scale |y / scale - f| = Σ |y - scale · f|: the absolute error
    itself, least for the median.

    Sums of leaves are close to 0 where most labels are 0, yet hardly ever 0,
    for which SMAPE charges as much as for any error. So medians are forecast
    as 0 up to the threshold with the least SMAPE on validation data, and are
    whole numbers where labels are: what M2M's medians are by themselves.

    LightGBM takes all cores, or as many threads as OMP_NUM_THREADS says. Beside
    other work 1 is many times faster.

    Args:
        features: Training rows, float32 `[N, D]`.
        labels: Their labels `[N]`, not negative.
        val_features: Validation rows `[M, D]`.
        val_labels: Their labels `[M]`.
        init_level: Naive forecasts `[N]` of the labels, not negative.
        val_init_level: The same of the validation rows, `[M]`.
        objective: `"poisson"` for means or `"l1"` for medians.
        categorical: Indices of the columns that hold codes.
        seed: Seeds the sampling of rows and columns.
        trees: LightGBM parameters that replace the default ones, or None.

    Returns:
        A `FittedTrees`, the best by validation loss of at most 150 rounds.

    Raises:
        ImportError: If LightGBM is not installed.
        ValueError: If `objective` or the shapes are wrong.

    Example:

    >>> rng = np.random.default_rng(0)
    >>> features, levels = rng.normal(size=(500, 3)), np.ones(500)
    >>> labels = rng.poisson(np.exp(features[:, 0]))
    >>> fit(features, labels, features, labels, levels, levels, "l1").objective
    'l1'
    """
    lgb = import_lightgbm()
    if objective not in _OBJECTIVES:
        raise ValueError(
            f"`objective` must be one of {sorted(_OBJECTIVES)}. "
            f"Received: objective={objective!r}"
        )
    train = _dataset(lgb, objective, features, labels, init_level, categorical)
    validation = _dataset(
        lgb, objective, val_features, val_labels, val_init_level, categorical
    )
    settings = _TREES | _OBJECTIVES[objective] | dict(trees or {})
    booster = lgb.train(
        settings | {"objective": objective, "seed": seed},
        train,
        num_boost_round=_MAX_ROUNDS,
        valid_sets=[validation],
        callbacks=[lgb.early_stopping(_PATIENCE, verbose=False)],
    )
    fitted = FittedTrees(booster, objective)
    if objective == "poisson":
        return fitted
    medians = fitted.predict(val_features, val_init_level)
    return dataclasses.replace(
        fitted,
        zero_up_to=_zero_threshold(medians, val_labels),
        whole=bool((labels == np.rint(labels)).all()),
    )


def forecast(
    spec: DatasetSpec,
    train: Iterable[dict[str, np.ndarray]],
    validation: Iterable[dict[str, np.ndarray]],
    test: Iterable[dict[str, np.ndarray]],
    seed: int = 0,
    trees: Mapping[str, object] | None = None,
    per_scenario: bool = False,
) -> dict[str, np.ndarray]:
    """Fits both objectives for every task and forecasts the test batches.

    Args:
        spec: The dataset spec.
        train: Batches of raw features with `labels` `[B, tasks]`, as NumPy
            arrays; read twice, so no generator.
        validation: The same of the validation split.
        test: The same of the test split; labels are not needed.
        seed: Seeds the sampling of rows and columns.
        trees: LightGBM parameters that replace the default ones, or None.
        per_scenario: Whether each scenario gets trees of its own. One with
            fewer than 200 training rows, a task that is 0 in all of them, or
            none to stop early by takes the trees of all scenarios.

    Returns:
        Dict of float64 arrays `[N, tasks]`, rows as in `test`:
        `"lightgbm"` (means) and `"lightgbm_median"`.

    Raises:
        ImportError: If LightGBM is not installed.

    Example:

    >>> batches = [
    ...     list(data.raw(split, batch_size=64).as_numpy_iterator())
    ...     for split in ("train", "validation", "test")
    ... ]
    >>> forecasts = forecast(data.spec, *batches)
    >>> forecasts["lightgbm"].shape
    (28, 3)
    """
    import_lightgbm()
    vocabularies = fit_vocabularies(spec, train)
    tables = [
        _table(spec, batches, vocabularies)
        for batches in (train, validation, test)
    ]
    # In which unit money is told must not matter to the trees either.
    units = [
        label_unit(labels.mean(), (labels == np.rint(labels)).all())
        for labels in tables[0].labels.T
    ]
    tables = [table.in_units(units) for table in tables]
    groups = [tables]
    if per_scenario:
        groups = list(_by_scenario(*tables))
    num_rows = len(tables[2].features)
    forecasts = {
        name: np.zeros((num_rows, len(spec.tasks)))
        for name in (POISSON, MEDIAN)
    }
    models = itertools.product(
        groups,
        range(len(spec.tasks)),
        ((POISSON, "poisson"), (MEDIAN, "l1")),
    )
    for (fitted_on, stopped_by, asked), task, (name, objective) in tqdm(
        list(models), desc="LightGBM", unit=" models"
    ):
        booster = fit(
            fitted_on.features,
            fitted_on.labels[:, task],
            stopped_by.features,
            stopped_by.labels[:, task],
            fitted_on.levels[:, task],
            stopped_by.levels[:, task],
            objective,
            fitted_on.categorical,
            seed,
            trees,
        )
        forecasts[name][asked.rows, task] = units[task] * booster.predict(
            asked.features, asked.levels[:, task]
        )
    return {
        name: naive.cap_binary(spec, values)
        for name, values in forecasts.items()
    }


@dataclasses.dataclass(frozen=True)
class _Table:
    features: np.ndarray
    labels: np.ndarray | None
    levels: np.ndarray
    scenario: np.ndarray
    categorical: list[int]
    rows: np.ndarray

    def in_units(self, units):
        labels = None if self.labels is None else self.labels / units
        return dataclasses.replace(
            self, labels=labels, levels=self.levels / units
        )

    def where(self, chosen):
        return dataclasses.replace(
            self,
            features=self.features[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            levels=self.levels[chosen],
            scenario=self.scenario[chosen],
            rows=self.rows[chosen],
        )


def _by_scenario(train, validation, test):
    """Tables of each scenario; those with too few rows share all rows."""
    pooled = []
    for code in np.unique(test.scenario):
        own = [table.scenario == code for table in (train, validation, test)]
        enough = own[0].sum() >= _MIN_SCENARIO_ROWS and own[1].any()
        if not enough or not train.labels[own[0]].any(axis=0).all():
            pooled.append(code)
        else:
            yield (
                train.where(own[0]),
                validation.where(own[1]),
                test.where(own[2]),
            )
    if pooled:
        yield train, validation, test.where(np.isin(test.scenario, pooled))


def _table(spec, batches, vocabularies):
    """Joins batches: a table is a tenth of the size of its raw features."""
    features, labels, levels = [], [], []
    for raw in batches:
        rows, names, codes = tabular_features(spec, raw, vocabularies)
        features.append(rows)
        levels.append(naive.naive_forecasts(spec, raw)[naive.HISTORY_MEAN])
        if windows.LABELS in raw:
            labels.append(np.asarray(raw[windows.LABELS]))
    features = np.concatenate(features)
    return _Table(
        features,
        np.concatenate(labels) if labels else None,
        np.concatenate(levels),
        features[:, names.index(schema.SCENARIO)],
        [names.index(name) for name in codes],
        np.arange(len(features)),
    )


def _dataset(lgb, objective, features, labels, init_level, categorical):
    scale = _scale(init_level)
    # LightGBM warns of views of a larger array, such as one task's labels.
    labels = np.ascontiguousarray(labels)
    if not len(features) == len(labels) == len(scale):
        raise ValueError(
            "Features, labels and init levels must have as many rows. "
            f"Received: {len(features)}, {len(labels)} and {len(scale)} rows"
        )
    arguments = {"categorical_feature": list(categorical)}
    if objective == "poisson":
        return lgb.Dataset(
            features, labels, init_score=np.log(scale), **arguments
        )
    return lgb.Dataset(features, labels / scale, weight=scale, **arguments)


def _zero_threshold(forecasts, labels):
    """The forecast up to which 0 in its place makes SMAPE least."""
    labels = np.asarray(labels, "float64")
    smape = SMAPE(dtype="float64")
    told, _ = smape.terms(labels, forecasts)
    zero, _ = smape.terms(labels, np.zeros_like(forecasts))
    values, place = np.unique(forecasts, return_inverse=True)
    gains = np.cumsum(np.bincount(place, weights=np.asarray(told - zero)))
    best = gains.argmax()
    return float(values[best]) if gains[best] > 0 else 0.0


def _scale(init_level):
    return 0.9 * np.asarray(init_level, "float64") + 0.05


def import_lightgbm():
    """The LightGBM module, or an ImportError that says how to get it.

    Example:

    >>> import_lightgbm().__name__
    'lightgbm'
    """
    # OpenMP's threads wait for each other by spinning. Where other programs
    # run as well, that was 15 times slower than sleeping (2 cores, measured
    # side by side). It is read when the first library with OpenMP is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import lightgbm
    except ImportError as error:
        raise ImportError(
            "This baseline needs LightGBM: pip install 'm2m_tf[lightgbm]', "
            "or set `evaluation.lightgbm` to false."
        ) from error
    return lightgbm
