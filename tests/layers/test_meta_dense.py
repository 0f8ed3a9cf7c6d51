import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings, strategies as st

from m2m_tf.layers import MetaDense
from m2m_tf.regularizers import L2

from .layer_checks import (
    leaky_relu,
    normal,
    randomize_weights,
    run_layer_checks,
    to_numpy,
)


def generated_kernel(layer, knowledge):
    """W of eq. 11 for one sample, entry by entry.

    The layer's generators hold V times d.
    """
    knowledge = knowledge / len(knowledge)
    weights = {weight.name: to_numpy(weight) for weight in layer.weights}
    generator = weights["kernel_generator"]
    kernel = weights["kernel_base"].astype("float64")
    for i, j in np.ndindex(*kernel.shape):
        if layer.rank is None:
            column = generator[:, i * layer.units + j]
            kernel[i, j] += np.dot(column, knowledge)
            continue
        for p, q in np.ndindex(layer.rank, layer.rank):
            core = np.dot(generator[:, p * layer.rank + q], knowledge)
            before = weights["input_factor"][i, p]
            kernel[i, j] += before * core * weights["output_factor"][q, j]
    return kernel


def generated_bias(layer, knowledge):
    """b of eq. 12 for one sample."""
    knowledge = knowledge / len(knowledge)
    generator, base = to_numpy(layer.bias_generator), to_numpy(layer.bias_base)
    return [
        np.dot(generator[:, j], knowledge) + base[j] for j in range(layer.units)
    ]


def meta_dense_row(layer, row, knowledge):
    """Eq. 10 for one row of one sample."""
    kernel = generated_kernel(layer, knowledge)
    bias = generated_bias(layer, knowledge)
    return [
        leaky_relu(sum(row * kernel[:, j]) + bias[j])
        for j in range(layer.units)
    ]


@pytest.mark.parametrize("rank", [None, 2])
def test_layer(tmp_path, rank):
    # d_in 4, units 5, d 3.
    generator = 3 * 4 * 5 if rank is None else 4 * 2 + 3 * 2 * 2 + 2 * 5
    run_layer_checks(
        tmp_path,
        lambda **kwargs: MetaDense(
            5,
            rank=rank,
            activation="tanh",
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.1),
            generator_regularizer=keras.regularizers.L2(0.5),
            **kwargs,
        ),
        {"inputs": normal(0, 6, 2, 4), "scenario_knowledge": normal(1, 6, 3)},
        num_weights=4 if rank is None else 6,
        num_parameters=4 * 5 + generator + 3 * 5 + 5,
    )


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    rank=st.sampled_from([None, 1, 3]),
    # From 8 rows of a sample on, its kernel is made another way.
    middle=st.sampled_from([(), (2,), (2, 3), (8,), (3, 3)]),
    knowledge_dim=st.integers(1, 3),
    units=st.integers(1, 4),
    seed=st.integers(0, 100),
)
def test_equals_loops_over_the_equations(
    rank, middle, knowledge_dim, units, seed
):
    inputs = normal(seed, 3, *middle, 4)
    knowledge = normal(seed + 1, 3, knowledge_dim)
    layer = MetaDense(units, rank=rank)
    layer.build(inputs.shape, knowledge.shape)
    randomize_weights(layer, seed)

    outputs = to_numpy(layer(inputs, knowledge))

    assert outputs.shape == (3, *middle, units)
    for sample in range(3):
        for index in np.ndindex(*middle):
            np.testing.assert_allclose(
                outputs[(sample, *index)],
                meta_dense_row(
                    layer, inputs[(sample, *index)], knowledge[sample]
                ),
                rtol=1e-4,
                atol=1e-4,
            )


@pytest.mark.parametrize("rank", [None, 4])
def test_zero_knowledge_leaves_the_shared_dense_layer(rank):
    inputs = normal(0, 5, 8)
    layer = MetaDense(3, rank=rank, activation=None)
    outputs = to_numpy(layer(inputs, np.zeros((5, 2), "float32")))
    np.testing.assert_allclose(
        outputs, inputs @ to_numpy(layer.kernel_base), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("rank", [None, 8])
def test_variance_at_the_start_is_that_of_a_dense_layer(rank):
    inputs, knowledge = normal(0, 512, 64), normal(1, 512, 16)
    layer = MetaDense(64, rank=rank, activation=None)
    outputs = to_numpy(layer(inputs, knowledge))
    shared = inputs @ to_numpy(layer.kernel_base)
    # A Dense layer with a He kernel doubles the variance of its input. The
    # scenario adds a tenth of that.
    assert np.var(outputs) == pytest.approx(2.2, rel=0.15)
    assert np.var(outputs - shared) == pytest.approx(0.2, rel=0.3)


@pytest.mark.parametrize("rank", [None, 2])
def test_gradient_reaches_the_knowledge_at_the_start(rank):
    knowledge = tf.constant(normal(1, 4, 3))
    layer = MetaDense(4, rank=rank)
    with tf.GradientTape() as tape:
        tape.watch(knowledge)
        loss = tf.reduce_sum(layer(normal(0, 4, 5), knowledge) ** 2)
    gradient = tape.gradient(loss, knowledge).numpy()
    assert np.all(gradient != 0)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("penalty", [keras.regularizers.L2, L2])
def test_regularizer_covers_every_weight(rank, penalty):
    layer = MetaDense(3, rank=rank, generator_regularizer=penalty(0.1))
    layer.build((None, 4), (None, 2))
    randomize_weights(layer)
    # Generators hold V times d = 2; the penalty is on V.
    generators = ("kernel_generator", "bias_generator")
    expected = 0.1 * sum(
        float(np.sum(to_numpy(weight) ** 2))
        / (4 if weight.name in generators else 1)
        for weight in layer.weights
    )
    assert sum(float(loss) for loss in layer.losses) == pytest.approx(
        expected, rel=1e-5
    )


def test_a_step_moves_a_generated_kernel_as_far_as_an_ordinary_one():
    """Whatever d: the moves of the d terms of V S must not add up."""
    for knowledge_dim in (1, 64):
        layer = MetaDense(5)
        layer.build((None, 4), (None, knowledge_dim))
        knowledge = np.ones(knowledge_dim)
        before = generated_kernel(layer, knowledge)
        layer.kernel_generator.assign_add(
            np.full(layer.kernel_generator.shape, 0.002)
        )
        after = generated_kernel(layer, knowledge)
        np.testing.assert_allclose(after - before, 0.002, rtol=1e-3)


def test_one_initializer_object_gives_different_kernels():
    initializer = keras.initializers.HeNormal()
    layers = [MetaDense(4, kernel_initializer=initializer) for _ in range(2)]
    for layer in layers:
        layer.build((None, 4), (None, 2))
    first, second = (to_numpy(layer.kernel_base) for layer in layers)
    assert not np.any(first == second)


def test_one_unknown_middle_axis():
    layer = MetaDense(3)
    symbolic = layer(
        keras.KerasTensor((None, None, 4)), keras.KerasTensor((None, 2))
    )
    assert symbolic.shape == (None, None, 3)
    assert layer(normal(0, 2, 7, 4), normal(1, 2, 2)).shape == (2, 7, 3)
    inputs, knowledge = normal(0, 2, 9, 4), normal(1, 2, 2)
    traced = tf.function(
        layer.call,
        input_signature=[
            tf.TensorSpec((None, None, 4)),
            tf.TensorSpec((None, 2)),
        ],
    )
    np.testing.assert_allclose(
        traced(inputs, knowledge), layer(inputs, knowledge), rtol=1e-5
    )


def test_invalid_arguments():
    with pytest.raises(ValueError, match="`units` .* Received: units=0"):
        MetaDense(0)
    with pytest.raises(ValueError, match="`rank` .* Received: rank=0"):
        MetaDense(4, rank=0)
    with pytest.raises(
        ValueError, match=r"`inputs` must have .* inputs.shape=\(None, None\)"
    ):
        MetaDense(4).build((None, None), (None, 2))
    with pytest.raises(ValueError, match="between the first and the last"):
        MetaDense(4).build((None, None, 2, 4), (None, 2))
    with pytest.raises(
        ValueError, match=r"`scenario_knowledge` must .*=\(None, 2, 2\)"
    ):
        MetaDense(4).build((None, 4), (None, 2, 2))


@pytest.mark.parametrize("rank", [None, 3])
def test_pairs_with_shared_inputs_equal_the_pairs_made(rank):
    rows, knowledge = normal(0, 4, 3, 5), normal(1, 4, 2)
    shared = normal(2, 6, 4)
    pairs = np.concatenate(
        [
            np.broadcast_to(rows[:, None], (4, 6, 3, 5)),
            np.broadcast_to(shared[None, :, None], (4, 6, 3, 4)),
        ],
        axis=-1,
    )
    layer = MetaDense(7, rank=rank)
    layer.build(rows.shape, knowledge.shape, shared.shape)
    randomize_weights(layer)

    def gradients(*arguments):
        arguments = [tf.constant(argument) for argument in arguments]
        with tf.GradientTape() as tape:
            tape.watch(arguments[1])
            outputs = layer(*arguments)
            loss = tf.reduce_sum(tf.sin(outputs))
        wanted = [*layer.trainable_variables, arguments[1]]
        return outputs, *tape.gradient(loss, wanted)

    for ours, plain in zip(
        gradients(rows, knowledge, shared), gradients(pairs, knowledge)
    ):
        assert ours.shape == plain.shape
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [3, 9])
def test_gradients_equal_those_of_the_plain_form(rows):
    inputs, knowledge = normal(0, 4, rows, 5), normal(1, 4, 2)
    layer = MetaDense(6, activation="tanh")
    layer.build(inputs.shape, knowledge.shape)
    randomize_weights(layer)
    with tf.GradientTape(persistent=True) as tape:
        # b: sample, r: row, i: column, c: knowledge, u: unit. Eq. 10-12.
        scaled = knowledge / 2
        generator = tf.reshape(layer.kernel_generator, (2, 5, 6))
        kernel = tf.einsum("bc,ciu->biu", scaled, generator)
        kernel += layer.kernel_base
        bias = tf.einsum("bc,cu->bu", scaled, layer.bias_generator)
        bias += layer.bias_base
        plain = tf.tanh(
            tf.einsum("bri,biu->bru", inputs, kernel) + bias[:, None]
        )
        ours = layer(inputs, knowledge)
        losses = [tf.reduce_sum(tf.sin(x)) for x in (plain, ours)]
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-6)
    expected, received = (
        tape.gradient(loss, layer.trainable_variables) for loss in losses
    )
    for one, other in zip(expected, received):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "shapes, message",
    [
        (((None, 3, 4), (None, 2), (None, 5)), r"known shape \[num_shared"),
        (((None, 2, 3, 4), (None, 2), (6, 5)), "With `shared_inputs`"),
    ],
)
def test_shared_inputs_of_a_wrong_shape(shapes, message):
    with pytest.raises(ValueError, match=message):
        MetaDense(3).build(*shapes)


@pytest.mark.parametrize("rank", [None, 2])
def test_generated_kernel_is_that_of_the_equation(rank):
    layer = MetaDense(5, rank=rank)
    knowledge = normal(1, 6, 3)
    layer(normal(0, 6, 4), knowledge)
    randomize_weights(layer)
    expected = [generated_kernel(layer, row) for row in to_numpy(knowledge)]
    np.testing.assert_allclose(
        to_numpy(layer.generated_kernel(knowledge)), expected, rtol=1e-4
    )
