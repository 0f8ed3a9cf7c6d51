import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings, strategies as st

from m2m_tf.layers import SequenceEncoder

from .layer_checks import (
    randomize_weights,
    run_layer_checks,
    to_numpy,
)

SIZES = (3, 4)
POOLINGS = ("flatten", "mean", "last", "attention")
# Real days first, last, in the middle with a hole, all, none.
MASK = np.array(
    [
        [1, 1, 0, 0, 0],
        [0, 0, 1, 1, 1],
        [0, 1, 0, 1, 0],
        [1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0],
    ],
    bool,
)


def make_ids(seed=0, batch=5):
    rng = np.random.default_rng(seed)
    columns = [rng.integers(0, size, (batch, 5)) for size in SIZES]
    return np.stack(columns, axis=-1).astype("int32")


def make_encoder(seed=0, **kwargs):
    """Days of width 2 * 3 + 2 = 8."""
    layer = SequenceEncoder(SIZES, 3, position_dim=2, **kwargs)
    layer.build((None, 5, 2), (None, 5))
    return randomize_weights(layer, seed)


def softmax(scores):
    exponentials = [np.exp(score - max(scores)) for score in scores]
    return [value / sum(exponentials) for value in exponentials]


def self_attention(layer, days, real):
    """Eq. 2-4 on one sample, head by head and day by day."""
    attention = layer.self_attention
    query, key, value, output = (
        to_numpy(dense.kernel)
        for dense in (
            attention.query_dense,
            attention.key_dense,
            attention.value_dense,
            attention.output_dense,
        )
    )
    heads, width = query.shape[1:]
    results = []
    for day in range(len(days)):
        result = 0.0
        for head in range(heads):
            q = days[day] @ query[:, head]
            scores = [
                q @ (days[other] @ key[:, head]) / np.sqrt(width)
                for other in real
            ]
            for other, weight in zip(real, softmax(scores), strict=True):
                head_value = weight * (days[other] @ value[:, head])
                result = result + head_value @ output[head]
        results.append(result)
    return results


def reference_row(layer, ids, mask):
    """The encoded vector of one sample."""
    width = 8
    real = [day for day in range(len(ids)) if mask[day]]
    if not real:
        return np.zeros(width * (len(ids) if layer.pooling == "flatten" else 1))
    table = to_numpy(layer.column_embedding.embedding.embeddings)
    positions = to_numpy(layer.position_embeddings)
    days = [
        np.array([*table[first], *table[SIZES[0] + second], *positions[day]])
        for day, (first, second) in enumerate(ids)
    ]
    if layer.use_transformer:
        days = self_attention(layer, days, real)
    if layer.pooling == "flatten":
        return np.concatenate(
            [days[i] if i in real else np.zeros(width) for i in range(len(ids))]
        )
    if layer.pooling == "mean":
        return sum(days[i] for i in real) / len(real)
    if layer.pooling == "last":
        return days[max(real)]
    vector = to_numpy(layer.pooling_vector)
    weights = softmax([days[i] @ vector for i in real])
    return sum(w * days[i] for w, i in zip(weights, real, strict=True))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_layer(tmp_path, pooling):
    run_layer_checks(
        tmp_path,
        lambda **kwargs: SequenceEncoder(
            SIZES,
            3,
            pooling=pooling,
            position_dim=2,
            embeddings_regularizer=keras.regularizers.L2(1e-4),
            kernel_regularizer="l2",
            **kwargs,
        ),
        {"inputs": make_ids(), "sequence_mask": MASK},
        num_weights=7 if pooling == "attention" else 6,
        num_parameters=(3 + 4) * 3
        + 5 * 2
        + 4 * 8 * 8
        + (8 if pooling == "attention" else 0),
    )


def test_layer_without_transformer_and_mask(tmp_path):
    run_layer_checks(
        tmp_path,
        lambda **kwargs: SequenceEncoder(
            SIZES, 3, use_transformer=False, **kwargs
        ),
        {"inputs": make_ids()},
        num_weights=2,
        num_parameters=(3 + 4) * 3 + 5 * 3,
    )


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("use_transformer", [True, False])
def test_equals_loops_over_the_equations(pooling, use_transformer):
    layer = make_encoder(pooling=pooling, use_transformer=use_transformer)
    ids = make_ids()
    outputs = to_numpy(layer(ids, sequence_mask=MASK))
    for output, row_ids, row_mask in zip(outputs, ids, MASK, strict=True):
        np.testing.assert_allclose(
            output,
            reference_row(layer, row_ids, row_mask),
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize("pooling", POOLINGS)
def test_no_mask_means_that_all_days_are_real(pooling):
    layer = make_encoder(pooling=pooling)
    np.testing.assert_allclose(
        to_numpy(layer(make_ids())),
        to_numpy(layer(make_ids(), sequence_mask=np.ones((5, 5), bool))),
        rtol=1e-6,
    )


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    pooling=st.sampled_from(POOLINGS),
    use_transformer=st.booleans(),
    mask=st.lists(st.booleans(), min_size=5, max_size=5),
    seed=st.integers(0, 100),
)
def test_padded_days_never_matter_and_real_days_do(
    pooling, use_transformer, mask, seed
):
    layer = make_encoder(seed, pooling=pooling, use_transformer=use_transformer)
    mask = np.array([mask])
    ids = make_ids(seed, batch=1)
    changed = (ids + 1) % np.array(SIZES)
    outputs = to_numpy(layer(ids, sequence_mask=mask))

    padding_changed = np.where(mask[..., None], ids, changed)
    np.testing.assert_allclose(
        to_numpy(layer(padding_changed, sequence_mask=mask)),
        outputs,
        rtol=1e-6,
        atol=1e-7,
    )
    if mask.any():
        real_changed = np.where(mask[..., None], changed, ids)
        assert not np.allclose(
            to_numpy(layer(real_changed, sequence_mask=mask)), outputs
        )
    else:
        assert not outputs.any()


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_only_padding_has_finite_gradients(pooling, policy):
    layer = make_encoder(pooling=pooling, dtype=policy)
    with tf.GradientTape() as tape:
        outputs = layer(make_ids(), sequence_mask=np.zeros((5, 5), bool))
        loss = tf.reduce_sum((tf.cast(outputs, "float32") - 1.0) ** 2)
    gradients = tape.gradient(
        loss, [weight.value for weight in layer.trainable_weights]
    )
    for gradient in gradients:
        assert np.all(np.isfinite(to_numpy(gradient)))


def test_order_of_days_matters():
    layer = make_encoder(pooling="mean")
    ids = make_ids()
    reversed_outputs = to_numpy(layer(ids[:, ::-1].copy()))
    assert not np.allclose(reversed_outputs, to_numpy(layer(ids)))


def test_a_mask_attached_to_the_ids_is_not_used():
    """Keras fills arguments named `mask` or `inputs_mask` on its own."""
    ids = tf.constant(make_ids())
    ids._keras_mask = tf.constant(MASK)
    layer = make_encoder(pooling="mean")
    with pytest.warns(UserWarning, match="does not support masking"):
        outputs = to_numpy(layer(ids))
    np.testing.assert_array_equal(outputs, to_numpy(layer(make_ids())))


def test_float_mask_and_float_ids():
    layer = make_encoder(dtype="mixed_bfloat16")
    np.testing.assert_array_equal(
        to_numpy(
            layer(
                make_ids().astype("float32"),
                sequence_mask=MASK.astype("float32"),
            )
        ),
        to_numpy(layer(make_ids(), sequence_mask=MASK)),
    )


def test_scale_at_the_start_is_that_of_the_input():
    ids = np.random.default_rng(0).integers(0, 50, (64, 7, 3)).astype("int32")
    layer = SequenceEncoder((50, 50, 50), use_transformer=False)
    assert to_numpy(layer(ids)).std() == pytest.approx(0.25, rel=0.1)


def test_invalid_arguments():
    with pytest.raises(
        ValueError, match="`pooling` must be one of .*pooling='max'"
    ):
        SequenceEncoder(SIZES, pooling="max")
    with pytest.raises(
        ValueError,
        match="`num_heads` must divide .* = 48; change .*num_heads=5",
    ):
        SequenceEncoder(SIZES, num_heads=5)
    SequenceEncoder(SIZES, num_heads=5, use_transformer=False)
    with pytest.raises(ValueError, match="`position_dim` .*position_dim=0"):
        SequenceEncoder(SIZES, position_dim=0)
    with pytest.raises(ValueError, match="`embedding_dim` .*_dim=-1"):
        SequenceEncoder(SIZES, embedding_dim=-1)
    with pytest.raises(ValueError, match="`vocabulary_sizes` .*=None"):
        SequenceEncoder(None)
    with pytest.raises(
        ValueError, match=r"`inputs` must .*shape=\(None, None, 2\)"
    ):
        SequenceEncoder(SIZES).build((None, None, 2))
    with pytest.raises(ValueError, match="each of the 2 vocabulary sizes"):
        SequenceEncoder(SIZES).build((None, 5, 3))


def test_number_of_parameters_does_not_depend_on_the_mask():
    with_mask, without = (SequenceEncoder(SIZES) for _ in range(2))
    with_mask(make_ids(), sequence_mask=MASK)
    without(make_ids())
    assert with_mask.count_params() == without.count_params()
