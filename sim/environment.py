"""SimPy's environment, with events at absolute times."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from math import inf
from typing import Any

import simpy

# What comes first at one instant: deliveries by engine, arrivals, then step ends by engine, then what depends on these.
DELIVERY = 1_000_000
ARRIVAL = 2_000_000
STEP_END = 3_000_000
AFTER = 4_000_000  # what must see the step ends of that instant


class Call:
    """The least that can stand in SimPy's queue: one callback, which it may take again and again."""

    __slots__ = ("_value", "callback")
    _ok = True

    def __init__(self, callback: Callable[[Any], None], value: Any = None) -> None:
        self.callback = callback
        self._value = value

    @property
    def callbacks(self) -> tuple[Callable[[Any], None], ...]:
        """For SimPy's own step(), which empties an event when it is processed; a call stays as it is."""
        return (self.callback,)

    @callbacks.setter
    def callbacks(self, _: None) -> None: ...


class Environment(simpy.Environment):
    """Events at absolute times: SimPy's now + (t - now) is not t, and exactness hangs on t."""

    def at(self, time_s: float, callback: Callable[[Any], None], value: Any = None, rank: int = ARRIVAL) -> None:
        """Call back at `time_s`, with an event whose `_value` is `value`; of one instant the lower rank first."""
        queue: Any = self._queue
        heapq.heappush(queue, (time_s, rank, next(self._eid), Call(callback, value)))

    def run_before(self, end_s: float = inf) -> None:
        """Process all events before `end_s`: SimPy's run() with its step() written out, which is half of its time."""
        queue, pop = self._queue, heapq.heappop
        while queue and queue[0][0] < end_s:
            self._now, _, _, event = pop(queue)
            if type(event) is Call:
                event.callback(event)
                continue
            callbacks, event.callbacks = event.callbacks, None  # type: ignore[assignment]
            for callback in callbacks:
                callback(event)
            if not event._ok and not getattr(event, "_defused", False):
                raise event._value  # as SimPy does for a failed event that nobody handles
