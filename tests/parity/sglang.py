"""SGLang: cases in the format of tests/data/sglang_schedules/README.md."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from sim.policies.sglang import SGLang
from sim.request import Request

from . import common
from .common import Case, Line, Replay, request_line

KEYS = (
    "max_running_requests",
    "max_prefill_tokens",
    "chunked_prefill_size",
    "schedule_policy",
    "schedule_conservativeness",
    "enable_mixed_chunk",
    "prefill_max_requests",
    "prefill_decode_interval",
    "prefill_decode_interval_min_bs",
    "max_queued_requests",
    "enable_priority_scheduling",
    "schedule_low_priority_values_first",
    "priority_scheduling_preemption_threshold",
    "disable_priority_preemption",
    "retraction_policy",
)
LEAST_URGENT = 10**12


def requests_of(case: Case) -> list[Request]:
    """One without a priority is less urgent than any, as SGLang makes it."""
    least = LEAST_URGENT if case["schedule_low_priority_values_first"] else -LEAST_URGENT
    rows = [{**row, "priority": row.get("priority")} for row in case["requests"]]
    made = common.requests_of({"requests": rows}, "max_new_tokens")
    return [replace(request, priority=least) if request.priority is None else request for request in made]


def replay(case: Case, fast_forward: bool = True) -> list[Line]:
    """The golden lines of a case, as the simulator has them."""
    size, overlap = case["page_size"], case["overlap"]
    pages = case["max_total_tokens"] // size
    done = Replay(
        case,
        {
            "name": "sglang",
            **{key: case[key] for key in KEYS if case.get(key) is not None},
            "disable_overlap_schedule": not overlap,
        },
        {
            "block_size": size,
            "num_gpu_blocks_override": pages + 1,  # there is no null block
            "max_model_len": case["context_length"],
            "enable_prefix_caching": not case["disable_radix_cache"],
        },
        requests_of(case),
        fast_forward,
    )
    lines: list[Line] = []
    policy = SGLang(schedule_conservativeness=case.get("schedule_conservativeness", 1.0))
    for row, entry in done.entries():
        first = row["step"] == entry["step"]
        line = done.line(row, entry, overlap)
        line |= {"kind": entry["kind"], "retracted": entry["retracted"], "aborted": entry["refused"]}
        line |= {"free": entry["free"], "evictable": entry["evictable"], "running": entry["running"]}
        if first:
            line |= {"preempted": entry["preempted"], "ratio": entry["ratio"], "waiting": entry["waiting"]}
        else:
            line |= {"retracted": [], "aborted": [], "running": len(entry["tokens"])}
            line["ratio"] = policy.decayed(lines[-1]["ratio"])
            line["free"] = (pages - row["kv_blocks_used"]) * size - entry["evictable"]
        lines.append(line)
    end = done.end()
    longest = min(case["context_length"], case["max_total_tokens"]) - 1
    retractions = Counter(name for line in lines for name in line["retracted"])
    for row in done.rows:
        name, reason = row["request_id"], row["reason"] or ""
        line = request_line(row) | {"retractions": retractions[name]}
        if not line.get("rejected") and row["prompt_tokens"] >= longest - 5:
            line["too_long"] = True
        if reason.startswith("aborted"):
            line.pop("rejected", None)
            line["aborted"] = True
        end["requests"][name] = line
    return [*lines, end]
