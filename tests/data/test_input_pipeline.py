import numpy as np
import pytest
import tensorflow as tf

from m2m_tf.data import input_pipeline, windows


def rows_of(dataset):
    rows = []
    for inputs, labels in dataset.as_numpy_iterator():
        parts = [*labels.values(), inputs["log_history"][:, 0]]
        # Rounded: a sum over days may differ in its last bit by batch size.
        rows += map(tuple, np.concatenate(parts, axis=1).round(3).tolist())
    return rows


def test_every_active_sample_comes_once_in_evaluation(clinic_data):
    data = clinic_data
    for split in windows.SPLIT_NAMES:
        rows = sum(
            len(batch["entity"])
            for batch in data.raw(split, 16).as_numpy_iterator()
        )
        assert rows == data.num_samples(split)


def test_training_batches_hold_the_training_samples(clinic_data):
    data = clinic_data
    expected = rows_of(
        input_pipeline.evaluation_batches(
            data.records, data.spec, data.preprocessor, data.splits.train, 16
        )
    )
    got = rows_of(data.train(10))
    assert len(got) == len(expected) // 10 * 10
    assert set(got) <= set(expected)
    assert got != expected[: len(got)]


@pytest.mark.parametrize("use_variable", [True, False])
def test_order_differs_by_epoch_and_agrees_by_seed(clinic_data, use_variable):
    tf.random.set_seed(1)

    def two_epochs(seed):
        epoch = tf.Variable(0, dtype=tf.int64) if use_variable else None
        dataset = clinic_data.train(10, seed=seed, epoch=epoch)
        first = rows_of(dataset)
        if use_variable:
            epoch.assign(1)
        return first, rows_of(dataset)

    first, second = two_epochs(seed=5)
    assert first != second
    assert two_epochs(seed=5) == (first, second)
    assert two_epochs(seed=6)[0] != first


def test_an_epoch_does_not_depend_on_those_before(clinic_data):
    tf.random.set_seed(1)
    epoch = tf.Variable(0, dtype=tf.int64)
    dataset = clinic_data.train(10, seed=5, epoch=epoch)
    rows_of(dataset)
    epoch.assign(3)
    expected = rows_of(dataset)
    fresh = clinic_data.train(10, seed=5, epoch=tf.Variable(3, dtype=tf.int64))
    assert rows_of(fresh) == expected


def test_cardinality_is_the_number_of_batches(clinic_data):
    for dataset in (
        clinic_data.train(32),
        clinic_data.validation(32),
        clinic_data.test(32),
    ):
        assert int(dataset.cardinality()) == sum(1 for _ in dataset)


def test_a_set_smaller_than_a_batch_still_trains(clinic_data):
    assert int(clinic_data.train(100_000).cardinality()) == 1
