"""The folded roofline against the plain sum over operators, the physical floor, the lecture's latency, throughput."""

from array import array
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import gpus, models, registry
from sim.cost import BatchShape, Calibration, Operators, Prices, Roofline, Spread, operators
from sim.cost.calibration import LECTURE
from sim.cost.forms import (
    AllReduce,
    DecodeAttention,
    Efficiency,
    Experts,
    Gemm,
    Group,
    Pass,
    Passes,
    PassName,
    PrefillAttention,
    Segment,
)
from sim.cost.pricing import LOOP
from sim.cost.roofline import OPTIMISTIC, RooflinePricer
from sim.gpus import GPU
from sim.models import Model
from sim.scenario import Engine

H100 = gpus.parse("h100_sxm")
LLAMA = models.parse("llama-3.1-8b")
# arithmetic is dear here, so that attention has two lines that cross
SLOW = GPU(name="slow", memory_gib=80, bf16_tflops=20, memory_gb_per_s=4000, sms=100, link_gb_per_s=100)

shapes = st.builds(
    Model,
    name=st.just("any"),
    num_hidden_layers=st.integers(1, 90),
    hidden_size=st.sampled_from([256, 1024, 4096, 8192]),
    num_attention_heads=st.sampled_from([8, 16, 64]),
    num_key_value_heads=st.sampled_from([1, 2, 8]),
    head_dim=st.sampled_from([64, 128]),
    intermediate_size=st.sampled_from([1024, 14336, 28672]),
    vocab_size=st.sampled_from([32000, 128256, 151936]),
    tie_word_embeddings=st.booleans(),
    hidden_act=st.sampled_from(["silu", "relu"]),
    num_local_experts=st.sampled_from([1, 8, 128]),
)
engines = st.builds(
    Engine,
    tensor_parallel_size=st.sampled_from([1, 2, 8]),
    weight_dtype=st.sampled_from(["bf16", "fp8", "int8", "int4"]),
    kv_cache_dtype=st.sampled_from(["auto", "fp8", "int8"]),
)
cards = st.sampled_from([*(gpus.parse(name) for name in gpus.names()), SLOW])
fraction = st.one_of(st.just(1.0), st.floats(0.05, 1))
powers = st.sampled_from([None, 1.0, 2.5])


def forms(kind: Any, **more: Any) -> Any:
    """A form of this kind, with whatever it refines of the roofline."""
    floors = st.sampled_from([0.0, 4e-6, 2e-5])
    return st.builds(
        kind, compute_fraction=fraction, bandwidth_fraction=fraction, floor_s=floors, overlap_p=powers, **more
    )


gemms = forms(
    Gemm,
    wave_share=st.sampled_from([0.0, 0.4, 1.0]),
    small_tile_penalty=st.sampled_from([0.0, 0.3]),
    quantise_fraction=st.sampled_from([None, 0.3]),
)
experts = forms(Experts, block_rows=st.sampled_from([1.0, 16.0]))
prefills = forms(PrefillAttention, tiled=st.booleans(), occupancy=st.sampled_from([None, 0.5, 30.0]))
decodes = forms(
    DecodeAttention,
    block_s=st.sampled_from([0.0, 4e-6]),
    chain_s_per_ktoken=st.sampled_from([0.0, 5e-6]),
    max_splits=st.sampled_from([1.0, 12.0]),
    ramp_bytes=st.sampled_from([0.0, 4e6]),
)
segments = st.builds(Segment, floor_s=st.just(5e-6), bandwidth_fraction=fraction)
groups = st.builds(Group, one_shot=segments, ring=segments)
passes = st.dictionaries(
    st.sampled_from(get_args(PassName)),
    st.builds(Pass, bandwidth_fraction=fraction, floor_s=st.sampled_from([0.0, 4e-6])),
)
reductions = forms(AllReduce, by_gpus=st.dictionaries(st.sampled_from([2, 8]), groups))
kinds = st.builds(
    Operators,
    gemm=gemms,
    gemm_fp8=st.none() | gemms,
    experts=st.none() | experts,
    experts_fp8=st.none() | experts,
    attention_prefill=prefills,
    attention_prefill_fp8=st.none() | prefills,
    attention_decode=decodes,
    attention_decode_fp8=st.none() | decodes,
    elementwise=forms(Passes, by_pass=passes),
    all_reduce=reductions,
    logits=st.none() | gemms,
    sampling=st.none() | forms(Efficiency),
)
calibrations = st.one_of(
    st.just(LECTURE),
    st.builds(
        lambda operators, host_s: LECTURE.model_copy(update={"operators": operators, "host_s": host_s}),
        kinds,
        st.sampled_from([0.0, 0.002]),
    ),
)
chunks = st.lists(st.tuples(st.integers(1, 8192), st.integers(0, 100_000)), max_size=4)


@st.composite
def batches(draw: st.DrawFn) -> BatchShape:
    n = draw(st.integers(0, 512))
    context = n * draw(st.integers(1, 4000)) + draw(st.integers(0, 9)) * (n > 0)
    prompts = tuple(draw(chunks)) or (() if n else ((1, 0),))
    return BatchShape(n, context, prompts, n + draw(st.integers(0, len(prompts))))


def price(cost: RooflinePricer, batch: BatchShape) -> float:
    return cost.mean(batch.n, batch.context, list(batch.prompts), batch.emitted or 0)


@settings(deadline=None)
@given(shapes, engines, cards, calibrations, batches())
def test_folded_price_is_the_sum_over_operators(
    model: Model, engine: Engine, gpu: GPU, calibration: Calibration, batch: BatchShape
) -> None:
    cost = RooflinePricer(model, gpu, engine, calibration)
    ops = cost.operators(batch.n, batch.context, batch.prompts, batch.emitted or 0)
    assert [op for op in ops if op.kind != "sampling"] == operators(model, gpu, engine, batch)
    one_by_one = [Prices(gpu, calibration).seconds(op) for op in ops]
    decode = calibration.operators.of("attention_decode", narrow=engine.kv_cache_dtype != "auto")
    # made of straight pieces between points of a curve
    close = 1e-12 if decode.overlap_p is None and decode.linear else 0.01
    assert price(cost, batch) == pytest.approx(sum(one_by_one) + calibration.host_s, rel=close)


@settings(deadline=None)
@given(shapes, engines, cards, calibrations, st.integers(1, 100_000))
def test_prompts_cost_the_same_together(
    model: Model, engine: Engine, gpu: GPU, calibration: Calibration, tokens: int
) -> None:
    cost = RooflinePricer(model, gpu, engine, calibration)
    ends = array("d")
    cost.anew(100, tokens, 0.0, ends)
    one_by_one = [cost.mean(0, 0, [(tokens + more, 0)], 1) for more in range(100)]
    assert np.diff(ends, prepend=0.0) == pytest.approx(one_by_one, rel=1e-9)


@settings(deadline=None)
@given(shapes, engines, cards, calibrations, batches())
def test_no_step_is_below_its_physical_floor(
    model: Model, engine: Engine, gpu: GPU, calibration: Calibration, batch: BatchShape
) -> None:
    ops = operators(model, gpu, engine, batch)
    peaks = {"bf16": gpu.bf16_tflops * 1e12, "fp8": (gpu.fp8_tflops or gpu.bf16_tflops) * 1e12}
    arithmetic = sum(op.count * op.flops / peaks[op.dtype] for op in ops)
    memory = sum(op.count * op.bytes for op in ops) / (gpu.memory_gb_per_s * 1e9)
    network = sum(op.count * op.comm_bytes for op in ops) / ((gpu.link_gb_per_s or 1) * 1e9)
    found = price(RooflinePricer(model, gpu, engine, calibration), batch)
    assert found >= max(arithmetic, memory, network) * (1 - 1e-12)  # so no MFU above 1 either


@settings(deadline=None)
@given(
    st.sampled_from([H100, SLOW]),
    st.sampled_from([LECTURE, LECTURE.model_copy(update={"host_s": 0.0013})]),
    st.sampled_from([False, Spread(sigma=0.05)]),
    st.lists(
        st.tuples(st.integers(1, 3 * LOOP), st.integers(1, 300), st.integers(1, 3000), st.floats(0, 1), st.booleans()),
        max_size=6,
    ),
)
def test_a_stretch_is_its_steps_bit_for_bit(
    gpu: GPU, calibration: Calibration, noise: Any, stretches: list[tuple[int, int, int, float, bool]]
) -> None:
    def make() -> RooflinePricer:
        return Roofline("ideal", noise).pricer(LLAMA, gpu, Engine(), np.random.default_rng(5))

    fast, slow = make(), make()
    ends, single = array("d", [3.5]), [3.5]
    for steps, n, each, kept, prompt in stretches:
        context = n * each
        fast.stretch(steps, n, context, ends[-1], ends, n)
        cut = max(1, int(kept * steps))
        fast.give_back(steps - cut)
        del ends[len(ends) - (steps - cut) :]
        single_context = context
        for _ in range(cut):
            single.append(single[-1] + slow.step(n, single_context, [], n))
            single_context += n
        if prompt:
            ends.append(ends[-1] + fast.step(n, context, [(500, 12)], n + 1))
            single.append(single[-1] + slow.step(n, context, [(500, 12)], n + 1))
    assert ends.tolist() == single


def test_attention_bound_by_arithmetic_in_a_stretch() -> None:
    """Where arithmetic overtakes memory within a stretch, both paths follow the greater line."""
    model = LLAMA.model_copy(update={"num_key_value_heads": 1})
    cost = RooflinePricer(model, SLOW, Engine(), LECTURE)
    n, context = 64, 64
    assert len(cost.pieces(n).slopes) == 2
    ends, now = array("d"), 0.0
    cost.stretch(200, n, context, now, ends, n)
    for i, end in enumerate(ends):
        now += cost.step(n, context + i * n, [], n)
        assert end == now
    ops = operators(model, SLOW, Engine(), BatchShape(n, n * 10**6))
    attention = next(op for op in ops if op.name == "attention_decode")
    arithmetic, memory, *_ = cost.prices.terms(attention)
    assert arithmetic > memory


@pytest.mark.parametrize(
    ("name", "batch", "tokens"), [("llama-2-13b", 1, 1024), ("llama-2-13b", 64, 1024), ("llama-3.1-8b", 16, 4000)]
)
def test_decode_latency_is_memory_over_bandwidth_but_for_terms_with_names(name: str, batch: int, tokens: int) -> None:
    """memory = batch x KV + parameters, latency = memory / bandwidth, throughput = batch / latency."""
    model = models.parse(name)
    bandwidth = H100.memory_gb_per_s * 1e9
    kv = model.kv_bytes_per_token(2) * tokens
    memory = batch * kv + 2 * model.num_parameters
    latency = memory / bandwidth
    found = RooflinePricer(model, H100, Engine(), LECTURE).mean(batch, batch * tokens, [], batch)

    width, layers = model.hidden_size, model.num_hidden_layers
    heads, kv_heads = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    unread_input_table = -2 * model.vocab_size * width
    products = 2 * (width + heads + 2 * kv_heads) + 2 * (heads + width) + 2 * (width + 2 * model.intermediate_size)
    products += 2 * (model.intermediate_size + width)
    attention = 2 * 2 * heads  # queries in, outputs out
    norms = 2 * 4 * 2 * width  # two, each with the residual's sum in and out
    rope_and_cache = 2 * 2 * (heads + kv_heads) + 2 * 2 * kv_heads
    activation = 2 * 3 * model.intermediate_size
    per_row = layers * (products + attention + norms + rope_and_cache + activation)
    per_row += 4 * 2 * width + 2 * 2 * width + 2 * (width + model.vocab_size)  # last norm, embedding, logits
    assert found == pytest.approx((memory + unread_input_table + batch * per_row) / bandwidth, rel=1e-12)
    assert batch / found == pytest.approx(batch / latency, rel=0.08)  # and those terms are small
    assert found > batch * kv / bandwidth


def test_prefill_is_bound_by_arithmetic() -> None:
    tokens = 8192
    found = RooflinePricer(LLAMA, H100, Engine(), LECTURE).mean(0, 0, [(tokens, 0)], 1)
    table = LLAMA.vocab_size * LLAMA.hidden_size
    flops = 2 * (LLAMA.num_parameters - 2 * table) * tokens + 32 * 2 * 4096 * tokens * (tokens + 1)
    assert flops / 989e12 < found < 1.15 * flops / 989e12  # the rest: element-wise passes


def test_tensor_parallelism_divides_all_but_replicated_and_sent_bytes() -> None:
    alone = RooflinePricer(LLAMA, H100, Engine(), LECTURE).mean(8, 8000, [], 8)
    eight = RooflinePricer(LLAMA, H100, Engine(tensor_parallel_size=8), LECTURE).mean(8, 8000, [], 8)
    sent = 64 * 2 * 7 / 8 * 8 * 4096 * 2 / 450e9
    assert alone / 8 + sent < eight < alone / 8 + sent + 0.1 * alone


def test_a_calibration_prices_as_it_says() -> None:
    reached = Gemm(compute_fraction=0.8, bandwidth_fraction=0.5, floor_s=3e-6)
    calibration = LECTURE.model_copy(
        update={
            "name": "test",
            "operators": Operators(gemm=reached, logits=Gemm()),
            "host_s": 0.001,
            "front_end_s": 0.014,
        }
    )
    cost = RooflinePricer(LLAMA, H100, Engine(), calibration)
    ideal = RooflinePricer(LLAMA, H100, Engine(), LECTURE)
    gemms = [op for op in cost.operators(1, 100, [], 1) if op.kind == "gemm"]
    more = sum(op.count * (op.bytes / 3.35e12 + 3e-6) for op in gemms)  # half the bandwidth: as much again
    assert cost.mean(1, 100, [], 1) == pytest.approx(ideal.mean(1, 100, [], 1) + more + 0.001, rel=1e-12)
    assert (cost.front_end_s, ideal.front_end_s) == (0.014, 0.0)


def test_labels() -> None:
    assert Roofline("ideal").pricer(LLAMA, H100, Engine()).label == OPTIMISTIC
    assert Roofline().pricer(LLAMA, SLOW, Engine()).label == OPTIMISTIC  # no calibration of its own
    calibration = LECTURE.model_copy(update={"name": "mine", "gpu": "h100_sxm", "host_s": 0.001})
    assert RooflinePricer(LLAMA, H100, Engine(), calibration).label == "calibrated by mine"
    elsewhere = RooflinePricer(LLAMA, SLOW, Engine(), calibration).label
    assert elsewhere == "calibrated by mine, measured on h100_sxm, applied to slow"


def test_noise_of_the_component() -> None:
    def differs(noise: Any) -> bool:
        cost = Roofline("ideal", noise).pricer(LLAMA, H100, Engine(), np.random.default_rng(1))
        return cost.step(1, 10, [], 1) != cost.mean(1, 10, [], 1)

    assert [differs(noise) for noise in (True, False, Spread(sigma=0.05))] == [False, False, True]
    component = registry.parse("cost", {"name": "roofline", "noise": {"sigma": 0.05}})
    noise = {"sigma": 0.05, "prefill_sigma": None}
    assert component.plain() == {"name": "roofline", "calibration": "default", "noise": noise}
    assert registry.build("cost", registry.parse("cost", "roofline")) == Roofline()
