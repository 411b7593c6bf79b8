"""Small statistics that plots and tables need: distribution curves, binned time averages, intervals."""

import numpy as np

from sim import student_t

MOST_POINTS = 2000
"""A curve of more points than a picture has pixels is thinned to this many."""


def ecdf(values: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(sorted values, share of all that is at or below each), to be drawn as steps; values[i] counts weights[i] times.

    The smallest and the largest value are always kept, the others thinned evenly by share.
    """
    order = np.argsort(values, kind="stable")
    ordered = np.asarray(values, float)[order]
    upto = np.arange(1, len(ordered) + 1) if weights is None else np.cumsum(np.asarray(weights)[order])
    if not len(ordered):
        return ordered, np.empty(0)
    share = upto / upto[-1]
    if len(ordered) > MOST_POINTS:
        wanted = np.linspace(share[0], 1.0, MOST_POINTS)
        kept = np.unique(np.searchsorted(share, wanted).clip(0, len(ordered) - 1))
        ordered, share = ordered[kept], share[kept]
    return ordered, share


def binned_mean(start_s: np.ndarray, end_s: np.ndarray, values: np.ndarray, edges_s: np.ndarray) -> np.ndarray:
    """Time average in each bin of a quantity that is values[i] from start_s[i] to end_s[i] (sorted, not overlapping)
    and 0 in between; exact, however many intervals a bin holds."""
    if not len(values):
        return np.zeros(len(edges_s) - 1)
    times = np.empty(2 * len(values))
    times[0::2], times[1::2] = start_s, end_s
    area = np.zeros(2 * len(values))
    np.cumsum(values * (end_s - start_s), out=area[1::2])
    area[2::2] = area[1:-1:2]
    return np.diff(np.interp(edges_s, times, area)) / np.diff(edges_s)


def half_width(samples: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Half the confidence interval of the mean of each column, by Student's t over the rows (two or more)."""
    count = len(samples)
    return student_t(level, count - 1) * samples.std(axis=0, ddof=1) / np.sqrt(count)
