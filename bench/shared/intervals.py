"""intervals: how sure a share of right answers is, and a difference of two on the same questions."""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

DRAWS = 10_000


def wilson(right: float, of: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share, which has a width where all are wrong, too."""
    z = NormalDist().inv_cdf(0.975)
    middle = (right + z * z / 2) / (of + z * z)
    half = z / (of + z * z) * (right * (of - right) / of + z * z / 4) ** 0.5
    # Rounded, as at none and all the ends are 0 and 1 but for the last bit.
    return round(middle - half, 12) + 0.0, round(middle + half, 12)


def less(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """The mean of one - other, of the same questions, and its 95% interval."""
    return mean(np.subtract(one, other))


def mean(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """The mean, and its 95% interval: a bootstrap over the questions."""
    values = np.asarray(values, float)
    drawn = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), (0.025, 0.975))
    return float(values.mean()), float(low), float(high)
