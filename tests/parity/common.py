"""What the replays of all engines share: case -> scenario and source -> `sim.simulate` -> the goldens' lines."""

from __future__ import annotations

from typing import Any

import sim
from sim.request import Request
from sim.workload.source import Fixed

Case = dict[str, Any]
Line = dict[str, Any]


def requests_of(case: Case, limit: str = "max_tokens") -> list[Request]:
    """The case's requests. One without a limit of its own ends by length."""
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
                row.get(limit, row["output_tokens"]),
                row.get("priority", 0),
                tuple(prefix),
                ignore_eos=bool(row.get("ignore_eos", False)),
            )
        )
    return requests


class Replay:
    """A case as simulated. `policy` and `engine` are those sections of a scenario; model and GPU play no part, since
    blocks and step times are given."""

    def __init__(
        self, case: Case, policy: dict[str, Any], engine: dict[str, Any], requests: list[Request], fast_forward: bool
    ) -> None:
        step = case["step"]
        scenario = sim.from_mapping(
            {
                "model": "llama-3.1-8b",
                "gpu": "h100_sxm",
                "engine": engine,
                "policy": policy,
                "workload": {
                    "num_requests": max(len(requests), 1),
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
        source = Fixed(iter(requests), len(requests))
        result = sim.simulate(scenario, source=source, record_content=True, check_kv=False)
        assert result.content is not None
        self.rows = result.requests.to_pylist()
        self.steps = result.steps.to_pylist()
        self.content = {entry["step"]: entry for entry in result.content[0]}
        self.finished = self._finished(result.spans.to_pylist())

    def _finished(self, spans: list[dict[str, Any]]) -> dict[int, list[str]]:
        """Who gave the last token in a step."""
        step_of_tick = {row["tick"]: row["step"] for row in self.steps if row["tick"] is not None}
        last_step: dict[str, int] = {}
        for span in spans:
            at = step_of_tick[span["first_tick"] + span["ticks"] - 1] if span["ticks"] else span["first_step"]
            last_step[span["request_id"]] = max(at, last_step.get(span["request_id"], -1))
        finished: dict[int, list[str]] = {}
        for row in self.rows:
            if row["status"] == "finished":
                finished.setdefault(last_step[row["request_id"]], []).append(row["request_id"])
        return finished

    def line(self, row: dict[str, Any], entry: dict[str, Any], decided: bool) -> Line:
        """What all goldens have of a step; `entry` is the decision that it repeats, or is the first of."""
        repeats = row["step"] != entry["step"]
        line = {
            "step": row["step"],
            "start": row["start_s"],
            "duration": row["end_s"] - row["start_s"],
            "tokens": entry["tokens"],
            "context": {key: value + row["step"] - entry["step"] for key, value in entry["context"].items()},
            "preempted": [] if repeats else sorted(entry["preempted"]),
            "finished": sorted(self.finished.get(row["step"], [])),
            "waiting": row["waiting"],
        }
        if decided:
            line["scheduled_at"] = row["decided_s"]
        return line

    def entries(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Each step's row with the decision that it belongs to."""
        found, entry = [], {}
        for row in self.steps:
            entry = self.content.get(row["step"], entry)
            found.append((row, entry))
        return found

    def end(self) -> Line:
        """The last line. The clock goes to the last arrival, even if it brings no step."""
        return {
            "requests": {row["request_id"]: request_line(row) for row in self.rows},
            "steps": len(self.steps),
            "end": max(
                [*(row["arrival_s"] for row in self.rows), *(row["end_s"] for row in self.steps[-1:])], default=0.0
            ),
            "stuck": [row["request_id"] for row in self.rows if stuck(row)],
        }


def stuck(row: dict[str, Any]) -> bool:
    return row["status"] == "unfinished" or (
        row["status"] == "failed" and not (row["reason"] or "").startswith("abort")
    )


def request_line(row: dict[str, Any]) -> Line:
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
