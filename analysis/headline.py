"""The sentence that a report opens with: which policy wins, on what, by how much, at which SLO."""

from collections.abc import Sequence

from sim.errors import listed

from . import catalog, facts, served, winners
from .judge import Judgement, Standing, standing
from .plots.style import rate_name, rates_of
from .variants import Variant

MOST_VERDICTS = 4
"""More runs without a steady state than this are told together."""
MEANING = {"above capacity": " (the longer the run, the higher its latencies)"}
KEPT = 0.99
"""The share of the requests within the SLO from which on a policy keeps it."""


def headline(found: Sequence[Variant]) -> str:
    """One sentence, whatever there is: several policies or one, several rates or one, with an SLO or without."""
    finishing = [variant for variant in found if variant.value("finished")]
    if not finishing:
        return "No request finished, so there is nothing to compare."
    with_slo = any(variant.value("request_goodput") is not None for variant in finishing)
    if len({variant.label for variant in found}) == 1:
        return _alone(finishing, with_slo)
    if len({variant.label for variant in finishing}) == 1:
        return f"Only {finishing[0].label} finishes any request. {_alone(finishing, with_slo)}"
    if with_slo:
        return _by_goodput(finishing)
    return _at_one_rate(finishing, rates_of(finishing)[-1], with_slo)


def verdicts(found: Sequence[Variant]) -> list[str]:
    """`vllm at 40 requests/s: above capacity, ...` of each that had no steady state; one line where all were stable."""
    rates = rates_of(found)
    told: list[str] = []
    without: dict[str, list[str]] = {}
    kinds = set()
    for variant in found:
        kind, evidence = variant.verdict
        kinds.add(kind)
        if kind not in ("stable", ""):
            told.append(f"{_where(variant, rates)}: {kind}. {evidence[:1].upper()}{evidence[1:]}.")
            without.setdefault(kind, []).append(_where(variant, rates))
    if len(told) > MOST_VERDICTS:
        told = [
            f"{kind[:1].upper()}{kind[1:]}{MEANING.get(kind, '')}: {', '.join(who)}." for kind, who in without.items()
        ]
    if kinds == {"stable"}:
        told = [
            f"Stable: {found[0].verdict[1]}." if len(found) == 1 else "Every run is stable: no queue grew to the end."
        ]
    return told


def _by_goodput(found: Sequence[Variant]) -> str:
    """By the most requests within the SLO that a policy serves at any rate; where the best are level, by what else
    differs at that rate."""
    fit, left_out = _fit(found, "request_goodput")
    best: dict[str, Variant] = {}
    for variant in fit:
        if (variant.value("request_goodput") or 0.0) > (
            best[variant.label].value("request_goodput") or 0.0 if variant.label in best else -1.0
        ):
            best[variant.label] = variant
    stands = standing(list(best.values()), winners.OF["request_goodput"])
    if stands is None or not stands.first.value("request_goodput") or stands.of_kind("level") or not stands.others:
        rate = stands.first.rate_per_s if stands else rates_of(found)[-1]
        return _at_one_rate(found, rate, True)
    first = stands.first
    at = f" (at {rate_name(first.rate_per_s)})" if len(rates_of(found)) > 1 else ""
    serves = f"serves {_amount(first, 'request_goodput', 'requests/s')} within the SLO of {_slo(first)}{at}"
    if undecided := stands.of_kind("undecided"):
        text = f"{first.label} has the highest goodput, but not for certain: it {serves}; {_undecided(undecided)}"
        behind = stands.of_kind("behind")
        text += f". {_less(behind[0])}" if behind else ""
    else:
        text = f"{first.label} wins on goodput: it {serves}, {_more(stands.others[0], len(best) > 2)}"
    return f"{text}.{_lacks(found, first)}{left_out}"


def _at_one_rate(found: Sequence[Variant], rate: float | None, with_slo: bool) -> str:
    """By throughput where the policies differ in it, else by latency. With an SLO, among those whose goodput is level
    with the best."""
    here = [variant for variant in found if variant.rate_per_s == rate]
    at = f" at {rate_name(rate)}" if len(rates_of(found)) > 1 else ""
    lead = f"No SLO is given{at}; by"
    mine, left_out = _fit(here, "request_goodput" if with_slo else "output_throughput")
    undecided = ""
    if with_slo and (stands := standing(mine, winners.OF["request_goodput"])) is not None:
        best, open_ = stands.first.value("request_goodput"), stands.of_kind("undecided")
        lead = f"All keep the SLO of {_slo(here[0])} alike{at}; by"
        if not best:
            lead = f"None keeps the SLO of {_slo(here[0])}{at} for any request; by"
        elif stands.of_kind("behind") or open_ or not _keeps(mine):
            level = [each.other for each in stands.of_kind("level")]
            mine = [variant for variant in mine if variant is stands.first or variant in level]
            are = "are level in goodput, the best" if len(mine) > 1 else "has the highest goodput"
            lead = f"{listed([variant.label for variant in mine])} {are}{at} with {catalog.text_of(best)} requests/s"
            lead += f" within the SLO of {_slo(mine[0])}; by"
            undecided = f" In goodput {_undecided(open_)}." if open_ else ""
    if not mine:
        return f"None can be compared with another{at}.{left_out}"
    if len(mine) < 2:
        return f"{_alone(mine, with_slo)}{left_out}"
    stands = None if with_slo else standing(mine, winners.OF["output_throughput"])
    if stands is None or not stands.first.value("output_throughput") or stands.of_kind("level"):
        mine, left_out = _fit(mine, "p99_ttft_ms", left_out)
        stands = standing(mine, winners.OF["p99_ttft_ms"])
    if not mine:
        return f"{lead} latency none can be compared.{undecided}{left_out}"
    if stands is None or not stands.others:
        return f"{_alone(mine, with_slo)}{undecided}{left_out}"
    return f"{lead} {_outcome(stands)}.{_lacks(found, stands.first)}{undecided}{left_out}"


def _outcome(stands: Standing) -> str:
    """`p99 TTFT a wins: 120 ms against b's 1.40 s`, or that they are level, or not decided."""
    first, told = stands.first, stands.others[0]
    if stands.metric.name == "output_throughput":
        word = "output throughput"
        what = f"{_amount(first, stands.metric.name, 'tokens/s')} against {told.other.label}'s"
        what += f" {_amount(told.other, stands.metric.name, '')}"
    else:
        word, times = "p99 TTFT", [_time(one, stands.metric.name) for one in (first, told.other)]
        what = f"{times[0]} against {told.other.label}'s {times[1]}"
    level = [each.other.label for each in stands.of_kind("level")]
    if level:
        return f"{word} {listed([first.label, *level])} are level too: {what}"
    if told.kind == "undecided" or stands.of_kind("undecided"):
        open_ = stands.of_kind("undecided")
        return f"{word} {first.label} is first, but not for certain: {what}; {_undecided(open_)}"
    return f"{word} {first.label} wins: {what}"


def _undecided(told: Sequence[Judgement]) -> str:
    """`3 replications do not decide between it and b (0.36 to 1.8 times); about 9 would`."""
    names = listed([f"{each.other.label} ({each.span})" for each in told])
    counts = [each.needed for each in told]
    would = f"about {max(count or 0 for count in counts)} would" if all(counts) else "many more would"
    return f"{len(told[0].other.runs)} replications do not decide between {told[0].first.label} and {names}; {would}"


def _more(told: Judgement, several: bool) -> str:
    """By how much the winner has more than the next."""
    beaten = f"{told.other.label}, the next best" if several else told.other.label
    value = told.other.value(told.metric.name)
    if not value:
        return f"{beaten} none"
    if told.ratio <= 1 / 1.5:
        return f"{catalog.times(1 / told.ratio)} as many as {beaten} ({catalog.text_of(value)})"
    return f"{catalog.short(100 / told.ratio - 100)} % more than {beaten} ({catalog.text_of(value)})"


def _less(told: Judgement) -> str:
    value = catalog.text_of(told.other.value(told.metric.name))
    return f"{told.other.label}, the first that is behind for certain, serves {value}"


def _fit(found: Sequence[Variant], metric: str, told: str = "") -> tuple[list[Variant], str]:
    """(those that the metric does not flatter, a sentence on the others behind what is told already)."""
    short = served.shortfalls(found)
    out = [variant for variant in found if served.unfit(metric, short[variant])]
    fit = [variant for variant in found if variant not in out]
    last = {variant.label: variant for variant in out}  # of several rates the highest
    rates = rates_of(found)
    text = "".join(f" {_where(one, rates)} is left out: it {short[one].text}." for one in last.values())
    return fit, told + text


def _lacks(found: Sequence[Variant], first: Variant) -> str:
    """What the winner left undone, where that matters."""
    short = served.shortfalls(found)[first]
    return f" {first.label} {short.text}." if short.loses else ""


def _alone(found: Sequence[Variant], with_slo: bool) -> str:
    """What one policy does."""
    label, rates = found[0].label, rates_of(found)
    if with_slo and len(rates) > 1:
        kept = [variant for variant in found if (variant.value("slo_attainment") or 0.0) >= KEPT]
        if not kept:
            return f"{label} keeps the SLO of {_slo(found[0])} for 99 % of the requests at none of {len(rates)} rates."
        top = max(kept, key=lambda v: v.rate_per_s or 0.0)
        every = " (the highest that was run)" if top.rate_per_s == rates[-1] else ""
        kept_up = f"for 99 % of the requests up to {rate_name(top.rate_per_s)}{every}"
        return f"{label} keeps the SLO of {_slo(found[0])} {kept_up}."
    last = found[-1]
    done = f"{label} serves {_amount(last, 'request_throughput', 'requests/s')}"
    if len(rates) > 1:
        done += f" at {rate_name(last.rate_per_s)}"
    if with_slo:
        return f"{done}, {catalog.percent(last.value('slo_attainment') or 0.0)} of them within the SLO of {_slo(last)}."
    if last.value("p99_ttft_ms") is None:
        return f"{done}."
    return f"{done}, with a median TTFT of {_time(last, 'median_ttft_ms')} and a p99 of {_time(last, 'p99_ttft_ms')}."


def _keeps(found: Sequence[Variant]) -> bool:
    return all((variant.value("slo_attainment") or 0.0) >= KEPT for variant in found)


def _slo(variant: Variant) -> str:
    scenario = variant.first.scenario
    classes = ((scenario.get("workload") or {}).get("classes") or {}).values()
    if any((kind or {}).get("slo") for kind in classes):
        return "its class"
    return facts.slo(scenario.get("slo") or {}).replace(", ", " and ")


def _amount(variant: Variant, metric: str, unit: str) -> str:
    value, half = variant.value(metric), variant.half_width(metric)
    text = catalog.text_of(value) + (f" ± {catalog.text_of_half(value, half)}" if half else "")
    return f"{text} {unit}" if unit else text


def _time(variant: Variant, metric: str) -> str:
    value, half = variant.value(metric), variant.half_width(metric)
    unit, factor = ("s", 1e-3) if (value or 0.0) >= 1000 else ("ms", 1.0)
    interval = f" ± {catalog.text_of_half(value, half, factor)}" if half else ""
    return f"{catalog.text_of(None if value is None else value * factor)}{interval} {unit}"


def _where(variant: Variant, rates: Sequence[float | None]) -> str:
    return f"{variant.label} at {rate_name(variant.rate_per_s)}" if len(rates) > 1 else variant.label
