"""The replica with the fewest KV blocks in use."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..registry import register
from .base import Asked, View


@register("router", "least_kv")
@dataclass
class LeastKV:
    """The replica with the fewest KV blocks in use, as its engine last reported; of equals the one longest unused.

    What has been sent there and not yet been scheduled holds no block, so requests that come together go together
    where replicas differ.
    """

    tracks = False
    watches_kv = True
    views: dict[int, View] = field(init=False, default_factory=dict)
    last: dict[int, int] = field(init=False, default_factory=dict)  # turn of the last request sent there
    turn: int = field(init=False, default=0)

    def join(self, replica: int, view: View) -> None:
        self.views[replica] = view
        self.last[replica] = -1

    def choose(self, request: Asked) -> int:
        _, _, chosen = min((view.kv_blocks_used(), self.last[replica], replica) for replica, view in self.views.items())
        self.last[chosen] = self.turn
        self.turn += 1
        return chosen

    def finished(self, replica: int) -> None: ...
