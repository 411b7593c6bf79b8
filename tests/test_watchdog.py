"""vLLM's own rules can livelock. Runs end all the same, soon; and nothing honest is taken for a livelock."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

import sim
from sim import watchdog
from sim.request import Request, Sequence
from sim.workload.source import Fixed
from tests.laws import LAWS, Records
from tests.random_cases import OWN

Asked = list[tuple[float, int, int, int]]  # arrival, prompt, output, priority


def cluster(policy: dict[str, Any], blocks: int = 14, longest: int = 200, **changes: Any) -> dict[str, Any]:
    """A replica whose KV holds one long sequence and a little, admitting without looking at whole prompts."""
    return {
        "model": "llama-3.1-8b",
        "gpu": "h100_sxm",
        "engine": {
            "block_size": 16,
            "num_gpu_blocks_override": blocks,
            "max_model_len": longest,
            "enable_prefix_caching": False,
        },
        "policy": {
            "name": "vllm",
            "max_num_seqs": 8,
            "max_num_batched_tokens": 64,
            "scheduling_policy": "priority",
            "long_prefill_token_threshold": 7,
            "scheduler_reserve_full_isl": False,
            "watermark": 0.2,
            **policy,
        },
        "workload": dict(OWN),
        "cost": {"name": "linear", "base_s": 0.005, "per_token_s": 2e-5},
        **changes,
    }


def requests(asked: Asked) -> list[Request]:
    return [Request(i, f"r{i}", at, prompt, output, output, rank) for i, (at, prompt, output, rank) in enumerate(asked)]


def run(data: dict[str, Any], asked: Asked, fast_forward: bool = True) -> sim.Result:
    scenario = sim.from_mapping({**data, "fast_forward": fast_forward})
    return sim.simulate(scenario, source=Fixed(iter(requests(asked)), len(asked)))


def statuses(result: sim.Result) -> list[str]:
    found: list[str] = result.requests["status"].to_pylist()
    return found


def tight(rng: random.Random) -> tuple[dict[str, Any], Asked]:
    """One in seven of these livelocks."""
    policy = {
        "watermark": rng.choice([0.0, 0.2]),
        "async_scheduling": rng.random() < 0.7,
        "scheduling_policy": rng.choice(["priority", "priority", "fcfs"]),
        "long_prefill_token_threshold": rng.choice([0, 7, 20]),
        "max_num_seqs": rng.choice([4, 8]),
    }
    times = sorted(rng.choice([0, 0.001, 0.05]) for _ in range(rng.randint(2, 6)))
    prompts = [rng.randint(20, 190) for _ in times]
    return cluster(policy), [
        (at, n, rng.randint(5, 200 - n), rng.randint(0, 1)) for at, n in zip(times, prompts, strict=True)
    ]


@settings(
    max_examples=100, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(st.integers(0, 2**32 - 1))
def test_a_livelock_is_one(seed: int) -> None:
    """Who fails would get no token in ever so many preemptions more; with and without stretches alike."""
    data, asked = tight(random.Random(seed))
    note(f"{data} {asked}")
    result = run(data, asked)
    assert set(statuses(result)) <= {"finished", "failed"}
    for law in LAWS:
        law(Records(result, requests(asked)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watchdog, "PATIENCE", 600)
        patch.setattr(watchdog, "LIMIT", 600)
        patient = run(data, asked)
    assert statuses(patient) == statuses(result)
    assert patient.requests["output_tokens"].equals(result.requests["output_tokens"])
    if not result.summary["failed"]:
        assert patient.steps.equals(result.steps) and not result.warnings
        return
    slow = run(data, asked, fast_forward=False)
    assert slow.requests.equals(result.requests) and slow.steps.equals(result.steps) and slow.spans.equals(result.spans)
    assert patient.summary["preemptions"] - result.summary["preemptions"] > 300
    reasons = {reason for reason in result.requests["reason"].to_pylist() if reason}
    assert len(reasons) == 1 and "livelock" in reasons.pop()
    assert any("standstill" in warning for warning in result.warnings)


def test_there_are_livelocks_to_find() -> None:
    ended = [run(*tight(random.Random(seed))).summary["failed"] for seed in range(60)]
    assert 4 <= sum(failed > 0 for failed in ended) <= 20


B67: Asked = [(0.0, 104, 78, 0), (0.001, 59, 120, 0), (0.001, 31, 47, 0), (0.001, 139, 56, 0)]


def test_a_later_arrival_can_break_the_circle() -> None:
    """So there is no livelock as long as somebody may come, and few preemptions have brought nothing."""
    data = cluster({"max_num_seqs": 4, "async_scheduling": False})
    circle: Asked = [(0.0, 188, 12, 0), (0.001, 26, 109, 1), (0.001, 157, 36, 1)]
    assert statuses(run(data, circle)) == ["finished", "failed", "failed"]
    for fast_forward in (True, False):
        broken = run(data, [*circle, (7.05008, 49, 9, -1)], fast_forward)
        assert statuses(broken) == ["finished"] * 4
        assert broken.summary["preemptions"] > watchdog.PATIENCE


def test_nobody_is_waited_for_for_ever() -> None:
    """Thousands of preemptions without a token are enough; who comes then fails at once, and has a row."""
    result = run(cluster({}), [*B67, (9e5, 20, 5, 0), (9e5 + 1, 500, 5, 0)])
    assert statuses(result) == ["finished", "failed", "finished", "failed", "failed", "rejected"]
    assert watchdog.LIMIT <= result.summary["preemptions"] <= watchdog.LIMIT + 200
    late = result.requests.to_pylist()[4]
    assert late["output_tokens"] == 0 and late["first_scheduled_s"] is None and "livelock" in late["reason"]
    assert result.summary["requests"] == 6


@pytest.mark.parametrize("fast_forward", [True, False])
def test_other_replicas_keep_working(fast_forward: bool) -> None:
    """One replica livelocks; the other goes on. Who comes to the first one later fails."""
    data = cluster({}, replicas=2, router="round_robin")
    asked: Asked = []
    for at, prompt, output, rank in B67:
        asked += [(at, prompt, output, rank), (at, 10, 20, 0)]
    result = run(data, [*asked, (900.0, 10, 2, 0), (900.1, 10, 2, 0)], fast_forward)
    rows = result.requests.to_pylist()
    assert [row["status"] for row in rows if row["replica"] == 1] == ["finished"] * 5
    assert [row["status"] for row in rows if row["replica"] == 0] == [
        "finished", "failed", "finished", "failed", "failed",
    ]  # fmt: skip
    assert [warning.split(":")[0].split(" at ")[0] for warning in result.warnings] == ["replica 0 came to a standstill"]


def test_clients_in_a_loop_can_livelock_too() -> None:
    data = cluster({}, seed=180)
    data["engine"] |= {"block_size": 32, "num_gpu_blocks_override": 8}
    data["policy"] |= {"watermark": 0.0, "long_prefill_token_threshold": 50, "max_num_batched_tokens": 256}
    data["workload"] = {
        "num_requests": 56,
        "ignore_eos": True,
        "arrivals": {"name": "closed_loop", "concurrency": 4, "think_time_s": 0.05},
        "prompt_tokens": {"name": "uniform", "min": 1, "max": 199},
        "output_tokens": {"name": "uniform", "min": 1, "max": 300},
    }
    fast, slow = (sim.simulate(sim.from_mapping({**data, "fast_forward": mode})) for mode in (True, False))
    assert fast.summary == slow.summary and fast.steps.equals(slow.steps)
    assert fast.summary["failed"] + fast.summary["finished"] == fast.summary["requests"]


def test_long_prefills_are_honest() -> None:
    """Thousands of steps without a token, because a prompt is long and its chunks are short."""
    data = cluster(
        {"max_num_batched_tokens": 16, "long_prefill_token_threshold": 8, "watermark": 0.0},
        blocks=7000,
        longest=110_000,
    )
    result = run(data, [(0.0, 100_000, 3, 0), (0.0, 100, 3, 0)])
    assert statuses(result) == ["finished", "finished"] and not result.warnings
    assert result.summary["steps"] > 100_000 / 16


@pytest.mark.parametrize("scheduling", ["fcfs", "priority"])
def test_storms_of_preemptions_that_get_somewhere_are_honest(scheduling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many more preemptions than the limit, with a token now and then; even where every state would be compared."""
    rng = random.Random(7)
    asked: Asked = [(0.05 * i, rng.randint(20, 120), rng.randint(20, 80), rng.randint(0, 2)) for i in range(120)]
    data = cluster({"scheduling_policy": scheduling, "long_prefill_token_threshold": 0, "watermark": 0.0})
    data["policy"] |= {"max_num_batched_tokens": 32, "scheduler_reserve_full_isl": False}
    plain = run(data, asked)
    assert set(statuses(plain)) == {"finished"} and plain.summary["preemptions"] > 150
    monkeypatch.setattr(watchdog, "PATIENCE", 1)
    monkeypatch.setattr(watchdog, "LIMIT", plain.summary["preemptions"] // 3)
    wary = run(data, asked)
    assert wary.requests.equals(plain.requests) and wary.steps.equals(plain.steps)


class Lane:
    """Of a lane only what the watchdog looks at."""

    def __init__(self) -> None:
        self.decodes = self.plan = self
        self.tick = self.progress = 0
        self.preempted = [object()]
        self.seq = Sequence(Request(0, "r0", 0.0, 5, 1), 0.0, 1, 1, False)

    def stuck(self) -> list[Any]:
        return [self.seq]


def asks(lane: Lane, dog: watchdog.Watchdog, most: int, more: bool = False) -> int | None:
    """After how many preempting decisions it sees a livelock; None: not in `most`."""
    return next((i for i in range(1, most + 1) if dog.sees_livelock(lane, lambda: more)), None)  # type: ignore[arg-type]


def test_the_same_state_again_and_again() -> None:
    found = asks(Lane(), watchdog.Watchdog(), 1000)
    assert found is not None and watchdog.PATIENCE < found <= watchdog.PATIENCE + 4


def test_somebody_may_come() -> None:
    assert asks(Lane(), watchdog.Watchdog(), watchdog.LIMIT + 1, more=True) == watchdog.LIMIT


@pytest.mark.parametrize("name", ["tick", "progress"])
def test_a_token_or_a_chunk_is_progress(name: str) -> None:
    lane, dog = Lane(), watchdog.Watchdog()
    for _ in range(200):
        assert asks(lane, dog, watchdog.PATIENCE) is None
        setattr(lane, name, getattr(lane, name) + 1)


def test_who_came_starts_the_count_of_states_anew() -> None:
    """States seen while others could come say nothing."""
    lane, dog = Lane(), watchdog.Watchdog()
    assert asks(lane, dog, 500, more=True) is None
    found = asks(lane, dog, 500)
    assert found is not None and found >= 4
