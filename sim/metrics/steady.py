"""Whether a run had a steady state, with the evidence; and where its warm-up ends.

Above capacity the queue grows as long as requests arrive, and every latency says how long the run was, not how fast
the system is. That has to be told from the ups and downs of a queue that is stable. At its very capacity a queue is a
random walk: after n arrivals it has strayed by about sqrt(n (ca^2 + cs^2)), with ca and cs the coefficients of
variation of the times between arrivals and of the work of a request [W. Whitt, Stochastic-Process Limits, 2002,
sec. 5]. Below capacity it strays less. So a queue counts as growing if in the end it is longer than
twice that, and was longer in each quarter of the arrivals than in the one before.

That is slow to tell a load a few per cent above capacity. But where requests were left waiting by one admission after
another until the end, for a third of the arrivals or more, the admissions meanwhile show the capacity itself, and the
rate at which requests are offered is known from the scenario, free of the chance of the arrivals. So a queue counts as
growing too if in that stretch fewer were admitted than offered, by twice what the variation of their work explains.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

STABLE, ABOVE, DRAINED, NOTHING = "stable", "above capacity", "drained", "no data"
STEADY = (
    *("verdict", "verdict_evidence", "arrival_rate_per_s", "finish_rate_per_s"),
    *("waiting_at_last_arrival", "waiting_growth_per_s"),
)
"""Fields of summary.json that are made here."""
NOBODY = np.empty(0)
QUARTERS = 4
SPREADS = 2.0
"""A queue longer than this many times what chance explains at capacity."""
STRETCH = 1 / 3
"""Of the arrivals' span: the admissions of a shorter saturated end say little of the capacity."""
FEWEST = 4
"""Requests short, at least: what steps and batches do to the count."""
SERVED = 0.25
"""Where less than this share of the requests has ended when the last arrives, there was no steady state to see."""
SURE = 0.8
"""Where less than this share has, the run is short for its latencies, and a queue may have had no time to grow."""


def steady_state(
    arrival_s: np.ndarray,
    scheduled_s: np.ndarray,
    finish_s: np.ndarray,
    work: np.ndarray,
    warmup_s: float,
    end_s: float,
    offered_per_s: float | None = None,
    engines: int = 1,
    refused_s: np.ndarray = NOBODY,
) -> dict[str, Any]:
    """`verdict`, `verdict_evidence` and the numbers behind it, of the requests that were not refused.

    Times in seconds, NaN where it did not happen; `work` is what some typical requests ask for, in any unit. The
    window is that of the arrivals, from `warmup_s` on. `offered_per_s` is the rate of arrivals that are independent of
    each other, where it is known. `refused_s` is when the refused ones came, who are told and not judged.
    """
    order = np.argsort(arrival_s, kind="stable")
    arrival_s = arrival_s[order]
    late = np.nan_to_num(scheduled_s[order], nan=np.inf), np.nan_to_num(finish_s[order], nan=np.inf)
    inside = (arrival_s >= warmup_s) & (arrival_s <= end_s)
    count = int(inside.sum())
    found: dict[str, Any] = dict.fromkeys(STEADY)
    found["verdict"], found["verdict_evidence"] = NOTHING, "no request was served"
    if not count or not np.isfinite(late[0]).any():
        return found
    refused_s = refused_s[(refused_s >= warmup_s) & (refused_s <= end_s)]
    began, last = float(arrival_s[inside][0]), float(arrival_s[inside][-1])
    span = last - began
    finished = int(np.count_nonzero((late[1] <= last) & inside))
    found["waiting_at_last_arrival"] = waiting = int(np.count_nonzero(inside & (arrival_s < last) & (late[0] > last)))
    if not span:
        text = f"{_together(count, began, refused_s)}, so there is no steady state"
        return found | {"verdict": DRAINED, "verdict_evidence": text}

    at = np.linspace(began, last, 64 * QUARTERS + 1)[1:]
    came = np.searchsorted(arrival_s, at, side="right")
    queue = came - np.searchsorted(np.sort(late[0]), at, side="right")
    inside_system = came - np.searchsorted(np.sort(late[1]), at, side="right")
    slope = float(np.polyfit(at - at.mean(), queue, 1)[0])
    found["arrival_rate_per_s"], found["finish_rate_per_s"] = count / span, finished / span
    found["waiting_growth_per_s"] = slope

    chance = np.sqrt(count * (_variation(np.diff(arrival_s[inside])) + _variation(work)))
    grows = _rises(queue) and float(queue[-26:].mean()) > SPREADS * chance
    full = _saturated(arrival_s[inside], late[0][inside], work, offered_per_s, engines)
    # Where all are admitted at once nobody waits, and the batch grows instead: just as fast at the end, though many
    # have ended by then, as at the beginning.
    spread = _quarters(inside_system)
    steady_growth = spread[3] - spread[2] > 0.5 * (spread[1] - spread[0])
    steady_growth &= spread[3] - spread[2] > SPREADS * chance / np.sqrt(QUARTERS)
    swells = bool(_rises(inside_system) and steady_growth and finished >= SERVED * count)
    accepted = " accepted" if len(refused_s) else ""
    those, ones = f"{count:,}{accepted} requests", f"{count:,}{accepted and ' accepted ones'}"
    rates = f"{count / span:,.3g}{accepted} requests/s came, {finished / span:,.3g} ended while they came"
    if full and full.short > max(FEWEST, SPREADS * full.chance) and not grows and not swells:
        text = (
            f"some waited all the time from {full.since_s:,.4g} s on: {full.offered_per_s:,.3g} requests/s were offered"
        )
        text = f"{text}, {full.admitted_per_s:,.3g} admitted; {waiting:,} waited when the last of {ones} arrived"
        return found | {"verdict": ABOVE, "verdict_evidence": text}
    if grows or swells:
        what = f"{waiting:,} waited" if grows else f"{int(inside_system[-1]):,} were under way"
        growing = slope if grows else float(np.polyfit(at - at.mean(), inside_system, 1)[0])
        text = f"{what} when the last of {ones} arrived, {growing:+,.3g} a second: {rates}"
        return found | {"verdict": ABOVE, "verdict_evidence": text}
    if finished < SERVED * count:
        text = f"{finished:,} of {those} had ended when the last arrived, after {span:,.3g} s: too few to tell"
        return found | {"verdict": DRAINED, "verdict_evidence": f"{text} a steady state"}
    many = f"{waiting:,} of {those} waited" if waiting else f"none of {those} waited"
    short = ""
    if finished < SURE * count:
        short = "; so many were still under way that a longer run would tell more surely"
    elif full:
        short = f"; some waited all the time from {full.since_s:,.4g} s on, so a longer run would tell more surely"
    return found | {"verdict": STABLE, "verdict_evidence": f"{many} when the last arrived; {rates}{short}"}


def _together(count: int, at_s: float, refused_s: np.ndarray) -> str:
    """Of `count` that were accepted, all at one time, and those that were refused, then or at other times."""
    every = count + len(refused_s)
    if (refused_s != at_s).any():
        one = f"only one of {every:,} requests was accepted"
        return one if count == 1 else f"the only {count:,} of {every:,} requests that were accepted came at once"
    if every == 1:
        return "one request came"
    return f"all {every:,} requests came at once" + (f", {len(refused_s):,} of them refused" if len(refused_s) else "")


@dataclass(frozen=True)
class _Full:
    """The end of a run in which requests waited all the time, and were admitted as fast as the system can."""

    since_s: float
    offered_per_s: float
    admitted_per_s: float
    short: float  # requests offered, less those admitted
    chance: float  # what the variation of the work, and of the arrivals where their rate is not known, makes of it


def _saturated(
    arrival_s: np.ndarray, scheduled_s: np.ndarray, work: np.ndarray, offered_per_s: float | None, engines: int
) -> _Full | None:
    """None where nobody waited, or not for long. Arrivals are in order."""
    last, count = float(arrival_s[-1]), len(arrival_s)
    admitted = np.sort(scheduled_s)
    at = np.unique(admitted[admitted <= last])
    # Who came before the last admission but this one was seen by both, though a step is decided ahead; who still waits
    # was left behind. Several engines admit in turn, some twice before another.
    lag = 1 if engines == 1 else 2 * engines
    if len(at) <= lag:
        return None
    behind = np.searchsorted(arrival_s, at[:-lag], side="right") - np.searchsorted(admitted, at[lag:], side="right")
    free = np.flatnonzero(behind <= 0)
    since = float(at[lag + free[-1]]) if len(free) else float(at[lag])
    length = last - since
    if length < STRETCH * (last - float(arrival_s[0])):
        return None
    came = int(np.count_nonzero(arrival_s > since))
    taken = int(np.count_nonzero((admitted > since) & (admitted <= last)))
    spread = _variation(np.diff(arrival_s))
    span = last - float(arrival_s[0])
    # a rate that these arrivals cannot have is not theirs
    known = offered_per_s is not None and abs(offered_per_s * span - count) < 4 * np.sqrt(count * spread) + 2
    offered = offered_per_s * length if known and offered_per_s is not None else float(came)
    chance = float(np.sqrt(taken * _variation(work) + (0.0 if known else came * spread)))
    return _Full(since, offered / length, taken / length, offered - taken, chance)


def warmup_by_mser5(times_s: np.ndarray, values: np.ndarray) -> float | None:
    """The time in seconds at which a run's warm-up ends by MSER-5; None with fewer than 50 values.

    Values in order of their times are averaged in batches of five, and as many batches are cut as make the standard
    error of the mean of the rest least; never more than half [K. P. White, M. J. Cobb, S. C. Spratt, A comparison of
    five steady-state truncation heuristics for simulation, WSC 2000].
    """
    batches = len(values) // 5
    if batches < 10:
        return None
    order = np.argsort(times_s, kind="stable")
    means = values[order][: 5 * batches].reshape(-1, 5).mean(axis=1)
    means = means - means.mean()
    rest = np.arange(batches, 0, -1)
    total, squares = np.cumsum(means[::-1])[::-1], np.cumsum(means[::-1] ** 2)[::-1]
    error = (squares - total * total / rest) / rest**2
    cut = int(np.argmin(error[: batches // 2 + 1]))
    return float(times_s[order][5 * cut]) if cut else 0.0


def _variation(values: np.ndarray) -> float:
    """The squared coefficient of variation."""
    mean = float(values.mean()) if len(values) else 0.0
    return float(values.var()) / mean**2 if mean else 0.0


def _quarters(values: np.ndarray) -> np.ndarray:
    return values.reshape(QUARTERS, -1).mean(axis=1)


def _rises(values: np.ndarray) -> bool:
    return bool((np.diff(_quarters(values)) > 0).all())
