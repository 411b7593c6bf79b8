"""KV blocks: how many are free. Which physical block is used never matters, so blocks are counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .request import PARTIAL

if TYPE_CHECKING:
    from .request import Sequence


class Hit(NamedTuple):
    """What a look-up found: blocks cached, how many of them nobody uses, where they lie, and the tokens that need not
    be computed (None: whole blocks)."""

    blocks: int = 0
    idle: int = 0
    pieces: tuple[Any, ...] | list[Any] = ()
    tokens: int | None = None


NO_HIT = Hit()


class OutOfBlocks(Exception):
    """What a decision relied on is not there, and the real engine would stop with an error. `str` says why."""


class BlockPool:
    """`total` KV blocks of `size` tokens each, without prefix cache.

    `free` counts the blocks that can be had now. Cached blocks that nobody uses are among them in vLLM and
    TensorRT-LLM; where they must first be evicted (SGLang, TGI) they are `evictable`. `used` are all others.

    Caches differ in when content becomes visible. `hits_running`: as soon as it is allocated, so what the running hold
    can be hit (vLLM). `stores_results`: when the step that computed a prompt is processed, by `store` (TensorRT-LLM,
    SGLang). Neither: when its request ends (TGI).
    """

    hits_running = False
    stores_results = False
    stores_in_order = False  # whole prompts only, with those who end, in the order of the batch; else after these
    headroom = 0  # blocks a member that a tick wants free, besides those that it takes
    evictable = 0

    def __init__(self, total: int, size: int) -> None:
        self.total = self.free = total
        self.size = size

    @property
    def all_held(self) -> int:
        """Blocks of all who run, shared ones once for each."""
        return self.total - self.free

    @property
    def used(self) -> int:
        return self.total - self.free - self.evictable

    def only_by(self, seq: Sequence, computed: int, paused: list[Sequence]) -> int:
        """Blocks that nobody else holds of a running sequence with `computed` tokens, after `paused` have given up
        theirs."""
        return max(seq.blocks if seq.state == PARTIAL else 0, -(-computed // self.size))

    def take(self, n: int) -> None:
        """n blocks are used by somebody."""
        self.free -= n

    def reserve(self, seq: Sequence, tokens: int) -> Hit | None:
        """Blocks for `tokens` tokens of seq for its whole life, before it is admitted; None, and nothing taken, if
        there are too few. `release` undoes it."""
        need = -(-tokens // self.size)
        if need > self.free:
            return None
        self.take(need)
        seq.blocks, seq.grows = need, 0
        return NO_HIT

    def make_room(self, blocks: int) -> None:
        """So many are free, if evicting helps."""

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

    def store(self, seq: Sequence, tokens: int, computed: int) -> None:
        """A step that computed a part of seq's prompt is processed: seq had `tokens` tokens then, `computed` now."""

    def release(self, seq: Sequence, tokens: int) -> None:
        """seq gives back all its blocks; the KV of its first `tokens` tokens is whole."""
        self.free += seq.blocks
        seq.blocks, seq.grows = 0, 1
