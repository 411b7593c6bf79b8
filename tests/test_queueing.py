"""Degenerate scenarios (tests/scenarios) are queues of the textbooks, and wait as these do.

Means over replications must agree with theory within their 99 % confidence interval (Student's t, 12 seeds). The
recursion of Lindley, which knows no distribution, must agree to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sim
from analysis.queueing import (
    lindley_waits,
    little,
    md1_mean_wait,
    mean_in_system,
    mg1_mean_wait,
    mm1_mean_wait,
    mm1_wait_quantile,
    mmc_mean_wait,
    mmc_wait_quantile,
)
from sim.metrics import mean_interval

SCENARIOS = Path(__file__).parent / "scenarios"
LEVEL = 0.99
Quantile = Callable[[float], float]

QUEUES: dict[str, tuple[float, Quantile | None]] = {
    "mm1": (mm1_mean_wait(0.6, 1.0), lambda share: mm1_wait_quantile(0.6, 1.0, share)),
    "md1": (md1_mean_wait(0.8, 1.0), None),
    "mg1": (mg1_mean_wait(0.6, 1.0, 1.5), None),
    "mmc": (mmc_mean_wait(3.2, 1.0, 4), lambda share: mmc_wait_quantile(3.2, 1.0, 4, share)),
}


def agrees(values: list[float], theory: float, most: float = 0.1) -> None:
    """The interval of the mean holds the theoretical value, and is narrow enough to say something."""
    mean, low, high = mean_interval(values, LEVEL)
    assert low is not None and high is not None
    assert low <= theory <= high, f"{mean:.4g} in [{low:.4g}, {high:.4g}], by theory {theory:.4g}"
    assert high - low < 2 * most * theory


@pytest.mark.parametrize("name", QUEUES)
def test_waits_and_numbers_of_theory(name: str) -> None:
    wait_s, quantile = QUEUES[name]
    scenario = sim.load(SCENARIOS / f"{name}.yaml")
    assert scenario.replications >= 10 and not scenario.cost.params.get("noise")
    summaries = [sim.simulate(scenario, replication=k).summary for k in range(scenario.replications)]
    for summary in summaries:
        assert summary["finished"] == summary["requests"] == scenario.workload.num_requests
        assert 0.8 * summary["requests"] < summary["measured"] < summary["requests"]  # a warm-up is cut, nobody else
    agrees([summary["mean_queue_ms"] / 1000 for summary in summaries], wait_s)
    rate = scenario.rate_per_s
    assert rate is not None
    agrees([summary["mean_concurrency"] for summary in summaries], little(rate, wait_s + 1.0))
    agrees([summary["mean_e2el_ms"] / 1000 for summary in summaries], wait_s + 1.0)
    if quantile is not None:
        for share in (0.9, 0.95, 0.99):
            agrees([summary[f"p{share * 100:.0f}_queue_ms"] / 1000 for summary in summaries], quantile(share), 0.15)


def column(result: sim.Result, name: str) -> np.ndarray:
    values: np.ndarray = result.requests[name].to_numpy()
    return values


LINEAR = {"name": "linear", "base_s": 0.004, "per_token_s": 3e-5, "per_context_token_s": 2e-7, "noise": {"sigma": 0.3}}
IDEAL = {"name": "roofline", "calibration": "ideal", "noise": {"sigma": 0.1}}  # no front end: it would delay arrivals
POLICIES = {
    "vllm": {"name": "vllm", "max_num_seqs": 1, "async_scheduling": False},
    "vllm-async": {"name": "vllm", "max_num_seqs": 1},
    "vllm-chunks": {"name": "vllm", "max_num_seqs": 1, "max_num_batched_tokens": 64},
    "static": {"name": "static", "batch_size": 1},
    "vllm-many": {"name": "vllm", "max_num_seqs": 20},
    "static-many": {"name": "static", "batch_size": 16},
}
ONE_AT_A_TIME = [name for name in POLICIES if "many" not in name]


def lindley_scenario(policy: str, **changes: Any) -> sim.Scenario:
    return sim.from_mapping(
        {
            "model": "llama-3.1-8b",
            "gpu": "h100_sxm",
            "engine": {"max_model_len": 8192},
            "policy": POLICIES[policy],
            "workload": {
                "num_requests": 1500,
                "ignore_eos": True,  # an engine that decides ahead then has no step too many
                "arrivals": {"name": "gamma", "rate_per_s": 4, "burstiness": 0.5},
                "prompt_tokens": {"name": "lognormal", "mean": 150, "cv": 1.2, "max": 4000},
                "output_tokens": {"name": "exponential", "mean": 40, "max": 400},
            },
            "cost": LINEAR,
            "seed": 5,
            **changes,
        }
    )


@pytest.mark.parametrize("changes", [{}, {"cost": IDEAL}], ids=["linear", "ideal"])
@pytest.mark.parametrize("policy", ONE_AT_A_TIME)
def test_lindleys_recursion_exactly(policy: str, changes: dict[str, Any]) -> None:
    """From recorded arrivals and service times alone follow all waiting times."""
    result = sim.simulate(lindley_scenario(policy, **changes))
    arrival, start, finish = (column(result, name) for name in ("arrival_s", "first_scheduled_s", "finish_s"))
    assert np.abs(lindley_waits(arrival, finish - start) - (start - arrival)).max() < 1e-9
    assert np.abs(column(result, "queue_s") - (start - arrival)).max() < 1e-9
    assert (start > arrival).mean() > 0.2 and (start == arrival).mean() > 0.02  # busy at times, idle at times


def test_lindley_of_each_replica_behind_a_router() -> None:
    result = sim.simulate(lindley_scenario("vllm", replicas=3, router="round_robin"))
    replica = column(result, "replica")
    assert (replica == np.arange(len(replica)) % 3).all()
    for number in range(3):
        arrival, start, finish = (
            column(result, name)[replica == number] for name in ("arrival_s", "first_scheduled_s", "finish_s")
        )
        assert np.abs(lindley_waits(arrival, finish - start) - (start - arrival)).max() < 1e-9


@pytest.mark.parametrize("policy", ["vllm-many", "static-many"])
def test_littles_law_exactly_on_the_records(policy: str) -> None:
    """Whatever the policy and the load: mean number in the system x duration = sum of the times in it."""
    result = sim.simulate(lindley_scenario(policy, engine={"max_model_len": 4500}))
    arrival, finish = column(result, "arrival_s"), column(result, "finish_s")
    assert len(arrival) == result.summary["finished"] == 1500
    duration, latencies = result.summary["duration"], (finish - arrival).sum()
    assert result.summary["mean_concurrency"] * duration == pytest.approx(latencies, rel=1e-12)
    assert mean_in_system(arrival, finish, duration) * duration == pytest.approx(latencies, rel=1e-9)
