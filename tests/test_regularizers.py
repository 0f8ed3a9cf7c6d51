import keras
import numpy as np
import pytest
import tensorflow as tf

from m2m_tf.regularizers import L2, of_fraction

WEIGHT = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")


def test_value_and_gradient_are_those_of_the_square():
    weight = tf.Variable(WEIGHT)
    with tf.GradientTape() as tape:
        penalty = L2(0.3)(weight)
    assert float(penalty) == pytest.approx(0.3 * np.sum(WEIGHT**2), rel=1e-5)
    np.testing.assert_allclose(
        tape.gradient(penalty, weight), 0.6 * WEIGHT, rtol=1e-5
    )


@pytest.mark.parametrize("regularizer", [L2(0.3), keras.regularizers.L1(0.3)])
def test_of_fraction_is_the_penalty_of_what_is_held_as_a_multiple(regularizer):
    penalty = of_fraction(regularizer, 4.0)(tf.constant(WEIGHT))
    expected = regularizer(tf.constant(WEIGHT / 4))
    assert float(penalty) == pytest.approx(float(expected), rel=1e-5)


def test_of_fraction_leaves_what_needs_nothing():
    assert of_fraction(None, 4.0) is None
    regularizer = L2(0.3)
    assert of_fraction(regularizer, 1) is regularizer


def test_a_layer_is_saved_with_it():
    layer = keras.layers.Dense(2, kernel_regularizer=L2(0.1))
    loaded = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(layer)
    )
    assert isinstance(loaded.kernel_regularizer, L2)
    assert float(loaded.kernel_regularizer(WEIGHT)) == pytest.approx(
        0.1 * np.sum(WEIGHT**2), rel=1e-5
    )
