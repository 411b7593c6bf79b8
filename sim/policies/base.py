"""What a batching policy is, and the queues that most of them use."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import Field

from .. import registry
from ..checking import Parsed
from ..kv import BlockPool

if TYPE_CHECKING:
    from ..batch import Batch, WaitingQueue
    from ..request import Sequence
    from ..workload.outlook import Outlook

Order = Annotated[
    Annotated[
        dict[str, Any],
        Parsed("order", lambda value, _: registry.parse("order", value).plain(), "a name or a mapping with name"),
    ]
    | None,
    Field(description="order of the queue; null: the engine's own"),
]
"""`order: Order = None` among its fields is all it takes for a policy to accept any order of the queue (`orders/`)."""


class Policy(Protocol):
    """A dataclass whose fields are its YAML parameters; what it keeps between decisions lives in its queue, per lane.

    It draws no time, touches no clock, keeps no metrics, and never sees how many tokens a request will give.
    A policy may also have
    `order: Order`: the order of the queue that the scenario asks for instead of its engine's own;
    `async_scheduling: bool`: each step is decided while the one before it runs (default False);
    `kernels: str`: the engine whose calibration is the default (default vllm);
    `pool(total, size, caching) -> BlockPool`: its engine's KV cache (default: a plain one);
    `accept(request, batch, in_system, kv_tokens) -> Terms | str`: on what terms its front end takes a request, or why
    not, when `in_system` others are there; kv_tokens: what the KV cache holds, infinite where nobody is refused for it;
    `never(batch) -> str`: why those who are left at the end are never served (default: for want of KV cache);
    `decides_idle: bool`: it is asked even when nothing is there (default False);
    `describe(batch) -> dict`: of the decision just made, what its engine would log, and `order`: who is in the step, in
    its own order. Asked only where the content of steps is recorded;
    `delivers_whole: bool`: nothing is delivered before the whole batch has ended (default False);
    `defaults_for(gpu) -> dict`: its engine's defaults for that GPU, for parameters left at null;
    `check(engine, max_model_len) -> str | None`: what its engine would refuse at its start;
    `begin(block_bytes)`: it is told the bytes of a KV block on each GPU before a run;
    `pcie_gb_per_s: float`: what moves the `transfer_bytes` of its plans, 10^9 bytes/s;
    `check_kv(kv_tokens, max_model_len) -> str | None`: the same, of what the KV cache holds;
    `named_otherwise`: its engine's names of parameters that stand elsewhere in a scenario, and where;
    `reserve_tokens(max_model_len) -> int`: KV tokens that it takes at its start.
    """

    def queue(self) -> WaitingQueue:
        """An empty queue for one lane."""

    def decide(self, batch: Batch, now_s: float) -> None:
        """Choose the next step, by the verbs of `batch`, which write `batch.plan`."""


def block_pool(policy: Any, total: int, size: int, caching: bool) -> BlockPool:
    """An empty KV cache of `total` blocks of `size` tokens, as the policy's engine keeps it."""
    make = getattr(policy, "pool", None)
    return make(total, size, caching) if make else BlockPool(total, size)


def waiting_queue(policy: Any, outlook: Outlook) -> WaitingQueue:
    """An empty queue for one lane: in the order that the scenario asks for, else as the policy's engine keeps it."""
    own: WaitingQueue = policy.queue()
    asked = getattr(policy, "order", None)
    if asked is None:
        return own
    queue: WaitingQueue = registry.build("order", registry.parse("order", asked)).queue(outlook)
    vars(queue).update(vars(own))  # what the policy keeps there between decisions
    return queue


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


class ByPriority(list["Sequence"]):
    """Smallest (priority, arrival, id) first, ids compared as strings, as vLLM does."""

    def push(self, seq: Sequence) -> None:
        insort(self, seq, key=lambda s: (s.request.priority, s.request.arrival_s, s.request.id))

    put_back = push

    def head(self) -> Sequence:
        return self[0]

    def remove(self, seq: Sequence) -> None:
        if self[0] is seq:
            del self[0]
        else:
            super().remove(seq)

    @staticmethod
    def victim(running: Mapping[Sequence, Any]) -> Sequence:
        """The greatest (priority, arrival), of equals the one admitted first."""
        return max(running, key=lambda s: (s.request.priority, s.request.arrival_s))
