"""TensorRT-LLM's block reuse: a tree with a block a node, and a queue of all blocks that nobody references.

New blocks come from the queue's head; freed ones go to its tail, a sequence's last block first, and stay in the tree
until they are taken. A taken block leaves its node empty; what hangs below stays, and is found again once the node is
filled again. Content becomes visible when the step that computed it is processed, and when its request frees its
blocks, a part-filled last block included.

Most sequences share nothing: nobody will ever name their tokens. What such a private sequence has stored enters the
tree only when somebody names it, and until then its blocks stand in the queue as one item.
"""

from __future__ import annotations

from typing import Any

from .content import content, cut
from .kv import NO_HIT, BlockPool, Hit, OutOfBlocks
from .request import PARTIAL, Sequence

SHORT = "no free block is left: by TensorRT-LLM's rule a cached block counted as held that was not"
"""Of a match with a gap of unreferenced blocks, or shared with one who was then paused. Its allocation fails there."""


class Node:
    """The content of one block, after its parent's."""

    __slots__ = ("block", "children", "key", "parent")

    def __init__(self, parent: Node | None, key: Any) -> None:
        self.parent, self.key = parent, key
        self.children: dict[Any, Node] = {}
        self.block: Item | None = None


class Item:
    """`count` blocks in the queue, or one that is in the tree, referenced `refs` times. Of a private sequence that has
    ended (`owner`), the first `cached` blocks hold what it has stored."""

    __slots__ = ("cached", "count", "next", "node", "owner", "part", "prev", "refs")

    def __init__(self, count: int, node: Node | None = None, owner: Sequence | None = None) -> None:
        self.count, self.node, self.owner = count, node, owner
        self.cached = self.part = 0  # blocks; tokens in the last of them, where it is not full
        self.refs = 0
        self.prev: Item = self
        self.next: Item = self


class TRTLLMCache(BlockPool):
    """`free` are the unreferenced blocks, in the tree or not; `all_held` counts a block for each who holds it."""

    stores_results = True

    def __init__(self, total: int, size: int) -> None:
        super().__init__(total, size)
        self.held = 0
        self.root = Node(None, None)
        self.queue = Item(0)  # the ring's anchor: next is the head
        self.named: set[str] = set()  # requests whose tokens somebody has named
        self.private: dict[str, Sequence | Item] = {}  # by id: who runs, or its item in the queue
        self._append(Item(total))

    @property
    def all_held(self) -> int:
        return self.held

    def take(self, n: int) -> None:
        if n > self.free:
            raise OutOfBlocks(SHORT)
        self.free -= n
        self.held += n
        while n:
            item = self.queue.next
            if item.count > n:
                item.count -= n  # a sequence's last block goes first
                if item.cached > item.count:
                    item.cached, item.part = item.count, 0
                return
            n -= item.count
            self._unlink(item)
            if item.node is not None:
                self._empty(item.node)
            elif item.owner is not None:
                self.private.pop(item.owner.request.id, None)

    # -- asked by the policy

    def lookup(self, seq: Sequence) -> Hit:
        """Full blocks of all its known tokens that are in the tree, from the first on."""
        found = self._match(seq, seq.known, False)[0]
        if not found:
            return NO_HIT
        return Hit(len(found), sum(not item.refs for item in found), found)

    def first_missing(self, seq: Sequence) -> Any:
        """The content of its first full block that is not in the tree; None if all are."""
        if self._is_private(seq):
            at = seq.visible // self.size
        else:
            at = len(self._match(seq, seq.known, False)[0])
        return self._keys(seq)[at] if at < seq.known // self.size else None

    def only_by(self, seq: Sequence, computed: int, paused: list[Sequence]) -> int:
        """Blocks that come free if seq is paused, after `paused` have been."""
        blocks = seq.blocks if seq.state == PARTIAL else -(-computed // self.size)
        gone: dict[Item, int] = {}
        for other in paused:
            for item in other.held or ():
                if item is not None:
                    gone[item] = gone.get(item, 0) + 1
        shared = [item for item in seq.held or () if item is not None and item.refs - gone.get(item, 0) > 1]
        return blocks - len(shared)

    def begin(self, seqs: list[Sequence], growth: int) -> dict[Sequence, Hit]:
        """The hits of those who start in this step, referenced: all are found before any takes new blocks, and all
        others that the step takes, `growth`, must be there too.

        A matched part-filled block leaves the tree and belongs to the first who matched it; others copy it.
        """
        hits: dict[Sequence, Hit] = {}
        parts: dict[Item, None] = {}
        for seq in seqs:
            found, tokens = self._match(seq, seq.known - 1, True)
            if not found:
                hits[seq] = NO_HIT
                continue
            blocks = len(found)
            if tokens % self.size:
                part = found.pop()
                if part in parts:
                    blocks -= 1
                else:
                    parts[part] = None
                    self._unlink(part)
                    self.free -= 1
            for item in found:
                item.refs += 1
                if item.refs == 1:
                    self._unlink(item)
                    self.free -= 1
            hits[seq] = Hit(blocks, 0, found, tokens)
        if growth + sum([-(-seq.known // self.size) - hits[seq].blocks for seq in seqs]) > self.free:
            raise OutOfBlocks(SHORT)
        for part in parts:
            assert part.node is not None
            self._empty(part.node)
        return hits

    # -- asked by the batch

    def use(self, seq: Sequence, hit: Hit) -> None:
        self.held += hit.blocks
        seq.held = list(hit.pieces)

    def store(self, seq: Sequence, tokens: int, computed: int) -> None:
        """In the middle of a prompt the last full block is not stored yet."""
        self._store(seq, computed - 1 if seq.state == PARTIAL else computed, False)

    def release(self, seq: Sequence, tokens: int) -> None:
        usable = tokens - 1 if seq.state == PARTIAL else tokens
        blocks = seq.blocks
        self.held -= blocks
        if self._is_private(seq):
            item = Item(blocks, owner=seq)
            full = max(usable, seq.visible, 0)
            item.cached, item.part = min(-(-full // self.size), blocks), full % self.size
            if item.cached:
                self.private[seq.request.id] = item
            else:
                self.private.pop(seq.request.id, None)
            self._append(item)
            self.free += blocks
        else:
            self._store(seq, usable, True)
            held: list[Item | None] = seq.held or []
            plain = blocks - len(held)
            if plain:
                self._append(Item(plain))
                self.free += plain
            for each in reversed(held):
                if each is None:
                    each = Item(1)
                else:
                    each.refs -= 1
                    if each.refs:
                        continue
                self._append(each)
                self.free += 1
        seq.held = None
        seq.blocks, seq.grows, seq.visible = 0, 1, 0

    # -- contents

    def _keys(self, seq: Sequence) -> list[Any]:
        """What the full blocks of seq hold, of all tokens that it may ever have."""
        if seq.path is None:
            seq.runs = runs = content(seq.request, seq.outputs)
            size = self.size
            keys: list[Any] = []
            at = begin = 0  # tokens: where a run begins, and where the next block does
            for segment, _, n in runs:
                end = at + n
                if begin < at and end >= begin + size:  # a block that straddles segments
                    keys.append(cut(runs, begin, begin + size))
                    begin += size
                if begin >= at:
                    full = (end - begin) // size
                    keys += [(segment, first) for first in range(begin - at, begin - at + full * size, size)]
                    begin += full * size
                at = end
            seq.path = keys
        return seq.path

    def _path(self, seq: Sequence, tokens: int, part: bool) -> list[Any]:
        """What the blocks of its first `tokens` tokens hold; that of a part-filled last one too, if asked."""
        full, rest = divmod(max(tokens, 0), self.size)
        keys = self._keys(seq)[:full]
        if part and rest:
            assert seq.runs is not None
            keys.append(cut(seq.runs, full * self.size, full * self.size + rest))
        return keys

    def _match(self, seq: Sequence, tokens: int, part: bool) -> tuple[list[Item], int]:
        """Blocks that hold the first `tokens` tokens of seq, and how many; the last one part-filled, if asked."""
        found: list[Item] = []
        if self._is_private(seq) and seq.request.id not in self.private:
            return found, 0
        self._reveal_named(seq)
        node = self.root
        for key in self._path(seq, tokens, part):
            below = node.children.get(key)
            if below is None or below.block is None:
                break
            node = below
            found.append(below.block)
        return found, min(len(found) * self.size, tokens)

    # -- the tree

    def _is_private(self, seq: Sequence) -> bool:
        return not seq.request.prefix and seq.request.id not in self.named

    def _reveal_named(self, seq: Sequence) -> None:
        """What seq names enters the tree, as far as it is stored; so does what it has left itself."""
        for segment, _ in seq.request.prefix:
            if segment[:4] in ("own:", "out:"):
                self._reveal(segment[4:])
        if seq.request.id in self.private:
            self._reveal(seq.request.id)

    def _reveal(self, request_id: str) -> None:
        if request_id in self.named:
            return
        self.named.add(request_id)
        there = self.private.pop(request_id, None)
        if isinstance(there, Sequence):
            self._store(there, there.visible, False)
        elif there is not None:
            seq, plain = there.owner, there.count - there.cached
            assert seq is not None
            tokens = there.cached * self.size - (self.size - there.part if there.part else 0)
            self._store(seq, tokens, True)
            held, seq.held = seq.held, None
            if plain:
                self._append(Item(plain), there)
            for item in reversed(held):
                item = item or Item(1)
                item.refs = 0
                self._append(item, there)
            self._unlink(there)

    def _store(self, seq: Sequence, tokens: int, part: bool) -> None:
        """The blocks of the first `tokens` tokens of seq are in the tree, but where another holds the same."""
        if self._is_private(seq):
            full = max(tokens, 0) // self.size * self.size
            if full > seq.visible:
                seq.visible = full
                self.private[seq.request.id] = seq
            return
        held: list[Item | None] = seq.held if seq.held is not None else []
        seq.held = held
        done = held.index(None) if None in held else len(held)
        node = self.root
        if done:
            own = held[done - 1]
            assert own is not None and own.node is not None
            node = own.node
        for at, key in enumerate(self._path(seq, tokens, part)[done:], done):
            below = node.children.get(key)
            if below is None:
                below = node.children[key] = Node(node, key)
            node = below
            if at == len(held):
                held.append(None)
            if node.block is None and held[at] is None:
                item = Item(1, node)
                item.refs = 1
                node.block = held[at] = item
        self._prune(node)

    def _empty(self, node: Node) -> None:
        node.block = None
        self._prune(node)

    @staticmethod
    def _prune(node: Node) -> None:
        """Nodes that hold nothing, themselves and below, go."""
        while node.block is None and not node.children and node.parent is not None:
            del node.parent.children[node.key]
            node = node.parent

    # -- the queue

    def _append(self, item: Item, before: Item | None = None) -> None:
        after = before or self.queue
        item.prev, item.next = after.prev, after
        after.prev.next = item
        after.prev = item

    @staticmethod
    def _unlink(item: Item) -> None:
        item.prev.next, item.next.prev = item.next, item.prev
