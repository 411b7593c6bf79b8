"""What is said of a request before it runs: whose it is, by when its first token is due, how long it may become.

This is all that an order of the queue knows besides the request and what has been served. True output lengths stay
behind it: a predictor is a model beside the engine, so its guesses are part of the workload. The error of each guess is
drawn by the request's index from a stream of its own: the same for every policy and order, and scaled by `error`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, inf
from typing import TYPE_CHECKING

from ..streams import streams
from .source import BLOCK

if TYPE_CHECKING:
    import numpy as np

    from ..request import Request
    from ..scenario import Scenario


class Outlook:
    """One for a run, the same for the same scenario, seed and replication."""

    def __init__(self, scenario: Scenario, replication: int = 0) -> None:
        self._classes, self._slo = scenario.workload.classes, scenario.slo
        self._stream = streams(scenario.seed, replication)
        self._deviates: list[float] = []
        self._rng: np.random.Generator | None = None

    def tenant(self, request: Request) -> str:
        """The tenant of its class, else the class's label."""
        kind = self._classes.get(request.cls)
        return (kind.tenant if kind is not None else None) or request.cls

    def deadline_s(self, request: Request) -> float:
        """When its first token is due: at its arrival and the SLO's time to the first token; infinite without one."""
        kind = self._classes.get(request.cls)
        slo = kind.slo if kind is not None and kind.slo is not None else self._slo
        return inf if slo.ttft_ms is None else request.arrival_s + slo.ttft_ms / 1000

    def predictor(self, error: float) -> Callable[[Request], float]:
        """Guesses output tokens: the true length, times e to the power of `error` times a standard normal deviate."""
        return lambda request: request.output_tokens * exp(error * self._deviate(request.index))

    def oracle(self, request: Request) -> int:
        """The true output tokens, which nobody can know."""
        return request.output_tokens

    def _deviate(self, index: int) -> float:
        while index >= len(self._deviates):
            self._rng = self._rng or self._stream("predictions")
            self._deviates += self._rng.standard_normal(BLOCK).tolist()
        return self._deviates[index]
