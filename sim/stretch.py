"""Stretches: runs of like steps, which are decided, priced and waited for at once."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .batch import Plan
    from .lane import Lane


class Stretch:
    """Steps first ... stop - 1, the first decided at `decided_s`: all that decode, and nobody else.

    One a lane, used again and again; it is empty where `stop` is 0. The first step's blocks are taken.
    """

    __slots__ = ("decided_s", "first", "stop")

    def __init__(self) -> None:
        self.first = self.stop = 0
        self.decided_s = 0.0

    def decided(self, ends: array[float], time_s: float, depth: int) -> int:
        """The step before which all are decided before `time_s`; the first always is. Step i is decided at the end of
        step i - depth."""
        first, stop = self.first, self.stop
        return max(bisect_left(ends, time_s, max(first + 1 - depth, 0), max(stop - depth, 0)) + depth, first + 1)

    def cut(self, ends: array[float], time_s: float, depth: int) -> int:
        """Something comes at `time_s`: the steps decided before it stand; how many fall away is returned."""
        stop = self.stop
        cut = self.decided(ends, time_s, depth)
        if cut >= stop:
            return 0
        self.stop = cut
        del ends[cut:]
        return stop - cut


def horizon(lane: Lane, plan: Plan, watched: bool) -> int:
    """Steps for which the decision to let all decode may stand.

    That is until one ends, blocks run out, or a release may let in somebody who waits, or changes what is watched.
    """
    if (lane.waiting or watched) and (lane.leaving or lane.late or lane.prompts):
        return 1
    kv = lane.kv
    free = kv.free - kv.headroom * len(lane.decodes.members)
    if free < 0:  # the next tick evicts
        return 1
    most = min(lane.decodes.ticks_left(), plan.repeat)
    if most <= 1:
        return 1
    return 1 + lane.decodes.ticks_within(1, int(most) - 1, free)
