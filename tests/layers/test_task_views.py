import keras
import numpy as np
import pytest

from m2m_tf.layers import TaskViews

from .layer_checks import (
    leaky_relu,
    normal,
    randomize_weights,
    run_layer_checks,
    to_numpy,
)


def test_layer(tmp_path):
    run_layer_checks(
        tmp_path,
        lambda **kwargs: TaskViews(
            3,
            5,
            embedding_dim=4,
            embeddings_regularizer="l2",
            kernel_regularizer="l2",
            **kwargs,
        ),
        {"inputs": normal(0, 7, 2)},
        num_weights=3,
        num_parameters=3 * 4 + 4 * 5 + 5,
    )


def test_equals_loops_over_tasks():
    layer = TaskViews(3, 5, embedding_dim=4)
    layer.build((None, 1))
    randomize_weights(layer)
    outputs = to_numpy(layer(np.zeros((2, 1), "float32")))
    embeddings = to_numpy(layer.embeddings)
    kernel, bias = to_numpy(layer.dense.kernel), to_numpy(layer.dense.bias)
    for task, unit in np.ndindex(3, 5):
        expected = leaky_relu(
            sum(embeddings[task] * kernel[:, unit]) + bias[unit]
        )
        assert outputs[task, unit] == pytest.approx(expected, rel=1e-4)


def test_values_of_the_anchor_never_matter():
    layer = TaskViews(3, 5)
    expected = to_numpy(layer(normal(0, 4, 2)))
    for anchor in (
        normal(1, 4, 2),
        normal(2, 1, 2),
        np.full((4, 2), np.nan, "float32"),
        np.ones((4, 2), "int32"),
    ):
        np.testing.assert_array_equal(to_numpy(layer(anchor)), expected)


def test_is_part_of_a_functional_model():
    inputs = keras.Input((2,))
    views = TaskViews(3, 5)(inputs)
    assert views.shape == (3, 5)
    outputs = keras.ops.matmul(
        keras.layers.Dense(5)(inputs), keras.ops.transpose(views)
    )
    model = keras.Model(inputs, outputs)
    assert len(model.trainable_weights) == 5
    assert model(normal(0, 7, 2)).shape == (7, 3)


def test_invalid_arguments():
    with pytest.raises(ValueError, match="`num_tasks` .*num_tasks=0"):
        TaskViews(0)
    with pytest.raises(ValueError, match="`units` .*units=0"):
        TaskViews(2, units=0)
    with pytest.raises(ValueError, match="`embedding_dim` .*_dim=0"):
        TaskViews(2, embedding_dim=0)
