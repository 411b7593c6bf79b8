"""What a router is told, and what it is asked."""

from __future__ import annotations

from typing import Protocol


class Asked(Protocol):
    """What a router sees of a request: never how many tokens it will give."""

    id: str
    arrival_s: float
    prompt_tokens: int
    max_tokens: int | None
    priority: int
    prefix: tuple[tuple[str, int], ...]


class Router(Protocol):
    """Chooses a replica for each request. It keeps its own index of the replicas, from what it is told.

    `tracks`: whether it is told of what has finished. It hears of step ends strictly before the time of its choice.
    """

    tracks: bool

    def join(self, replica: int) -> None:
        """A replica takes requests from now on."""

    def choose(self, request: Asked) -> int:
        """The replica for a request, which is dispatched there."""

    def finished(self, replica: int) -> None:
        """A request there has ended."""
