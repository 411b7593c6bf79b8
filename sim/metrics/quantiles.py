"""Mean, spread and quantiles of latencies, plain or weighted; `None` where there is nothing to measure.

Quantiles interpolate linearly between order statistics as numpy's default does, the standard deviation divides by N:
both as vLLM's serving benchmark.
"""

from collections.abc import Sequence

import numpy as np

QUANTILES = {"median": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}
"""Prefix of a field in `summary.json` -> percent."""


def statistics(values: np.ndarray) -> dict[str, float | None]:
    """mean, median, std, p90, p95, p99 of `values` in their unit; each None when there are none."""
    if not len(values):
        return _nothing()
    quantiles = np.percentile(values, list(QUANTILES.values()))
    return _named(float(values.mean()), float(values.std()), quantiles)


def weighted_statistics(values: np.ndarray, weights: np.ndarray) -> dict[str, float | None]:
    """As `statistics` of the list in which values[i] stands weights[i] times, without making that list."""
    total = int(weights.sum())
    if not total:
        return _nothing()
    mean = weighted_sum(values, weights) / total
    deviations = values - mean
    deviations *= deviations
    std = float(np.sqrt(weighted_sum(deviations, weights) / total))
    del deviations
    return _named(mean, std, weighted_quantiles(values, weights, list(QUANTILES.values())))


def weighted_sum(values: np.ndarray, weights: np.ndarray) -> float:
    """As np.dot, whose last bits depend on how many threads the linear algebra library takes; these do not."""
    return float(np.einsum("i,i->", values, weights, dtype=np.float64))


def weighted_quantiles(values: np.ndarray, weights: np.ndarray, percents: Sequence[float]) -> np.ndarray:
    """The percentiles of the list in which values[i] (>= 0) stands weights[i] (an integer) times; exact.

    The weights' sum must not be 0. The list is never made: only the order statistics next to each percentile are found.
    """
    places = np.asarray(percents) / 100.0 * (int(weights.sum()) - 1)
    below, above = np.floor(places), np.ceil(places)
    low, high = np.split(_at_places(values, weights, np.concatenate([below, above])), 2)
    share = places - below
    # numpy's own two-sided interpolation, so that a weighted and an expanded list agree to the last bits
    return np.where(share < 0.5, low + (high - low) * share, high - (high - low) * (1.0 - share))


def _at_places(values: np.ndarray, weights: np.ndarray, places: np.ndarray) -> np.ndarray:
    """What stands at `places` (from 0) of the sorted list.

    Floats >= 0 are ordered as their bits are, so exponent and leading bits of the fraction sort them into groups of
    0.1 % width by counting; only the few groups that hold a place are sorted. A quarter of the time of a sort of all.
    """
    group = np.ascontiguousarray(values, np.float64).view(np.int64) >> 42
    group -= group.min()
    upto = np.cumsum(np.bincount(group, weights=weights))
    home = np.searchsorted(upto, places, side="right")
    found = np.empty(len(places))
    for each in np.unique(home):
        members = np.flatnonzero(group == each)
        members = members[np.argsort(values[members])]
        reached = np.cumsum(weights[members]) + (upto[each - 1] if each else 0)
        mine = home == each
        found[mine] = values[members[np.searchsorted(reached, places[mine], side="right")]]
    return found


def _named(mean: float, std: float, quantiles: np.ndarray) -> dict[str, float | None]:
    named: dict[str, float | None] = {"mean": mean, "std": std}
    named.update(zip(QUANTILES, map(float, quantiles), strict=True))
    return named


def _nothing() -> dict[str, float | None]:
    return dict.fromkeys(("mean", "std", *QUANTILES))
