"""Every recorded schedule of every engine, step by step: ids in order, tokens, contexts, preemptions, ends, blocks,
times, with stretches and without."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests import engine_parity

DATA = Path(__file__).parent / "data"
COUNTS = {"vllm": 66, "trtllm": 67, "tgi": 41, "sglang": 60}
CASES = [(engine, case) for engine in COUNTS for case in sorted((DATA / f"{engine}_schedules").glob("*.case.json.gz"))]
TOLERANCE = 1e-9
NUMBERS = ("start", "duration", "end", "scheduled_at", "first_scheduled", "first_token", "finish", "ratio")


def golden_of(case: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(case.with_name(case.name.replace(".case.json", ".golden.jsonl")).read_bytes())
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def differs(ours: Any, golden: Any, key: str) -> bool:
    if key in NUMBERS and ours is not None and golden is not None:
        return bool(abs(ours - golden) > TOLERANCE * max(1.0, abs(golden)))
    if key == "tokens":
        return list(ours.items()) != list(golden.items())  # the order counts
    return bool(ours != golden)


def compare(ours: dict[str, Any], golden: dict[str, Any], where: str) -> None:
    for key, value in golden.items():
        if key in ours:
            assert not differs(ours[key], value, key), f"{where}: {key} is {ours[key]}, in the engine {value}"


@pytest.mark.parametrize("engine", COUNTS)
def test_the_tool_writes_a_file_or_a_folder(engine: str, tmp_path: Path) -> None:
    case = next(case for each, case in CASES if each == engine and case.name.startswith(("one", "tiny")))
    name = case.name.split(".")[0]
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / case.name).write_bytes(case.read_bytes())
    assert engine_parity.main([engine, str(case), str(tmp_path / "one.jsonl")]) == 0
    assert engine_parity.main([engine, str(tmp_path / "cases"), str(tmp_path / "out"), "--no-fast-forward"]) == 0
    one, other = ((tmp_path / file).read_text().splitlines() for file in ("one.jsonl", f"out/{name}.jsonl"))
    assert len(one) == len(other) == len(golden_of(case))


@pytest.mark.parametrize("engine", COUNTS)
def test_all_cases_are_here(engine: str) -> None:
    assert sum(each == engine for each, _ in CASES) == COUNTS[engine]


@pytest.mark.parametrize("fast_forward", [True, False], ids=["stretches", "single-steps"])
@pytest.mark.parametrize(
    ("engine", "case"), CASES, ids=[f"{engine}-{case.name.split('.')[0]}" for engine, case in CASES]
)
def test_schedule_equals_the_recorded_one(engine: str, case: Path, fast_forward: bool) -> None:
    *steps, end = engine_parity.replay(engine, engine_parity.read(case), fast_forward)
    *golden_steps, golden_end = golden_of(case)
    for ours, golden in zip(steps, golden_steps, strict=False):
        compare(ours, golden, f"step {golden['step']}")
    assert len(steps) == len(golden_steps)
    assert set(end["requests"]) == set(golden_end["requests"])
    for name, golden in golden_end["requests"].items():
        compare(end["requests"][name], golden, name)
        for flag in ("rejected", "aborted"):
            assert end["requests"][name].get(flag, False) == golden.get(flag, False), name
    assert sorted(end["stuck"]) == sorted(golden_end["stuck"])
    compare({"end": end["end"]}, {"end": golden_end["end"]}, "the last line")
