import numpy as np
import pytest

from m2m_tf.layers import TaskDense

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
        lambda **kwargs: TaskDense(5, kernel_regularizer="l2", **kwargs),
        {"inputs": normal(0, 7, 3, 6)},
        num_weights=2,
        num_parameters=3 * (6 * 5 + 5),
    )


def test_equals_loops_over_tasks_and_units():
    inputs = normal(0, 2, 3, 6)
    layer = TaskDense(4)
    layer.build(inputs.shape)
    randomize_weights(layer)
    outputs = to_numpy(layer(inputs))
    kernel, bias = to_numpy(layer.kernel), to_numpy(layer.bias)
    for sample, task, unit in np.ndindex(2, 3, 4):
        total = bias[task, unit] + sum(
            inputs[sample, task, i] * kernel[task, i, unit] for i in range(6)
        )
        assert outputs[sample, task, unit] == pytest.approx(
            leaky_relu(total), rel=1e-4, abs=1e-5
        )


def test_invalid_arguments():
    with pytest.raises(ValueError, match="`units` .*units=0"):
        TaskDense(0)
    with pytest.raises(ValueError, match="known last two axes"):
        TaskDense(3).build((None, None, 4))
