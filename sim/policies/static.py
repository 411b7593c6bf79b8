"""Request-level batching, as in FasterTransformer behind Triton: a batch runs until its last sequence ends."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ..kv import NO_HIT
from ..registry import register
from .base import FCFS, Order

if TYPE_CHECKING:
    from ..batch import Batch
    from ..request import Sequence


def start(batch: Batch, seqs: list[Sequence]) -> None:
    """A batch of these starts: prompts padded to the longest, KV blocks for the longest sequence each."""
    for seq in seqs:
        batch.kv.reserve(seq, batch.max_model_len)
        batch.admit(seq, NO_HIT, seq.known)
    batch.plan.padded_prompt = max(batch.plan.entries.values())


def carry_on(batch: Batch, rows: int) -> None:
    """All that run decode; of the batch's rows those that have ended are computed too."""
    batch.take_all()
    batch.plan.padding = rows - len(batch.decodes.members)


class StaticQueue(FCFS):
    """First come, first served, and the rows of the batch that runs."""

    rows = 0


@register("policy", "static")
@dataclass
class Static:
    """Static batching: waits for a full batch or a delay, pads it, and runs it until its last sequence ends."""

    batch_size: Annotated[int, Field(ge=1, le=100_000, description="sequences that make a full batch")] = 32
    max_queue_delay_s: Annotated[
        float, Field(ge=0, le=1e9, allow_inf_nan=False, description="longest wait for a full batch, in seconds")
    ] = 0.1
    return_results: Annotated[
        Literal["as_each_ends", "end_of_batch"],
        Field(description="tokens stream and each sequence returns as it ends, or all return when the batch ends"),
    ] = "as_each_ends"
    order: Order = None

    @property
    def delivers_whole(self) -> bool:
        return self.return_results == "end_of_batch"

    def reserve_tokens(self, max_model_len: int) -> int:
        """As FasterTransformer allocates at its start: every row for the longest sequence."""
        return self.batch_size * max_model_len

    def queue(self) -> StaticQueue:
        return StaticQueue()

    def decide(self, batch: Batch, now_s: float) -> None:
        waiting: StaticQueue = batch.waiting  # type: ignore[assignment]
        if batch.running:
            carry_on(batch, waiting.rows)
            return
        start_s = now_s
        if len(waiting) < self.batch_size:
            start_s = min(seq.reach_s for seq in waiting) + self.max_queue_delay_s
        if start_s <= now_s:
            waiting.rows = min(self.batch_size, len(waiting))
            start(batch, list(islice(waiting, waiting.rows)))
        else:
            batch.plan.wake_at_s = start_s
