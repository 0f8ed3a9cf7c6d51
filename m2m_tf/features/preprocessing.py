"""Raw features → model inputs: discretisation, vocabularies, levels.

Everything fitted comes from days up to the last training label day. The same
`Preprocessor` runs in the input pipeline and inside the exported model.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import keras
import numpy as np
import polars as pl
import tensorflow as tf

from m2m_tf.config import DatasetSpec, parse, to_values
from m2m_tf.data import input_pipeline, panel, schema, validation, windows

NUM_BUCKETS = 32
# Ids of a discretised column before its quantile buckets.
_MISSING, _ZERO, _FIRST_BUCKET = 0, 1, 2
# Stands for no value of a column, and can hardly be one.
_NO_VALUE = "\x01"
# Of an amount's mean label: a label stands for so much round it.
_UNIT_SHARE = 0.4
# Floor of a history level, as a share of the task's mean label: the level of
# an entity without history is small, not minus infinity. In minor scenarios
# most levels are far below the mean, so the floor is, too.
_LEVEL_FLOOR = 0.005
# As features, log levels stand on a scale like that of standardised features.
_LEVEL_SCALE = 0.3
# Levels of a task that its forecast is an offset from.
_NUM_OFFSETS = 2
_FIT_BATCH = 2048
_DAYS_OF_YEAR = 365.25


@dataclasses.dataclass(frozen=True)
class Statistics:
    """All that is fitted, as plain values.

    Args:
        edges: Column → ascending bucket edges of its non-zero values.
        vocabularies: Categorical raw feature → values seen in training.
        scenario_attributes: Raw feature → its value in each scenario seen in
            training, in the order of their vocabulary.
        dense_mean: Mean of each dense feature.
        dense_std: Standard deviation of each dense feature.
        label_means: Mean training label of each task.
        whole_labels: Whether all training labels of a task are whole numbers.
        label_limits: Most that a label of a task can be: 1 of a binary one,
            the horizon where the column was 0 or 1 on every training day and
            so counts days; None: no bound is known.
        num_samples: Samples of each split.
        last_day: Last day that anything was fitted on, and the last training
            label's, as an ISO date.
        training_cutoffs: The first and the last training cutoff, in days
            since 1970-01-01.

    Example:

    >>> data.preprocessor.statistics.label_limits
    [None, None, 1]
    """

    edges: dict[str, list[float]]
    vocabularies: dict[str, list[str]]
    scenario_attributes: dict[str, list]
    dense_mean: list[float]
    dense_std: list[float]
    label_means: list[float]
    whole_labels: list[bool]
    label_limits: list[int | None]
    num_samples: dict[str, int]
    last_day: str
    training_cutoffs: Sequence[int]


@keras.saving.register_keras_serializable("m2m_tf")
class Preprocessor(keras.layers.Layer):
    """Turns raw features into model inputs (paper, section 4.1.1).

    Continuous columns become ids: 0 for missing or padded, 1 for zero, then
    quantile buckets of the non-zero training values. Categories become ids
    with 0 for values not seen in training. Dense features are standardised
    signed log totals, calendar terms and numeric attributes, then the logs of
    the tasks' levels over their mean label. `log_history` holds the logs of
    two levels of each task: its lookback total (scaled to `horizon` days),
    and the mean of that and the total of the last `horizon` days. The dense
    features also have the lookback level over all scenarios, where the spec
    has cross-scenario totals: all that is known where a scenario is new.

    Args:
        spec: A `DatasetSpec`, or its plain values.
        statistics: A `Statistics`, or its plain values.

    Call arguments:
        raw: Dict of tensors `[batch, ...]`, see `schema.raw_features`.

    Output:
        Dict of tensors `[batch, ...]`, see `ModelInputSpec.tensors`.

    Example:

    >>> raw = next(iter(data.raw("test", batch_size=16)))
    >>> data.preprocessor(raw)["log_history"].shape
    TensorShape([16, 3, 2])
    """

    def __init__(self, spec, statistics, **kwargs):
        kwargs.setdefault("dtype", "float32")
        super().__init__(trainable=False, **kwargs)
        self.spec = (
            spec if isinstance(spec, DatasetSpec) else parse(DatasetSpec, spec)
        )
        self.statistics = (
            statistics
            if isinstance(statistics, Statistics)
            else Statistics(**statistics)
        )
        self._lookups = {
            # Without a known value each is unknown, that of no name as well.
            # A first value "[UNK]", Keras's own token, would shift all ids.
            name: keras.layers.StringLookup(
                vocabulary=vocabulary or [""], oov_token=_NO_VALUE
            )
            for name, vocabulary in self.statistics.vocabularies.items()
        }
        self.built = True

    def build(self, *_, **__):
        """Nothing to build: the statistics are the whole state."""

    def call(self, raw):
        spec = self.spec
        mask = _sequence_mask(raw[schema.DAYS_OBSERVED], spec.lookback)
        # Days that are not observed are zeros in what `windows` cuts, but a
        # caller may send anything.
        raw = raw | {
            name: tf.where(mask[:, :, None], raw[name], 0.0)
            for name in schema.past_sequences(spec)
        }
        if spec.known_future:
            raw[schema.KNOWN_FUTURE] = tf.where(
                mask[:, -spec.horizon :, None], raw[schema.KNOWN_FUTURE], 0.0
            )
        levels = self._log_levels(raw)
        inputs = {
            schema.SEQUENCE_MASK: tf.cast(mask, tf.int32),
            **{
                name: self._discretize(raw[name], columns, mask)
                for name, columns in schema.past_sequences(spec).items()
            },
            schema.SCENARIO_FEATURES: self._attributes(
                raw, spec.scenario_columns, schema.SCENARIO_PREFIX, True
            ),
            schema.DENSE_FEATURES: self._dense(raw, levels),
            schema.LOG_HISTORY: levels[..., :_NUM_OFFSETS],
        }
        if spec.profile_columns.names:
            inputs[schema.PROFILE_FEATURES] = self._attributes(
                raw, spec.profile_columns, schema.PROFILE_PREFIX, False
            )
        if spec.known_future:
            days = mask[:, -spec.horizon :]
            inputs[schema.KNOWN_FUTURE] = self._discretize(
                raw[schema.KNOWN_FUTURE], spec.known_future, days
            )
        return inputs

    @property
    def model_inputs(self) -> schema.ModelInputSpec:
        """Sizes of the model inputs that this preprocessor makes."""
        spec = self.spec

        def attribute_sizes(columns, prefix):
            return tuple(
                self._num_categories(prefix + name)
                for name in columns.categorical
            ) + tuple(self._num_ids(prefix + name) for name in columns.numeric)

        return schema.ModelInputSpec(
            lookback=spec.lookback,
            horizon=spec.horizon,
            task_names=spec.task_names,
            behavior_sizes=tuple(
                self._num_ids(name) for name in schema.behavior_names(spec)
            ),
            performance_sizes=tuple(
                self._num_ids(name) for name in schema.performance_names(spec)
            ),
            scenario_sizes=(
                self._num_categories(schema.SCENARIO),
                *attribute_sizes(spec.scenario_columns, schema.SCENARIO_PREFIX),
            ),
            profile_sizes=attribute_sizes(
                spec.profile_columns, schema.PROFILE_PREFIX
            ),
            known_future_sizes=tuple(
                self._num_ids(name) for name in spec.known_future
            ),
            num_dense_features=len(self.statistics.dense_mean)
            + len(spec.tasks) * (_NUM_OFFSETS + spec.cross_scenario_totals),
            num_history_levels=_NUM_OFFSETS,
            label_limits=self.label_limits(),
        )

    @property
    def lookup_tables(self) -> list[tf.lookup.StaticHashTable]:
        """TensorFlow's tables of the vocabularies, which an export keeps.

        Example:

        >>> len(data.preprocessor.lookup_tables)
        3
        """
        return [lookup.lookup_table for lookup in self._lookups.values()]

    @property
    def scenario_names(self) -> tuple[str, ...]:
        """Scenarios by id; the first stands for all unknown ones."""
        return (schema.UNKNOWN_SCENARIO, *self.known_scenarios)

    @property
    def known_scenarios(self) -> tuple[str, ...]:
        """Scenarios that training has seen, in the order of their ids."""
        return tuple(self.statistics.vocabularies[schema.SCENARIO])

    def scenario_ids(self, names: Iterable[str]) -> np.ndarray:
        """Ids `[N]` of N scenarios, 0 of those that training has not seen.

        Example:

        >>> data.preprocessor.scenario_names
        ('(unknown)', 'booked', 'video', 'walk_in')
        >>> data.preprocessor.scenario_ids(["walk_in", "by_post"])
        array([3, 0])
        """
        ids = {
            name: index for index, name in enumerate(self.known_scenarios, 1)
        }
        return np.array([ids.get(name, 0) for name in names], int)

    def task_weights(self) -> dict[str, float]:
        """λ_t of each task (eq. 19), with `inverse_mean` resolved."""
        return {
            task.name: 1.0 / mean
            if task.weight == "inverse_mean"
            else task.weight
            for task, mean in zip(
                self.spec.tasks, self.statistics.label_means, strict=True
            )
        }

    def label_units(self) -> dict[str, float]:
        """What a label of each task stands for, for `losses.joint_hurdle`.

        One for counts. An amount's differences matter from a share of its mean
        on, so that it is no matter whether money is told in cents or thousands.

        Example:

        >>> data.preprocessor.label_units()
        {'visits': 1.0, 'fees': 1.0, 'open': 1.0}
        """
        return {
            name: label_unit(mean, whole)
            for name, whole, mean in zip(
                self.spec.task_names,
                self.statistics.whole_labels,
                self.statistics.label_means,
                strict=True,
            )
        }

    def label_limits(self) -> dict[str, int | None]:
        """Most that a label of each task can be, see `Statistics`.

        Example:

        >>> data.preprocessor.label_limits()
        {'visits': None, 'fees': None, 'open': 1}
        """
        limits = self.statistics.label_limits
        return dict(zip(self.spec.task_names, limits, strict=True))

    def label_ranges(self) -> list[tuple[str, bool, int | None]]:
        """Each task's name, and what `forecast.task_forecasts` asks of it.

        Example:

        >>> data.preprocessor.label_ranges()[2]
        ('open', True, 1)
        """
        statistics = self.statistics
        columns = statistics.whole_labels, statistics.label_limits
        return list(zip(self.spec.task_names, *columns, strict=True))

    def compute_output_spec(self, raw):
        batch = raw[schema.CUTOFF].shape[0]
        return {
            name: keras.KerasTensor((batch, *tensor.shape), tensor.dtype)
            for name, tensor in self.model_inputs.tensors().items()
        }

    def get_config(self):
        config = super().get_config()
        config.pop("trainable", None)
        return config | {
            "spec": to_values(self.spec),
            "statistics": dataclasses.asdict(self.statistics),
        }

    def _num_ids(self, column):
        return _FIRST_BUCKET + len(self.statistics.edges[column]) + 1

    def _num_categories(self, name):
        return len(self.statistics.vocabularies[name]) + 1

    def _discretize(self, values, columns, mask):
        """Ids of `values` `[B, days, columns]`, where `mask` `[B, days]`."""
        # A column's values side by side: half the time of as many strides.
        values_by_column = tf.transpose(tf.reshape(values, [-1, len(columns)]))
        ids = [
            self._bucketize(column_values, column)
            for column_values, column in zip(
                tf.unstack(values_by_column, num=len(columns)),
                columns,
                strict=True,
            )
        ]
        ids = tf.where(tf.reshape(mask, [1, -1]), tf.stack(ids), _MISSING)
        return tf.reshape(tf.transpose(ids), [-1, *values.shape[1:]])

    def _bucketize(self, value, column):
        bucket = tf.raw_ops.Bucketize(
            input=value, boundaries=self.statistics.edges[column]
        )
        ids = tf.where(value == 0, _ZERO, _FIRST_BUCKET + bucket)
        return tf.where(tf.math.is_nan(value), _MISSING, ids)

    def _attributes(self, raw, columns, prefix, with_scenario):
        categorical = [prefix + name for name in columns.categorical]
        if with_scenario:
            categorical.insert(0, schema.SCENARIO)
        ids = [
            tf.cast(self._lookups[name](raw[name]), tf.int32)
            for name in categorical
        ]
        ids += [
            self._bucketize(raw[prefix + name], prefix + name)
            for name in columns.numeric
        ]
        return tf.stack(ids, axis=-1)

    def _dense(self, raw, log_levels):
        features = dense_features(
            self.spec, raw, self.statistics.training_cutoffs
        )
        mean = tf.constant(self.statistics.dense_mean, tf.float32)
        std = tf.constant(self.statistics.dense_std, tf.float32)
        # A value far outside the training range must not run away.
        features = tf.clip_by_value((features - mean) / std, -8.0, 8.0)
        log_means = np.log(self.statistics.label_means).astype("float32")
        relative = _LEVEL_SCALE * (log_levels - log_means[:, None])
        width = relative.shape[1] * relative.shape[2]
        return tf.concat([features, tf.reshape(relative, [-1, width])], axis=-1)

    def _log_levels(self, raw):
        """Logs of the levels of each task `[B, T, J]`, see the class."""
        spec = self.spec
        observed = _observed(spec, raw)[:, None]
        daily = raw[schema.PERFORMANCE_SEQUENCE]
        own = self._of_tasks(daily)
        lookback = tf.reduce_sum(own, 1) * spec.horizon / observed
        recent = tf.reduce_sum(own[:, -spec.horizon :], 1) * _recent_scale(
            spec, observed
        )
        # One week alone is often empty, which says little of the next one.
        levels = [lookback, 0.5 * (lookback + recent)]
        if spec.cross_scenario_totals:
            totals = self._of_tasks(daily, schema.TOTAL_PREFIX)
            levels.append(tf.reduce_sum(totals, 1) * spec.horizon / observed)
        binary = tf.constant(spec.is_binary)
        floor = _LEVEL_FLOOR * tf.constant(
            self.statistics.label_means, tf.float32
        )
        levels = [
            tf.where(binary, tf.minimum(level, 1.0), level) for level in levels
        ]
        return tf.stack(
            [tf.math.log(tf.maximum(x, 0.0) + floor) for x in levels], axis=-1
        )

    def _of_tasks(self, daily, prefix=""):
        """Days of the columns behind the tasks `[B, lookback, T]`.

        Of binary tasks 1 or 0: whether there was anything, not how much.
        """
        names = schema.performance_names(self.spec)
        columns = [names.index(prefix + t.column) for t in self.spec.tasks]
        daily = tf.gather(daily, columns, axis=-1)
        something = tf.cast(daily > 0, daily.dtype)
        return tf.where(self.spec.is_binary, something, daily)


def dense_features(
    spec: DatasetSpec, raw: dict, training_cutoffs: Sequence[int]
):
    """Unstandardised dense features `[batch, D]` of raw features.

    Args:
        spec: The dataset spec.
        raw: Raw features (`schema.raw_features`), tensors `[batch, ...]`.
        training_cutoffs: See `Statistics`.

    Example:

    >>> raw = next(iter(data.raw("test", batch_size=16)))
    >>> cutoffs = data.preprocessor.statistics.training_cutoffs
    >>> dense_features(data.spec, raw, cutoffs).shape[0]
    16
    """
    observed = _observed(spec, raw)[:, None]
    lookback_scale = spec.horizon / observed
    parts = []
    for name in schema.past_sequences(spec):
        daily = raw[name]
        parts.append(_signed_log(tf.reduce_sum(daily, 1) * lookback_scale))
        recent = tf.reduce_sum(daily[:, -spec.horizon :], 1)
        parts.append(_signed_log(recent * _recent_scale(spec, observed)))
    if spec.known_future:
        daily = raw[schema.KNOWN_FUTURE]
        width = spec.horizon * len(spec.known_future)
        parts.append(tf.reshape(_signed_log(daily), [-1, width]))
        parts.append(_signed_log(tf.reduce_sum(daily, 1)))
    numeric = [
        schema.SCENARIO_PREFIX + n for n in spec.scenario_columns.numeric
    ]
    numeric += [schema.PROFILE_PREFIX + n for n in spec.profile_columns.numeric]
    for name in numeric:
        value = raw[name]
        value = tf.where(tf.math.is_nan(value), 0.0, value)
        parts.append(_signed_log(value)[:, None])
    parts.append(_calendar(raw[schema.CUTOFF], *training_cutoffs))
    return tf.concat(parts, axis=-1)


def fit_preprocessor(
    spec: DatasetSpec,
    records: tf.data.Dataset,
    splits: windows.Splits | None = None,
) -> Preprocessor:
    """Fits edges, vocabularies and means on training days only.

    Args:
        spec: The dataset spec; its tables must have been validated.
        records: The records made from these tables.
        splits: Cutoffs of each split, if not those of `make_splits`.

    Example:

    >>> fit_preprocessor(data.spec, data.records).known_scenarios
    ('booked', 'video', 'walk_in')
    """
    splits = splits or windows.make_splits(spec)
    last = windows.date_of(spec, windows.last_fit_day(spec, splits))
    rows = panel.read_panel(spec).filter(pl.col(spec.date) <= last)
    draft = Statistics(
        edges=_fit_edges(spec, rows),
        vocabularies=_fit_vocabularies(spec, rows),
        scenario_attributes=_scenario_attributes(spec, rows),
        dense_mean=[],
        dense_std=[],
        label_means=[],
        whole_labels=[],
        label_limits=_fit_limits(spec, rows),
        last_day=last.isoformat(),
        training_cutoffs=[
            (windows.date_of(spec, day) - windows.EPOCH).days
            for day in (splits.train[0], splits.train[-1])
        ],
        num_samples={
            name: input_pipeline.count_samples(
                records, spec, getattr(splits, name)
            )
            for name in windows.SPLIT_NAMES
        },
    )
    for name, count in draft.num_samples.items():
        if getattr(splits, name) and not count:
            raise windows.SplitError(
                f"The {name} split has no sample: no (entity, scenario) has a "
                f"non-zero {spec.activity or 'value'!r} in a lookback. Check "
                "`activity` and the split."
            )
    batches = input_pipeline.raw_batches(
        records, spec, splits.train, _FIT_BATCH
    )
    mean, std, label_means, whole_labels = _fit_moments(
        spec, batches, draft.training_cutoffs
    )
    _require_labels(spec, label_means, draft.num_samples["train"])
    return Preprocessor(
        spec,
        dataclasses.replace(
            draft,
            dense_mean=mean,
            dense_std=std,
            label_means=label_means,
            whole_labels=whole_labels,
        ),
    )


def label_unit(mean: float, whole: bool) -> float:
    """What labels of this mean, whole numbers or amounts, are multiples of.

    Example:

    >>> label_unit(0.2, whole=True), label_unit(0.25, whole=False)
    (1.0, 0.1)
    """
    return 1.0 if whole else min(1.0, _UNIT_SHARE * mean)


def quantile_edges(values: np.ndarray) -> list[float]:
    """Edges of up to `NUM_BUCKETS` buckets of the non-zero values.

    Of n values they are √n buckets at most, each of as many values. Were each
    of the few values of a scenario attribute a bucket of its own, it would be
    one more id, and tell nothing of a scenario that is new. Edges are values
    themselves, so that no bucket is one of which nothing is learned.

    Example:

    >>> quantile_edges(np.array([0.0, 1.0, 2.0, 4.0, 7.0]))
    [4.0]
    """
    # As raw features are: no edge may differ from its value by the rounding.
    values = values.astype(np.float32)
    values = values[np.isfinite(values) & (values != 0)]
    num_buckets = min(NUM_BUCKETS, math.isqrt(values.size))
    if num_buckets < 2:
        return []
    shares = np.arange(1, num_buckets) / num_buckets
    edges = np.unique(np.quantile(values, shares, method="higher"))
    # An edge at the smallest value would leave its bucket empty.
    return edges[edges > values.min()].tolist()


def _fit_edges(spec, rows):
    edges = {}
    for name in spec.value_columns:
        values = rows.select(name).filter(pl.col(name) != 0).collect()
        edges[name] = quantile_edges(values.to_series().to_numpy())
    if spec.cross_scenario_totals:
        columns = spec.behavior + spec.performance
        for name in columns:
            # Exact in float64, so that no order of rows changes them.
            total = rows.group_by(spec.entity, spec.date).agg(
                pl.col(name).cast(pl.Float64).sum()
            )
            values = total.select(name).collect().to_series().to_numpy()
            edges[schema.TOTAL_PREFIX + name] = quantile_edges(values)
    for table, key, columns, prefix in _attribute_tables(spec):
        table = _seen(table, rows, key)
        for name in columns.numeric:
            edges[prefix + name] = quantile_edges(table[name].to_numpy())
    return edges


def _fit_limits(spec, rows):
    columns = [pl.col(name) for name in {task.column for task in spec.tasks}]
    counts = rows.select(((x == 0) | (x == 1)).all() for x in columns)
    counts_days = counts.collect().row(0, named=True)
    limits = []
    for task in spec.tasks:
        limit = spec.horizon if counts_days[task.column] else None
        limits.append(1 if task.kind == "binary" else limit)
    return limits


def _fit_vocabularies(spec, rows):
    scenarios = rows.select(pl.col(spec.scenario).unique().sort()).collect()
    vocabularies = {schema.SCENARIO: scenarios.to_series().to_list()}
    for table, key, columns, prefix in _attribute_tables(spec):
        table = _seen(table, rows, key)
        for name in columns.categorical:
            values = table[name].unique().sort().to_list()
            vocabularies[prefix + name] = [v for v in values if v]
    return vocabularies


def _scenario_attributes(spec, rows):
    table = _seen(panel.read_scenarios(spec), rows, spec.scenario)
    table = table.sort(spec.scenario)
    return {
        schema.SCENARIO_PREFIX + name: table[name].to_list()
        for name in spec.scenario_columns.names
    }


def _attribute_tables(spec):
    yield (
        panel.read_profile(spec),
        spec.entity,
        spec.profile_columns,
        schema.PROFILE_PREFIX,
    )
    yield (
        panel.read_scenarios(spec),
        spec.scenario,
        spec.scenario_columns,
        schema.SCENARIO_PREFIX,
    )


def _seen(table, rows, key):
    """Attribute rows of ids that the training days hold."""
    return table.join(rows.select(key).unique().collect(), on=key, how="semi")


def _fit_moments(spec, batches, training_cutoffs):
    count = 0
    totals = None
    whole = True
    for rows in batches:
        dense = dense_features(spec, rows, training_cutoffs)
        dense = dense.numpy().astype(np.float64)
        labels = rows[windows.LABELS].numpy().astype(np.float64)
        part = [dense.sum(0), (dense**2).sum(0), labels.sum(0)]
        totals = (
            part
            if totals is None
            else [total + new for total, new in zip(totals, part, strict=True)]
        )
        whole &= (labels == np.round(labels)).all(0)
        count += len(dense)
    mean, square, label_mean = (total / count for total in totals)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    # A constant feature carries nothing; leave it at zero.
    std[std < 1e-6] = 1.0
    return mean.tolist(), std.tolist(), label_mean.tolist(), whole.tolist()


def _require_labels(spec, label_means, num_samples):
    """Refuses tasks of which training samples tell nothing."""
    problems = [
        validation.Problem(
            spec.panel.name,
            task.column,
            0,
            f"is zero in the label days of every training sample, so task "
            f"{task.name!r} cannot be learned; drop the task, take more "
            "cutoffs (a smaller `stride`), or give more data",
            f"{num_samples} samples",
        )
        for task, mean in zip(spec.tasks, label_means, strict=True)
        if not mean
    ]
    if problems:
        raise validation.DataValidationError(problems)


def _sequence_mask(days_observed, lookback):
    age = tf.range(lookback, 0, -1, dtype=tf.int64)
    return age[None, :] <= tf.cast(days_observed, tf.int64)[:, None]


def _observed(spec, raw):
    days = tf.cast(raw[schema.DAYS_OBSERVED], tf.float32)
    return tf.clip_by_value(days, 1.0, float(spec.lookback))


def _recent_scale(spec, observed):
    """From a sum of the last `horizon` days to a total of the horizon."""
    seen = min(spec.horizon, spec.lookback)
    return spec.horizon / tf.minimum(observed, float(seen))


def _signed_log(values):
    return tf.sign(values) * tf.math.log1p(tf.abs(values))


def _calendar(cutoff, first, last):
    """Place of the cutoff in its week and its year, on circles `[B, 4]`.

    Of the year's days those count that training has seen: another one is the
    nearest of them. With less than a year of cutoffs the place in the year is
    little else than how late it is, and what was learned of it would go on
    growing or falling for as long as the model is served.
    """
    days = tf.cast(cutoff, tf.float32)
    week = 2 * np.pi * tf.math.floormod(days, 7.0) / 7.0
    place = tf.math.floormod(days - first, _DAYS_OF_YEAR)
    if (span := float(last - first)) < _DAYS_OF_YEAR:
        is_nearer_to_last = place - span <= _DAYS_OF_YEAR - place
        nearest = tf.where(is_nearer_to_last, span, 0.0)
        place = tf.where(place <= span, place, nearest)
    place = tf.math.floormod(first + place, _DAYS_OF_YEAR)
    year = 2 * np.pi * place / _DAYS_OF_YEAR
    return tf.stack(
        [tf.sin(week), tf.cos(week), tf.sin(year), tf.cos(year)], axis=-1
    )
