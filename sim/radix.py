"""Trees of cached content, whose nodes are runs of pages of any length: what TGI's and SGLang's prefix caches share.

Children of a node differ in their first page. Which physical block is used never matters, so a node is its content, its
length in pages, and who uses it. The two caches differ in when they put something in, what a use renews and what may be
evicted; that is theirs.
"""

from __future__ import annotations

import heapq
from typing import Any

from .content import Runs, common, content, cut
from .kv import BlockPool
from .request import Sequence


class Node:
    """A run of pages. `users` use it or something below; while there are none, it may be evicted."""

    __slots__ = ("children", "key", "number", "offered", "pages", "parent", "runs", "used", "users")

    def __init__(self, parent: Node | None, runs: Runs, pages: int, used: int, number: int = 0) -> None:
        self.parent, self.runs, self.pages, self.used, self.number = parent, runs, pages, used, number
        self.users = 0
        self.offered = False  # for eviction
        self.key: Any = None  # its first page
        self.children: dict[Any, Node] = {}


class RadixTree(BlockPool):
    """Free blocks are those that nobody uses and that hold nothing; `evictable` ones hold what nobody uses."""

    def __init__(self, total: int, size: int) -> None:
        super().__init__(total, size)
        self.root = Node(None, (), 0, 0)
        self.evictable = 0
        self.cached = 0  # blocks that the tree holds
        self.time = 0  # of the last use
        self._leaves: list[tuple[int, int, int, Node]] = []  # heap: (last use, number, serial, leaf), stale ones among
        self._serial = 0

    def runs_of(self, seq: Sequence) -> Runs:
        """All that seq may ever hold."""
        if seq.runs is None:
            seq.runs = content(seq.request, seq.outputs + 1)
        return seq.runs

    def first_page(self, runs: Runs, at: int) -> Any:
        """What tells children apart: the page that begins with token `at`."""
        if self.size == 1:
            for segment, first, n in runs:
                if at < n:
                    return segment, first + at
                at -= n
        return cut(runs, at, at + self.size)

    def child_of(self, node: Node, runs: Runs, page: int, pages: int) -> tuple[Node | None, int]:
        """The child of node that begins with page number `page` of runs, and how many of its pages, up to page
        `pages`, are the same."""
        size = self.size
        child = node.children.get(self.first_page(runs, page * size)) if node.children else None
        if child is None:
            return None, 0
        end = min(page + child.pages, pages)
        return child, common(child.runs, cut(runs, page * size, end * size)) // size

    def add(self, parent: Node, runs: Runs, page: int, pages: int, number: int = 0) -> Node:
        """Pages `page` ... `pages` - 1 of runs become a leaf. Nobody uses it yet."""
        size = self.size
        node = Node(parent, cut(runs, page * size, pages * size), pages - page, self.time, number)
        node.key = self.first_page(runs, page * size)
        parent.children[node.key] = node
        self.cached += node.pages
        self.evictable += node.pages
        self.offer(node)
        return node

    def split(self, node: Node, pages: int, number: int = 0) -> Node:
        """The first `pages` pages of node become its parent, in its place, which is returned."""
        assert node.parent is not None
        at = pages * self.size
        upper = Node(node.parent, cut(node.runs, 0, at), pages, node.used, number)
        upper.key, upper.users = node.key, node.users
        node.parent.children[node.key] = upper
        node.runs = cut(node.runs, at, node.pages * self.size)
        node.pages -= pages
        node.parent = upper
        node.key = self.first_page(node.runs, 0)
        upper.children[node.key] = node
        return upper

    def lock(self, node: Node) -> None:
        """One more uses node, and all above it."""
        at: Node = node
        while at.parent is not None:
            if not at.users:
                self.evictable -= at.pages
            at.users += 1
            at = at.parent

    def unlock(self, node: Node) -> None:
        at: Node = node
        while at.parent is not None:
            at.users -= 1
            if not at.users:
                self.evictable += at.pages
                if not at.children:
                    self.offer(at)
            at = at.parent

    def offer(self, node: Node) -> None:
        """node may be evicted, as far as one can tell now."""
        if node.offered:
            return
        node.offered = True
        self._serial += 1
        heapq.heappush(self._leaves, (node.used, node.number, self._serial, node))

    def oldest(self) -> Node | None:
        """The leaf that nobody uses and whose last use is longest ago; of equals the one with the least number."""
        heap = self._leaves
        while heap:
            used, number, _, node = heap[0]
            fits = not node.children and not node.users and node.pages
            if fits and used == node.used and number == node.number:
                return node
            heapq.heappop(heap)
            node.offered = False
            if fits:
                self.offer(node)
        return None

    def remove(self, node: Node) -> None:
        """A leaf goes, and what it holds is free."""
        assert node.parent is not None
        parent, pages = node.parent, node.pages
        del parent.children[node.key]
        node.pages = 0
        self.free += pages
        self.evictable -= pages
        self.cached -= pages
        if not parent.children and not parent.users and parent.parent is not None:
            self.offer(parent)

    def shorten(self, node: Node, pages: int) -> None:
        """The last `pages` pages of a leaf go."""
        node.pages -= pages
        node.runs = cut(node.runs, 0, node.pages * self.size)
        self.free += pages
        self.evictable -= pages
        self.cached -= pages
