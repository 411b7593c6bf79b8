"""The sentence that a report opens with: which policy wins, on what, by how much, at which SLO."""

from collections.abc import Sequence

from . import catalog, facts, pairs
from .plots.style import rate_name, rates_of
from .variants import Variant

ALIKE = 0.02
"""Policies whose goodput or throughput is this near are told apart by latency."""
MOST_VERDICTS = 4
"""More runs without a steady state than this are told together."""
MEANING = {"above capacity": " (the longer the run, the higher its latencies)"}
KEPT = 0.99
"""The share of the requests within the SLO from which on a policy keeps it."""


def headline(found: Sequence[Variant]) -> str:
    """One sentence, whatever there is: several policies or one, several rates or one, with an SLO or without."""
    served = [variant for variant in found if variant.value("finished")]
    if not served:
        return "No request finished, so there is nothing to compare."
    with_slo = any(variant.value("request_goodput") is not None for variant in served)
    if len({variant.label for variant in found}) == 1:
        return _alone(served, with_slo)
    if len({variant.label for variant in served}) == 1:
        return f"Only {served[0].label} finishes any request. {_alone(served, with_slo)}"
    if with_slo:
        return _by_goodput(served)
    return _at_one_rate(served, rates_of(served)[-1], with_slo)


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
    """By the most requests within the SLO that a policy serves at any rate; where the best are alike, by what else
    differs at that rate."""
    best: dict[str, Variant] = {}
    for variant in found:
        if (variant.value("request_goodput") or 0.0) > (
            best[variant.label].value("request_goodput") or 0.0 if variant.label in best else -1.0
        ):
            best[variant.label] = variant
    first, second = sorted(best.values(), key=lambda v: v.value("request_goodput") or 0.0, reverse=True)[:2]
    most, next_most = first.value("request_goodput") or 0.0, second.value("request_goodput") or 0.0
    if not most or (most - next_most) / most < ALIKE:
        return _at_one_rate(found, first.rate_per_s, True)
    rates = rates_of(found)
    at = f" (at {rate_name(first.rate_per_s)})" if len(rates) > 1 else ""
    beaten = f"{second.label}, the next best" if len(best) > 2 else second.label
    if not next_most:
        by = f"{beaten} none"
    elif most / next_most >= 1.5:
        by = f"{_times(most / next_most)} as many as {beaten} ({catalog.text_of(next_most)})"
    else:
        by = f"{100 * (most / next_most - 1):.3g} % more than {beaten} ({catalog.text_of(next_most)})"
    return (
        f"{first.label} wins on goodput: it serves {_amount(first, 'request_goodput', 'requests/s')} within the SLO of "
        f"{_slo(first)}{at}, {by}."
    )


def _at_one_rate(found: Sequence[Variant], rate: float | None, with_slo: bool) -> str:
    """By throughput where the policies differ in it, else by latency. With an SLO, among those whose goodput is as
    good as the best."""
    mine = [variant for variant in found if variant.rate_per_s == rate]
    at = f" at {rate_name(rate)}" if len(rates_of(found)) > 1 else ""
    lead = f"No SLO is given{at}; by"
    if with_slo:
        all_keep = _keeps(mine)
        best = max(variant.value("request_goodput") or 0.0 for variant in mine)
        mine = [v for v in mine if (v.value("request_goodput") or 0.0) >= (1 - ALIKE) * best]
        lead = f"All keep the SLO of {_slo(mine[0])} alike{at}; by"
        if not all_keep and best:
            names = _and([variant.label for variant in mine])
            lead = f"{names} are level in goodput, the best{at} with {catalog.text_of(best)} requests/s within the SLO"
            lead += f" of {_slo(mine[0])}; by"
        elif not best:
            lead = f"None keeps the SLO of {_slo(mine[0])}{at} for any request; by"
    if len(mine) < 2:
        return _alone(mine, with_slo)
    by_tokens = sorted(mine, key=lambda v: v.value("output_throughput") or 0.0, reverse=True)
    most, next_most = (v.value("output_throughput") or 0.0 for v in by_tokens[:2])
    if not with_slo and most and (most - next_most) / most >= ALIKE:
        first, second, metric, word = by_tokens[0], by_tokens[1], "output_throughput", "output throughput"
        what = f"{_amount(first, metric, 'tokens/s')} against {second.label}'s {_amount(second, metric, '')}"
    else:
        metric = "p99_ttft_ms"
        by_time = sorted((v for v in mine if v.value(metric) is not None), key=lambda v: v.value(metric) or 0.0)
        if len(by_time) < 2:
            return _alone(by_time or mine, with_slo)
        first, second = by_time[:2]
        word, what = "p99 TTFT", f"{_time(first, metric)} against {second.label}'s {_time(second, metric)}"
    made = pairs.gap(first, second, metric)
    if made is not None and made.low is not None and not made.certain:
        return f"{lead} {word} {first.label} and {second.label} cannot be told apart: {what}."
    return f"{lead} {word} {first.label} wins: {what}."


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
        return f"{done}, {100 * (last.value('slo_attainment') or 0.0):.3g} % of them within the SLO of {_slo(last)}."
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


def _and(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]


def _times(ratio: float) -> str:
    return f"{ratio:.2g} times" if ratio < 10 else f"{ratio:.0f} times"


def _where(variant: Variant, rates: Sequence[float | None]) -> str:
    return f"{variant.label} at {rate_name(variant.rate_per_s)}" if len(rates) > 1 else variant.label
