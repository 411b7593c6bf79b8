"""Replicas in turn."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..registry import register
from .base import Asked, View


@register("router", "round_robin")
@dataclass
class RoundRobin:
    """Replicas in turn, whatever their load."""

    tracks = False
    replicas: list[int] = field(init=False, default_factory=list)
    turn: int = field(init=False, default=0)

    def join(self, replica: int, view: View) -> None:
        self.replicas.append(replica)

    def choose(self, request: Asked) -> int:
        chosen = self.replicas[self.turn]
        self.turn = (self.turn + 1) % len(self.replicas)
        return chosen

    def finished(self, replica: int) -> None: ...
