"""Stretches give the records of single steps, bit for bit, on random scenarios: slow path as the fast path's oracle."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

import sim
from sim import registry
from sim.policies import tgi
from tests import random_cases

seeds = st.integers(0, 2**32 - 1)
# A smaller seed is no simpler scenario, so there is nothing to shrink.
plenty = settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


def assert_equal(fast: sim.Result, slow: sim.Result) -> None:
    for name in ("requests", "spans", "steps"):
        left, right = getattr(fast, name), getattr(slow, name)
        assert left.schema.equals(right.schema)
        if not left.equals(right):
            differing = [column for column in left.column_names if not left[column].equals(right[column])]
            pytest.fail(f"{name} differ: {left.num_rows} and {right.num_rows} rows, columns {differing}")
    assert fast.summary == slow.summary
    assert fast.warnings == slow.warnings
    assert fast.facts["steps"] == slow.facts["steps"]


@plenty
@given(seeds)
def test_stretches_equal_single_steps(seed: int) -> None:
    data, asked = random_cases.case(random.Random(seed))
    note(f"random.Random({seed}): {data}")
    fast, slow = (random_cases.run(data, asked, fast_forward) for fast_forward in (True, False))
    assert_equal(fast, slow)
    assert slow.facts["decisions"] >= slow.facts["steps"]


@pytest.mark.parametrize("policy", [name for name in registry.names("policy") if name != "vllm"])
@settings(plenty, max_examples=40)
@given(seed=seeds)
def test_so_they_do_under_every_policy(policy: str, seed: int) -> None:
    data, asked = random_cases.case(random.Random(seed), policy)
    note(f"random.Random({seed}): {data}")
    fast, slow = (random_cases.run(data, asked, fast_forward) for fast_forward in (True, False))
    assert_equal(fast, slow)


def test_so_they_do_where_tgi_queues_requests_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """After so few outputs that most requests come back, some often."""
    again = 0
    for seed in range(150):
        monkeypatch.setattr(tgi, "MOST_NEW", random.Random(seed).choice([2, 5, 16]))
        data, asked = random_cases.case(random.Random(seed), "tgi")
        data["policy"]["order"] = (None, "fair", "mlfq")[seed % 3]
        fast, slow = (random_cases.run(data, asked, fast_forward) for fast_forward in (True, False))
        assert_equal(fast, slow)
        spans = fast.spans.num_rows
        again += spans > fast.requests.num_rows
    assert again > 75


@pytest.mark.parametrize("policy", registry.names("policy"))
def test_every_policy_takes_stretches(policy: str) -> None:
    fewer = together = 0
    for seed in range(20):
        facts = random_cases.run(*random_cases.case(random.Random(seed), policy)).facts
        fewer += facts["decisions"]
        together += facts["steps"]
    assert together > 2 * fewer


def test_stretches_are_taken() -> None:
    """Or the test above would compare the slow path with itself."""
    fewer = together = 0
    for seed in range(60):
        data, asked = random_cases.case(random.Random(seed))
        facts = random_cases.run(data, asked).facts
        fewer += facts["decisions"]
        together += facts["steps"]
    assert together > 4 * fewer


@pytest.mark.parametrize("policy", registry.names("policy"))
@pytest.mark.parametrize("calibration", ["ideal", random_cases.OVERHEADS], ids=["ideal", "overheads"])
def test_long_stretches_of_the_roofline(policy: str, calibration: str) -> None:
    """Stretches beyond those that a loop prices, many sequences, all lengths different, cut by arrivals."""
    data = {
        "model": "llama-3.1-8b",
        "gpu": {"name": "h100_sxm", "bf16_tflops": 40},
        "engine": {"max_model_len": 4096},
        "policy": policy,
        "workload": {
            "num_requests": 120,
            "arrivals": {"name": "gamma", "rate_per_s": 8, "burstiness": 0.3},
            "prompt_tokens": {"name": "lognormal", "mean": 300, "cv": 1.5, "max": 3000},
            "output_tokens": {"name": "lognormal", "mean": 200, "cv": 1.0, "max": 1000},
        },
        "cost": {"name": "roofline", "calibration": calibration, "noise": {"sigma": 0.1}},
        "seed": 3,
    }
    fast, slow = (random_cases.run(data, [], fast_forward) for fast_forward in (True, False))
    assert_equal(fast, slow)
    assert fast.facts["steps"] / fast.facts["decisions"] > 5
