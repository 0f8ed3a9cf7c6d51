import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings, strategies as st

from m2m_tf.layers import MetaResidualTower

from .layer_checks import (
    leaky_relu,
    normal,
    randomize_weights,
    run_layer_checks,
    to_numpy,
)
from .test_meta_unit import meta_unit_row

OPTIONS = [
    {},
    {"rank": 2},
    {"share_meta_across_tasks": False},
    {"generated": False},
    {"share_meta_across_tasks": False, "generated": False},
]


def reference(layer, inputs, scenario_knowledge):
    """Eq. 17-18, one sample and task at a time."""
    outputs = np.zeros(inputs.shape)
    for b, t in np.ndindex(*inputs.shape[:2]):
        hidden = inputs[b, t]
        for task_unit in layer.meta_units:
            own = 0 if layer.share_meta_across_tasks else t
            meta = meta_unit_row(
                task_unit.units[own], hidden, scenario_knowledge[b]
            )
            hidden = np.array([leaky_relu(m + h) for m, h in zip(meta, hidden)])
        outputs[b, t] = hidden
    return outputs


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_layer(tmp_path, options):
    # Width 4, d 3, 2 tasks.
    per_layer = 4 * 4 + 4
    num_weights = 2
    if options.get("generated", True):
        rank = options.get("rank")
        per_layer += 3 * 4
        per_layer += 4 * 2 + 3 * 2 * 2 + 2 * 4 if rank else 3 * 4 * 4
        num_weights = 6 if rank else 3
    units = 1 if options.get("share_meta_across_tasks", True) else 2
    run_layer_checks(
        tmp_path,
        lambda **kwargs: MetaResidualTower(
            3,
            1,
            kernel_regularizer=keras.regularizers.L2(1e-3),
            **options,
            **kwargs,
        ),
        {"inputs": normal(0, 6, 2, 4), "scenario_knowledge": normal(1, 6, 3)},
        num_weights=3 * units * num_weights,
        num_parameters=3 * units * per_layer,
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_loops_over_the_equations(options):
    inputs, knowledge = normal(0, 3, 2, 4), normal(1, 3, 2)
    layer = MetaResidualTower(2, 2, **options)
    layer.build(inputs.shape, knowledge.shape)
    randomize_weights(layer)
    np.testing.assert_allclose(
        to_numpy(layer(inputs, knowledge)),
        reference(layer, inputs, knowledge),
        rtol=1e-4,
        atol=1e-4,
    )


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    num_layers=st.integers(1, 3),
    generated=st.booleans(),
)
def test_zero_kernels_and_biases_leave_the_residual(
    seed, num_layers, generated
):
    inputs, knowledge = normal(seed, 2, 3, 4), normal(seed + 1, 2, 2)
    layer = MetaResidualTower(num_layers, 1, generated=generated)
    layer.build(inputs.shape, knowledge.shape)
    for weight in layer.weights:
        weight.assign(np.zeros(weight.shape))
    # σ of σ of ...: a negative number shrinks fivefold in each layer.
    expected = np.where(inputs > 0, inputs, inputs * 0.2**num_layers)
    np.testing.assert_allclose(
        to_numpy(layer(inputs, knowledge)), expected, rtol=1e-5
    )


def test_each_residual_layer_has_its_own_meta_unit():
    layer = MetaResidualTower(2, 1)
    layer.build((None, 2, 4), (None, 3))
    first, second = (
        to_numpy(unit.units[0].meta_layers[0].kernel_base)
        for unit in layer.meta_units
    )
    assert not np.any(first == second)


def test_regularizers_apply_to_their_own_weights():
    options = {
        "generator_regularizer": keras.regularizers.L2(0.1),
        "kernel_regularizer": keras.regularizers.L2(10.0),
    }
    for generated, factor in ((True, 0.1), (False, 10.0)):
        layer = MetaResidualTower(1, 1, generated=generated, **options)
        layer.build((None, 2, 4), (None, 3))
        randomize_weights(layer)
        regularized = [
            weight
            for weight in layer.weights
            if generated or weight.path.endswith("kernel")
        ]
        # Generators hold V times d = 3; the penalty is on V.
        expected = factor * sum(
            float(np.sum(to_numpy(weight) ** 2))
            / (9 if "_generator" in weight.name else 1)
            for weight in regularized
        )
        assert sum(map(float, layer.losses)) == pytest.approx(expected)


def test_gradient_of_a_fresh_deep_tower_is_not_lost():
    """The trap of towers without residual: gradients of about 1e-17."""
    inputs = tf.constant(normal(0, 8, 2, 16))
    layer = MetaResidualTower(num_layers=6, num_meta_layers=3)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        loss = tf.reduce_sum(layer(inputs, normal(1, 8, 4)))
    gradient = np.abs(tape.gradient(loss, inputs))
    assert 0.01 < gradient.mean() < 1000


def test_invalid_arguments():
    with pytest.raises(ValueError, match="`num_layers` .*num_layers=0"):
        MetaResidualTower(num_layers=0)
    with pytest.raises(ValueError, match="`num_meta_layers` .*layers=-1"):
        MetaResidualTower(num_meta_layers=-1)
    with pytest.raises(ValueError, match="`rank` must be .*rank=0"):
        MetaResidualTower(rank=0)
    with pytest.raises(ValueError, match=r"`inputs` must .*=\(None, 4\)"):
        MetaResidualTower().build((None, 4), (None, 2))
