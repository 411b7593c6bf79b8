"""Whether one policy is better than another in a metric: the one judgement that headline, table and sentences share.

It is of ratios, not differences: latencies of policies differ by multiples, and so do the replications of an overloaded
one, so that their logarithms are nearer to a normal distribution. The interval is Student's t over the logarithms of
the replications' ratios (`pairs.gap`), each of the same requests. A policy is

- level, if it is at most 2 % from the best and the interval stays within 5 % of it: more replications would show no
  difference that matters;
- behind, if the interval leaves out that the two are equal (and it is more than 2 % worse);
- else not decided: the replications fit to both.

With one replication there is no interval, and 2 % alone decide. Nothing at all, in every replication, is behind
something in every one; no interval is needed for that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from sim import student_t

from . import catalog, pairs
from .variants import Variant

NEAR, WITHIN = 0.02, 0.05
MOST = 99
"""No more replications than this are ever advised."""
RATIO = 3.0
"""From here on a difference is told as a ratio, not in per cent."""
SURE = 0.95
Kind = Literal["level", "undecided", "behind"]


@dataclass(frozen=True, eq=False)
class Judgement:
    """How `other` stands to the best one; `ratio` and its interval are its value by the best one's."""

    first: Variant
    other: Variant
    metric: catalog.Metric
    kind: Kind
    ratio: float
    low: float | None = None
    high: float | None = None
    needed: int | None = None
    """Replications that would decide, were they to vary as these do; None: decided, or more than `MOST`."""

    @property
    def size(self) -> str:
        """`13 % more (8.2 to 19 %)`, `8.4 times (1.3 to 53)`."""
        behind = f" ({self.span})" if self.span else ""
        if math.isinf(self.ratio):
            return "more than 0"
        if self.ratio >= RATIO:
            return f"{catalog.times(self.ratio)}{behind}"
        if self.ratio > 1:
            return f"{catalog.short(100 * (self.ratio - 1))} % more{behind}"
        return f"{catalog.percent(1 - self.ratio)} less{behind}"

    @property
    def span(self) -> str:
        """The interval alone: `-12 to 78 %`, `0.36 to 1.8 times`; empty where there is none."""
        if self.low is None or self.high is None:
            return ""
        if self.ratio >= RATIO or self.high >= RATIO or (self.kind != "behind" and self.low <= 1 / RATIO):
            return f"{catalog.short(self.low)} to {catalog.short(self.high)} times"
        ends = [100 * (end - 1) for end in (self.low, self.high)]
        low, high = sorted(map(abs, ends)) if self.kind == "behind" and ends[0] * ends[1] > 0 else ends
        return f"{catalog.short(low)} to {catalog.short(high)} %"


@dataclass(frozen=True, eq=False)
class Standing:
    """The best policy in one metric, and how the others stand to it, the better ones first."""

    metric: catalog.Metric
    first: Variant
    others: tuple[Judgement, ...]

    def of_kind(self, kind: Kind) -> list[Judgement]:
        return [each for each in self.others if each.kind == kind]


def standing(found: Sequence[Variant], metric: catalog.Metric) -> Standing | None:
    """None where no policy has the metric."""
    ranked = [variant for variant in found if variant.value(metric.name) is not None]
    if not ranked:
        return None
    ranked.sort(key=lambda v: v.value(metric.name) or 0.0, reverse=metric.better == "high")
    first = ranked[0]
    return Standing(metric, first, tuple(judge(first, other, metric) for other in ranked[1:]))


def judge(first: Variant, other: Variant, metric: catalog.Metric) -> Judgement:
    """How `other` stands to `first`, which has the better mean."""
    if metric.better == "high" and _is_nothing(first, other, metric.name):
        return Judgement(first, other, metric, "behind", 0.0)
    ratio, low, high, spread, count = _compared(first, other, metric.name)
    kind = _kind(ratio, low, high, metric.better == "low")
    needed = _needed(ratio, spread, count) if kind == "undecided" else None
    return Judgement(first, other, metric, kind, ratio, low, high, needed)


def _is_nothing(first: Variant, other: Variant, metric: str) -> bool:
    """0 in every replication, where the best has more in each. Zeros have no ratios, and differences scatter with the
    best one's values."""
    return not any(other.values(metric)) and min(first.values(metric)) > 0


def _kind(ratio: float, low: float | None, high: float | None, low_is_better: bool) -> Kind:
    near = abs(ratio - 1) <= NEAR
    if low is None or high is None:
        return "level" if near else "behind"
    if near and 1 - WITHIN <= low and high <= 1 + WITHIN:
        return "level"
    worse = low > 1 if low_is_better else high < 1
    return "behind" if worse else "undecided"


def _compared(
    first: Variant, other: Variant, metric: str
) -> tuple[float, float | None, float | None, float | None, int]:
    """(ratio, low, high, standard deviation of the ratio's logarithm over replications, replications)."""
    best, its = (one.value(metric) or 0.0 for one in (first, other))
    plain = its / best if best else 1.0 if not its else math.inf
    gap = pairs.gap(other, first, metric)
    if gap is None:
        return _unpaired(first, other, metric, plain)
    if gap.ratio is not None:
        return *gap.ratio, gap.spread, gap.count
    if gap.low is None or gap.high is None or not best:  # one replication, or zeros among the values
        return plain, None, None, None, gap.count
    low, high = max(0.0, 1 + gap.low / best), max(0.0, 1 + gap.high / best)
    return 1 + gap.mean / best, low, high, None, gap.count


def _unpaired(
    first: Variant, other: Variant, metric: str, plain: float
) -> tuple[float, float | None, float | None, float | None, int]:
    """Welch's interval where the replications are of different requests, as at two rates."""
    both = [one.values(metric) for one in (other, first)]
    count = min(map(len, both))
    if count < 2 or min(map(min, both)) <= 0:
        return plain, None, None, None, count
    logs = [np.log(values) for values in both]
    parts = [float(np.var(each, ddof=1)) / len(each) for each in logs]
    centre, whole = float(logs[0].mean() - logs[1].mean()), sum(parts)
    shares = sum(part**2 / (len(each) - 1) for part, each in zip(parts, logs, strict=True))
    half = _t(max(1, int(whole**2 / shares)) if shares else 1) * math.sqrt(whole)
    ends = math.exp(centre - half), math.exp(centre + half)
    return math.exp(centre), *ends, math.sqrt(whole * count), count


def _needed(ratio: float, spread: float | None, count: int) -> int | None:
    """Replications whose interval would be narrow enough, were they to spread as these do."""
    if spread is None or ratio <= 0:
        return None
    far = abs(math.log(ratio))
    enough = far if far > NEAR else math.log(1 + WITHIN) - far
    for number in range(count + 1, MOST + 1):
        if _t(number - 1) * spread / math.sqrt(number) < enough:
            return number
    return None


@lru_cache(maxsize=256)
def _t(degrees: int) -> float:
    return student_t(SURE, degrees)
