"""Routers: what each does, that it stays the same with and without stretches, and what views show."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

import sim
import sim.frontend
from sim import registry
from sim.request import Request
from sim.routers.base import Asked
from sim.streams import streams
from sim.workload.source import Fixed
from tests import random_cases

REQUEST = Request(0, "r0", 0.0, 10, 10)
CLUSTER: dict[str, Any] = {
    "model": "llama-3.1-8b",
    "gpu": "h100_sxm",
    "replicas": 4,
    "cost": {"name": "roofline", "calibration": "ideal"},
    "workload": {
        "num_requests": 2000,
        "arrivals": {"name": "poisson", "rate_per_s": 70},
        "prompt_tokens": {"name": "lognormal", "mean": 500, "cv": 1.5, "max": 8000},
        "output_tokens": {"name": "lognormal", "mean": 200, "cv": 1.5, "max": 4000},
    },
    "seed": 5,
}


class Stub:
    """A replica of which only the KV use is known."""

    def __init__(self, used: int) -> None:
        self.used = used

    def kv_blocks_used(self) -> int:
        return self.used


def made(name: str, used: list[int], seed: int = 0) -> Any:
    router = registry.build("router", registry.parse("router", name))
    if hasattr(router, "begin"):
        router.begin(streams(seed)("router"))
    for replica, blocks in enumerate(used):
        router.join(replica, Stub(blocks))
    return router


def test_random_goes_everywhere_alike() -> None:
    router = made("random", [0] * 5)
    counts = np.bincount([router.choose(REQUEST) for _ in range(20_000)], minlength=5)
    assert counts.sum() == 20_000 and abs(counts - 4000).max() < 4 * np.sqrt(20_000 * 0.2 * 0.8)


def test_least_kv_reads_its_views_and_takes_turns_among_equals() -> None:
    router = made("least_kv", [5, 2, 7])
    assert [router.choose(REQUEST) for _ in range(3)] == [1, 1, 1]
    router = made("least_kv", [3, 3, 3])
    assert [router.choose(REQUEST) for _ in range(5)] == [0, 1, 2, 0, 1]


def test_power_of_two_takes_the_emptier_of_two_different_replicas() -> None:
    router = made("power_of_two", [0] * 2)
    chosen = [router.choose(REQUEST) for _ in range(100)]
    assert chosen.count(0) == chosen.count(1) == 50  # of two replicas it always compares both
    router = made("power_of_two", [0] * 10)
    for _ in range(10_000):
        router.choose(REQUEST)
    loads = sorted(router.load.values())
    plain = made("random", [0] * 10)
    counts = np.bincount([plain.choose(REQUEST) for _ in range(10_000)])
    assert loads[-1] - loads[0] <= 8 < counts.max() - counts.min()
    router.finished(3)
    assert sum(router.load.values()) == 9_999


@pytest.mark.parametrize("name", ["random", "power_of_two", "least_kv", "least_requests", "round_robin"])
def test_one_replica_gets_all(name: str) -> None:
    router = made(name, [0])
    assert {router.choose(REQUEST) for _ in range(10)} == {0}


def test_draws_follow_the_seed() -> None:
    def first(seed: int) -> list[int]:
        router = made("random", [0] * 8, seed)
        return [router.choose(REQUEST) for _ in range(50)]

    assert first(1) == first(1) != first(2)


@pytest.mark.parametrize("router", ["random", "power_of_two", "least_kv", "least_requests"])
def test_equal_with_and_without_stretches(router: str) -> None:
    for seed in range(60):
        data, asked = random_cases.case(random.Random(seed))
        data |= {"router": router, "replicas": 2 + seed % 4}
        fast, slow = (random_cases.run(data, asked, fast_forward) for fast_forward in (True, False))
        assert fast.requests.equals(slow.requests) and fast.steps.equals(slow.steps), seed
        assert fast.summary == slow.summary


def test_a_view_shows_the_last_decision_before_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """What least_kv reads at each arrival stands in the records: the last step decided before, 0 if none runs."""
    seen: list[tuple[float, int, int]] = []
    cls = registry.get("router", "least_kv")
    choose = cls.choose

    def spying(self: Any, request: Asked) -> int:
        seen.extend((request.arrival_s, replica, view.kv_blocks_used()) for replica, view in self.views.items())
        return choose(self, request)

    monkeypatch.setattr(cls, "choose", spying)
    for policy in ("vllm", "{name: vllm, async_scheduling: false}"):
        seen.clear()
        result = sim.simulate(sim.from_mapping({**CLUSTER, "router": "least_kv"}, overrides=[f"policy={policy}"]))
        steps = {name: result.steps[name].to_numpy() for name in ("engine", "decided_s", "end_s", "kv_blocks_used")}
        busy = 0
        for time_s, replica, used in seen:
            mine = steps["engine"] == replica
            before = int(np.searchsorted(steps["decided_s"][mine], time_s))
            if before and steps["end_s"][mine][before - 1] >= time_s:
                assert used == steps["kv_blocks_used"][mine][before - 1]
                busy += 1
            elif not before or before == mine.sum():
                assert used == 0
        assert busy > len(seen) / 2


def test_better_informed_routers_make_shorter_waits() -> None:
    tails = {}
    for router in ("random", "round_robin", "power_of_two", "least_requests", "least_kv"):
        result = sim.simulate(
            sim.from_mapping({**CLUSTER, "router": router, "policy": {"name": "vllm", "max_num_seqs": 8}})
        )
        tails[router] = result.summary["mean_queue_ms"]
    assert tails["least_requests"] < tails["power_of_two"] < tails["random"]
    assert tails["least_requests"] < tails["round_robin"] < tails["random"]


def test_least_kv_evens_out_the_memory() -> None:
    """Few long prompts among short ones: what counts is the memory, not the number of requests."""
    rng = random.Random(3)
    asked = [Request(i, f"r{i}", i * 0.05, rng.choice([50, 50, 50, 6000]), 200, 200) for i in range(400)]
    spread = {}
    for router in ("least_requests", "least_kv"):
        scenario = sim.from_mapping({**CLUSTER, "router": router})
        result = sim.simulate(scenario, source=Fixed(iter(asked), len(asked)))
        steps = result.steps.to_pandas()
        spread[router] = steps.groupby("engine")["kv_blocks_used"].max().max()
    assert spread["least_kv"] < spread["least_requests"]
