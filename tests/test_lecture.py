"""The lecture's inference arithmetic, by simulation: scenarios/lecture_batching.yaml against the closed forms.

Decoding is bound by memory: latency = (weights + batch x KV) / bandwidth, throughput = batch / latency. What a
simulated step differs by is named: the input embedding is not read whole, activations are, contexts are what they are.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

import sim

SCENARIO = Path(__file__).resolve().parent.parent / "scenarios" / "lecture_batching.yaml"
PAGE = SCENARIO.parent.parent / "docs" / "lecture.md"
BANDWIDTH = 3.35e12  # bytes/s, H100
LAYERS, HIDDEN, HEADS, HEAD_DIM, MLP, VOCABULARY = 40, 5120, 40, 128, 13824, 32000
PARAMETERS = 2 * VOCABULARY * HIDDEN + 3 * HIDDEN * MLP * LAYERS + 4 * HIDDEN * HEADS * HEAD_DIM * LAYERS
INPUT_EMBEDDING = VOCABULARY * HIDDEN * 2  # bytes, of which a step reads a row a token


@cache
def result(policy: str, *overrides: str) -> sim.Result:
    return sim.simulate(sim.load(SCENARIO, overrides, policy=policy))


def last_decode(policy: str, *overrides: str) -> tuple[float, float]:
    """Seconds and tokens of context of the full batch's step with the longest context."""
    table = result(policy, *overrides).steps
    steps = {name: table[name].to_numpy() for name in ("start_s", "end_s", "context_tokens", "prefill_tokens")}
    context = np.where(steps["prefill_tokens"] == 0, steps["context_tokens"], 0)
    at = int(np.argmax(context))
    return float(steps["end_s"][at] - steps["start_s"][at]), float(context[at])


def activations(kv_heads: int = HEADS, row_in: int = 2, kv_bytes: int = 2) -> int:
    """Bytes per row that go in and out of the operators, beside weights and cache; bf16 but for quantised inputs."""
    queries, keys = HEADS * HEAD_DIM, kv_heads * HEAD_DIM
    a_layer = 2 * HIDDEN * (6 + row_in)  # two norms, residual included
    a_layer += HIDDEN * row_in + 2 * (queries + 2 * keys)  # QKV
    a_layer += 4 * (queries + keys) + 2 * keys * kv_bytes  # rotary embedding, cache written
    a_layer += 4 * queries  # attention: queries in, results out
    a_layer += queries * row_in + 2 * HIDDEN  # output projection
    a_layer += HIDDEN * row_in + 4 * MLP + MLP * (4 + row_in) + MLP * row_in + 2 * HIDDEN  # gate and up, SwiGLU, down
    return LAYERS * a_layer + HIDDEN * (4 + 6 + row_in) + 2 * HIDDEN + 2 * VOCABULARY  # embedding, last norm, head


def closed_form_s(context: float, weight_bytes: float = 2.0, kv_bytes: float = 2.0, kv_heads: int = HEADS) -> float:
    """(weights but for the input embedding + KV of the context) / bandwidth."""
    fewer = 2 * HIDDEN * (HEADS - kv_heads) * HEAD_DIM * LAYERS
    layers = PARAMETERS - fewer - 2 * VOCABULARY * HIDDEN
    weights = layers * weight_bytes + INPUT_EMBEDDING  # the head stays bf16 and has the embedding's size
    return (weights + 2 * kv_bytes * kv_heads * HEAD_DIM * LAYERS * context) / BANDWIDTH


@pytest.mark.parametrize(("batch", "latency_s", "throughput"), [(1, 8.02e-3, 124.7), (64, 23.80e-3, 2690)])
def test_latency_and_throughput_of_the_lecture(batch: int, latency_s: float, throughput: float) -> None:
    memory = 2 * PARAMETERS + batch * 2 * 2 * 1024 * HEADS * HEAD_DIM * LAYERS
    assert memory / BANDWIDTH == pytest.approx(latency_s, rel=1e-3)
    assert batch / (memory / BANDWIDTH) == pytest.approx(throughput, rel=2e-3)
    seconds, context = last_decode(f"batch-{batch}")
    assert context == batch * 1023  # the last token is never read again
    assert seconds == pytest.approx(closed_form_s(context) + batch * activations() / BANDWIDTH, rel=1e-3)
    assert seconds == pytest.approx(latency_s - INPUT_EMBEDDING / BANDWIDTH, rel=0.015)


def test_batch_256_is_refused_with_the_numbers() -> None:
    with pytest.raises(sim.ScenarioError, match=r"reserves 262144 tokens .* the memory holds 7\d{4} "):
        sim.load(SCENARIO, ["policies.large={name: static, batch_size: 256}"], policy="large")


def test_throughput_grows_less_and_less_with_the_batch() -> None:
    batches = (1, 4, 16, 64)
    latency = [last_decode(f"batch-{batch}")[0] for batch in batches]
    throughput = [batch / seconds for batch, seconds in zip(batches, latency, strict=True)]
    gain = np.divide(throughput[1:], throughput[:-1])
    assert (np.diff(latency) > 0).all()
    assert (np.diff(throughput) > 0).all()
    assert (np.diff(gain) < 0).all()
    assert gain[-1] < 2.5 < 3.5 < gain[0]  # of 4


def test_replicas_multiply_throughput_and_leave_latency_alone() -> None:
    one = result("batch-16").summary
    four = result("batch-16", "replicas=4", "workload.num_requests=512").summary
    assert four["output_throughput"] == pytest.approx(4 * one["output_throughput"], rel=1e-9)
    assert four["mean_tpot_ms"] == pytest.approx(one["mean_tpot_ms"], rel=1e-9)


def test_small_prefill_batches_give_the_first_token_sooner() -> None:
    first = [float(np.min(result(f"batch-{batch}").requests["first_token_s"].to_numpy())) for batch in (1, 4, 16, 64)]
    assert (np.diff(first) > 0).all()
    assert first[-1] / first[0] == pytest.approx(64, rel=0.1)  # prefill is bound by arithmetic: in proportion
    flops = 2 * (PARAMETERS - 2 * VOCABULARY * HIDDEN) * 960
    assert flops / 989e12 < first[0] < 1.15 * flops / 989e12  # the rest: attention, and what is bound by memory


def test_quantised_weights_help_small_batches_and_a_quantised_cache_large_ones() -> None:
    small, context = last_decode("batch-1", "engine.weight_dtype=fp8")
    quantised_rows = activations(row_in=1) / BANDWIDTH
    assert small == pytest.approx(closed_form_s(context, weight_bytes=1) + quantised_rows, rel=1e-3)
    large, context = last_decode("batch-64", "engine.kv_cache_dtype=fp8")
    rows = 64 * activations(kv_bytes=1) / BANDWIDTH
    assert large == pytest.approx(closed_form_s(context, kv_bytes=1) + rows, rel=1e-3)
    gain_of_weights = last_decode("batch-1")[0] / small
    assert gain_of_weights > 1.8
    assert last_decode("batch-64", "engine.weight_dtype=fp8")[0] / large > 1  # there the cache counts more


def test_grouped_heads_shrink_the_cache_and_let_in_larger_batches() -> None:
    grouped = "model={name: llama-2-13b, num_key_value_heads: 8}"
    seconds, context = last_decode("batch-64", grouped)
    rows = 64 * activations(kv_heads=8) / BANDWIDTH
    assert seconds == pytest.approx(closed_form_s(context, kv_heads=8) + rows, rel=1e-3)
    assert seconds < 0.5 * last_decode("batch-64")[0]
    sim.load(SCENARIO, [grouped, "policies.large={name: static, batch_size: 256}"], policy="large")  # fits now


CHANGES = {
    "none": (),
    "fp8 weights": ("engine.weight_dtype=fp8",),
    "fp8 cache": ("engine.kv_cache_dtype=fp8",),
    "8 KV heads": ("model={name: llama-2-13b, num_key_value_heads: 8}",),
}
LARGE = ("policies.batch-256={name: static, batch_size: 256}", "workload.num_requests=256")


def test_the_page_has_these_numbers() -> None:
    """Every row of both tables, the lines on replicas, and each change as a command of the page."""
    page = PAGE.read_text("utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    plain = [row for row in rows if row[0].isdigit()]
    changed = [row for row in rows if row[0] in CHANGES]
    assert len(plain) == 4 and len(changed) == 8
    for batch, closed_ms, step_ms, throughput, first_ms in plain:
        seconds, _ = last_decode(f"batch-{batch}")
        memory = 2 * PARAMETERS + int(batch) * 2 * 2 * 1024 * HEADS * HEAD_DIM * LAYERS
        first_s = float(np.min(result(f"batch-{batch}").requests["first_token_s"].to_numpy()))
        assert (closed_ms, step_ms) == (f"{1000 * memory / BANDWIDTH:.2f}", f"{1000 * seconds:.2f}")
        assert (throughput, first_ms) == (f"{int(batch) / seconds:,.0f}", f"{1000 * first_s:,.0f}")
    for change, batch, step_ms, throughput in changed:
        more = LARGE if batch == "256" else ()
        seconds, _ = last_decode(f"batch-{batch}", *CHANGES[change], *more)
        assert (step_ms, throughput) == (f"{1000 * seconds:.2f}", f"{int(batch) / seconds:,.0f}")
        assert all(override in page for override in (*CHANGES[change], *more))
    one = result("batch-16").summary
    four = result("batch-16", "replicas=4", "workload.num_requests=512").summary
    assert f"{four['output_throughput']:,.0f} output tokens a second against {one['output_throughput']:,.0f}" in page
    assert f"{one['mean_tpot_ms']:.2f} ms" in page
    with pytest.raises(sim.ScenarioError) as refused:
        sim.load(SCENARIO, LARGE[:1], policy="batch-256")
    assert page[page.index("policies.batch-256: ") :].splitlines()[0] in str(refused.value)
