import keras
import numpy as np
import pytest

from m2m_tf.layers import HistoryOffset

from .layer_checks import normal, randomize_weights, run_layer_checks, to_numpy


def test_layer(tmp_path):
    run_layer_checks(
        tmp_path,
        lambda **kwargs: HistoryOffset((0.5, 0.25, 0.0), **kwargs),
        {"log_rate": normal(0, 6, 2), "log_history": normal(1, 6, 2, 3)},
        num_weights=1,
        num_parameters=2 * 3,
    )


def test_equals_loops_over_tasks_and_spans():
    log_rate, log_history = normal(0, 3, 2), normal(1, 3, 2, 4)
    layer = HistoryOffset((0.0,) * 4)
    layer.build(log_rate.shape, log_history.shape)
    randomize_weights(layer)
    outputs = to_numpy(layer(log_rate, log_history))
    weights = to_numpy(layer.history_weights)
    for sample, task in np.ndindex(3, 2):
        expected = log_rate[sample, task]
        for span in range(4):
            expected += weights[task, span] * log_history[sample, task, span]
        assert outputs[sample, task] == pytest.approx(expected, abs=1e-5)


def test_starts_with_the_given_weights_for_every_task():
    layer = HistoryOffset((0.5, 0.25))
    layer.build((None, 3), (None, 3, 2))
    np.testing.assert_array_equal(
        to_numpy(layer.history_weights), [[0.5, 0.25]] * 3
    )


def test_is_float32_under_a_mixed_global_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        layer = HistoryOffset((1.0,))
    finally:
        keras.config.set_dtype_policy("float32")
    log_rate = np.array([[1.001]], "float32")
    outputs = layer(log_rate, np.array([[[0.001]]], "float32"))
    assert outputs.dtype == "float32"
    assert to_numpy(outputs)[0, 0] == pytest.approx(1.002, abs=1e-6)


def test_invalid_arguments():
    with pytest.raises(ValueError, match=r"`initial_weights` .*=\(\)"):
        HistoryOffset(())
    with pytest.raises(ValueError, match="`initial_weights` .*=0.5"):
        HistoryOffset(0.5)
    with pytest.raises(
        ValueError, match=r"\[batch, 3, 2\], .*shape=\(None, 3, 4\)"
    ):
        HistoryOffset((0.5, 0.25)).build((None, 3), (None, 3, 4))
