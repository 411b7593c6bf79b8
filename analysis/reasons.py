"""Why a policy does better than another: sentences made of the recorded numbers alone.

From where the time went of the requests that make the metric (`causes`) and from what the engines did: batch, steps, KV
cache, prefix hits. No policy is known by its name. A reason is told only if it points the way of the difference.
"""

import math
from collections.abc import Mapping

from . import catalog, causes
from .causes import ALONE, KINDS, MIXED, PLAIN, Cause
from .limits import missed
from .served import Shortfall
from .variants import Variant

FULL = 0.95
"""A KV cache that was this full at some time is called full."""
BOUGHT = 0.9
"""A latency that wins with less than this share of the other's throughput is told with both throughputs."""
DIFFERENT = 0.05
"""Shares (of hits, of time) that are nearer than this are not told apart."""
NONE = "No single cause stands out."
WHOSE = {
    "mean": "{}'s requests take on average",
    "median": "The middle fifth of {}'s requests take",
    "p99": "The slowest 2 % of {}'s requests take",
}


def portrait(one: Variant, short: Shortfall | None = None) -> str:
    """Where the time of its requests goes and what its engines do, a sentence."""
    parts = {part: value for part, value in one.parts_s().items() if value}
    whole = sum(parts.values())
    lacks = f" It {short.text}." if short is not None and short.text else ""
    if not whole:
        return f"{one.label}: no request finished."
    part = max(parts, key=lambda each: parts[each])
    rest = [f"{one.called(p)} {_time(v)}" for p, v in parts.items() if p != part and v / whole >= DIFFERENT]
    text = f"{one.label}: a request takes {_time(whole)}, {catalog.percent(parts[part] / whole)} of it"
    text += f" {one.called(part)}{' (' + ', '.join(rest) + ')' if rest else ''}"
    return f"{text}; {_engine(one)}.{lacks}"


def why(metric: str, first: Variant, other: Variant, short: Mapping[Variant, Shortfall] | None = None) -> str:
    """What the records say of the difference, in a few sentences."""
    lacks = [f"{one.label} {short[one].text}." for one in (other, first) if short and short[one].loses]
    told = [*lacks, _why(metric, first, other)]
    mine, its = (one.value("output_throughput") or 0.0 for one in (first, other))
    if metric.endswith("_ms") and mine < BOUGHT * its:
        told.append(f"{first.label} gives {catalog.text_of(mine)} tok/s, {other.label} {catalog.text_of(its)}.")
    if first.note != other.note:
        told.append("Their steps are priced by different calibrations.")
    return " ".join(told)


def _why(metric: str, first: Variant, other: Variant) -> str:
    if metric == "request_goodput":
        return _limits(first, other)
    if metric == "output_throughput":
        return _output(first, other)
    band, name = metric.split("_")[:2]
    return _latency(name, band, first, other)


def _latency(name: str, band: str, first: Variant, other: Variant) -> str:
    if name in ("tpot", "itl"):
        return _pace(name, band, first, other)
    if name == "ttft" and not other.first.summary.get("streamed", True) and first.first.summary.get("streamed", True):
        return f"{other.label} delivers a request's tokens together, at its end."
    found = causes.cause(lambda one: causes.request_parts(one, name, band), first, other)
    if found is None:
        return NONE
    text = f"{WHOSE[band].format(other.label)} {_ms(found.its_whole)} ({catalog.LATENCIES[name][0]}),"
    text += f" {_ms(found.its)} of it {other.called(found.part)}; {first.label}'s {_ms(found.best_whole)},"
    text += f" {_ms(found.best)} of it."
    if found.part in ("queue", "preempted"):
        return f"{text} {_queue(found, first, other)}"
    more = _prompts(name, band, first, other) if found.part == "prefill" else ""
    if found.part == "decode":
        more = _decode(name, band, first, other)
    return f"{text} {more}" if more else text


def _queue(found: Cause, first: Variant, other: Variant) -> str:
    if any((one.value("mean_waiting") or 0.0) >= 1 for one in (first, other)):
        return f"{other.label}: {_engine(other)}; {first.label}: {_engine(first)}."
    text = "In neither does one request wait for a place on average: this is the time until a step can take it."
    its, best = causes.lead_ms(other), causes.lead_ms(first)
    if its - best >= causes.MOSTLY * (found.its - found.best):
        text += f" {other.label} decides a step {_ms(its)} before it starts, {first.label} {_ms(best)}: who arrives"
        text += " meanwhile waits for the next."
    return text


def _prompts(name: str, band: str, first: Variant, other: Variant) -> str:
    """What the prefill takes: tokens that were not in the cache, or more or longer steps."""
    hits = [variant.value("prefix_cache_hit_rate") or 0.0 for variant in (other, first)]
    if hits[1] - hits[0] >= DIFFERENT:
        share = [catalog.percent(each) for each in hits]
        return f"{other.label} finds {share[0]} of the prompts' tokens in its cache, {first.label} {share[1]}."
    its, best = (causes.prompt_steps(one, name, band) for one in (other, first))
    if its is None or best is None or its[0] * its[1] <= best[0] * best[1]:
        return ""
    steps = [f"{catalog.short(count)} of {catalog.text_of(spent_ms)} ms" for count, spent_ms in (its, best)]
    return f"Steps with prompts until its first token: {steps[0]}, {first.label}'s {steps[1]}."


def _decode(name: str, band: str, first: Variant, other: Variant) -> str:
    """In which steps a request's decoding takes longer."""
    found = causes.cause(lambda one: causes.decode_parts(one, name, band), first, other)
    if found is None:
        return ""
    text = f"Of that {_ms(found.its)} are {_kind(found.part, other)} ({first.label}'s {_ms(found.best)})"
    return f"{text}{_steps(found.part, first, other)}."


def _kind(kind: str, one: Variant) -> str:
    return one.called(kind) if kind in catalog.PARTS else KINDS[kind]


def _pace(name: str, band: str, first: Variant, other: Variant) -> str:
    """In which steps a token, or a pause between two, takes longer."""
    if name == "itl":
        found = causes.cause(lambda one: causes.pause_parts(one, band), first, other)
        whose, each = f"The longest 2 % of {other.label}'s pauses last", ""
    else:
        found = causes.cause(lambda one: causes.decode_parts(one, name, band), first, other)
        whose, each = WHOSE[band].format(other.label), " a token"
    if found is None:
        return NONE
    text = f"{whose} {_ms(found.its_whole)}{each}, {_ms(found.its)} of it {_kind(found.part, other)}; {first.label}'s"
    return f"{text} {_ms(found.best_whole)}, {_ms(found.best)} of it{_steps(found.part, first, other)}."


def _steps(kind: str, first: Variant, other: Variant) -> str:
    """Why steps of a kind take more of the time: they are longer, or there are more of them; empty for neither."""
    if kind == ALONE:
        busy = [causes.alone_share(one) for one in (other, first)]
        return _shares("They are {} of {}'s busy time, {} of {}'s", busy, first, other)
    its, best = (causes.steps_of(one, kind) if kind in (PLAIN, MIXED) else None for one in (other, first))
    if its is None:
        return ""
    if best is not None and its.ms > best.ms:
        told = [f"{catalog.text_of(each.ms)} ms" for each in (its, best)]
        if kind == MIXED and its.prompt_tokens > best.prompt_tokens:
            told = [f"{told[i]} with {each.prompt_tokens:,.0f} prompt tokens" for i, each in enumerate((its, best))]
        elif its.seqs > best.seqs:
            told = [f"{told[i]} with {catalog.text_of(each.seqs)} sequences" for i, each in enumerate((its, best))]
        return f". Such a step takes {told[0]} on average, {first.label}'s {told[1]}"
    shares = [its.share, best.share if best else 0.0]
    return _shares("Such steps give {} of {}'s tokens, {} of {}'s", shares, first, other)


def _shares(text: str, shares: list[float], first: Variant, other: Variant) -> str:
    """Empty where they differ little, or the wrong way."""
    if shares[0] - shares[1] < DIFFERENT:
        return ""
    its, best = map(catalog.percent, shares)
    return f". {text.format(its, other.label, best, first.label)}"


def _output(first: Variant, other: Variant) -> str:
    """The factor of the throughput that differs most: how full steps are, how long, and how much of the time."""
    factors = [_factors(one) for one in (other, first)]
    ratios = {name: math.log(factors[1][name] / factors[0][name]) for name in factors[0] if name in factors[1]}
    whole = sum(ratios.values())
    if whole <= 0 or max(ratios.values()) < causes.MOSTLY * whole:
        return NONE
    name = max(ratios, key=lambda each: ratios[each])
    its, best = (each[name] for each in factors)
    if name == "batch":
        text = f"A step of {other.label} gives {catalog.text_of(its)} tokens, of {first.label} {catalog.text_of(best)}"
        return f"{text}. {other.label}: {_engine(other)}; {first.label}: {_engine(first)}."
    if name == "pace":
        ends = [_time(one.value("duration") or 0.0) for one in (other, first)]
        text = f"A step of {other.label} takes {_ms(1000 / its)}, of {first.label} {_ms(1000 / best)}"
        late = (other.value("duration") or 0.0) > (first.value("duration") or 0.0)
        return f"{text}{f'; the last request ends after {ends[0]}, {ends[1]}' if late else ''}."
    what = {"busy": "compute {} of the time", "done": "give {} of their tokens to requests that end in the window"}
    return (
        f"{other.label}'s engines {what[name].format(catalog.percent(its))}, {first.label}'s {catalog.percent(best)}."
    )


def _factors(one: Variant) -> dict[str, float]:
    """Those whose product is the output throughput: tokens of a step, steps in a busy second, ..."""
    busy, steps, made = (one.value(name) or 0.0 for name in ("busy_fraction", "steps", "generated_tokens"))
    done, engine_s = (
        one.value("total_output_tokens") or 0.0,
        (one.value("duration") or 0.0) * (one.value("engines") or 1),
    )
    if not all((busy, steps, made, done, engine_s)):
        return {}
    return {"batch": made / steps, "pace": steps / (busy * engine_s), "busy": busy, "done": done / made}


def _engine(one: Variant) -> str:
    """`mean batch 12 of at most 32, steps of 9.1 ms, 45 wait, KV 70 % in use, full at times`."""
    batch, most = one.value("mean_batch_size") or 0.0, one.value("max_batch_size") or 0.0
    told = [f"mean batch {catalog.text_of(batch)} of at most {most:.0f}"]
    if (step := _step_ms(one)) is not None:
        told.append(f"steps of {catalog.text_of(step)} ms")
    if (waiting := one.value("mean_waiting") or 0.0) >= 1:
        told.append(f"{waiting:.0f} wait on average")
    told.append(f"KV {catalog.percent(one.value('mean_kv_usage'))} in use" + (", full at times" if _full(one) else ""))
    if hits := one.value("prefix_cache_hit_rate"):
        told.append(f"{catalog.percent(hits)} of the prompts' tokens found in the cache")
    if preempted := one.value("preemptions"):
        told.append(f"{preempted:,.0f} preemptions")
    return ", ".join(told)


def _limits(first: Variant, other: Variant) -> str:
    """How many keep the SLO, the limit that the one behind breaks more often, and why."""
    kept = [one.value("slo_attainment") or 0.0 for one in (other, first)]
    shares = [catalog.percent(each) for each in kept]
    if abs(kept[0] - kept[1]) < DIFFERENT / 5:
        return f"Both keep the SLO for {shares[0]} of the requests. {_output(first, other)}"
    text = f"{shares[0]} of {other.label}'s requests keep the SLO, {shares[1]} of {first.label}'s"
    if kept[0] > kept[1]:  # no limit is why: what differs is how fast they are
        return f"{text}. {_output(first, other)}"
    its, best = missed(other), missed(first)
    more = {name: share - best.get(name, 0.0) for name, share in its.items()}
    name = max(more, key=lambda each: more[each], default="")
    if not name or more[name] < causes.MOSTLY * (kept[1] - kept[0]):
        return f"{text}."
    lost = [catalog.percent(each.get(name, 0.0)) for each in (its, best)]
    if name not in catalog.LATENCIES:
        return f"{text}: {lost[0]} and {lost[1]} do not finish."
    because = _latency(name, "mean", first, other)
    text += f": {lost[0]} and {lost[1]} miss the limit of {catalog.LATENCIES[name][0]}"
    return f"{text}. {because}" if because != NONE else f"{text}."


def _step_ms(one: Variant) -> float | None:
    """Mean time of a step."""
    busy, steps = one.value("busy_fraction"), one.value("steps")
    engine_s = (one.value("duration") or 0.0) * (one.value("engines") or 1.0)
    return 1000 * busy * engine_s / steps if busy is not None and steps else None


def _full(one: Variant) -> bool:
    return (one.value("max_kv_usage") or 0.0) >= FULL


def _time(seconds: float) -> str:
    return f"{catalog.text_of(seconds)} s" if seconds >= 1 else f"{catalog.text_of(1000 * seconds)} ms"


def _ms(value: float) -> str:
    return _time(round(value, 6) / 1000)
