"""Triton's dynamic batcher: preferred sizes, delays, full queues, timeouts, priorities; batches return whole."""

from __future__ import annotations

from typing import Any

import pytest

import sim
from tests.small_schedules import Asked, column, content, scenario, served, step_s


def triton(**more: Any) -> dict[str, Any]:
    return {"name": "triton_dynamic", **more}


def batches(result: sim.Result) -> list[int]:
    """Sequences of each batch, in order."""
    rows = result.steps
    return [n for n, new in zip(rows["seqs"].to_pylist(), rows["prefill_tokens"].to_pylist(), strict=True) if new]


@pytest.mark.parametrize(
    ("preferred", "requests", "expected"),
    [
        (None, 7, [4, 3]),  # as large as may be, and no delay
        ([2], 7, [2, 2, 2, 1]),
        ([1, 3], 8, [3, 3, 1, 1]),  # two are no preferred size, one is
        ([4], 3, [3]),
    ],
)
def test_the_largest_preferred_size_starts_at_once(
    preferred: list[int] | None, requests: int, expected: list[int]
) -> None:
    made = scenario(triton(max_batch_size=4, preferred_batch_size=preferred))
    assert batches(served(made, [(0.0, 10, 3)] * requests)) == expected


def test_other_sizes_wait_for_the_delay_of_the_oldest() -> None:
    policy = triton(max_batch_size=8, preferred_batch_size=[4], max_queue_delay_microseconds=200_000)
    three: Asked = [(1.0, 10, 1), (1.05, 10, 1), (1.1, 10, 1)]
    assert column(served(scenario(policy), three), "first_scheduled_s") == pytest.approx([1.2] * 3, abs=1e-12)
    four = served(scenario(policy), [*three, (1.15, 10, 1)])
    assert column(four, "first_scheduled_s") == [1.15] * 4
    late = served(scenario(policy), [(0.0, 10, 1), *[(0.19, 10, 20)] * 3, *[(0.2, 10, 1)] * 6])
    assert batches(late) == [4, 6]  # past its delay the oldest takes all with it that fit, preferred or not


def test_a_batch_is_padded_runs_to_its_end_and_returns_whole() -> None:
    result = served(scenario(triton()), [(0.0, 10, 2), (0.0, 30, 5), (0.01, 8, 1)])
    ends = [step_s(60, 60), step_s(2, 11 + 31), step_s(2, 32), step_s(2, 33), step_s(2, 34)]
    whole = pytest.approx(sum(ends), abs=1e-12)
    assert column(result, "finish_s")[:2] == [whole, whole]
    assert column(result, "first_token_s") == column(result, "finish_s")
    assert column(result, "first_scheduled_s")[2] == whole  # nobody joins a batch
    assert result.summary["mean_tpot_ms"] is None
    assert content(result)[:2] == ["r0:10 r1:30", "r0:1 r1:1"]


def test_a_full_queue_refuses() -> None:
    policy = triton(max_batch_size=1, default_queue_policy={"max_queue_size": 2})
    result = served(scenario(policy), [(0.0, 10, 9), *[(0.02, 10, 2)] * 4])
    assert column(result, "status") == ["finished"] * 3 + ["rejected"] * 2
    assert "max_queue_size" in column(result, "reason")[3]


def test_queues_are_full_level_by_level() -> None:
    policy = triton(
        max_batch_size=1, priority_levels=2, default_priority_level=2, default_queue_policy={"max_queue_size": 1}
    )
    result = served(scenario(policy), [(0.0, 10, 9), *[(0.02, 10, 2)] * 4], ranks="02121")
    assert column(result, "status") == ["finished"] * 3 + ["rejected"] * 2


@pytest.mark.parametrize("action", ["reject", "delay"])
def test_timeouts(action: str) -> None:
    """r1 has waited for longer than half a second when r0 has ended; r2 has not."""
    rules = {"timeout_action": action, "default_timeout_microseconds": 500_000}
    policy = triton(max_batch_size=1, default_queue_policy=rules)
    result = served(scenario(policy), [(0.0, 10, 60), (0.1, 10, 2), (0.3, 10, 2)])
    start = column(result, "first_scheduled_s")
    assert 0.6 < start[2] < 0.8
    if action == "reject":
        assert column(result, "status") == ["finished", "rejected", "finished"] and start[1] is None
        assert column(result, "reason")[1] == "request timeout expired"
    else:
        assert column(result, "status") == ["finished"] * 3 and start[1] == column(result, "finish_s")[2]


@pytest.mark.parametrize(("timeout_s", "status"), [(0.3, "rejected"), (1.0, "finished")])
def test_a_timeout_within_the_delay(timeout_s: float, status: str) -> None:
    rules = {"default_timeout_microseconds": round(timeout_s * 1e6)}
    policy = triton(max_queue_delay_microseconds=1_000_000, default_queue_policy=rules)
    result = served(scenario(policy), [(0.0, 10, 2), (5.0, 10, 2), (5.0, 10, 2), (5.0, 10, 2), (5.0, 10, 2)])
    assert column(result, "status") == [status] + ["finished"] * 4


def test_who_times_out_is_told_at_once() -> None:
    """Not when the delay is over: its client asks again."""
    rules = {"default_timeout_microseconds": 300_000}
    policy = triton(max_queue_delay_microseconds=1_000_000, default_queue_policy=rules)
    loop = {"arrivals": {"name": "closed_loop", "concurrency": 1}, "prompt_tokens": 10, "output_tokens": 2}
    result = sim.simulate(scenario(policy, workload={"num_requests": 2, **loop}))
    assert column(result, "status") == ["rejected"] * 2
    assert column(result, "arrival_s") == pytest.approx([0.0, 0.3], abs=1e-9)


def test_priorities() -> None:
    """1 is the most urgent; 0, and what is no level, counts as the default."""
    policy = triton(max_batch_size=1, priority_levels=3, default_priority_level=2)
    result = served(scenario(policy), [(0.0, 10, 9), *[(0.02, 10, 1)] * 5], ranks="130182")
    start = column(result, "first_scheduled_s")
    assert sorted(range(1, 6), key=lambda i: start[i]) == [3, 2, 4, 5, 1]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"preferred_batch_size": [2, 8]}, r"policy.preferred_batch_size: 8 is more than max_batch_size \(4\)"),
        ({"preferred_batch_size": []}, "policy.preferred_batch_size: must be a list of 1 or more"),
        ({"default_priority_level": 1}, "policy.default_priority_level: needs priority_levels"),
        ({"priority_levels": 2}, r"policy.default_priority_level: must be from 1 to priority_levels \(2\), got 0"),
        ({"default_queue_policy": {"timeout_action": "dely"}}, "did you mean delay"),
        ({"max_queue_delay_s": 1}, "unknown key .* it is a parameter of static"),
        ({"max_batch_size": 5000}, "policy: reserves 2560000 tokens of KV"),
    ],
)
def test_what_is_refused(policy: dict[str, Any], message: str) -> None:
    with pytest.raises(sim.ScenarioError, match=message):
        scenario(triton(**policy))
