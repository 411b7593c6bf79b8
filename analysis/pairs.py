"""Policies compared request by request: the same seeds give the same arrivals, so what they share cancels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from sim import mean_interval

from . import catalog
from .plots.style import rate_name, rates_of
from .variants import Variant

TOLD = {
    "p99_ttft_ms": "p99 TTFT",
    "p99_tpot_ms": "p99 TPOT",
    "request_goodput": "goodput",
    "output_throughput": "output",
}
"""What sentences are made of."""


@dataclass(frozen=True)
class Gap:
    """`metric` of policy a less that of b, the mean over replications and its 95 % interval."""

    a: Variant
    b: Variant
    metric: str
    mean: float
    low: float | None
    high: float | None

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def gap(a: Variant, b: Variant, metric: str) -> Gap | None:
    """None where no replication of the one has its like, with data, among those of the other."""
    others = {run.draws: run for run in b.runs}
    differences = []
    for run in a.runs:
        like = others.get(run.draws)
        mine, its = run.summary.get(metric), None if like is None else like.summary.get(metric)
        if _number(mine) and _number(its):
            differences.append(float(mine) - float(its))  # type: ignore[arg-type]
    return Gap(a, b, metric, *mean_interval(differences)) if differences else None


def all_gaps(found: Sequence[Variant]) -> Iterator[Gap]:
    """Of any two policies at one rate, in every metric."""
    for rate in rates_of(found):
        for a, b in combinations([variant for variant in found if variant.rate_per_s == rate], 2):
            names = dict.fromkeys(name for run in a.runs for name in run.summary if name not in catalog.SETTINGS)
            for name in names:
                if (made := gap(a, b, name)) is not None:
                    yield made


def sentences(found: Sequence[Variant]) -> list[str]:
    """What separates two policies, as `vllm's p99 TTFT is 3.1 s lower than static's, 95 % interval 2.8 to 3.4`; of
    more than two, the best against the second; at the highest rate. None without replications."""
    rate = rates_of(found)[-1]
    mine = [variant for variant in found if variant.rate_per_s == rate]
    told = []
    for metric in catalog.KEY:
        if metric.name not in TOLD or metric.better is None:
            continue
        there = [variant for variant in mine if variant.value(metric.name) is not None]
        there.sort(key=lambda v: v.value(metric.name) or 0.0, reverse=metric.better == "high")
        made = gap(there[0], there[1], metric.name) if len(there) > 1 else None
        if made is not None and made.low is not None:
            where = f"At {rate_name(rate)} " if rate is not None and len(rates_of(found)) > 1 else ""
            told.append(where + _sentence(made, metric))
    return told


def _sentence(made: Gap, metric: catalog.Metric) -> str:
    name = TOLD[metric.name]
    assert made.low is not None and made.high is not None
    unit, factor = catalog.shown_in(metric.unit, [made.a.value(metric.name), made.b.value(metric.name)])
    if unit == "ms" and abs(made.mean) >= 1000:
        unit, factor = "s", 1e-3
    sign = -1 if made.mean < 0 else 1
    low, high = sorted((sign * made.low * factor, sign * made.high * factor))
    size = f"{catalog.text_of(abs(made.mean) * factor)} {unit} {'lower' if made.mean < 0 else 'higher'}"
    if not made.certain:
        return (
            f"{made.a.label}'s and {made.b.label}'s {name} cannot be told apart: the 95 % interval of the difference, "
            f"{catalog.text_of(low)} to {catalog.text_of(high)} {unit}, holds 0."
        )
    return (
        f"{made.a.label}'s {name} is {size} than {made.b.label}'s, 95 % interval {catalog.text_of(low)} to "
        f"{catalog.text_of(high)}."
    )


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
