"""Orca's scheduler (Yu et al., OSDI 2022): batches change at every iteration, memory is reserved for life.

Written from the paper, its Algorithm 1, with one batch in flight (no pipeline of workers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ..registry import register
from .base import FCFS, Order

if TYPE_CHECKING:
    from ..batch import Batch


@register("policy", "orca")
@dataclass
class Orca:
    """Orca: iteration-level scheduling, KV reserved for the longest output that a request may have."""

    max_batch_size: Annotated[int, Field(ge=1, le=10_000_000, description="sequences running at once")] = 32
    order: Order = None

    @property
    def max_num_seqs(self) -> int:
        """For the memory of a step's activations."""
        return self.max_batch_size

    def queue(self) -> FCFS:
        return FCFS()

    def decide(self, batch: Batch, now_s: float) -> None:
        """All that run, and whoever fits: first come, first served, whole prompts beside the decodes."""
        batch.take_all()
        while batch.waiting and len(batch.running) < self.max_batch_size:
            seq = batch.waiting.head()
            hit = batch.kv.reserve(seq, seq.prompt + seq.limit - 1)  # the last output is never computed
            if hit is None:
                break
            batch.admit(seq, hit, seq.known)
