"""Each refinement of the roofline against the number that its definition gives."""

from typing import Any

import numpy as np
import pytest

from sim.cost.forms import (
    AllReduce,
    DecodeAttention,
    Efficiency,
    Experts,
    Gemm,
    Group,
    Machine,
    PrefillAttention,
    Segment,
    combine,
)
from sim.cost.operators import Operator, gemm

GPU = Machine(flop_per_s=1e15, byte_per_s=2e12, link_byte_per_s=4e11, sms=100)


def product(m: Any, k: int, n: int, narrow: bool = False) -> Operator:
    return Operator("qkv", "gemm", *gemm(m, k, n), narrow=narrow, dims=(m, k, n))


def test_left_alone_a_form_is_the_roofline() -> None:
    small, large = product(1, 4096, 4096), product(8192, 4096, 4096)
    assert Gemm().seconds(small, GPU) == small.bytes / 2e12
    assert Gemm().seconds(large, GPU) == large.flops / 1e15
    assert Efficiency(bandwidth_fraction=0.5, floor_s=1e-6).seconds(small, GPU) == small.bytes / 1e12 + 1e-6


def test_terms_that_overlap_in_part() -> None:
    assert combine(None, 3.0, 4.0) == 4.0 and combine(1.0, 3.0, 4.0) == 7.0
    assert combine(2.0, 3.0, 4.0) == pytest.approx(5.0)
    assert combine(2.0, 3.0, 0.0) == 3.0 and combine(2.0) == 0.0
    assert combine(2.0, np.array([3.0, 6.0]), np.array([4.0, 8.0])).tolist() == pytest.approx([5.0, 10.0])


def test_whole_waves() -> None:
    """100 SMs take 100 tiles of 256 x 128 at once: one row more than they hold costs a wave more."""
    form = Gemm(wave_share=1.0, small_tile_penalty=1.0)  # smaller tiles never pay
    full, over = product(2560, 1024, 1280), product(2561, 1024, 1280)
    assert form.in_waves(full, 100) == pytest.approx(full.flops)
    assert form.in_waves(over, 100) == pytest.approx(2 * full.flops)
    half = Gemm(wave_share=0.5, small_tile_penalty=1.0)
    assert half.in_waves(over, 100) == pytest.approx((over.flops * 2 * full.flops) ** 0.5)
    # with a mild penalty a smaller tile fills the SMs better
    assert Gemm(wave_share=1.0, small_tile_penalty=0.1).in_waves(over, 100) < 1.4 * over.flops


def test_the_pass_that_quantises_fp8_inputs() -> None:
    plain, passes = Gemm(), Gemm(quantise_fraction=0.25)
    for narrow, more in ((True, 3 * 64 * 4096 / 0.5e12), (False, 0.0)):
        operator = product(64, 4096, 1024, narrow)
        assert passes.seconds(operator, GPU) - plain.seconds(operator, GPU) == pytest.approx(more, abs=1e-15)


def test_bands_of_rows() -> None:
    """17 to 64 rows and 65 to 128: the first of a band costs so much more, the last nothing."""
    form = Gemm(band_excess={64: 0.3, 128: 0.5}, floor_s=5e-6)
    rows = np.array([16, 17, 64, 65, 96, 128, 129])
    expected = [1.0, 1.3, 1.0, 1.5, 1 + 0.5 * 32 / 63, 1.0, 1.0]
    assert form.in_bands(rows) == pytest.approx(expected)
    for m, more in zip(rows.tolist(), expected, strict=True):
        operator = product(m, 4096, 1024)
        assert form.seconds(operator, GPU) == pytest.approx(more * Gemm().seconds(operator, GPU) + 5e-6)
        assert float(form.in_bands(m)) == pytest.approx(more)


def test_experts_compute_whole_blocks() -> None:
    few = Operator("e", "experts", flops=2 * 16 * 64 * 32, bytes=1, dims=(16, 8, 64, 32))
    assert Experts(block_rows=16).seconds(few, GPU) == pytest.approx(2 * 64 * 32 * (8 * 16) / 1e15)
    many = Operator("e", "experts", flops=2 * 1600 * 64 * 32, bytes=1, dims=(1600, 8, 64, 32))
    assert Experts(block_rows=16).seconds(many, GPU) == pytest.approx(many.flops / 1e15)


def test_prefill_blocks_and_occupancy() -> None:
    operator = Operator("a", "attention_prefill", flops=10**9, bytes=1, dims=(2, 2 * 10**9, 8))
    assert PrefillAttention().seconds(operator, GPU) == pytest.approx(1e-6)
    assert PrefillAttention(tiled=True).seconds(operator, GPU) == pytest.approx(2e-6)
    # 2 blocks x 8 heads on 100 SMs, each good for half an SM
    assert PrefillAttention(occupancy=0.5).seconds(operator, GPU) == pytest.approx(1e-6 / 0.08)
    assert PrefillAttention(occupancy=50.0).seconds(operator, GPU) == pytest.approx(1e-6)


def test_decode_blocks_chains_and_ramp() -> None:
    operator = Operator("a", "attention_decode", flops=1, bytes=2 * 10**6, dims=(50, 100_000, 8))
    assert DecodeAttention().seconds(operator, GPU) == pytest.approx(1e-6)
    waves = DecodeAttention(block_s=4e-6)
    assert waves.seconds(operator, GPU) == pytest.approx((50 * 8 / 100 - 1) * 4e-6)
    one = Operator("a", "attention_decode", flops=1, bytes=2 * 10**6, dims=(12, 24_000, 8))
    assert waves.seconds(one, GPU) == pytest.approx(1e-6)  # the first wave is in the floor
    alone = Operator("a", "attention_decode", flops=1, bytes=1, dims=(1, 2000, 8))  # 100 / 8 SMs for each head
    assert DecodeAttention(chain_s_per_ktoken=3e-6).seconds(alone, GPU) == pytest.approx(6e-6)
    assert DecodeAttention(chain_s_per_ktoken=3e-6, max_splits=4).seconds(alone, GPU) == pytest.approx(1.5e-6)
    assert DecodeAttention(chain_s_per_ktoken=3e-6, max_splits=99).seconds(alone, GPU) == pytest.approx(6e-6 / 12.5)
    ramp = DecodeAttention(ramp_bytes=1e6)
    assert ramp.seconds(operator, GPU) == pytest.approx((2e6 + 1e6 * (1 - np.exp(-2.0))) / 2e12)


def test_all_reduce_takes_the_quicker_algorithm() -> None:
    form = AllReduce(
        by_gpus={
            2: Group(ring=Segment(floor_s=1e-6, bandwidth_fraction=1)),
            8: Group(
                one_shot=Segment(floor_s=2e-6, bandwidth_fraction=0.5),
                ring=Segment(floor_s=9e-6, bandwidth_fraction=0.5),
            ),
        }
    )

    def seconds(gpus: int, bytes_: float) -> float:
        sent = 2 * (gpus - 1) / gpus * bytes_
        return float(form.seconds(Operator("r", "all_reduce", 0, 0, comm_bytes=sent, dims=(gpus,)), GPU))

    assert seconds(8, 1000.0) == pytest.approx(2e-6 + 7 * 1000 / 2e11)
    assert seconds(8, 1e8) == pytest.approx(9e-6 + 1.75e8 / 2e11)
    assert seconds(3, 1e6) == pytest.approx(1e-6 + 4 / 3 * 1e6 / 4e11)  # the nearest measured group
    assert form.seconds(
        Operator("r", "all_reduce", 0, 0, comm_bytes=1.0, dims=(2,)), Machine(1e15, 1e12, None, 1)
    ) == float("inf")


def test_arrays_give_what_numbers_give() -> None:
    form = Gemm(compute_fraction=0.8, overlap_p=2.5, wave_share=0.4, small_tile_penalty=0.1, floor_s=3e-6)
    rows = np.arange(1, 700)
    together = form.seconds(product(rows, 4096, 6144), GPU)
    assert together == pytest.approx([form.seconds(product(int(m), 4096, 6144), GPU) for m in rows], rel=1e-12)
