"""Text Generation Inference's prefix cache: a radix tree of the prompts of requests that have ended.

A request has all its blocks from its admission to its end, its hit's among them by pinning the tree's node. Content
becomes visible when its request ends, or is put back, and only the full blocks of its prompt. Evicted are unpinned
leaves, least recently used first, from their end; what a failed allocation has evicted stays evicted.
"""

from __future__ import annotations

from .kv import NO_HIT, Hit
from .radix import RadixTree
from .request import Sequence


class TGICache(RadixTree):
    """`free` are the blocks in the free list: cached ones are not among them."""

    def __init__(self, total: int, size: int) -> None:
        super().__init__(total, size)
        self._numbers = 0
        self._given_up: list[int] = []  # numbers of removed nodes, used again, the last one first

    def reserve(self, seq: Sequence, tokens: int) -> Hit | None:
        runs, size = self.runs_of(seq), self.size
        full = seq.prompt // size
        self.time += 1
        node, hit = self.root, 0
        while hit < full:
            child, same = self.child_of(node, runs, hit, full)
            if child is None:
                break
            child.used = self.time
            hit, node = hit + same, child
            if same < child.pages:
                break
        self.lock(node)
        need = -(-(tokens - hit * size) // size)
        if self.free < need:
            self._evict(need - self.free)
            if self.free < need:
                self.unlock(node)
                return None
        self.free -= need
        seq.held = node, hit, need
        seq.blocks, seq.grows = need + hit, 0
        return Hit(hit, tokens=min(hit * size, seq.prompt - 1)) if hit else NO_HIT

    def release(self, seq: Sequence, tokens: int) -> None:
        """What its prompt holds beyond the tree passes to the tree, also if it was never computed."""
        node, hit, own = seq.held
        self.unlock(node)
        full = seq.prompt // self.size
        if hit * self.size < seq.prompt and full:
            had = self._insert(seq, full)
            passed = full - max(had, hit)
            own -= passed
        self.free += own
        seq.held = None
        seq.blocks, seq.grows = 0, 1

    def _insert(self, seq: Sequence, full: int) -> int:
        """The blocks of its prompt are in the tree; returns how many were before."""
        runs = self.runs_of(seq)
        self.time += 1
        node, at = self.root, 0
        while at < full:
            child, same = self.child_of(node, runs, at, full)
            if child is None:
                self.add(node, runs, at, full, self._number())
                return at
            child.used = self.time
            at += same
            if at < full and same < child.pages:
                child = self.split(child, same, self._number())
                child.used = self.time
            node = child
        return at

    def _evict(self, blocks: int) -> None:
        while blocks > 0:
            node = self.oldest()
            if node is None:
                return
            n = min(node.pages, blocks)
            if n == node.pages:
                self._given_up.append(node.number)
                self.remove(node)
            else:
                self.shorten(node, n)
            blocks -= n

    def _number(self) -> int:
        if self._given_up:
            return self._given_up.pop()
        self._numbers += 1
        return self._numbers
