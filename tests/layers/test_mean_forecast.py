import keras
import numpy as np

from m2m_tf.layers import MeanForecast

from .layer_checks import check_config_round_trip, normal, to_numpy


def test_mean_is_the_mean_of_means_and_the_rest_of_parameters():
    inputs = normal(0, 5, 3, 4)
    outputs = to_numpy(MeanForecast()(inputs))
    for row in range(5):
        rates = [np.exp(inputs[row, member, 0]) for member in range(3)]
        others = [sum(inputs[row, :, p]) / 3 for p in (1, 2, 3)]
        np.testing.assert_allclose(
            outputs[row], [np.log(sum(rates) / 3), *others], rtol=1e-5
        )


def test_members_that_agree_are_told_as_they_are():
    inputs = np.repeat(normal(1, 5, 1, 4) * 30, 3, axis=1)
    np.testing.assert_allclose(
        to_numpy(MeanForecast()(inputs)), inputs[:, 0], rtol=1e-5
    )


def test_rates_alone():
    outputs = MeanForecast()(np.log([[[1.0], [3.0]]]))
    np.testing.assert_allclose(np.exp(outputs), [[2.0]], rtol=1e-6)


def test_float32_under_any_policy():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert MeanForecast()(normal(0, 2, 3, 4)).dtype == "float32"
    finally:
        keras.config.set_dtype_policy(policy)


def test_config_and_symbolic_shape():
    check_config_round_trip(MeanForecast())
    symbolic = MeanForecast()(keras.KerasTensor((None, 3, 4)))
    assert symbolic.shape == (None, 4)
