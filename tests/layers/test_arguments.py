import pytest

import m2m_tf.layers
from m2m_tf.layers._arguments import (
    require_positive_int,
    require_positive_ints,
    require_rank,
)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, None, "3"])
def test_positive_int_rejects(value):
    with pytest.raises(
        ValueError,
        match=rf"`units` must be a positive integer. Received: units={value!r}",
    ):
        require_positive_int("units", value)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3"])
def test_rank_rejects(value):
    with pytest.raises(
        ValueError,
        match=rf"`rank` must be a positive integer, or None .* rank={value!r}",
    ):
        require_rank(value)


@pytest.mark.parametrize("value", [None, 4, "44", (4, 0), (4, 1.5), (True,)])
def test_positive_ints_rejects(value):
    with pytest.raises(
        ValueError,
        match="`sizes` must be a sequence of positive integers. Received: siz",
    ):
        require_positive_ints("sizes", value, allow_empty=True)


def test_positive_ints_is_a_tuple_and_may_be_empty_only_if_allowed():
    assert require_positive_ints("sizes", [3, 4]) == (3, 4)
    assert require_positive_ints("sizes", [], allow_empty=True) == ()
    with pytest.raises(ValueError, match="`sizes` must be a non-empty seq"):
        require_positive_ints("sizes", [])


@pytest.mark.parametrize("name", m2m_tf.layers.__all__)
def test_public_layer_is_documented(name):
    layer_class = getattr(m2m_tf.layers, name)
    for section in ("Args:", "Call arguments:", "Output shape:", "Example:"):
        assert section in layer_class.__doc__, section
