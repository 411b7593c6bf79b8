"""Neither batching nor KV cache: where lectures on inference begin. What it costs shows what both buy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..registry import register
from .base import FCFS, Order

if TYPE_CHECKING:
    from ..batch import Batch


@register("policy", "naive")
@dataclass
class Naive:
    """No batching and no KV cache: one request at a time, each token computes all tokens before it anew."""

    order: Order = None

    def queue(self) -> FCFS:
        return FCFS()

    def decide(self, batch: Batch, now_s: float) -> None:
        plan = batch.plan
        if batch.running:
            batch.take_all()
            plan.anew = True
        else:
            seq = batch.waiting.head()
            hit = batch.kv.reserve(seq, 0)  # nothing is kept
            assert hit is not None
            batch.admit(seq, hit, seq.known)
