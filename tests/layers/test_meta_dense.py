import subprocess
import sys

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


def full_generators(layer):
    """V_w `[d, d_in, units]` and V_b `[d, units]` of a layer of full rank.

    Times d, as in its weights, which generate some columns of W and b each.
    """
    shared = getattr(layer, "shared_kernel_generator", None)
    shared_dim = 0 if shared is None else shared.shape[1] // layer.units
    rows = layer.kernel_base.shape[0] - shared_dim + 1
    blocks = [
        tf.reshape(block, (block.shape[0], rows, -1))
        for block in layer.kernel_generators
    ]
    generator = tf.concat(blocks, axis=2)
    kernel, bias = generator[:, :-1], generator[:, -1]
    if shared is not None:
        shared = tf.reshape(shared, (-1, shared_dim, layer.units))
        kernel = tf.concat([kernel, shared], axis=1)
    return kernel, bias


def plain_form(layer, inputs, knowledge):
    """Eq. 10-12 as they are written, of rows `[batch, rows, d_in]`."""
    # b: sample, r: row, i: column, c: knowledge, u: unit, p, q: rank.
    knowledge = knowledge / knowledge.shape[-1]
    if layer.rank is None:
        generator, bias_generator = full_generators(layer)
    else:
        core = tf.reshape(layer.kernel_generator, (-1, layer.rank, layer.rank))
        generator = tf.einsum(
            "ip,cpq,qu->ciu", layer.input_factor, core, layer.output_factor
        )
        bias_generator = layer.bias_generator
    kernel = tf.einsum("bc,ciu->biu", knowledge, generator) + layer.kernel_base
    bias = tf.einsum("bc,cu->bu", knowledge, bias_generator) + layer.bias_base
    products = tf.einsum("bri,biu->bru", inputs, kernel)
    return layer.activation(products + bias[:, None])


def generated_kernel(layer, knowledge):
    """W of eq. 11 for one sample, entry by entry.

    The layer's generators hold V times d.
    """
    knowledge = knowledge / len(knowledge)
    weights = {weight.name: to_numpy(weight) for weight in layer.weights}
    kernel = weights["kernel_base"].astype("float64")
    if layer.rank is None:
        generator = to_numpy(full_generators(layer)[0])
    else:
        generator = weights["kernel_generator"]
    for i, j in np.ndindex(*kernel.shape):
        if layer.rank is None:
            kernel[i, j] += np.dot(generator[:, i, j], knowledge)
            continue
        for p, q in np.ndindex(layer.rank, layer.rank):
            core = np.dot(generator[:, p * layer.rank + q], knowledge)
            before = weights["input_factor"][i, p]
            kernel[i, j] += before * core * weights["output_factor"][q, j]
    return kernel


def generated_bias(layer, knowledge):
    """b of eq. 12 for one sample."""
    knowledge = knowledge / len(knowledge)
    if layer.rank is None:
        generator = to_numpy(full_generators(layer)[1])
    else:
        generator = to_numpy(layer.bias_generator)
    base = to_numpy(layer.bias_base)
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
        num_weights=3 if rank is None else 6,
        num_parameters=4 * 5 + generator + 3 * 5 + 5,
    )


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    rank=st.sampled_from([None, 1, 3]),
    # From 8 rows of a sample on, its kernel is made another way.
    middle=st.sampled_from([(), (2,), (2, 3), (8,), (3, 3)]),
    knowledge_dim=st.integers(1, 3),
    # Kernels of full rank are generated in blocks of 64 columns.
    units=st.integers(1, 4) | st.just(66),
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
    generators = ("kernel_generator", "kernel_generator_0", "bias_generator")
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
        (generator,) = layer.kernel_generators
        generator.assign_add(np.full(generator.shape, 0.002))
        after = generated_kernel(layer, knowledge)
        np.testing.assert_allclose(after - before, 0.002, rtol=1e-3)


def test_one_initializer_object_gives_different_kernels():
    initializer = keras.initializers.HeNormal()
    layers = [MetaDense(4, kernel_initializer=initializer) for _ in range(2)]
    for layer in layers:
        layer.build((None, 4), (None, 2))
    first, second = (to_numpy(layer.kernel_base) for layer in layers)
    assert not np.any(first == second)


def test_a_function_may_be_the_initializer():
    layer = MetaDense(4, kernel_initializer=lambda shape, dtype: tf.ones(shape))
    layer.build((None, 4), (None, 2))
    assert np.all(to_numpy(layer.kernel_base) == 1)


def test_inputs_of_another_width_are_refused():
    layer = MetaDense(4)
    layer(normal(0, 2, 8), normal(1, 2, 3))
    with pytest.raises(ValueError, match=r"value 8.*shape \(1, 16\)"):
        layer(normal(0, 1, 16), normal(1, 1, 3))


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


def outputs_and_gradients(function, layer, *arguments):
    """Of all weights and of the arguments."""
    arguments = [tf.constant(argument) for argument in arguments]
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        outputs = function(*arguments)
        loss = tf.reduce_sum(tf.sin(outputs))
    wanted = [*layer.trainable_variables, *arguments]
    return outputs, *tape.gradient(loss, wanted)


def pairs_and_reference(batch, num_rows, num_shared, units, rank):
    """A layer, its arguments, and the pairs made and put to the equations."""
    rows, knowledge = normal(0, batch, num_rows, 5), normal(1, batch, 2)
    shared = normal(2, num_shared, 4)
    layer = MetaDense(units, rank=rank)
    layer.build(rows.shape, knowledge.shape, shared.shape)
    randomize_weights(layer)

    def plain(rows, knowledge, shared):
        shape = (batch, num_shared, num_rows)
        pairs = tf.concat(
            [
                tf.broadcast_to(rows[:, None], (*shape, 5)),
                tf.broadcast_to(shared[None, :, None], (*shape, 4)),
            ],
            axis=-1,
        )
        flat = tf.reshape(pairs, (batch, num_shared * num_rows, 9))
        outputs = plain_form(layer, flat, knowledge)
        return tf.reshape(outputs, (*shape, units))

    return layer, plain, (rows, knowledge, shared)


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("units", [7, 70])
@pytest.mark.parametrize("num_rows", [3, 9])
def test_pairs_with_shared_inputs_equal_the_pairs_made(num_rows, units, rank):
    layer, plain, inputs = pairs_and_reference(4, num_rows, 6, units, rank)
    for received, expected in zip(
        outputs_and_gradients(layer, layer, *inputs),
        outputs_and_gradients(plain, layer, *inputs),
        strict=True,
    ):
        assert received.shape == expected.shape
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("num_shared", [1, 2])
@pytest.mark.parametrize("batch", [1, 4])
def test_pairs_of_one_row_in_a_graph_of_known_shapes(batch, num_shared, rank):
    # One row is what TensorFlow's graph optimizer takes for a bias.
    layer, plain, inputs = pairs_and_reference(batch, 3, num_shared, 7, rank)
    received = tf.function(layer)(*(tf.constant(x) for x in inputs))
    expected = plain(*inputs)
    assert received.shape == expected.shape
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("units", [6, 64, 130])
@pytest.mark.parametrize("rows", [3, 9])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_gradients_equal_those_of_the_plain_form(compiled, rows, units, rank):
    inputs, knowledge = normal(0, 4, rows, 5), normal(1, 4, 2)
    layer = MetaDense(units, rank=rank, activation="tanh")
    layer.build(inputs.shape, knowledge.shape)
    randomize_weights(layer)

    def plain(inputs, knowledge):
        return plain_form(layer, inputs, knowledge)

    function = tf.function(layer) if compiled else layer
    outputs, *gradients = outputs_and_gradients(
        function, layer, inputs, knowledge
    )
    expected_outputs, *expected_gradients = outputs_and_gradients(
        plain, layer, inputs, knowledge
    )
    np.testing.assert_allclose(outputs, expected_outputs, rtol=1e-5, atol=1e-6)
    for received, expected in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-5)


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


# A process of its own, as the peak of one's memory never falls.
PEAK = """
import resource
import tensorflow as tf
from m2m_tf.layers import MetaUnit

unit = MetaUnit(16)
rows, knowledge = tf.ones((256, 4, 128)), tf.ones((256, 2))
unit(rows[:1], knowledge[:1])

@tf.function
def gradients():
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(unit(rows, knowledge))
    return tape.gradient(total, unit.trainable_variables)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before = peak()
gradients()
print(peak() - before)
"""


def test_kernels_are_not_kept_for_the_gradients():
    result = subprocess.run(
        [sys.executable, "-c", PEAK],
        capture_output=True,
        check=True,
        text=True,
        timeout=120,
    )
    kernels = 16 * 256 * 129 * 128 * 4 / 2**20
    assert float(result.stdout) < kernels / 2


@pytest.mark.parametrize("shared", [(), (normal(2, 2, 3),)], ids=["", "pairs"])
@pytest.mark.parametrize("units, rank", [(5, None), (70, None), (5, 2)])
def test_generated_kernel_is_that_of_the_equation(units, rank, shared):
    layer = MetaDense(units, rank=rank)
    knowledge = normal(1, 6, 3)
    layer(normal(0, 6, 2, 4), knowledge, *shared)
    randomize_weights(layer)
    expected = [generated_kernel(layer, row) for row in to_numpy(knowledge)]
    np.testing.assert_allclose(
        to_numpy(layer.generated_kernel(knowledge)), expected, rtol=1e-4
    )
