"""What a batching policy is, and the queue that most of them use."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..batch import Batch, WaitingQueue
    from ..request import Sequence


class Policy(Protocol):
    """A dataclass whose fields are its YAML parameters; what it keeps between decisions lives in its queue, per lane.

    It draws no time, touches no clock, keeps no metrics, and never sees how many tokens a request will give.
    A policy may also have
    `async_scheduling: bool`: each step is decided while the one before it runs (default False);
    `kernels: str`: the engine whose calibration is the default (default vllm);
    `caches_prefixes: bool`: its KV blocks can be hit by others (default False);
    `delivers_whole: bool`: nothing is delivered before the whole batch has ended (default False);
    `defaults_for(gpu) -> dict`: its engine's defaults for that GPU, for parameters left at null;
    `check(engine, max_model_len) -> str | None`: what its engine would refuse at its start;
    `reserve_tokens(max_model_len) -> int`: KV tokens that it takes at its start.
    """

    def queue(self) -> WaitingQueue:
        """An empty queue for one lane."""

    def decide(self, batch: Batch, now_s: float) -> None:
        """Choose the next step, by the verbs of `batch`, which write `batch.plan`."""


class FCFS(deque["Sequence"]):
    """First come, first served; the preempted stand in front."""

    push = deque.append
    put_back = deque.appendleft

    def head(self) -> Sequence:
        return self[0]

    def remove(self, seq: Sequence) -> None:
        if self[0] is seq:
            self.popleft()
        else:
            super().remove(seq)

    @staticmethod
    def victim(running: dict[Sequence, None]) -> Sequence:
        """Who gives up its blocks when they run out: the one admitted last."""
        return next(reversed(running))
