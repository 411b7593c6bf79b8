"""Routing of whole runs: turns, loads as known strictly before now, ties by a rule, refused requests left out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

import sim
from sim import registry
from sim.request import Request
from sim.workload.source import Fixed
from tests.random_cases import OWN

STEP = 0.01
Asked = list[tuple[float, int]]  # arrival, outputs; each output takes a step


def run(router: str, replicas: int, asked: Asked, prompts: list[int] | None = None, **changes: Any) -> list[int | None]:
    """Where each request went. A step takes 10 ms, so one of n outputs is there for n steps."""
    requests = [
        Request(i, f"r{i}", at, prompts[i] if prompts else 1, outputs, outputs) for i, (at, outputs) in enumerate(asked)
    ]
    scenario = sim.from_mapping(
        {
            "model": "llama-3.1-8b",
            "gpu": "h100_sxm",
            "replicas": replicas,
            "router": router,
            "engine": {"max_model_len": 4096},
            "policy": {"name": "vllm", "async_scheduling": False},
            "workload": dict(OWN),
            "cost": {"name": "linear", "base_s": STEP},
            **changes,
        }
    )
    result = sim.simulate(scenario, source=Fixed(iter(requests), len(requests)))
    engines = set(result.steps["engine"].to_pylist())
    placed: list[int | None] = result.requests["replica"].to_pylist()
    assert engines == {replica for replica in placed if replica is not None}
    return placed


def test_round_robin_takes_turns_whatever_the_load() -> None:
    asked: Asked = [(0.001 * i, 1000 if i % 3 == 0 else 1) for i in range(12)]
    assert run("round_robin", 3, asked) == [0, 1, 2] * 4


def test_a_refused_request_takes_no_turn() -> None:
    prompts = [1, 5000, 1, 1, 9999, 1]
    assert run("round_robin", 3, [(0.0, 2)] * 6, prompts) == [0, None, 1, 2, None, 0]


def test_least_requests_goes_where_fewest_are() -> None:
    """Two long ones occupy replica 0 and 1; short ones that have ended count no more."""
    asked: Asked = [(0.0, 1000), (0.0, 1000), *[(0.1 + 0.05 * i, 2) for i in range(6)]]
    assert run("least_requests", 3, asked) == [0, 1, 2, 2, 2, 2, 2, 2]


def test_a_burst_spreads_evenly() -> None:
    placed = run("least_requests", 4, [(0.5, 3)] * 17)
    assert sorted(Counter(placed).values()) == [4, 4, 4, 5] and placed[:4] == [0, 1, 2, 3]


@pytest.mark.parametrize("replicas", [2, 5, 8])
def test_of_equals_the_one_whose_turn_is_longest_ago(replicas: int) -> None:
    """Idle replicas are all alike: they take turns, none is preferred for its number."""
    asked: Asked = [(float(i), 1) for i in range(4 * replicas)]
    assert run("least_requests", replicas, asked) == list(range(replicas)) * 4


def test_waiting_requests_count() -> None:
    """Not only those that run: one place each, so all but the first wait."""
    placed = run(
        "least_requests", 2, [(0.0, 500)] * 10, policy={"name": "vllm", "max_num_seqs": 1, "async_scheduling": False}
    )
    assert placed == [0, 1] * 5


@pytest.mark.parametrize("fast_forward", [True, False])
def test_what_ends_now_is_known_after_now(fast_forward: bool) -> None:
    """A router's view holds step ends strictly before its choice, with and without stretches."""
    end = sum([STEP] * 4, 0.0)  # when the short one, on replica 1, ends, as steps add up
    before: Asked = [(0.0, 1000), (0.0, 4)]
    at_the_end = run("least_requests", 2, [*before, (end, 1)], fast_forward=fast_forward)
    just_after = run("least_requests", 2, [*before, (np.nextafter(end, 1.0), 1)], fast_forward=fast_forward)
    assert at_the_end[2] == 0  # each holds one: by turns
    assert just_after[2] == 1


def test_equally_loaded_replicas_behind_a_busy_rest_share_alike() -> None:
    """Case B55: eight replicas, two of them tied for the least load, eight picks: four and four, not seven and one."""
    for tied in ((0, 1), (2, 5), (6, 7)):
        router = registry.build("router", registry.parse("router", "least_requests"))
        for replica in range(8):
            router.join(replica, None)
        for _ in range(16):
            router.choose(None)
        for replica in tied:
            router.finished(replica)
        picks = []
        for _ in range(8):
            picks.append(router.choose(None))
            router.finished(picks[-1])  # served at once, so the two stay tied
        assert Counter(picks) == {tied[0]: 4, tied[1]: 4}
        assert picks == [*tied] * 4


def test_a_router_does_not_change_who_asks_or_what_is_served() -> None:
    """Other replicas, same tokens."""
    base = {
        "model": "llama-3.1-8b",
        "gpu": "h100_sxm",
        "replicas": 3,
        "workload": {
            "num_requests": 200,
            "arrivals": {"name": "poisson", "rate_per_s": 20},
            "prompt_tokens": {"name": "exponential", "mean": 200},
            "output_tokens": {"name": "exponential", "mean": 50},
        },
    }
    one, other = (
        sim.simulate(sim.from_mapping({**base, "router": name})) for name in ("round_robin", "least_requests")
    )
    for name in ("request_id", "arrival_s", "prompt_tokens", "output_tokens", "status"):
        assert one.requests[name].equals(other.requests[name])
    assert not one.requests["replica"].equals(other.requests["replica"])
    loads = [np.bincount(result.requests["replica"].to_numpy()) for result in (one, other)]
    assert loads[0].tolist() == [67, 67, 66] and loads[1].sum() == 200
