"""vLLM's first scheduler (engine "v0", as in 0.6.x): prompts first and by themselves, preemption also by swapping.

Written from its documents and published rules: `Scheduler._schedule_default`, block manager, single sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ..kv import NO_HIT, Hit
from ..registry import register
from .base import FCFS
from .slots import decode_all

if TYPE_CHECKING:
    from ..batch import Batch
    from ..request import Sequence
    from ..scenario import Engine

Count = Annotated[int, Field(ge=1, le=10_000_000)]
GIB = 2**30


class V0Queue(FCFS):
    """First come, first served. Those swapped out are older than all others who wait, so they stand in front."""

    def __init__(self) -> None:
        super().__init__()
        self.swapped: dict[Sequence, int] = {}  # KV blocks of each in the CPU's memory
        self.blocks = 0  # all of them


@register("policy", "vllm_v0")
@dataclass
class VLLMv0:
    """vLLM 0.6 (engine v0): a step computes prompts or decodes, never both; preempts by recomputing or swapping."""

    max_num_seqs: Annotated[Count, Field(description="sequences running at once")] = 256
    max_num_batched_tokens: Annotated[
        Count | None, Field(description="prompt tokens computed in one step; null: max_model_len, at least 2048")
    ] = None
    preemption_mode: Annotated[
        Literal["recompute", "swap"] | None,
        Field(description="whether KV that is taken away is computed again or kept by the CPU; null: computed again"),
    ] = None
    swap_space: Annotated[
        float, Field(ge=0, le=1e6, allow_inf_nan=False, description="CPU memory for swapped KV, GiB per GPU")
    ] = 4.0
    pcie_gb_per_s: Annotated[
        float, Field(gt=0, le=1e6, description="between a GPU and the CPU, 10^9 bytes/s; not vLLM's own")
    ] = 25.0
    watermark: Annotated[
        float, Field(ge=0, lt=1, description="share of the KV blocks that an admission leaves free")
    ] = 0.01

    block_bytes: int = field(init=False, default=0)  # of a KV block on each GPU

    def begin(self, block_bytes: int) -> None:
        self.block_bytes = block_bytes

    def activation_tokens(self, max_model_len: int) -> int:
        return self.max_num_batched_tokens or max(max_model_len, 2048)

    def check(self, engine: Engine, max_model_len: int) -> str | None:
        """What vLLM refuses at its start, or None."""
        budget = self.max_num_batched_tokens
        if budget and budget < max_model_len:
            return (
                f"max_num_batched_tokens ({budget}) is less than max_model_len ({max_model_len}), and prompts are not"
                " split; raise it, or lower engine.max_model_len"
            )
        if budget and budget < self.max_num_seqs:
            return f"max_num_batched_tokens ({budget}) is less than max_num_seqs ({self.max_num_seqs})"
        return None

    def queue(self) -> V0Queue:
        return V0Queue()

    def decide(self, batch: Batch, now_s: float) -> None:
        plan = batch.plan
        waiting: V0Queue = batch.waiting  # type: ignore[assignment]
        if not waiting.swapped:
            self._admit(batch)
        if plan.entries:
            return
        decode_all(batch, lambda seq: self._preempt(batch, waiting, seq))
        if waiting.swapped and not plan.preempted:
            self._swap_in(batch, waiting)

    def _admit(self, batch: Batch) -> None:
        """Heads of the queue with their whole prompts, as long as they fit: a step of prompts only."""
        kv, waiting = batch.kv, batch.waiting
        watermark = int(self.watermark * kv.total)
        budget = limit = self.activation_tokens(batch.max_model_len)
        while waiting:
            seq = waiting.head()
            need = -(-seq.known // kv.size)
            if seq.known > limit or need > kv.total - watermark:
                waiting.remove(seq)
                what = f"{need} KV blocks can never be had: {kv.total}, less a watermark of {watermark}"
                if seq.known > limit:
                    what = f"{seq.known} tokens to compute are more than max_num_batched_tokens ({limit})"
                batch.give_up(seq, what)
                continue
            if kv.free - need < watermark or seq.known > budget or len(batch.running) >= self.max_num_seqs:
                break
            batch.admit(seq, NO_HIT, seq.known)
            budget -= seq.known

    def _preempt(self, batch: Batch, waiting: V0Queue, seq: Sequence) -> None:
        if self.preemption_mode != "swap":
            batch.preempt(seq)
            return
        blocks = -(-batch.computed(seq) // batch.kv.size)
        batch.preempt(seq, lose=True)  # nothing is under way: steps are decided one by one
        if (waiting.blocks + blocks) * self.block_bytes > self.swap_space * GIB:
            batch.give_up(seq, f"{blocks} KV blocks find no room in swap_space; vLLM would end here")
            return
        waiting.put_back(seq)
        waiting.swapped[seq] = blocks
        waiting.blocks += blocks
        batch.plan.transfer_bytes += blocks * self.block_bytes

    def _swap_in(self, batch: Batch, waiting: V0Queue) -> None:
        """The oldest first, each if its blocks and one more are there. It decodes in this very step."""
        kv, failed = batch.kv, False
        watermark = int(self.watermark * kv.total)
        while waiting.swapped:
            seq = waiting.head()
            blocks = waiting.swapped[seq]
            never = blocks + 1 > kv.total - watermark
            if not never and (kv.free - blocks - 1 < watermark or len(batch.running) >= self.max_num_seqs):
                break
            del waiting.swapped[seq]
            waiting.blocks -= blocks
            if never:
                waiting.remove(seq)
                failed = True
                batch.give_up(seq, f"{blocks} swapped KV blocks and one more never fit again; vLLM would wait for ever")
                continue
            # One token to compute, all others there: a step that decodes it is a prompt of one token.
            batch.admit(seq, Hit(tokens=seq.known - 1), 1)
            batch.plan.transfer_bytes += blocks * self.block_bytes
        # With nobody swapped any more, prompts may come again: at once, if this step computes nothing.
        batch.plan.again = failed and bool(waiting) and not batch.plan
