import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from m2m_tf.layers import MetaAttention

from .layer_checks import (
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


def make_inputs(seed=0, batch=6, experts=3, tasks=2, d1=4, d2=3, d=2):
    return {
        "expert_views": normal(seed, batch, experts, d1),
        "task_views": normal(seed + 1, tasks, d2),
        "scenario_knowledge": normal(seed + 2, batch, d),
    }


def build_random(layer, inputs, scale=0.5):
    layer.build(**{f"{name}_shape": x.shape for name, x in inputs.items()})
    return randomize_weights(layer, scale=scale)


def attend(layer, inputs):
    outputs, scores = layer(**inputs, return_attention_scores=True)
    return to_numpy(outputs), to_numpy(scores)


def reference(layer, expert_views, task_views, scenario_knowledge):
    """Eq. 14-16, one sample, task and expert at a time."""
    batch, experts, d1 = expert_views.shape
    tasks = len(task_views)
    outputs = np.zeros((batch, tasks, d1))
    scores = np.zeros((batch, tasks, experts))
    vectors = to_numpy(layer.score_vector)
    units = layer.meta_unit.units
    for b, t in np.ndindex(batch, tasks):
        own = 0 if layer.share_meta_across_tasks else t
        exponentials = []
        for i in range(experts):
            pair = np.array([*expert_views[b, i], *task_views[t]])
            hidden = meta_unit_row(units[own], pair, scenario_knowledge[b])
            score = sum(v * h for v, h in zip(vectors[own], hidden))
            exponentials.append(math.exp(score))
        for i in range(experts):
            scores[b, t, i] = exponentials[i] / sum(exponentials)
            for c in range(d1):
                outputs[b, t, c] += scores[b, t, i] * expert_views[b, i, c]
    return outputs, scores


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_layer(tmp_path, options):
    # Pairs have width 4 + 3, d is 2, there are 2 tasks.
    per_layer = 7 * 7 + 7
    num_weights, num_task_generators = 2, 0
    if options.get("generated", True):
        rank = options.get("rank")
        per_layer += 2 * 7
        per_layer += 7 * 2 + 2 * 2 * 2 + 2 * 7 if rank else 2 * 7 * 7
        num_weights = 6 if rank else 3
        # The first layer of full rank generates what meets T by itself.
        num_task_generators = 0 if rank else 1
    units = 1 if options.get("share_meta_across_tasks", True) else 2
    run_layer_checks(
        tmp_path,
        lambda **kwargs: MetaAttention(
            2,
            generator_regularizer=keras.regularizers.L2(1e-3),
            kernel_regularizer="l2",
            **options,
            **kwargs,
        ),
        make_inputs(),
        num_weights=units * (2 * num_weights + num_task_generators) + 1,
        num_parameters=units * (2 * per_layer + 7),
        unbatched=("task_views",),
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_loops_over_the_equations(options):
    inputs = make_inputs(batch=3)
    layer = build_random(MetaAttention(2, **options), inputs)
    outputs, scores = attend(layer, inputs)
    expected_outputs, expected_scores = reference(layer, **inputs)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs, expected_outputs, rtol=1e-4, atol=1e-5)
    assert scores.std() > 0.05, "the scores hardly differ: a weak test"


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_one_task_equals_the_equations_again_and_again(options):
    # A product of [64, 1, ...] with [1, 1, ...] is one that TensorFlow's CPU
    # kernel writes beyond: sooner or later the process dies.
    inputs = make_inputs(batch=64, experts=2, tasks=1, d1=16, d2=16)
    layer = build_random(MetaAttention(1, **options), inputs, scale=0.2)
    outputs, scores = attend(layer, inputs)
    expected_outputs, expected_scores = reference(layer, **inputs)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs, expected_outputs, rtol=1e-4, atol=1e-5)
    for _ in range(200):
        np.testing.assert_array_equal(attend(layer, inputs)[0], outputs)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    experts=st.integers(2, 4),
    tasks=st.integers(1, 3),
    share=st.booleans(),
)
def test_scores_sum_to_one_and_permuting_experts_permutes_them(
    seed, experts, tasks, share
):
    inputs = make_inputs(seed, batch=2, experts=experts, tasks=tasks)
    layer = MetaAttention(1, share_meta_across_tasks=share)
    build_random(layer, inputs)
    outputs, scores = attend(layer, inputs)
    assert scores.shape == (2, tasks, experts)
    np.testing.assert_allclose(scores.sum(axis=-1), 1.0, rtol=1e-6)

    order = np.random.default_rng(seed).permutation(experts)
    inputs["expert_views"] = inputs["expert_views"][:, order]
    permuted_outputs, permuted_scores = attend(layer, inputs)
    np.testing.assert_allclose(
        permuted_scores, scores[:, :, order], rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(permuted_outputs, outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_identical_experts_give_that_expert(policy):
    inputs = make_inputs(experts=1)
    expert = inputs["expert_views"]
    inputs["expert_views"] = np.repeat(expert, 5, axis=1)
    layer = build_random(MetaAttention(1, dtype=policy), inputs)
    outputs, _ = attend(layer, inputs)
    # The weights of the sum are float32, so only the expert itself and the
    # result are rounded to 8 bits, each by 2⁻⁹ at most.
    tolerance = 1e-6 if policy == "float32" else 2**-8
    for task in range(2):
        np.testing.assert_allclose(
            outputs[:, task], expert[:, 0], rtol=tolerance, atol=1e-6
        )


def test_scores_depend_on_expert_task_and_scenario():
    inputs = make_inputs()
    layer = build_random(MetaAttention(2), inputs)
    _, scores = attend(layer, inputs)
    assert not np.allclose(scores[:, 0], scores[:, 1])
    other = {**inputs, "scenario_knowledge": normal(9, 6, 2)}
    assert not np.allclose(attend(layer, other)[1], scores)
    fixed = build_random(MetaAttention(2, generated=False), inputs)
    np.testing.assert_array_equal(
        attend(fixed, other)[1], attend(fixed, inputs)[1]
    )


def test_symbolic_scores():
    layer = MetaAttention(1)
    outputs, scores = layer(
        keras.KerasTensor((None, 3, 4)),
        keras.KerasTensor((2, 5)),
        keras.KerasTensor((None, 6)),
        return_attention_scores=True,
    )
    assert outputs.shape == (None, 2, 4)
    assert scores.shape == (None, 2, 3)
    mixed = MetaAttention(1, dtype="mixed_bfloat16")
    symbolic = mixed(
        *(
            keras.KerasTensor(shape)
            for shape in [(None, 3, 4), (2, 5), (None, 6)]
        ),
        return_attention_scores=True,
    )
    eager = mixed(**make_inputs(d2=5, d=6), return_attention_scores=True)
    assert [x.dtype for x in symbolic] == ["bfloat16", "float32"]
    assert [x.dtype.name for x in eager] == ["bfloat16", "float32"]


def test_large_scores_stay_finite():
    inputs = make_inputs()
    layer = build_random(MetaAttention(2), inputs, scale=30.0)
    outputs, scores = attend(layer, inputs)
    assert np.all(np.isfinite(outputs))
    np.testing.assert_allclose(scores.sum(axis=-1), 1.0, rtol=1e-6)


def test_invalid_arguments():
    with pytest.raises(ValueError, match="`num_meta_layers` .*layers=0"):
        MetaAttention(num_meta_layers=0)
    with pytest.raises(ValueError, match="`rank` must be .*rank=1.5"):
        MetaAttention(rank=1.5)
    with pytest.raises(
        ValueError, match=r"`expert_views` must .*shape=\(None, 4\)"
    ):
        MetaAttention().build((None, 4), (2, 3), (None, 2))
    with pytest.raises(
        ValueError, match=r"`task_views` must .*shape=\(None, 2, 3\)"
    ):
        MetaAttention().build((None, 3, 4), (None, 2, 3), (None, 2))
