"""Layers of many inputs: the same functions, moved less by a step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from m2m_tf.layers import ExpertViews, GatedExperts
from m2m_tf.layers._fan_in import step_divisor

from .layer_checks import leaky_relu, normal, randomize_weights, to_numpy


@pytest.mark.parametrize(
    ("input_dim", "divisor"), [(1, 1), (512, 1), (768, 1.5), (17998, 35.15234)]
)
def test_divisor(input_dim, divisor):
    assert step_divisor(input_dim) == pytest.approx(divisor)


def test_expert_views_divide_the_product_of_each_wide_layer():
    inputs = normal(0, 2, 1024)
    layer = ExpertViews(3, 2, (768,))
    layer.build(inputs.shape)
    randomize_weights(layer, scale=0.05)
    outputs = to_numpy(layer(inputs))
    for sample, expert in np.ndindex(2, 3):
        hidden = inputs[sample]
        for kernel, bias, divisor in zip(
            layer.kernels, layer.biases, (2.0, 1.5), strict=True
        ):
            kernel, bias = to_numpy(kernel)[expert], to_numpy(bias)[expert]
            hidden = [
                leaky_relu(sum(hidden * row) / divisor + bias[unit])
                for unit, row in enumerate(kernel)
            ]
        np.testing.assert_allclose(
            outputs[sample, expert], hidden, rtol=1e-3, atol=1e-4
        )


def test_gates_divide_the_product_of_wide_features():
    inputs, views = normal(0, 2, 1024), normal(1, 2, 4, 3)
    layer = GatedExperts(2)
    layer.build(inputs.shape, views.shape)
    randomize_weights(layer, scale=0.05)
    kernel, outputs = to_numpy(layer.kernel), to_numpy(layer(inputs, views))
    for sample, task in np.ndindex(2, 2):
        logits = [sum(inputs[sample] * row) / 2 for row in kernel[task].T]
        shares = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(
            outputs[sample, task],
            sum(s * view for s, view in zip(shares, views[sample])),
            rtol=1e-3,
            atol=1e-4,
        )


@pytest.mark.parametrize("input_dim", [64, 4096])
def test_experts_start_with_the_variance_of_a_dense_layer(input_dim):
    layer = ExpertViews(4, 64, activation="linear")
    outputs = to_numpy(layer(normal(0, 128, input_dim)))
    assert outputs.var() == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("input_dim", [64, 4096])
def test_gates_start_with_the_variance_of_a_dense_layer(input_dim):
    layer = GatedExperts(4)
    layer.build((None, input_dim), (None, 8, 2))
    kernel = to_numpy(layer.kernel) / step_divisor(input_dim)
    assert kernel.var() == pytest.approx(2 / (input_dim + 8), rel=0.2)


@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_the_penalty_is_that_of_the_kernel_that_is_meant(penalty):
    regularizer = keras.regularizers.get(penalty)
    experts = ExpertViews(2, 3, kernel_regularizer=penalty)
    experts.build((None, 1024))
    gates = GatedExperts(2, kernel_regularizer=penalty)
    gates.build((None, 1024), (None, 5, 2))
    for layer, kernel in (
        (experts, experts.kernels[0]),
        (gates, gates.kernel),
    ):
        (loss,) = layer.losses
        expected = regularizer(tf.convert_to_tensor(kernel) / 2)
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("input_dim", "moved"), [(64, 64), (512, 512), (4096, 512)]
)
def test_a_step_of_adam_moves_a_view_as_far_as_one_of_512_inputs(
    input_dim, moved
):
    """Each weight moves by the learning rate, and inputs are ones."""
    layer = ExpertViews(1, 1, activation="linear")
    inputs = np.ones((1, input_dim), "float32")
    before = float(layer(inputs)[0, 0, 0])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(inputs))
    weights = layer.trainable_variables
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights))
    after = float(layer(inputs)[0, 0, 0])
    # The bias moves, too.
    assert before - after == pytest.approx(1e-3 * (moved + 1), rel=1e-2)
