import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings, strategies as st

from m2m_tf.layers import MetaDense, _generated_product
from m2m_tf.layers._generated_product import block_rows, generated_product

from .layer_checks import normal, randomize_weights


@given(st.integers(1, 700), st.integers(1, 20000))
def test_blocks_divide_the_kernel_and_keep_to_their_size(input_dim, units):
    rows = block_rows(input_dim, units)
    assert input_dim % rows == 0
    assert rows == 1 or rows * units <= _generated_product.BLOCK


def test_blocks_of_the_papers_kernels():
    assert block_rows(512, 512) == 16
    assert block_rows(64, 64) == 64  # The whole kernel.


def plain_product(hidden, knowledge, generator, units):
    kernel = tf.reshape(
        tf.matmul(knowledge, generator), (-1, hidden.shape[-1], units)
    )
    return tf.matmul(hidden, kernel)


def outputs_and_gradients(product, arrays, units, **options):
    @tf.function(**options)
    def run(*arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            outputs = product(*arguments, units)
            loss = tf.reduce_sum(tf.sin(tf.cast(outputs, "float32")))
        return outputs, *tape.gradient(loss, arguments)

    return [tensor.numpy() for tensor in run(*map(tf.constant, arrays))]


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 5),
    rows=st.integers(1, 3),
    input_dim=st.sampled_from([1, 6, 7, 12]),
    units=st.integers(1, 5),
    block=st.integers(1, 20),
)
def test_equals_the_product_with_whole_kernels(
    batch, rows, input_dim, units, block
):
    arrays = (
        normal(0, batch, rows, input_dim),
        normal(1, batch, 3),
        normal(2, 3, input_dim * units),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_generated_product, "BLOCK", block)
        ours = outputs_and_gradients(generated_product, arrays, units)
    plain = outputs_and_gradients(plain_product, arrays, units)
    for one, other in zip(ours, plain):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_equals_it_compiled_by_xla(monkeypatch):
    monkeypatch.setattr(_generated_product, "BLOCK", 12)
    arrays = normal(0, 4, 2, 12), normal(1, 4, 3), normal(2, 3, 12 * 5)
    ours = outputs_and_gradients(generated_product, arrays, 5, jit_compile=True)
    for one, other in zip(
        ours, outputs_and_gradients(plain_product, arrays, 5)
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_no_less_exact_in_blocks(monkeypatch):
    arrays = normal(0, 8, 2, 256), normal(1, 8, 16), normal(2, 16, 256 * 4)
    exact = plain_product(*map(tf.constant, arrays), 4)

    def error(product):
        low = [tf.cast(array, "bfloat16") for array in arrays]
        outputs = tf.cast(product(*low, 4), "float32")
        return float(tf.sqrt(tf.reduce_mean((outputs - exact) ** 2)))

    whole = error(plain_product)
    monkeypatch.setattr(_generated_product, "BLOCK", 16)
    assert block_rows(256, 4) == 4
    assert 0 < error(generated_product) < 1.2 * whole


def test_a_layer_of_blocks_trains_saves_and_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(_generated_product, "BLOCK", 8)
    inputs, knowledge = keras.Input((3, 6)), keras.Input((2,))
    outputs = MetaDense(4)(inputs, knowledge)
    model = keras.Model([inputs, knowledge], outputs)
    randomize_weights(model.layers[-1])
    model.compile("adam", "mse")
    data = [normal(0, 8, 3, 6), normal(1, 8, 2)], normal(2, 8, 3, 4)
    losses = model.fit(*data, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    expected = model.predict(data[0], verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        loaded.predict(data[0], verbose=0), expected, rtol=1e-5
    )
    model.export(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_allclose(
        served.serve([tf.constant(x) for x in data[0]]), expected, rtol=1e-4
    )
