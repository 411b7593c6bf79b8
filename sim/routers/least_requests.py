"""The replica with the fewest requests."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..registry import register
from .base import Asked, View


@register("router", "least_requests")
@dataclass
class LeastRequests:
    """The replica with the fewest requests waiting or running; of equals the one whose turn is longest ago."""

    tracks = True
    load: dict[int, tuple[int, int, int]] = field(init=False, default_factory=dict)  # requests, last turn, replica
    turn: int = field(init=False, default=0)

    def join(self, replica: int, view: View) -> None:
        self.load[replica] = (0, -1, replica)

    def choose(self, request: Asked) -> int:
        requests, _, chosen = min(self.load.values())
        self.load[chosen] = (requests + 1, self.turn, chosen)
        self.turn += 1
        return chosen

    def finished(self, replica: int) -> None:
        requests, turn, _ = self.load[replica]
        self.load[replica] = (requests - 1, turn, replica)
