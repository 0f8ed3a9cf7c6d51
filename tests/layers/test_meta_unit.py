import numpy as np
import pytest

from m2m_tf.layers import DenseUnit, MetaUnit, TaskMetaUnit

from .layer_checks import (
    leaky_relu,
    normal,
    randomize_weights,
    run_layer_checks,
    to_numpy,
)
from .test_meta_dense import meta_dense_row


def meta_unit_row(unit, row, knowledge):
    """Eq. 9-13 for one row of one sample."""
    if isinstance(unit, DenseUnit):
        return dense_unit_row(unit, row)
    for layer in unit.meta_layers:
        row = np.array(meta_dense_row(layer, row, knowledge))
    return row


def dense_unit_row(unit, row):
    for layer in unit.dense_layers:
        kernel, bias = to_numpy(layer.kernel), to_numpy(layer.bias)
        row = np.array(
            [
                leaky_relu(sum(row * kernel[:, j]) + bias[j])
                for j in range(len(bias))
            ]
        )
    return row


@pytest.mark.parametrize("rank", [None, 2])
def test_meta_unit(tmp_path, rank):
    # Width 4, d 3.
    generator = 3 * 4 * 4 if rank is None else 4 * 2 + 3 * 2 * 2 + 2 * 4
    run_layer_checks(
        tmp_path,
        lambda **kwargs: MetaUnit(2, rank=rank, **kwargs),
        {"inputs": normal(0, 6, 3, 4), "scenario_knowledge": normal(1, 6, 3)},
        num_weights=2 * (3 if rank is None else 6),
        num_parameters=2 * (4 * 4 + generator + 3 * 4 + 4),
    )


def test_dense_unit(tmp_path):
    run_layer_checks(
        tmp_path,
        lambda **kwargs: DenseUnit(3, activation="tanh", **kwargs),
        {"inputs": normal(0, 6, 3, 4)},
        num_weights=6,
        num_parameters=3 * (4 * 4 + 4),
    )


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("generated", [True, False])
def test_task_meta_unit(tmp_path, share, generated):
    num_units = 1 if share else 2
    per_layer = 4 * 4 + 4 + (3 * 4 * 4 + 3 * 4 if generated else 0)
    run_layer_checks(
        tmp_path,
        lambda **kwargs: TaskMetaUnit(
            2, share_across_tasks=share, generated=generated, **kwargs
        ),
        {
            "inputs": normal(0, 6, 2, 3, 4),
            "scenario_knowledge": normal(1, 6, 3),
        },
        num_weights=num_units * 2 * (3 if generated else 2),
        num_parameters=num_units * 2 * per_layer,
    )


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("rank", [None, 2])
def test_meta_unit_equals_loops_over_the_equations(num_layers, rank):
    inputs, knowledge = normal(0, 3, 2, 4), normal(1, 3, 2)
    unit = MetaUnit(num_layers, rank=rank)
    unit.build(inputs.shape, knowledge.shape)
    randomize_weights(unit)
    outputs = to_numpy(unit(inputs, knowledge))
    for sample, row in np.ndindex(3, 2):
        np.testing.assert_allclose(
            outputs[sample, row],
            meta_unit_row(unit, inputs[sample, row], knowledge[sample]),
            rtol=1e-4,
            atol=1e-4,
        )


def test_dense_unit_equals_loops_and_ignores_the_knowledge():
    inputs = normal(0, 3, 4)
    unit = DenseUnit(2)
    unit.build(inputs.shape)
    randomize_weights(unit)
    outputs = to_numpy(unit(inputs))
    np.testing.assert_array_equal(
        to_numpy(unit(inputs, normal(1, 3, 2))), outputs
    )
    for sample in range(3):
        np.testing.assert_allclose(
            outputs[sample], dense_unit_row(unit, inputs[sample]), rtol=1e-4
        )


@pytest.mark.parametrize("rank", [None, 2])
def test_each_layer_has_its_own_generator(rank):
    unit = MetaUnit(3, rank=rank)
    unit.build((None, 4), (None, 3))
    generator = "kernel_generator" if rank else "kernel_generator_0"
    for name in ("kernel_base", generator):
        values = [
            to_numpy(weight)
            for layer in unit.meta_layers
            for weight in layer.weights
            if weight.name == name
        ]
        assert not np.any(values[0] == values[1])
        assert not np.any(values[1] == values[2])


def test_shared_task_unit_is_one_meta_unit():
    inputs, knowledge = normal(0, 3, 2, 5, 4), normal(1, 3, 2)
    layer = TaskMetaUnit(2)
    outputs = to_numpy(layer(inputs, knowledge))
    for task in range(2):
        np.testing.assert_allclose(
            outputs[:, task],
            to_numpy(layer.units[0](inputs[:, task], knowledge)),
            rtol=1e-5,
            atol=1e-6,
        )


def test_own_task_units_see_only_their_task():
    inputs, knowledge = normal(0, 3, 3, 4), normal(1, 3, 2)
    layer = TaskMetaUnit(2, share_across_tasks=False)
    outputs = to_numpy(layer(inputs, knowledge))
    changed = inputs.copy()
    changed[:, 1] += 1.0
    differs = np.any(
        to_numpy(layer(changed, knowledge)) != outputs, axis=(0, 2)
    )
    np.testing.assert_array_equal(differs, [False, True, False])
    # Equal inputs give different results: the weights differ.
    equal = np.repeat(inputs[:, :1], 3, axis=1)
    outputs = to_numpy(layer(equal, knowledge))
    assert not np.allclose(outputs[:, 0], outputs[:, 1])


@pytest.mark.parametrize("unit_class", [MetaUnit, DenseUnit, TaskMetaUnit])
def test_invalid_num_layers(unit_class):
    with pytest.raises(ValueError, match="`num_layers` .*num_layers=0"):
        unit_class(num_layers=0)


@pytest.mark.parametrize("unit_class", [MetaUnit, TaskMetaUnit])
def test_invalid_rank(unit_class):
    with pytest.raises(ValueError, match="`rank` must be .*rank=-2"):
        unit_class(rank=-2)
