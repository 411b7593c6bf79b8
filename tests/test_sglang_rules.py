"""Rules of SGLang's scheduler that no recorded schedule tells apart, on small cases in the recordings' format. What is
expected follows from the rule that each test names, in tests/data/sglang_schedules/README.md."""

from __future__ import annotations

from typing import Any

import pytest

from tests.parity.sglang import replay

CASE = {
    "schedule_policy": "fcfs",
    "page_size": 1,
    "max_total_tokens": 200,
    "context_length": 400,
    "max_running_requests": 8,
    "chunked_prefill_size": 64,
    "max_prefill_tokens": 16384,
    "enable_mixed_chunk": False,
    "schedule_conservativeness": 1.0,
    "disable_radix_cache": False,
    "overlap": True,
    "enable_priority_scheduling": False,
    "schedule_low_priority_values_first": False,
    "priority_scheduling_preemption_threshold": 10,
    "disable_priority_preemption": False,
    "max_queued_requests": None,
    "prefill_max_requests": None,
    "retraction_policy": "length",
    "prefill_decode_interval": 0,
    "prefill_decode_interval_min_bs": 0,
    "step": {"base": 0.01, "per_token": 0.0, "per_context_token": 0.0},
}
START = 0.7
DECAY = (START - 0.14 * START) / 600


def asked(name: str, arrival: float, prompt: int, output: int, limit: int | None = None, **more: Any) -> dict[str, Any]:
    row = {"id": name, "arrival": arrival, "prompt_tokens": prompt, "output_tokens": output, **more}
    return row if limit is None else {**row, "max_new_tokens": limit}


@pytest.fixture(params=[True, False], ids=["stretches", "single-steps"])
def run(request: pytest.FixtureRequest) -> Any:
    """The lines of requests, in CASE but for the options given."""

    def lines(*requests: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
        return replay({**CASE, **options, "requests": list(requests)}, request.param)

    return lines


def test_a_step_in_flight_keeps_the_ratio_from_its_start(run: Any) -> None:
    """Idle: "nothing in flight". a ends by its stop token and is computed once too often; b arrives meanwhile."""
    steps = run(asked("a", 0.0, 20, 1, 5), asked("b", 0.015, 20, 3))
    assert [list(step["tokens"]) for step in steps[:3]] == [["a"], ["a"], ["b"]]
    assert steps[2]["ratio"] == pytest.approx(START - DECAY, abs=1e-12)
    later = run(asked("a", 0.0, 20, 1, 5), asked("b", 0.025, 20, 3))
    assert later[2]["ratio"] == START


def test_who_stops_and_who_ends_by_length_are_cached_in_batch_order(run: Any) -> None:
    """Results: "in batch order". a stops in the step in which b reaches its limit, the next step computes c's prompt
    only. So a's tokens were used before b's, and are evicted for d."""
    *steps, _ = run(
        asked("a", 0.0, 40, 3, 20),
        asked("b", 0.0, 60, 3),
        asked("c", 0.012, 30, 2),
        asked("d", 0.2, 20, 4),
        max_total_tokens=150,
        chunked_prefill_size=128,
        schedule_conservativeness=0.1,
    )
    assert steps[2]["finished"] == ["a", "b"]
    assert list(steps[3]["tokens"]) == ["c"]
    assert list(steps[5]["tokens"]) == ["d"]
    assert steps[5]["evictable"] == 62 + 31  # b's and c's


def test_only_a_try_finds_the_batch_full(run: Any) -> None:
    """Pass, 6: "ends by NO_TOKEN (in f, g or j): full". The last chunk of h leaves less than nothing by the estimate,
    but nobody waits then. c, which comes next, is tried once the interval is over, when h is thought to need less."""
    *steps, _ = run(
        asked("a", 0.0, 20, 100, 200),
        asked("h", 0.005, 120, 60, 248),
        asked("c", 0.125, 10, 5),
        overlap=False,
        max_total_tokens=400,
        schedule_conservativeness=0.02,
        prefill_decode_interval=5,
    )
    prefills = [(step["step"], step["tokens"]) for step in steps if step["kind"] == "prefill"]
    assert prefills == [(0, {"a": 20}), (6, {"h": 64}), (12, {"h": 56}), (18, {"c": 10})]


def test_decodes_that_ride_along_can_leave_no_budget(run: Any) -> None:
    """Pass, 4 and 6a: with mixed chunks the decodes come off max_prefill_tokens; what is left is 0, so nobody is tried
    until one of them has ended."""
    *steps, _ = run(
        asked("a", 0.0, 1, 4),
        asked("b", 0.0, 1, 8),
        asked("c", 0.005, 5, 2),
        overlap=False,
        enable_mixed_chunk=True,
        max_prefill_tokens=2,
    )
    assert [step["kind"] for step in steps[:5]] == ["prefill", "decode", "decode", "decode", "mixed"]
    assert steps[4]["tokens"] == {"c": 5, "b": 1}
