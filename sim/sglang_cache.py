"""SGLang's prefix cache: a radix tree over pages of tokens, into which requests put what they have computed.

Content becomes visible when a prompt's step is processed, chunk by chunk, and when its request ends, outputs included.
What two computed at once is freed for one of them then. Cached pages are not free: they are evicted when room is made,
whole leaves that nobody uses, least recently used first.
"""

from __future__ import annotations

from .content import Runs
from .kv import NO_HIT, Hit
from .radix import Node, RadixTree
from .request import Sequence

TOO_LONG = "(too long)"  # the segment of the one token that stands for a prompt beyond the context


class SGLangCache(RadixTree):
    """A request's first `cached_blocks` pages belong to the tree, where it holds the node `held`; its others do not."""

    stores_in_order = True

    def __init__(self, total: int, size: int, caching: bool) -> None:
        super().__init__(total, size)
        self.on = self.stores_results = caching
        self.headroom = int(caching)

    def runs_of(self, seq: Sequence) -> Runs:
        if seq.runs is None and seq.prompt != seq.request.prompt_tokens:
            seq.runs = ((TOO_LONG, 0, 1), ("out:" + seq.request.id, 0, seq.outputs + 1))
        return super().runs_of(seq)

    # -- asked by the policy

    def match(self, seq: Sequence, tokens: int) -> tuple[int, Node]:
        """Pages of its first `tokens` tokens that are cached, and the node in which they end. This is a use of them."""
        pages = tokens // self.size
        if not self.on or not pages:
            return 0, self.root
        path: list[Node] = []
        found = self._walk(self.runs_of(seq), pages, path)
        now = self._tick()
        for node in path:
            node.used = now
        return found, path[-1] if path else self.root

    def checkpoint(self, seq: Sequence, tokens: int) -> None:
        """Its first `tokens` tokens, in whole pages, are in the tree. Those that were already are freed."""
        pages = tokens // self.size
        if not self.on or not pages:
            return
        had, node = self._insert(seq, pages)
        self.free += max(had - seq.cached_blocks, 0)
        seq.cached_blocks = pages
        prompt = seq.prompt // self.size
        if pages > prompt > 0:  # so that a node ends where the prompt does
            self._insert(seq, prompt)
        self.lock(node)
        if seq.held is not None:
            self.unlock(seq.held)
        seq.held = node

    def make_room(self, blocks: int) -> None:
        while self.free < blocks:
            leaf = self.oldest()
            if leaf is None:
                return
            self.remove(leaf)

    # -- asked by the batch

    def lookup(self, seq: Sequence) -> Hit:
        pages, node = self.match(seq, seq.known - 1)
        return Hit(pages, 0, (node,)) if pages else NO_HIT

    def use(self, seq: Sequence, hit: Hit) -> None:
        """The policy has locked it."""
        seq.held, seq.cached_blocks = hit.pieces[0], hit.blocks

    def store(self, seq: Sequence, tokens: int, computed: int) -> None:
        self.checkpoint(seq, tokens)

    def release(self, seq: Sequence, tokens: int) -> None:
        """What has ended is cached before; who is retracted loses all."""
        if tokens:
            self.checkpoint(seq, min(seq.computed, tokens + 1))
        self.free += seq.blocks - seq.cached_blocks
        if seq.held is not None:
            self.unlock(seq.held)
        seq.held, seq.cached_blocks = None, 0
        seq.blocks, seq.grows = 0, 1

    # -- the tree

    def _tick(self) -> int:
        self.time += 1
        return self.time

    def _walk(self, runs: Runs, pages: int, path: list[Node], each: bool = False) -> int:
        """The nodes of the longest cached path, split where it ends; each is used anew if asked. Its pages."""
        node, at = self.root, 0
        while at < pages:
            child, same = self.child_of(node, runs, at, pages)
            if child is None:
                break
            if same < child.pages:
                lower, child = child, self.split(child, same)
                child.used = lower.used = self._tick()
            if each:
                child.used = self._tick()
            path.append(child)
            node = child
            at += same
        return at

    def _insert(self, seq: Sequence, pages: int) -> tuple[int, Node]:
        """Its first `pages` pages are in the tree; how many were before, and the node in which they end."""
        runs = self.runs_of(seq)
        path: list[Node] = []
        at = self._walk(runs, pages, path, each=True)
        node = path[-1] if path else self.root
        if at < pages:
            self._tick()
            node = self.add(node, runs, at, pages)
        return at, node
