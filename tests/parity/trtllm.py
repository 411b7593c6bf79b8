"""TensorRT-LLM: cases in the format of tests/data/trtllm_schedules/README.md."""

from __future__ import annotations

from dataclasses import replace

from sim.request import Request

from . import common
from .common import Case, Line, Replay

KEYS = (
    "max_batch_size",
    "max_num_tokens",
    "capacity_scheduler_policy",
    "enable_chunked_prefill",
    "context_chunking_policy",
    "chunk_unit_size",
    "waiting_queue_policy",
    "enable_prefix_aware_scheduling",
    "batch_wait_timeout_iters",
    "batch_wait_max_tokens_ratio",
)


def requests_of(case: Case) -> list[Request]:
    """Priorities, 0.5 where there is none, as whole numbers: only their order counts."""
    asked = [row.get("priority", 0.5) for row in case["requests"]]
    ranks = {value: rank for rank, value in enumerate(sorted(set(asked)))}
    made = common.requests_of({"requests": [{**row, "priority": 0} for row in case["requests"]]})
    return [replace(request, priority=ranks[value]) for request, value in zip(made, asked, strict=True)]


def replay(case: Case, fast_forward: bool = True) -> list[Line]:
    """The golden lines of a case, as the simulator has them."""
    overlap = case["overlap"]
    done = Replay(
        case,
        {
            "name": "trtllm",
            **{key: case[key] for key in KEYS if case.get(key) is not None},
            "disable_overlap_scheduler": not overlap,
        },
        {
            "block_size": case["block_size"],
            "num_gpu_blocks_override": case["num_blocks"] + 1,  # there is no null block
            "max_model_len": case["max_seq_len"],
            "enable_prefix_caching": case["enable_block_reuse"],
        },
        requests_of(case),
        fast_forward,
    )
    lines = []
    for row, entry in done.entries():
        first = row["step"] == entry["step"]
        line = done.line(row, entry, overlap)
        line["free"] = case["num_blocks"] - row["kv_blocks_used"]
        line["waiting"] = entry["waiting"]
        # Who still held a place as its outputs were processed is gone when a decision is repeated.
        line["running"] = entry["running"] if first else len(entry["tokens"]) + entry["pausing"]
        lines.append(line)
    return [*lines, done.end()]
