"""What a policy left undone that another did for the same requests: refused, failed, unfinished or cut short.

A latency is that of the requests that finished. Who refuses the tail has no tail, and who cuts outputs short ends
early; so whoever lacks anything is named, and beyond a small share left out where that would flatter it. What is
counted by the second is flattered too where the run ends with its last request: without the long ones it ends sooner.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import pandas as pd

from . import catalog
from .load import Run
from .variants import Variant

LOST, CUT, OPEN = 0.01, 0.01, 0.05
"""Shares from which on it matters: of requests refused or failed (a p99 leaves out 1 % by itself), of output tokens not
given, and of requests unfinished, of which any policy has some where the clock stops."""
PER_SECOND = ("_throughput", "_goodput")
DONE = {"rejected": "refused", "failed": "failed", "unfinished": "left unfinished", "timed_out": "timed out"}


@dataclass
class Shortfall:
    """Of one policy, all replications together."""

    lost: dict[str, int] = field(default_factory=dict)
    """Status -> requests that another policy finished."""
    requests: int = 0
    """Those that some policy finished."""
    cut: int = 0
    """Requests with fewer output tokens than another policy gave them."""
    tokens: float = 0.0
    """That those lack."""
    whole: float = 0.0
    """Tokens that its finished requests would have."""
    fixed: bool = False
    """Whether its runs last as long whatever it serves."""

    @property
    def cuts(self) -> bool:
        """Whether outputs are so much shorter that nothing it does is the same work."""
        return bool(self.whole) and self.tokens / self.whole > CUT

    @property
    def loses(self) -> bool:
        """Whether so many requests are missing that latencies of the others cannot be compared."""
        still = self.lost.get("unfinished", 0)
        refused = sum(self.lost.values()) - still
        return refused > LOST * self.requests or still > OPEN * self.requests

    @property
    def left_out_of(self) -> str:
        """`latencies`: what `unfit` is true of; empty for nothing."""
        if self.cuts:
            return "any metric"
        if not self.loses:
            return ""
        return "latencies" if self.fixed else "latencies, throughput and goodput"

    @property
    def text(self) -> str:
        """`refused 441 of 600 requests that others served`; empty where nothing is missing."""
        told = [f"{DONE.get(status, status)} {count:,}" for status, count in self.lost.items() if count]
        text = f"{' and '.join(told)} of {self.requests:,} requests that others served" if told else ""
        if self.cut:
            share = catalog.percent(self.tokens / self.whole)
            cut = f"gave {share} fewer output tokens than others to the same requests, {self.cut:,} of them cut short"
            text = f"{text}, and {cut}" if text else cut
        return text


def unfit(metric: str, short: Shortfall) -> bool:
    """Whether this metric would flatter the policy: latencies, and what is divided by a window that ends with the last
    request, by what is missing; everything by outputs cut short."""
    lost = metric.endswith("_ms") or (metric.endswith(PER_SECOND) and not short.fixed)
    return short.cuts or (short.loses and lost)


def best_of(metric: catalog.Metric, found: Sequence[Variant], factor: float = 1.0) -> set[int]:
    """Places of the best, as in `catalog.best_of`, among those that the metric does not flatter."""
    short = shortfalls(found)
    values = [None if unfit(metric.name, short[one]) else one.value(metric.name) for one in found]
    return catalog.best_of(metric, values, factor)


def shortfalls(found: Sequence[Variant]) -> dict[Variant, Shortfall]:
    """Of each, among those at its rate that met the same requests."""
    return dict(_shortfalls(tuple(found)))


@lru_cache(maxsize=2)
def _shortfalls(found: tuple[Variant, ...]) -> dict[Variant, Shortfall]:
    made = {variant: Shortfall(fixed=all(map(_fixed, variant.runs))) for variant in found}
    groups: dict[object, list[tuple[Variant, Run]]] = {}
    for variant in found:
        for run in variant.runs:
            groups.setdefault((variant.rate_per_s, run.draws), []).append((variant, run))
    for group in groups.values():
        if len(group) > 1:
            _count(group, made)
    return made


def _fixed(run: Run) -> bool:
    return (run.scenario.get("workload") or {}).get("duration_s") is not None


def _count(group: Sequence[tuple[Variant, Run]], made: dict[Variant, Shortfall]) -> None:
    """Adds what each lacks of one draw of requests. Where users wait for answers some requests may not have been issued
    by all; these are nobody's loss."""
    tables = [run.requests.set_index("request_id") for _, run in group]

    def beside(columns: Sequence[pd.Series]) -> pd.DataFrame:
        return pd.concat(columns, axis=1, keys=range(len(tables)))

    prompts = beside([table["prompt_tokens"] for table in tables])
    same = prompts.min(axis=1) == prompts.max(axis=1)  # results of elsewhere may number other requests alike
    status = beside([table["status"] for table in tables])[same]
    given = beside([table["output_tokens"].where(table["status"] == "finished") for table in tables])[same]
    most, served = given.max(axis=1), given.notna().any(axis=1)
    for place, (variant, _) in enumerate(group):
        short, mine = made[variant], given[place]
        missing = status[place][served & mine.isna()].dropna()
        for name, count in missing.value_counts().items():
            short.lost[str(name)] = short.lost.get(str(name), 0) + int(count)
        short.requests += int((served & status[place].notna()).sum())
        short.cut += int((mine < most).sum())
        short.tokens += float((most - mine).sum())
        short.whole += float(most[mine.notna()].sum())
