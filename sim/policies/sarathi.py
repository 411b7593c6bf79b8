"""Sarathi-Serve's scheduler (Agrawal et al., OSDI 2024): chunks of prompts fill up steps that never stall a decode.

Written from the paper and the rules of its published artifact, with one batch in flight (no pipeline).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ..kv import NO_HIT
from ..registry import register
from .base import FCFS, Order
from .slots import decode_all

if TYPE_CHECKING:
    from ..batch import Batch

Count = Annotated[int, Field(ge=1, le=10_000_000)]


@register("policy", "sarathi")
@dataclass
class Sarathi:
    """Sarathi-Serve: all decodes in every step, and chunks of prompts up to a budget of tokens."""

    max_num_seqs: Annotated[Count, Field(description="sequences running at once")] = 128
    chunk_size: Annotated[
        Count, Field(description="tokens of a step: decodes always run, chunks of prompts get what they leave")
    ] = 512
    watermark: Annotated[
        float, Field(ge=0, lt=1, description="share of the KV blocks that an admission leaves free")
    ] = 0.01
    order: Order = None

    def activation_tokens(self, max_model_len: int) -> int:
        return max(self.chunk_size, self.max_num_seqs)

    def queue(self) -> FCFS:
        return FCFS()

    def decide(self, batch: Batch, now_s: float) -> None:
        decode_all(batch, batch.preempt)
        plan = batch.plan
        budget = self.chunk_size - (len(batch.decodes.members) if plan.all_decode else len(plan.entries))
        for seq in batch.partial:
            if budget > 0:
                new = min(batch.missing(seq), budget)
                batch.allocate(seq, new)
                budget -= new
        self._admit(batch, budget)

    def _admit(self, batch: Batch, budget: int) -> None:
        """Heads of the queue, as long as all blocks of their prompts can be had: nobody passes."""
        kv, waiting = batch.kv, batch.waiting
        watermark = int(self.watermark * kv.total)
        while waiting:
            seq = waiting.head()
            need = -(-seq.known // kv.size)
            if need > kv.total - watermark:
                waiting.remove(seq)
                batch.give_up(seq, f"{need} KV blocks can never be had: {kv.total}, less a watermark of {watermark}")
                continue
            if kv.free - need < watermark or len(batch.running) >= self.max_num_seqs or budget <= 0:
                break
            new = min(seq.known, budget)
            batch.admit(seq, NO_HIT, new, blocks=need)
            budget -= new
