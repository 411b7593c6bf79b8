"""Why a policy does better than another: sentences made of the recorded numbers alone.

From the time split of the requests (queue, prefill, decode, preempted) and from what the engines did: batch, steps, KV
cache, prefix hits. No policy is known by its name.
"""

from collections.abc import Sequence

from . import catalog
from .variants import Variant

PARTS_OF = {"ttft": ("queue", "prefill"), "e2el": ("queue", "prefill", "decode", "preempted")}
FULL = 0.95
"""A KV cache that was this full at some time is called full."""
BOUGHT = 0.9
"""A latency that wins with less than this share of the other's throughput is told with both throughputs."""
DIFFERENT = 0.05
"""Shares (of hits, of time) that are nearer than this are not told apart."""


def portrait(one: Variant) -> str:
    """Where the time of its requests goes and what its engines do, a sentence."""
    parts = {part: value for part, value in one.parts_s().items() if value}
    whole = sum(parts.values())
    if not whole:
        return f"{one.label}: no request finished."
    part = max(parts, key=lambda each: parts[each])
    rest = [f"{catalog.PARTS[p]} {_time(v)}" for p, v in parts.items() if p != part and v / whole >= DIFFERENT]
    text = f"{one.label}: a request takes {_time(whole)}, {100 * parts[part] / whole:.0f} % of it {catalog.PARTS[part]}"
    return f"{text}{' (' + ', '.join(rest) + ')' if rest else ''}; {_engine(one)}."


def why(metric: str, first: Variant, other: Variant) -> str:
    """What the records say of the difference, in a few sentences."""
    told, mine, its = _why(metric, first, other), *(one.value("output_throughput") or 0.0 for one in (first, other))
    if metric.endswith("_ms") and mine < BOUGHT * its:
        told += f" {first.label} gives {catalog.text_of(mine)} tok/s, {other.label} {catalog.text_of(its)}."
    return told


def _why(metric: str, first: Variant, other: Variant) -> str:
    if metric == "request_goodput":
        return _limits(first, other)
    if metric == "output_throughput":
        return _output(first, other)
    name = metric.split("_")[1]
    if name not in PARTS_OF:
        return _pace(first, other)
    if not other.first.summary.get("streamed", True) and name == "ttft":
        return f"{other.label} delivers a request's tokens together, at its end. {_queue(first, other)}"
    its, mine = other.parts_s(), first.parts_s()
    longer = {part: (its[part] or 0.0) - (mine[part] or 0.0) for part in PARTS_OF[name]}
    part = max(longer, key=lambda each: longer[each])
    if longer[part] <= 0:
        return f"In the mean over all requests {other.label} loses nothing: this is the tail alone."
    text = f"A request of {other.label} spends {_time(its[part] or 0.0)} {catalog.PARTS[part]}"
    text += f", {100 * (its[part] or 0.0) / (sum(v or 0.0 for v in its.values()) or 1.0):.2g} % of its time"
    text += f"; of {first.label}'s {_time(mine[part] or 0.0)}. "
    return text + {"queue": _queue, "prefill": _prompts, "decode": _pace, "preempted": _queue}[part](first, other)


def _queue(first: Variant, other: Variant) -> str:
    if all((one.value("mean_waiting") or 0.0) < 1 for one in (first, other)):
        return "In neither does one request wait for a place on average: this is the time until a step can take it."
    return f"{other.label}: {_engine(other)}; {first.label}: {_engine(first)}."


def _prompts(first: Variant, other: Variant) -> str:
    hits = [variant.value("prefix_cache_hit_rate") or 0.0 for variant in (other, first)]
    if abs(hits[0] - hits[1]) >= DIFFERENT:
        return f"It finds {_percent(hits[0])} of the prompts' tokens in its cache, {first.label} {_percent(hits[1])}."
    return _pace(first, other)


def _pace(first: Variant, other: Variant) -> str:
    """Longer steps, or steps in which decodes pause."""
    told = []
    for one in (other, first):
        step_ms, batch = _seen_by_a_token(one)
        told.append(f"{catalog.text_of(step_ms)} ms with {catalog.text_of(batch)} sequences in {one.label}")
    text = f"The mean token comes from a step of {told[0]}, of {told[1]}"
    alone = [_alone(one) for one in (other, first)]
    if alone[0] - alone[1] >= DIFFERENT:
        text += (
            f"; steps of prompts alone, in which decodes pause, are {_percent(alone[0])} of {other.label}'s busy time"
        )
        text += f" and {_percent(alone[1])} of {first.label}'s"
    if first.note != other.note:
        text += "; their steps are priced by different calibrations"
    return f"{text}."


def _output(first: Variant, other: Variant) -> str:
    ends = [_time(one.value("duration") or 0.0) for one in (other, first)]
    text = f"{other.label}'s last request ends after {ends[0]}, {first.label}'s after {ends[1]}"
    return f"{text}. {other.label}: {_engine(other)}; {first.label}: {_engine(first)}."


def _engine(one: Variant) -> str:
    """`mean batch 12 of at most 32, steps of 9.1 ms, 45 wait, KV 70 % in use, full at times`."""
    batch, most = one.value("mean_batch_size") or 0.0, one.value("max_batch_size") or 0.0
    told = [f"mean batch {catalog.text_of(batch)} of at most {most:.0f}"]
    if (step := _step_ms(one)) is not None:
        told.append(f"steps of {catalog.text_of(step)} ms")
    if (waiting := one.value("mean_waiting") or 0.0) >= 1:
        told.append(f"{waiting:.0f} wait on average")
    told.append(f"KV {_percent(one.value('mean_kv_usage'))} in use" + (", full at times" if _full(one) else ""))
    if hits := one.value("prefix_cache_hit_rate"):
        told.append(f"{_percent(hits)} of the prompts' tokens found in the cache")
    if preempted := one.value("preemptions"):
        told.append(f"{preempted:,.0f} preemptions")
    return ", ".join(told)


def _limits(first: Variant, other: Variant) -> str:
    kept = [one.value("slo_attainment") or 0.0 for one in (other, first)]
    if abs(kept[0] - kept[1]) < DIFFERENT / 5:
        return f"Both keep the SLO for {_percent(kept[0])} of the requests. {_output(first, other)}"
    text = f"{_percent(kept[0])} of {other.label}'s requests keep the SLO, {_percent(kept[1])} of {first.label}'s"
    missed = []
    for name, key in catalog.SLO_OF.items():
        limit, value = (other.first.scenario.get("slo") or {}).get(key), other.value(f"p99_{name}_ms")
        if limit is not None and value is not None and value > limit:
            missed.append(f"a p99 {catalog.LATENCIES[name][0]} of {_time(value / 1000)} (limit {_time(limit / 1000)})")
    return f"{text}; {other.label} has {_and(missed)}." if missed else f"{text}."


def _seen_by_a_token(one: Variant) -> tuple[float | None, float | None]:
    """(time in ms, sequences) of the step that the mean token comes from, over the steps in which somebody decodes."""
    steps = one.first.steps[one.first.steps["tick"].notna()]
    tokens = steps["emitted"].sum()
    if not tokens:
        return None, None
    spent_ms = 1000 * (steps["end_s"] - steps["start_s"])
    return float((spent_ms * steps["emitted"]).sum() / tokens), float((steps["seqs"] * steps["emitted"]).sum() / tokens)


def _step_ms(one: Variant) -> float | None:
    """Mean time of a step."""
    busy, steps = one.value("busy_fraction"), one.value("steps")
    engine_s = (one.value("duration") or 0.0) * (one.value("engines") or 1.0)
    return 1000 * busy * engine_s / steps if busy is not None and steps else None


def _alone(one: Variant) -> float:
    """Share of the busy time that goes to steps in which nobody decodes."""
    steps = one.first.steps
    spent = steps["end_s"] - steps["start_s"]
    return float(spent[steps["tick"].isna()].sum() / (spent.sum() or 1.0))


def _full(one: Variant) -> bool:
    return (one.value("max_kv_usage") or 0.0) >= FULL


def _time(seconds: float) -> str:
    return f"{catalog.text_of(seconds)} s" if seconds >= 1 else f"{catalog.text_of(1000 * seconds)} ms"


def _percent(share: float | None) -> str:
    return "no data" if share is None else f"{100 * share:.2g} %" if share < 0.995 else "100 %"


def _and(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]
