"""vLLM 0.32's scheduler: continuous batching with chunked prefill and preemption by recomputation.

The rules are those of its own `Scheduler` and `AsyncScheduler` (engine "v1"), one full-attention KV group, no
speculative decoding; recorded schedules in the tests hold it to every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ..kv import BlockPool
from ..prefix import PrefixCache
from ..registry import register
from ..request import LEAVING
from .base import FCFS, ByPriority, Order

if TYPE_CHECKING:
    from ..batch import Batch
    from ..gpus import GPU
    from ..scenario import Engine

Count = Annotated[int, Field(ge=1, le=10_000_000)]


@register("policy", "vllm")
@dataclass
class VLLM:
    """vLLM 0.32: continuous batching, chunked prefill, preemption by recomputation."""

    max_num_seqs: Annotated[
        Count | None, Field(description="sequences running at once; null: vLLM's default for the GPU, 256 or 1024")
    ] = None
    max_num_batched_tokens: Annotated[
        Count | None,
        Field(description="tokens computed in one step; null: vLLM's default for the GPU, 2048, 8192 or 16384"),
    ] = None
    enable_chunked_prefill: Annotated[
        bool, Field(description="a prompt may be split over steps; false: a prompt waits until it fits one step")
    ] = True
    scheduling_policy: Annotated[
        Literal["fcfs", "priority"], Field(description="order of the queue, and who is preempted")
    ] = "fcfs"
    long_prefill_token_threshold: Annotated[
        int, Field(ge=0, le=10_000_000, description="most prompt tokens of one request in one step; 0: no limit")
    ] = 0
    long_prefill_token_threshold_adaptive: Annotated[
        bool, Field(description="that limit is at least the budget divided by the requests in the system")
    ] = False
    watermark: Annotated[
        float, Field(ge=0, lt=1, description="share of the KV blocks that an admission leaves free")
    ] = 0.0
    scheduler_reserve_full_isl: Annotated[
        bool, Field(description="admit a request only if its whole prompt fits the free KV blocks")
    ] = True
    async_scheduling: Annotated[bool, Field(description="decide each step while the one before it runs")] = True
    max_num_active_seqs: Annotated[
        Count | None, Field(description="cap on running sequences below max_num_seqs; null: none")
    ] = None
    order: Order = None

    def pool(self, total: int, size: int, caching: bool) -> BlockPool:
        return (PrefixCache if caching else BlockPool)(total, size)

    @staticmethod
    def defaults_for(gpu: GPU) -> dict[str, int]:
        """The defaults of vLLM's server: larger batches on GPUs of 70 GiB and more, but not on A100."""
        large = gpu.memory_gib >= 70 and "a100" not in gpu.name.lower()
        tokens = (16384 if gpu.memory_gib >= 160 else 8192) if large else 2048
        return {"max_num_seqs": 1024 if large else 256, "max_num_batched_tokens": tokens}

    def check(self, engine: Engine, max_model_len: int) -> str | None:
        """What vLLM refuses at its start, or None."""
        budget, seqs = self.max_num_batched_tokens, self.max_num_seqs
        if self.order is not None and self.scheduling_policy != "fcfs":
            return (
                f"scheduling_policy: {self.scheduling_policy} and order: {self.order['name']} contradict each other;"
                " leave one of the two out"
            )
        if budget and seqs and budget < seqs:
            return f"max_num_batched_tokens ({budget}) is less than max_num_seqs ({seqs}); it must be at least that"
        if budget and not self.enable_chunked_prefill and budget < max_model_len:
            return (
                f"max_num_batched_tokens ({budget}) is less than max_model_len ({max_model_len}) with chunked prefill"
                " off, so longer prompts would block the queue for ever; raise it, lower engine.max_model_len, or set"
                " enable_chunked_prefill: true"
            )
        if self.long_prefill_token_threshold > max_model_len:
            return (
                f"long_prefill_token_threshold ({self.long_prefill_token_threshold}) is greater than max_model_len"
                f" ({max_model_len})"
            )
        return None

    def queue(self) -> FCFS | ByPriority:
        return ByPriority() if self.scheduling_policy == "priority" else FCFS()

    def decide(self, batch: Batch, now_s: float) -> None:
        budget: int = self.max_num_batched_tokens  # type: ignore[assignment]
        chunk = self._chunk(batch) if self.long_prefill_token_threshold else inf
        if self.order is not None and batch.waiting:
            self._give_way(batch)
        if batch.steady(budget):
            batch.take_all()
            budget -= len(batch.decodes.members)
        else:
            budget = self._take_running(batch, budget, chunk)
        if batch.waiting and not batch.plan.preempted:
            self._admit(batch, budget, chunk)
            if batch.waiting and batch.hit_may_grow(batch.waiting.head()):
                batch.plan.repeat = 1

    def _give_way(self, batch: Batch) -> None:
        """Not vLLM's: under an order that displaces, some who run lose their blocks to a head that finds no room."""
        waiting: Any = batch.waiting
        if not hasattr(waiting, "displaced"):
            return
        head, kv = waiting.head(), batch.kv
        while (seq := waiting.displaced(batch)) is not None:
            hit = batch.lookup(head)
            watermark = int(self.watermark * (kv.total + 1)) if batch.running else 0
            room = (kv.free - hit.idle + hit.blocks - watermark) * kv.size
            if len(batch.running) < self._seats and head.known <= room:
                batch.plan.repeat = 1  # it waits for something else, and whether it finds room may change
                return
            batch.preempt(seq)

    @property
    def _seats(self) -> int:
        return self.max_num_active_seqs or self.max_num_seqs  # type: ignore[return-value]

    def _chunk(self, batch: Batch) -> float:
        """Most prompt tokens of one request in one step. One that is alone is not limited."""
        requests = len(batch.running) + len(batch.waiting)
        if requests <= 1:
            return inf
        chunk, budget = self.long_prefill_token_threshold, self.max_num_batched_tokens
        return max(chunk, budget // requests) if self.long_prefill_token_threshold_adaptive and budget else chunk

    def _take_running(self, batch: Batch, budget: int, chunk: float) -> int:
        """In order of admission; who finds no block preempts, in the end itself, and then the rest gets nothing."""
        waiting: Any = batch.waiting
        for seq in list(batch.running):
            if budget <= 0:
                break
            if seq not in batch.running or seq.state == LEAVING:
                continue
            new = min(batch.missing(seq), int(chunk) if chunk < budget else budget)
            while not batch.allocate(seq, new):
                victim = waiting.victim(batch.running)
                budget += batch.preempt(victim)
                if victim is seq:
                    return budget
            budget -= new
        return budget

    def _admit(self, batch: Batch, budget: int, chunk: float) -> None:
        """Heads of the queue, until one does not fit: nobody passes it."""
        kv, running, waiting = batch.kv, batch.running, batch.waiting
        size = kv.size
        most = self._seats
        watermark = int(self.watermark * (kv.total + 1))  # of all blocks, the null block among them
        while waiting and budget > 0 and len(running) < most:
            seq = waiting.head()
            hit = batch.lookup(seq)
            held = hit.blocks * size
            new = seq.known - held
            if new > chunk:
                new = int(chunk)
            if new > budget:
                if not self.enable_chunked_prefill:
                    break
                new = budget
            room = (kv.free - hit.idle + hit.blocks - (watermark if running else 0)) * size
            if held + new > room or (self.scheduler_reserve_full_isl and seq.known > room):
                break
            batch.admit(seq, hit, new)
            budget -= new
