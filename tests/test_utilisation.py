"""MFU and MBU of replicas: against sums over the requests, and never above 1."""

from pathlib import Path
from typing import Any

import pytest

from sim import from_mapping, simulate
from sim.cost import Shard


def ran(**changes: Any) -> Any:
    data = {
        "model": "llama-3.1-8b",
        "gpu": "h100_sxm",
        "cost": {"name": "roofline", "calibration": "ideal"},
        "policy": "vllm",
        "workload": {
            "ignore_eos": True,  # else an asynchronous engine computes a step too many for each
            "num_requests": 40,
            "arrivals": {"name": "poisson", "rate_per_s": 30.0},
            "prompt_tokens": {"name": "uniform", "min": 10, "max": 3000},
            "output_tokens": {"name": "uniform", "min": 1, "max": 100},
        },
        **changes,
    }
    return simulate(from_mapping(data, "x"))


def test_counts_are_those_of_the_requests() -> None:
    """No preemption, no prefix: every prompt token is computed once, in chunks or not, and each output but the last."""
    result = ran()
    requests, steps = result.requests.to_pylist(), result.steps.to_pylist()
    shard = Shard.of(result.scenario.cluster.pools["main"].model, result.scenario.cluster.pools["main"].gpu,
                     result.scenario.cluster.pools["main"].engine)  # fmt: skip
    lengths = [(row["prompt_tokens"], row["output_tokens"]) for row in requests]
    rows = sum(prompt + given - 1 for prompt, given in lengths)
    pairs = sum(p * (p + 1) // 2 + sum(p + j for j in range(1, given)) for p, given in lengths)
    flops = rows * sum(op.count * op.flops for op in shard.row_operators(1))
    flops += sum(given for _, given in lengths) * shard.logits(1).flops + 32 * 4 * 4096 * pairs
    busy_s = sum(row["end_s"] - row["start_s"] for row in steps)
    summary = result.summary
    assert summary["mfu_busy"] == pytest.approx(flops / 989e12 / busy_s, rel=1e-9)
    assert summary["mfu"] == pytest.approx(flops / 989e12 / summary["end_s"], rel=1e-9)

    moved = sum(op.count * (op.bytes) for op in shard.row_operators(0)) * len(steps)
    moved += sum(op.count * op.bytes for op in shard.row_operators(rows)) - sum(
        op.count * op.bytes for op in shard.row_operators(0)
    )
    emitted = sum(row["emitted"] for row in steps)
    moved += shard.logits(emitted).bytes + shard.logits(0).bytes * (sum(row["emitted"] > 0 for row in steps) - 1)
    moved += 32 * shard.attention("attention_decode", rows, sum(row["context_tokens"] for row in steps), 0).bytes
    assert summary["mbu_busy"] == pytest.approx(moved / 3.35e12 / busy_s, rel=1e-9)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": "mixtral-8x7b", "engine": {"tensor_parallel_size": 2}, "replicas": 2},
        {"policy": {"name": "static", "batch_size": 8}},
        {"engine": {"num_gpu_blocks_override": 300, "max_model_len": 4000}},
        {"engine": {"weight_dtype": "fp8", "kv_cache_dtype": "fp8"}},
    ],
)
def test_never_above_one(changes: dict[str, Any]) -> None:
    summary = ran(**changes).summary
    for name in ("mfu", "mbu"):
        values = summary[f"{name}_per_replica"], summary[f"{name}_busy_per_replica"]
        for wall, busy in zip(*values, strict=True):
            assert 0 < wall <= busy <= 1
    assert len(values[0]) == changes.get("replicas", 1)


def test_the_warm_up_is_cut_as_from_throughput() -> None:
    """Two seconds of hardly anything but 40 prompts, then decoding alone, which is bound by memory."""
    workload = {
        "num_requests": 40,
        "arrivals": "batch",
        "prompt_tokens": 2000,
        "output_tokens": 400,
        "ignore_eos": True,
    }
    whole, late = ran(workload=workload).summary, ran(workload=workload, warmup_s=2.5).summary
    assert late["warmup_s"] == 2.5
    assert whole["mfu"] > 0.3 and late["mfu"] < 0.1
    assert late["mbu"] > 0.9
    before = ran(workload=workload, warmup_s=1e-9).summary  # cut, but of nothing: the sums must be those of the run
    for name in ("mfu", "mbu", "mfu_busy", "mbu_busy"):
        assert before[name] == pytest.approx(whole[name], rel=1e-6)


def test_the_window_is_that_of_the_steps_and_prompts_in_it(tmp_path: Path) -> None:
    """Two bursts of equal requests, the second after the warm-up: it has half of all that was computed."""
    trace = tmp_path / "two.csv"
    burst = [f"{at},{1500},{50}" for at in (0.0, 0.0, 0.0, 20.0, 20.0, 20.0)]
    trace.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *burst]))
    workload = {"arrivals": {"name": "trace", "file": str(trace)}, "ignore_eos": True}
    for model in ("llama-3.1-8b", "mixtral-8x7b"):
        engine = {"tensor_parallel_size": 2}
        whole = ran(model=model, engine=engine, workload=workload).summary
        late = ran(model=model, engine=engine, workload=workload, warmup_s=20.0).summary
        for name in ("mfu", "mbu"):
            assert late[f"{name}_busy"] == pytest.approx(whole[f"{name}_busy"], rel=1e-6)
            assert late[name] * late["duration"] == pytest.approx(whole[name] * whole["end_s"] / 2, rel=1e-6)


def test_a_cut_run_counts_only_what_ended() -> None:
    workload = {
        "duration_s": 0.9, "arrivals": "batch", "num_requests": 40, "prompt_tokens": 3000, "output_tokens": 5,
    }  # fmt: skip
    summary = ran(workload=workload).summary
    assert summary["unfinished"] and 0.5 < summary["mfu_busy"] <= 1


def test_nothing_under_the_linear_cost() -> None:
    summary = ran(cost={"name": "linear", "base_s": 1e-9}).summary
    assert summary["mfu"] is None and summary["mbu_per_replica"] == [None]
