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
    assert all(found["slo_attainment"] > 0.99 for found in (vllm, *vllm["classes"].values()))
    assert 350 < vllm["classes"]["chat"]["p99_ttft_ms"] < 400
    assert 1.8 < static["request_throughput"] < 2 and static["slo_attainment"] < 0.01
    assert static["verdict"] == "above capacity" and vllm["verdict"] == "stable"
    assert [vllm["p99_itl_ms"], small["p99_itl_ms"]] == pytest.approx([117, 53], rel=0.03)
    assert [vllm["p99_ttft_ms"], small["p99_ttft_ms"]] == pytest.approx([425, 462], rel=0.02)


def test_code_completion() -> None:
    attained = [summary("code_completion", "vllm", f"replicas={n}")["slo_attainment"] for n in (1, 2, 4, 6)]
    assert attained == pytest.approx([0.234, 0.604, 0.88, 0.96], abs=0.01)
    vllm, small, static = (summary("code_completion", policy) for policy in ("vllm", "vllm-2k", "static"))
    assert vllm["busy_fraction"] == pytest.approx(1 / 5, abs=0.015)
    assert [vllm["p99_itl_ms"], small["p99_itl_ms"]] == pytest.approx([283, 89], rel=0.02)
    assert 1 - static["slo_attainment"] == pytest.approx(0.6, abs=0.02)


def test_offline_batch() -> None:
    vllm, few, static = (summary("offline_batch", policy) for policy in ("vllm", "vllm-64", "static"))
    assert vllm["duration"] == pytest.approx(185, rel=0.03) and vllm["max_kv_usage"] > 0.99
    assert vllm["mean_batch_size"] == pytest.approx(360, rel=0.03) and 0 < vllm["preemptions"] < 300
    assert few["duration"] / vllm["duration"] == pytest.approx(4 / 3, abs=0.04)
    assert vllm["mean_tpot_ms"] / few["mean_tpot_ms"] == pytest.approx(4.3, abs=0.2)
    assert static["duration"] / vllm["duration"] == pytest.approx(6.2, abs=0.25)


def test_evaluation() -> None:
    vllm, static = summary("evaluation", "vllm"), summary("evaluation", "static")
    without = summary("evaluation", "vllm", "engine.enable_prefix_caching=false")
    assert vllm["duration"] == pytest.approx(52, rel=0.03)
    assert without["duration"] / vllm["duration"] == pytest.approx(5, abs=0.15)
    assert static["duration"] / vllm["duration"] == pytest.approx(5.8, abs=0.2)
    assert vllm["prefix_cache_hit_rate"] == pytest.approx(736 / 900, abs=0.01)


def test_long_reasoning() -> None:
    vllm, cap = summary("long_reasoning", "vllm"), summary("long_reasoning", "cap-48")
    fp8 = summary("long_reasoning", "vllm", "engine.kv_cache_dtype=fp8")
    assert vllm["preemptions"] / vllm["requests"] == pytest.approx(1.5, abs=0.15) and cap["preemptions"] == 0
    assert [vllm["mean_ttft_ms"], cap["mean_ttft_ms"]] == pytest.approx([10_000, 55_000], rel=0.05)
    assert fp8["preemptions"] == fp8["max_waiting"] == 0
    assert [vllm["mean_e2el_ms"], fp8["mean_e2el_ms"]] == pytest.approx([195_000, 96_000], rel=0.03)


def test_rl_rollouts() -> None:
    vllm, cap = summary("rl_rollouts", "vllm"), summary("rl_rollouts", "vllm-128")
    without = summary("rl_rollouts", "vllm", "engine.enable_prefix_caching=false")
    assert vllm["duration"] == pytest.approx(163, rel=0.02)
    finish_s = np.sort(result("rl_rollouts", "vllm").requests["finish_s"].to_numpy())
    assert finish_s[-1] - finish_s[int(0.9 * len(finish_s))] == pytest.approx(68, abs=2)
    assert cap["duration"] / vllm["duration"] == pytest.approx(1.25, abs=0.02)
    assert vllm["prefix_cache_hit_rate"] == pytest.approx(0.75, abs=0.02)
    assert [without["mean_ttft_ms"], vllm["mean_ttft_ms"]] == pytest.approx([3_900, 1_100], rel=0.05)
    assert without["duration"] - vllm["duration"] == pytest.approx(5.5, abs=0.7)


def test_chat_azure_2023() -> None:
    static, vllm = summary("chat_azure_2023", "static"), summary("chat_azure_2023", "vllm")
    assert [static["median_ttft_ms"], vllm["p99_ttft_ms"]] == pytest.approx([7_200, 130], rel=0.03)
    assert [static["median_tpot_ms"], vllm["median_tpot_ms"]] == pytest.approx([7.9, 6.8], rel=0.01)


def test_tight_kv() -> None:
    defaults, cap, watermark = (summary("tight_kv", policy) for policy in ("defaults", "cap-96", "watermark"))
    assert defaults["preemptions"] / defaults["requests"] == pytest.approx(1.2, abs=0.1)
    assert cap["preemptions"] == watermark["preemptions"] == 0
    assert cap["mean_queue_ms"] > 2 * max(defaults["mean_queue_ms"], watermark["mean_queue_ms"])
    assert watermark["output_throughput"] / defaults["output_throughput"] == pytest.approx(1.035, abs=0.01)
    assert defaults["verdict"] == "above capacity" and defaults["max_batch_size"] == pytest.approx(170, abs=10)


def test_closed_loop() -> None:
    vllm, static = summary("closed_loop", "vllm"), summary("closed_loop", "static")
    assert vllm["request_throughput"] == pytest.approx(17, abs=0.3) and vllm["mean_queue_ms"] < 60
    assert vllm["mean_e2el_ms"] == pytest.approx(3_700, rel=0.02)
    assert static["request_throughput"] == pytest.approx(9.2, abs=0.2)


def test_replicas() -> None:
    least, turns = summary("replicas"), summary("replicas", None, "router=round_robin")
    assert least["slo_attainment"] > 0.999 and least["p99_ttft_ms"] == pytest.approx(275, rel=0.03)
    assert turns["slo_attainment"] == pytest.approx(6 / 7, abs=0.02)
    assert turns["p99_ttft_ms"] == pytest.approx(2_800, rel=0.05)


def test_standard_work() -> None:
    found = summary("standard_work")
    assert found["mean_ttft_ms"] == pytest.approx(41, abs=0.5) and found["mean_tpot_ms"] == pytest.approx(7.5, abs=0.05)
    assert found["max_waiting"] <= 1


def test_queue_orders() -> None:
    labels = ("fcfs", "priority", "sjf", "sjf-oracle", "edf", "fair", "mlfq")
    of = {label: summary("queue_orders", label) for label in labels}
    kept = {
        label: [found["classes"][kind]["slo_attainment"] for kind in ("assistant", "chat", "batch")]
        for label, found in of.items()
    }
    assert kept["fcfs"] == pytest.approx([0.50, 0.59, 1.0], abs=0.02)
    assert kept["priority"] == pytest.approx([1.0, 1.0, 0.71], abs=0.02)
    assert kept["fair"] == pytest.approx([1.0, 0.69, 0.81], abs=0.02)
    assert of["fcfs"]["slo_attainment"] < of["edf"]["slo_attainment"] < of["priority"]["slo_attainment"] - 0.03
    ttft = {label: found["mean_ttft_ms"] for label, found in of.items()}
    assert ttft["sjf"] / ttft["fcfs"] == pytest.approx(0.38, abs=0.03) and ttft["sjf"] / ttft["sjf-oracle"] < 1.2
    assert of["sjf"]["p99_ttft_ms"] > 40_000 > 2 * of["fcfs"]["p99_ttft_ms"]
    assert of["fair"]["classes"]["chat"]["mean_ttft_ms"] < 0.6 * of["fcfs"]["classes"]["chat"]["mean_ttft_ms"]
    assert ttft["mlfq"] < 0.3 * min(time for label, time in ttft.items() if label != "mlfq")
    assert of["mlfq"]["preemptions"] == pytest.approx(1563, rel=0.05)
    assert of["mlfq"]["mean_e2el_ms"] > of["fcfs"]["mean_e2el_ms"]


def test_policies() -> None:
    alive = ("vllm", "sglang", "trtllm", "tgi", "sarathi", "vllm-v0", "orca")
    of = {label: summary("policies", label) for label in (*alive, "static", "triton", "naive")}
    assert set(of) == set(sim.load(SCENARIOS / "policies.yaml").policies)
    served = {label: found["request_throughput"] for label, found in of.items()}
    assert served["vllm"] == pytest.approx(20, abs=0.5) and max(served.values()) == served["vllm"]
    assert all(served[label] > 0.95 * served["vllm"] for label in alive)
    assert served["static"] == served["triton"] == pytest.approx(4.6, abs=0.3)
    assert served["naive"] == pytest.approx(0.3, abs=0.02)
    assert all(40_000 < of[label]["mean_queue_ms"] < 70_000 for label in ("static", "triton"))
    ttft = {label: found["median_ttft_ms"] for label, found in of.items()}
    assert ttft["vllm-v0"] == min(ttft.values()) == pytest.approx(34, abs=1)
    assert of["vllm-v0"]["slo_attainment"] == pytest.approx(0.5, abs=0.1)
    assert of["sarathi"]["p99_itl_ms"] == pytest.approx(18, abs=1) and of["vllm"]["p99_itl_ms"] > 32
    assert of["sarathi"]["mean_e2el_ms"] / of["vllm"]["mean_e2el_ms"] == pytest.approx(1.22, abs=0.04)
    paces = sorted((found["median_tpot_ms"], label) for label, found in of.items() if found["median_tpot_ms"])
    assert [label for _, label in paces[:2]] == ["static", "vllm"]
    assert of["vllm"]["max_kv_usage"] < 0.11


def test_policies_tight_kv() -> None:
    labels = list(sim.load(SCENARIOS / "policies_tight_kv.yaml").policies)
    of = {label: summary("policies_tight_kv", label) for label in labels}
    assert len(of) == 12 and "naive" not in of
    served = {label: found["request_throughput"] for label, found in of.items()}
    for label in ("vllm", "trtllm-max"):
        assert 19 < served[label] < 20.5 and 20 < of[label]["preemptions"] < 120
        assert of[label]["mean_batch_size"] == pytest.approx(40, abs=3)
    for label in ("trtllm", "tgi", "orca"):
        assert served[label] < 13.5 and 18 < of[label]["mean_batch_size"] < 24
        assert of[label]["median_ttft_ms"] > 5500 and of[label]["preemptions"] == 0
    assert of["tgi"]["rejected"] / of["tgi"]["requests"] == pytest.approx(0.25, abs=0.03)
    assert of["trtllm"]["slo_attainment"] < of["sglang"]["slo_attainment"] < of["vllm"]["slo_attainment"]
    assert of["vllm-watermark"]["preemptions"] == 0 and served["vllm-watermark"] <= 1.001 * served["vllm"]
    assert served["v0-swap"] == pytest.approx(served["vllm-v0"], rel=0.02)
    assert served["static"] == served["triton"] == pytest.approx(2.7, abs=0.1)


def test_policies_shared_prefixes() -> None:
    cached, plain = ("vllm", "sglang", "trtllm", "tgi"), ("sarathi", "vllm-v0", "orca")
    of = {label: summary("policies_shared_prefixes", label) for label in (*cached, *plain)}
    assert all(0.65 < of[label]["prefix_cache_hit_rate"] < 0.725 for label in cached)
    assert all(13.3 < of[label]["request_throughput"] < 14.5 for label in cached)
    assert of["vllm"]["slo_attainment"] > 0.99 and of["trtllm"]["slo_attainment"] > 0.99
    assert 0.4 < of["tgi"]["slo_attainment"] < 0.65
    assert of["tgi"]["prefix_cache_hit_rate"] < of["vllm"]["prefix_cache_hit_rate"] - 0.02
    assert all(of[label]["request_throughput"] == pytest.approx(11, abs=0.7) for label in plain)
    assert all(of[label]["request_goodput"] < 0.21 for label in plain)
    assert all(of[label]["median_ttft_ms"] == pytest.approx(5250, rel=0.1) for label in ("sarathi", "orca"))
    assert of["vllm-v0"]["median_ttft_ms"] < 200 and of["vllm-v0"]["median_tpot_ms"] == pytest.approx(66, abs=3)
