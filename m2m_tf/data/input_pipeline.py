"""tf.data: records → windows → batches of model inputs and labels.

Memory is bounded: a few hundred records, `shuffle_rows` samples and a few
batches are held, whatever the size of the dataset.
"""

import tensorflow as tf

from m2m_tf.config import DatasetSpec
from m2m_tf.data import schema, windows

# Records held to draw from before they are cut.
_SHUFFLE_RECORDS = 256


def samples(
    records: tf.data.Dataset, spec: DatasetSpec, cutoffs
) -> tf.data.Dataset:
    """One element per sample that is active: raw features, `entity`, `labels`.

    Args:
        records: Dataset of records (`schema.record_tensors`).
        spec: The dataset spec.
        cutoffs: Day numbers to cut at.
    """
    cutoffs = tf.constant(list(cutoffs), tf.int32)

    def cut(record):
        rows = windows.cut_windows(spec, record, cutoffs)
        active = rows.pop("active")
        return {
            name: tf.boolean_mask(tensor, active)
            for name, tensor in rows.items()
        }

    return records.map(cut, num_parallel_calls=2, deterministic=True).unbatch()


def raw_batches(
    records: tf.data.Dataset,
    spec: DatasetSpec,
    cutoffs,
    batch_size: int,
) -> tf.data.Dataset:
    """Batches of raw features with `entity` and `labels`, in a fixed order."""
    rows = samples(records, spec, cutoffs)
    return rows.batch(batch_size).prefetch(2)


def training_batches(
    records: tf.data.Dataset,
    spec: DatasetSpec,
    preprocessor,
    cutoffs,
    batch_size: int,
    shuffle_rows: int = 16384,
    seed: int = 0,
    epoch: tf.Variable | None = None,
) -> tf.data.Dataset:
    """Shuffled batches `(model inputs, {task: labels [B, 1]})`.

    The order of samples is a function of `seed` and `epoch` alone, so a run
    that was killed and resumed sees the same batches as one that was not. A
    last, smaller batch is dropped (a second shape would be compiled for it);
    which samples it holds differs from epoch to epoch.

    Args:
        records: Dataset of records.
        spec: The dataset spec.
        preprocessor: `features.Preprocessor`.
        cutoffs: Day numbers of the training split.
        batch_size: Samples of a batch.
        shuffle_rows: Samples held to draw from.
        seed: Seeds the order.
        epoch: Variable with the epoch's number, read whenever the dataset is
            iterated anew (needs a global random seed other than 0, see
            `training.train`). None counts the iterations of this dataset.
    """

    def shuffled(order, reshuffle=False):
        drawn = records.shuffle(
            _SHUFFLE_RECORDS, seed=order, reshuffle_each_iteration=reshuffle
        )
        return samples(drawn, spec, cutoffs).shuffle(
            shuffle_rows, seed=order + 1, reshuffle_each_iteration=reshuffle
        )

    # Seeds of different runs and epochs are far apart; the two shuffles of
    # one epoch use neighbours.
    first_order = 2 * 1_000_003 * seed
    if epoch is None:
        rows = shuffled(first_order, reshuffle=True)
    else:
        numbers = tf.data.Dataset.range(1).map(lambda _: epoch.read_value())
        rows = numbers.flat_map(lambda n: shuffled(first_order + 2 * n))
    batches = rows.batch(batch_size, drop_remainder=True)
    return _to_inputs(batches, spec, preprocessor)


def evaluation_batches(
    records: tf.data.Dataset,
    spec: DatasetSpec,
    preprocessor,
    cutoffs,
    batch_size: int,
) -> tf.data.Dataset:
    """Batches `(model inputs, {task: labels})` of every sample, in order."""
    batches = samples(records, spec, cutoffs).batch(batch_size)
    return _to_inputs(batches, spec, preprocessor)


def count_samples(records: tf.data.Dataset, spec: DatasetSpec, cutoffs) -> int:
    """Number of samples that `cutoffs` give."""
    cutoffs = tf.constant(list(cutoffs), tf.int32)

    def count(total, record):
        rows = windows.cut_windows(spec, record, cutoffs)
        return total + tf.reduce_sum(tf.cast(rows["active"], tf.int64))

    return int(records.reduce(tf.constant(0, tf.int64), count))


def split_labels(spec: DatasetSpec, labels) -> dict:
    """Label matrix `[B, tasks]` → {task name: `[B, 1]`}."""
    return {
        name: labels[:, index : index + 1]
        for index, name in enumerate(spec.task_names)
    }


def _to_inputs(batches, spec, preprocessor):
    def convert(rows):
        labels = rows.pop(windows.LABELS)
        rows.pop(schema.ENTITY)
        return preprocessor(rows), split_labels(spec, labels)

    return batches.map(
        convert, num_parallel_calls=2, deterministic=True
    ).prefetch(2)
