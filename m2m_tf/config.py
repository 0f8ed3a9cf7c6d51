"""Settings as frozen, validated dataclasses, in and out of YAML.

Three kinds: `DatasetSpec` says which column of the user's tables plays which
role, `ModelSettings` and `TrainingSettings` say what is trained and how, and
`RunConfig` joins them for `m2m-tf run`. pydantic checks types, names and
ranges, so a wrong key is reported with its place before any work starts.
"""

import dataclasses
import datetime
import difflib
import hashlib
import json
import os
import pathlib
import re
from typing import Annotated, Literal, get_args

import pydantic
import yaml
from pydantic import ConfigDict, Discriminator, Field, Tag
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid")
_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
_RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
# What a name must look like, for people.
_LOOKS = {
    _NAME: "letters from a to z, digits and _, and begin with no digit",
    _RUN_NAME: "letters from a to z, digits and _ . -, and begin with a letter "
    "or digit",
}
_DATA = (
    "must be the path of a spec, or a source as in {name: simulator} or "
    "{name: complete_journey}; for m2m-tf compare also {spec: spec.yaml, "
    "end: 2025-05-31}"
)
# What a value of the wrong kind must be, in words of YAML.
_MUST_BE = {
    "tuple_type": "must be a list, as in [a, b]",
    "dataclass_type": "must be a mapping, as in {key: value}",
    "dict_type": "must be a mapping, as in {key: value}",
    **dict.fromkeys(
        (
            "date_type",
            "date_from_datetime_parsing",
            "date_from_datetime_inexact",
        ),
        "must be a date, as in 2025-03-01",
    ),
    # Of `data` alone, the one setting that is told apart by a `name`.
    "union_tag_not_found": _DATA,
    "union_tag_invalid": _DATA,
    "model_attributes_type": _DATA,
}
_Name = Annotated[str, Field(pattern=_NAME)]
_RunName = Annotated[str, Field(pattern=_RUN_NAME)]
_Count = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(gt=0, lt=1)]
_NonNegative = Annotated[float, Field(ge=0)]
_Positive = Annotated[float, Field(gt=0)]
_Network = Literal[
    "m2m", "single_task", "shared_bottom", "cross_stitch", "mmoe", "mran", "cgc"
]
# Settings of a spec that say where a table lies.
_TABLES = ("panel", "profile", "scenarios")
_INPUT_NAME = re.compile(r"[A-Za-z0-9_./-]+")


class ConfigError(ValueError):
    """A YAML file or mapping that does not describe valid settings."""


@dataclass(frozen=True, config=_STRICT)
class Task:
    """One predicted quantity: a panel column over the `horizon` days.

    Args:
        name: Name of the model output.
        column: Performance column it is made from.
        kind: `"count"` predicts the column's total, at most `horizon` where
            the column was 0 or 1 on every training day and so counts days;
            `"binary"` whether it is above zero on any day (learned with the
            same Poisson loss, as the paper learns its active rate; at most 1).
        weight: The task's loss weight λ_t (eq. 19), or `"inverse_mean"` for
            1 / mean training label, which puts tasks of different units on
            one scale.

    Example:

    >>> Task("visits", column="visits", weight="inverse_mean").kind
    'count'
    """

    name: _Name
    column: str
    kind: Literal["count", "binary"] = "count"
    weight: Annotated[
        Annotated[_Positive, Tag("<number>")]
        | Annotated[Literal["inverse_mean"], Tag("<word>")],
        Discriminator(lambda x: "<word>" if isinstance(x, str) else "<number>"),
    ] = 1.0


@dataclass(frozen=True, config=_STRICT)
class AttributeColumns:
    """Attribute columns of the profile or scenario table, by kind.

    Values may be missing: empty in a CSV file, null or NaN. They are inputs
    of the exported model, whose names TensorFlow restricts: letters from a to
    z, digits, and the signs `_`, `.`, `-` and `/`.

    Args:
        categorical: Columns of names, each value with an embedding of its own.
        numeric: Columns of numbers, cut into buckets: of n ids √n at most,
            and 32.

    Example:

    >>> AttributeColumns(categorical=("town",), numeric=("beds",)).names
    ('town', 'beds')
    """

    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()

    def __post_init__(self):
        refused = [x for x in self.names if not _INPUT_NAME.fullmatch(x)]
        if refused:
            raise ValueError(
                "Attribute columns are inputs of the exported model, so their "
                "names may hold only letters from a to z, digits and the "
                "signs _ . - /; rename them in the table and in the spec. "
                f"Received: {refused}."
            )
        # TensorFlow tells inputs apart by their letters and digits.
        plain = tuple(re.sub("[./-]", "_", name) for name in self.names)
        _require_unique("attribute columns, with _ for other signs,", plain)

    @property
    def names(self) -> tuple[str, ...]:
        """Categorical then numeric column names."""
        return self.categorical + self.numeric


@dataclass(frozen=True, config=_STRICT)
class SplitShares:
    """Shares of the cutoffs, in time order (the paper's 8:1:1).

    Args:
        train: Share to train on, the first cutoffs.
        validation: Share that settings are chosen and trainings stopped by.
        test: Share that is scored, the last cutoffs.

    Example:

    >>> SplitShares(train=0.7, validation=0.15, test=0.15).validation
    0.15
    """

    train: _Share = 0.8
    validation: _Share = 0.1
    test: _Share = 0.1

    def __post_init__(self):
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(
                f"The split shares must add up to 1. Received: {total:g}."
            )


@dataclass(frozen=True, config=_STRICT)
class SplitDates:
    """Last label days of training and validation; the test follows.

    Args:
        train_end: Last day that a training label may count.
        validation_end: Last day that a validation label may count.

    Example:

    >>> import datetime
    >>> dates = datetime.date(2025, 5, 1), datetime.date(2025, 5, 31)
    >>> SplitDates(train_end=dates[0], validation_end=dates[1]).train_end.month
    5
    """

    train_end: datetime.date
    validation_end: datetime.date

    def __post_init__(self):
        if self.validation_end <= self.train_end:
            raise ValueError(
                "`validation_end` must be later than `train_end`. Received: "
                f"train_end={self.train_end}, "
                f"validation_end={self.validation_end}."
            )


def _kind_of_split(value):
    dates = {field.name for field in dataclasses.fields(SplitDates)}
    by_dates = isinstance(value, SplitDates) or (
        isinstance(value, dict) and dates & value.keys()
    )
    return "<dates>" if by_dates else "<shares>"


@dataclass(frozen=True, config=_STRICT)
class DatasetSpec:
    """Which column of the user's tables plays which role.

    Args:
        name: Name of the dataset.
        panel: Parquet or CSV file, or a folder of such files (one a day, for
            instance): one row per (entity, scenario, day); days without a row
            are days of zeros.
        entity: Column with the entity's (advertiser's) id.
        scenario: Column with the scenario's id.
        date: Column with the local calendar day.
        start: First day that the panel covers.
        end: Last day that the panel covers.
        behavior: Panel columns of what the entity did (X_b); `[]` if nothing of
            the kind is recorded.
        performance: Panel columns of what came of it (X_p).
        tasks: What is predicted.
        known_future: Panel columns whose value on day d was known on day d
            and concerns day d + horizon (bookings, price plans). The model
            sees the last `horizon` of them: one for each day it predicts, and
            never a row dated after the cutoff.
        profile: File or folder as well: one row per entity. None: nothing is
            known of entities but what the panel says.
        profile_columns: Attributes of the profile table (A).
        scenarios: File or folder as well: one row per scenario. None: nothing
            is known of scenarios but their ids; a new one is then forecast
            as any other new one.
        scenario_columns: Attributes of the scenario table (S).
        lookback: Days seen, up to and including the cutoff.
        horizon: Days predicted.
        stride: Days between two cutoffs.
        activity: Column that must be non-zero on some day of the lookback for
            an (entity, scenario, cutoff) to become a sample; None: any value
            column, on any day up to the cutoff.
        cross_scenario_totals: Whether sequences also carry the entity's
            totals over all scenarios.
        split: Shares of the cutoffs, or dates.
        description: A line for reports.

    Example:

    >>> spec = DatasetSpec.load("spec.yaml")
    >>> spec.task_names
    ('visits', 'fees', 'open')
    """

    name: _Name
    panel: pathlib.Path
    entity: str
    scenario: str
    date: str
    start: datetime.date
    end: datetime.date
    behavior: tuple[str, ...]
    performance: Annotated[tuple[str, ...], Field(min_length=1)]
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)]
    known_future: tuple[str, ...] = ()
    profile: pathlib.Path | None = None
    profile_columns: AttributeColumns = Field(default_factory=AttributeColumns)
    scenarios: pathlib.Path | None = None
    scenario_columns: AttributeColumns = Field(default_factory=AttributeColumns)
    lookback: _Count = 40
    horizon: _Count = 7
    stride: _Count = 7
    activity: str | None = None
    cross_scenario_totals: bool = True
    split: Annotated[
        Annotated[SplitShares, Tag("<shares>")]
        | Annotated[SplitDates, Tag("<dates>")],
        Discriminator(_kind_of_split),
    ] = SplitShares()
    description: str = ""

    def __post_init__(self):
        # It imports this module.
        from m2m_tf.data import schema

        keys = (self.entity, self.scenario, self.date)
        _require_unique("key and value columns", keys + self.value_columns)
        _require_unique("task names", self.task_names)
        schema.require_distinct_names(self)
        for table, columns in (
            ("profile", self.profile_columns),
            ("scenarios", self.scenario_columns),
        ):
            if columns.names and getattr(self, table) is None:
                raise ValueError(
                    f"Give `{table}`, the table that {list(columns.names)} "
                    f"stand in. Received: {table}=None."
                )
        for task in self.tasks:
            if task.column not in self.performance:
                raise ValueError(
                    f"Task {task.name!r}: column {task.column!r} must be one "
                    f"of `performance`. Received: {list(self.performance)}."
                )
        known = (None, *self.value_columns)
        if self.activity not in known:
            raise ValueError(
                f"`activity` must be one of {list(self.value_columns)}. "
                f"Received: activity={self.activity!r}."
            )
        if self.known_future and self.horizon > self.lookback:
            raise ValueError(
                "`known_future` needs lookback >= horizon. Received: "
                f"lookback={self.lookback}, horizon={self.horizon}."
            )
        if self.end < self.start:
            raise ValueError(
                "`end` must not be before `start`. Received: "
                f"start={self.start}, end={self.end}."
            )

    @property
    def value_columns(self) -> tuple[str, ...]:
        """Panel value columns, in the order in which records hold them."""
        return self.behavior + self.performance + self.known_future

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of the label matrix."""
        return tuple(task.name for task in self.tasks)

    @property
    def is_binary(self) -> tuple[bool, ...]:
        """Whether each task is binary, in the same order."""
        return tuple(task.kind == "binary" for task in self.tasks)

    @property
    def num_days(self) -> int:
        """Days from `start` to `end`, both counted."""
        return (self.end - self.start).days + 1

    @property
    def tables(self) -> dict[str, pathlib.Path]:
        """Where the tables lie, of those that there are."""
        paths = {name: getattr(self, name) for name in _TABLES}
        return {name: path for name, path in paths.items() if path}

    @property
    def identity(self) -> dict:
        """Plain values of all but where the tables lie."""
        values = to_values(self)
        for table in _TABLES:
            del values[table]
        return values

    def until(self, end: datetime.date) -> "DatasetSpec":
        """The spec that it was on an earlier day, for a backtest.

        Split dates move by as many days as `end` does.

        Args:
            end: Last day of the tables then.

        Raises:
            ConfigError: If the panel does not cover that day.

        Example:

        >>> spec = DatasetSpec.load("spec.yaml")
        >>> spec.until(datetime.date(2025, 6, 14)).num_days
        106
        """
        if not self.start <= end <= self.end:
            raise ConfigError(
                f"`end` of earlier tables must be a day from {self.start} to "
                f"{self.end}, which the spec gives. Received: {end}."
            )
        split = self.split
        if isinstance(split, SplitDates):
            moved = end - self.end
            split = SplitDates(
                split.train_end + moved, split.validation_end + moved
            )
        return dataclasses.replace(self, end=end, split=split)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "DatasetSpec":
        """Reads a spec; table paths are relative to the YAML file.

        Raises:
            ConfigError: If the file is absent or does not hold a valid spec.
        """
        path = pathlib.Path(path)
        values = _read(path, cls)
        for table in _TABLES:
            if isinstance(values.get(table), str):
                values[table] = str((path.parent / values[table]).resolve())
        return parse(cls, values, source=str(path))


@dataclass(frozen=True, config=_STRICT)
class ModelSettings:
    """Arguments of a model builder; the defaults are the paper's sizes.

    `k` (num_experts) and `L` (num_tower_layers) are not given in the paper.

    Args:
        name: Which model. Rivals of M2M take the settings that they have a use
            for.
        embedding_dim: Width of each column's embedding (paper: 16).
        num_heads: Attention heads of the transformer layer (paper: 2).
        pooling: How a sequence becomes a vector (eq. 5).
        use_transformer: False is the ablation "w/o TL".
        num_experts: k, expert views (eq. 6).
        view_dim: d_view, width of expert and task views (paper: 256).
        knowledge_dim: d, width of the scenario knowledge (paper: 64).
        num_meta_layers: K, layers of a meta unit (paper: 3).
        num_tower_layers: L, residual layers of the tower (eq. 18).
        meta_rank: Rank of the generated part of meta kernels; None: full.
        share_meta_across_tasks: One generator for all tasks.
        meta_attention: False is the ablation "w/o MA".
        meta_tower: False is the ablation "w/o MT".
        history_offset: Adds the entity's own recent level, with learned
            weights, to each log rate (beyond the paper).
        head_normalization: Layer normalisation before the heads: an entity
            far larger than most is forecast from its level, and what is
            added to that stays within bounds (beyond the paper).
        context_in_backbone: Feeds scenario and profile attributes to the
            experts as well as to the meta units (beyond the paper); without
            meta attention and meta tower they always get them.
        likelihood: `"poisson"`: the model gives means (eq. 20). `"hurdle"`:
            beside them a distribution with its own share of zeros and tail,
            from which medians and intervals come (beyond the paper).
        dropout: Share of the embedded features dropped in training; dense ones
            are never dropped.
        meta_l2: α for the generators' weights W_1 (eq. 19).
        l2: α for the other kernels W_2 (eq. 19).

    Example:

    >>> ModelSettings(name="mmoe", view_dim=64).num_experts
    4
    """

    name: _Network = "m2m"
    embedding_dim: _Count = 16
    num_heads: _Count = 2
    pooling: Literal["flatten", "mean", "last", "attention"] = "flatten"
    use_transformer: bool = True
    num_experts: _Count = 4
    view_dim: _Count = 256
    knowledge_dim: _Count = 64
    num_meta_layers: _Count = 3
    num_tower_layers: _Count = 2
    meta_rank: _Count | None = None
    share_meta_across_tasks: bool = True
    meta_attention: bool = True
    meta_tower: bool = True
    history_offset: bool = False
    head_normalization: bool = False
    context_in_backbone: bool = False
    likelihood: Literal["poisson", "hurdle"] = "poisson"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    meta_l2: _NonNegative = 1e-6
    l2: _NonNegative = 1e-6


@dataclass(frozen=True, config=_STRICT)
class TrainingSettings:
    """How a model is trained; the defaults are the paper's section 5.1.3.

    Args:
        batch_size: Samples of one step.
        epochs: Most epochs to train.
        learning_rate: Adam's first learning rate.
        schedule: `"constant"`, or `"cosine"` for a decay to zero over
            `epochs`.
        beta_2: Adam's β2.
        epsilon: Adam's ε.
        clip_value: Gradients are clipped to [-clip_value, clip_value].
        members: Networks trained one after another, each from a seed of its
            own; the model is their mean, see `models.ensemble`.
        patience: Epochs without a better validation loss before stopping.
        seed: Seeds initial weights, dropout and the order of samples.
        dtype_policy: `"float32"` or `"mixed_bfloat16"`, which is faster on a
            GPU, and on those CPUs alone that multiply faster in it.
        jit_compile: Compile the step with XLA. `"auto"` is Keras' choice:
            where there is a GPU. On a CPU nothing is gained by it, and
            bfloat16 is slow in it.
        shuffle_entities: Entities whose samples are shuffled together. Steps
            that draw from few of them learn worse. Three times as many are
            in memory, 4 bytes a day, column and scenario of theirs.
        profile_steps: Steps of the first epochs that are profiled for
            TensorBoard, 0 for none.

    Example:

    >>> TrainingSettings(epochs=4, schedule="cosine").learning_rate
    0.002
    """

    batch_size: _Count = 256
    epochs: _Count = 10
    learning_rate: _Positive = 2e-3
    schedule: Literal["constant", "cosine"] = "constant"
    beta_2: _Share = 0.998
    epsilon: _Positive = 1e-9
    clip_value: _Positive = 3.0
    members: _Count = 1
    patience: _Count = 3
    seed: Annotated[int, Field(ge=0, lt=2**28)] = 0
    dtype_policy: Literal["float32", "mixed_bfloat16"] = "float32"
    jit_compile: bool | Literal["auto"] = "auto"
    shuffle_entities: _Count = 16384
    profile_steps: Annotated[int, Field(ge=0)] = 0


MODEL_PRESETS = {
    "paper": ModelSettings(),
    "small": ModelSettings(
        embedding_dim=4,
        pooling="last",
        view_dim=64,
        knowledge_dim=16,
        num_meta_layers=1,
        meta_rank=16,
        share_meta_across_tasks=False,
        history_offset=True,
        context_in_backbone=True,
        likelihood="hurdle",
        dropout=0.4,
    ),
}
TRAINING_PRESETS = {
    "paper": TrainingSettings(),
    "small": TrainingSettings(
        batch_size=256,
        epochs=4,
        learning_rate=2e-3,
        schedule="cosine",
        # One training alone is 1 % worse on Complete Journey's validation
        # split, and every seed differently.
        members=3,
        # Compiling takes longer than it saves in so few steps.
        jit_compile=False,
    ),
}


@dataclass(frozen=True, config=_STRICT)
class CompleteJourneySource:
    """Tables of the demo, see `data.sources.complete_journey`.

    Args:
        name: Tells sources apart.
        bookings: Whether placements are known a week ahead.
        end: Last day of the tables, for an earlier time fold.

    Example:

    >>> CompleteJourneySource("complete_journey", bookings=False).bookings
    False
    """

    name: Literal["complete_journey"]
    bookings: bool = True
    end: Annotated[
        datetime.date | None,
        Field(ge=datetime.date(2017, 6, 1), le=datetime.date(2017, 12, 31)),
    ] = None


@dataclass(frozen=True, config=_STRICT)
class SimulatorSource:
    """Tables of simulated advertisers, see `data.sources.simulator`.

    Args:
        name: Tells sources apart.
        advertisers: Number of advertisers.
        days: Days simulated.
        seed: Seeds the advertisers.
        scenario_dependence: False gives all scenarios the same mechanisms.
        mechanism_strength: How much behaviours move log rates.
        scenarios: Number of scenarios, six at least.

    Example:

    >>> SimulatorSource("simulator", advertisers=500, days=140).advertisers
    500
    """

    name: Literal["simulator"]
    advertisers: _Count = 2500
    days: Annotated[int, Field(ge=140)] = 240
    seed: Annotated[int, Field(ge=0)] = 0
    scenario_dependence: bool = True
    mechanism_strength: _NonNegative = 0.5
    scenarios: Annotated[int, Field(ge=6)] = 6


@dataclass(frozen=True, config=_STRICT)
class EarlierTables:
    """Tables of a spec as they were on an earlier day, for a backtest.

    Args:
        spec: Path of the spec, relative to the config file.
        end: Last day of the tables then; later rows are passed over. Split
            dates of the spec move by as many days.

    Example:

    >>> EarlierTables("spec.yaml", datetime.date(2025, 6, 14)).end.month
    6
    """

    spec: pathlib.Path
    end: datetime.date


def _kind_of_data(value):
    if isinstance(value, (str, os.PathLike)):
        return "<path>"
    if isinstance(value, EarlierTables) or (
        isinstance(value, dict) and "spec" in value
    ):
        return "<earlier>"
    return "<source>"


# Tables that a run makes itself before it validates them.
SourceSettings = Annotated[
    CompleteJourneySource | SimulatorSource, Field(discriminator="name")
]
# Those, or the spec of tables that are there.
_Data = Annotated[
    Annotated[SourceSettings, Tag("<source>")]
    | Annotated[pathlib.Path, Tag("<path>")],
    Discriminator(_kind_of_data),
]
# Those of a study.
_StudyData = Annotated[
    Annotated[SourceSettings, Tag("<source>")]
    | Annotated[EarlierTables, Tag("<earlier>")]
    | Annotated[pathlib.Path, Tag("<path>")],
    Discriminator(_kind_of_data),
]


@dataclass(frozen=True, config=_STRICT)
class EvaluationSettings:
    """What the evaluation shows beside the model and the naive forecasts.

    Args:
        lightgbm: Whether LightGBM is fitted and scored as well; needs the
            extra `lightgbm`.

    Example:

    >>> EvaluationSettings(lightgbm=True).lightgbm
    True
    """

    lightgbm: bool = False


@dataclass(frozen=True, config=_STRICT)
class PushSettings:
    """When a model may be served, see `serving.pushing.push`.

    Args:
        tolerance: How much worse than a naive forecast, or than the version
            that is served, a slice may be, as a share: of its score, or of a
            tenth of its mean label if that is more.
        min_samples: Test samples below which a scenario is judged together
            with the others that have so few, or not at all if it is alone.
        keep: Versions kept in the served folder.
        new_scenarios: Whether the model may know scenarios that the served
            version does not. They change the shapes of
            `predict_all_scenarios`: set it if its callers read them from the
            metadata, or if there are none.

    Example:

    >>> PushSettings(tolerance=0.5).tolerance
    0.5
    """

    tolerance: _NonNegative = 0.1
    min_samples: _Count = 100
    keep: _Count = 5
    new_scenarios: bool = False


@dataclass(frozen=True, config=_STRICT)
class RunConfig:
    """One run: tables → M2M → evaluated SavedModel.

    Args:
        name: The run's folder is `runs/<name>`.
        data: Path of a dataset spec (relative to the config file), or a
            source whose tables the run makes itself.
        model: Model settings.
        training: Training settings.
        evaluation: Evaluation settings.
        refit: Whether the model that is exported is trained anew, after the
            evaluation, on all days: those of the validation and the test
            split as well. Takes as long as training did.
        push: When the model may be served.

    Example:

    >>> config = RunConfig("trial", data={"name": "simulator", "days": 200})
    >>> config.data.advertisers
    2500
    """

    name: _RunName
    data: _Data
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    refit: bool = False
    push: PushSettings = PushSettings()

    @classmethod
    def load(cls, path: str | os.PathLike) -> "RunConfig":
        """Reads a run config; `preset` under model and training is a base.

        Raises:
            ConfigError: If the file is absent or not a valid config.
        """
        path = pathlib.Path(path)
        values = _read_with_presets(path, cls)
        if "data" in values:
            values["data"] = from_folder(path, values["data"])
        return parse(cls, values, source=str(path))


NETWORKS = {name: {"name": name} for name in get_args(_Network)}
# The paper's ablations (section 5.3.1).
ABLATIONS = {
    "m2m_without_meta_tower": {"name": "m2m", "meta_tower": False},
    "m2m_without_meta_attention": {"name": "m2m", "meta_attention": False},
    "m2m_without_transformer": {"name": "m2m", "use_transformer": False},
}
# Which scenarios LightGBM's trees are fitted on.
TREES = {
    "lightgbm": {"per_scenario": False},
    "lightgbm_per_scenario": {"per_scenario": True},
}


@dataclass(frozen=True, config=_STRICT)
class StudyConfig:
    """A comparison: every model × seed on every dataset, `m2m-tf compare`.

    Args:
        name: The results are `<results>/<name>.md` and `<results>/<name>/`.
        data: Dataset label → spec path (relative to the config file), earlier
            tables of a spec, or a source.
        model: Settings that all networks share.
        training: The same of training.
        models: Which take part, all by default: the networks `m2m`,
            `single_task`, `shared_bottom`, `cross_stitch`, `mmoe`, `mran`,
            `cgc`; M2M without a part, `m2m_without_meta_tower`,
            `m2m_without_meta_attention`, `m2m_without_transformer`; the trees
            `lightgbm` and `lightgbm_per_scenario`. Naive forecasts, and the
            true rates of simulated data, always do.
        seeds: Seeds of the runs that are scored on the test split, 0 to 4 by
            default.
        search: Changes of `model` and `training`, each tried once by every
            network on the first dataset with the first seed; its best by
            Poisson deviance / mean label of the validation split, the mean
            over cells, is used for all its runs.
        tree_search: The same for LightGBM's parameters.
        sweeps: Name of a model setting, or `lookback` → values that M2M is
            trained with by `--sweep`. Lookbacks are scored on the samples that
            are active in the shortest of them.

    Example:

    >>> changes = {"model": {"num_experts": 8}}
    >>> study = StudyConfig("trial", {"mine": "spec.yaml"}, search=(changes,))
    >>> model, training = study.changed(study.search[0])
    >>> model.num_experts
    8
    """

    name: _RunName
    data: Annotated[dict[_RunName, _StudyData], Field(min_length=1)]
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    models: Annotated[tuple[str, ...], Field(min_length=1)] = (
        *NETWORKS,
        *ABLATIONS,
        *TREES,
    )
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2, 3, 4)
    search: tuple[dict, ...] = ()
    tree_search: tuple[dict, ...] = ()
    sweeps: dict[str, tuple[bool | int | float | str | None, ...]] = Field(
        default_factory=dict
    )

    def __post_init__(self):
        known = [*NETWORKS, *ABLATIONS, *TREES]
        unknown = [name for name in self.models if name not in known]
        if unknown:
            raise ValueError(
                f"`models` must be some of {known}. Received: {unknown}."
            )
        _require_unique("models", self.models)
        _require_unique("seeds", self.seeds)
        fields = {field.name for field in dataclasses.fields(ModelSettings)}
        for name in self.sweeps:
            if name not in (fields | {"lookback"}) - {"name"}:
                raise ValueError(
                    "`sweeps` must name settings of M2M, or lookback; other "
                    f"models are for `models` to name. Received: {name!r}."
                )
            for value in self.sweeps[name]:
                self._check_swept(name, value)
        for changes in self.search:
            self.changed(changes)
            if "name" in changes.get("model", {}):
                raise ValueError(
                    "`search` changes settings of every model; `models` names "
                    f"them. Received: {changes}."
                )

    def _check_swept(self, name, value):
        if name != "lookback":
            self.changed({"model": {name: value}}, place="sweeps")
        elif type(value) is not int or value < 1:
            raise ValueError(
                "Values of `lookback` must be whole numbers, 1 at least. "
                f"Received: {value!r}."
            )

    def changed(
        self, changes: dict, place: str = "search"
    ) -> tuple[ModelSettings, TrainingSettings]:
        """Model and training settings with some of them replaced.

        Args:
            changes: `{"model": {...}, "training": {...}}`, both optional.
            place: Key of the config that they stand at, for errors.

        Raises:
            ConfigError: If a changed setting does not exist or is wrong.
        """
        unknown = sorted(set(changes) - {"model", "training"})
        if not unknown:
            unknown = [x for x in changes.values() if not isinstance(x, dict)]
        if unknown:
            raise ConfigError(
                f"`{place}` holds changes of `model` and `training`, each a "
                f"mapping. Received: {unknown}."
            )
        return tuple(
            parse(
                type(settings),
                to_values(settings) | changes.get(key, {}),
                f"{place}: {key}",
            )
            for key, settings in (
                ("model", self.model),
                ("training", self.training),
            )
        )

    @classmethod
    def load(cls, path: str | os.PathLike) -> "StudyConfig":
        """Reads a study config; presets as in `RunConfig.load`.

        Raises:
            ConfigError: If the file is absent or not a valid config.
        """
        path = pathlib.Path(path)
        values = _read_with_presets(path, cls)
        if isinstance(values.get("data"), dict):
            values["data"] = {
                label: from_folder(path, data)
                for label, data in values["data"].items()
            }
        return parse(cls, values, source=str(path))


# What each kind of file is for.
_FILES = {
    DatasetSpec: "the spec of a dataset, which `m2m-tf validate` takes and "
    "`data` of a config names",
    RunConfig: "the config of a run, which `m2m-tf run` takes",
    StudyConfig: "the config of a study, which `m2m-tf compare` takes",
}


def _read(path, cls):
    """The values of a file that is to hold a `cls`."""
    values = read_yaml(path)

    def number_of_others(kind):
        names = {field.name for field in dataclasses.fields(kind)}
        return len(values.keys() - names)

    # One key alone may as well be misspelled.
    if number_of_others(cls) > 1:
        for kind, what in _FILES.items():
            if not number_of_others(kind):
                raise ConfigError(
                    f"{path}: is {what}. Wanted: {_FILES[cls].split(',')[0]}."
                )
    return values


def _read_with_presets(path, cls):
    values = _read(path, cls)
    for key, presets in (
        ("model", MODEL_PRESETS),
        ("training", TRAINING_PRESETS),
    ):
        values[key] = _with_preset(
            values.get(key, {}), presets, f"{path}: {key}"
        )
    return values


def from_folder(path: str | os.PathLike, data):
    """A spec's path is relative to the file that names it.

    Args:
        path: The file.
        data: A path, earlier tables of a spec, or a source.

    Example:

    >>> from_folder("configs/demo.yaml", "/tables/spec.yaml")
    '/tables/spec.yaml'
    """
    if isinstance(data, str):
        return str((pathlib.Path(path).parent / data).resolve())
    if isinstance(data, dict) and isinstance(data.get("spec"), str):
        return data | {"spec": from_folder(path, data["spec"])}
    return data


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would take the last."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} stands there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def read_yaml(path: str | os.PathLike) -> dict:
    """Reads a YAML mapping.

    Raises:
        ConfigError: If the file is absent, not YAML, or not a mapping.

    Example:

    >>> read_yaml("spec.yaml")["entity"]
    'clinic'
    """
    path = pathlib.Path(path)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}). Give the path of a "
            "YAML file."
        ) from error
    # A ValueError is of bytes that are no text, or a date like 2025-13-01.
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: must hold `key: value` lines. Received: "
            f"{type(values).__name__}."
        )
    return values


def parse(cls, values: dict, source: str = "settings"):
    """Makes a settings object from plain values, or says what is wrong.

    Raises:
        ConfigError: One line for each wrong, missing or unknown key.

    Example:

    >>> parse(TrainingSettings, {"epochs": 4}).epochs
    4
    """
    try:
        return pydantic.TypeAdapter(cls).validate_python(values)
    except pydantic.ValidationError as error:
        problems = error.errors()
        places = [problem["loc"] for problem in problems]
        lines = [
            _problem(problem)
            for problem in problems
            # A list whose items are all refused is told to be too short, too.
            if problem["type"] != "too_short"
            or not any(
                len(place) > len(problem["loc"])
                and place[: len(problem["loc"])] == problem["loc"]
                for place in places
            )
        ]
        raise ConfigError("\n".join([f"{source}:", *lines])) from error


def to_values(settings) -> dict:
    """Plain JSON values of a settings object, the inverse of `parse`.

    Example:

    >>> to_values(TrainingSettings(epochs=4))["epochs"]
    4
    """
    return pydantic.TypeAdapter(type(settings)).dump_python(
        settings, mode="json"
    )


def fingerprint(*parts) -> str:
    """Short hash of plain values and settings, to tell what has changed.

    Example:

    >>> fingerprint({"epochs": 4}) == fingerprint({"epochs": 5})
    False
    """
    plain = [
        to_values(part) if dataclasses.is_dataclass(part) else part
        for part in parts
    ]
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _with_preset(values, presets, place):
    if not isinstance(values, dict):
        raise ConfigError(f"{place}: must be a mapping. Received: {values!r}.")
    preset = values.get("preset", "paper")
    if preset not in list(presets):
        raise ConfigError(
            f"{place}.preset: must be one of {sorted(presets)}. "
            f"Received: {preset!r}."
        )
    changes = {key: val for key, val in values.items() if key != "preset"}
    return to_values(presets[preset]) | changes


def _require_unique(what, names):
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"The {what} must differ; give each name once. "
            f"Received twice: {repeated}."
        )


def _meant(key):
    """What to do about a key that is not a setting where it stands."""
    settings = {
        field.name
        for kind in list(globals().values())
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
        for field in dataclasses.fields(kind)
    }
    if key in settings:
        return "it is one elsewhere, look for it in docs/settings.md."
    plain = key.lower().replace("-", "_")
    if near := difflib.get_close_matches(plain, sorted(settings), n=1):
        return f"is {near[0]} meant?"
    return "check the spelling."


def _problem(problem):
    # Not the names of a union's parts, which nobody has written.
    parts = [str(part) for part in problem["loc"]]
    place = ".".join(x for x in parts if not x.startswith("<")) or "(top level)"
    if problem["type"] == "missing":
        return f"  {place}: is missing."
    if problem["type"] == "unexpected_keyword_argument":
        return f"  {place}: is not a setting; {_meant(parts[-1])}"
    message = problem["msg"].removeprefix("Value error, ")
    message = _MUST_BE.get(problem["type"], message)
    if problem["type"] == "string_pattern_mismatch":
        message = f"may hold only {_LOOKS[problem['ctx']['pattern']]}"
    received = repr(problem["input"])
    if problem["type"] == "value_error" or len(received) > 80:
        return f"  {place}: {message}"
    return f"  {place}: {message}. Received: {received}."
