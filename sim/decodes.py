"""The sequences of a lane that decode, as running totals: nothing here grows with their number."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from .request import DECODING

if TYPE_CHECKING:
    from .request import Sequence


class DecodeSet:
    """All sequences that decode.

    Its clock ticks with every step that takes some of it, so a step that takes only prompts costs it nothing. All
    that is foreseen of a member is foreseen in ticks: tokens computed = tick - born.
    """

    def __init__(self, block_size: int) -> None:
        self.members: dict[Sequence, None] = {}
        self.tick = 0  # of the next step that takes it
        self.taken = -1  # last step that took it
        self.context = 0  # tokens computed, summed over the members
        self.growing = 0  # members that take blocks as they grow
        self.by_position = [0] * block_size  # those, by born mod block_size
        self.block_size = block_size
        # A heap of (last tick, order, sequence); who was dropped leaves a stale entry.
        self._last: list[tuple[int, int, Sequence]] = []

    def add(self, seq: Sequence, overrun: int = 0) -> None:
        """seq decodes from the next tick on, and for `overrun` ticks beyond its last token."""
        tick = self.tick
        seq.born = born = tick - seq.computed
        seq.state = DECODING
        self.members[seq] = None
        self.context += seq.computed
        if seq.grows:
            self.growing += 1
            self.by_position[born % self.block_size] += 1
        given = seq.computed + 1 - seq.prompt
        seq.last_tick = last = tick + seq.outputs - given - 1 + overrun
        heapq.heappush(self._last, (last, seq.order, seq))

    def drop(self, seq: Sequence) -> None:
        """seq stops decoding; its count of computed tokens and its span are brought up to date."""
        seq.computed = self.tick - seq.born
        seq.spans[-1] = self.tick
        seq.last_tick = -1
        del self.members[seq]
        self.context -= seq.computed
        if seq.grows:
            self.growing -= 1
            self.by_position[seq.born % self.block_size] -= 1

    def advance(self, step: int, ticks: int = 1) -> None:
        """The `ticks` steps from `step` on take the set."""
        self.tick += ticks
        self.context += ticks * len(self.members)
        self.taken = step + ticks - 1

    def reorder(self, seqs: list[Sequence]) -> None:
        """All members, whose `order` has changed."""
        assert len(seqs) == len(self.members)
        self.members = dict.fromkeys(seqs)
        self._last = [(seq.last_tick, seq.order, seq) for seq in seqs]
        heapq.heapify(self._last)

    def pass_over(self, seqs: list[Sequence], step: int) -> None:
        """The tick just taken leaves out seqs: all that was foreseen of them comes one tick later."""
        size, by, tick = self.block_size, self.by_position, self.tick
        for seq in seqs:
            if seq.grows:
                by[seq.born % size] -= 1
                by[(seq.born + 1) % size] += 1
            seq.born += 1
            seq.last_tick += 1
            seq.skipped = step
            if seq.spans[-2] == tick - 1:
                seq.spans[-2] = tick
            else:
                seq.spans[-1] = tick - 1
                seq.spans += (None, tick, None)
        self.context -= len(seqs)
        self._last = [(seq.last_tick, seq.order, seq) for seq in self.members]
        heapq.heapify(self._last)

    def growth(self, ticks: int, after: int) -> list[int]:
        """New blocks of each of the next `ticks` ticks, `after` some."""
        size, by = self.block_size, self.by_position
        at = (self.tick + after) % size
        if at + ticks <= size:
            return by[at : at + ticks]
        return (by[at:] + by * (ticks // size + 1))[:ticks]

    def next_growth(self) -> int:
        """New blocks of the next tick."""
        return self.by_position[self.tick % self.block_size]

    def blocks_within(self, after: int, ticks: int) -> int:
        """New blocks of the next `ticks` ticks, `after` some, in all."""
        cycles, rest = divmod(ticks, self.block_size)
        return cycles * self.growing + sum(self.growth(rest, after))

    def ticks_within(self, after: int, most: int, free: int) -> int:
        """For how many ticks, at most `most`, `after` some, `free` blocks suffice."""
        n, size = self.growing, self.block_size
        if n * (most // size + 1) <= free:
            return most
        cycles = free // n
        ticks = cycles * size
        free -= cycles * n
        for needed in self.growth(size, after):
            free -= needed
            if free < 0:
                break
            ticks += 1
        return min(ticks, most)

    def ticks_left(self) -> int:
        """Ticks until a member's last, that tick counted. There must be a member."""
        last = self._last
        while True:
            tick, order, seq = last[0]
            if tick == seq.last_tick and order == seq.order:
                return tick - self.tick + 1
            heapq.heappop(last)

    def some_end(self) -> bool:
        """Whether a member has had its last tick, or has it next."""
        return bool(self._last) and self._last[0][0] <= self.tick

    def at_last(self) -> list[Sequence]:
        """Those whom the next tick takes for the last time."""
        tick, last = self.tick, self._last
        found, look = [], [0]
        for i in look:  # down the heap, as far as it is due
            if i < len(last) and last[i][0] <= tick:
                due, order, seq = last[i]
                if due == tick == seq.last_tick and order == seq.order:
                    found.append(seq)
                look += (2 * i + 1, 2 * i + 2)
        return found

    def pop_ended(self) -> list[Sequence]:
        """Those who have had their last tick leave."""
        ended = []
        tick, last = self.tick, self._last
        while last and last[0][0] < tick:
            due, order, seq = heapq.heappop(last)
            if due == seq.last_tick and order == seq.order:
                self.drop(seq)
                ended.append(seq)
        return ended
