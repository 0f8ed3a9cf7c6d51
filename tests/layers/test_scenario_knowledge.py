import numpy as np
import pytest

from m2m_tf.layers import ScenarioKnowledge

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
        lambda **kwargs: ScenarioKnowledge(
            5, (4,), kernel_regularizer="l2", **kwargs
        ),
        {"inputs": normal(0, 7, 6)},
        num_weights=4,
        num_parameters=6 * 4 + 4 + 4 * 5 + 5,
    )


@pytest.mark.parametrize("hidden_units", [(), (4, 3)])
def test_equals_loops_over_units(hidden_units):
    inputs = normal(0, 3, 6)
    layer = ScenarioKnowledge(2, hidden_units)
    layer.build(inputs.shape)
    randomize_weights(layer)
    outputs = to_numpy(layer(inputs))
    for sample in range(3):
        hidden = inputs[sample]
        for dense in layer.dense_layers:
            kernel, bias = to_numpy(dense.kernel), to_numpy(dense.bias)
            hidden = [
                leaky_relu(sum(hidden * kernel[:, unit]) + bias[unit])
                for unit in range(len(bias))
            ]
        np.testing.assert_allclose(outputs[sample], hidden, rtol=1e-4)


def test_variance_at_the_start_is_at_most_that_of_the_input():
    """`MetaDense` sets its initial variance for E[S²] of at most about 1."""
    knowledge = to_numpy(ScenarioKnowledge(64)(normal(0, 256, 32)))
    assert np.mean(knowledge**2) == pytest.approx(1.0, rel=0.25)


def test_invalid_arguments():
    with pytest.raises(ValueError, match="`units` .*units=0"):
        ScenarioKnowledge(units=0)
    with pytest.raises(ValueError, match="`hidden_units` .*hidden_units=8"):
        ScenarioKnowledge(hidden_units=8)
