"""Confidence intervals of means over replications, by Student's t."""

import math
from collections.abc import Sequence

import numpy as np


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float | None, float | None]:
    """(mean, low, high): the mean of independent values with its confidence interval by Student's t; a single value
    has none (None, None)."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None, None
    half = student_t(level, len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def student_t(level: float, degrees: int) -> float:
    """The t between whose negative and positive a share `level` of Student's distribution lies (0.95, 9: 2.262).

    With t = sqrt(degrees) tan(angle) the density becomes a power of the cosine, which Gauss and Legendre's rule
    integrates to rounding, so scipy is not needed for it.
    """
    nodes, weights = np.polynomial.legendre.leggauss(64)

    def upto(angle: float) -> float:
        return float(np.dot(weights, np.cos((nodes + 1) * angle / 2) ** (degrees - 1))) * angle / 2

    low, high = 0.0, math.pi / 2
    wanted = level * upto(high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if upto(middle) < wanted else (low, middle)
    return math.sqrt(degrees) * math.tan(low)
