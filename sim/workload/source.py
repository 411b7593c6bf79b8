"""Sources of requests.

A workload is a source, not a list: what ends may bring about what comes next (closed loops now; sessions and retries
later). All draws are keyed by the request's index in streams of their own, so that a policy or a rate changes times,
never draws.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .. import registry
from ..request import Request
from ..streams import streams
from .classes import BLOCK, ClassDraws, Facts

if TYPE_CHECKING:
    from ..scenario import RequestClass, Scenario


class Source(Protocol):
    """What the front end asks for requests."""

    reacts: bool  # whether `done` brings about requests
    total: int | None  # how many there will be in all, where that is known
    warnings: list[str]

    def next(self) -> Request | None:
        """The next request, in order of arrival, among those known by now; None: no other is known now."""

    def done(self, request: Request, time_s: float, status: str) -> None:
        """A request has ended, whatever its status. Only called where `reacts`; afterwards `next` may give new ones."""


class Setup:
    """What an arrival process needs to make a source: the workload's limits, streams and request classes."""

    def __init__(self, scenario: "Scenario", replication: int = 0) -> None:
        workload = scenario.workload
        self.stream: Callable[[str], np.random.Generator] = streams(scenario.seed, replication)
        self.num_requests = workload.num_requests
        self.duration_s = workload.duration_s
        self.ignore_eos = workload.ignore_eos
        self.classes: dict[str, RequestClass] = workload.classes
        self.resolve: Callable[[str], FilePath] = scenario.resolve

    def facts(self) -> Iterator[Iterable[Facts]]:
        """Blocks of what each request is but for its arrival, in order of their index; without end."""
        classes = [ClassDraws(self, label) for label in self.classes]
        if len(classes) == 1:
            yield from classes[0].blocks()
        blocks = [each.blocks() for each in classes]
        in_turn = {k: chain.from_iterable(blocks[k]) for k, each in enumerate(classes) if each.kind.samples > 1}
        for chosen in self._chosen():
            rows = [[] if k in in_turn else list(next(block)) for k, block in enumerate(blocks)]
            if in_turn:
                yield [next(in_turn[k]) if k in in_turn else rows[k][i] for i, k in enumerate(chosen)]
            else:
                yield [rows[k][i] for i, k in enumerate(chosen)]

    def labelled(self, prompts: list[int], outputs: list[int]) -> Iterable[Facts]:
        """The same where the lengths are known already, as from a trace."""
        rows = [ClassDraws(self, label).rows(prompts, outputs) for label in self.classes]
        if len(rows) == 1:
            return rows[0]
        chosen = (k for block in self._chosen() for k in block)
        listed = [list(each) for each in rows]
        return [listed[k][i] for i, k in zip(range(len(prompts)), chosen, strict=False)]

    def _chosen(self) -> Iterator[list[int]]:
        weights = np.array([kind.weight for kind in self.classes.values()])
        edges = (np.cumsum(weights) / weights.sum())[:-1]
        rng = self.stream("classes")
        while True:
            yield np.searchsorted(edges, rng.random(BLOCK), side="right").tolist()


class Fixed:
    """A source whose requests do not depend on what happens to them."""

    reacts = False

    def __init__(self, requests: Iterator[Request], total: int | None, warnings: list[str] | None = None) -> None:
        self.total = total
        self.warnings = warnings if warnings is not None else []
        # An iterator bound once: the simulator asks once per request, and this is the quickest answer.
        self.next: Callable[[], Request | None] = partial(next, requests, None)

    def done(self, request: Request, time_s: float, status: str) -> None:
        """Nothing follows from it."""


def open_loop(setup: Setup, times: Iterator[list[float]], warnings: list[str] | None = None) -> Fixed:
    """The source of an arrival process: blocks of growing arrival times (s), cut by the workload's limits.

    Every block but the last has `BLOCK` times; warnings may be added while times are made.
    """
    return Fixed(_requests(setup, times), setup.num_requests if setup.duration_s is None else None, warnings)


def _requests(setup: Setup, times: Iterator[list[float]]) -> Iterator[Request]:
    end = setup.duration_s if setup.duration_s is not None else float("inf")
    left, by_length = setup.num_requests, setup.ignore_eos
    index = 0
    for facts, block in zip(setup.facts(), times, strict=False):
        if left is not None:
            block = block[:left]
            left -= len(block)
        for arrival_s, (prompt, output, limit, priority, prefix, label) in zip(block, facts, strict=False):
            if arrival_s >= end:
                return
            yield Request(index, f"r{index}", arrival_s, prompt, output, limit, priority, prefix, label, by_length)
            index += 1
        if left == 0:
            return


def make_source(scenario: "Scenario", replication: int = 0) -> Source:
    """The source of a scenario's workload, fresh; the same scenario, seed and replication give the same requests."""
    arrivals: Any = registry.build("arrivals", scenario.workload.arrivals)
    source: Source = arrivals.source(Setup(scenario, replication))
    return source
