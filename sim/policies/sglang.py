"""SGLang 0.5.23's scheduler: prefill first, a radix cache, and an estimate of the memory that all will need.

The rules are those of its own `Scheduler`, `SchedulePolicy` and `PrefillAdder`; recorded schedules in the tests hold it
to every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..kv import BlockPool
from ..registry import register
from ..request import DECODING, DONE, Terms
from ..sglang_cache import SGLangCache
from .sglang_decode import decode, drop_last
from .sglang_prefill import PrefillPass, room_for
from .sglang_queue import SchedulePolicy, Waiting

if TYPE_CHECKING:
    from ..batch import Batch
    from ..gpus import GPU
    from ..request import Request
    from ..scenario import Engine

Count = Annotated[int, Field(ge=1, le=10_000_000)]
INIT_RATIO, MIN_FACTOR, DECAY_STEPS = 0.7, 0.14, 600


@register("policy", "sglang")
@dataclass
class SGLang:
    """SGLang 0.5.23: prefill first, prefix hits by a radix tree, retraction when an estimate was wrong."""

    max_running_requests: Annotated[
        Count | None, Field(description="sequences running at once; null: by the KV cache, 2048 to 4096")
    ] = None
    max_prefill_tokens: Annotated[Count, Field(description="prompt tokens after which a step admits no other")] = 16384
    chunked_prefill_size: Annotated[
        int | None,
        Field(
            ge=-1, le=10_000_000, description="prompt tokens in one step; -1: prompts are not split; null: by the GPU"
        ),
    ] = None
    schedule_policy: Annotated[SchedulePolicy, Field(description="order of the queue")] = "fcfs"
    schedule_conservativeness: Annotated[
        float, Field(ge=0, le=100, description="more: fewer are admitted for fear of retractions")
    ] = 1.0
    enable_mixed_chunk: Annotated[bool, Field(description="decodes ride in the steps that compute prompts")] = False
    prefill_max_requests: Annotated[Count | None, Field(description="prompts in one step; null: any")] = None
    prefill_decode_interval: Annotated[
        int, Field(ge=0, le=10_000_000, description="decisions without prefill after each prefill step")
    ] = 0
    prefill_decode_interval_min_bs: Annotated[
        int, Field(ge=0, le=10_000_000, description="but not while fewer run")
    ] = 0
    max_queued_requests: Annotated[Count | None, Field(description="who waits; others are refused; null: any")] = None
    enable_priority_scheduling: Annotated[bool, Field(description="more urgent requests first, greatest priority")] = (
        False
    )
    schedule_low_priority_values_first: Annotated[bool, Field(description="smallest priority first instead")] = False
    priority_scheduling_preemption_threshold: Annotated[
        int, Field(ge=0, le=10_000_000, description="by more than this a waiting one must be more urgent to preempt")
    ] = 10
    disable_priority_preemption: Annotated[bool, Field(description="priorities order the queue only")] = False
    retraction_policy: Annotated[
        Literal["length", "priority"], Field(description="who keeps its memory: most outputs, or most urgent first")
    ] = "length"
    disable_overlap_schedule: Annotated[
        bool, Field(description="decide each step when the last one has ended, not while it runs")
    ] = False

    named_otherwise: ClassVar[dict[str, str]] = {
        "page_size": "engine.block_size",
        "context_length": "engine.max_model_len",
        "disable_radix_cache": "engine.enable_prefix_caching: false",
        "mem_fraction_static": "engine.gpu_memory_utilization",
        "max_total_tokens": "what the KV cache holds, engine.num_gpu_blocks_override blocks",
    }
    decides_idle = True

    @staticmethod
    def defaults_for(gpu: GPU) -> dict[str, int]:
        """The default of SGLang's server: longer chunks on larger GPUs."""
        for below_gib, tokens in ((20, 2048), (60, 4096), (160, 8192)):
            if gpu.memory_gib < below_gib:
                return {"chunked_prefill_size": tokens}
        return {"chunked_prefill_size": 16384}

    @property
    def async_scheduling(self) -> bool:
        return not self.disable_overlap_schedule

    @property
    def chunk(self) -> float:
        """Tokens of a chunk; infinite where prompts are not split."""
        size = self.chunked_prefill_size
        return size if size is not None and size > 0 else inf

    @property
    def mixes(self) -> bool:
        return self.enable_mixed_chunk and self.chunk < inf

    @property
    def preempts(self) -> bool:
        return self.enable_priority_scheduling and not self.disable_priority_preemption

    @property
    def max_num_seqs(self) -> int:
        """For the memory of a step's activations."""
        return self.max_running_requests or 2048

    def activation_tokens(self, max_model_len: int) -> int:
        return int(min(self.chunk, max(self.max_prefill_tokens, max_model_len)))

    def pool(self, total: int, size: int, caching: bool) -> BlockPool:
        return SGLangCache(total, size, caching)

    def check(self, engine: Engine, max_model_len: int) -> str | None:
        """What SGLang refuses at its start, or None."""
        size = self.chunked_prefill_size
        if size is not None and size > 0 and size % engine.block_size:
            page = engine.block_size
            return f"chunked_prefill_size ({size}) must be a multiple of the page size, engine.block_size ({page})"
        if self.schedule_policy == "shortest-prefill-first" and not engine.enable_prefix_caching:
            return "schedule_policy shortest-prefill-first needs the radix cache: engine.enable_prefix_caching: true"
        if self.enable_priority_scheduling and self.schedule_policy not in ("fcfs", "lof"):
            return f"enable_priority_scheduling: true needs schedule_policy fcfs or lof, not {self.schedule_policy}"
        if self.retraction_policy == "priority" and not self.enable_priority_scheduling:
            return "retraction_policy priority needs enable_priority_scheduling: true; without it, length"
        return None

    def places(self, batch: Batch) -> int:
        """Rows: who may run at once."""
        tokens = batch.kv.total * batch.kv.size
        by_kv = min(max(tokens // batch.max_model_len * 512, 2048), 4096)
        return min(self.max_running_requests or by_kv, tokens // 2)

    def queue(self) -> Waiting:
        return Waiting(
            self.schedule_policy,
            self.enable_priority_scheduling,
            self.schedule_low_priority_values_first,
            self.max_queued_requests,
            self._start,
        )

    def accept(self, request: Request, batch: Batch, in_system: int, kv_tokens: float) -> Terms | str:
        """Outputs are cut by the context and by the whole KV. A prompt beyond both is computed as one token and ends
        with its first output; where what cannot fit is refused, so is it."""
        kv, n, context = batch.kv, request.prompt_tokens, batch.max_model_len
        capacity = kv.total * kv.size
        longest = min(context, capacity) - 1
        if n < 1 or n >= context:
            return f"the prompt of {n} tokens is empty, or leaves no room for output within max_model_len {context}"
        asked = request.max_tokens
        if asked is not None and n + asked > context:
            return f"{n} + {asked} tokens are more than max_model_len {context}"
        limit = max(0, min(context if asked is None else asked, longest - n - 1))
        limit = max(0, min(limit, capacity - -(-n // kv.size) * kv.size - kv.size - 1))
        if n < longest - 5:
            return Terms(limit)
        if kv_tokens < inf:
            return f"the prompt of {n} tokens is too long: of context and KV cache {longest - 6} tokens can be computed"
        return Terms(limit, prompt=1, gives=1)

    # -- a decision

    def decide(self, batch: Batch, now_s: float) -> None:
        queue: Waiting = batch.waiting  # type: ignore[assignment]
        plan = batch.plan
        self._catch_up(batch, queue)
        queue.step, queue.retracted = "none", []
        if not queue and not batch.running and batch.processed == batch.step:
            queue.ratio = self._start
        if queue.half is not None and not queue.stored:
            batch.kv.checkpoint(queue.half, queue.half.computed)  # type: ignore[attr-defined]
            queue.stored = True
        self._join(batch, queue)
        decodes_only = False
        if queue.countdown > 0:
            if len(queue.run) < self.prefill_decode_interval_min_bs:
                queue.countdown = 0
            else:
                queue.countdown -= 1
                decodes_only = plan.again = True
        if decodes_only or not self._prefill(batch, queue):
            decode(self, batch, queue)
            waits = queue and not (queue.full and not self.preempts)
            if queue.half is not None or waits:
                full = len(queue.run) >= self.prefill_decode_interval_min_bs
                plan.repeat = 1 + queue.countdown if full else 1
        if plan.preempted or plan.aborted:
            plan.again = True

    def describe(self, batch: Batch) -> dict[str, Any]:
        queue: Waiting = batch.waiting  # type: ignore[assignment]
        kv, plan = batch.kv, batch.plan
        prompts = [seq for seq in plan.entries if seq.state != DECODING]
        decoding = queue.last[0][len(prompts) :] if queue.step == "mixed" and queue.last else queue.run
        lost = [seq.request.id for seq in queue.retracted]
        return {
            "order": [*prompts, *decoding],
            "kind": queue.step,
            "retracted": lost,
            "preempted": [*lost, *(s.request.id for s in plan.preempted if s not in queue.retracted)],
            "free": kv.free * kv.size,
            "evictable": kv.evictable * kv.size,
            "running": len(queue.run),
            "ratio": queue.ratio,
        }

    @property
    def _start(self) -> float:
        return min(INIT_RATIO * self.schedule_conservativeness, 1)

    def decayed(self, ratio: float) -> float:
        floor, decay = self._decay
        return max(ratio - decay, floor)

    @property
    def _decay(self) -> tuple[float, float]:
        """The least ratio, and what each decode step takes off."""
        start = self._start
        floor = MIN_FACTOR * start
        return floor, (start - floor) / DECAY_STEPS

    def _catch_up(self, batch: Batch, queue: Waiting) -> None:
        """What the steps of a stretch after its first one did, had each been decided by itself."""
        more, queue.seen = batch.step - queue.seen - 1, batch.step
        if more > 0 and queue.step == "decode":
            ratio, floor, decay = queue.ratio, *self._decay
            for _ in range(more):
                if ratio <= floor:
                    break
                ratio = max(ratio - decay, floor)
            queue.ratio = ratio
            queue.work += queue.stale * more
            full = len(queue.run) >= self.prefill_decode_interval_min_bs
            queue.countdown = max(queue.countdown - more, 0) if full else 0
            for seq in queue.fresh:
                seq.mark.work = queue.work
        queue.fresh.clear()

    def _join(self, batch: Batch, queue: Waiting) -> None:
        """The last prefill step's requests join the decode batch, those who have ended leave it."""
        if queue.last is not None:
            seqs, half, tokens = queue.last
            rest = [seq for seq in seqs if seq is not half and seq.state != DONE]
            if len(rest) < len(seqs):
                queue.full = False
            if rest:
                if not queue.run:
                    queue.full, queue.stale = False, tokens
                queue.run += rest
            queue.last = None
        if batch.gone:
            before = len(queue.run)
            queue.run = [seq for seq in queue.run if seq.state != DONE]
            if len(queue.run) < before:
                queue.full = False

    # -- prefill

    def _prefill(self, batch: Batch, queue: Waiting) -> bool:
        """A step that computes prompts, if there is one."""
        if not queue.run or self.preempts:
            queue.full = False
        if queue.half is None:
            if queue.full or not queue:
                return False
            places = self.places(batch)
            if min(places - len(queue.run), places - len(batch.running)) <= 0 and not self.preempts:
                queue.full = True
                return False
        if queue:
            queue.order(batch)
        tried = PrefillPass(self, batch, queue)
        tried.run()
        if tried.chosen:
            self._launch(batch, queue, tried)
        for victim in () if tried.chosen else tried.victims:
            batch.enqueue(victim)
        return bool(tried.chosen)

    def _launch(self, batch: Batch, queue: Waiting, tried: PrefillPass) -> None:
        chosen = tried.chosen
        kv: SGLangCache = batch.kv  # type: ignore[assignment]
        room_for(kv, chosen)
        for seq, hit, new in chosen:
            if hit is None:
                batch.allocate(seq, new)
            else:
                batch.admit(seq, hit, new)
        for victim in tried.victims:
            batch.enqueue(victim)
        queue.half, queue.stored = tried.half, False
        mixed = False
        if self.mixes and queue.run:
            drop_last(batch, queue)
            need = batch.decodes.next_growth()
            kv.make_room(need)
            if queue.run and kv.free >= need:
                kv.make_room(len(queue.run))
                batch.take_all()
                mixed = True
        seqs = [seq for seq, _, _ in chosen]
        tokens = sum([new for _, _, new in chosen])
        if mixed:
            tokens += len(batch.decodes.members)
            if self.preempts:
                for seq in queue.run:
                    seq.mark.asked = seq.prompt + batch.known_outputs(seq)
            queue.lowest -= len(chosen)
            first = queue.lowest
        else:
            first = queue.highest
            queue.highest += len(chosen)
        for place, seq in enumerate(seqs, first + 1):
            seq.order = place
        if mixed:
            seqs += queue.run
            queue.run = []
        queue.work += tokens
        queue.last = seqs, queue.half, tokens
        queue.step = "mixed" if mixed else "prefill"
        queue.countdown = self.prefill_decode_interval
