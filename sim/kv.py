"""KV blocks: how many are free. Which physical block is used never matters, so blocks are counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .request import Sequence


class Hit(NamedTuple):
    """What a look-up found: full blocks cached, how many of them nobody uses, and where they lie."""

    blocks: int = 0
    idle: int = 0
    pieces: tuple[Any, ...] | list[Any] = ()


NO_HIT = Hit()


class BlockPool:
    """`total` KV blocks of `size` tokens each, without prefix cache.

    `free` counts the blocks that can be had now; in a pool with a prefix cache cached blocks that nobody uses are
    among them, as in vLLM.
    """

    caching = False

    def __init__(self, total: int, size: int) -> None:
        self.total = self.free = total
        self.size = size

    def take(self, n: int) -> None:
        """n blocks are used by somebody."""
        self.free -= n

    def reserve(self, seq: Sequence, tokens: int) -> bool:
        """Blocks for `tokens` tokens of seq for its whole life; False, and nothing taken, if there are too few."""
        need = -(-tokens // self.size)
        if need > self.free:
            return False
        self.take(need)
        seq.blocks, seq.grows = need, 0
        return True

    def lookup(self, seq: Sequence) -> Hit:
        """The prefix hit of a waiting sequence. Changes nothing."""
        return NO_HIT

    def use(self, seq: Sequence, hit: Hit) -> None:
        """seq uses the blocks of its hit."""

    def cache(self, seq: Sequence, tokens: int) -> None:
        """The full blocks of the first `tokens` tokens of seq become visible to others."""

    def reveal(self, seq: Sequence) -> None:
        """Somebody may look up what seq has made visible."""

    def reveal_ended(self, request_id: str) -> None:
        """The same for one that has ended."""

    def release(self, seq: Sequence) -> None:
        """seq gives back all its blocks."""
        self.free += seq.blocks
        seq.blocks, seq.grows = 0, 1
