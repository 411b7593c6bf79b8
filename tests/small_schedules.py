"""Small schedules by hand: a few requests under one policy, the linear cost, and what each step computed."""

from __future__ import annotations

from typing import Any

import sim
from sim.request import Request
from sim.workload.source import Fixed
from tests.random_cases import OWN

BASE, TOKEN, CONTEXT = 0.01, 1e-4, 1e-6
Asked = list[tuple[float, int, int]]  # arrival, prompt, output


def scenario(policy: dict[str, Any], blocks: int | None = None, size: int = 16, **changes: Any) -> sim.Scenario:
    """blocks: usable KV blocks; None: as many as the GPU holds."""
    engine = {"max_model_len": 512, "block_size": size}
    if blocks is not None:
        engine = {"max_model_len": blocks * size, "block_size": size, "num_gpu_blocks_override": blocks + 1}
    return sim.from_mapping(
        {
            "model": "llama-3.1-8b",
            "gpu": "h100_sxm",
            "engine": {**engine, **changes.pop("engine", {})},
            "policy": policy,
            "workload": dict(OWN),
            "cost": {"name": "linear", "base_s": BASE, "per_token_s": TOKEN, "per_context_token_s": CONTEXT},
            "fast_forward": False,
            **changes,
        }
    )


def served(made: sim.Scenario, asked: Asked, most: dict[int, int] | None = None, ranks: str = "") -> sim.Result:
    """most: max_tokens of some, where that is not their output; ranks: a digit each, their priorities."""
    requests = [
        Request(i, f"r{i}", at, prompt, output, (most or {}).get(i, output), int(ranks[i]) if ranks else 0)
        for i, (at, prompt, output) in enumerate(asked)
    ]
    return sim.simulate(made, source=Fixed(iter(requests), len(requests)), record_content=True)


def content(result: sim.Result) -> list[str]:
    """Of each step: who computes how many tokens, and behind a bar who is preempted."""
    assert result.content is not None
    steps = []
    for row in result.content[0]:
        tokens = " ".join(f"{name}:{new}" for name, new in row["tokens"].items())
        steps.append(tokens + "".join(f" |{name}" for name in row["preempted"]))
    return steps


def seconds(result: sim.Result) -> list[float]:
    """How long each step takes."""
    rows = result.steps
    return list(rows["end_s"].to_numpy() - rows["start_s"].to_numpy())


def step_s(tokens: int, context: int) -> float:
    return BASE + TOKEN * tokens + CONTEXT * context


def column(result: sim.Result, name: str) -> list[Any]:
    return result.requests[name].to_pylist()
