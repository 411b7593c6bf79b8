"""Replicas at random: one, or the better of two."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..registry import register
from .base import Asked, View

if TYPE_CHECKING:
    import numpy as np

BLOCK = 1024  # numbers drawn at once; their values do not depend on it


@register("router", "random")
@dataclass
class Random:
    """A replica at random, whatever their load."""

    tracks = False
    replicas: list[int] = field(init=False, default_factory=list)
    draws: Draws = field(init=False)

    def begin(self, rng: np.random.Generator) -> None:
        self.draws = Draws(rng)

    def join(self, replica: int, view: View) -> None:
        self.replicas.append(replica)

    def choose(self, request: Asked) -> int:
        return self.replicas[self.draws.below(len(self.replicas))]

    def finished(self, replica: int) -> None: ...


@register("router", "power_of_two")
@dataclass
class PowerOfTwo:
    """Of two replicas at random the one with fewer requests waiting or running; of equals the one drawn first."""

    tracks = True
    replicas: list[int] = field(init=False, default_factory=list)
    load: dict[int, int] = field(init=False, default_factory=dict)
    draws: Draws = field(init=False)

    def begin(self, rng: np.random.Generator) -> None:
        self.draws = Draws(rng)

    def join(self, replica: int, view: View) -> None:
        self.replicas.append(replica)
        self.load[replica] = 0

    def choose(self, request: Asked) -> int:
        count = len(self.replicas)
        first = self.draws.below(count)
        second = self.draws.below(max(count - 1, 1))  # of the others; drawn always, so that each request takes two
        chosen = self.replicas[first]
        if count > 1:
            other = self.replicas[second + (second >= first)]
            if self.load[other] < self.load[chosen]:
                chosen = other
        self.load[chosen] += 1
        return chosen

    def finished(self, replica: int) -> None:
        self.load[replica] -= 1


class Draws:
    """Random whole numbers, from a generator that is asked for many at once."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._ready: list[float] = []

    def below(self, count: int) -> int:
        """From 0 to count - 1, all equally likely."""
        if not self._ready:
            self._ready = self._rng.random(BLOCK)[::-1].tolist()
        return int(self._ready.pop() * count)
