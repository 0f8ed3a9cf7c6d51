import keras
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from m2m_tf.layers import ColumnEmbedding

from .layer_checks import run_layer_checks, to_numpy


def test_layer(tmp_path):
    rng = np.random.default_rng(0)
    run_layer_checks(
        tmp_path,
        lambda **kwargs: ColumnEmbedding(
            (3, 5), 4, embeddings_regularizer="l2", **kwargs
        ),
        {"inputs": rng.integers(0, 3, size=(6, 7, 2)).astype("int32")},
        num_weights=1,
        num_parameters=(3 + 5) * 4,
    )


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_equals_lookups_in_one_table_per_column(data):
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    # Ids from outside the vocabularies too.
    ids = data.draw(
        st.lists(
            st.lists(
                st.integers(-9, 12), min_size=len(sizes), max_size=len(sizes)
            ),
            min_size=1,
            max_size=3,
        )
    )
    layer = ColumnEmbedding(sizes, embedding_dim=2)
    outputs = to_numpy(layer(np.array(ids, "int32")))
    rows = iter(to_numpy(layer.embedding.embeddings))
    tables = [[next(rows) for _ in range(size)] for size in sizes]
    for output, row in zip(outputs, ids, strict=True):
        expected = []
        for table, column_id in zip(tables, row, strict=True):
            expected.extend(table[min(max(column_id, 0), len(table) - 1)])
        np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "float32"])
def test_ids_of_any_dtype_are_exact_in_mixed_precision(dtype):
    ids = np.array([[201], [203]], dtype)  # 201 and 203 in 8 bits are exact,
    large = np.array([[1001], [1003]], "int32").astype(
        "int32" if dtype == "uint8" else dtype
    )  # 1001 and 1003 are not.
    layer = ColumnEmbedding((2000,), 2, dtype="mixed_bfloat16")
    table = to_numpy(layer(np.arange(2000, dtype="int32")[:, None]))
    np.testing.assert_array_equal(to_numpy(layer(ids)), table[[201, 203]])
    np.testing.assert_array_equal(to_numpy(layer(large)), table[[1001, 1003]])


def test_rows_start_with_a_norm_of_about_one():
    layer = ColumnEmbedding((100, 50), embedding_dim=16)
    layer.build((None, 2))
    norms = np.linalg.norm(to_numpy(layer.embedding.embeddings), axis=1)
    assert norms.mean() == pytest.approx(1.0, abs=0.1)


def test_unknown_axes():
    layer = ColumnEmbedding((3, 5), 4)
    symbolic = layer(keras.KerasTensor((None, None, 2), dtype="int32"))
    assert symbolic.shape == (None, None, 8)


def test_invalid_arguments():
    with pytest.raises(ValueError, match="`vocabulary_sizes` .*sizes=3"):
        ColumnEmbedding(3)
    with pytest.raises(ValueError, match=r"`vocabulary_sizes` .*=\(\)"):
        ColumnEmbedding(())
    with pytest.raises(ValueError, match="`embedding_dim` .*_dim=0"):
        ColumnEmbedding((3,), embedding_dim=0)
    with pytest.raises(
        ValueError, match=r"each of the 2 vocab.*shape=\(None, 3\)"
    ):
        ColumnEmbedding((3, 5)).build((None, 3))
