"""What stands between clients and engines: it takes requests from the source, refuses, delays and dispatches them, and
tells the source and the records how they end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from math import inf, nextafter
from typing import TYPE_CHECKING, Any

from .environment import AFTER, ARRIVAL, DELIVERY, STEP_END, Environment
from .request import FINISHED, REJECTED, Request, Sequence, Terms

if TYPE_CHECKING:
    from .engine import Engine
    from .records import RequestLog
    from .routers.base import Router
    from .workload.source import Source

Progress = Callable[[float, int, int | None], None]


@dataclass(frozen=True)
class Limits:
    """What the engines of a pool can hold, in tokens; `kv_tokens` is inf where nobody is to be refused for it."""

    max_model_len: int
    kv_tokens: float
    block_size: int

    def sequence(self, request: Request, reach_s: float) -> Sequence | str:
        """The request as an engine runs it, or why it is refused: it could never run.

        Outputs are cut where the engine's memory ends, as vLLM cuts them at max_model_len.
        """
        prompt = request.prompt_tokens
        if prompt <= 0:
            return "the prompt is empty"
        if prompt >= self.max_model_len:
            return f"the prompt of {prompt} tokens leaves no room for output within max_model_len {self.max_model_len}"
        if prompt > self.kv_tokens:
            held = f"{self.kv_tokens + self.block_size} tokens, {self.kv_tokens} without the null block"
            return f"the prompt of {prompt} tokens can never fit the KV cache of {held}"
        limit = self.max_model_len - prompt
        if self.kv_tokens - prompt + 1 < limit:  # the last token is never computed
            limit = int(self.kv_tokens) - prompt + 1
        if request.max_tokens is not None and request.max_tokens < limit:
            limit = request.max_tokens
        output = request.output_tokens
        return Sequence(request, reach_s, output if output < limit else limit, limit, output < limit)


def on_terms(request: Request, reach_s: float, terms: Terms) -> Sequence:
    """The request as an engine with rules of its own runs it. One output comes in any case."""
    limit, allowed = terms.limit, terms.limit + terms.later
    gives = max(min(request.output_tokens, allowed), 1) if terms.gives is None else terms.gives
    seq = Sequence(request, reach_s, gives, limit, gives < limit)
    if terms.later and gives > limit:
        seq.outputs, seq.later = limit, (gives - limit, terms.later)
    if terms.prompt is not None:
        seq.prompt = seq.known = terms.prompt
    return seq


class FrontEnd:
    """One for a run. Draws requests one ahead from a source that cannot react, all that are known from one that can."""

    def __init__(
        self,
        env: Environment,
        source: Source,
        router: Router,
        engines: list[Engine],
        limits: Limits,
        log: RequestLog,
        front_end_s: float,
        end_s: float,
        progress: Progress | None,
    ) -> None:
        self.env, self.source, self.router, self.engines, self.limits, self.log = (
            env, source, router, engines, limits, log,
        )  # fmt: skip
        self.front_end_s, self.end_s, self.progress = front_end_s, end_s, progress
        self.rejected = 0
        self.first_rejected: Sequence | None = None
        self.under_way: dict[int, Sequence] = {}  # by index: dispatched, and not yet at their engine
        # Heap: step ends that finish a request, for a router that tracks them.
        self._ends: list[tuple[float, int, int, int, Sequence]] = []
        self._accept = getattr(engines[0].policy, "accept", None)  # the policy's own rules; it keeps nothing itself
        self._coming = [0] * len(engines)  # dispatched to each, and not yet there
        for engine in engines:
            engine.on_done = self._closed if progress is not None else log.close
            engine.on_refused = self._refused
            if router.tracks or source.reacts:
                engine.on_left = self._left
            engine.more_may_come = partial(self._more_may_come, engine)
            engine.watched = getattr(router, "watches_kv", False)
            router.join(engine.number, engine)
        self._pull()

    def _pull(self, caused: bool = False) -> None:
        while (request := self.source.next()) is not None:
            if request.arrival_s >= self.end_s:
                return
            if caused:
                # Whose end has brought it about has left the engine, where it matters how many are there.
                self.env.at(request.arrival_s, self._caused, request, ARRIVAL if self._accept is None else AFTER)
            else:
                self.env.at(request.arrival_s, self._arrive, request)
            if not self.source.reacts:
                return

    def _arrive(self, event: Any) -> None:
        request: Request = event._value
        if not self.source.reacts:
            self._pull()
        self._submit(request, request.arrival_s + self.front_end_s)

    def _caused(self, event: Any) -> None:
        """A step's end brought it about, so the decision at that very instant cannot see it yet."""
        request: Request = event._value
        self._submit(request, nextafter(request.arrival_s + self.front_end_s, inf))

    def _submit(self, request: Request, reach_s: float) -> None:
        seq: Sequence | str = ""
        if self._accept is None:
            seq = self.limits.sequence(request, reach_s)
            if isinstance(seq, str):
                self._reject(request, seq)
                return
        router = self.router
        if router.tracks:
            ends, now_s = self._ends, self.env._now
            while ends and ends[0][0] < now_s:
                _, number, _, step, left = heappop(ends)
                if left.last_step == step:
                    router.finished(number)
        number = router.choose(request)
        engine = self.engines[number]
        if self._accept is not None:
            terms = self._accept(request, engine.lane, engine.present + self._coming[number], self.limits.kv_tokens)
            if isinstance(terms, str):
                if router.tracks:
                    router.finished(number)
                self._reject(request, terms)
                return
            seq = on_terms(request, reach_s, terms)
        assert not isinstance(seq, str)
        seq.engine = number
        if self.front_end_s:
            self.under_way[request.index] = seq
            self._coming[number] += 1
            self.env.at(reach_s, self._reach, seq)
        else:
            engine.submit(seq)

    def _reach(self, event: Any) -> None:
        seq: Sequence = event._value
        del self.under_way[seq.request.index]
        self._coming[seq.engine] -= 1
        self.engines[seq.engine].submit(seq)

    def _more_may_come(self, engine: Engine) -> bool:
        """Whether a request may still reach an engine that gives nothing itself. Wake-ups of engines do not tell: some
        are out of date."""
        if any(rank < STEP_END or rank >= AFTER for _, rank, *_ in self.env._queue):
            return True
        return self.source.reacts and any(other.working for other in self.engines if other is not engine)

    def _reject(self, request: Request, reason: str) -> None:
        seq = Sequence(request, request.arrival_s, 0, 0, False)
        seq.status, seq.reason = REJECTED, reason
        self.rejected += 1
        self.first_rejected = self.first_rejected or seq
        self._closed(seq)
        if self.source.reacts:
            self.env.at(self.env.now, self._delivered, (seq, REJECTED, None), DELIVERY)

    def _refused(self, seq: Sequence) -> None:
        """The engine's queue refused it, which frees its client."""
        self.rejected += seq.status == REJECTED
        if seq.status == REJECTED:
            self.first_rejected = self.first_rejected or seq
        self._closed(seq)
        now_s = self.env._now
        if self.router.tracks:
            heappush(self._ends, (now_s, seq.engine, seq.request.index, -1, seq))
            seq.last_step = -1
        if self.source.reacts:
            self.env.at(now_s, self._delivered, (seq, seq.status, seq.last_step), DELIVERY + 1 + seq.engine)

    def _left(self, seq: Sequence, end_s: float) -> None:
        step = seq.last_step
        assert step is not None
        if self.router.tracks:
            heappush(self._ends, (end_s, seq.engine, seq.request.index, step, seq))
        if self.source.reacts:
            time_s = end_s + self.log.response_s
            self.env.at(time_s, self._delivered, (seq, FINISHED, step), DELIVERY + 1 + seq.engine)

    def _delivered(self, event: Any) -> None:
        seq, status, step = event._value
        if seq.last_step != step:  # its last token was lost, and has to be computed again
            return
        self.source.done(seq.request, self.env.now, status)
        self._pull(caused=True)

    def _closed(self, seq: Sequence) -> None:
        log = self.log
        log.close(seq)
        if self.progress is not None and not log.closed & 511:
            self.progress(self.env.now, log.closed, self.source.total)
