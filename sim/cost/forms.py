"""How long one launch of an operator takes: the roofline's terms, each refined by a few numbers fitted to kernels.

Every form has the two numbers that a human reads first, the fractions of peak FLOP/s and of bandwidth reached, and a
floor per launch. Left at their defaults (fractions 1, no floor, no refinement) they give max(FLOPs / peak, bytes /
bandwidth), the ideal roofline; whatever they are set to, no launch takes less than that. Counts are numbers or numpy
arrays, and so are the seconds.

Where the refinements come from: thread blocks are placed on the GPU's multiprocessors (SMs) in waves, so work that does
not fill a wave takes as long as one that does; terms that overlap in time, but not wholly, add up as a p-norm.
"""

from dataclasses import dataclass
from functools import reduce
from math import inf
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from ..checking import Section

if TYPE_CHECKING:
    from .operators import Operator

Fraction = Annotated[float, Field(gt=0, le=1)]
Count = Any  # int, float or an array of them; the result is alike
PassName = Literal["embedding", "norms", "rope", "kv_write", "activation"]  # as `operators` names them
GroupSize = Annotated[int, Field(strict=False, ge=2, le=1024)]  # keys of YAML files are read as text
Power = Annotated[
    float | None,
    Field(ge=1, le=32, description="how the terms overlap: (a^p + b^p)^(1/p), 1 their sum; null: the greater"),
]
TILES = ((256, 128), (128, 128), (128, 64), (64, 64), (64, 32))  # rows x columns of a product that one block computes
ROWS = 128  # query rows of a prefill attention block


@dataclass(frozen=True)
class Machine:
    """What a form must know of a GPU: FLOP/s, bytes/s, bytes/s, and how many multiprocessors."""

    flop_per_s: float
    byte_per_s: float
    link_byte_per_s: float | None
    sms: int


class Terms(NamedTuple):
    """Seconds of one launch, part by part: those that overlap, and what comes on top."""

    compute: Count = 0.0
    memory: Count = 0.0
    network: Count = 0.0
    blocks: Count = 0.0  # placing thread blocks
    chain: Count = 0.0  # the longest walk of one block over its context
    floor: Count = 0.0  # the launch, and the pass that quantises its input


class Efficiency(Section):
    """What operators of one kind reach."""

    compute_fraction: Annotated[Fraction, Field(description="of the peak FLOP/s")] = 1.0
    bandwidth_fraction: Annotated[
        Fraction, Field(description="of the memory bandwidth; of the link's for all_reduce")
    ] = 1.0
    floor_s: Annotated[float, Field(ge=0, le=1, description="per launch, s")] = 0.0
    overlap_p: Power = None

    def terms(self, operator: "Operator", gpu: Machine) -> Terms:
        """The parts of one launch."""
        return Terms(
            operator.flops / (self.compute_fraction * gpu.flop_per_s),
            operator.bytes / (self.bandwidth_fraction * gpu.byte_per_s),
            floor=self.floor_s,
        )

    def seconds(self, operator: "Operator", gpu: Machine) -> Count:
        """One launch."""
        *parts, floor = self.terms(operator, gpu)
        return combine(self.overlap_p, *parts) + floor


class Gemm(Efficiency):
    """Matrix products (m x k)(k x n)."""

    wave_share: Annotated[
        float, Field(ge=0, le=1, description="0: arithmetic grows smoothly; 1: in whole waves of tiles over the SMs")
    ] = 0.0
    small_tile_penalty: Annotated[
        float, Field(ge=0, le=1, description="a tile of 1/x of the largest reaches x^-penalty of its FLOP/s")
    ] = 0.0
    chain_s_per_kdepth: Annotated[
        float, Field(ge=0, le=1, description="a tile walks the inner dimension: s per 1,000 of k")
    ] = 0.0
    quantise_fraction: Annotated[
        Fraction | None,
        Field(description="of the memory bandwidth, by the pass that writes fp8 inputs; null: no such pass"),
    ] = None

    band_excess: Annotated[
        dict[Annotated[int, Field(strict=False, ge=1)], Annotated[float, Field(ge=0, le=10)]],
        Field(
            description="engines choose kernels by rows: last row of a band -> how much more its first row costs,"
            " falling to nothing at the last; a band begins behind the one before it, the first at a quarter"
        ),
    ] = {}

    def terms(self, operator: "Operator", gpu: Machine) -> Terms:
        found = super().terms(operator, gpu)
        if self.wave_share:
            flops = self.in_waves(operator, gpu.sms)
            found = found._replace(compute=flops / (self.compute_fraction * gpu.flop_per_s))
        if self.chain_s_per_kdepth:
            found = found._replace(chain=operator.dims[1] * (self.chain_s_per_kdepth / 1000.0))
        if self.quantise_fraction is not None and operator.narrow:
            m, k, _ = operator.dims
            found = found._replace(floor=found.floor + 3.0 * m * k / (self.quantise_fraction * gpu.byte_per_s))
        if self.band_excess:
            more = self.in_bands(operator.dims[0])
            found = found._replace(compute=found.compute * more, memory=found.memory * more, chain=found.chain * more)
        return found

    def in_bands(self, m: Count) -> Count:
        """By how much the band in which m rows lie prolongs the kernel; 1 outside all."""
        tops = np.array(sorted(self.band_excess), dtype=np.float64)
        begins = np.concatenate([tops[:1] / 4, tops[:-1]])
        excess = np.array([self.band_excess[top] for top in sorted(self.band_excess)])
        at = np.minimum(np.searchsorted(tops, m), len(tops) - 1)
        within = (m > begins[at]) & (m <= tops[at])
        share = (tops[at] - m) / np.maximum(tops[at] - begins[at] - 1, 1.0)
        return 1.0 + within * excess[at] * share

    def in_waves(self, operator: "Operator", sms: int) -> Count:
        """FLOPs, those of half-filled tiles and waves included as far as `wave_share` says."""
        (m, k, n), flops = operator.dims, operator.flops
        largest, best = TILES[0][0] * TILES[0][1], inf
        for rows, columns in TILES:
            waves = np.ceil(np.ceil(m / rows) * np.ceil(n / columns) / sms)
            spent = waves * (sms * rows * columns * 2.0) * k
            best = np.minimum(best, spent * (largest / (rows * columns)) ** self.small_tile_penalty)
        return flops ** (1.0 - self.wave_share) * np.maximum(best, flops) ** self.wave_share


class Experts(Efficiency):
    """Products of a mixture's experts: each touched expert computes its rows in blocks."""

    block_rows: Annotated[
        float, Field(ge=1, le=1024, description="rows to which those of an expert are rounded up, on average")
    ] = 1.0

    def terms(self, operator: "Operator", gpu: Machine) -> Terms:
        found = super().terms(operator, gpu)
        if self.block_rows > 1:
            rows, touched, k, n = operator.dims
            least_rows = touched * self.block_rows
            flops = 2.0 * k * n * greatest(rows, least_rows)
            found = found._replace(compute=flops / (self.compute_fraction * gpu.flop_per_s))
        return found


class PrefillAttention(Efficiency):
    """Attention of prompt chunks, over what is before them too."""

    tiled: Annotated[bool, Field(description=f"whole blocks of {ROWS} query rows are computed")] = False
    occupancy: Annotated[
        float | None,
        Field(gt=0, le=1000, description="(blocks x heads x this) / SMs of the peak, at most all of it; null: all"),
    ] = None

    def terms(self, operator: "Operator", gpu: Machine) -> Terms:
        blocks, in_blocks, heads = operator.dims
        reached = self.compute_fraction * gpu.flop_per_s
        if self.occupancy is not None:
            reached = reached * least(1.0, self.occupancy * blocks * heads / gpu.sms)
        flops = in_blocks if self.tiled else operator.flops
        return super().terms(operator, gpu)._replace(compute=flops / reached)


class DecodeAttention(Efficiency):
    """Attention of one new token per sequence."""

    block_s: Annotated[
        float,
        Field(ge=0, le=1, description="per wave of (sequence, key/value head) over the SMs beyond the first, s"),
    ] = 0.0
    chain_s_per_ktoken: Annotated[
        float, Field(ge=0, le=1, description="a block walks its context: s per 1,000 tokens, divided by the splits")
    ] = 0.0
    max_splits: Annotated[float, Field(ge=1, le=1000, description="parts into which one context is split")] = 1.0
    ramp_bytes: Annotated[
        float, Field(ge=0, le=1e9, description="reading fewer than this costs up to this much more")
    ] = 0.0

    def terms(self, operator: "Operator", gpu: Machine) -> Terms:
        found = super().terms(operator, gpu)
        n, context, kv_heads = operator.dims
        if self.ramp_bytes:
            moved = operator.bytes + self.ramp_bytes * (1.0 - np.exp(-operator.bytes / self.ramp_bytes))
            found = found._replace(memory=moved / (self.bandwidth_fraction * gpu.byte_per_s))
        if self.block_s:
            found = found._replace(blocks=greatest(n * kv_heads / gpu.sms - 1.0, 0.0) * self.block_s)
        if self.chain_s_per_ktoken:
            splits = least(self.max_splits, greatest(1.0, gpu.sms / (n * kv_heads)))
            found = found._replace(chain=context / n * (self.chain_s_per_ktoken / 1000.0) / splits)
        return found

    @property
    def linear(self) -> bool:
        """Whether each part is linear in the context."""
        return not self.ramp_bytes


class Pass(Section):
    """What one element-wise pass reaches."""

    bandwidth_fraction: Annotated[Fraction, Field(description="of the memory bandwidth")] = 1.0
    floor_s: Annotated[float, Field(ge=0, le=1, description="of its launches together, s")] = 0.0


class Passes(Efficiency):
    """Element-wise work: alike for all passes, but for those that have numbers of their own."""

    by_pass: Annotated[
        dict[PassName, Pass],
        Field(description="engines fuse some passes and make others of many launches: pass -> its own numbers"),
    ] = {}

    def terms(self, operator: "Operator", gpu: Machine) -> Terms:
        found, own = super().terms(operator, gpu), self.by_pass.get(operator.name)  # type: ignore[call-overload]
        if own is None:
            return found
        return found._replace(memory=operator.bytes / (own.bandwidth_fraction * gpu.byte_per_s), floor=own.floor_s)


class Segment(Section):
    """One algorithm of a collective: floor + bytes on the busiest link / bandwidth."""

    floor_s: Annotated[float, Field(ge=0, le=1, description="s")]
    bandwidth_fraction: Annotated[Fraction, Field(description="of the link's bandwidth in one direction")]


class Group(Section):
    """An all-reduce among so many GPUs: the quicker of two algorithms."""

    one_shot: Annotated[Segment | None, Field(description="each GPU reads all of every other's: (n - 1) x bytes")] = (
        None
    )
    ring: Annotated[Segment | None, Field(description="2 (n - 1) / n x bytes")] = None


class AllReduce(Efficiency):
    """Sums over the GPUs of a tensor-parallel group. The operator counts what the ring algorithm sends per GPU."""

    by_gpus: Annotated[
        dict[GroupSize, Group], Field(description="number of GPUs -> algorithms; the nearest number is taken")
    ] = {}

    def terms(self, operator: "Operator", gpu: Machine) -> Terms:
        sent, link = operator.comm_bytes, gpu.link_byte_per_s
        if link is None:
            return Terms(network=inf, floor=self.floor_s)
        (gpus,) = operator.dims
        if not self.by_gpus:
            return Terms(network=sent / (self.bandwidth_fraction * link), floor=self.floor_s)
        near = self.by_gpus[min(self.by_gpus, key=lambda number: (abs(number - gpus), number))]
        found = [
            times * sent / (segment.bandwidth_fraction * link) + segment.floor_s
            for segment, times in ((near.ring, 1.0), (near.one_shot, gpus / 2))
            if segment is not None
        ]
        floor = min(segment.floor_s for segment in (near.ring, near.one_shot) if segment is not None)
        return Terms(network=(found[0] if len(found) == 1 else least(*found)) - floor, floor=floor)


def combine(power: float | None, *terms: Count) -> Count:
    """Terms that overlap: the greatest, or their p-norm."""
    there = [term for term in terms if isinstance(term, np.ndarray) or term]  # most forms have two parts
    if len(there) < 2:
        return there[0] if there else 0.0
    if power is None:
        return reduce(greatest, there)
    if power == 1.0:
        return sum(there)
    return sum(term**power for term in there) ** (1.0 / power)


def greatest(a: Count, b: Count) -> Count:
    return np.maximum(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else max(a, b)


def least(a: Count, b: Count) -> Count:
    return np.minimum(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else min(a, b)
