"""TensorRT-LLM's in-flight batching: capacity first, then a budget of tokens.

The rules are those of the Python scheduler of its PyTorch backend (`SimpleUnifiedScheduler`; late 1.3 release
candidates), whose decisions were recorded. The executor's loop and the KV cache manager were recreated from the source
for these recordings.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from dataclasses import dataclass
from heapq import merge
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..kv import NO_HIT, BlockPool, Hit
from ..registry import register
from ..request import DECODING, PARTIAL, WAITING, Terms
from ..trtllm_cache import TRTLLMCache
from .trtllm_budget import Prompts, TokenBudget, growth, standstill

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..batch import Batch
    from ..request import Request, Sequence
    from ..scenario import Engine

Count = Annotated[int, Field(ge=1, le=10_000_000)]


class ActiveList:
    """The waiting queue, and before it those of the active list that hold nothing, new or paused, each in its place."""

    def __init__(self, by_priority: bool) -> None:
        self.by_priority = by_priority
        self.line: deque[Sequence] = deque()
        self.unserved: list[Sequence] = []  # by place
        self.places = 0
        self.last = 0  # no place of one that runs is greater
        self.reserved = 0  # blocks that those who run may need to their ends
        self.waited = 0  # iterations that held prompts back

    def __len__(self) -> int:
        return len(self.unserved) + len(self.line)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.unserved
        yield from self.line

    def head(self) -> Sequence:
        return self.unserved[0] if self.unserved else self.line[0]

    def push(self, seq: Sequence) -> None:
        if self.by_priority:
            insort(self.line, seq, key=lambda s: -s.request.priority)
        else:
            self.line.append(seq)

    def put_back(self, seq: Sequence) -> None:
        insort(self.unserved, seq, key=lambda s: s.order)

    def remove(self, seq: Sequence) -> None:
        self.unserved.remove(seq)

    def enlist(self, most: int) -> None:
        """Heads of the queue join the active list, at most so many."""
        while most > 0 and self.line:
            seq = self.line.popleft()
            self.places += 1
            seq.order = self.places
            self.unserved.append(seq)
            most -= 1


@register("policy", "trtllm")
@dataclass
class TRTLLM:
    """TensorRT-LLM: in-flight batching; memory set aside to the end, or requests paused when it runs out."""

    max_batch_size: Annotated[Count, Field(description="requests in the active list")] = 2048
    max_num_tokens: Annotated[Count, Field(description="tokens computed in one step")] = 8192
    capacity_scheduler_policy: Annotated[
        Literal["GUARANTEED_NO_EVICT", "MAX_UTILIZATION", "STATIC_BATCH"],
        Field(
            description="memory to the end for all who run; as many as fit now, the last ones paused; batch by batch"
        ),
    ] = "GUARANTEED_NO_EVICT"
    enable_chunked_prefill: Annotated[
        bool,
        Field(description="a prompt may be split over steps; false: longer prompts than max_num_tokens are refused"),
    ] = False
    context_chunking_policy: Annotated[
        Literal["FIRST_COME_FIRST_SERVED", "EQUAL_PROGRESS"],
        Field(description="who gets the tokens that do not suffice for all prompts"),
    ] = "FIRST_COME_FIRST_SERVED"
    chunk_unit_size: Annotated[
        Count | None, Field(description="chunks are multiples of so many tokens; null: of engine.block_size")
    ] = None
    waiting_queue_policy: Annotated[
        Literal["fcfs", "priority"], Field(description="order of the waiting queue; priority: greatest first")
    ] = "fcfs"
    enable_prefix_aware_scheduling: Annotated[
        bool,
        Field(description="prefix hits count in the decision, and a prompt waits for one that computes its prefix"),
    ] = True
    batch_wait_timeout_iters: Annotated[
        int, Field(ge=0, le=10_000_000, description="steps for which prompts may be held back while the batch is small")
    ] = 0
    batch_wait_max_tokens_ratio: Annotated[
        float, Field(ge=0, le=1, description="small is a batch below this share of max_num_tokens")
    ] = 0.0
    disable_overlap_scheduler: Annotated[
        bool, Field(description="decide each step when the last one has ended, not while it runs")
    ] = False

    kernels: ClassVar[str] = "trtllm"
    named_otherwise: ClassVar[dict[str, str]] = {
        "max_seq_len": "engine.max_model_len",
        "tokens_per_block": "engine.block_size",
        "enable_block_reuse": "engine.enable_prefix_caching",
    }

    @property
    def async_scheduling(self) -> bool:
        return not self.disable_overlap_scheduler

    @property
    def max_num_seqs(self) -> int:
        """For the memory of a step's activations."""
        return self.max_batch_size

    def activation_tokens(self, max_model_len: int) -> int:
        return self.max_num_tokens

    def pool(self, total: int, size: int, caching: bool) -> BlockPool:
        return (TRTLLMCache if caching else BlockPool)(total, size)

    def check(self, engine: Engine, max_model_len: int) -> str | None:
        """What it refuses at its start, or None."""
        unit = self.chunk_unit_size
        if unit is not None and unit % engine.block_size:
            return f"chunk_unit_size ({unit}) must be a multiple of engine.block_size ({engine.block_size})"
        return None

    def queue(self) -> ActiveList:
        return ActiveList(self.waiting_queue_policy == "priority")

    def accept(self, request: Request, batch: Batch, in_system: int, kv_tokens: float) -> Terms | str:
        prompt, longest = request.prompt_tokens, batch.max_model_len
        if prompt <= 0:
            return "the prompt is empty"
        if prompt >= longest:
            return f"the prompt of {prompt} tokens leaves no room for output within max_model_len {longest}"
        if not self.enable_chunked_prefill and prompt > self.max_num_tokens:
            return f"the prompt of {prompt} tokens is longer than max_num_tokens ({self.max_num_tokens}), unchunked"
        limit = longest - prompt
        if request.max_tokens is not None:
            limit = min(limit, request.max_tokens)
        if prompt + limit > kv_tokens:
            return f"{prompt} + {limit} tokens can never fit the KV cache of {kv_tokens} tokens"
        return Terms(limit)

    def never(self, batch: Batch) -> str:
        return standstill(self, batch)

    # -- a decision

    def decide(self, batch: Batch, now_s: float) -> None:
        waiting: ActiveList = batch.waiting  # type: ignore[assignment]
        for seq in batch.gone:
            if seq.mark is not None:
                waiting.reserved -= seq.mark
                seq.mark = None
        waiting.enlist(self.max_batch_size - len(batch.running) - len(waiting.unserved))
        decodes = batch.decodes.members
        if self.capacity_scheduler_policy == "MAX_UTILIZATION":
            paused, generating, prompts = self._max_utilization(batch, waiting)
        else:
            paused = []
            generating, prompts = self._no_evict(batch, waiting)
        chunks: dict[Sequence, tuple[int, int]] = {}
        if not prompts and not paused and generating is None:
            batch.take_all()
            return
        if prompts:
            budget = TokenBudget(self, batch)
            chunks, generating = budget.share(generating, prompts)
            if chunks and decodes and generating != []:
                n = len(decodes) if generating is None else len(generating)
                if budget.waits(waiting.waited, n, chunks):
                    waiting.waited += 1
                    batch.plan.repeat, chunks = 1, {}
                else:
                    waiting.waited = 0
        elif generating is not None:
            generating = generating[: self.max_num_tokens]
        if generating is not None and len(generating) == len(decodes):
            generating = None
        for seq in paused:
            waiting.reserved -= seq.mark
            seq.mark = None
            batch.preempt(seq)
        self._launch(batch, waiting, generating, chunks)

    def describe(self, batch: Batch) -> dict[str, Any]:
        waiting: ActiveList = batch.waiting  # type: ignore[assignment]
        entries = batch.plan.entries
        prompts = [seq for seq in entries if seq.state != DECODING]
        return {
            "order": [*prompts, *in_order(batch.decodes.members)],
            "running": len(batch.running) + len(waiting.unserved),
            "pausing": len(waiting.unserved) + len(batch.partial),
            "waiting": len(waiting.line),
        }

    # -- capacity: who may run. `generating` None: all that decode

    def _no_evict(self, batch: Batch, waiting: ActiveList) -> tuple[list[Sequence] | None, Prompts]:
        """All that generate have their blocks set aside to their end; prompts in order, until one gets not its own."""
        kv, decodes = batch.kv, batch.decodes.members
        generating = None if len(decodes) <= self.max_num_tokens else in_order(decodes)
        if self.capacity_scheduler_policy == "STATIC_BATCH" and len(batch.running) > len(batch.partial):
            return generating, []
        if not batch.partial and not waiting.unserved:
            return generating, []
        free = kv.free + kv.all_held - waiting.reserved + sum(s.mark - s.blocks for s in batch.partial)
        prompts: Prompts = []
        computing = self._computing(batch)
        for seq in in_places(batch.partial, waiting.unserved):
            hit = self._hit(batch, seq)
            if seq.state != WAITING:
                need = seq.mark - seq.blocks
            elif skips(batch, seq, computing):
                continue
            else:
                need = whole(batch, seq) - referenced(batch, seq, hit)
            if need > free:
                break
            free -= need
            prompts.append((seq, hit))
        if prompts and isinstance(kv, TRTLLMCache):
            batch.plan.repeat = 1  # hits may change
        return generating, prompts

    def _max_utilization(
        self, batch: Batch, waiting: ActiveList
    ) -> tuple[list[Sequence], list[Sequence] | None, Prompts]:
        """One step's blocks, in the order of the active list; the last started are paused for those in front."""
        kv, decodes, unserved = batch.kv, batch.decodes, waiting.unserved
        size = kv.size
        if len(decodes.members) <= self.max_num_tokens and (not unserved or unserved[0].order > waiting.last):
            last = sum([seq.computed % size == 0 for seqs in batch.leaving.values() for seq in seqs])
            room = kv.free - decodes.next_growth() - last
            if room >= 0:  # all that run stand before all that wait, and get their blocks
                return [], None, self._behind(batch, waiting, room)
        batch.plan.repeat = 1
        active = list(in_places(batch.running, unserved))
        end, at, used, free = len(active), 0, 0, kv.free
        paused: list[Sequence] = []
        through: Prompts = []
        computing = self._computing(batch)
        while at < end:
            seq = active[at]
            hit = self._hit(batch, seq)
            if seq.state == WAITING:
                if skips(batch, seq, computing):
                    at += 1
                    continue
                need = -(-seq.known // size) - referenced(batch, seq, hit)
            else:
                need = int(seq.state != PARTIAL and batch.computed(seq) % size == 0)
            if used + need <= free:
                used += need
                through.append((seq, hit))
                at += 1
                continue
            victim = next((j for j in range(end - 1, at - 1, -1) if active[j].state != WAITING), None)
            if victim is None:
                break
            seq = active[victim]
            free += kv.only_by(seq, batch.computed(seq), paused)
            paused.append(seq)
            end = victim
        waiting.last = max([s.order for s in batch.running if s not in paused], default=0)
        if not self.enable_chunked_prefill:  # prompts and generating requests mix
            return paused, [], through
        prompts = [each for each in through if each[0].state in (WAITING, PARTIAL)]
        return paused, [seq for seq, _ in through if seq.state == DECODING], prompts

    def _behind(self, batch: Batch, waiting: ActiveList, room: int) -> Prompts:
        prompts: Prompts = [(seq, NO_HIT) for seq in in_order(batch.partial)]
        if not waiting.unserved:
            return prompts
        computing = self._computing(batch)
        for seq in waiting.unserved:
            hit = self._hit(batch, seq)
            if skips(batch, seq, computing):
                continue
            room -= -(-seq.known // batch.kv.size) - referenced(batch, seq, hit)
            if room < 0:
                break
            prompts.append((seq, hit))
            batch.plan.repeat = 1
        return prompts

    def _hit(self, batch: Batch, seq: Sequence) -> Hit:
        """What the decision knows of its prefix match."""
        if seq.state != WAITING or not self.enable_prefix_aware_scheduling:
            return NO_HIT
        return batch.kv.lookup(seq)

    def _computing(self, batch: Batch) -> set[Any] | None:
        """The blocks that prompts are just computing: who lacks one of them is passed over. None: nobody is."""
        kv = batch.kv
        if not isinstance(kv, TRTLLMCache) or not self.enable_prefix_aware_scheduling:
            return None
        if self.capacity_scheduler_policy == "STATIC_BATCH":
            return None
        return {kv.first_missing(seq) for seq in batch.partial} - {None} if batch.partial else set()

    # -- launch

    def _launch(
        self,
        batch: Batch,
        waiting: ActiveList,
        generating: list[Sequence] | None,
        chunks: dict[Sequence, tuple[int, int]],
    ) -> None:
        """Blocks are taken: prompts first, those that stay incomplete before the others, then those that generate."""
        kv, plan = batch.kv, batch.plan
        order = ends_last(chunks, {seq: new for seq, (new, _) in chunks.items()})
        first = [seq for seq in order if seq.state == WAITING]
        hits = kv.begin(first, growth(batch, generating)) if isinstance(kv, TRTLLMCache) else {}
        if chunks:
            for seq in order:
                new = chunks[seq][0]
                if seq.state != WAITING:
                    batch.allocate(seq, new)
                    continue
                hit = hits.get(seq, NO_HIT)
                if found := hit.tokens:
                    ends = found + new >= seq.known
                    new = seq.known - found if ends else (found + new) // kv.size * kv.size - found
                waiting.last = max(waiting.last, seq.order)
                seq.mark = whole(batch, seq)
                waiting.reserved += seq.mark
                batch.admit(seq, hit, new, blocks=-(-seq.known // kv.size), order=seq.order)
            plan.entries = {seq: plan.entries[seq] for seq in ends_last(order, plan.entries)}
        if generating is None:
            batch.take_all()
        else:
            for seq in generating:
                batch.allocate(seq, 1)


def in_order(seqs: Iterable[Sequence]) -> list[Sequence]:
    return sorted(seqs, key=lambda seq: seq.order)


def in_places(running: dict[Sequence, None], unserved: list[Sequence]) -> Iterator[Sequence]:
    """The active list, but for those of its members that are not asked for."""
    if not running:
        return iter(unserved)
    return merge(in_order(running), unserved, key=lambda seq: seq.order)


def ends_last(seqs: Iterable[Sequence], new: dict[Sequence, int]) -> list[Sequence]:
    """Those whose prompt stays incomplete, then those whose prompt ends."""
    return sorted(seqs, key=lambda seq: seq.computed + new[seq] >= seq.known)


def whole(batch: Batch, seq: Sequence) -> int:
    """Blocks that it may need to its end; the last output's is counted, though it is never computed."""
    return -(-(seq.prompt + seq.limit) // batch.kv.size)


def referenced(batch: Batch, seq: Sequence, hit: Hit) -> int:
    """Blocks of its hit that others hold, so that it needs no new ones for them."""
    return min(hit.blocks - hit.idle, (seq.known - 1) // batch.kv.size)


def skips(batch: Batch, seq: Sequence, computing: set[Any] | None) -> bool:
    """Whether it lacks a block that another computes; else others who lack the same will."""
    if computing is None:
        return False
    missing = batch.kv.first_missing(seq)  # type: ignore[attr-defined]
    if missing is None:
        return False
    if missing in computing:
        return True
    computing.add(missing)
    return False
