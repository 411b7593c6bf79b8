"""Fairness among tenants: the Virtual Token Counter.

Algorithm 2 of Sheng et al., Fairness in Serving Large Language Models, OSDI 2024. A tenant's counter grows by its
prompts, whole, as they are admitted, and by its outputs as they are decided; the tenant with the smallest counter comes
next, with its earliest request. What a preemption makes the engine compute again is charged to nobody.

Counters are whole numbers and functions of what has been decided, whatever the number of decisions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from math import inf
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ..errors import Complaint
from ..registry import register
from ..request import DONE, WAITING
from .base import given

if TYPE_CHECKING:
    from ..batch import Batch
    from ..request import Sequence
    from ..workload.outlook import Outlook

Weight = Annotated[int, Field(ge=0, le=1_000_000)]


@register("order", "fair")
@dataclass
class Fair:
    """The tenant that has been served least first: virtual token counters (VTC), first come first served within."""

    input_weight: Annotated[Weight, Field(description="what a prompt token counts")] = 1
    output_weight: Annotated[Weight, Field(description="what an output token counts")] = 2

    def __post_init__(self) -> None:
        if not self.input_weight and not self.output_weight:
            raise Complaint("must be over 0 where input_weight is 0, else nothing counts", "output_weight")

    def queue(self, outlook: Outlook) -> FairQueue:
        return FairQueue(self, outlook)


class FairQueue:
    """Who waits, by tenant. Ties between tenants go to the request that came first."""

    _batch: Batch

    def __init__(self, order: Fair, outlook: Outlook) -> None:
        self._order, self._outlook = order, outlook
        self.counters: dict[str, int] = {}
        self._waiting: dict[str, deque[Sequence]] = {}  # of tenants for whom somebody waits
        self._charged: dict[
            Sequence, int
        ] = {}  # outputs for which its tenant was charged; once admitted, until it ends
        self._left: list[Sequence] = []  # the queue, and whose prompts are not yet charged: admitted, if not refused
        self._last: str | None = None  # the tenant that was last to have nobody left in the queue
        self._counted = -1  # the step before which outputs are charged
        self._length = 0

    def attach(self, batch: Batch) -> None:
        self._batch = batch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Sequence]:
        """In the order in which they would be admitted, if nothing were given to anybody meanwhile."""
        self._charge()
        if len(self._waiting) > 1:
            self._batch.plan.repeat = 1
        weight, found = self._order.input_weight, []
        heap = [(self._rank(tenant), tenant, 0) for tenant in self._waiting]
        heapify(heap)
        while heap:
            (counter, *_), tenant, at = heap[0]
            queue = self._waiting[tenant]
            seq = queue[at]
            found.append(seq)
            if at + 1 == len(queue):
                heappop(heap)
                continue
            counter += 0 if seq in self._charged else weight * seq.request.prompt_tokens
            heapreplace(heap, ((counter, *_came(queue[at + 1])), tenant, at + 1))
        return iter(found)

    def head(self) -> Sequence:
        self._charge()
        waiting = self._waiting
        first = min(waiting, key=self._rank)
        if len(waiting) > 1:
            self._limit(first)
        return waiting[first][0]

    def push(self, seq: Sequence) -> None:
        """A tenant that comes back to the queue has not saved up for it: its counter is lifted to the least of those
        who wait, or, if nobody does, to that of the one that was last to wait."""
        tenant, counters = self._outlook.tenant(seq.request), self.counters
        if tenant not in self._waiting:
            self._charge()
            others = self._waiting or ([self._last] if self._last is not None else [])
            counters[tenant] = max(counters.get(tenant, 0), min((counters[other] for other in others), default=0))
        self._waiting.setdefault(tenant, deque()).append(seq)
        self._length += 1

    def put_back(self, seq: Sequence) -> None:
        self._waiting.setdefault(self._outlook.tenant(seq.request), deque()).appendleft(seq)
        self._length += 1

    def remove(self, seq: Sequence) -> None:
        """seq is admitted, or leaves unserved."""
        tenant = self._outlook.tenant(seq.request)
        queue = self._waiting[tenant]
        if queue[0] is seq:
            queue.popleft()
        else:
            queue.remove(seq)
        self._length -= 1
        if not queue:
            del self._waiting[tenant]
            self._last = tenant
        if seq not in self._charged:
            self._left.append(seq)

    @staticmethod
    def victim(running: dict[Sequence, None]) -> Sequence:
        """The one admitted last. Not by the counters, which move: two could evict each other for ever."""
        return next(reversed(running))

    def _rank(self, tenant: str) -> tuple[int, float, int]:
        return (self.counters[tenant], *_came(self._waiting[tenant][0]))

    def _charge(self) -> None:
        """Prompts of the admitted, and outputs up to the steps decided so far."""
        batch, order, counters, tenant_of = self._batch, self._order, self.counters, self._outlook.tenant
        if self._left:
            for seq in self._left:
                served = seq.state not in (WAITING, DONE) or seq.first_step is not None
                if served and seq not in self._charged:
                    self._charged[seq] = 0
                    counters[tenant_of(seq.request)] += order.input_weight * seq.request.prompt_tokens
            self._left = []
        if self._counted == batch.step:
            return
        self._counted = batch.step
        ended = []
        for seq, before in self._charged.items():
            outputs = given(batch, seq)
            if outputs > before:
                self._charged[seq] = outputs
                counters[tenant_of(seq.request)] += order.output_weight * (outputs - before)
            if seq.state == DONE:
                ended.append(seq)
        for seq in ended:
            del self._charged[seq]

    def _limit(self, first: str) -> None:
        """The plan stands until `first`, by what it is given, no longer is the first."""
        rates: dict[str, int] = dict.fromkeys(self._waiting, 0)
        for seq in self._batch.decodes.members:
            tenant = self._outlook.tenant(seq.request)
            if tenant in rates:
                rates[tenant] += self._order.output_weight
        mine: Any = self._rank(first)
        soonest: float = inf
        for tenant, rate in rates.items():
            closing = rates[first] - rate
            if closing > 0:
                counter, *came = self._rank(tenant)
                gap = counter - mine[0]
                ticks = -(-gap // closing) if came < list(mine[1:]) else gap // closing + 1
                soonest = min(soonest, ticks)
        self._batch.plan.repeat = min(self._batch.plan.repeat, soonest)


def _came(seq: Sequence) -> tuple[float, int]:
    return seq.request.arrival_s, seq.request.index
