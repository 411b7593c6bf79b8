"""Ends what would never end: an engine's own rules can let sequences evict each other for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .lane import Lane

PATIENCE = 64  # preemptions without progress before states are compared
LIMIT = 10_000  # preemptions without progress that are never honest


class Watchdog:
    """Progress is a token, a request's first chunk, or a prompt computed whole; long prefills make no preemptions.

    A scheduler is deterministic: the same state twice without progress between is a livelock, if nothing comes from
    outside (an arrival can break the circle). States are compared by Brent's method, at decisions that preempt, and
    only once many of them have brought nothing. An idle prefix cache is not compared, so a state must come back three
    times. While something may still come, only a great many fruitless preemptions count.
    """

    def __init__(self) -> None:
        self._seen = (-1, -1)
        self._preemptions = 0
        self._mark: tuple[Any, ...] | None = None
        self._next_mark = PATIENCE
        self._returns = 0

    def sees_livelock(self, lane: Lane, more_may_come: Callable[[], bool]) -> bool:
        """To be asked at each decision that preempts. more_may_come: whether a request may still reach this lane."""
        seen = (lane.decodes.tick, lane.progress)
        if seen != self._seen:
            self.__init__()  # type: ignore[misc]
            self._seen = seen
        self._preemptions += len(lane.plan.preempted)
        if self._preemptions < PATIENCE:
            return False
        if more_may_come():
            self._mark, self._next_mark, self._returns = None, self._preemptions, 0
            return self._preemptions >= LIMIT
        state = tuple((id(seq), seq.state, seq.computed, seq.known) for seq in lane.stuck())
        if state == self._mark:
            self._returns += 1
        elif self._preemptions >= self._next_mark:
            self._mark, self._next_mark, self._returns = state, 2 * self._preemptions, 0
        return self._returns >= 3 or self._preemptions >= LIMIT
