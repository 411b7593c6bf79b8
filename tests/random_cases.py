"""Random small clusters with everything at once: tight KV, prefixes, priorities, stop tokens, noise, overload, closed
loops, open loops with classes, front-end and response times."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sim
from sim import registry
from sim.request import Request
from sim.workload.source import Fixed, Source

OVERHEADS = str(Path(__file__).parent / "data" / "overheads.yaml")
OWN = {"num_requests": 1000, "arrivals": "batch", "prompt_tokens": 1, "output_tokens": 1}
"""Stands where the requests are made by `requests`, not by the scenario's workload."""


def case(rng: random.Random, name: str | None = None) -> tuple[dict[str, Any], list[Request]]:
    """A scenario's mapping and the requests to run on it; of the policy `name`, else of vllm or now and then static."""
    block_size = rng.choice([1, 4, 16, 32])
    longest = rng.choice([200, 600, 2000])
    if name is None:
        name = "static" if rng.random() < 0.15 else "vllm"
    policy = MAKERS[name](rng, longest, block_size) if name in MAKERS else {"name": name}
    caching = rng.random() < 0.6
    rows = policy.get("batch_size", policy["max_batch_size"] if policy["name"] == "triton_dynamic" else 1)
    blocks = -(-longest // block_size) * rows + rng.choice([0, 1, 5, 50, 2000]) + 1
    if policy["name"] in CUT and rng.random() < 0.1:  # too few for the longest: some are refused, some cut
        blocks = max(2, blocks // rng.randint(2, 8))
    data = {
        "model": "llama-3.1-8b",
        "gpu": "h100_sxm",
        "replicas": rng.choice([1, 1, 1, 2, 3]),
        "router": rng.choice(["round_robin", "least_requests", "least_kv", "random", "power_of_two"]),
        "engine": {
            "block_size": block_size,
            "num_gpu_blocks_override": blocks,
            "max_model_len": longest,
            "enable_prefix_caching": caching,
        },
        "policy": policy,
        "workload": dict(OWN),
        "cost": _cost(rng),
        "slo": {"ttft_ms": 300, "tpot_ms": 20},
        "seed": rng.randrange(1000),
    }
    if data["cost"]["name"] == "roofline" and rng.random() < 0.3:  # attention bound by arithmetic now and then
        data["gpu"] = {"name": "h100_sxm", "bf16_tflops": rng.choice([20, 60])}
    shape = rng.random()
    if shape < 0.2:
        data["workload"] = {"arrivals": _closed_loop(rng), **_lengths(rng, longest), **_sharing(rng)}
    elif shape < 0.3:
        data["workload"] = {
            "arrivals": _open_loop(rng),
            "classes": {
                "chat": {**_lengths(rng, longest), **_sharing(rng), "weight": 2.0, "priority": 1},
                "batch": {**_lengths(rng, longest), "max_tokens": rng.choice([2, 40]), "slo": {"e2e_ms": 900}},
            },
        }
    if shape < 0.3:
        data["workload"] |= {"num_requests": rng.randint(5, 60), "ignore_eos": rng.random() < 0.5}
    if rng.random() < 0.3:
        data["workload"]["duration_s"] = rng.choice([0.05, 0.3, 1.0, 3.0])
    if rng.random() < 0.2:
        data["warmup_s"] = rng.choice([0.01, 0.04])
    asked = requests(rng, longest, caching)
    if rng.random() < 0.5 and "order" in registry.model_of(registry.get("policy", policy["name"])).model_fields:
        _ordered(rng, data, asked)
    return data, asked


def _vllm(rng: random.Random, longest: int, block_size: int) -> dict[str, Any]:
    budget = rng.choice([16, 64, 256, 2048])
    most = min(rng.choice([1, 3, 8, 32, 64]), budget)
    chunked = rng.random() < 0.85
    return {
        "name": "vllm",
        "max_num_seqs": most,
        "max_num_batched_tokens": budget if chunked else max(budget, longest),
        "max_num_active_seqs": rng.choice([None, None, None, max(1, most // 2)]),
        "enable_chunked_prefill": chunked,
        "scheduling_policy": rng.choice(["fcfs", "fcfs", "priority"]),
        "long_prefill_token_threshold": rng.choice([0, 0, 7, 50]),
        "long_prefill_token_threshold_adaptive": rng.random() < 0.3,
        "scheduler_reserve_full_isl": rng.random() < 0.7,
        "watermark": rng.choice([0.0, 0.0, 0.05, 0.2]),
        "async_scheduling": rng.random() < 0.6,
    }


def _tgi(rng: random.Random, longest: int, block_size: int) -> dict[str, Any]:
    total = rng.choice([longest, longest // 2])
    padded = rng.random() < 0.2
    chunking = not padded and rng.random() < 0.6
    return {
        "name": "tgi",
        "max_concurrent_requests": rng.choice([4, 128, 128]),
        "max_total_tokens": total,
        "max_input_tokens": rng.choice([total - 1, total // 2]),
        "max_batch_prefill_tokens": rng.choice([total // 4, total]) if chunking else total,
        "waiting_served_ratio": rng.choice([0.3, 0.3, 1.2, 3.0]),
        "max_waiting_tokens": rng.choice([1, 5, 20]),
        "max_batch_size": rng.choice([None, None, 3, 8]),
        "support_chunking": chunking,
        "requires_padding": padded,
    }


def _trtllm(rng: random.Random, longest: int, block_size: int) -> dict[str, Any]:
    return {
        "name": "trtllm",
        "max_batch_size": rng.choice([1, 3, 16, 64]),
        "max_num_tokens": rng.choice([64, 256, 2048]),
        "capacity_scheduler_policy": rng.choice(
            ["GUARANTEED_NO_EVICT", "GUARANTEED_NO_EVICT", "MAX_UTILIZATION", "MAX_UTILIZATION", "STATIC_BATCH"]
        ),
        "enable_chunked_prefill": rng.random() < 0.6,
        "context_chunking_policy": rng.choice(["FIRST_COME_FIRST_SERVED", "EQUAL_PROGRESS"]),
        "chunk_unit_size": rng.choice([None, None, block_size, 2 * block_size]),
        "waiting_queue_policy": rng.choice(["fcfs", "priority"]),
        "enable_prefix_aware_scheduling": rng.random() < 0.8,
        "batch_wait_timeout_iters": rng.choice([0, 0, 3]),
        "batch_wait_max_tokens_ratio": rng.choice([0.0, 0.5]),
        "disable_overlap_scheduler": rng.random() < 0.4,
    }


SGLANG_ORDERS = ["fcfs", "fcfs", "lpm", "dfs-weight", "lof", "hrrn"]


def _sglang(rng: random.Random, longest: int, block_size: int) -> dict[str, Any]:
    by_priority = rng.random() < 0.3
    return {
        "name": "sglang",
        "max_running_requests": rng.choice([None, 2, 8, 64]),
        "max_prefill_tokens": rng.choice([64, 400, 16384]),
        "chunked_prefill_size": rng.choice([2, 4, 16]) * block_size if rng.random() < 0.8 else -1,
        "schedule_policy": rng.choice(["fcfs", "lof"] if by_priority else SGLANG_ORDERS),
        "schedule_conservativeness": rng.choice([0.3, 1.0, 2.0]),
        "enable_mixed_chunk": rng.random() < 0.3,
        "prefill_max_requests": rng.choice([None, None, 2]),
        "prefill_decode_interval": rng.choice([0, 0, 3]),
        "prefill_decode_interval_min_bs": rng.choice([0, 2]),
        "max_queued_requests": rng.choice([None, None, 4]),
        "enable_priority_scheduling": by_priority,
        "schedule_low_priority_values_first": rng.random() < 0.3,
        "priority_scheduling_preemption_threshold": rng.choice([0, 1, 10]),
        "disable_priority_preemption": rng.random() < 0.3,
        "retraction_policy": rng.choice(["length", "priority"] if by_priority else ["length"]),
        "disable_overlap_schedule": rng.random() < 0.4,
    }


def _static(rng: random.Random, longest: int, block_size: int) -> dict[str, Any]:
    return {
        "name": "static",
        "batch_size": rng.choice([1, 3, 8]),
        "max_queue_delay_s": rng.choice([0.0, 0.02, 0.3]),
        "return_results": rng.choice(["as_each_ends", "end_of_batch"]),
    }


def _naive(rng: random.Random, longest: int, block_size: int) -> dict[str, Any]:
    return {"name": "naive"}


def _orca(rng: random.Random, longest: int, block_size: int) -> dict[str, Any]:
    return {"name": "orca", "max_batch_size": rng.choice([1, 3, 8, 32])}


def _sarathi(rng: random.Random, longest: int, block_size: int) -> dict[str, Any]:
    return {
        "name": "sarathi",
        "max_num_seqs": rng.choice([1, 3, 8, 32]),
        "chunk_size": rng.choice([5, 16, 64, 512]),
        "watermark": rng.choice([0.0, 0.01, 0.2]),
    }


def _triton_dynamic(rng: random.Random, longest: int, block_size: int) -> dict[str, Any]:
    most = rng.choice([1, 3, 8])
    levels = rng.choice([0, 0, 3])
    return {
        "name": "triton_dynamic",
        "max_batch_size": most,
        "preferred_batch_size": rng.choice([None, [1 + most // 2], [1, most]]),
        "max_queue_delay_microseconds": rng.choice([0, 20_000, 300_000]),
        "priority_levels": levels,
        "default_priority_level": min(levels, rng.choice([1, 2])),
        "default_queue_policy": {
            "timeout_action": rng.choice(["reject", "delay"]),
            "default_timeout_microseconds": rng.choice([0, 0, 10_000, 200_000]),
            "max_queue_size": rng.choice([0, 0, 2, 7]),
        },
    }


def _vllm_v0(rng: random.Random, longest: int, block_size: int) -> dict[str, Any]:
    most = rng.choice([1, 3, 8, 32, 64])
    return {
        "name": "vllm_v0",
        "max_num_seqs": most,
        "max_num_batched_tokens": rng.choice([None, longest, 3 * longest]),
        "preemption_mode": rng.choice([None, "recompute", "swap", "swap"]),
        "swap_space": rng.choice([0.0, 0.02, 4.0, 4.0]),
        "pcie_gb_per_s": rng.choice([0.7, 25.0]),
        "watermark": rng.choice([0.0, 0.01, 0.1]),
    }


CUT = ("vllm", "sarathi", "vllm_v0")
"""Policies that are to cope with a cache that does not hold the longest sequence."""
MAKERS: dict[str, Callable[[random.Random, int, int], dict[str, Any]]] = {
    "naive": _naive,
    "orca": _orca,
    "sarathi": _sarathi,
    "sglang": _sglang,
    "static": _static,
    "tgi": _tgi,
    "triton_dynamic": _triton_dynamic,
    "trtllm": _trtllm,
    "vllm": _vllm,
    "vllm_v0": _vllm_v0,
}


def _cost(rng: random.Random) -> dict[str, Any]:
    noise = rng.choice([False, {"sigma": 0.05}, {"sigma": 0.05}])
    if rng.random() < 0.6:
        return {"name": "linear", "base_s": 0.005, "per_token_s": 2e-5, "per_context_token_s": 1e-7, "noise": noise}
    return {"name": "roofline", "calibration": rng.choice(["ideal", OVERHEADS]), "noise": noise}


def _closed_loop(rng: random.Random) -> dict[str, Any]:
    return {
        "name": "closed_loop",
        "concurrency": rng.randint(1, 12),
        "think_time_s": rng.choice([0.0, 0.0, 0.05]),
        "think_time": rng.choice(["constant", "exponential"]),
    }


def _open_loop(rng: random.Random) -> dict[str, Any]:
    rate = rng.choice([2, 30, 300])
    return rng.choice(
        [
            {"name": "gamma", "rate_per_s": rate, "burstiness": rng.choice([0.1, 1])},
            {"name": "bursty", "rate_per_s": rate, "on_s": 0.2, "off_s": 0.3, "off_rate": 0.1},
            {"name": "piecewise", "points": [[0, rate], [0.1, 0], [0.3, 2 * rate]], "period_s": 0.5, "shape": "linear"},
        ]
    )


def _sharing(rng: random.Random) -> dict[str, Any]:
    prefix = {"prefix": {"tokens": rng.choice([1, 9]), "groups": rng.choice([1, 3]), "popularity": "zipf"}}
    return rng.choice([{}, prefix, {"samples": 3}, {**prefix, "samples": 2}])


def _lengths(rng: random.Random, longest: int) -> dict[str, Any]:
    return {
        "prompt_tokens": {"name": "uniform", "min": 1, "max": rng.choice([20, longest + 20])},
        "output_tokens": {"name": "uniform", "min": 1, "max": rng.choice([3, 60, 300])},
    }


def requests(rng: random.Random, longest: int, shared: bool) -> list[Request]:
    """Requests of one's own: prefixes, priorities and limits request by request."""
    made: list[Request] = []
    now, rate = 0.0, rng.choice([1, 10, 60, 300, 3000])
    together = rng.choice([0.2, 0.2, 0.2, 0.9])  # that one comes at the instant of the one before
    coarse = rng.random() < 0.15  # times that tie with each other
    for index in range(rng.randint(5, 60)):
        if rng.random() >= together:
            now += rng.expovariate(rate)
        if coarse:
            now = round(now, 2)
        prompt = rng.randint(1, longest - 1 if rng.random() < 0.2 else min(longest - 1, 120))
        output = rng.randint(1, rng.choice([3, 40, 300]))
        prefix: list[tuple[str, int]] = []
        if shared and rng.random() < 0.6:
            if rng.random() < 0.5:
                prefix = [(f"sys{rng.randint(0, 2)}", rng.randint(1, prompt))]
            elif made:
                other = rng.choice(made[-4:])
                prefix = list(other.prefix)
                own = other.prompt_tokens - sum(n for _, n in prefix)
                if own > 0:
                    prefix.append((f"own:{other.id}", own))
                prefix.append((f"out:{other.id}", rng.randint(1, other.output_tokens)))
                prompt = min(longest - 1, sum(n for _, n in prefix) + rng.randint(0, 40))
                left, kept = prompt, []
                for segment, n in prefix:
                    if left > 0:
                        kept.append((segment, min(n, left)))
                    left -= n
                prefix = kept
        most = output + rng.randint(0, 50) if rng.random() < 0.5 else output
        made.append(Request(index, f"r{index}", now, prompt, output, most, rng.randint(0, 3), tuple(prefix)))
    return made


def _ordered(rng: random.Random, data: dict[str, Any], asked: list[Request]) -> None:
    """The policy takes an order of the queue; the requests are of classes, where they are not the workload's own."""
    policy = data["policy"]
    if policy["name"] == "vllm":
        policy["scheduling_policy"] = "fcfs"
    policy["order"] = rng.choice(
        [
            "fcfs",
            "priority",
            {"name": "sjf", "error": rng.choice([0.1, 1.0])},
            "sjf_oracle",
            "edf",
            {"name": "fair", "input_weight": rng.choice([0, 1]), "output_weight": rng.choice([1, 2, 7])},
            "fair",
            {"name": "mlfq", "levels": rng.choice([1, 2, 5]), "quantum_tokens": rng.choice([1, 5, 30])},
            {"name": "mlfq", "skip_join_tokens": rng.choice([5, 50]), "factor": rng.choice([1, 3])},
        ]
    )
    if data["workload"]["arrivals"] != "batch":
        return
    lengths = {"prompt_tokens": 1, "output_tokens": 1}
    classes: dict[str, Any] = {
        "a": {**lengths, "slo": {"ttft_ms": rng.choice([1, 50])}},
        "b": {**lengths, "slo": {"e2e_ms": 900}},
        "c": {**lengths, "tenant": rng.choice(["a", "z"])},
    }
    kept = ("num_requests", "duration_s", "arrivals")
    data["workload"] = {key: value for key, value in data["workload"].items() if key in kept} | {"classes": classes}
    for request in asked:
        request.cls = rng.choice("abc")


def scenario_of(data: dict[str, Any], fast_forward: bool = True) -> sim.Scenario:
    return sim.from_mapping({**data, "fast_forward": fast_forward})


def source_of(data: dict[str, Any], asked: list[Request]) -> Source | None:
    """The source to run on: None where the scenario's workload is its own."""
    return Fixed(iter(asked), len(asked)) if data["workload"]["arrivals"] == "batch" else None


def run(data: dict[str, Any], asked: list[Request], fast_forward: bool = True) -> sim.Result:
    return sim.simulate(scenario_of(data, fast_forward), source=source_of(data, asked))
