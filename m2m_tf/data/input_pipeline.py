"""tf.data: records → blocks of series → batches of model inputs and labels.

Rows are cut a batch at a time out of a block of whole series, which holds a
day once, where windows hold it `lookback` times. Memory is bounded: three
blocks and a few batches, whatever the size of the dataset.
"""

import tensorflow as tf

from m2m_tf.config import DatasetSpec
from m2m_tf.data import schema, windows

# Records of a block that is read in order.
_BLOCK = 256
# Records held to draw from before blocks are formed of them.
_SHUFFLE_RECORDS = 256


def raw_batches(
    records: tf.data.Dataset,
    spec: DatasetSpec,
    cutoffs,
    batch_size: int,
) -> tf.data.Dataset:
    """Batches of raw features with `entity` and `labels`, in a fixed order.

    Args:
        records: Dataset of records (`schema.record_tensors`).
        spec: The dataset spec.
        cutoffs: Day numbers to cut at.
        batch_size: Samples of a batch; only active ones are given.

    Example:

    >>> batches = raw_batches(
    ...     data.records, data.spec, data.splits.test, batch_size=16
    ... )
    >>> next(iter(batches))["labels"].shape
    TensorShape([16, 3])
    """
    blocks = _blocks(records, spec, cutoffs, _BLOCK).prefetch(1)
    return _cut(blocks, spec, batch_size).rebatch(batch_size).prefetch(2)


def training_batches(
    records: tf.data.Dataset,
    spec: DatasetSpec,
    preprocessor,
    cutoffs,
    batch_size: int,
    shuffle_entities: int,
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
        shuffle_entities: Entities of a block whose samples are permuted.
        seed: Seeds the order.
        epoch: Variable with the epoch's number, read whenever the dataset is
            iterated anew (needs a global random seed other than 0, see
            `training.train`). None counts the iterations of this dataset.

    Example:

    >>> batches = training_batches(
    ...     data.records,
    ...     data.spec,
    ...     data.preprocessor,
    ...     data.splits.train,
    ...     batch_size=16,
    ...     shuffle_entities=1000,
    ... )
    >>> inputs, labels = next(iter(batches))
    >>> labels["visits"].shape
    TensorShape([16, 1])
    """

    def shuffled(order, reshuffle=False):
        drawn = records.shuffle(
            _SHUFFLE_RECORDS, seed=order, reshuffle_each_iteration=reshuffle
        )
        blocks = _blocks(drawn, spec, cutoffs, shuffle_entities)
        seeds = tf.data.Dataset.random(
            seed=order + 1, rerandomize_each_iteration=reshuffle
        ).batch(2)
        return tf.data.Dataset.zip(blocks, seeds).map(_permuted).prefetch(1)

    # Seeds of different runs and epochs are far apart; the two shuffles of
    # one epoch use neighbours.
    first_order = 2 * 1_000_003 * seed
    if epoch is None:
        blocks = shuffled(first_order, reshuffle=True)
    else:
        numbers = tf.data.Dataset.range(1).map(lambda _: epoch.read_value())
        blocks = numbers.flat_map(lambda n: shuffled(first_order + 2 * n))
    batches = _cut(blocks, spec, batch_size)
    batches = batches.rebatch(batch_size, drop_remainder=True)
    return _to_inputs(batches, spec, preprocessor)


def evaluation_batches(
    records: tf.data.Dataset,
    spec: DatasetSpec,
    preprocessor,
    cutoffs,
    batch_size: int,
) -> tf.data.Dataset:
    """Batches `(model inputs, {task: labels})` of every sample, in order.

    Example:

    >>> batches = evaluation_batches(
    ...     data.records, data.spec, data.preprocessor, data.splits.test, 16
    ... )
    >>> inputs, labels = next(iter(batches))
    >>> inputs["log_history"].shape
    TensorShape([16, 3, 2])
    """
    batches = raw_batches(records, spec, cutoffs, batch_size)
    return _to_inputs(batches, spec, preprocessor)


def count_samples(records: tf.data.Dataset, spec: DatasetSpec, cutoffs) -> int:
    """Number of samples that `cutoffs` give.

    Example:

    >>> count_samples(data.records, data.spec, data.splits.test)
    28
    """
    blocks = _blocks(records, spec, cutoffs, _BLOCK)
    return int(
        blocks.reduce(
            tf.constant(0, tf.int64),
            lambda total, block: total + tf.shape(block[1], tf.int64)[0],
        )
    )


def split_labels(spec: DatasetSpec, labels) -> dict:
    """Label matrix `[B, tasks]` → {task name: `[B, 1]`}.

    Example:

    >>> split_labels(data.spec, tf.zeros([16, 3]))["fees"].shape
    TensorShape([16, 1])
    """
    return {
        name: labels[:, index : index + 1]
        for index, name in enumerate(spec.task_names)
    }


def _blocks(records, spec, cutoffs, size):
    """Blocks of `size` records: series and their active samples, in order."""
    cutoffs = tf.constant(list(cutoffs), tf.int32)

    def stack(batch):
        series = windows.stack_series(spec, batch)
        return series, windows.active_samples(spec, series, cutoffs)

    return records.ragged_batch(size).map(stack)


def _permuted(block, seed):
    """A block whose samples come in an order that `seed` `[2]` decides."""
    series, samples = block
    count = tf.shape(samples)[0]
    order = tf.random.experimental.stateless_shuffle(tf.range(count), seed)
    return series, tf.gather(samples, order)


def _cut(blocks, spec, batch_size):
    """Raw features of a block's samples, `batch_size` at a time or fewer."""

    def cut(series, samples):
        starts = tf.data.Dataset.range(
            0, tf.shape(samples, tf.int64)[0], batch_size
        )
        return starts.map(
            lambda start: windows.cut_windows(
                spec, series, samples[start : start + batch_size]
            ),
            num_parallel_calls=2,
            deterministic=True,
        )

    # What runs at once is told here, step by step. With tf.data's tuner on, 7
    # passes of 13 had one of two cores idle, and with it off none.
    options = tf.data.Options()
    options.autotune.enabled = False
    return blocks.flat_map(cut).with_options(options)


def _to_inputs(batches, spec, preprocessor):
    def convert(rows):
        labels = rows.pop(windows.LABELS)
        rows.pop(schema.ENTITY)
        return preprocessor(rows), split_labels(spec, labels)

    return batches.map(
        convert, num_parallel_calls=2, deterministic=True
    ).prefetch(2)
