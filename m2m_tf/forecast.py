"""Point forecasts made from predicted rates."""

import numpy as np
from scipy import stats


def poisson_median(rate):
    """The median of a Poisson distribution: least n with P(Y ≤ n) ≥ 1/2.

    The Poisson loss is minimised by the mean, NMAE by the median: where most
    labels are 0 the two differ much. Exact if Y given the inputs is Poisson,
    which real counts with a wider spread are not.

    Args:
        rate: Poisson means, finite and not negative, any shape.

    Returns:
        Float64 array of whole numbers, shaped like `rate`.

    Raises:
        ValueError: If a rate is negative or not finite.

    Example:

    >>> poisson_median([0.0, 0.5, 0.7, 2.0])
    array([0., 0., 1., 2.])
    """
    rate = np.asarray(rate, "float64")
    bad = ~np.isfinite(rate) | (rate < 0)
    if bad.any():
        raise ValueError(
            "`rate` must be finite and not negative. Received: "
            f"{bad.sum()} other value(s), the first {rate[bad][0]}"
        )
    return stats.poisson.ppf(0.5, rate)
