"""Which policy wins on which metric, and by how much: the summary of a comparison, as a table and in sentences.

What counts as better is decided by `judge`, from replications that met the same requests; who did less than others for
them (`served`) is named, and left out where that would flatter it. Why is told by `reasons`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import catalog, reasons, served
from .judge import Judgement, Standing, standing
from .limits import has_limit
from .plots.style import rate_name, rates_of
from .variants import Variant

METRICS = (
    *("output_throughput", "request_goodput", "median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_tpot_ms"),
    *("p99_itl_ms", "mean_e2el_ms", "p99_e2el_ms"),
)
"""In the order in which they are told; those that no policy has are left out."""
OF = {each.name: each for each in (*catalog.KEY, catalog.Metric("mean_e2el_ms", "E2E", "mean", "ms", "low"))}
TWO = ("p99_ttft_ms", "p99_tpot_ms", "output_throughput", "request_goodput")
"""What is told of two policies, whose numbers stand beside each other in the table anyhow."""
HEADS = ("best", "level with it", "not decided", "next", "by")
BRIEF = ("best", "level with it", "next", "by")
LEVEL = "at most 2 % apart, the interval within 5 %"


@dataclass(frozen=True, eq=False)
class Win:
    """The best policy in one metric, and how the others stand to it; `left_out` are those that it would flatter."""

    standing: Standing
    left_out: tuple[Variant, ...] = ()
    short: Mapping[Variant, served.Shortfall] | None = None

    @property
    def metric(self) -> catalog.Metric:
        return self.standing.metric

    @property
    def first(self) -> Variant:
        return self.standing.first

    @property
    def level(self) -> list[Judgement]:
        return self.standing.of_kind("level")

    @property
    def undecided(self) -> list[Judgement]:
        return self.standing.of_kind("undecided")

    @property
    def next(self) -> Judgement | None:
        """The best of those that are behind for certain."""
        return next(iter(self.standing.of_kind("behind")), None)

    @property
    def name(self) -> str:
        return self.metric.alone

    @property
    def why(self) -> str:
        return "" if self.next is None else reasons.why(self.metric.name, self.first, self.next.other, self.short)

    def cells(self) -> tuple[str, ...]:
        """As headed by `HEADS`; empty where there is nothing to say."""
        level = ", ".join(each.other.label for each in self.level)
        undecided = ", ".join(f"{self._of(each.other)} ({each.span})" for each in self.undecided)
        if self.next is None:
            return self._of(self.first), level, undecided, "", ""
        return self._of(self.first), level, undecided, self._of(self.next.other), self.next.size

    def brief(self) -> tuple[str, list[str], str, str]:
        """The same for a narrow terminal: who is not decided stands with a question mark among those that are level."""
        near = [each.other.label for each in self.level] + [f"{each.other.label}?" for each in self.undecided]
        best, *_, behind, by = self.cells()
        return best, near, behind, by

    def sentence(self) -> str:
        """The best and whoever comes after it, for two policies; empty where only one can be compared."""
        if not self.standing.others:
            return ""
        told = self.standing.others[0]
        mine, its = self._of(self.first), self._of(told.other)
        text = f"{self.name}: {mine}, {its}"
        if told.kind == "level":
            return f"{text}: level{f' ({told.span})' if told.span else ''}."
        if told.kind == "undecided":
            return f"{text}: {len(told.other.runs)} replications do not decide it ({told.span}){more(told)}."
        return f"{text}: {told.size}."

    def _of(self, one: Variant) -> str:
        unit, factor = self._shown()
        return f"{one.label} {catalog.text_of((one.value(self.metric.name) or 0.0) * factor)} {unit}"

    def _shown(self) -> tuple[str, float]:
        """(unit, factor) of the values that are told."""
        told = (self.first, *(each.other for each in self.undecided), *((self.next.other,) if self.next else ()))
        values = [variant.value(self.metric.name) for variant in told]
        if self.metric.unit == "ms" and max(value or 0.0 for value in values) >= 1000:
            return "s", 1e-3
        return catalog.shown_in(self.metric.unit, values)


def winners(found: Sequence[Variant]) -> list[Win]:
    """One a metric, at the highest rate that was run; none for fewer than two policies."""
    mine = _at_highest(found)
    short = served.shortfalls(mine)
    made = []
    for metric in map(OF.__getitem__, METRICS):
        there = [variant for variant in mine if variant.value(metric.name) is not None]
        fit = [variant for variant in there if not served.unfit(metric.name, short[variant])]
        if len(there) > 1 and (stands := standing(fit, metric)) is not None:
            made.append(Win(stands, tuple(variant for variant in there if variant not in fit), short))
    return made


def more(told: Judgement) -> str:
    """What would decide."""
    return f"; about {told.needed} would" if told.needed else "; many more would"


def notes(found: Sequence[Variant]) -> list[str]:
    """Who did less than others, and what it is left out of; who keeps a limit of what it has not; what the replications
    do not decide, and what would."""
    mine = _at_highest(found)
    told = []
    for variant, short in served.shortfalls(mine).items():
        if short.text:
            out = f": not compared in {short.left_out_of}" if short.left_out_of else ""
            told.append(f"{variant.label} {short.text}{out}.")
    told += _without_pace(mine)
    open_ = [(win.name, each) for win in winners(found) for each in win.undecided]
    if open_:
        counts = [each.needed for _, each in open_]
        most = max((count or 0 for count in counts), default=0)
        would = f"About {most} replications" if all(counts) else "Many more replications"
        what = ", ".join(dict.fromkeys(name for name, _ in open_))
        told.append(
            f"Not decided ({what}): their intervals leave open whether there is a difference. {would} would decide,"
            " if they vary as these do (--replications)."
        )
    return told


def _without_pace(found: Sequence[Variant]) -> list[str]:
    """Who is not paced by a TPOT limit: where tokens come together, there is no time between them."""
    who = [one.label for one in found if one.value("streamed") == 0 and has_limit(one, "tpot_ms")]
    return [f"{label} delivers a request's tokens together: without TPOT, it keeps any limit of it." for label in who]


def whys(told: Sequence[Win]) -> list[tuple[str, str]]:
    """(metrics, why their next is not best): metrics with the same reason stand together."""
    found: dict[str, list[str]] = {}
    for win in told:
        if why := win.why:
            found.setdefault(why, []).append(win.name)
    return [(", ".join(names), why) for why, names in found.items()]


def sentences(found: Sequence[Variant]) -> list[str]:
    """What separates two policies, at the highest rate; none without replications, when the table says it all."""
    rates = rates_of(found)
    at = f"At {rate_name(rates[-1])}, " if len(rates) > 1 else ""
    told = [win for win in winners(found) if win.metric.name in TWO and min(map(_count, _at_highest(found))) > 1]
    lines = [f"{at}{text}" for win in told if (text := win.sentence())]
    return [*notes(found), *lines] if lines else notes(found)


def portraits(found: Sequence[Variant]) -> list[str]:
    """Where the time of each policy's requests goes and what its engines do, a sentence each, at the highest rate."""
    return [reasons.portrait(one, short) for one, short in served.shortfalls(_at_highest(found)).items()]


def heading(found: Sequence[Variant]) -> str:
    """How to read the rest."""
    rates = rates_of(found)
    at = f"At {rate_name(rates[-1])}. " if len(rates) > 1 else ""
    count = min(map(_count, _at_highest(found)))
    if count < 2:
        return f"{at}One replication, so no intervals: a small difference may be chance. Level: at most 2 % apart."
    return f"{at}Ratios with 95 % intervals, paired over {count} replications. Level: {LEVEL}."


def markdown(found: Sequence[Variant], title: str) -> str:
    """The whole summary as a text of its own; empty for a single policy."""
    told = winners(found)
    if not told:
        return ""
    rows = [(win.name, *(cell or "–" for cell in win.cells())) for win in told]
    lines = [f"# {title}: who wins, and why", "", heading(found), ""]
    lines += [f"| {' | '.join(row)} |" for row in (("metric", *HEADS), ("---",) * (len(HEADS) + 1), *rows)]
    for texts in (notes(found), [f"{names}: {why}" for names, why in whys(told)]):
        lines += ["", *(f"- {text}" for text in texts)] if texts else []
    lines += ["", "What each does:", "", *(f"- {text}" for text in portraits(found))]
    return "\n".join(lines) + "\n"


def _count(one: Variant) -> int:
    return len(one.runs)


def _at_highest(found: Sequence[Variant]) -> list[Variant]:
    rate = rates_of(found)[-1]
    return [variant for variant in found if variant.rate_per_s == rate]
