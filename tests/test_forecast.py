import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from m2m_tf.forecast import poisson_median


def slow_median(rate):
    """Adds probabilities until half is reached."""
    count, probability = 0, math.exp(-rate)
    total = probability
    while total < 0.5:
        count += 1
        probability *= rate / count
        total += probability
    return count


@hypothesis.given(st.floats(0, 50))
@hypothesis.settings(max_examples=200, deadline=None)
def test_matches_summed_probabilities(rate):
    # Within rounding of a step, either neighbour is right.
    allowed = {slow_median(rate * (1 - 1e-9)), slow_median(rate * (1 + 1e-9))}
    assert float(poisson_median(rate)) in allowed


def test_known_values_and_shape():
    # P(Y = 0) = exp(-rate) reaches 1/2 at rate = log 2 = 0.693.
    rates = np.array([[0.0, 0.69], [0.70, 2.0]], "float32")
    medians = poisson_median(rates)
    np.testing.assert_array_equal(medians, [[0.0, 0.0], [1.0, 2.0]])
    assert medians.dtype == np.float64


def test_stays_close_to_large_rates():
    rates = np.array([1e3, 1e6, 1e9])
    assert (np.abs(poisson_median(rates) - rates) <= 1).all()


@pytest.mark.parametrize("rate", [-0.1, math.nan, math.inf])
def test_rejects_what_is_no_rate(rate):
    with pytest.raises(ValueError, match="`rate` must be finite and not"):
        poisson_median([1.0, rate])
