"""vLLM: cases in the format of tests/data/vllm_schedules/README.md."""

from __future__ import annotations

from dataclasses import replace

from sim.request import Request

from . import common
from .common import Case, Line, Replay

KEYS = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_num_active_seqs",
    "enable_chunked_prefill",
    "long_prefill_token_threshold",
    "long_prefill_token_threshold_adaptive",
    "watermark",
    "async_scheduling",
)


def requests_of(case: Case) -> list[Request]:
    """A `max_tokens` below the output is none."""
    return [replace(r, max_tokens=max(r.max_tokens or 0, r.output_tokens)) for r in common.requests_of(case)]


def replay(case: Case, fast_forward: bool = True) -> list[Line]:
    """The golden lines of a case, as the simulator has them."""
    done = Replay(
        case,
        {
            "name": "vllm",
            **{key: case[key] for key in KEYS if case.get(key) is not None},
            "scheduling_policy": case["policy"],
            "scheduler_reserve_full_isl": case["reserve_full_isl"],
        },
        {
            "block_size": case["block_size"],
            "num_gpu_blocks_override": case["num_gpu_blocks"],
            "max_model_len": case["max_model_len"],
            "enable_prefix_caching": case["enable_prefix_caching"],
        },
        requests_of(case),
        fast_forward,
    )
    lines = []
    for row, entry in done.entries():
        line = done.line(row, entry, case["async_scheduling"])
        line["free"] = case["num_gpu_blocks"] - 1 - row["kv_blocks_used"]
        # Who still held a place as its outputs were processed is gone when a decision is repeated.
        line["running"] = entry["running"] if row["step"] == entry["step"] else len(entry["tokens"])
        lines.append(line)
    return [*lines, done.end()]
