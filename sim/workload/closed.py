"""Closed loop: a fixed number of clients, each of which sends its next request when the last has ended."""

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import chain
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from ..registry import register
from ..request import Request
from .source import BLOCK, Setup, Source

MOST_INSTANT = 10_000


@register("arrivals", "closed_loop")
@dataclass
class ClosedLoop:
    """Clients that start together; each sends its next request when the last has ended and it has thought."""

    concurrency: Annotated[int, Field(ge=1, le=10**7, description="clients, hence requests in flight at most")]
    think_time_s: Annotated[float, Field(ge=0, le=1e9, description="mean time from an end to the next request, s")] = (
        0.0
    )
    think_time: Annotated[Literal["constant", "exponential"], Field(description="how think times are distributed")] = (
        "constant"
    )

    def source(self, setup: Setup) -> Source:
        return Clients(self, setup)


class Clients:
    """Requests take lengths and think times in the order in which they are issued, whoever issues them."""

    reacts = True

    def __init__(self, loop: ClosedLoop, setup: Setup) -> None:
        self.total = setup.num_requests if setup.duration_s is None else None
        self.warnings: list[str] = []
        self._most = setup.num_requests
        self._end = setup.duration_s if setup.duration_s is not None else float("inf")
        self._by_length = setup.ignore_eos
        self._facts = chain.from_iterable(setup.facts())
        self._thoughts = self._draw_thoughts(loop, setup)
        self._issued = 0
        self._known: list[tuple[float, int]] = [
            (0.0, client) for client in range(loop.concurrency)
        ]  # a heap: time, then order
        self._order = loop.concurrency
        self._think_s: dict[int, float] = {}  # by index of a request in flight
        self._instant = 0  # requests in a row that ended as they came

    def next(self) -> Request | None:
        """The earliest request known by now; one that comes of a later `done` may arrive before one already given."""
        if not self._known or self._issued == self._most:
            return None
        arrival_s, _ = heappop(self._known)
        prompt, output, limit, priority, prefix, label = next(self._facts)
        index = self._issued
        self._issued += 1
        self._think_s[index] = next(self._thoughts)
        return Request(index, f"r{index}", arrival_s, prompt, output, limit, priority, prefix, label, self._by_length)

    def done(self, request: Request, time_s: float, status: str) -> None:
        """The client thinks, and asks again; unless the clock has stopped by then."""
        arrival_s = time_s + self._think_s.pop(request.index)
        self._instant = self._instant + 1 if arrival_s <= request.arrival_s else 0
        if (
            self._instant >= MOST_INSTANT and self._most is None
        ):  # refused at once, each time: the clock would stand still
            if self._instant == MOST_INSTANT:
                self.warnings.append(
                    f"{MOST_INSTANT} requests in a row ended as they arrived ({status}); no more are sent"
                )
            return
        if arrival_s < self._end:
            heappush(self._known, (arrival_s, self._order))
            self._order += 1

    @staticmethod
    def _draw_thoughts(loop: ClosedLoop, setup: Setup) -> Iterator[float]:
        rng = setup.stream("think_time")
        while True:
            drawn = rng.standard_exponential(BLOCK) if loop.think_time == "exponential" else np.ones(BLOCK)
            yield from (drawn * loop.think_time_s).tolist()
