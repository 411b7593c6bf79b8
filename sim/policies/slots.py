"""How vLLM's first scheduler lets all decode, which Sarathi-Serve took over: each needs a free block first."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from ..request import DECODING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..batch import Batch
    from ..request import Sequence


def decode_all(batch: Batch, preempt: Callable[[Sequence], object]) -> None:
    """This step takes all that decode, in order of admission, as long as each finds a free block before it.

    It must find one even where it needs none. Who finds none preempts whoever was admitted last of those not yet
    looked at, in the end itself; `preempt` says how.
    """
    decodes, kv = batch.decodes, batch.kv
    if decodes.next_growth() < kv.free:  # whoever is last still finds one
        batch.take_all()
        if decodes.members:
            batch.plan.repeat = 1 + decodes.ticks_within(1, decodes.ticks_left() - 1, kv.free - 1)
        return
    rest = deque(batch.running)
    while rest:
        seq = rest.popleft()
        if seq.state != DECODING:
            continue
        while not kv.free:
            victim = rest.pop() if rest else seq
            preempt(victim)
            if victim is seq:
                break
        else:
            batch.allocate(seq, 1)
