"""`summarise`: the three tables of a run -> the flat mapping that `summary.json` holds.

Two sets of requests and one window, so that every number says what it is about:

- *measured*: finished requests that arrived at or after `warmup_s`. Latencies are theirs.
- *completed*: requests that finished within the window. Throughput is theirs.
- the window runs from `warmup_s` to `end_s`; its length is `duration`.

The counts by status, `requests` and `preemptions` are about the whole run; nothing is dropped silently.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .columns import equals, numbers
from .engines import summarise_steps
from .gaps import inter_token_gaps
from .quantiles import statistics, weighted_statistics
from .steady import steady_state, warmup_by_mser5

STATUSES = ("finished", "rejected", "shed", "timed_out", "cancelled", "failed", "unfinished")
LATENCIES = ("ttft", "tpot", "itl", "e2el", "queue")
"""Each has mean_, median_, std_, p90_, p95_ and p99_..._ms."""
PARTS = ("queue", "prefill", "decode", "preempted", "transfer", "retry")
"""Where a request's time goes; each has a mean_..._ms, and they add up to mean_e2el_ms."""
REQUEST_COLUMNS = (
    *("request_id", "class", "status", "arrival_s", "first_scheduled_s", "first_token_s", "finish_s"),
    *("prompt_tokens", "output_tokens", "cached_tokens", "preemptions"),
    *(f"{part}_s" for part in PARTS),
)
SPAN_COLUMNS = ("request_id", "engine", "lane", "first_step", "first_tick", "ticks")
STEP_COLUMNS = (
    *("engine", "lane", "step", "tick", "start_s", "end_s"),
    *("seqs", "emitted", "kv_blocks_used", "waiting"),
)
"""The columns that `summarise` reads; a caller short of memory need not load others."""

Slo = Mapping[str, float | None]


def summarise(
    requests: pa.Table,
    spans: pa.Table,
    steps: pa.Table,
    *,
    end_s: float,
    warmup_s: float | Literal["auto"] = 0.0,
    slo: Mapping[str, Slo] | None = None,
    kv_blocks_total: Mapping[int, int] | None = None,
    streamed: bool = True,
    note: str = "",
    offered_per_s: float | None = None,
) -> dict[str, Any]:
    """The metrics of one run; None (null in JSON) wherever there is nothing to measure, never 0 or NaN.

    end_s: when the simulated clock stopped. warmup_s: "auto" cuts what MSER-5 says. slo: limits by request class (""
    for the classes without their own), each a mapping with some of ttft_ms, tpot_ms, e2e_ms. kv_blocks_total: usable
    blocks of each engine, also of those that never worked. streamed=False: all tokens of a request are delivered at
    its end, so it has no TPOT and no ITL. offered_per_s: the rate of independent arrivals, as the scenario has it.
    """
    facts = _Requests(requests, 0.0, end_s)
    suggested = facts.warmup_by_mser5()
    warmup_s = suggested or 0.0 if warmup_s == "auto" else warmup_s
    duration = max(0.0, end_s - warmup_s)
    if warmup_s:
        facts = _Requests(requests, warmup_s, end_s)
    found: dict[str, Any] = {"duration": duration, "warmup_s": float(warmup_s), "end_s": float(end_s)}
    found.update(facts.counts())
    found.update(_throughput(facts, duration, slo or {}))
    found.update(summarise_steps(steps, warmup_s, end_s, kv_blocks_total or {}))
    found.update(facts.concurrency(duration))
    found.update(facts.steady_state(offered_per_s, len(kv_blocks_total or {}) or 1))
    found["mser5_warmup_s"] = suggested
    found["engines"], found["kv_blocks_total"] = len(kv_blocks_total or {}), sum((kv_blocks_total or {}).values())

    measured = facts.measured
    latencies = {name: statistics(facts.of(name, measured)) for name in ("ttft", "e2el", "queue")}
    if streamed:
        several = measured & (facts.output_tokens > 1)
        gaps, weights = inter_token_gaps(requests, spans, steps, measured)
        latencies["tpot"] = statistics(facts.tpot_s(several))
        latencies["itl"] = weighted_statistics(gaps, weights)
        found["measured_tpot"], found["measured_itl"] = int(several.sum()), int(weights.sum())
    else:
        latencies["tpot"] = latencies["itl"] = statistics(np.empty(0))
        found["measured_tpot"] = found["measured_itl"] = 0
    for name in LATENCIES:
        found.update({f"{which}_{name}_ms": _ms(value) for which, value in latencies[name].items()})
    for part in PARTS:
        values = facts.of(part, measured)
        found[f"mean_{part}_ms"] = _ms(float(values.mean()) if len(values) else None)
    found["prefix_cache_hit_rate"] = facts.hit_rate()
    found["streamed"] = streamed
    found["note"] = note
    return found


class _Requests:
    """The table of requests as arrays (seconds), and who counts for what."""

    def __init__(self, table: pa.Table, warmup_s: float, end_s: float) -> None:
        self.table = table
        self.warmup_s, self.end_s = warmup_s, end_s
        self.arrival_s = numbers(table, "arrival_s")
        self.first_token_s = numbers(table, "first_token_s")
        self.finish_s = numbers(table, "finish_s")
        self.prompt_tokens = numbers(table, "prompt_tokens")
        self.output_tokens = numbers(table, "output_tokens")
        self.finished = equals(table, "status", "finished")
        self.arrived_in_window = self.arrival_s >= warmup_s
        self.measured = self.finished & self.arrived_in_window
        self.completed = self.finished & (self.finish_s >= warmup_s)

    def of(self, name: str, who: np.ndarray) -> np.ndarray:
        """Seconds of TTFT, E2E latency or a part of it, of the requests `who`."""
        if name == "ttft":
            return self.first_token_s[who] - self.arrival_s[who]
        if name == "e2el":
            return self.finish_s[who] - self.arrival_s[who]
        return numbers(self.table, f"{name}_s")[who]

    def tpot_s(self, who: np.ndarray) -> np.ndarray:
        """Time per output token after the first; `who` must have two tokens or more."""
        return (self.finish_s[who] - self.first_token_s[who]) / (self.output_tokens[who] - 1)

    def counts(self) -> dict[str, int]:
        counted = {
            entry["values"]: entry["counts"] for entry in pc.value_counts(self.table.column("status")).to_pylist()
        }
        found = {"requests": self.table.num_rows} | {status: counted.get(status, 0) for status in STATUSES}
        found["measured"] = int(self.measured.sum())
        found["preemptions"] = int(numbers(self.table, "preemptions").sum())
        return found

    def good(self, slo: Mapping[str, Slo]) -> np.ndarray:
        """Finished requests that meet every limit of their class; as in vLLM's benchmark a limit itself is met, and
        the TPOT of a request with one token is taken as 0."""
        good = self.finished.copy()
        tpot_s = (self.finish_s - self.first_token_s) / np.maximum(self.output_tokens - 1, 1)
        tpot_s[self.output_tokens <= 1] = 0.0
        seconds = {
            "ttft_ms": self.first_token_s - self.arrival_s,
            "tpot_ms": tpot_s,
            "e2e_ms": self.finish_s - self.arrival_s,
        }
        with_own = [label for label in slo if label]
        others = np.ones(len(good), bool)
        for label in with_own:
            others &= ~equals(self.table, "class", label)
        for label, limits in slo.items():
            who = equals(self.table, "class", label) if label else others
            for name, limit_ms in limits.items():
                if limit_ms is not None:
                    good &= ~who | (seconds[name] <= limit_ms / 1000.0)
        return good

    def concurrency(self, duration: float) -> dict[str, Any]:
        """Requests in the system, from arrival to end, refused ones not counted. By Little's law the mean times the
        duration is the sum of E2E latencies (where all finish and no warm-up is cut)."""
        inside = ~(equals(self.table, "status", "rejected") | equals(self.table, "status", "shed"))
        begin = np.sort(self.arrival_s[inside])
        leave = np.nan_to_num(self.finish_s[inside], nan=max(self.end_s, float(begin[-1]) if len(begin) else 0.0))
        stay = np.minimum(leave, self.end_s) - np.maximum(self.arrival_s[inside], self.warmup_s)
        leave.sort()
        # who leaves at the instant of an arrival has left, as in vLLM's benchmark
        at_arrivals = np.arange(1, len(begin) + 1) - np.searchsorted(leave, begin, side="right")
        at_arrivals = at_arrivals[begin >= self.warmup_s]
        mean = float(np.maximum(stay, 0.0).sum()) / duration if duration else None
        return {
            "mean_concurrency": mean,
            "max_concurrent_requests": int(at_arrivals.max()) if len(at_arrivals) else None,
        }

    def steady_state(self, offered_per_s: float | None, engines: int) -> dict[str, Any]:
        """The verdict on the run, and the numbers behind it."""
        taken = ~(equals(self.table, "status", "rejected") | equals(self.table, "status", "shed"))
        work = (self.prompt_tokens + self.output_tokens)[self.finished]
        scheduled_s = numbers(self.table, "first_scheduled_s")[taken]
        if offered_per_s is not None and len(taken):
            offered_per_s *= float(taken.mean())
        times = self.arrival_s[taken], scheduled_s, self.finish_s[taken]
        refused_s = self.arrival_s[~taken]
        return steady_state(*times, work, self.warmup_s, self.end_s, offered_per_s, engines, refused_s)

    def warmup_by_mser5(self) -> float | None:
        """Where the warm-up ends, by the E2E latencies in order of arrival."""
        return warmup_by_mser5(self.arrival_s[self.finished], self.of("e2el", self.finished))

    def hit_rate(self) -> float | None:
        """Share of the prompts' tokens that the prefix cache held, over requests of the window that were scheduled."""
        who = ~np.isnan(numbers(self.table, "first_scheduled_s")) & self.arrived_in_window
        asked = int(self.prompt_tokens[who].sum())
        return int(numbers(self.table, "cached_tokens")[who].sum()) / asked if asked else None


def _throughput(facts: _Requests, duration: float, slo: Mapping[str, Slo]) -> dict[str, Any]:
    """Per second of the window, over completed requests, as in vLLM's benchmark."""
    completed = facts.completed
    count = int(completed.sum())
    given = int(facts.prompt_tokens[completed].sum())
    made = int(facts.output_tokens[completed].sum())
    found: dict[str, Any] = {"completed": count, "total_input_tokens": given, "total_output_tokens": made}
    found["request_throughput"] = count / duration if duration else None
    found["output_throughput"] = made / duration if duration else None
    found["total_token_throughput"] = (given + made) / duration if duration else None
    found["request_goodput"] = found["slo_attainment"] = None
    if any(limit is not None for limits in slo.values() for limit in limits.values()):
        good = facts.good(slo)
        arrived = int(facts.arrived_in_window.sum())
        found["request_goodput"] = int((good & completed).sum()) / duration if duration else None
        found["slo_attainment"] = int((good & facts.arrived_in_window).sum()) / arrived if arrived else None
    return found


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000.0
