"""What the comments of shipped scenarios lead one to expect is what comes out."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sim

SCENARIOS = Path(__file__).parent.parent / "scenarios"


@cache
def result(name: str, policy: str | None = None, *overrides: str) -> sim.Result:
    return sim.simulate(sim.load(SCENARIOS / f"{name}.yaml", overrides, policy))


def summary(name: str, policy: str | None = None, *overrides: str) -> dict[str, Any]:
    return result(name, policy, *overrides).summary


def test_chatbot() -> None:
    static, vllm, small = (summary("chatbot", policy) for policy in ("static", "vllm", "vllm-2k"))
    assert vllm["slo_attainment"] > 0.99 and vllm["classes"]["chat"]["p99_ttft_ms"] < 260
    assert all(found["slo_attainment"] > 0.99 for found in vllm["classes"].values())
    assert static["request_throughput"] < 3 and static["slo_attainment"] < 0.01
    assert small["p99_itl_ms"] < 0.7 * vllm["p99_itl_ms"]
    assert small["p99_ttft_ms"] == pytest.approx(vllm["p99_ttft_ms"], rel=0.05)


def test_batching_policies() -> None:
    every = ("vllm", "sarathi", "orca", "vllm-v0")
    found = {policy: summary("batching_policies", policy) for policy in (*every, "triton", "naive")}
    assert found["naive"]["request_throughput"] == pytest.approx(0.75, abs=0.05)
    assert found["triton"]["median_ttft_ms"] > 3000 and found["triton"]["mean_tpot_ms"] is None
    assert all(found[policy]["median_ttft_ms"] < 20 for policy in every)
    assert [found[policy]["median_tpot_ms"] for policy in every] == pytest.approx([4.9] * 4, rel=0.05)
    assert found["vllm-v0"]["p99_itl_ms"] == pytest.approx(15, abs=1)
    assert all(8 < found[policy]["p99_itl_ms"] < 10 for policy in ("vllm", "sarathi", "orca"))


def test_code_completion() -> None:
    attained = [summary("code_completion", "vllm", f"replicas={n}")["slo_attainment"] for n in (1, 2, 4)]
    assert attained == pytest.approx([0.4, 0.75, 0.95], abs=0.03)
    vllm, small, static = (summary("code_completion", policy) for policy in ("vllm", "vllm-2k", "static"))
    assert vllm["busy_fraction"] == pytest.approx(1 / 7, abs=0.02)
    assert [vllm["p99_itl_ms"], small["p99_itl_ms"]] == pytest.approx([100, 65], rel=0.05)
    assert 1 - static["slo_attainment"] == pytest.approx(0.4, abs=0.03)


def test_offline_batch() -> None:
    vllm, few, static = (summary("offline_batch", policy) for policy in ("vllm", "vllm-64", "static"))
    assert vllm["duration"] == pytest.approx(150, rel=0.05) and vllm["max_kv_usage"] > 0.99
    assert vllm["mean_batch_size"] == pytest.approx(360, rel=0.05) and 0 < vllm["preemptions"] < 500
    assert few["duration"] / vllm["duration"] == pytest.approx(1.25, abs=0.05)
    assert vllm["mean_tpot_ms"] / few["mean_tpot_ms"] > 4
    assert static["duration"] / vllm["duration"] == pytest.approx(5, abs=0.5)


def test_evaluation() -> None:
    vllm, static = summary("evaluation", "vllm"), summary("evaluation", "static")
    without = summary("evaluation", "vllm", "engine.enable_prefix_caching=false")
    assert vllm["duration"] == pytest.approx(40, rel=0.05)
    assert without["duration"] / vllm["duration"] == pytest.approx(5, abs=0.3)
    assert static["duration"] / vllm["duration"] == pytest.approx(6, abs=0.3)
    assert vllm["prefix_cache_hit_rate"] == pytest.approx(736 / 900, abs=0.01)


def test_long_reasoning() -> None:
    vllm, cap = summary("long_reasoning", "vllm"), summary("long_reasoning", "cap-48")
    fp8 = summary("long_reasoning", "vllm", "engine.kv_cache_dtype=fp8")
    assert vllm["preemptions"] / vllm["requests"] == pytest.approx(1.5, abs=0.3) and cap["preemptions"] == 0
    assert [vllm["mean_ttft_ms"], cap["mean_ttft_ms"]] == pytest.approx([8_000, 46_000], rel=0.05)
    assert fp8["preemptions"] == fp8["max_waiting"] == 0
    assert [vllm["mean_e2el_ms"], fp8["mean_e2el_ms"]] == pytest.approx([162_000, 67_000], rel=0.05)


def test_rl_rollouts() -> None:
    vllm, cap = summary("rl_rollouts", "vllm"), summary("rl_rollouts", "vllm-128")
    without = summary("rl_rollouts", "vllm", "engine.enable_prefix_caching=false")
    assert vllm["duration"] == pytest.approx(130, rel=0.03)
    finish_s = np.sort(result("rl_rollouts", "vllm").requests["finish_s"].to_numpy())
    assert finish_s[-1] - finish_s[int(0.9 * len(finish_s))] == pytest.approx(54, abs=2)
    assert cap["duration"] / vllm["duration"] == pytest.approx(1.23, abs=0.03)
    assert vllm["prefix_cache_hit_rate"] == pytest.approx(0.75, abs=0.02)
    assert [without["mean_ttft_ms"], vllm["mean_ttft_ms"]] == pytest.approx([3_100, 900], rel=0.1)
    assert without["duration"] - vllm["duration"] == pytest.approx(4, abs=1)


def test_chat_azure_2023() -> None:
    static, vllm = summary("chat_azure_2023", "static"), summary("chat_azure_2023", "vllm")
    assert static["median_ttft_ms"] > 1000 and vllm["p99_ttft_ms"] < 100
    assert static["median_tpot_ms"] == pytest.approx(vllm["median_tpot_ms"], rel=0.05)


def test_tight_kv() -> None:
    defaults, cap, watermark = (summary("tight_kv", policy) for policy in ("defaults", "cap-96", "watermark"))
    assert defaults["preemptions"] / defaults["requests"] == pytest.approx(1, abs=0.1)
    assert cap["preemptions"] == watermark["preemptions"] == 0
    assert cap["mean_queue_ms"] > 2 * max(defaults["mean_queue_ms"], watermark["mean_queue_ms"])
    assert watermark["output_throughput"] > 1.01 * defaults["output_throughput"]
    assert defaults["verdict"] == "above capacity" and defaults["max_batch_size"] == pytest.approx(150, abs=20)


def test_closed_loop() -> None:
    vllm, static = summary("closed_loop", "vllm"), summary("closed_loop", "static")
    assert vllm["request_throughput"] == pytest.approx(22, abs=0.5) and vllm["mean_queue_ms"] < 50
    assert vllm["mean_e2el_ms"] == pytest.approx(2_900, rel=0.05)
    assert static["request_throughput"] == pytest.approx(14, abs=0.5)


def test_replicas() -> None:
    half = "workload.num_requests=10000"
    least, turns = summary("replicas", None, half), summary("replicas", None, half, "router=round_robin")
    assert least["slo_attainment"] > 0.999 and least["p99_ttft_ms"] < 200
    assert turns["slo_attainment"] == pytest.approx(0.9, abs=0.03) and turns["p99_ttft_ms"] > 2000


def test_standard_work() -> None:
    found = summary("standard_work")
    assert found["mean_ttft_ms"] == pytest.approx(17, abs=1) and found["mean_tpot_ms"] == pytest.approx(5, abs=0.3)
    assert found["max_waiting"] <= 1


def test_queue_orders() -> None:
    labels = ("fcfs", "priority", "sjf", "sjf-oracle", "edf", "fair", "mlfq")
    of = {label: summary("queue_orders", label) for label in labels}
    kept = {
        label: [found["classes"][kind]["slo_attainment"] for kind in ("assistant", "chat", "batch")]
        for label, found in of.items()
    }
    assert kept["fcfs"] == pytest.approx([0.43, 0.58, 1.0], abs=0.02)
    assert kept["priority"] == pytest.approx([1.0, 1.0, 0.8], abs=0.02)
    assert kept["fair"] == pytest.approx([1.0, 0.59, 0.86], abs=0.02)
    assert of["fcfs"]["slo_attainment"] < of["edf"]["slo_attainment"] < of["priority"]["slo_attainment"] - 0.03
    ttft = {label: found["mean_ttft_ms"] for label, found in of.items()}
    assert ttft["sjf"] / ttft["fcfs"] == pytest.approx(0.38, abs=0.03) and ttft["sjf"] / ttft["sjf-oracle"] < 1.2
    assert of["sjf"]["p99_ttft_ms"] > 40_000 > 2 * of["fcfs"]["p99_ttft_ms"]
    assert of["fair"]["classes"]["chat"]["mean_ttft_ms"] < 0.6 * of["fcfs"]["classes"]["chat"]["mean_ttft_ms"]
    assert ttft["mlfq"] < 0.2 * min(time for label, time in ttft.items() if label != "mlfq")
    assert of["mlfq"]["preemptions"] == pytest.approx(1500, rel=0.05)
    assert of["mlfq"]["mean_e2el_ms"] > of["fcfs"]["mean_e2el_ms"]
