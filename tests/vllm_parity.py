"""Replay recorded vLLM schedules in the simulator and write what it did, in the recordings' own format.

usage: python tests/vllm_parity.py [--no-fast-forward] CASE.json[.gz] OUT.jsonl
       python tests/vllm_parity.py [--no-fast-forward] CASES_DIR OUT_DIR     every NAME.case.json[.gz] -> NAME.jsonl

A replay is case -> scenario (cost `linear`) and a source that holds the case's requests -> `sim.simulate` -> lines. The
formats are described in tests/data/vllm_schedules/README.md.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sim
from sim.request import Request
from sim.workload.source import Fixed

POLICY_KEYS = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_num_active_seqs",
    "enable_chunked_prefill",
    "long_prefill_token_threshold",
    "long_prefill_token_threshold_adaptive",
    "watermark",
    "async_scheduling",
)


def scenario_of(case: dict[str, Any], fast_forward: bool) -> sim.Scenario:
    """The case's engine as a scenario; its model and GPU play no part, since blocks and step times are given."""
    step = case["step"]
    return sim.from_mapping(
        {
            "model": "llama-3.1-8b",
            "gpu": "h100_sxm",
            "engine": {
                "block_size": case["block_size"],
                "num_gpu_blocks_override": case["num_gpu_blocks"],
                "max_model_len": case["max_model_len"],
                "enable_prefix_caching": case["enable_prefix_caching"],
            },
            "policy": {
                "name": "vllm",
                **{key: case[key] for key in POLICY_KEYS if case.get(key) is not None},
                "scheduling_policy": case["policy"],
                "scheduler_reserve_full_isl": case["reserve_full_isl"],
            },
            "workload": {
                "num_requests": max(len(case["requests"]), 1),
                "arrivals": "batch",
                "prompt_tokens": 1,
                "output_tokens": 1,
            },
            "cost": {
                "name": "linear",
                "base_s": step["base"],
                "per_token_s": step["per_token"],
                "per_context_token_s": step["per_context_token"],
            },
            "fast_forward": fast_forward,
        }
    )


def requests_of(case: dict[str, Any]) -> list[Request]:
    """The case's requests. One without `max_tokens` ends by length."""
    requests = []
    for index, row in enumerate(case["requests"]):
        prefix, named = [], 0
        for segment, n in row.get("prefix") or ():
            n = min(n, row["prompt_tokens"] - named)
            if n > 0:
                prefix.append((segment, n))
                named += n
        requests.append(
            Request(
                index,
                row["id"],
                row["arrival"],
                row["prompt_tokens"],
                row["output_tokens"],
                max(row.get("max_tokens") or 0, row["output_tokens"]),
                row.get("priority", 0),
                tuple(prefix),
            )
        )
    return requests


def replay(case: dict[str, Any], fast_forward: bool = True) -> list[dict[str, Any]]:
    """The golden lines of a case, as the simulator has them."""
    requests = requests_of(case)
    source = Fixed(iter(requests), len(requests))
    result = sim.simulate(scenario_of(case, fast_forward), source=source, record_content=True, check_kv=False)
    rows = result.requests.to_pylist()
    spans = result.spans.to_pylist()
    steps = result.steps.to_pylist()
    assert result.content is not None
    content = {entry["step"]: entry for entry in result.content[0]}

    step_of_tick = {row["tick"]: row["step"] for row in steps if row["tick"] is not None}
    last_step: dict[str, int] = {}
    for span in spans:
        at = step_of_tick[span["first_tick"] + span["ticks"] - 1] if span["ticks"] else span["first_step"]
        last_step[span["request_id"]] = max(at, last_step.get(span["request_id"], -1))
    finished: dict[int, list[str]] = {}
    for row in rows:
        if row["status"] == "finished":
            finished.setdefault(last_step[row["request_id"]], []).append(row["request_id"])

    lines: list[dict[str, Any]] = []
    entry: dict[str, Any] = {}
    for row in steps:
        repeats = row["step"] not in content
        entry = entry if repeats else content[row["step"]]
        beyond = row["step"] - entry["step"]
        line = {
            "step": row["step"],
            "start": row["start_s"],
            "duration": row["end_s"] - row["start_s"],
            "tokens": entry["tokens"],
            "context": {key: value + beyond for key, value in entry["context"].items()},
            "preempted": [] if repeats else sorted(entry["preempted"]),
            "finished": sorted(finished.get(row["step"], [])),
            "free": case["num_gpu_blocks"] - 1 - row["kv_blocks_used"],
            # Who still held a place as its outputs were processed is gone when a decision is repeated.
            "running": len(entry["tokens"]) if repeats else entry["running"],
            "waiting": row["waiting"],
        }
        if case["async_scheduling"]:
            line["scheduled_at"] = row["decided_s"]
        lines.append(line)
    lines.append(
        {
            "requests": {row["request_id"]: _request_line(row) for row in rows},
            "steps": len(steps),
            "end": steps[-1]["end_s"] if steps else 0.0,
            "stuck": [row["request_id"] for row in rows if row["status"] in ("failed", "unfinished")],
        }
    )
    return lines


def _request_line(row: dict[str, Any]) -> dict[str, Any]:
    scheduled = row["first_scheduled_s"] is not None
    line = {
        "arrival": row["arrival_s"],
        "first_scheduled": row["first_scheduled_s"],
        "cached": row["cached_tokens"] if scheduled else None,
        "first_token": row["first_token_s"],
        "finish": row["finish_s"],
        "tokens_out": row["output_tokens"],
        "preemptions": row["preemptions"],
    }
    if row["status"] == "rejected":
        line["rejected"] = True
    return line


def read(path: Path) -> Any:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return json.loads(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", type=Path, help="a case, or a folder of them")
    parser.add_argument("out", type=Path, help="the file, or folder, to write")
    parser.add_argument("--no-fast-forward", action="store_true", help="simulate every step by itself")
    options = parser.parse_args()
    if options.case.is_dir():
        options.out.mkdir(parents=True, exist_ok=True)
        cases = sorted(p for p in options.case.iterdir() if ".case.json" in p.name)
        pairs = [(p, options.out / (p.name.split(".case.json")[0] + ".jsonl")) for p in cases]
    else:
        pairs = [(options.case, options.out)]
    for source, target in pairs:
        lines = replay(read(source), not options.no_fast_forward)
        target.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
