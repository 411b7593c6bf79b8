"""Every recorded vLLM schedule, step by step: ids in order, tokens, contexts, preemptions, finishes, blocks, times."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
CASES = sorted((HERE / "data" / "vllm_schedules").glob("*.case.json.gz"))
TOLERANCE_S = 1e-9
TIMES = ("start", "duration", "scheduled_at", "first_scheduled", "first_token", "finish")

spec = importlib.util.spec_from_file_location("vllm_parity", HERE / "vllm_parity.py")
assert spec and spec.loader
parity = importlib.util.module_from_spec(spec)
spec.loader.exec_module(parity)


def golden_of(case: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(case.with_name(case.name.replace(".case.json", ".golden.jsonl")).read_bytes())
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def differs(ours: Any, golden: Any, key: str) -> bool:
    if key in TIMES and ours is not None and golden is not None:
        return bool(abs(ours - golden) > TOLERANCE_S * max(1.0, abs(golden)))
    if key == "tokens":
        return list(ours.items()) != list(golden.items())  # the order counts
    return bool(ours != golden)


def compare(ours: dict[str, Any], golden: dict[str, Any], where: str) -> None:
    for key, value in golden.items():
        if key in ours:
            assert not differs(ours[key], value, key), f"{where}: {key} is {ours[key]}, in vLLM {value}"


def test_all_cases_are_here() -> None:
    assert len(CASES) == 66


@pytest.mark.parametrize("fast_forward", [True, False], ids=["stretches", "single-steps"])
@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name.split(".")[0])
def test_schedule_equals_the_recorded_one(case: Path, fast_forward: bool) -> None:
    *steps, end = parity.replay(parity.read(case), fast_forward)
    *golden_steps, golden_end = golden_of(case)
    for ours, golden in zip(steps, golden_steps, strict=False):
        compare(ours, golden, f"step {golden['step']}")
    assert len(steps) == len(golden_steps)
    assert set(end["requests"]) == set(golden_end["requests"])
    for name, golden in golden_end["requests"].items():
        compare(end["requests"][name], golden, name)
        assert end["requests"][name].get("rejected", False) == golden.get("rejected", False), name
    assert sorted(end["stuck"]) == sorted(golden_end["stuck"])
