"""How long a call takes: the median of repeats after a warm-up, on a CUDA card or on this machine's CPU.

What is timed is a list of calls that do the same work on different copies of its data, called in turn: a kernel in a
real step finds its weights in memory, not in the cache where its last repeat left them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from math import ceil
from statistics import median
from typing import Any, Protocol

import torch

Calls = Sequence[Callable[[], Any]]


@dataclass(frozen=True)
class Effort:
    """How much of the time goes into one point. A sample is a block of calls, timed as one."""

    block_s: float  # a block is at least this long, for the clock costs some too
    least: int = 5  # samples
    most: int = 25
    limit_s: float = 0.1  # after the least, samples are taken until this has gone by


CUDA_EFFORT = Effort(block_s=300e-6, least=5, most=25, limit_s=0.08)
CPU_EFFORT = Effort(block_s=1e-3, least=2, most=15, limit_s=0.02)
QUICK_EFFORT = Effort(block_s=3e-4, least=3, most=5, limit_s=0.01)


class Timer(Protocol):
    def median_s(self, calls: Calls) -> tuple[float, bool]:
        """Seconds of one call; and whether launches from Python are not part of them (or are what is measured)."""


class CpuTimer:
    """Wall time; with one thread the time that this thread had the core, so others on this machine don't count."""

    def __init__(self, effort: Effort, threads: int) -> None:
        self._effort = effort
        self.clock = "thread time" if threads == 1 else "wall time"
        self._now = time.thread_time if threads == 1 else time.perf_counter

    def median_s(self, calls: Calls) -> tuple[float, bool]:
        for call in calls:
            start = self._now()
            call()
            guess_s = self._now() - start
        turns = cycle(calls)
        block = ceil(self._effort.block_s / max(guess_s, 1e-7))

        def sample_s() -> float:
            start = self._now()
            for call in islice(turns, block):
                call()
            return (self._now() - start) / block

        return _median_of(sample_s, self._effort), True


class CudaTimer:
    """Time on the card between two CUDA events, around the replay of a CUDA graph that holds the calls.

    Without a graph (where one cannot be captured) short kernels wait for their launch: such points are marked.
    """

    clock = "CUDA events"

    def __init__(self, effort: Effort) -> None:
        self._effort = effort

    def median_s(self, calls: Calls) -> tuple[float, bool]:
        self._warm_up(calls)
        guess_s = _between_events_s(calls[0])
        block = min(max(len(calls), ceil(self._effort.block_s / max(guess_s, 1e-6))), 256)
        turns = list(islice(cycle(calls), block))

        def run() -> None:
            for call in turns:
                call()

        graph = self._captured(run)
        replay = run if graph is None else graph.replay
        replay()
        torch.cuda.synchronize()
        return _median_of(lambda: _between_events_s(replay) / block, self._effort), graph is not None

    def _warm_up(self, calls: Calls) -> None:
        """On a stream of its own, as a capture demands: libraries make their handles and workspaces now."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for call in (calls[0], *calls):
                call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()

    def _captured(self, run: Callable[[], None]) -> Any:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                run()
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError:  # some call synchronises, or this driver has no graphs
            torch.cuda.synchronize()
            return None
        return graph


def _between_events_s(call: Callable[[], Any]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3  # it is in milliseconds


def _median_of(sample_s: Callable[[], float], effort: Effort) -> float:
    samples: list[float] = []
    began = time.perf_counter()
    while len(samples) < effort.least or (len(samples) < effort.most and time.perf_counter() - began < effort.limit_s):
        samples.append(sample_s())
    return median(samples)
