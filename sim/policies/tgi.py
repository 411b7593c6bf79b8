"""Text Generation Inference 3.3.7's router: batches that grow when enough wait, memory reserved for life.

The rules are those of its "v3" backend: queue, choice of the next batch, block allocator, batching task. Recorded
decisions of the router's own code in the tests hold it to every step; the model server's part (order of the batch,
chunks, tokens of padded batches) was recreated from its source for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from ..kv import NO_HIT, BlockPool, Hit
from ..registry import register
from ..request import Terms
from ..tgi_cache import TGICache
from .base import FCFS, Order
from .tgi_room import Padded, Reserved, fitting_padded, reservation

if TYPE_CHECKING:
    from ..batch import Batch
    from ..request import Request, Sequence
    from ..scenario import Engine

Tokens = Annotated[int, Field(ge=1, le=100_000_000)]
Chosen = list[tuple["Sequence", Hit, int]]  # with its first tokens
MOST_NEW = 1024  # outputs of a request in one go


def more_in_goes(prompt: int, asked: int, longest: int, total: int) -> int:
    """Outputs of a request that is queued anew after each MOST_NEW of them, as long as its limits allow: it is
    validated again, with what it has given as a part of its prompt."""
    if asked <= 0 or prompt > longest:
        return 0
    goes = min(asked // MOST_NEW, (total - prompt) // MOST_NEW, (longest - prompt) // MOST_NEW + 1)
    rest = asked - goes * MOST_NEW
    end = prompt + goes * MOST_NEW
    fits = rest < MOST_NEW and end <= longest and end + rest <= total
    return goes * MOST_NEW + (rest if fits else 0)


class TGIQueue(FCFS):
    """First come, first served, and what the router keeps between decisions."""

    def __init__(self, padded: bool) -> None:
        super().__init__()
        self.prefilled = -1  # last step that admitted
        self.joined = False  # to a running batch
        self.members = 0  # of the last step
        self.room: Padded | Reserved = Padded() if padded else Reserved()
        self.called = "decode"


@register("policy", "tgi")
@dataclass
class TGI:
    """Text Generation Inference 3.3.7: batches join the running one, memory is reserved for life."""

    max_concurrent_requests: Annotated[
        int, Field(ge=1, le=10_000_000, description="requests in the system; more are refused")
    ] = 128
    max_input_tokens: Annotated[
        Tokens | None, Field(description="longest prompt; null: one less than max_total_tokens")
    ] = None
    max_total_tokens: Annotated[
        Tokens | None, Field(description="prompt and outputs of a request; null: engine.max_model_len")
    ] = None
    max_batch_prefill_tokens: Annotated[Tokens, Field(description="prompt tokens computed in one step")] = 4096
    max_batch_total_tokens: Annotated[
        Tokens | None, Field(description="tokens reserved by all that run; null: what the KV cache holds")
    ] = None
    waiting_served_ratio: Annotated[
        float, Field(ge=0, le=1e6, description="without chunking: waiting / running from which a batch is admitted")
    ] = 0.3
    max_waiting_tokens: Annotated[
        int, Field(ge=0, le=10_000_000, description="without chunking: steps after which any batch is admitted")
    ] = 20
    max_batch_size: Annotated[
        Tokens | None, Field(description="sequences running at once; with chunking, of a batch that starts; null: any")
    ] = None
    support_chunking: Annotated[
        bool, Field(description="prompts are split over steps and mixed with decodes, as with flash attention")
    ] = True
    requires_padding: Annotated[bool, Field(description="a model without flash attention: batches are padded")] = False
    order: Order = None

    named_otherwise: ClassVar[dict[str, str]] = {
        "prefix_caching": "engine.enable_prefix_caching",
        "block_size": "engine.block_size",
    }

    @property
    def max_num_seqs(self) -> int:
        """For the memory of a step's activations."""
        return self.max_batch_size or min(self.max_concurrent_requests, 1024)

    def activation_tokens(self, max_model_len: int) -> int:
        return self.max_batch_prefill_tokens

    def pool(self, total: int, size: int, caching: bool) -> BlockPool:
        """One block is never used: here it is vLLM's null block, which the total lacks already."""
        if self.max_batch_total_tokens is not None:
            total = min(total, max(self.max_batch_total_tokens // size - 1, 0))
        return (TGICache if caching and not self.requires_padding else BlockPool)(total, size)

    def check(self, engine: Engine, max_model_len: int) -> str | None:
        """What its launcher refuses at its start, or None."""
        total, prefill = self.max_total_tokens or max_model_len, self.max_batch_prefill_tokens
        inputs = self.max_input_tokens or total - 1
        if inputs >= total:
            return f"max_input_tokens ({inputs}) must be less than max_total_tokens ({total})"
        if total > max_model_len:
            return f"max_total_tokens ({total}) is more than engine.max_model_len ({max_model_len})"
        if not self.support_chunking and inputs > prefill:
            return (
                f"max_batch_prefill_tokens ({prefill}) must be at least max_input_tokens ({inputs}) with"
                " support_chunking: false"
            )
        if self.requires_padding and self.support_chunking:
            return "requires_padding: true needs support_chunking: false; padded models compute whole prompts"
        return None

    def check_kv(self, kv_tokens: int, max_model_len: int) -> str | None:
        """The same, of what the KV cache holds."""
        most = kv_tokens if self.max_batch_total_tokens is None else self.max_batch_total_tokens
        total = self.max_total_tokens or max_model_len
        if total > most:
            return f"max_total_tokens ({total}) must be at most max_batch_total_tokens ({most})"
        if self.max_batch_prefill_tokens > most:
            return (
                f"max_batch_prefill_tokens ({self.max_batch_prefill_tokens}) must be at most max_batch_total_tokens"
                f" ({most})"
            )
        return None

    def queue(self) -> TGIQueue:
        return TGIQueue(self.requires_padding)

    def accept(self, request: Request, batch: Batch, in_system: int, kv_tokens: float) -> Terms | str:
        """The front end's limits. At most 1024 outputs come in one go; who may give more is queued anew."""
        if in_system >= self.max_concurrent_requests:
            return f"overloaded: {in_system} requests are in the system (max_concurrent_requests)"
        total = self.max_total_tokens or batch.max_model_len
        longest = self.max_input_tokens or total - 1
        prompt, asked = request.prompt_tokens, request.max_tokens
        asked = max(total - prompt, 0) if asked is None else asked
        new = min(asked, MOST_NEW)
        if prompt > longest:
            return f"validation: the prompt of {prompt} tokens is longer than max_input_tokens ({longest})"
        if prompt <= 0 or new <= 0:
            return "validation: the prompt is empty, or no output is asked for"
        if prompt + new > total:
            return f"validation: {prompt} + {new} tokens are more than max_total_tokens ({total})"
        if not self.requires_padding and kv_tokens < inf and prompt + new - 1 > batch.kv.total * batch.kv.size:
            return f"{prompt} + {new} tokens can never fit the {batch.kv.total} KV blocks of {batch.kv.size}"
        return Terms(new, later=more_in_goes(prompt + new, asked - new, longest, total))

    def decide(self, batch: Batch, now_s: float) -> None:
        plan, running = batch.plan, batch.running
        waiting: TGIQueue = batch.waiting  # type: ignore[assignment]
        waiting.room.update(batch)
        nothing = not running
        chunks = self._chunks(batch, waiting.members) if batch.partial else {}
        admitted: Chosen = []
        if waiting:
            admitted = self._next_batch(batch, waiting, sum(chunks.values()))
        if admitted:
            waiting.prefilled, waiting.joined = batch.step, not nothing
        if not admitted or self.support_chunking:
            batch.take_all()
            for seq in batch.partial:
                batch.allocate(seq, chunks[seq])
        for seq, hit, new in admitted:
            if self.requires_padding:
                seq.grows = 0  # there are no blocks
            batch.admit(seq, hit, new)
        if admitted:
            waiting.room.admitted(batch, [seq for seq, _, _ in admitted])
        waiting.members = len(running)
        waiting.called = "prefill" if admitted else "decode"
        if batch.partial:
            plan.repeat = 1

    def describe(self, batch: Batch) -> dict[str, Any]:
        waiting: TGIQueue = batch.waiting  # type: ignore[assignment]
        return {"call": waiting.called, "cached_blocks": getattr(batch.kv, "cached", 0)}

    def _chunks(self, batch: Batch, members: int) -> dict[Sequence, int]:
        """Prompt tokens that each of those half computed gets: the last comes first."""
        left = self.max_batch_prefill_tokens - members + 1
        chunks = {}
        for seq in reversed(batch.partial):
            chunks[seq] = new = max(min(batch.missing(seq), left), 1)
            left -= new
        return chunks

    def _next_batch(self, batch: Batch, waiting: TGIQueue, chunked: int) -> Chosen:
        """Who is admitted by this step; none where the router does not even try."""
        running, budget, most = batch.running, self.max_batch_prefill_tokens, self.max_batch_size
        if not running:
            return self._choose(batch, waiting, 0, most or inf, budget)
        waited = batch.step - waiting.prefilled
        if waiting.joined and waited == 1:  # a decode step always follows an admission
            batch.plan.repeat = 1
            return []
        if self.support_chunking:
            return self._choose(batch, waiting, 0, inf, budget - len(batch.decodes.members) - chunked)
        least = 0
        if waited < self.max_waiting_tokens:
            least = int(np.float32(len(running)) * np.float32(self.waiting_served_ratio))
        admitted = self._choose(batch, waiting, least, most - len(running) if most else inf, budget)
        if least and not admitted:
            batch.plan.repeat = min(batch.plan.repeat, self.max_waiting_tokens - waited)
        return admitted

    def _choose(self, batch: Batch, waiting: TGIQueue, least: int, most: float, budget: int) -> Chosen:
        """The heads of the queue that fit, with their hits and first tokens; their blocks are reserved."""
        kv = batch.kv
        total = self.max_batch_total_tokens or (kv.total + 1) * kv.size
        room = total - waiting.room.held
        if budget <= 0 or room <= 0 or len(waiting) < least or most <= 0:
            return []
        budget = -(-budget // kv.size) * kv.size
        if self.requires_padding:
            alike = fitting_padded(waiting, budget, room, most)
            return [(seq, NO_HIT, seq.known) for seq in alike] if len(alike) >= least else []
        found: Chosen = []
        for seq in waiting:
            hit = kv.reserve(seq, reservation(seq))
            if hit is None:
                break
            rest = seq.known - (hit.tokens or 0)
            new = min(rest, budget)
            if new < rest and not (self.support_chunking and budget):
                kv.release(seq, 0)
                break
            found.append((seq, hit, new))
            budget -= new
            if new < rest or len(found) == most:
                break
        if len(found) < least:
            for seq, _, _ in reversed(found):
                kv.release(seq, 0)
            if found and isinstance(kv, TGICache):
                batch.plan.repeat = 1  # their prompts are in the cache now
            return []
        return found
