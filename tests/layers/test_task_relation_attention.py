import keras
import numpy as np
import pytest

from m2m_tf.layers import TaskRelationAttention

from .layer_checks import normal, run_layer_checks


def test_layer(tmp_path):
    run_layer_checks(
        tmp_path,
        lambda **kwargs: TaskRelationAttention(
            3, kernel_regularizer="l2", **kwargs
        ),
        {"inputs": normal(0, 4, 5, 6)},
        num_weights=4,
        num_parameters=3 * 6 + 3 * 3 * 6 * 6,
    )


def softmax(values):
    values = np.exp(values - values.max())
    return values / values.sum()


def attend(queries, values, kernels):
    """A(q, x) of one sample, row by row."""
    query, key, value = kernels
    rows = []
    for q in queries:
        scores = [(q @ query) @ (x @ key) / np.sqrt(len(q)) for x in values]
        weights = softmax(np.array(scores))
        rows.append(
            sum(w * (x @ value) for w, x in zip(weights, values, strict=True))
        )
    return np.array(rows)


def reference(layer, fields):
    tasks = layer.task_embeddings.numpy().astype("float64")
    among, across, between = (
        k.numpy().astype("float64") for k in layer.kernels
    )
    outputs = []
    for f in fields.astype("float64"):
        g = f + attend(f, f, among)
        r = attend(tasks, g, across)
        outputs.append(r + attend(r, r, between))
    return np.array(outputs)


@pytest.fixture
def fields():
    return np.random.default_rng(0).normal(size=(4, 5, 6)).astype("float32")


@pytest.fixture
def layer(fields):
    keras.utils.set_random_seed(0)
    layer = TaskRelationAttention(num_tasks=3)
    layer.build(fields.shape)
    return layer


def test_equals_the_reference(layer, fields):
    np.testing.assert_allclose(
        layer(fields), reference(layer, fields), atol=1e-5
    )


def test_order_of_the_fields_does_not_matter(layer, fields):
    np.testing.assert_allclose(layer(fields), layer(fields[:, ::-1]), atol=1e-5)


def test_a_row_alone_equals_the_row_in_a_batch(layer, fields):
    np.testing.assert_allclose(
        layer(fields)[2:3], layer(fields[2:3]), atol=1e-6
    )


def test_shape_must_have_fields():
    with pytest.raises(ValueError, match=r"\[batch, num_fields, d\].*\(4, 6\)"):
        TaskRelationAttention(2).build((4, 6))
