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


class View(Protocol):
    """What a router may ask of a replica."""

    def kv_blocks_used(self) -> int:
        """KV blocks in use after the last of the replica's decisions strictly before now. For routers that watch."""


class Router(Protocol):
    """Chooses a replica for each request. It keeps its own index of the replicas, from what it is told.

    `tracks`: whether it is told of what has finished. It hears of step ends strictly before the time of its choice.
    A router may also have
    `watches_kv: bool`: it asks for KV blocks in use (default False);
    `begin(rng) -> None`: it draws; it is given a generator of its own before anything else.
    """

    tracks: bool

    def join(self, replica: int, view: View) -> None:
        """A replica takes requests from now on."""

    def choose(self, request: Asked) -> int:
        """The replica for a request, which is dispatched there."""

    def finished(self, replica: int) -> None:
        """A request there has ended."""
