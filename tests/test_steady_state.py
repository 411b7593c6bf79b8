"""Verdicts on runs whose nature is known, and where their warm-up ends."""

import re
from typing import Any

import numpy as np
import pytest

from sim import from_mapping, simulate
from sim.metrics.steady import ABOVE, DRAINED, NOTHING, STABLE, steady_state, warmup_by_mser5


def queue(
    rate: float, count: int = 2000, seed: int = 0, servers: int = 1, cv: float = 1.0, told: float | None = None
) -> dict[str, Any]:
    """First come, first served, mean service 1 s, Poisson arrivals; gamma service times. `told`: the rate, if it is."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / rate, count))
    service = rng.gamma(1 / cv**2, cv**2, count) if cv else np.ones(count)
    free = np.zeros(servers)
    begin = np.empty(count)
    for i in range(count):
        at = int(free.argmin())
        begin[i] = max(free[at], arrival[i])
        free[at] = begin[i] + service[i]
    return steady_state(arrival, begin, begin + service, service, 0.0, np.inf, told)


@pytest.mark.parametrize("load, verdict", [(0.5, STABLE), (0.8, STABLE), (1.3, ABOVE), (2.0, ABOVE), (8.0, ABOVE)])
@pytest.mark.parametrize("servers", [1, 16])
def test_a_queue_is_told_from_its_ups_and_downs(load: float, verdict: str, servers: int) -> None:
    for seed in range(10):
        assert queue(load * servers, seed=seed, servers=servers)["verdict"] == verdict


@pytest.mark.parametrize("cv", [0.0, 1.0, 2.0])
def test_near_capacity_noise_rarely_trips_it(cv: float) -> None:
    verdicts = [queue(0.95, seed=seed, cv=cv)["verdict"] for seed in range(60)]
    assert verdicts.count(ABOVE) <= 4
    assert [queue(1.15, 4000, seed, cv=cv)["verdict"] for seed in range(20)].count(ABOVE) >= 17


@pytest.mark.parametrize("cv, at_105, at_110", [(0.0, 0.7, 0.9), (0.5, 0.25, 0.6), (1.0, 0.1, 0.3)])
def test_a_known_rate_tells_a_small_excess_in_few_requests(cv: float, at_105: float, at_110: float) -> None:
    """300 requests; the more their work varies, the less can be told of a few per cent. Never at the cost of alarms."""

    def share(load: float, told: bool) -> float:
        verdicts = [queue(load, 300, seed, cv=cv, told=load if told else None)["verdict"] for seed in range(100)]
        return verdicts.count(ABOVE) / len(verdicts)

    assert share(1.05, True) >= at_105 and share(1.1, True) >= at_110
    assert share(1.1, True) > share(1.1, False) + 0.1
    assert share(0.8, True) == 0 and share(0.9, True) <= 0.01 and share(0.95, True) <= 0.03


def test_a_real_run_is_told_the_rate_of_its_scenario() -> None:
    """5 % above capacity, 300 requests: most seeds are told, and the sentence has both rates; 10 % below, none."""
    few = {"num_requests": 300}
    over = [run({"seed": seed}, arrivals={"name": "poisson", "rate_per_s": 2.415}, **few) for seed in range(8)]
    told = [summary for summary in over if summary["verdict"] == ABOVE]
    assert len(told) >= 5
    assert any("requests/s were offered, 2.3 admitted" in summary["verdict_evidence"] for summary in told)
    under = [run({"seed": seed}, arrivals={"name": "poisson", "rate_per_s": 2.07}, **few) for seed in range(8)]
    assert [summary["verdict"] for summary in under] == [STABLE] * 8


def test_requests_that_only_wait_for_the_next_step_are_no_queue() -> None:
    """Fifty arrive during each step of 0.1 s, and all are admitted with the next: half the capacity, fixed lengths."""
    for seed in range(6):
        arrival = np.cumsum(np.random.default_rng(seed).exponential(1 / 500, 5000))
        begin = np.ceil(arrival / 0.1) * 0.1
        found = steady_state(arrival, begin, begin + 1, np.ones(5000), 0.0, np.inf, 500.0)
        assert found["verdict"] == STABLE and "all the time" not in found["verdict_evidence"]


def test_a_rate_that_is_not_that_of_the_arrivals_is_not_believed() -> None:
    assert [queue(0.9, 300, seed, cv=0.0, told=2.0)["verdict"] for seed in range(20)].count(ABOVE) == 0


def test_evidence_has_the_numbers() -> None:
    found = queue(2.0)
    assert found["arrival_rate_per_s"] == pytest.approx(2.0, rel=0.1)
    assert found["finish_rate_per_s"] == pytest.approx(1.0, rel=0.1)
    assert found["waiting_growth_per_s"] == pytest.approx(1.0, rel=0.15)
    assert found["waiting_at_last_arrival"] == pytest.approx(1000, rel=0.15)
    assert f"{found['waiting_at_last_arrival']:,} waited when the last of 2,000 arrived" in found["verdict_evidence"]


def test_who_is_admitted_at_once_can_be_too_much_too() -> None:
    """Nobody waits, but those under way slow each other down and grow in number (processor sharing)."""
    for load, verdict in ((0.6, STABLE), (1.5, ABOVE)):
        rng = np.random.default_rng(1)
        arrival = np.cumsum(rng.exponential(1 / load, 1500))
        left = dict[int, float]()
        finish, now, coming = np.full(1500, np.nan), 0.0, 0
        while coming < 1500 or left:
            until = arrival[coming] if coming < 1500 else np.inf
            if left:
                first = min(left, key=lambda i: left[i])
                need = left[first] * len(left)
                step = min(need, until - now)
                for i in left:
                    left[i] -= step / len(left)
                now += step
                if step == need:
                    finish[first] = now
                    del left[first]
                    continue
            now = until
            left[coming] = rng.exponential()
            coming += 1
        assert steady_state(arrival, arrival, finish, np.ones(1500), 0.0, np.inf)["verdict"] == verdict


def test_without_a_steady_state_there_is_none() -> None:
    ends = np.arange(1.0, 101.0)
    once = steady_state(np.zeros(100), ends - 1, ends, np.ones(100), 0.0, 100.0)
    assert (once["verdict"], once["verdict_evidence"][:25]) == (DRAINED, "all 100 requests came at ")
    refused = steady_state(np.zeros(79), ends[:79] - 1, ends[:79], np.ones(79), 0.0, 100.0, refused_s=np.zeros(21))
    assert refused["verdict_evidence"].startswith("all 100 requests came at once, 21 of them refused, so")
    later = steady_state(np.zeros(4), ends[:4] - 1, ends[:4], np.ones(4), 0.0, 9.0, refused_s=np.linspace(0, 1, 56))
    assert later["verdict_evidence"].startswith("the only 4 of 60 requests that were accepted came at once, so")
    alone = steady_state(np.zeros(1), np.zeros(1), np.ones(1), np.ones(1), 0.0, 9.0, refused_s=np.array([0.5, 99.0]))
    assert alone["verdict_evidence"].startswith("only one of 2 requests was accepted, so")
    short = steady_state(np.linspace(0, 1, 100), np.linspace(0, 1, 100), np.full(100, 9.0), np.ones(100), 0.0, 100.0)
    assert short["verdict"] == DRAINED and "0 of 100 requests had ended" in short["verdict_evidence"]
    nothing = np.full(5, np.nan)
    assert steady_state(np.arange(5.0), nothing, nothing, np.ones(0), 0.0, 9.0)["verdict"] == NOTHING
    assert steady_state(*[np.empty(0)] * 4, 0.0, 0.0)["verdict"] == NOTHING
    one = steady_state(np.ones(1), np.ones(1), np.ones(1) + 1, np.ones(1), 0.0, 9.0)
    assert one["verdict_evidence"] == "one request came, so there is no steady state"


def test_mser5_finds_where_a_transient_ends() -> None:
    rng = np.random.default_rng(2)
    times = np.arange(2000.0)
    settled = rng.normal(10, 1, 2000)
    assert warmup_by_mser5(times, settled + 40 * np.exp(-times / 60)) == pytest.approx(300, abs=120)
    assert warmup_by_mser5(times, settled) is not None and warmup_by_mser5(times, settled) < 300  # type: ignore[operator]
    assert warmup_by_mser5(times[:49], settled[:49]) is None
    assert warmup_by_mser5(times, np.full(2000, 3.0)) == 0.0
    shuffled = rng.permutation(2000)  # the order of the rows does not matter
    values = settled + 40 * np.exp(-times / 60)
    assert warmup_by_mser5(times[shuffled], values[shuffled]) == warmup_by_mser5(times, values)


SCENARIO: dict[str, Any] = {
    "model": "llama-3.1-8b",
    "gpu": "h100_sxm",
    "policy": {"name": "vllm", "max_num_seqs": 1, "async_scheduling": False},
    "engine": {"max_model_len": 4096},
    "workload": {
        "num_requests": 1000,
        "arrivals": {"name": "poisson", "rate_per_s": 3},
        "prompt_tokens": 100,
        "output_tokens": 10,
        "ignore_eos": True,
    },
    "cost": {"name": "linear", "base_s": 0.0434783, "per_token_s": 0.0, "per_context_token_s": 0.0},
    "seed": 1,
}


def run(changes: dict[str, Any] | None = None, **workload: Any) -> dict[str, Any]:
    scenario = SCENARIO | (changes or {})
    return simulate(from_mapping(scenario | {"workload": scenario["workload"] | workload})).summary


def test_overload_is_said_of_a_real_run_and_the_last_waits_as_it_must() -> None:
    """Capacity 2.3 requests/s, 3 a second arrive: the last of 1,000 waits 1000 (1/2.3 - 1/3) = 101.4 s."""
    summary = run(arrivals={"name": "constant", "rate_per_s": 3})
    assert summary["verdict"] == ABOVE
    assert summary["request_throughput"] == pytest.approx(2.3, rel=0.01)
    at_once = run(arrivals="batch")
    assert at_once["verdict"] == DRAINED and at_once["request_throughput"] == pytest.approx(2.3, rel=0.01)
    assert at_once["mean_ttft_ms"] / 1000 == pytest.approx(217, rel=0.01)


@pytest.mark.parametrize("rate, verdict", [(1.15, STABLE), (2.0, STABLE), (3.0, ABOVE)])
def test_half_load_is_stable_and_130_percent_is_not(rate: float, verdict: str) -> None:
    assert run(arrivals={"name": "poisson", "rate_per_s": rate})["verdict"] == verdict


def test_a_closed_loop_and_a_stopped_clock() -> None:
    assert run(arrivals={"name": "closed_loop", "concurrency": 8})["verdict"] == STABLE
    stopped = run(duration_s=200)
    assert stopped["verdict"] == ABOVE and stopped["unfinished"] > 100


def test_all_tokens_and_completed_ones_are_two_numbers() -> None:
    """One slot, 5 s a request, 100 tokens evenly, the clock stops at 12 s."""
    summary = run(
        {"cost": {"name": "linear", "base_s": 0.05, "per_token_s": 0.0, "per_context_token_s": 0.0}},
        arrivals={"name": "closed_loop", "concurrency": 1}, output_tokens=100, duration_s=12.01, num_requests=9,
    )  # fmt: skip
    assert (summary["completed"], summary["unfinished"]) == (2, 1)
    assert summary["output_throughput"] == pytest.approx(200 / 12.01)
    assert summary["generated_throughput"] == pytest.approx(240 / 12.01)


def test_refused_requests_are_told_in_a_real_run() -> None:
    """A closed loop whose clients are refused until none is left: all 50 came in an instant, and 5 were accepted."""
    loop = {"name": "closed_loop", "concurrency": 10}
    few = {"policy": {"name": "tgi", "max_concurrent_requests": 5}}
    found = run(few, arrivals=loop, num_requests=50)
    assert found["rejected"] == 45
    assert found["verdict_evidence"].startswith("all 50 requests came at once, 45 of them refused, so")
    found = run(few, arrivals={"name": "constant", "rate_per_s": 20.0}, num_requests=50)
    accepted = 50 - found["rejected"]
    assert accepted < 50 and re.search(rf"of {accepted} accepted (requests|ones) ", found["verdict_evidence"])
