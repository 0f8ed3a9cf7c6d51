import numpy as np
import pytest

from m2m_tf.layers import GatedExperts

from .layer_checks import (
    normal,
    randomize_weights,
    run_layer_checks,
    to_numpy,
)


@pytest.mark.parametrize(("own", "gated"), [(0, 7), (1, 5), (2, 3)])
def test_layer(tmp_path, own, gated):
    # 7 views: 7, 7 - 3 or 7 - 6 shared, beside 0, 1 or 2 of a task's own.
    run_layer_checks(
        tmp_path,
        lambda **kwargs: GatedExperts(
            3, own, kernel_regularizer="l2", **kwargs
        ),
        {"inputs": normal(0, 4, 6), "expert_views": normal(1, 4, 7, 5)},
        num_weights=1,
        num_parameters=3 * 6 * gated,
    )


def reference(inputs, views, kernel, num_tasks, own):
    """Gates and sums by loops, from MMoE's and CGC's equations."""
    outputs = np.zeros((len(inputs), num_tasks, views.shape[-1]))
    for sample in range(len(inputs)):
        for task in range(num_tasks):
            seen = [task * own + i for i in range(own)]
            seen += range(num_tasks * own, views.shape[1])
            logits = [
                sum(inputs[sample] * kernel[task, :, gate])
                for gate in range(len(seen))
            ]
            shares = np.exp(logits) / np.exp(logits).sum()
            for share, expert in zip(shares, seen, strict=True):
                outputs[sample, task] += share * views[sample, expert]
    return outputs


@pytest.mark.parametrize("own", [0, 1, 2])
def test_equals_loops_over_tasks_and_experts(own):
    inputs, views = normal(0, 2, 6), normal(1, 2, 8, 4)
    layer = GatedExperts(3, own)
    layer.build(inputs.shape, views.shape)
    randomize_weights(layer)
    np.testing.assert_allclose(
        to_numpy(layer(inputs, views)),
        reference(inputs, views, to_numpy(layer.kernel), 3, own),
        rtol=1e-4,
        atol=1e-5,
    )


def test_experts_of_other_tasks_never_matter():
    inputs, views = normal(0, 2, 6), normal(1, 2, 5, 4)
    layer = GatedExperts(3, 1)
    before = to_numpy(layer(inputs, views))
    views[:, 1] += 1  # The expert of the second task.
    after = to_numpy(layer(inputs, views))
    np.testing.assert_array_equal(before[:, [0, 2]], after[:, [0, 2]])
    assert (before[:, 1] != after[:, 1]).all()


def test_invalid_arguments():
    with pytest.raises(ValueError, match="num_tasks=0"):
        GatedExperts(0)
    with pytest.raises(ValueError, match="at least as many"):
        GatedExperts(3, 2).build((2, 4), (2, 5, 4))
