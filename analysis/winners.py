"""Which policy wins on which metric, and by how much: the summary of a comparison, as a table and in sentences.

Differences are paired (`pairs`): the replications of two policies met the same requests. A policy is level with the
best where the interval of their difference holds 0. Why is told by `reasons`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from . import catalog, pairs, reasons
from .plots.style import rate_name, rates_of
from .variants import Variant

METRICS = (
    *("output_throughput", "request_goodput", "median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_tpot_ms"),
    *("p99_itl_ms", "mean_e2el_ms", "p99_e2el_ms"),
)
"""In the order in which they are told; those that no policy has are left out."""
OF = {each.name: each for each in (*catalog.KEY, catalog.Metric("mean_e2el_ms", "E2E", "mean", "ms", "low"))}
RATIO = 3.0
"""From here on a difference is told as a ratio, not in per cent."""
HEADS = ("best", "level with it", "next", "by")
LEVEL = "no difference that the replications show"


@dataclass(frozen=True, eq=False)
class Win:
    """The best policy in one metric, those level with it, and the best of those that are not."""

    metric: catalog.Metric
    first: Variant
    level: tuple[tuple[Variant, pairs.Gap | None], ...]
    next: Variant | None = None
    gap: pairs.Gap | None = None
    """Next less first; None where no replications are paired."""

    @property
    def name(self) -> str:
        return self.metric.alone

    @property
    def why(self) -> str:
        return "" if self.next is None else reasons.why(self.metric.name, self.first, self.next)

    def cells(self, brief: bool = False) -> tuple[str, str, str, str]:
        """As headed by `HEADS`; empty where there is nothing to say. `brief`: no intervals of those that are level."""
        level = ", ".join(
            other.label + (f" ({self._interval(gap)})" if gap is not None and gap.low is not None and not brief else "")
            for other, gap in self.level
        )
        if self.next is None:
            return self._of(self.first), level, "", ""
        return self._of(self.first), level, self._of(self.next), self._difference(self.next)

    def _difference(self, other: Variant) -> str:
        """`10.1 ms more, 13 % (8.2 to 12.1)` of the one that is beaten, the interval behind it where there is one."""
        unit, factor = self._shown()
        best, its = (variant.value(self.metric.name) or 0.0 for variant in (self.first, other))
        size = abs(its - best) if self.gap is None else abs(self.gap.mean)
        small, large = sorted((best, its))
        text = f"{catalog.text_of(size * factor)} {unit} {'more' if its > best else 'less'}"
        if small > 0 and large / small >= RATIO:
            text += f", {'' if its > best else '1/'}{large / small:,.2g}" + (" times" if its > best else "")
        elif small > 0:
            text += f", {_percent(100 * size / best)} %"
        return text if self.gap is None or self.gap.low is None else f"{text} ({self._interval(self.gap)})"

    def _interval(self, gap: pairs.Gap) -> str:
        """Of the difference's size where it is certain, else of the difference."""
        _, factor = self._shown()
        ends = [factor * (end or 0.0) for end in (gap.low, gap.high)]
        low, high = sorted(map(abs, ends)) if gap.certain else ends
        return f"{catalog.text_of(low)} to {catalog.text_of(high)}"

    def _of(self, one: Variant) -> str:
        unit, factor = self._shown()
        return f"{one.label} {catalog.text_of((one.value(self.metric.name) or 0.0) * factor)} {unit}"

    def _shown(self) -> tuple[str, float]:
        """(unit, factor) of the values that are told."""
        told = (self.first, *(other for other, _ in self.level), *((self.next,) if self.next else ()))
        values = [variant.value(self.metric.name) for variant in told]
        if self.metric.unit == "ms" and max(value or 0.0 for value in values) >= 1000:
            return "s", 1e-3
        return catalog.shown_in(self.metric.unit, values)


def winners(found: Sequence[Variant]) -> list[Win]:
    """One a metric, at the highest rate that was run; none for fewer than two policies."""
    return [win for name in METRICS if (win := _win(OF[name], _at_highest(found))) is not None]


def _win(metric: catalog.Metric, mine: Sequence[Variant]) -> Win | None:
    ranked = [variant for variant in mine if variant.value(metric.name) is not None]
    ranked.sort(key=lambda v: v.value(metric.name) or 0.0, reverse=metric.better == "high")
    if len(ranked) < 2:
        return None
    first, *others = ranked
    gaps = [(other, pairs.gap(other, first, metric.name)) for other in others]
    level = tuple((other, gap) for other, gap in gaps if _level(other, first, metric, gap))
    beaten = [(other, gap) for other, gap in gaps if not _level(other, first, metric, gap)]
    return Win(metric, first, level, *(beaten[0] if beaten else ()))


def _percent(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _level(other: Variant, first: Variant, metric: catalog.Metric, gap: pairs.Gap | None) -> bool:
    if gap is None or gap.low is None:  # nothing to judge by: only equals are level
        return other.value(metric.name) == first.value(metric.name)
    return not gap.certain


def whys(told: Sequence[Win]) -> list[tuple[str, str]]:
    """(metrics, why their next is not best): metrics with the same reason stand together."""
    found: dict[str, list[str]] = {}
    for win in told:
        if win.why:
            found.setdefault(win.why, []).append(win.name)
    return [(", ".join(names), why) for why, names in found.items()]


def portraits(found: Sequence[Variant]) -> list[str]:
    """Where the time of each policy's requests goes and what its engines do, a sentence each, at the highest rate."""
    return [reasons.portrait(variant) for variant in _at_highest(found)]


def heading(found: Sequence[Variant]) -> str:
    """How to read the rest."""
    rates = rates_of(found)
    at = f"At {rate_name(rates[-1])}. " if len(rates) > 1 else ""
    count = min(len(variant.runs) for variant in _at_highest(found))
    if count < 2:
        return f"{at}One replication, so no intervals: a small difference may be chance."
    return f"{at}Differences with 95 % intervals, paired over {count} replications; level: {LEVEL}."


def markdown(found: Sequence[Variant], title: str) -> str:
    """The whole summary as a text of its own; empty for a single policy."""
    told = winners(found)
    if not told:
        return ""
    rows = [(win.name, *(cell or "–" for cell in win.cells())) for win in told]
    lines = [f"# {title}: who wins, and why", "", heading(found), ""]
    lines += [f"| {' | '.join(row)} |" for row in (("metric", *HEADS), ("---",) * 5, *rows)]
    lines += ["", *(f"- {names}: {why}" for names, why in whys(told))]
    lines += ["", "What each does:", "", *(f"- {text}" for text in portraits(found))]
    return "\n".join(lines) + "\n"


def _at_highest(found: Sequence[Variant]) -> list[Variant]:
    rate = rates_of(found)[-1]
    return [variant for variant in found if variant.rate_per_s == rate]
