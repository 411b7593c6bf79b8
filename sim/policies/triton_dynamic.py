"""Triton Inference Server's dynamic batcher in front of a backend that computes whole batches.

Written from its documents and published rules (release 24.x), for requests of batch size 1 and one model instance.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from math import inf, nextafter
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ..checking import Section
from ..errors import Complaint
from ..registry import register
from .static import carry_on, start

if TYPE_CHECKING:
    from ..batch import Batch
    from ..request import Sequence

Microseconds = Annotated[int, Field(ge=0, le=10**15)]
Size = Annotated[int, Field(ge=1, le=100_000)]


class QueuePolicy(Section):
    """What Triton calls ModelQueuePolicy: of each priority level's queue."""

    timeout_action: Annotated[
        Literal["reject", "delay"], Field(description="who timed out is refused, or served after all others")
    ] = "reject"
    default_timeout_microseconds: Annotated[Microseconds, Field(description="0: never")] = 0
    max_queue_size: Annotated[int, Field(ge=0, le=10**9, description="requests in a queue; 0: any number")] = 0


class Level:
    """The queue of one priority level: those who have timed out and are only delayed come last."""

    def __init__(self) -> None:
        self.fresh: deque[Sequence] = deque()  # by arrival, so also by the time at which they time out
        self.delayed: deque[Sequence] = deque()

    def __len__(self) -> int:
        return len(self.fresh) + len(self.delayed)


class TritonQueue:
    """By priority level, then first come, first served; and the rows of the batch that runs."""

    def __init__(self, policy: TritonDynamic) -> None:
        self.levels = [Level() for _ in range(policy.priority_levels or 1)]
        self.default = max(policy.default_priority_level, 1)
        self.rules = policy.default_queue_policy
        self.timeout_s = self.rules.default_timeout_microseconds * 1e-6 or inf
        self.rows = 0

    def __len__(self) -> int:
        return sum(map(len, self.levels))

    def __iter__(self) -> Iterator[Sequence]:
        return chain.from_iterable(chain(level.fresh, level.delayed) for level in self.levels)

    def head(self) -> Sequence:
        return next(iter(self))

    def level(self, seq: Sequence) -> Level:
        """Of its priority, 1 the most urgent; 0 and what is no level count as the default."""
        number = seq.request.priority
        return self.levels[(number if 1 <= number <= len(self.levels) else self.default) - 1]

    def push(self, seq: Sequence) -> Sequence | None:
        level, most = self.level(seq), self.rules.max_queue_size
        if most and len(level) >= most:
            seq.reason = f"exceeds the maximum queue size: {len(level)} wait (max_queue_size)"
            return seq
        level.fresh.append(seq)
        return None

    def put_back(self, seq: Sequence) -> None:
        raise NotImplementedError("nobody is preempted")

    def remove(self, seq: Sequence) -> None:
        level = self.level(seq)
        (level.fresh if level.fresh and level.fresh[0] is seq else level.delayed).remove(seq)

    def expire(self, now_s: float) -> list[Sequence]:
        """Who has waited for longer than the timeout stands at the end of its level, or leaves and is returned."""
        refused = []
        for level in self.levels:
            fresh = level.fresh
            while fresh and fresh[0].reach_s + self.timeout_s < now_s:
                if self.rules.timeout_action == "delay":
                    level.delayed.append(fresh.popleft())
                else:
                    refused.append(fresh.popleft())
        return refused

    def next_timeout_s(self) -> float:
        """When the next one has waited for longer than the timeout."""
        first = min((level.fresh[0].reach_s for level in self.levels if level.fresh), default=inf)
        return nextafter(first + self.timeout_s, inf)


@register("policy", "triton_dynamic")
@dataclass
class TritonDynamic:
    """Triton's dynamic batcher: batches of preferred sizes, or whoever waits after a delay; all return together."""

    max_batch_size: Annotated[Size, Field(description="most sequences of a batch")] = 4
    preferred_batch_size: Annotated[
        list[Size] | None, Field(min_length=1, description="sizes that start at once; null: max_batch_size alone")
    ] = None
    max_queue_delay_microseconds: Annotated[
        Microseconds, Field(description="longest wait of the oldest for a preferred size")
    ] = 0
    priority_levels: Annotated[
        int, Field(ge=0, le=1000, description="levels of `priority`, 1 the most urgent; 0: all requests are alike")
    ] = 0
    default_priority_level: Annotated[
        int, Field(ge=0, le=1000, description="level of requests whose priority is no level, such as 0")
    ] = 0
    default_queue_policy: Annotated[QueuePolicy, Field(description="timeouts and size of each level's queue")] = field(
        default_factory=QueuePolicy
    )

    delivers_whole = True

    def __post_init__(self) -> None:
        largest = max(self.preferred_batch_size or [0])
        if largest > self.max_batch_size:
            what = f"{largest} is more than max_batch_size ({self.max_batch_size})"
            raise Complaint(what, "preferred_batch_size")
        default, levels = self.default_priority_level, self.priority_levels
        if default > levels or (levels and not default):
            what = f"must be from 1 to priority_levels ({levels}), got {default}"
            raise Complaint(what if levels else "needs priority_levels", "default_priority_level")

    @property
    def batch_size(self) -> int:
        """For the memory of a step's activations."""
        return self.max_batch_size

    def reserve_tokens(self, max_model_len: int) -> int:
        """The backend allocates at its start: every row for the longest sequence."""
        return self.max_batch_size * max_model_len

    def queue(self) -> TritonQueue:
        return TritonQueue(self)

    def decide(self, batch: Batch, now_s: float) -> None:
        waiting: TritonQueue = batch.waiting  # type: ignore[assignment]
        if batch.running:
            carry_on(batch, waiting.rows)
            return
        for seq in waiting.expire(now_s):
            batch.give_up(seq, "request timeout expired")
        found = list(islice(waiting, self.max_batch_size))
        if not found:
            return
        due_s = min(seq.reach_s for seq in found) + self.max_queue_delay_microseconds * 1e-6
        size = self._size(len(found), len(waiting), late=now_s >= due_s)
        if size:
            waiting.rows = size
            start(batch, found[:size])
        else:
            batch.plan.wake_at_s = min(due_s, waiting.next_timeout_s())

    def _size(self, found: int, waiting: int, late: bool) -> int:
        """Sequences of the batch that starts now; 0: none does. late: the oldest has waited for the longest delay."""
        preferred = self.preferred_batch_size or [self.max_batch_size]
        best = max((size for size in preferred if size <= found), default=0)
        if best and not (late and self.max_queue_delay_microseconds):
            return best
        return found if late or best or waiting > found else 0
