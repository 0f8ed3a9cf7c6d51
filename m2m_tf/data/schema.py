"""Names, shapes and dtypes of everything that flows, in one place; no I/O.

Three forms of a sample, in the order in which it flows:

1. A *record* holds one entity's whole history, `[scenario, day, column]`.
2. *Raw features* are one (entity, scenario, cutoff): named tensors before
   discretisation. Serving signatures take exactly these.
3. *Model inputs* are what `Preprocessor` makes of raw features.
"""

import dataclasses

import numpy as np

from m2m_tf.config import DatasetSpec

# Keys of a record and, where they recur, of raw features.
ENTITY = "entity"
SCENARIO = "scenario"
CUTOFF = "cutoff"
VALUES = "values"
DAYS_OBSERVED = "days_observed"
BEHAVIOR_SEQUENCE = "behavior_sequence"
PERFORMANCE_SEQUENCE = "performance_sequence"
KNOWN_FUTURE = "known_future"
PROFILE_PREFIX = "profile_"
SCENARIO_PREFIX = "scenario_"
TOTAL_PREFIX = "total_"

# Keys of model inputs that have no raw namesake.
SEQUENCE_MASK = "sequence_mask"
SCENARIO_FEATURES = "scenario_features"
PROFILE_FEATURES = "profile_features"
DENSE_FEATURES = "dense_features"
LOG_HISTORY = "log_history"

# What is told of a task, in order; all but the mean need a distribution.
FORECAST_PARTS = ("mean", "median", "lower", "upper")

# What scenarios are called in scores that training has not seen, together.
UNKNOWN_SCENARIO = "(unknown)"
# Column of forecasts: whether there was any `activity` in the lookback.
RECENTLY_ACTIVE = "recently_active"
# Index that categorical values not seen in training fall to.
OUT_OF_VOCABULARY = 0


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Shape without the batch axis, and dtype (a NumPy name or `"string"`).

    Example:

    >>> raw_features(data.spec)["known_future"]
    Tensor(shape=(7, 1), dtype='float32')
    """

    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class ModelInputSpec:
    """Sizes that a model builder needs; made by `Preprocessor`.

    Args:
        lookback: Days of a sequence.
        horizon: Days predicted.
        task_names: Names of the outputs.
        behavior_sizes: Ids of each behavior column; may be empty.
        performance_sizes: Ids of each performance column.
        scenario_sizes: Ids of the scenario and of each of its attributes.
        profile_sizes: Ids of each profile attribute.
        known_future_sizes: Ids of each known-future column; may be empty.
        num_dense_features: Width of the dense features.
        num_history_levels: Levels of each task in `log_history`.
        label_limits: Task name → most that its labels can be, or None; a task
            that is left out has no bound.

    Example:

    >>> sizes = data.preprocessor.model_inputs
    >>> sizes.tensors()["log_history"]
    Tensor(shape=(3, 2), dtype='float32')
    """

    lookback: int
    horizon: int
    task_names: tuple[str, ...]
    behavior_sizes: tuple[int, ...]
    performance_sizes: tuple[int, ...]
    scenario_sizes: tuple[int, ...]
    profile_sizes: tuple[int, ...]
    known_future_sizes: tuple[int, ...]
    num_dense_features: int
    num_history_levels: int
    label_limits: dict[str, int | None] = dataclasses.field(
        default_factory=dict
    )

    def tensors(self) -> dict[str, Tensor]:
        """Name → shape and dtype of each model input."""
        tensors = {
            BEHAVIOR_SEQUENCE: Tensor(
                (self.lookback, len(self.behavior_sizes)), "int32"
            ),
            PERFORMANCE_SEQUENCE: Tensor(
                (self.lookback, len(self.performance_sizes)), "int32"
            ),
            # 1 or 0: MirroredStrategy adds inputs up, which booleans are not to
            # be.
            SEQUENCE_MASK: Tensor((self.lookback,), "int32"),
            SCENARIO_FEATURES: Tensor((len(self.scenario_sizes),), "int32"),
            PROFILE_FEATURES: Tensor((len(self.profile_sizes),), "int32"),
            DENSE_FEATURES: Tensor((self.num_dense_features,), "float32"),
            LOG_HISTORY: Tensor(
                (len(self.task_names), self.num_history_levels), "float32"
            ),
        }
        if not self.behavior_sizes:
            del tensors[BEHAVIOR_SEQUENCE]
        if not self.profile_sizes:
            del tensors[PROFILE_FEATURES]
        if self.known_future_sizes:
            tensors[KNOWN_FUTURE] = Tensor(
                (self.horizon, len(self.known_future_sizes)), "int32"
            )
        return tensors


def behavior_names(spec: DatasetSpec) -> tuple[str, ...]:
    """Columns of `behavior_sequence`, totals over scenarios last.

    Example:

    >>> behavior_names(data.spec)
    ('staff', 'open_hours', 'total_staff', 'total_open_hours')
    """
    return _with_totals(spec, spec.behavior)


def performance_names(spec: DatasetSpec) -> tuple[str, ...]:
    """Columns of `performance_sequence`, totals over scenarios last.

    Example:

    >>> performance_names(data.spec)[:3]
    ('visits', 'fees', 'open_days')
    """
    return _with_totals(spec, spec.performance)


def past_sequences(spec: DatasetSpec) -> dict[str, tuple[str, ...]]:
    """Sequence of the lookback → its columns; one without any is left out.

    Example:

    >>> list(past_sequences(data.spec))
    ['behavior_sequence', 'performance_sequence']
    """
    columns = {
        BEHAVIOR_SEQUENCE: behavior_names(spec),
        PERFORMANCE_SEQUENCE: performance_names(spec),
    }
    return {name: names for name, names in columns.items() if names}


def own_columns(spec: DatasetSpec) -> dict[str, tuple[str, ...]]:
    """Sequence → its columns of one scenario alone, totals left out.

    Example:

    >>> own_columns(data.spec)["behavior_sequence"]
    ('staff', 'open_hours')
    """
    columns = {
        BEHAVIOR_SEQUENCE: spec.behavior,
        PERFORMANCE_SEQUENCE: spec.performance,
    }
    columns[KNOWN_FUTURE] = spec.known_future
    return {name: tuple(names) for name, names in columns.items() if names}


def attribute_tensors(columns, prefix: str) -> dict[str, Tensor]:
    """Name → scalar tensor of each attribute column.

    Example:

    >>> attribute_tensors(data.spec.profile_columns, "profile_")["profile_town"]
    Tensor(shape=(), dtype='string')
    """
    return {
        prefix + name: Tensor(
            (), "string" if name in columns.categorical else "float32"
        )
        for name in columns.names
    }


def raw_features(spec: DatasetSpec) -> dict[str, Tensor]:
    """Name → shape and dtype of each raw feature of one sample.

    `cutoff` is in days since 1970-01-01; `days_observed` says how many of the
    sequences' last days the table covers (what lies before its first day is
    padding; before a young entity's first row lie zeros).

    Example:

    >>> raw_features(data.spec)["days_observed"]
    Tensor(shape=(), dtype='int64')
    """
    tensors = {
        SCENARIO: Tensor((), "string"),
        CUTOFF: Tensor((), "int64"),
        DAYS_OBSERVED: Tensor((), "int64"),
        **{
            name: Tensor((spec.lookback, len(columns)), "float32")
            for name, columns in past_sequences(spec).items()
        },
    }
    if spec.known_future:
        tensors[KNOWN_FUTURE] = Tensor(
            (spec.horizon, len(spec.known_future)), "float32"
        )
    return (
        tensors
        | attribute_tensors(spec.scenario_columns, SCENARIO_PREFIX)
        | attribute_tensors(spec.profile_columns, PROFILE_PREFIX)
    )


def record_tensors(spec: DatasetSpec) -> dict[str, Tensor]:
    """Name → shape and dtype of a record; None is its number of scenarios.

    Example:

    >>> record_tensors(data.spec)["values"]
    Tensor(shape=(None, 120, 6), dtype='float32')
    """
    scenario_tensors = attribute_tensors(spec.scenario_columns, SCENARIO_PREFIX)
    return {
        ENTITY: Tensor((), "string"),
        SCENARIO: Tensor((None,), "string"),
        VALUES: Tensor(
            (None, spec.num_days, len(spec.value_columns)), "float32"
        ),
        **{
            name: Tensor((None,), tensor.dtype)
            for name, tensor in scenario_tensors.items()
        },
        **attribute_tensors(spec.profile_columns, PROFILE_PREFIX),
    }


def output_name(task_name: str, part: str) -> str:
    """Name of what is told of a task; its mean bears the task's own name.

    Args:
        task_name: Name of the task.
        part: One of `FORECAST_PARTS`.

    Example:

    >>> output_name("clicks", "mean"), output_name("clicks", "upper")
    ('clicks', 'clicks_upper')
    """
    return task_name if part == "mean" else f"{task_name}_{part}"


def require_distinct_names(spec: DatasetSpec) -> None:
    """Refuses a spec in which two things would bear one name.

    Raises:
        ValueError: If a column is called as the total of another one is, or
            as the input that an attribute becomes, a task as another task's
            median or bound or as a column of keys, or a key is an attribute
            as well.

    Example:

    >>> require_distinct_names(data.spec)
    """
    for names in (spec.behavior, spec.performance):
        _refuse(
            "Columns of the panel",
            set(spec.value_columns)
            & set(_with_totals(spec, names)[len(names) :]),
            "as totals over scenarios are; rename them in the table and in "
            "the spec",
        )
    attributes = [
        prefix + name
        for prefix, columns in (
            (PROFILE_PREFIX, spec.profile_columns),
            (SCENARIO_PREFIX, spec.scenario_columns),
        )
        for name in columns.names
    ]
    _refuse(
        "Columns of the panel",
        set(spec.value_columns) & set(attributes),
        "as the inputs that attributes become; rename them in the table and "
        "in the spec",
    )
    keys = (spec.entity, spec.scenario, SCENARIO, CUTOFF, RECENTLY_ACTIVE)
    made = [
        output_name(task, part)
        for task in spec.task_names
        for part in FORECAST_PARTS[1:]
    ]
    _refuse(
        "Tasks",
        set(spec.task_names) & {*made, *keys},
        "as other columns of a forecast are; give them other names",
    )
    _refuse(
        "Keys",
        {spec.entity, spec.scenario} & {*made, CUTOFF, RECENTLY_ACTIVE},
        "as columns of a forecast are; rename them in the tables and in the "
        "spec",
    )
    for key, columns in (
        (spec.entity, spec.profile_columns),
        (spec.scenario, spec.scenario_columns),
    ):
        _refuse(
            "Attribute columns",
            {key} & set(columns.names),
            "as the key of their table is; leave them out",
        )


def _refuse(what, names, why):
    if names:
        raise ValueError(
            f"{what} may not be called {why}. Received: {sorted(names)}."
        )


def _with_totals(spec, names):
    if not spec.cross_scenario_totals:
        return names
    return names + tuple(TOTAL_PREFIX + name for name in names)


def as_text(values) -> np.ndarray:
    """Ids as TensorFlow gives them, bytes in UTF-8, as text.

    Example:

    >>> as_text([b"walk_in", "vídeo".encode()])
    array(['walk_in', 'vídeo'], dtype='<U7')
    """
    return np.strings.decode(np.asarray(values, dtype="S"), "utf-8")
