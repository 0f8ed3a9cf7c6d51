"""Streaming metrics of count forecasts, each a ratio of two running sums.

A ratio of sums is not a mean of batch ratios: both sums are kept and divided
only in `result()`, so that batches of any size give the exact value.
"""

import keras
import numpy as np
from keras import ops

# A forecast of exactly 0 has an infinite Poisson deviance where something
# happened; rates below this are raised to it.
MIN_RATE = 1e-9
_LARGEST_RATE = 1e30
_LEAST_RATIO = float(np.finfo("float32").tiny)


class GroupedRatio(keras.metrics.Metric):
    """Σ w a / Σ w b over the elements of each group; base class.

    Subclasses give the terms a and b of each element in `terms`. Sums are
    kept in `dtype`; use `"float64"` for more than some 10 million elements.

    Args:
        num_groups: Number of groups that are summed apart, such as the cells
            task × scenario.
        from_log_rate: Whether `y_pred` are LOG rates instead of rates.
        name: Name of the metric.
        dtype: `"float32"` (default) or `"float64"`.

    Example:

    >>> metric = NMAE(num_groups=2)
    >>> metric.update_state([1.0, 4.0], [2.0, 4.0], groups=[0, 1])
    >>> metric.group_results().numpy()
    array([1., 0.], dtype=float32)
    """

    def __init__(
        self, num_groups=1, from_log_rate=False, name=None, dtype=None
    ):
        super().__init__(name=name, dtype=dtype)
        if (
            isinstance(num_groups, bool)
            or not isinstance(num_groups, int)
            or num_groups <= 0
        ):
            raise ValueError(
                "`num_groups` must be a positive integer. "
                f"Received: num_groups={num_groups!r}"
            )
        if self.dtype not in ("float32", "float64"):
            raise ValueError(
                "`dtype` must be 'float32' or 'float64', because running "
                f"sums need the precision. Received: dtype={dtype!r}"
            )
        self._direction = "down"
        self.num_groups = num_groups
        self.from_log_rate = from_log_rate
        self.numerator = self._add_sums("numerator")
        self.denominator = self._add_sums("denominator")

    def terms(self, y_true, rate):
        """Terms (a, b) of each element, both `[N]`."""
        raise NotImplementedError

    def update_state(self, y_true, y_pred, sample_weight=None, groups=None):
        """Adds a batch.

        Args:
            y_true: Labels, not negative, `[B]` or `[B, 1]`; with one group
                any shape.
            y_pred: Rates (log rates with `from_log_rate`), shaped alike.
            sample_weight: None, or weights shaped alike. An element of
                weight 0 is left out whatever its label, NaN included.
            groups: None (with one group), or int, shaped alike, in
                `[0, num_groups)`. Others are left out or an error,
                depending on the device.
        """
        y_true = _flat(y_true, self.dtype)
        y_pred = _flat(y_pred, self.dtype)
        _require_same_size("y_true", y_true, "y_pred", y_pred)
        if groups is None:
            if self.num_groups > 1:
                raise ValueError(
                    "`groups` must be given when `num_groups` is above 1. "
                    f"Received: groups=None, num_groups={self.num_groups}"
                )
            groups = ops.zeros_like(y_true, dtype="int32")
        groups = _flat(groups, "int32")
        _require_same_size("groups", groups, "y_pred", y_pred)
        rate = ops.exp(y_pred) if self.from_log_rate else y_pred
        terms = self.terms(y_true, rate)
        if sample_weight is not None:
            weight = _flat(sample_weight, self.dtype)
            _require_same_size("sample_weight", weight, "y_pred", y_pred)
            # Not a plain product, which would keep the NaN of a masked label.
            terms = [ops.where(weight > 0, weight * x, 0.0) for x in terms]
        for sums, values in zip(
            (self.numerator, self.denominator), terms, strict=True
        ):
            sums.assign_add(
                ops.segment_sum(values, groups, num_segments=self.num_groups)
            )

    def group_results(self):
        """The ratio of each group, `[num_groups]`; NaN where Σ w b is 0."""
        filled = self.denominator > 0
        ratio = self.numerator / ops.where(filled, self.denominator, 1.0)
        return ops.where(filled, ratio, float("nan"))

    def result(self):
        """Unweighted mean over the groups with Σ w b > 0; NaN if none."""
        filled = ops.cast(self.denominator > 0, self.dtype)
        count = ops.sum(filled)
        ratios = ops.where(self.denominator > 0, self.group_results(), 0.0)
        mean = ops.sum(ratios) / ops.maximum(count, 1.0)
        return ops.where(count > 0, mean, float("nan"))

    def get_config(self):
        config = super().get_config()
        config.update(
            {
                "num_groups": self.num_groups,
                "from_log_rate": self.from_log_rate,
            }
        )
        return config

    def _add_sums(self, name):
        return self.add_variable(
            shape=(self.num_groups,),
            initializer="zeros",
            dtype=self.dtype,
            name=name,
        )


@keras.saving.register_keras_serializable("m2m_tf")
class NMAE(GroupedRatio):
    """Normalised mean absolute error (eq. 22), the paper's first metric.

        NMAE = Σ |ŷ - y| / Σ y

    Also called ND or WAPE; others divide by the range or the deviation. It
    is least for a forecast of the median. A group whose labels are all 0 has
    no NMAE and is left out of the mean over groups.

    Args:
        num_groups: Number of groups that are summed apart.
        from_log_rate: Whether `y_pred` are LOG rates instead of rates.
        name: Name of the metric.
        dtype: `"float32"` (default) or `"float64"`.

    Example:

    >>> metric = NMAE()
    >>> metric.update_state([1.0, 3.0], [2.0, 2.0])
    >>> float(metric.result())
    0.5
    """

    def __init__(
        self, num_groups=1, from_log_rate=False, name="nmae", dtype=None
    ):
        super().__init__(num_groups, from_log_rate, name, dtype)

    def terms(self, y_true, rate):
        return ops.abs(rate - y_true), y_true


@keras.saving.register_keras_serializable("m2m_tf")
class SMAPE(GroupedRatio):
    """Symmetric mean absolute percentage error (eq. 21), from 0 to 2.

        SMAPE = 1/N Σ |ŷ - y| / ((ŷ + y) / 2)

    A term with ŷ = y = 0 counts as 0 and stays in N. A term with y = 0 and
    any positive ŷ is 2, so mean forecasts score badly where most labels are
    0.

    Args:
        num_groups: Number of groups that are summed apart.
        from_log_rate: Whether `y_pred` are LOG rates instead of rates.
        name: Name of the metric.
        dtype: `"float32"` (default) or `"float64"`.

    Example:

    >>> metric = SMAPE()
    >>> metric.update_state([1.0, 0.0], [3.0, 0.0])
    >>> float(metric.result())
    0.5
    """

    def __init__(
        self, num_groups=1, from_log_rate=False, name="smape", dtype=None
    ):
        super().__init__(num_groups, from_log_rate, name, dtype)

    def terms(self, y_true, rate):
        # A log rate may be beyond what has an exponential: the term is then 2.
        rate = ops.minimum(rate, _LARGEST_RATE)
        size = rate + y_true
        share = ops.abs(rate - y_true) / ops.where(size > 0, size, 1.0)
        return 2.0 * share, ops.ones_like(share)


@keras.saving.register_keras_serializable("m2m_tf")
class PoissonDeviance(GroupedRatio):
    """Mean Poisson deviance: twice the log likelihood lost to ŷ = y.

        deviance = 2/N Σ (y log(y / ŷ) - (y - ŷ)),   y log y = 0 at y = 0

    It is least for a forecast of the mean and ranks forecasts as the Poisson
    loss does (eq. 20). Forecasts below `MIN_RATE` = 1e-9 are raised to it,
    so that a forecast of 0 costs about 2 y (log y + 19.7) and not infinity:
    the value of forecasts with zeros depends on that choice.

    Args:
        num_groups: Number of groups that are summed apart.
        from_log_rate: Whether `y_pred` are LOG rates instead of rates.
        name: Name of the metric.
        dtype: `"float32"` (default) or `"float64"`.

    Example:

    >>> metric = PoissonDeviance()
    >>> metric.update_state([0.0, 2.0], [1.0, 2.0])
    >>> float(metric.result())
    1.0
    """

    def __init__(
        self,
        num_groups=1,
        from_log_rate=False,
        name="poisson_deviance",
        dtype=None,
    ):
        super().__init__(num_groups, from_log_rate, name, dtype)

    def terms(self, y_true, rate):
        rate = ops.maximum(rate, MIN_RATE)
        ratio = ops.where(y_true > 0, y_true, 1.0) / rate
        # Below the least normal number processors make it 0, whose logarithm
        # would turn a forecast beyond all bounds into the best of all.
        ratio = ops.maximum(ratio, _LEAST_RATIO)
        deviance = 2.0 * (y_true * ops.log(ratio) - (y_true - rate))
        return deviance, ops.ones_like(deviance)


@keras.saving.register_keras_serializable("m2m_tf")
class CellMetrics(keras.metrics.Metric):
    """NMAE, SMAPE and Poisson deviance of every task × scenario.

    The overall value of each is the unweighted mean over the cells (the
    paper's "overall", section 5.2).

    Args:
        task_names: Names of the model's outputs.
        num_scenarios: Number of scenarios.
        name: Prefix of the overall values' names.
        dtype: `"float32"` (default) or `"float64"`.

    Example:

    >>> metric = CellMetrics(["clicks"], num_scenarios=2)
    >>> metric.update_state(
    ...     {"clicks": [1.0, 3.0]}, {"clicks": [0.0, 0.0]}, scenario=[0, 1]
    ... )
    >>> metric.cells()["nmae"].round(2)
    array([[0.  , 0.67]], dtype=float32)
    """

    def __init__(self, task_names, num_scenarios, name="overall", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.task_names = tuple(task_names)
        if not self.task_names or isinstance(task_names, str):
            raise ValueError(
                "`task_names` must be a non-empty sequence of names. "
                f"Received: task_names={task_names!r}"
            )
        self._direction = "down"
        self.num_scenarios = num_scenarios
        self.parts = _cell_parts(
            len(self.task_names), num_scenarios, True, dtype
        )

    def update_state(self, y_true, y_pred, scenario, sample_weight=None):
        """Adds a batch.

        Args:
            y_true: Dict task → labels `[B]` or `[B, 1]`.
            y_pred: Dict task → LOG rates `[B]` or `[B, 1]`.
            scenario: Index of each row's scenario, int `[B]`, in
                `[0, num_scenarios)`.
            sample_weight: None, weights `[B]`, or dict task → weights, 1
                where it is left out.
        """
        scenario = _flat(scenario, "int32")
        groups = [
            task * self.num_scenarios + scenario
            for task in range(len(self.task_names))
        ]
        if sample_weight is not None:
            if not isinstance(sample_weight, dict):
                sample_weight = dict.fromkeys(self.task_names, sample_weight)
            given = {k: x for k, x in sample_weight.items() if x is not None}
            ones = dict.fromkeys(self.task_names, ops.ones_like(scenario))
            sample_weight = self._joined(ones | given)
        y_true, y_pred = self._joined(y_true), self._joined(y_pred)
        for part in self.parts:
            part.update_state(
                y_true, y_pred, sample_weight, ops.concatenate(groups)
            )

    def result(self):
        """Dict of scalars `<name>_nmae`, `_smape` and `_poisson_deviance`."""
        return {f"{self.name}_{p.name}": p.result() for p in self.parts}

    def cells(self):
        """Dict metric → NumPy `[tasks, scenarios]`; NaN where empty."""
        return _cell_arrays(self.parts, len(self.task_names))

    def get_config(self):
        config = super().get_config()
        config.update(
            {
                "task_names": self.task_names,
                "num_scenarios": self.num_scenarios,
            }
        )
        return config

    def _joined(self, values):
        """Dict task → `[B]` as one tensor `[tasks · B]`."""
        missing = [name for name in self.task_names if name not in values]
        if missing:
            raise ValueError(
                f"A value is needed for each of {list(self.task_names)}. "
                f"Received: keys={sorted(values)}, missing={missing}"
            )
        return ops.concatenate(
            [_flat(values[name], self.dtype) for name in self.task_names]
        )


def score_cells(y_true, y_pred, scenario, num_scenarios):
    """Scores forecasts per task × scenario, in float64.

    Args:
        y_true: Labels `[N, T]`, finite, not negative.
        y_pred: Forecasts (RATES, not log rates) `[N, T]`, likewise.
        scenario: Index of each row's scenario, int `[N]`.
        num_scenarios: Number S of scenarios.

    Returns:
        Dict of `"nmae"`, `"smape"` and `"poisson_deviance"`, each a float64
        array `[T, S]` with NaN where there is nothing to score.

    Raises:
        ValueError: On shapes that do not match, values that are negative or
            not finite, or a scenario outside `[0, num_scenarios)`.

    Example:

    >>> scores = score_cells([[2.0]], [[3.0]], [0], num_scenarios=1)
    >>> float(scores["nmae"][0, 0])
    0.5
    """
    y_true = _checked("y_true", y_true)
    y_pred = _checked("y_pred", y_pred)
    scenario = np.asarray(scenario)
    if y_true.shape != y_pred.shape or scenario.shape != y_true.shape[:1]:
        raise ValueError(
            "`y_true` and `y_pred` must have shape [N, T] and `scenario` "
            f"[N]. Received: y_true.shape={y_true.shape}, "
            f"y_pred.shape={y_pred.shape}, scenario.shape={scenario.shape}"
        )
    outside = (scenario < 0) | (scenario >= num_scenarios)
    if outside.any():
        raise ValueError(
            f"`scenario` must be in [0, {num_scenarios}). Received: "
            f"scenario={int(scenario[outside][0])} in {outside.sum()} row(s)"
        )
    num_tasks = y_true.shape[1]
    groups = scenario[:, None] + num_scenarios * np.arange(num_tasks)
    parts = _cell_parts(num_tasks, num_scenarios, False, "float64")
    for part in parts:
        part.update_state(y_true, y_pred, groups=groups)
    return _cell_arrays(parts, num_tasks)


def _cell_parts(num_tasks, num_scenarios, from_log_rate, dtype):
    return [
        part(num_tasks * num_scenarios, from_log_rate, dtype=dtype)
        for part in (NMAE, SMAPE, PoissonDeviance)
    ]


def _cell_arrays(parts, num_tasks):
    return {
        part.name: ops.convert_to_numpy(part.group_results()).reshape(
            num_tasks, -1
        )
        for part in parts
    }


def _checked(name, values):
    values = np.asarray(values, "float64")
    if values.ndim != 2:
        raise ValueError(
            f"`{name}` must have shape [N, T]. "
            f"Received: {name}.shape={values.shape}"
        )
    bad = ~np.isfinite(values) | (values < 0)
    if bad.any():
        raise ValueError(
            f"`{name}` must be finite and not negative. Received: "
            f"{bad.sum()} other value(s), the first {values[bad][0]}"
        )
    return values


def _flat(values, dtype):
    if not ops.is_tensor(values):
        # Keras makes float32 of numbers that are no array.
        values = np.asarray(values)
    return ops.reshape(ops.cast(ops.convert_to_tensor(values), dtype), [-1])


def _require_same_size(name, values, other_name, others):
    """Sizes that are unknown until the graph runs are not compared."""
    size, other = values.shape[0], others.shape[0]
    if size is not None and other is not None and size != other:
        raise ValueError(
            f"`{name}` and `{other_name}` must have as many elements. "
            f"Received: {name} with {size}, {other_name} with {other}. (Of a "
            "hurdle model's output the first column is the log rate; "
            "`cell_metrics` takes it.)"
        )
