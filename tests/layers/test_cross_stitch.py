import numpy as np
import pytest

from m2m_tf.layers import CrossStitch

from .layer_checks import (
    normal,
    randomize_weights,
    run_layer_checks,
    to_numpy,
)


def test_layer(tmp_path):
    run_layer_checks(
        tmp_path,
        lambda **kwargs: CrossStitch(**kwargs),
        {"inputs": normal(0, 7, 3, 6)},
        num_weights=1,
        num_parameters=9,
    )


def test_equals_the_sum_over_tasks():
    inputs = normal(0, 2, 3, 4)
    layer = CrossStitch()
    layer.build(inputs.shape)
    randomize_weights(layer)
    outputs, mixing = to_numpy(layer(inputs)), to_numpy(layer.mixing)
    for sample, task, unit in np.ndindex(2, 3, 4):
        expected = sum(
            mixing[task, other] * inputs[sample, other, unit]
            for other in range(3)
        )
        assert outputs[sample, task, unit] == pytest.approx(
            expected, rel=1e-4, abs=1e-5
        )


@pytest.mark.parametrize("num_tasks", [1, 2, 5])
def test_starts_as_a_convex_combination(num_tasks):
    inputs = normal(0, 2, num_tasks, 4)
    layer = CrossStitch(0.8)
    layer.build(inputs.shape)
    mixing = to_numpy(layer.mixing)
    np.testing.assert_allclose(mixing.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(
        np.diag(mixing), 0.8 if num_tasks > 1 else 1.0, rtol=1e-6
    )


def test_invalid_arguments():
    with pytest.raises(ValueError, match="`initial_own` .*initial_own=2"):
        CrossStitch(2)
