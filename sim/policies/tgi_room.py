"""What TGI's running batch holds of `max_batch_total_tokens`: two ways to count, for flash and for padded models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..request import DONE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..batch import Batch
    from ..request import Sequence


def reservation(seq: Sequence) -> int:
    """Tokens that a request needs until it leaves the batch; the last output is never computed."""
    return seq.prompt + seq.limit - 1


class Reserved:
    """Flash models: all that the running may ever need, in whole blocks, shared or not."""

    def __init__(self) -> None:
        self.held = 0

    def update(self, batch: Batch) -> None:
        for seq in batch.gone:
            self.held -= seq.mark

    def admitted(self, batch: Batch, seqs: list[Sequence]) -> None:
        size = batch.kv.size
        for seq in seqs:
            seq.mark = -(-reservation(seq) // size) * size
            self.held += seq.mark


class Padded:
    """Padded models: what the server reports of its batch, every row as long as the longest."""

    def __init__(self) -> None:
        self.held = self.longest = self.members = self.step = 0
        self.new: list[Sequence] = []  # admitted by the last step, computed alone

    def update(self, batch: Batch) -> None:
        steps, self.step = batch.step - self.step, batch.step
        if self.new:
            longest = max(s.prompt for s in self.new) + 1
            held = len(self.new) * (longest - 1 + sum(s.limit for s in self.new))
            left = [s for s in self.new if s.state != DONE]
            if batch.gone and left:
                held, longest = self._anew(batch, left)
            if left:
                most = max(longest, self.longest) if self.members else longest
                self.held += (most - self.longest) * self.members + held + (most - longest) * len(left)
                self.longest, self.members = most, self.members + len(left)
            self.new = []
        elif batch.running:
            self.longest += steps
            if batch.gone:
                self.held, self.longest = self._anew(batch, batch.running)
                self.members = len(batch.running)
        if not batch.running:
            self.held = self.longest = self.members = 0

    def admitted(self, batch: Batch, seqs: list[Sequence]) -> None:
        self.new = seqs

    @staticmethod
    def _anew(batch: Batch, seqs: Iterable[Sequence]) -> tuple[int, int]:
        lengths, most = [], 0
        for seq in seqs:
            lengths.append(batch.computed(seq) + 1)
            most += reservation(seq) + 1
        longest = max(lengths)
        return len(lengths) * longest + most - sum(lengths), longest


def fitting_padded(waiting: Iterable[Sequence], budget: int, room: int, most: float) -> list[Sequence]:
    """The heads of the queue whose padded prompts fit the budget, and with their outputs the room."""
    found: list[Sequence] = []
    longest = new = 0
    for seq in waiting:
        longest, new = max(longest, seq.known), new + seq.limit
        used = (len(found) + 1) * longest
        if used > budget or used + new > room:
            break
        found.append(seq)
        if len(found) == most:
            break
    return found
