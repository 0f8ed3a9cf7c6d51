import numpy as np
import pytest
import tensorflow as tf

from m2m_tf.layers import HurdleHeads

from .layer_checks import normal, randomize_weights, run_layer_checks


def test_layer(tmp_path):
    run_layer_checks(
        tmp_path,
        lambda **kwargs: HurdleHeads(
            (0.0, 1.0, -2.0), (None, 7, 1), kernel_regularizer="l2", **kwargs
        ),
        {"inputs": normal(0, 4, 3, 6), "log_level": normal(1, 4, 3)},
        num_weights=3,
        num_parameters=3 * 6 * 4 + 3 * 4 + 3,
    )


@pytest.mark.parametrize("limits", [None, (None, 1, 7)])
def test_equals_the_formulas(limits):
    # With `limits` the mean of min(Y, limit) takes the place of what is usual.
    layer = HurdleHeads(label_limits=limits)
    inputs, log_level = normal(0, 4, 3, 6), normal(1, 4, 3)
    layer.build(inputs.shape, log_level.shape)
    randomize_weights(layer)
    kernel, bias = layer.kernel.numpy(), layer.bias.numpy()
    slope = layer.zero_slope.numpy()
    outputs = np.asarray(layer(inputs, log_level))
    for row in range(4):
        for task in range(3):
            own = [
                np.asarray(inputs)[row, task] @ kernel[task, :, p]
                + bias[task, p]
                for p in range(4)
            ]
            level = np.asarray(log_level)[row, task]
            zero_logit = own[0] - slope[task] * level
            location = own[1] + level
            scale = np.log1p(np.exp(own[2])) + 0.05
            typical = np.exp(location)
            if limits and limits[task]:
                z = [
                    (np.log(y - 0.5) - location) / scale
                    for y in range(2, limits[task] + 1)
                ]
                typical = 1 + sum(1 - 1 / (1 + np.exp(-value)) for value in z)
            expected = [
                own[3] + np.log(typical / (1 + np.exp(zero_logit))),
                zero_logit,
                location,
                np.log(scale),
            ]
            np.testing.assert_allclose(
                outputs[row, task], expected, rtol=1e-4, atol=1e-5
            )


def test_mean_sends_no_gradient_to_the_distribution():
    layer = HurdleHeads()
    inputs, log_level = tf.constant(normal(0, 4, 3, 6)), tf.ones((4, 3))
    with tf.GradientTape() as tape:
        tape.watch(log_level)
        log_rate = layer(inputs, log_level)[..., 0]
    of_level, of_kernel = tape.gradient(
        log_rate, [log_level, layer.kernel.value]
    )
    assert not np.any(of_level)
    assert not np.any(of_kernel[..., :3]) and np.all(of_kernel[..., 3])


@pytest.mark.parametrize("limit", [None, 1, 7])
@pytest.mark.parametrize("rate", [0.01, 1.0, 300.0])
def test_starts_from_the_initial_rates(rate, limit):
    layer = HurdleHeads([np.log(rate)], [limit])
    outputs = layer(np.zeros((1, 1, 4), "float32"), np.log([[rate]]))
    assert float(outputs[0, 0, 0]) == pytest.approx(np.log(rate), abs=1e-4)


def test_other_numbers_of_initial_rates_are_refused():
    layer = HurdleHeads([0.0, 1.0])
    with pytest.raises(ValueError, match="one number per task, 3. .*0.0, 1.0"):
        layer.build((None, 3, 6), (None, 3))


def test_other_numbers_of_limits_are_refused():
    layer = HurdleHeads(label_limits=[None, 7])
    with pytest.raises(ValueError, match="`label_limits` must hold one.*7"):
        layer.build((None, 3, 6), (None, 3))
