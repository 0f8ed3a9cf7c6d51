import numpy as np
import pytest

from m2m_tf.layers import ExpertViews

from .layer_checks import (
    leaky_relu,
    normal,
    randomize_weights,
    run_layer_checks,
    to_numpy,
)


@pytest.mark.parametrize("hidden_units", [(), (4,)])
def test_layer(tmp_path, hidden_units):
    per_expert = 6 * 5 + 5 if not hidden_units else 6 * 4 + 4 + 4 * 5 + 5
    run_layer_checks(
        tmp_path,
        lambda **kwargs: ExpertViews(
            3, 5, hidden_units, kernel_regularizer="l2", **kwargs
        ),
        {"inputs": normal(0, 7, 6)},
        num_weights=2 + 2 * len(hidden_units),
        num_parameters=3 * per_expert,
    )


def test_equals_loops_over_experts_and_units():
    inputs = normal(0, 2, 6)
    layer = ExpertViews(3, 2, (4, 3))
    layer.build(inputs.shape)
    randomize_weights(layer)
    outputs = to_numpy(layer(inputs))
    for sample, expert in np.ndindex(2, 3):
        hidden = inputs[sample]
        for kernel, bias in zip(layer.kernels, layer.biases, strict=True):
            kernel, bias = to_numpy(kernel)[expert], to_numpy(bias)[expert]
            hidden = [
                leaky_relu(sum(hidden * kernel[unit]) + bias[unit])
                for unit in range(len(bias))
            ]
        np.testing.assert_allclose(
            outputs[sample, expert], hidden, rtol=1e-4, atol=1e-5
        )


def test_experts_start_different_and_with_the_variance_of_a_dense_layer():
    layer = ExpertViews(4, 64, (64,), activation="linear")
    outputs = to_numpy(layer(normal(0, 128, 64)))
    assert not np.any(outputs[:, 0] == outputs[:, 1])
    # He kernels double the variance in each of two layers.
    assert outputs.var() == pytest.approx(4.0, rel=0.2)


@pytest.mark.parametrize("width", [8, 32])
def test_inputs_of_another_width_are_refused(width):
    layer = ExpertViews(2, 4)
    layer(np.ones((6, 16)))
    with pytest.raises(ValueError, match=f"value 16.*shape \\(6, {width}\\)"):
        layer(np.ones((6, width)))


def test_invalid_arguments():
    with pytest.raises(ValueError, match="`num_experts` .*num_experts=0"):
        ExpertViews(num_experts=0)
    with pytest.raises(ValueError, match="`units` .*units=0"):
        ExpertViews(units=0)
    with pytest.raises(ValueError, match=r"`hidden_units` .*=\(4, 0\)"):
        ExpertViews(hidden_units=(4, 0))
    with pytest.raises(ValueError, match=r"`inputs` must .*=\(None, 3, 4\)"):
        ExpertViews().build((None, 3, 4))
