import keras
import numpy as np
import pytest
import tensorflow as tf

from m2m_tf.optimizers import FusedAdam

OPTIONS = {"beta_2": 0.998, "epsilon": 1e-9}


def adam(weight, gradients, rate, beta_1=0.9, beta_2=0.998, epsilon=1e-9):
    """Algorithm 1 of the paper, its two corrections taken into the rate."""
    mean = square = np.zeros_like(weight)
    for step, gradient in enumerate(gradients, start=1):
        mean = beta_1 * mean + (1 - beta_1) * gradient
        square = beta_2 * square + (1 - beta_2) * gradient**2
        corrected = rate * np.sqrt(1 - beta_2**step) / (1 - beta_1**step)
        weight = weight - corrected * mean / (np.sqrt(square) + epsilon)
    return weight


def random_gradients(shape=(4, 3), steps=6):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype("float32") for _ in range(steps)]


def trained(optimizer, gradients, start=1.0):
    variable = keras.Variable(np.full(gradients[0].shape, start, "float32"))
    for gradient in gradients:
        optimizer.apply([tf.convert_to_tensor(gradient)], [variable])
    return variable.numpy()


def test_equals_the_paper():
    gradients = random_gradients()
    weight = np.ones((4, 3))
    np.testing.assert_allclose(
        trained(FusedAdam(0.02, **OPTIONS), gradients),
        adam(weight, [g.astype("float64") for g in gradients], 0.02),
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clipvalue": 0.3},
        {"amsgrad": True},
        {"weight_decay": 0.1},
        {"use_ema": True, "ema_momentum": 0.5},
        {"gradient_accumulation_steps": 2},
    ],
    ids=str,
)
def test_equals_keras(options):
    def schedule():
        return keras.optimizers.schedules.CosineDecay(0.05, 6)

    gradients = random_gradients()
    expected = keras.optimizers.Adam(schedule(), **OPTIONS, **options)
    np.testing.assert_allclose(
        trained(FusedAdam(schedule(), **OPTIONS, **options), gradients),
        trained(expected, gradients),
        rtol=1e-5,
    )


def test_gradients_of_embedded_rows_count():
    table = keras.Variable(np.ones((5, 2), "float32"))
    rows = tf.IndexedSlices(
        tf.constant([[1.0, 2.0], [3.0, 4.0]]), tf.constant([3, 3]), (5, 2)
    )
    FusedAdam(0.5).apply([rows], [table])
    np.testing.assert_allclose(table.numpy()[3], [0.5, 0.5], rtol=1e-5)
    np.testing.assert_array_equal(np.delete(table.numpy(), 3, axis=0), 1.0)


def make_model(optimizer, jit_compile=False):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.layers.Dense(4, activation="relu"), keras.layers.Dense(1)]
    )
    model.compile(optimizer, loss="mse", jit_compile=jit_compile)
    return model


def fit(model, epochs=2):
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(32, 3)).astype("float32")
    model.fit(inputs, inputs[:, :1], 8, epochs, verbose=0, shuffle=False)
    return [weight.numpy() for weight in model.weights]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit_gives_the_weights_of_keras(jit_compile):
    ours = fit(make_model(FusedAdam(0.01), jit_compile))
    theirs = fit(make_model(keras.optimizers.Adam(0.01), jit_compile))
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-4, atol=1e-6)


def test_a_saved_model_goes_on_from_its_moments(tmp_path):
    model = make_model(FusedAdam(0.01))
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, FusedAdam)
    for our, their in zip(fit(loaded), fit(model), strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-5, atol=1e-7)
