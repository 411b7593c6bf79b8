"""Small cases in which users of other tools were surprised, with the right value: those about whole runs.

The names are those of the collection that the values come from; figures beside the reported ones are of the same kind.
Others stand beside the modules that they are about.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import sim
from sim.cli import main
from sim.request import Request
from sim.workload.source import Fixed
from tests.random_cases import OWN

Asked = list[tuple[float, int, int]]  # arrival, prompt, output
MODES = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


def scenario(policy: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """One replica under the linear cost, without prefix cache."""
    data = {
        "model": "llama-3.1-8b",
        "gpu": "h100_sxm",
        "policy": {"name": "vllm", **policy},
        "workload": dict(OWN),
        "cost": {"name": "linear", "base_s": 0.01},
        **changes,
    }
    data["engine"] = {"enable_prefix_caching": False, **data.get("engine", {})}
    return data


def run(data: dict[str, Any], asked: Asked) -> sim.Result:
    requests = [Request(i, f"r{i}", at, prompt, output, output) for i, (at, prompt, output) in enumerate(asked)]
    return sim.simulate(sim.from_mapping(data), source=Fixed(iter(requests), len(requests)))


def column(result: sim.Result, name: str) -> Any:
    return result.requests[name].to_numpy()


# -- metrics of whole runs


@MODES
@pytest.mark.parametrize("service_ms", [500, 507, 350, 90])
def test_b27_the_queue_in_front_of_a_cap_is_part_of_the_latency(service_ms: int, asynchronous: bool) -> None:
    """Eight requests, one every 0.1 s, one at a time: the k-th waits k (service - 0.1), or not at all."""
    data = scenario(
        {"max_num_seqs": 1, "async_scheduling": asynchronous},
        workload={
            "num_requests": 8,
            "arrivals": {"name": "constant", "rate_per_s": 10},
            "prompt_tokens": service_ms,
            "output_tokens": 1,
            "ignore_eos": True,
        },
        cost={"name": "linear", "base_s": 0.0, "per_token_s": 0.001},
    )
    result = sim.simulate(sim.from_mapping(data))
    service = service_ms / 1000
    waits = np.maximum(np.arange(8) * (service - 0.1), 0.0)
    assert column(result, "queue_s") == pytest.approx(waits, abs=1e-9)
    summary = result.summary
    assert summary["mean_queue_ms"] == pytest.approx(waits.mean() * 1e3, abs=1e-6)
    assert summary["median_queue_ms"] == pytest.approx(np.median(waits) * 1e3, abs=1e-6)
    assert summary["p99_queue_ms"] == pytest.approx(np.percentile(waits, 99) * 1e3, abs=1e-6)
    assert summary["mean_e2el_ms"] == pytest.approx((waits.mean() + service) * 1e3, abs=1e-6)
    if service_ms == 500:
        assert [summary[f"{which}_queue_ms"] for which in ("mean", "median", "p99")] == pytest.approx(
            [1400, 1400, 2772]
        )
        assert summary["mean_e2el_ms"] == pytest.approx(1900)
    if service_ms == 507:
        assert [summary["mean_queue_ms"], summary["p99_queue_ms"]] == pytest.approx([1424.5, 2820.51])


@MODES
@pytest.mark.parametrize(("step_s", "tokens", "stop_s"), [(0.05, 100, 12.0), (0.0625, 80, 12.0), (0.02, 50, 3.7)])
def test_b33_the_window_of_the_throughput(step_s: float, tokens: int, stop_s: float, asynchronous: bool) -> None:
    """One client, even tokens, a stop in the middle of a request: what is unfinished is counted and told apart."""
    data = scenario(
        {"max_num_seqs": 1, "async_scheduling": asynchronous},
        workload={
            "duration_s": stop_s,  # the token at the stop itself belongs to it
            "arrivals": {"name": "closed_loop", "concurrency": 1},
            "prompt_tokens": 1,
            "output_tokens": tokens,
            "ignore_eos": True,
        },
        cost={"name": "linear", "base_s": step_s},
    )
    result = sim.simulate(sim.from_mapping(data))
    summary, whole = result.summary, int(stop_s / (step_s * tokens) + 1e-9)
    assert (summary["finished"], summary["unfinished"], summary["completed"]) == (whole, 1, whole)
    assert summary["total_output_tokens"] == whole * tokens
    assert summary["output_throughput"] == pytest.approx(whole * tokens / stop_s)
    assert summary["generated_throughput"] == pytest.approx(1 / step_s, rel=1e-6)  # the steady rate
    assert summary["request_throughput"] == pytest.approx(whole / stop_s)
    assert column(result, "output_tokens").tolist() == [tokens] * whole + [round(stop_s / step_s) - whole * tokens]


@MODES
@pytest.mark.parametrize(("capacity", "rate"), [(2.3, None), (2.3, 3.0), (5.0, 6.5)])
def test_b45_overload_shows_in_the_last_first_token(capacity: float, rate: float | None, asynchronous: bool) -> None:
    """1,000 requests. At once: the k-th starts after k - 1 services; above capacity: after k (1/capacity - 1/rate)."""
    arrivals = "batch" if rate is None else {"name": "constant", "rate_per_s": rate}
    tokens = 10
    data = scenario(
        {"max_num_seqs": 1, "async_scheduling": asynchronous},
        workload={
            "num_requests": 1000,
            "arrivals": arrivals,
            "prompt_tokens": 1,
            "output_tokens": tokens,
            "ignore_eos": True,
        },
        cost={"name": "linear", "base_s": 1 / capacity / tokens},
    )
    result = sim.simulate(sim.from_mapping(data))
    ttft = column(result, "first_token_s") - column(result, "arrival_s")
    lag = 1 / capacity - (0.0 if rate is None else 1 / rate)
    assert ttft == pytest.approx(np.arange(1000) * lag + 1 / capacity / tokens, abs=1e-6)
    assert ttft[-1] == pytest.approx(1000 * lag, rel=0.01) and ttft.mean() == pytest.approx(500 * lag, rel=0.01)
    assert result.summary["request_throughput"] == pytest.approx(capacity, rel=0.01)


# -- admission


@MODES
@pytest.mark.parametrize(("blocks", "never", "fits"), [(2337, 40_000, 100), (2337, 37_377, 37_376), (40, 625, 623)])
def test_b48_what_can_never_fit_is_refused_and_the_queue_goes_on(
    blocks: int, never: int, fits: int, asynchronous: bool
) -> None:
    """At once, with both figures; the next is served, and the run ends. (One of the blocks is the null block.)"""
    engine = {"num_gpu_blocks_override": blocks, "max_model_len": 262_144, "block_size": 16}
    data = scenario({"async_scheduling": asynchronous}, engine=engine)
    data["model"] = {"name": "llama-3.1-8b", "max_position_embeddings": 262_144}
    result = run(data, [(0.0, never, 5), (0.0, fits, 1)])
    refused, served = result.requests.to_pylist()
    assert refused["status"] == "rejected" and refused["replica"] is None and refused["output_tokens"] == 0
    assert str(never) in refused["reason"] and str((blocks - 1) * 16) in refused["reason"]
    assert served["status"] == "finished" and served["output_tokens"] == 1
    assert result.summary["rejected"] == 1 and result.summary["finished"] == 1


@MODES
@pytest.mark.parametrize("extra", [0, 1, 500])
def test_b48_a_prompt_that_leaves_no_room_for_output_is_refused(extra: int, asynchronous: bool) -> None:
    data = scenario({"async_scheduling": asynchronous}, engine={"max_model_len": 2000})
    result = run(data, [(0.0, 2000 + extra, 5), (0.0, 0, 5), (0.0, 1999, 5), (0.0, 100, 5)])
    assert column(result, "status").tolist() == ["rejected", "rejected", "finished", "finished"]
    assert column(result, "output_tokens").tolist() == [0, 0, 1, 5]
    assert str(2000 + extra) in result.requests["reason"][0].as_py()


@MODES
@pytest.mark.parametrize("gate", [True, False])
def test_b48_an_output_that_outgrows_the_cache_ends_by_length(gate: bool, asynchronous: bool) -> None:
    """99 blocks of 16: 1,584 tokens, and the last token is never computed."""
    engine = {"num_gpu_blocks_override": 100, "max_model_len": 4000}
    data = scenario({"async_scheduling": asynchronous, "scheduler_reserve_full_isl": gate}, engine=engine)
    result = run(data, [(0.0, 1000, 3000), (0.0, 20, 5), (0.0, 1584, 9)])
    assert column(result, "status").tolist() == ["finished"] * 3
    assert column(result, "output_tokens").tolist() == [585, 5, 1]


@MODES
@pytest.mark.parametrize(
    ("blocks", "prompt", "output", "budget"), [(13_000, 120_000, 1_000, 8_192), (500, 4_500, 200, 512)]
)
def test_b49_with_the_gate_the_second_waits_for_the_first(
    blocks: int, prompt: int, output: int, budget: int, asynchronous: bool
) -> None:
    """Admission by the whole prompt: each prompt is computed once, in as many steps as the budget says."""
    engine = {"num_gpu_blocks_override": blocks, "max_model_len": prompt + output}
    data = scenario(
        {"async_scheduling": asynchronous, "max_num_batched_tokens": budget, "max_num_seqs": 8}, engine=engine
    )
    result = run(data, [(0.0, prompt, output), (0.0, prompt, output)])
    assert column(result, "status").tolist() == ["finished"] * 2 and result.summary["preemptions"] == 0
    assert column(result, "first_scheduled_s")[1] >= column(result, "finish_s")[0]
    computed = result.steps["prefill_tokens"].to_numpy()
    assert computed.sum() == 2 * prompt
    assert np.count_nonzero(computed) == 2 * -(-prompt // budget)


@MODES
def test_b49_without_the_gate_both_prompts_get_in_each_others_way(asynchronous: bool) -> None:
    """More tokens are computed than there are, sequences are preempted, and the run ends all the same."""
    data = scenario(
        {
            "async_scheduling": asynchronous,
            "max_num_batched_tokens": 8_192,
            "max_num_seqs": 8,
            "scheduler_reserve_full_isl": False,
            "long_prefill_token_threshold": 4_096,
        },
        engine={"num_gpu_blocks_override": 13_000, "max_model_len": 121_000},
    )
    result = run(data, [(0.0, 120_000, 1_000), (0.0, 120_000, 1_000)])
    assert column(result, "status").tolist() == ["finished"] * 2
    assert result.summary["preemptions"] > 0
    assert result.steps["prefill_tokens"].to_numpy().sum() > 240_000


@MODES
@pytest.mark.parametrize(("first", "head", "behind"), [(60, 50, 10), (70, 31, 1), (30, 71, 2)])
def test_b50_nobody_passes_a_head_of_the_queue_that_does_not_fit(
    first: int, head: int, behind: int, asynchronous: bool
) -> None:
    """100 blocks, `first` of them used; of two that wait the second would fit. vLLM's rule: it waits too."""
    engine = {"num_gpu_blocks_override": 101, "max_model_len": 1600}
    data = scenario({"async_scheduling": asynchronous}, engine=engine)
    asked: Asked = [(0.0, first * 16 - 8, 8), (0.005, head * 16 - 8, 2), (0.005, behind * 16 - 8, 2)]
    result = run(data, asked)
    start, finish = column(result, "first_scheduled_s"), column(result, "finish_s")
    assert start[1] == start[2] >= finish[0]
    alone = run(data, [asked[0], asked[2]])
    assert column(alone, "first_scheduled_s")[1] < column(alone, "finish_s")[0]


@MODES
@pytest.mark.parametrize(("blocks", "tokens"), [(2360, 800), (2400, 800), (301, 47), (1000, 18), (1000, 2)])
def test_b53_as_many_run_as_their_tokens_fit(blocks: int, tokens: int, asynchronous: bool) -> None:
    """2,359 usable blocks, 50 for each of 800 tokens: 47 at once, though the cache is 4.6 times max_model_len."""
    engine = {"num_gpu_blocks_override": blocks, "max_model_len": 8192}
    policy = {"async_scheduling": asynchronous, "max_num_batched_tokens": 100_000, "max_num_seqs": 2000}
    each = -(-tokens // 16)
    most = (blocks - 1) // each
    result = run(scenario(policy, engine=engine), [(0.0, tokens - 1, 2)] * (most + 20))
    assert result.steps["seqs"].to_numpy()[:2].tolist() == [most, most]
    assert result.steps["kv_blocks_used"].to_numpy().max() == most * each
    assert result.summary["preemptions"] == 0 and result.summary["finished"] == most + 20
    if blocks == 2360:
        assert most == 47


@MODES
@pytest.mark.parametrize(
    ("budget", "worst_ms", "steps", "prefill_s"),
    [(512, 32.4, 36, 1.16), (2048, 109.2, 9, 0.89), (8192, 416.4, 2, 0.82)],
)
def test_b54_the_budget_bounds_the_gap_between_tokens(
    budget: int, worst_ms: float, steps: int, prefill_s: float, asynchronous: bool
) -> None:
    """64 sequences decode at 10 ms a step when a prompt of 16,000 tokens comes, at 0.05 ms a token."""
    data = scenario(
        {"async_scheduling": asynchronous, "max_num_batched_tokens": budget, "max_num_seqs": 100},
        cost={"name": "linear", "base_s": 0.01 - 64 * 5e-5, "per_token_s": 5e-5},
    )
    result = run(data, [*[(0.0, 1, 400)] * 64, (0.505, 16_000, 1)])
    table = result.steps.to_pylist()
    chunks = [row for row in table if row["prefill_tokens"] and row["step"] > 0]
    gaps = [1e3 * (row["end_s"] - row["start_s"]) for row in table if row["decode_tokens"] == 64]
    assert max(gaps) == pytest.approx(worst_ms, abs=1e-6)
    assert max(gaps) == pytest.approx(10 + 0.05 * (budget - 64), abs=1e-6)
    assert len(chunks) == steps == -(-16_000 // (budget - 64))
    assert chunks[-1]["end_s"] - chunks[0]["start_s"] == pytest.approx(prefill_s, abs=1e-9)
    gap = result.summary["p99_itl_ms"]
    assert min(gaps) - 1e-6 <= gap <= worst_ms + 1e-6


def test_b54_a_larger_budget_trades_gaps_for_the_first_token() -> None:
    ttft, gaps = [], []
    for budget in (512, 2048, 8192):
        data = scenario(
            {"max_num_batched_tokens": budget, "max_num_seqs": 100},
            cost={"name": "linear", "base_s": 0.01 - 64 * 5e-5, "per_token_s": 5e-5},
        )
        result = run(data, [*[(0.0, 1, 400)] * 64, (0.505, 16_000, 1)])
        last = result.requests.to_pylist()[-1]
        ttft.append(last["first_token_s"] - last["arrival_s"])
        ends = result.steps["end_s"].to_numpy()
        gaps.append(np.diff(ends[:300]).max())
    assert ttft == sorted(ttft, reverse=True) and gaps == sorted(gaps)


# -- what never ends


@pytest.mark.parametrize("fast_forward", [True, False])
def test_b67_two_that_evict_each_other_for_ever(fast_forward: bool) -> None:
    data = scenario(
        {
            "max_num_seqs": 8,
            "max_num_batched_tokens": 64,
            "scheduling_policy": "priority",
            "long_prefill_token_threshold": 7,
            "scheduler_reserve_full_isl": False,
            "watermark": 0.2,
        },
        engine={"num_gpu_blocks_override": 14, "max_model_len": 200},
        fast_forward=fast_forward,
    )
    result = run(data, [(0.0, 104, 78), (0.001, 59, 120), (0.001, 31, 47), (0.001, 139, 56)])
    assert column(result, "status").tolist() == ["finished", "failed", "finished", "failed"]
    assert (result.summary["finished"], result.summary["failed"]) == (2, 2)
    for reason, name in zip(column(result, "reason"), ("r0", "r1", "r2", "r3"), strict=True):
        assert (reason is None) == (name in ("r0", "r2"))
        assert reason is None or ("preempt" in reason and "KV" in reason)
    emitted = np.flatnonzero(result.steps["emitted"].to_numpy())
    assert emitted[-1] == 514 and result.summary["steps"] < 5_000
    assert column(result, "output_tokens").tolist()[::2] == [78, 47]
    assert all("standstill" in warning for warning in result.warnings) and len(result.warnings) == 1


# -- nothing, and one, through the command line


def command(folder: Path, text: str) -> dict[str, Any]:
    """summary.json of a run of `sim run`."""
    (folder / "case.yaml").write_text(text)
    assert main(["run", str(folder / "case.yaml"), "--out", str(folder / "out")]) == 0
    summary: dict[str, Any] = json.loads((folder / "out" / "summary.json").read_text())
    return summary


SHORT = """
model: llama-3.1-8b
gpu: h100_sxm
engine: {{max_model_len: 2048}}
workload: {{{workload}, prompt_tokens: {prompt}, output_tokens: {output}}}
slo: {{ttft_ms: 100, tpot_ms: 50}}
"""
NOTHING = {
    "all refused": ("num_requests: 7, arrivals: {name: poisson, rate_per_s: 3}", 5000, 7),
    "none came": ("duration_s: 0.001, arrivals: {name: constant, rate_per_s: 1}", 100, 0),
    "none ended": ("duration_s: 0.011, arrivals: batch, num_requests: 3", 100, 3),
}


@pytest.mark.parametrize("what", NOTHING)
@pytest.mark.parametrize("policy", ["vllm", "static"])
def test_b64_nothing_succeeded(what: str, policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counts of 0, no latencies (neither 0 nor NaN), a whole results folder, exit code 0."""
    workload, prompt, count = NOTHING[what]
    summary = command(tmp_path, SHORT.format(workload=workload, prompt=prompt, output=900) + f"policy: {policy}\n")
    assert summary["requests"] == count and summary["finished"] == summary["completed"] == 0
    assert summary["rejected"] == (7 if what == "all refused" else 0)
    for name, value in summary.items():
        if name.endswith(("ttft_ms", "tpot_ms", "itl_ms", "e2el_ms")):
            assert value is None, name
    assert summary["request_throughput"] == 0 or summary["duration"] == 0
    assert not summary["request_goodput"] and summary["total_output_tokens"] == 0
    assert pq.read_table(tmp_path / "out" / "requests.parquet").num_rows == count
    printed = capsys.readouterr().out
    assert "nan" not in printed.lower() and ("7 rejected" in printed) == (what == "all refused")


@pytest.mark.parametrize("policy", ["vllm", "static"])
@pytest.mark.parametrize("seed", [1, 2])
def test_b65_one_request_of_one_token(policy: str, seed: int, tmp_path: Path) -> None:
    text = SHORT.format(workload="num_requests: 1, arrivals: batch", prompt=100, output=1)
    summary = command(tmp_path, text + f"policy: {policy}\nseed: {seed}\n")
    latency_s = summary["mean_e2el_ms"] / 1000
    assert summary["finished"] == 1 and latency_s > 0
    assert summary["request_throughput"] == pytest.approx(1 / latency_s)
    for name in ("ttft", "e2el"):
        values = {summary[f"{which}_{name}_ms"] for which in ("mean", "median", "p90", "p95", "p99")}
        assert len(values) == 1 and None not in values
    assert summary["mean_ttft_ms"] == summary["mean_e2el_ms"]
    for name in ("mean_tpot_ms", "p99_tpot_ms", "mean_itl_ms", "p99_itl_ms"):
        assert summary[name] is None
    if policy == "vllm":
        assert summary["request_goodput"] == pytest.approx(1 / latency_s)  # its TPOT counts as 0
