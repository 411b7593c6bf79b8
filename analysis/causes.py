"""Where the time goes that makes a metric: of the mean request, of those about the median, of the slowest.

A p99 is explained by the requests that make it, not by a mean over all. Parts add up to what they are parts of, so
those of two policies differ by as much as the policies do, and the one that differs most is the cause, if it is most of
the difference.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .catalog import PARTS
from .load import Run
from .variants import Variant

BANDS = {"mean": (0.0, 1.0), "median": (0.4, 0.6), "p99": (0.98, 1.0)}
"""Quantiles between which the requests lie that make a metric."""
MOSTLY = 0.5
"""A cause is at least this share of the difference."""
PLAIN, MIXED, ALONE = "plain", "mixed", "alone"
KINDS = {
    PLAIN: "in steps that only decode",
    MIXED: "in steps that compute prompts too",
    ALONE: "in steps of prompts alone, in which decodes pause",
    "between": "between steps",
}
"""Where a token's time goes, if not to preemptions."""
Parts = Mapping[str, float]


@dataclass(frozen=True)
class Cause:
    """The part that differs most: its size for the one that is behind and for the best, and that of all parts."""

    part: str
    its: float
    best: float
    its_whole: float
    best_whole: float


def cause(parts: Callable[[Variant], Parts], first: Variant, other: Variant) -> Cause | None:
    """None where the parts do not differ the way the metric does, or no part is most of the difference."""
    best, its = parts(first), parts(other)
    whole = sum(its.values()) - sum(best.values())
    more = {part: its.get(part, 0.0) - best.get(part, 0.0) for part in {**its, **best}}
    if whole <= 0 or not more:
        return None
    part = max(more, key=lambda each: more[each])
    if more[part] < MOSTLY * whole:
        return None
    return Cause(part, its.get(part, 0.0), best.get(part, 0.0), sum(its.values()), sum(best.values()))


def request_parts(one: Variant, name: str, band: str) -> Parts:
    """ms of `ttft` or `e2el` by where they were spent (`catalog.PARTS`)."""
    streamed = bool(one.first.summary.get("streamed", True))
    wanted = ("queue", "prefill") if name == "ttft" and streamed else tuple(PARTS)
    return _mean([_means(_band(run.requests, name, band), wanted) for run in one.runs])


def decode_parts(one: Variant, name: str, band: str) -> Parts:
    """ms of a request's decoding by `KINDS`; for `tpot` of each token, preemptions included."""
    return _mean([_decoding(run, name, band) for run in one.runs])


def pause_parts(one: Variant, band: str) -> Parts:
    """ms of the pauses between two tokens by `KINDS`."""
    return _mean([_pauses(run, band) for run in one.runs])


def prompt_steps(one: Variant, name: str, band: str) -> tuple[float, float] | None:
    """(steps with prompts from the first one that a request was in to its first token, ms of each)."""
    counts, spent_ms = [], []
    for run in one.runs:
        chosen = _band(run.requests, name, band)
        for replica, mine in chosen.groupby("replica"):
            steps = run.steps[(run.steps["engine"] == replica) & (run.steps["prefill_tokens"] > 0)]
            ends = np.sort(steps["end_s"].to_numpy())
            begin = mine["arrival_s"] + mine["queue_s"]
            after = np.searchsorted(ends, begin + mine["prefill_s"] + 1e-9, side="right")
            counts += list(after - np.searchsorted(ends, begin + 1e-9, side="right"))
            spent_ms += list(1000 * mine["prefill_s"])
    return (float(np.mean(counts)), float(np.sum(spent_ms) / np.sum(counts))) if np.sum(counts) else None


def lead_ms(one: Variant) -> float:
    """Mean time from the decision of a step with prompts to its start: who arrives in between waits for the next."""
    steps = pd.concat([run.steps for run in one.runs])
    steps = steps[steps["prefill_tokens"] > 0]
    return float(1000 * (steps["start_s"] - steps["decided_s"]).mean()) if len(steps) else 0.0


@dataclass(frozen=True)
class Steps:
    """The steps of one kind, as seen by the tokens that are decoded in them."""

    ms: float
    seqs: float
    prompt_tokens: float
    share: float
    """Of all steps in which sequences decode."""


def steps_of(one: Variant, kind: str) -> Steps | None:
    steps = pd.concat([run.steps for run in one.runs])
    steps = steps[steps["tick"].notna()]
    weight = steps["decode_tokens"].where((steps["prefill_tokens"] > 0) == (kind == MIXED), 0)
    if not weight.sum():
        return None
    of = [1000 * (steps["end_s"] - steps["start_s"]), steps["seqs"], steps["prefill_tokens"]]
    ms, seqs, prompt_tokens = (float((values * weight).sum() / weight.sum()) for values in of)
    return Steps(ms, seqs, prompt_tokens, float(weight.sum() / steps["decode_tokens"].sum()))


def alone_share(one: Variant) -> float:
    """Share of the busy time that goes to steps in which nobody decodes."""
    steps = pd.concat([run.steps for run in one.runs])
    spent = steps["end_s"] - steps["start_s"]
    return float(spent[steps["tick"].isna()].sum() / (spent.sum() or 1.0))


def _band(requests: pd.DataFrame, name: str, band: str) -> pd.DataFrame:
    """The measured requests whose latency makes the metric."""
    chosen = requests[requests["measured"] & requests[f"{name}_ms"].notna()]
    low, high = chosen[f"{name}_ms"].quantile(list(BANDS[band])) if len(chosen) else (0.0, 0.0)
    return chosen[chosen[f"{name}_ms"].between(low, high)]


def _means(requests: pd.DataFrame, parts: tuple[str, ...]) -> Parts:
    return {part: float(1000 * requests[f"{part}_s"].mean()) for part in parts} if len(requests) else {}


def _mean(found: list[Parts]) -> Parts:
    """Of replications; those without data are left out."""
    there = [parts for parts in found if parts]
    names = dict.fromkeys(name for parts in there for name in parts)
    return {name: sum(parts.get(name, 0.0) for parts in there) / len(there) for name in names}


def _decoding(run: Run, name: str, band: str) -> Parts:
    chosen = _band(run.requests, name, band)
    if not len(chosen):
        return {}
    each = (chosen["output_tokens"] - 1).clip(lower=1) if name == "tpot" else 1
    begin = chosen["arrival_s"] + chosen["queue_s"] + chosen["prefill_s"]
    inside = pd.DataFrame(0.0, index=chosen.index, columns=[PLAIN, MIXED, ALONE])
    for replica, mine in chosen.groupby("replica"):
        steps = run.steps[run.steps["engine"] == replica].sort_values("start_s")
        for kind in inside:
            upto = _upto(steps, _kinds(steps) == kind)
            inside.loc[mine.index, kind] = upto(mine["finish_s"]) - upto(begin[mine.index])
    # while it was preempted the engine computed others: its own steps are the rest
    whole = (chosen["finish_s"] - begin).clip(lower=1e-12)
    inside = inside.mul(chosen["decode_s"] / whole, axis=0)
    inside["between"] = chosen["decode_s"] - inside.sum(axis=1)
    if name == "tpot":
        inside["preempted"] = whole - chosen["decode_s"]
    return {str(kind): float(1000 * (inside[kind] / each).mean()) for kind in inside}


def _kinds(steps: pd.DataFrame) -> np.ndarray:
    return np.where(steps["tick"].isna(), ALONE, np.where(steps["prefill_tokens"] > 0, MIXED, PLAIN))


def _upto(steps: pd.DataFrame, chosen: np.ndarray) -> Callable[[pd.Series], np.ndarray]:
    """Seconds of the chosen steps until a time."""
    start, end = steps["start_s"].to_numpy(), steps["end_s"].to_numpy()
    area = np.zeros(2 * len(start))
    np.cumsum((end - start) * chosen, out=area[1::2])
    area[2::2] = area[1:-1:2]
    times = np.ravel(np.column_stack([start, end]))

    def upto(at: pd.Series) -> np.ndarray:
        return np.asarray(np.interp(at, times, area)) if len(times) else np.zeros(len(at))

    return upto


def _pauses(run: Run, band: str) -> Parts:
    """From the steps alone: who decodes had its last token in the decode step before, or in a step of prompts since."""
    rows = []
    for _, mine in run.steps.groupby("engine"):
        steps = mine.sort_values("start_s")
        kinds, spent = _kinds(steps), (steps["end_s"] - steps["start_s"]).to_numpy()
        ticks = np.flatnonzero(kinds != ALONE)
        if len(ticks) < 2:
            continue
        prompts = np.cumsum(np.where(kinds == ALONE, spent, 0.0))
        fresh = np.cumsum(np.where(kinds == ALONE, steps["emitted"], 0))
        before, here = ticks[:-1], ticks[1:]
        alone, new = prompts[here] - prompts[before], fresh[here] - fresh[before]
        ends = steps["end_s"].to_numpy()
        between = ends[here] - ends[before] - alone - spent[here]
        decoding = steps["decode_tokens"].to_numpy()[here]
        old = np.where(between > spent[here] + alone, 0, np.maximum(decoding - new, 0))  # an idle engine: all are new
        kind = kinds[here]
        for weight, paused, idle in ((old, alone, between), (decoding - old, 0 * alone, 0 * between)):
            rows.append(np.column_stack([weight, spent[here], kind == MIXED, paused, idle]).astype(float))
    if not rows:
        return {}
    weight, own, mixed, paused, idle = np.concatenate(rows).T
    whole = own + paused + idle
    order = np.argsort(whole)
    share = np.cumsum(weight[order]) / weight.sum()
    low, high = BANDS[band]
    weight = np.where((share >= low) & (share <= high + 1e-9), weight[order], 0.0)

    def mean(values: np.ndarray) -> float:
        return float(1000 * (values[order] * weight).sum() / weight.sum())

    parts = {PLAIN: own * (1 - mixed), MIXED: own * mixed, ALONE: paused, "between": idle}
    return {kind: mean(values) for kind, values in parts.items()}
