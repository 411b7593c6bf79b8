"""Text Generation Inference: cases in the format of tests/data/tgi_schedules/README.md."""

from __future__ import annotations

from .common import Case, Line, Replay, request_line, requests_of

KEYS = (
    "max_concurrent_requests",
    "max_input_tokens",
    "max_total_tokens",
    "max_batch_prefill_tokens",
    "max_batch_total_tokens",
    "waiting_served_ratio",
    "max_waiting_tokens",
    "max_batch_size",
    "support_chunking",
    "requires_padding",
)


def replay(case: Case, fast_forward: bool = True) -> list[Line]:
    """The golden lines of a case, as the simulator has them."""
    size = case["block_size"]
    done = Replay(
        case,
        {"name": "tgi", **{key: case[key] for key in KEYS if case.get(key) is not None}},
        {
            "block_size": size,
            "num_gpu_blocks_override": max(case["max_batch_total_tokens"] // size, 2),
            "max_model_len": case["max_total_tokens"],
            "enable_prefix_caching": case["prefix_caching"],
        },
        requests_of(case, "max_new_tokens"),
        fast_forward,
    )
    lines = []
    for row, entry in done.entries():
        line = done.line(row, entry, False)
        line |= {"call": entry["call"] if row["step"] == entry["step"] else "decode", "running": entry["running"]}
        if not case["requires_padding"]:  # all blocks are held for life, so nothing changes within a stretch
            line |= {"free": entry["free"], "cached_blocks": entry["cached_blocks"]}
        lines.append(line)
    end = done.end()
    for row in done.rows:
        line = request_line(row)
        if row["status"] == "rejected":
            line["reason"] = row["reason"].split(":")[0]
        end["requests"][row["request_id"]] = line
    return [*lines, end]
