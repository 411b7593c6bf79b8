"""What an order of the queue is, and the queue that most of them use."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ..request import DECODING

if TYPE_CHECKING:
    from ..batch import Batch, WaitingQueue
    from ..request import Sequence
    from ..workload.outlook import Outlook


class Order(Protocol):
    """A dataclass whose fields are its YAML parameters. A part beside the policy: any policy with the field `order`
    takes any of them. It sees requests and, through the outlook, what is said of them; never how long they will be."""

    def queue(self, outlook: Outlook) -> WaitingQueue:
        """An empty queue for one lane. Its `victim(running)` is who gives up its blocks when they run out."""


def given(batch: Batch, seq: Sequence) -> int:
    """Outputs of seq by the steps decided so far: known to all, since the engine has them or waits for them.

    Those of earlier goes, which are a part of its prompt since it was queued anew, are among them.
    """
    asked = seq.request.prompt_tokens
    if seq.state == DECODING:
        return batch.decodes.tick - seq.born + 1 - asked
    return seq.prompt - asked + seq.outputs if seq.last_step is not None else seq.known - asked


class Ranked:
    """Smallest key first, new or preempted. A key does not change while its sequence waits, and no two are equal: it
    ends with the request's arrival and index."""

    def __init__(self, rank: Callable[[Sequence], Any]) -> None:
        self._rank = rank
        self._entries: list[tuple[tuple[Any, float, int], Sequence]] = []
        self._keys: dict[Sequence, tuple[Any, float, int]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Sequence]:
        return iter([seq for _, seq in self._entries])

    def key(self, seq: Sequence) -> tuple[Any, float, int]:
        return self._rank(seq), seq.request.arrival_s, seq.request.index

    def head(self) -> Sequence:
        return self._entries[0][1]

    def push(self, seq: Sequence) -> None:
        key = self._keys[seq] = self.key(seq)
        insort(self._entries, (key, seq))

    put_back = push

    def remove(self, seq: Sequence) -> None:
        entries, key = self._entries, self._keys.pop(seq)
        del entries[0 if entries[0][1] is seq else bisect_left(entries, (key,))]

    def victim(self, running: Mapping[Sequence, Any]) -> Sequence:
        """The greatest key: who would have come last. So whoever comes first is never preempted, and all end."""
        return max(running, key=self.key)
