"""Training by plain `compile` and `fit`, safe to kill and run again."""

import contextlib
import dataclasses
import itertools
import math
import os
import pathlib
import statistics
import time
from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from m2m_tf import files, tensorboard
from m2m_tf.config import (
    ModelSettings,
    TrainingSettings,
    fingerprint,
    to_values,
)
from m2m_tf.data.dataset import ForecastData
from m2m_tf.forecast import has_shape
from m2m_tf.losses import joint_hurdle, joint_poisson
from m2m_tf.metrics import CellMetrics
from m2m_tf.models import ForecastModel, build_model, ensemble
from m2m_tf.models.ensemble import MEMBER_PREFIX
from m2m_tf.optimizers import FusedAdam

MODEL_FILE = "model.keras"
HISTORY_FILE = "history.json"
_SETTINGS_FILE = "settings.json"
_BACKUP_FOLDER = "backup"
_BACKUPS = "[0-9]*.weights.h5"
_MEND = (
    "Lower `learning_rate`, set `head_normalization` of the model, or the "
    "tasks' `weight` to inverse_mean"
)


class TrainingError(RuntimeError):
    """Training that gave no usable model."""


def make_optimizer(
    settings: TrainingSettings, steps: int
) -> keras.optimizers.Optimizer:
    """Adam with the paper's β2, ε and clipping (section 5.1.3).

    Args:
        settings: Training settings.
        steps: Steps of the whole training, over which a cosine decays.

    Example:

    >>> make_optimizer(TrainingSettings(), steps=1000).beta_2
    0.998
    """
    learning_rate = settings.learning_rate
    if settings.schedule == "cosine":
        learning_rate = keras.optimizers.schedules.CosineDecay(
            learning_rate, steps
        )
    return FusedAdam(
        learning_rate,
        beta_2=settings.beta_2,
        epsilon=settings.epsilon,
        clipvalue=settings.clip_value,
    )


def compile_model(
    model: ForecastModel,
    data: ForecastData,
    settings: TrainingSettings,
    steps: int,
) -> None:
    """Compiles with the joint loss of the model's heads and cell metrics.

    Example:

    >>> compile_model(model, data, TrainingSettings(), steps=1000)
    >>> model.compiled
    True
    """
    names = data.spec.task_names
    weights = data.preprocessor.task_weights()
    outputs = model.output
    model.cell_metrics = CellMetrics(
        names, len(data.preprocessor.scenario_names)
    )
    model.compile(
        optimizer=make_optimizer(settings, steps),
        loss=joint_hurdle(
            weights,
            data.preprocessor.label_units(),
            data.preprocessor.label_limits(),
        )
        if has_shape(outputs[names[0]])
        else joint_poisson(names),
        loss_weights=weights,
        jit_compile=settings.jit_compile,
    )
    # The optimizer's variables and the means that losses are told by. Keras
    # makes them in the first step, which TensorFlow then traces once more
    # without, and that takes as long again.
    model.optimizer.build(model.trainable_variables)
    model.compute_loss(
        y={name: tf.zeros((1, 1)) for name in names},
        y_pred={name: tf.zeros((1, outputs[name].shape[-1])) for name in names},
    )


def train(
    data: ForecastData,
    model_settings: ModelSettings,
    settings: TrainingSettings,
    folder: str | os.PathLike,
) -> list[dict]:
    """Trains a model and leaves the best one by validation loss.

    Run again after a kill, it goes on from the last finished epoch and ends
    with the weights of an uninterrupted run: the order of samples and the
    dropped units depend on seed and epoch alone, and the backup holds weights
    and optimizer.

    Args:
        data: Prepared data.
        model_settings: What is trained.
        settings: How it is trained.
        folder: Gets `model.keras`, `history.json`, `settings.json` and
            TensorBoard logs; of an ensemble each member also has a folder of
            its own with these.

    Returns:
        One dict of losses and metrics per epoch; of an ensemble the members'
        means.

    Raises:
        TrainingError: If no epoch gave a finite loss, or `folder` holds a
            training by other settings or of other data.

    Example:

    >>> small = ModelSettings(view_dim=8, knowledge_dim=4, num_meta_layers=1)
    >>> short = TrainingSettings(epochs=2)
    >>> history = train(data, small, short, "runs/first")
    Epoch 1/2
    ...
    >>> len(history)
    2
    """
    epochs = [settings.epochs] * settings.members
    return _train(data, model_settings, settings, pathlib.Path(folder), epochs)


def refit(
    data: ForecastData,
    model_settings: ModelSettings,
    settings: TrainingSettings,
    trained: str | os.PathLike,
    folder: str | os.PathLike,
) -> list[dict]:
    """Trains a judged model anew, on the days that it was judged by as well.

    A model that is chosen and scored on the last weeks has never learned from
    them. This one has seen them, so no score of its own can be had: it is
    trained by the same settings, each network for as many epochs as were best
    for the one before it, its learning rate decaying as it did then. It can be
    killed and run again, as `train` can.

    Args:
        data: The same data with `holdout=False`.
        model_settings: What `train` has trained.
        settings: How.
        trained: Folder that `train` has left.
        folder: Gets what `train` leaves.

    Returns:
        As `train` does, without validation scores.

    Raises:
        ValueError: If `data` holds days out.
        FileNotFoundError: If `trained` holds no training.
        TrainingError: If that one is not finished, or as `train`.

    Example:

    >>> small = ModelSettings(view_dim=8, knowledge_dim=4, num_meta_layers=1)
    >>> short = TrainingSettings(epochs=2)
    >>> history = train(data, small, short, "runs/second")
    Epoch 1/2
    ...
    >>> all_days = ForecastData.prepare(data.spec, "records", holdout=False)
    >>> history = refit(all_days, small, short, "runs/second", "runs/refit")
    Epoch 1/...
    """
    if data.splits.validation:
        raise ValueError(
            "A refit is trained on all days, but `data` holds some out. "
            "Prepare it with `holdout=False`. Received: data with "
            f"{len(data.splits.validation)} validation cutoffs"
        )
    places = _places(pathlib.Path(trained), settings.members)
    epochs = [1 + _best_of_finished(place, settings) for place in places]
    return _train(data, model_settings, settings, pathlib.Path(folder), epochs)


def find_concerns(history: Sequence[Mapping[str, float]]) -> list[str]:
    """What speaks against a training that has left a model, in sentences.

    Example:

    >>> history = [{"loss": 3.0}, {"loss": math.inf}]
    >>> for concern in find_concerns(history):
    ...     print(concern)
    The loss of epoch 2 was not finite, which ended the training; the model ...
    """
    best = best_epoch(history)
    # The mean history of an ensemble may have no finite epoch, though each
    # member has one; its members have told of themselves.
    if best is None or math.isfinite(history[-1]["loss"]):
        return []
    return [
        f"The loss of epoch {len(history)} was not finite, which ended the "
        f"training; the model is that of epoch {1 + best}. {_MEND}."
    ]


def best_epoch(history: Sequence[Mapping[str, float]]) -> int | None:
    """Index of the epoch with the lowest finite validation loss.

    Without validation it is the last one with a finite loss.

    Example:

    >>> best_epoch([{"val_loss": 3.0}, {"val_loss": 2.0}, {"val_loss": 4.0}])
    1
    """
    scores = {}
    for index, row in enumerate(history):
        if math.isfinite(row.get("val_loss", row.get("loss"))):
            scores[index] = row.get("val_loss", -index)
    return min(scores, key=scores.__getitem__, default=None)


def _best_of_finished(folder, settings):
    history = files.read_json(folder / HISTORY_FILE)
    best = best_epoch(history)
    if (
        best is None
        or any((folder / _BACKUP_FOLDER).glob(_BACKUPS))
        or not _has_ended(history, settings.epochs, settings.patience)
    ):
        raise TrainingError(
            f"{folder}: holds no finished training. Train it to its end first."
        )
    return best


def _has_ended(history, epochs, patience):
    """Whether nothing is left to train: no epoch, no hope or no patience."""
    if not history:
        return epochs <= 0
    best = best_epoch(history)
    waited = len(history) - 1 - (-1 if best is None else best)
    return (
        len(history) >= epochs
        or waited >= patience
        or not math.isfinite(history[-1]["loss"])
    )


def _places(folder, members):
    """Folders of the networks that a model is made of."""
    if members == 1:
        return [folder]
    return [folder / f"{MEMBER_PREFIX}{index}" for index in range(members)]


def _train(data, model_settings, settings, folder, epochs):
    """`train`, each network for a number of epochs of its own."""
    _claim(folder, data, model_settings, settings, epochs)
    if settings.members == 1:
        return _train_network(data, model_settings, settings, folder, epochs[0])
    places = _places(folder, settings.members)
    for index, place in enumerate(places):
        if place.exists():
            continue
        seed = settings.seed * settings.members + index
        one = dataclasses.replace(settings, members=1, seed=seed)
        unfinished = folder / f"unfinished_{index}"
        _train_network(data, model_settings, one, unfinished, epochs[index])
        unfinished.rename(place)
    history = _mean_history(
        [files.read_json(place / HISTORY_FILE) for place in places]
    )
    model = ensemble([load_model(place) for place in places])
    files.require_room(folder / MODEL_FILE, _num_bytes(model.variables))
    with files.replacing(folder / MODEL_FILE) as path:
        model.save(path)
    files.write_json(folder / HISTORY_FILE, history)
    return history


def _claim(folder, data, model_settings, settings, epochs):
    """Notes what is trained in a folder, unless it is something else's."""
    ours = {
        "data": fingerprint(
            data.spec.identity,
            dataclasses.asdict(data.preprocessor.statistics),
        ),
        "model": to_values(model_settings),
        "training": to_values(settings),
        "epochs": epochs,
    }
    path = folder / _SETTINGS_FILE
    theirs = files.read_json(path) if path.exists() else {}
    if theirs != ours and (theirs or (folder / HISTORY_FILE).exists()):
        differing = [key for key in ours if ours[key] != theirs.get(key)]
        raise TrainingError(
            f"{folder}: holds another training. Give another folder, or "
            f"remove this one. It differs in: {', '.join(differing)}."
        )
    files.write_json(path, ours)


def _train_network(data, model_settings, settings, folder, epochs):
    folder.mkdir(parents=True, exist_ok=True)
    _clear_session()
    # TensorFlow compares a shuffle's seed with 0 in Python when the global
    # seed is 0, which fails for the tensor that the pipeline's epochs give.
    keras.utils.set_random_seed(settings.seed + 1)
    epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
    batches = data.train(
        settings.batch_size, settings.shuffle_entities, settings.seed, epoch
    )
    with _dtype_policy(settings.dtype_policy):
        model = build_model(
            data.preprocessor.model_inputs,
            model_settings,
            data.preprocessor.statistics.label_means,
        )
    steps = int(batches.cardinality())
    compile_model(model, data, settings, steps * settings.epochs)
    record = RunRecord(folder, settings.patience, epoch, steps)
    record.restore(model, epochs)
    if not record.is_finished(epochs):
        record.require_room(model)
        logs = tensorboard.RunLogs(
            data,
            tensorboard.setting_values(data, model_settings, settings),
            record,
            folder / tensorboard.LOGS_FOLDER,
            settings.profile_steps,
        )
        with contextlib.closing(logs):
            model.fit(
                batches,
                validation_data=(
                    data.validation(settings.batch_size)
                    if data.splits.validation
                    else None
                ),
                epochs=epochs,
                initial_epoch=record.epochs_done,
                # tf.data shuffles; the argument only concerns arrays.
                shuffle=False,
                callbacks=[keras.callbacks.TerminateOnNaN(), record, logs],
            )
    if not (folder / MODEL_FILE).exists():
        raise TrainingError(
            f"No epoch gave a finite loss. {_MEND}. Received: "
            f"learning_rate={settings.learning_rate}"
        )
    for concern in find_concerns(record.history):
        print(f"mind: {concern}")
    record.discard_backup()
    return record.history


def _mean_history(histories):
    """Means over the members that have trained an epoch, row by row."""
    rows = itertools.zip_longest(*histories)
    rows = [[row for row in epoch if row is not None] for epoch in rows]
    return [
        {key: statistics.fmean(row[key] for row in epoch) for key in epoch[0]}
        | {"epoch": index}
        for index, epoch in enumerate(rows, start=1)
    ]


def load_model(folder: str | os.PathLike) -> ForecastModel:
    """Loads the best model that `train` has left in `folder`.

    Example:

    >>> load_model("runs/clinics").name
    'm2m'
    """
    return keras.saving.load_model(pathlib.Path(folder) / MODEL_FILE)


class RunRecord(keras.callbacks.Callback):
    """History, best model, early stopping and backup of one run.

    One callback, because what a resumed run does next (is this epoch the
    best, has it waited long enough) follows from the history alone. Each file
    is written whole or not at all, history first: an epoch whose backup is
    missing is trained again and its row replaced by the same numbers.

    Args:
        folder: Folder of the run.
        patience: Epochs without a better validation loss before stopping.
        epoch: Variable that the input pipeline reads.
        steps: Steps of an epoch.

    Example:

    >>> epoch = tf.Variable(0, dtype=tf.int64)
    >>> record = RunRecord(pathlib.Path("runs/first"), 3, epoch, steps=100)
    >>> record.is_finished(epochs=10)
    False
    """

    def __init__(self, folder, patience, epoch, steps):
        super().__init__()
        self._folder = folder
        self._patience = patience
        self._epoch = epoch
        self._steps = steps
        self._started = None
        self.epochs_done = 0
        self.history = []

    def restore(self, model: ForecastModel, epochs: int) -> None:
        """Loads the newest backup into a compiled model, if there is one.

        A run that has ended has none any more, and its history is whole.
        """
        backups = sorted(self._backups())
        if not backups:
            path = self._folder / HISTORY_FILE
            rows = files.read_json(path) if path.exists() else []
            if rows and _has_ended(rows, epochs, self._patience):
                self.history, self.epochs_done = rows, len(rows)
            return
        model.load_weights(backups[-1])
        self.epochs_done = int(backups[-1].name.split(".")[0])
        rows = files.read_json(self._folder / HISTORY_FILE)
        self.history = rows[: self.epochs_done]

    def is_finished(self, epochs: int) -> bool:
        """Whether a restored run has nothing left to train."""
        return _has_ended(self.history, epochs, self._patience)

    def require_room(self, model: ForecastModel) -> None:
        """Refuses to go on where an epoch could not be written.

        On a full disk HDF5, which Keras writes weights by, ends the process
        with a segmentation fault.

        Raises:
            OSError: If the disk has no room for the model and its backup.
        """
        written = [*model.variables, *model.variables]
        written += model.optimizer.variables
        files.require_room(self._folder / MODEL_FILE, _num_bytes(written))

    def discard_backup(self) -> None:
        """Removes the backup of a run that has ended."""
        for path in self._backups():
            path.unlink()

    def best_epoch(self) -> int | None:
        """Index of the epoch whose model is kept, see `best_epoch`."""
        return best_epoch(self.history)

    def on_epoch_begin(self, epoch, logs=None):
        del logs
        self._epoch.assign(epoch)
        for variable in self.model.variables:
            # Keras saves no states of random generators. They count draws,
            # one a step, so this is where an uninterrupted run stands.
            if variable.path.endswith("seed_generator_state"):
                variable.assign([variable[0], epoch * self._steps])
        self._started = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch + 1}
        row |= {name: float(value) for name, value in (logs or {}).items()}
        row["seconds"] = round(time.monotonic() - self._started, 2)
        self.history = [*self.history[:epoch], row]
        self.require_room(self.model)
        if self.best_epoch() == epoch:
            with files.replacing(self._folder / MODEL_FILE) as path:
                self.model.save(path)
        files.write_json(self._folder / HISTORY_FILE, self.history)
        older = list(self._backups())
        target = self._folder / _BACKUP_FOLDER / f"{epoch + 1:04d}.weights.h5"
        with files.replacing(target) as path:
            self.model.save_weights(path)
        for path in older:
            if path != target:
                path.unlink()
        if _has_ended(self.history, math.inf, self._patience):
            self.model.stop_training = True

    def _backups(self):
        return (self._folder / _BACKUP_FOLDER).glob(_BACKUPS)


def _num_bytes(variables):
    """What they take in a file, with some room for its own parts."""
    sizes = (
        math.prod(variable.shape) * tf.as_dtype(variable.dtype).size
        for variable in variables
    )
    return 2**20 + 11 * sum(sizes) // 10


def _clear_session():
    """Frees earlier models, but keeps what the caller has set in Keras."""
    policy = keras.config.dtype_policy()
    shows_progress = keras.config.is_interactive_logging_enabled()
    keras.backend.clear_session()
    keras.config.set_dtype_policy(policy)
    if not shows_progress:
        keras.config.disable_interactive_logging()


@contextlib.contextmanager
def _dtype_policy(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
