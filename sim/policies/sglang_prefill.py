"""SGLang's prefill pass: who of the queue gets into the next step, by an estimate of the memory that all will need."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from ..kv import NO_HIT, Hit
from ..request import DECODING, DONE
from .sglang_decode import lose

if TYPE_CHECKING:
    from ..batch import Batch
    from ..request import Sequence
    from ..sglang_cache import SGLangCache
    from .sglang import SGLang
    from .sglang_queue import Waiting

GO, OTHER, NO_TOKEN = range(3)
CLIP = 4096  # no request is thought to give more tokens than that
Row = tuple["Sequence", "Hit | None", int]  # hit: None where it goes on with its prompt


class PrefillPass:
    """One pass. Tokens, in whole pages where they are charged."""

    def __init__(self, policy: SGLang, batch: Batch, queue: Waiting) -> None:
        self.policy, self.batch, self.queue = policy, batch, queue
        self.kv: SGLangCache = batch.kv  # type: ignore[assignment]
        self.size = self.kv.size
        self.places = policy.places(batch)
        mix = len(queue.run) if policy.mixes else 0
        self.in_left: float = policy.max_prefill_tokens - mix
        self.chunk_left: float = policy.chunk - mix
        self.now: float = mix  # tokens charged now
        self.total = mix + self._left_of_all(queue.run)  # and to their ends
        self.chosen: list[Row] = []
        self.half: Sequence | None = None
        self.victims: list[Sequence] = []
        self.state = self.look()
        self._ends: list[tuple[float, int]] | None = None  # of the check without a cache: (left, occupied)

    # -- estimates

    def ratio_of(self, seq: Sequence) -> float:
        return 1 if seq.request.ignore_eos else self.queue.ratio

    def left_of(self, seq: Sequence) -> float:
        """Tokens that a running one is thought to give yet."""
        return min(seq.limit - self.batch.known_outputs(seq), CLIP) * self.ratio_of(seq)

    def _left_of_all(self, run: list[Sequence]) -> float:
        """The sum of `left_of`, written out: every pass needs it of all that run."""
        batch, ratio = self.batch, self.queue.ratio
        tick, last = batch.decodes.tick + 1, batch.step - 1
        flying = last >= batch.processed
        taken = flying and batch.decodes.taken == last
        found: list[float] = []
        for seq in run:
            if seq.state != DECODING:
                found.append(self.left_of(seq))
                continue
            left = seq.limit - tick + seq.born + seq.prompt
            if flying and (seq.joined == last or (taken and seq.skipped != last)):
                left += 1
            if left > CLIP:
                left = CLIP
            found.append(left if seq.request.ignore_eos else left * ratio)
        return sum(found)

    def room(self) -> int:
        return (self.kv.free + self.kv.evictable) * self.size

    def pages(self, tokens: int) -> int:
        return -(-tokens // self.size) * self.size

    def charge(self, tokens: int, outputs: int) -> None:
        tokens = self.pages(tokens)
        self.total += tokens + self.size + outputs
        self.now += tokens + self.size
        self.in_left -= tokens
        self.chunk_left -= tokens

    def look(self) -> int:
        room = self.room()
        if room - self.total <= 0 or room - self.now <= 0:
            return NO_TOKEN
        return OTHER if self.in_left <= 0 or self.chunk_left <= 0 else GO

    # -- the pass

    def run(self) -> None:
        if self.queue.half is not None:
            self._go_on(self.queue.half)
        preempting = self.policy.preempts
        for seq in list(self.queue):
            if self.state == OTHER:
                break
            rows = self.places - len(self.batch.running) + (self.queue.half is not None)
            if len(self.chosen) >= min(self.places - len(self.queue.run), rows):
                self.queue.full = True
            if self.queue.full and not (preempting and self._preempt_for(seq)):
                break
            if not self._try(seq):
                if self.state == NO_TOKEN:  # found by a try: with nobody waiting it says nothing
                    self.queue.full = bool(self.chosen or self.queue.run)
                break

    def _go_on(self, half: Sequence) -> None:
        """The half-computed prompt comes first, even where the memory may not suffice for its outputs."""
        asked: float = min(self.chunk_left, int(self.room() - self.total))
        if asked <= 0:
            asked = self.chunk_left
        asked = self.queue.cut_for_shorter(asked, self.chunk_left, self.size)
        rest = half.known - half.computed
        new = int(min(rest, asked, self.room() + half.blocks * self.size - half.computed))
        if new <= 0:
            self.half, self.state = half, OTHER  # SGLang would run out of memory
            return
        if new == rest:
            self.charge(new, min(half.limit, CLIP))
        else:
            self.charge(new, 0)
            self.half = half
        half.mark.asked = half.known
        self.chosen.append((half, None, new))
        self.state = self.look()

    def _try(self, seq: Sequence) -> bool:
        """One of the queue; False ends the pass."""
        kv, policy, size = self.kv, self.policy, self.size
        hit, node = kv.match(seq, seq.known - 1)
        seq.mark.asked, seq.mark.hit = seq.known, hit * size
        most = policy.prefill_max_requests
        if most is not None and len(self.chosen) >= most:
            self.state = OTHER
            return False
        need = seq.known - hit * size
        if seq.request.ignore_eos and not kv.on:
            return self._try_uncached(seq, need)
        kv.lock(node)
        if not self._fits(seq, need):
            kv.unlock(node)
            return False
        if self.pages(need) > self.chunk_left:
            new = int(self.chunk_left // size * size)
            self.half = seq
            self.charge(new, 0)
        else:
            new = need
            self.charge(new, min(seq.limit, CLIP))
        self.chosen.append((seq, Hit(hit, 0, (node,)) if hit else NO_HIT, new))
        self.state = self.look()
        return self.state == GO

    def _fits(self, seq: Sequence, need: int) -> bool:
        outputs = min(max(seq.limit - (seq.known - seq.prompt), 0), CLIP)
        if not need + outputs + self.size < self.room() - self.total:
            self.state = NO_TOKEN
        elif self.chunk_left == inf and self.chosen and self.pages(need) >= self.in_left:
            self.state = OTHER
        elif self.pages(need) > self.chunk_left and (
            self.chunk_left // self.size <= 0 or (self.half is not None and self.queue.kind == "shortest-prefill-first")
        ):
            self.state = OTHER
        else:
            return True
        return False

    def _try_uncached(self, seq: Sequence, need: int) -> bool:
        """Without a cache, one that gives all its tokens is tried by who will end when."""
        pages = self.pages(need) + self.size
        room = self.room()
        if not pages <= min(room - self.now, room - self.total) or not self._outlasts(seq, room - self.now - pages):
            self.state = NO_TOKEN
            return False
        if need <= self.chunk_left:
            self.chosen.append((seq, NO_HIT, need))
            self.charge(need, min(seq.limit, CLIP))
        elif self.chunk_left <= 0 or self.half is not None:  # SGLang would split both, and forget the first one's rest
            self.state = OTHER
            return False
        else:
            new = int(self.chunk_left)
            self.chosen.append((seq, NO_HIT, new))
            self.half = seq
            self.charge(new, 0)
        self.state = self.look()
        return self.state == GO

    def _outlasts(self, seq: Sequence, have: float) -> bool:
        """Whether all find room until each has ended, if they end in the order that is thought."""

        def row(each: Sequence) -> tuple[float, int]:
            out = self.batch.known_outputs(each)
            return each.limit * self.ratio_of(each) - out, each.prompt + out

        if self._ends is None:
            rows = [row(each) for each in (seq, *self.queue.run, *(chosen for chosen, _, _ in self.chosen))]
            self._ends = sorted([each for each in rows if each[0] > 0], key=lambda each: each[0])
        elif (mine := row(seq))[0] > 0:
            ends = self._ends
            at = next((i for i, each in enumerate(ends) if each[0] >= mine[0]), len(ends) - 1)  # before the last
            ends.insert(at, mine)
        freed = 0
        for i, (left, occupied) in enumerate(self._ends):
            those = len(self._ends) - i
            if have + freed - left * those <= those:
                return False
            freed += occupied
        return True

    def _preempt_for(self, seq: Sequence) -> bool:
        """Less urgent ones lose their KV, if that suffices for seq."""
        queue, batch, policy = self.queue, self.batch, self.policy
        mark = seq.mark
        short = mark.asked - mark.hit + min(seq.limit, CLIP) - (self.room() - self.total)
        found: list[Sequence] = []
        there = [each for each in queue.run if each.state != DONE]
        for victim in sorted(there, key=lambda s: (-queue.urgency(s), -s.mark.entry)):
            if not queue.urgency(victim) - queue.urgency(seq) > policy.priority_scheduling_preemption_threshold:
                break
            found.append(victim)
            short -= self.left_of(victim)
            if short <= 0:
                break
        if not found or short > 0:
            return False
        for victim in [each for each in queue.run if each in found]:
            self.total -= self.left_of(victim)
            queue.run.remove(victim)
            lose(batch, victim)
            self.kv.make_room(-(-20 * len(queue.run) // self.size))
        self.victims += found
        return True


def room_for(kv: SGLangCache, chosen: list[Row]) -> None:
    """Room for all that they compute, with a page more for each where pages have several tokens."""
    size = kv.size
    tokens = sum([new for _, _, new in chosen])
    kv.make_room(tokens if size == 1 else -(-(tokens + size * len(chosen)) // size))
