"""Policies compared request by request: the same seeds give the same arrivals, so what they share cancels."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from sim import mean_interval

from . import catalog
from .plots.style import rates_of
from .variants import Variant


@dataclass(frozen=True)
class Gap:
    """`metric` of policy a less that of b, the mean over replications and its 95 % interval.

    `ratio` is that of a to b, with its interval: the geometric mean of the replications' ratios and Student's t over
    their logarithms, `spread` being the standard deviation of these. None where a value is not over 0.
    """

    a: Variant
    b: Variant
    metric: str
    mean: float
    low: float | None
    high: float | None
    count: int = 1
    ratio: tuple[float, float | None, float | None] | None = None
    spread: float | None = None


def gap(a: Variant, b: Variant, metric: str) -> Gap | None:
    """None where no replication of the one has its like, with data, among those of the other."""
    others = {run.draws: run for run in b.runs}
    both = []
    for run in a.runs:
        like = others.get(run.draws)
        mine, its = run.summary.get(metric), None if like is None else like.summary.get(metric)
        if _number(mine) and _number(its):
            both.append((float(mine), float(its)))  # type: ignore[arg-type]
    if not both:
        return None
    differences = mean_interval([mine - its for mine, its in both])
    return Gap(a, b, metric, *differences, len(both), *_ratio(both))


def _ratio(both: Sequence[tuple[float, float]]) -> tuple[tuple[float, float | None, float | None] | None, float | None]:
    """(the ratio with its interval, the spread of its logarithm), as in `Gap`."""
    if min(map(min, both)) <= 0:
        return None, None
    logs = [math.log(mine / its) for mine, its in both]
    centre, low, high = mean_interval(logs)
    if low is None or high is None:
        return (math.exp(centre), None, None), None
    return (math.exp(centre), math.exp(low), math.exp(high)), statistics.stdev(logs)


def all_gaps(found: Sequence[Variant]) -> Iterator[Gap]:
    """Of any two policies at one rate, in every metric."""
    for rate in rates_of(found):
        for a, b in combinations([variant for variant in found if variant.rate_per_s == rate], 2):
            names = dict.fromkeys(name for run in a.runs for name in run.summary if name not in catalog.SETTINGS)
            for name in names:
                if (made := gap(a, b, name)) is not None:
                    yield made


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
