import numpy as np
import tensorflow as tf

from m2m_tf.layers import HurdleHeads

from .layer_checks import normal, randomize_weights, run_layer_checks


def test_layer(tmp_path):
    run_layer_checks(
        tmp_path,
        lambda **kwargs: HurdleHeads(kernel_regularizer="l2", **kwargs),
        {"inputs": normal(0, 4, 3, 6), "log_rate": normal(1, 4, 3)},
        num_weights=3,
        num_parameters=3 * 6 * 3 + 3 * 3 + 3,
    )


def test_equals_the_formulas():
    layer = HurdleHeads()
    inputs, log_rate = normal(0, 4, 3, 6), normal(1, 4, 3)
    layer.build(inputs.shape, log_rate.shape)
    randomize_weights(layer)
    kernel, bias = layer.kernel.numpy(), layer.bias.numpy()
    slope = layer.zero_slope.numpy()
    outputs = np.asarray(layer(inputs, log_rate))
    for row in range(4):
        for task in range(3):
            own = [
                np.asarray(inputs)[row, task] @ kernel[task, :, p]
                + bias[task, p]
                for p in range(3)
            ]
            mean = np.asarray(log_rate)[row, task]
            expected = [
                mean,
                own[0] - slope[task] * mean,
                own[1] + mean,
                np.log(np.log1p(np.exp(own[2])) + 0.05),
            ]
            np.testing.assert_allclose(
                outputs[row, task], expected, rtol=1e-4, atol=1e-5
            )


def test_shape_sends_no_gradient_to_the_mean():
    layer = HurdleHeads()
    inputs, log_rate = tf.constant(normal(0, 4, 3, 6)), tf.ones((4, 3))
    with tf.GradientTape() as tape:
        tape.watch(log_rate)
        shape = layer(inputs, log_rate)[..., 1:]
    assert not np.any(tape.gradient(shape, log_rate))
