"""What a run writes for TensorBoard: curves, settings, embeddings, plots.

A training has three TensorBoard runs: `train` and `validation` hold curves,
`best` the settings, the scores of the epoch that is kept and its embeddings.
HParams takes the scalars beside the settings for its columns, so `best` holds
no others.
"""

import math
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf
from tensorboard.plugins import projector
from tensorboard.plugins.hparams import api as hparams

from m2m_tf.config import ModelSettings, TrainingSettings, to_values
from m2m_tf.data import schema
from m2m_tf.data.dataset import ForecastData
from m2m_tf.layers import ColumnEmbedding, TaskViews
from m2m_tf.models import ForecastModel, unused_settings

LOGS_FOLDER = "tensorboard"
# Scores of the epoch that is kept. Sorts behind the curves.
BEST_TAGS = "validation_best"
_TRAIN, _VALIDATION, _BEST = "train", "validation", "best"
# Points of the training loss in an epoch: enough for TensorBoard's smoothing
# where a training has few epochs.
_POINTS_PER_EPOCH = 20
# The first steps trace and allocate; a profile tells more of later ones.
_PROFILE_FROM = 10
_GRAPH_SUFFIX = ".graph"


class RunLogs(keras.callbacks.Callback):
    """Writes a training's logs; every step is a count of batches trained.

    It writes when an epoch has ended and `record` has it on disk, so that a
    training that is killed and goes on writes no epoch twice. The settings
    and the graph are written when training starts.

    Args:
        data: Prepared data, for the names.
        settings: Name → value, from `setting_values`.
        record: The run's `training.RunRecord`, called before this one.
        folder: Folder of the logs.
        profile_steps: Steps to profile, 0 for none.
    """

    def __init__(self, data, settings, record, folder, profile_steps=0):
        super().__init__()
        self._data = data
        self._settings = settings
        self._record = record
        self._folder = pathlib.Path(folder)
        self._profile_steps = profile_steps
        self._writers = {}
        self._batches = 0
        self._profiling = False
        self._step_trace = None

    def on_train_begin(self, logs=None):
        del logs
        self._writers = {
            name: tf.summary.create_file_writer(str(self._folder / name))
            for name in (_TRAIN, _VALIDATION, _BEST)
        }
        with self._writers[_BEST].as_default():
            hparams.hparams(self._settings)
        if not self._record.epochs_done:
            # In a file of its own: a study keeps the logs without it.
            writer = tf.summary.create_file_writer(
                str(self._folder / _TRAIN), filename_suffix=_GRAPH_SUFFIX
            )
            with writer.as_default():
                tf.summary.graph(_forward_graph(self.model))
            writer.close()

    def on_epoch_begin(self, epoch, logs=None):
        del epoch, logs
        self._losses, self._seen, self._sum = [], 0, 0.0

    def on_train_batch_begin(self, batch, logs=None):
        del batch, logs
        if self._profile_steps and self._batches == _PROFILE_FROM:
            tf.profiler.experimental.start(str(self._folder / _TRAIN))
            self._profiling = True
        if self._profiling:
            # Marks a step, by which the profile's pages count.
            self._step_trace = tf.profiler.experimental.Trace(
                "train", step_num=self._batches, _r=1
            )
            self._step_trace.__enter__()

    def on_train_batch_end(self, batch, logs=None):
        self._batches += 1
        if self._step_trace is not None:
            self._step_trace.__exit__(None, None, None)
            self._step_trace = None
        if self._batches == _PROFILE_FROM + self._profile_steps:
            self._stop_profile()
        done = batch + 1
        interval = max(1, self.params["steps"] // _POINTS_PER_EPOCH)
        if done % interval == 0:
            # Keras tells the mean since the epoch's start; a curve of it
            # would start anew with each epoch.
            total = float(logs["loss"]) * done
            loss = (total - self._sum) / (done - self._seen)
            self._losses.append((int(self.model.optimizer.iterations), loss))
            self._seen, self._sum = done, total

    def on_epoch_end(self, epoch, logs=None):
        step = int(self.model.optimizer.iterations)
        train, validation = _by_split(logs or {})
        train.pop("loss/total", None)  # Told more finely.
        optimizer = self.model.optimizer
        train["learning_rate"] = float(optimizer.learning_rate)
        with self._writers[_TRAIN].as_default():
            for at, loss in self._losses:
                tf.summary.scalar("loss/total", loss, at)
            _write_scalars(train, step)
        if validation:
            with self._writers[_VALIDATION].as_default():
                _write_scalars(validation | self._cells(), step)
        if self._record.best_epoch() == epoch:
            with self._writers[_BEST].as_default():
                _write_scalars(
                    {
                        f"{BEST_TAGS}/{name.split('/')[0]}": value
                        for name, value in validation.items()
                        if name.endswith(("/total", "/overall"))
                    },
                    step,
                )
            write_embeddings(self.model, self._data, self._folder / _BEST)
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Ends the profile and closes the files, also after an error.

        `fit` calls no callback then, and only one profiler may run.
        """
        self._step_trace = None
        self._stop_profile()
        for writer in self._writers.values():
            writer.close()

    def _stop_profile(self):
        if self._profiling:
            tf.profiler.experimental.stop()
            self._profiling = False

    def _cells(self):
        """`<metric>/<task>/<scenario>` → value.

        `fit` resets metrics before it validates, so at an epoch's end they
        hold the validation data alone.
        """
        scenarios = self._data.preprocessor.scenario_names
        return {
            f"{metric}/{task}/{scenario}": value
            for metric, cells in self.model.cell_metrics.cells().items()
            for task, row in zip(self._data.spec.task_names, cells, strict=True)
            for scenario, value in zip(scenarios, row, strict=True)
        }


def setting_values(
    data: ForecastData, model: ModelSettings, training: TrainingSettings
) -> dict[str, bool | float | str]:
    """All that tells trainings apart, as HParams takes it.

    Settings that the model has no use for are left out.
    """
    unused = unused_settings(model.name)
    values = {
        key: value
        for key, value in to_values(model).items()
        if key not in unused
    }
    values = (
        {"model": values.pop("name"), "dataset": data.spec.name}
        | {"lookback": data.spec.lookback, "horizon": data.spec.horizon}
        | values
        | to_values(training)
    )
    return {k: "none" if x is None else x for k, x in values.items()}


def write_embeddings(
    model: ForecastModel, data: ForecastData, folder: str | os.PathLike
) -> None:
    """Writes what the Projector shows: a model's scenarios and tasks by name.

    Args:
        model: A network; of an ensemble write each member's.
        data: Prepared data, for the names.
        folder: Folder of a TensorBoard run.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = projector.ProjectorConfig()
    for layer in model.layers:
        named = _named_vectors(layer, data)
        if named is None:
            continue
        vectors, columns = named
        info = config.embeddings.add()
        info.tensor_name = layer.name
        info.tensor_path = f"{layer.name}.tsv"
        info.metadata_path = f"{layer.name}_metadata.tsv"
        rows = [[f"{x:.7g}" for x in vector] for vector in vectors]
        _write_tsv(folder / info.tensor_path, rows)
        names = list(zip(*columns.values(), strict=True))
        # Of a single column TensorBoard takes the header for the first name.
        header = [list(columns)] if len(columns) > 1 else []
        _write_tsv(folder / info.metadata_path, [*header, *names])
    projector.visualize_embeddings(str(folder), config)


def write_images(
    figures: Sequence[tuple[str | os.PathLike, str]],
    folder: str | os.PathLike,
) -> None:
    """Writes PNG files with their captions to a TensorBoard run."""
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default(step=0):
        for path, caption in figures:
            path = pathlib.Path(path)
            image = tf.io.decode_png(path.read_bytes(), channels=3)
            tf.summary.image(
                f"plots/{path.stem}", image[None], description=caption
            )
    writer.close()


def keep_logs(
    training: str | os.PathLike,
    folder: str | os.PathLike,
    scores: Mapping[str, float],
) -> None:
    """Copies the small logs of a training that will be deleted.

    Curves, settings and embeddings of it, or of each of its members, are
    kept; graph and profile are not.

    Args:
        training: Folder of the training.
        folder: Where the logs are kept; what lay there is replaced.
        scores: Name → value, more columns of the HParams table.
    """
    folder = pathlib.Path(folder)
    if folder.exists():
        shutil.rmtree(folder)
    for logs in sorted(pathlib.Path(training).rglob(LOGS_FOLDER)):
        place = folder / logs.parent.relative_to(training)
        shutil.copytree(
            logs,
            place,
            ignore=shutil.ignore_patterns(f"*{_GRAPH_SUFFIX}", "plugins"),
        )
        writer = tf.summary.create_file_writer(str(place / _BEST))
        with writer.as_default():
            _write_scalars(
                {f"{BEST_TAGS}/{k}": x for k, x in scores.items()}, 0
            )
        writer.close()


def _by_split(logs):
    """Keras' names as `<group>/<name>`, of training and of validation."""
    train, validation = {}, {}
    for name, value in logs.items():
        of_split = validation if name.startswith("val_") else train
        name = name.removeprefix("val_")
        if name.startswith("overall_"):
            name = f"{name.removeprefix('overall_')}/overall"
        elif name == "loss":
            name = "loss/total"
        else:
            name = f"loss/{name.removesuffix('_loss')}"
        of_split[name] = float(value)
    return train, validation


def _write_scalars(values, step):
    for name, value in values.items():
        if math.isfinite(value):
            tf.summary.scalar(name, value, step)


def _forward_graph(model):
    signature = {
        name: tf.TensorSpec(tensor.shape, tensor.dtype, name)
        for name, tensor in model.input.items()
    }
    forward = tf.function(lambda inputs: model(inputs, training=False))
    return forward.get_concrete_function(signature).graph


def _named_vectors(layer, data):
    """Vectors of a layer and columns that describe them, None without."""
    if isinstance(layer, TaskViews):
        tasks = data.spec.tasks
        return layer.embeddings.numpy(), {
            "task": [task.name for task in tasks],
            "kind": [task.kind for task in tasks],
        }
    of_scenarios = layer.name.endswith(f"{schema.SCENARIO_FEATURES}_embedding")
    if isinstance(layer, ColumnEmbedding) and of_scenarios:
        names = data.preprocessor.scenario_names
        # The first column of the scenario's features is its id.
        table = layer.embedding.embeddings.numpy()[: len(names)]
        attributes = data.preprocessor.statistics.scenario_attributes
        return table, {"scenario": names} | {
            name.removeprefix(schema.SCENARIO_PREFIX): ["", *values]
            for name, values in attributes.items()
        }
    return None


def _write_tsv(path, rows):
    lines = ["\t".join(" ".join(str(x).split()) for x in row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
