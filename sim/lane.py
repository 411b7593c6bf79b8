"""A lane is a batch and its step clock: what an engine does with the decisions that a policy has made."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from .batch import Batch
from .request import DECODING, DONE, LEAVING, PARTIAL, WAITING, Sequence

if TYPE_CHECKING:
    from .batch import WaitingQueue
    from .kv import BlockPool


class Lane(Batch):
    """`ends[i]` is the end of step i in seconds: the step clock, from which all token times follow."""

    def __init__(self, waiting: WaitingQueue, kv: BlockPool, lag: int, max_model_len: int) -> None:
        super().__init__(waiting, kv, lag, max_model_len)
        self.ends = array("d")
        self.left: list[Sequence] = []  # whose last token is decided, for the engine to collect
        self.done: list[Sequence] = []  # whose last token is processed, likewise
        self.overrun = 0  # sequences of the last committed step whose result is thrown away

    def commit(self) -> int:
        """The decided step is under way: contexts grow, whole prompts join the decoding, those who end leave.

        Returns how many prompts became whole.
        """
        plan, step, decodes = self.plan, self.step, self.decodes
        self.step = step + 1
        self.overrun = 0
        if plan.all_decode:
            decodes.advance(step)
        elif plan.some_decode:
            left_out = [seq for seq in decodes.members if seq not in plan.entries]
            if len(left_out) < len(decodes.members):  # those taken may have been preempted since
                decodes.advance(step)
                if left_out:
                    decodes.pass_over(left_out, step)
        whole = []
        if self.kv.stores_results:
            self._note_prompts(step)
        for seq, new in plan.entries.items():
            if seq.state == PARTIAL:
                seq.computed += new
                if seq.computed >= seq.known:
                    whole.append(seq)
                    self.partial.pop(seq, None)
                else:
                    self.partial[seq] = None
        if decodes.some_end():
            self._end(step)
        for seq in whole:
            seq.joined = step
            tick = decodes.tick
            seq.spans += (step, tick, tick)
            if seq.known + 1 - seq.prompt >= seq.outputs and not (seq.stops and self.lag):
                self._leave(seq, step)
            else:
                decodes.add(seq, self.lag if seq.stops else 0)
        self.progress += len(whole)
        if self.left or (self.lag and decodes.some_end()):
            self._mark_ends(step)
        return len(whole)

    def settle(self, first: int, steps: int, grown: int) -> int:
        """Steps first ... first + steps - 1, all the same, were decided; the blocks of the first are taken already, the
        others need `grown`.

        What was to be processed between the first two is processed between their blocks; the blocks that this gave
        back are returned.
        """
        decodes, kv, last = self.decodes, self.kv, first + steps - 1
        processed = last - self.lag
        self.step = last + 1
        self.overrun = 0
        released = 0
        if self.leaving or self.late or self.prompts:
            used = kv.used
            until = min(first, processed)
            while self.processed < until and (self.leaving or self.late or self.prompts):
                self.process()
            released = used - kv.used
        if grown:
            kv.take(grown)
        if processed > self.processed:
            self.processed = processed
        decodes.advance(first, steps)
        if decodes.some_end():
            self._end(last)
            self._mark_ends(last)
        return released

    def process(self) -> None:
        """The outputs of the oldest step under way become known; those who end give back place and blocks."""
        step = self.processed
        self.processed = step + 1
        done = []
        if self.late:
            for seq in self.late.pop(step, ()):
                seq.known += 1
                if seq.known - seq.prompt >= seq.outputs:
                    if seq.last_step is None:
                        seq.last_step = step
                        self.left.append(seq)
                    self.waiting.remove(seq)
                    done.append(seq)
        if self.stopping:
            stopped = [seq for seq in self.stopping.pop(step, ()) if seq.state == DECODING]
            for seq in stopped:  # the next step did not take them
                self.decodes.drop(seq)
                self._leave(seq, step)
            if stopped:
                self.leaving[step].sort(key=lambda seq: seq.order)
        leaving = self.leaving.pop(step, ()) if self.leaving else ()
        prompts = self._prompts_of(step) if self.prompts else ()
        if prompts and self.kv.stores_in_order:
            ended = set(leaving)
            for seq, tokens in sorted({**dict.fromkeys(leaving, 0), **dict(prompts)}.items(), key=lambda x: x[0].order):
                if seq in ended:
                    self._part(seq)
                else:
                    self.kv.store(seq, tokens, tokens)
            done += leaving
        else:
            for seq in leaving:
                self._part(seq)
                done.append(seq)
            for seq, tokens in prompts:
                if seq.state != WAITING and seq not in leaving:
                    self.kv.store(seq, tokens, self._whole(seq))
        for seq in done:
            seq.state = DONE
        self.done += done
        self.gone += done

    def _part(self, seq: Sequence) -> None:
        tokens = seq.prompt + seq.outputs - 1
        self.kv.cache(seq, tokens)
        self._release(seq, tokens)

    def _note_prompts(self, step: int) -> None:
        """Whose prompts `step` computes, for the cache to be told when it is processed."""
        found = [
            (seq, seq.computed + new, seq.preemptions)
            for seq, new in self.plan.entries.items()
            if seq.state == PARTIAL and (not self.kv.stores_in_order or seq.computed + new >= seq.known)
        ]  # fmt: skip
        if found:
            self.prompts[step] = found

    def _prompts_of(self, step: int) -> list[tuple[Sequence, int]]:
        """Those of them who have not lost their KV since."""
        found = self.prompts.pop(step, ())
        return [(seq, tokens) for seq, tokens, times in found if seq.preemptions == times and seq.state != DONE]

    def _whole(self, seq: Sequence) -> int:
        """Tokens of seq that are known and computed, when what is decided has run; of a prompt under way all of it."""
        if seq.state == DECODING:
            return self.computed(seq) - self.under_way(seq)
        if seq.state == LEAVING:
            assert seq.last_step is not None
            return seq.computed - (seq.last_step >= self.processed)
        return seq.computed

    def stuck(self) -> list[Sequence]:
        """All that is in the lane and has not ended, in order of admission, then of the queue."""
        return [*self.running, *self.waiting]

    def truncate(self, seq: Sequence, steps: int, ticks: int) -> None:
        """The spans of one that has not ended hold what the first `steps` steps gave, of which `ticks` were ticks."""
        spans = seq.spans
        if seq.state == DECODING:
            spans[-1] = self.decodes.tick
        for i in range(len(spans) - 3, -1, -3):
            spans[i + 2] = min(spans[i + 2], ticks)
            started = spans[i] is None or spans[i] < steps
            if not started or (spans[i] is None and spans[i + 2] <= spans[i + 1]):
                del spans[i : i + 3]
            else:
                spans[i + 1] = min(spans[i + 1], spans[i + 2])

    def _end(self, step: int) -> None:
        for seq in self.decodes.pop_ended():
            if seq.stops and self.lag:
                seq.spans[-1] -= 1  # this step was one too many
                self.overrun += 1
                self._leave(seq, step - 1)
            else:
                self._leave(seq, step)

    def _leave(self, seq: Sequence, step: int) -> None:
        """`step` gives the last token of seq."""
        seq.state = LEAVING
        if seq.grows:
            seq.blocks = -(-seq.computed // self.kv.size)
        seq.last_step = step
        self.leaving.setdefault(step, []).append(seq)
        self.left.append(seq)

    def _mark_ends(self, step: int) -> None:
        """Those who leave with a step do so in order of admission; those who stop with it are noted."""
        for last in (step, step - 1) if self.lag else (step,):
            leaving = self.leaving.get(last)
            if leaving and len(leaving) > 1:
                leaving.sort(key=lambda seq: seq.order)
        if self.lag and self.decodes.members:
            stopping = [seq for seq in self.decodes.at_last() if seq.stops]
            if stopping:
                self.stopping[step] = stopping
