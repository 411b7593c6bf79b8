"""Prefix cache over a block pool, kept in runs of blocks, never block by block.

Contents form a tree. A node is a run of blocks named by what it holds: blocks that lie within one segment of tokens
are one node (segment, offset of its first token); a block that straddles segments is a node of its own. A node hangs
at a block offset of its parent. A piece is a range of a node's blocks that were cached together and are used by the
same sequences. The free list is a count of uncached blocks, taken first, then the idle pieces, least recently used
first, each from its end.

Most sequences share nothing: nobody will ever name their tokens. What such a private sequence has filled enters the
tree only when somebody names it; if it ends before, one piece without a node keeps its place among the idle ones.
"""

from __future__ import annotations

from typing import Any

from .kv import NO_HIT, BlockPool, Hit
from .request import Sequence

Path = list[tuple[int, Any]]  # runs of blocks: (how many, name)


class Node:
    """A run of blocks with the same name at the same place; `pieces` in the order in which they were cached."""

    __slots__ = ("children", "key", "parent", "pieces")

    def __init__(self, parent: Node | None, key: tuple[int, Any] | None) -> None:
        self.parent, self.key = parent, key
        self.children: dict[tuple[int, Any], Node] = {}
        self.pieces: list[Piece] = []


class Piece:
    """Blocks lo ... hi - 1 of a node, used by `users`; linked into the ring of idle pieces while there are none."""

    __slots__ = ("hi", "lo", "next", "node", "owner", "prev", "users")

    def __init__(self, node: Node | None, lo: int, hi: int, owner: Sequence | None = None) -> None:
        self.node, self.lo, self.hi = node, lo, hi
        self.owner = owner  # of a piece without a node: the private sequence whose first blocks these are
        self.users: dict[Sequence, None] = {}
        self.prev: Piece = self
        self.next: Piece = self


class PrefixCache(BlockPool):
    """vLLM's automatic prefix caching: content is visible as soon as its blocks are allocated."""

    hits_running = True

    def __init__(self, total: int, size: int) -> None:
        super().__init__(total, size)
        self.uncached = total
        self.root = Node(None, None)
        self.idle = Piece(None, 0, 0)  # the ring's anchor: next is the least recently used
        self.private: dict[str, Piece] = {}  # request id -> its idle piece without a node

    def take(self, n: int) -> None:
        """n blocks leave the free list; cached ones among them are forgotten."""
        self.free -= n
        if n <= self.uncached:
            self.uncached -= n
            return
        n -= self.uncached
        self.uncached = 0
        while n:
            piece = self.idle.next
            held = piece.hi - piece.lo
            if held > n:
                piece.hi -= n
                return
            n -= held
            self._unlink(piece)
            node = piece.node
            if node is None:
                assert piece.owner is not None
                del self.private[piece.owner.request.id]
                continue
            node.pieces.remove(piece)
            while not node.pieces and not node.children and node.parent is not None:
                assert node.key is not None
                del node.parent.children[node.key]
                node = node.parent

    def lookup(self, seq: Sequence) -> Hit:
        """The longest run of leading full blocks that are cached; never the block of the last known token."""
        left = (seq.known - 1) // self.size
        if left <= 0 or (seq.pieces is None and not self._named(seq)):
            return NO_HIT
        node: Node | None = self.root
        offset = blocks = idle = 0
        found: list[tuple[Piece, int, int]] = []
        for length, name in seq.path or self._path(seq):
            node = node.children.get((offset, name)) if node is not None and left > 0 else None
            if node is None:
                break
            want, at = min(length, left), 0
            while at < want:
                piece, end = self._first_cached(node, at, want)
                if piece is None:
                    break
                found.append((piece, at, end))
                blocks += end - at
                if not piece.users:
                    idle += end - at
                at = end
            if at < length:
                break
            offset = length
            left -= length
        return Hit(blocks, idle, found) if blocks else NO_HIT

    def use(self, seq: Sequence, hit: Hit) -> None:
        seq.pieces = pieces = seq.pieces or []
        for piece, lo, hi in hit.pieces:
            if piece.lo < lo:
                self._split(piece, lo)
            if hi < piece.hi:
                piece = self._split(piece, hi)
            if not piece.users:
                self._unlink(piece)
                self.free -= piece.hi - piece.lo
            piece.users[seq] = None
            pieces.append(piece)
            seq.cached_blocks += piece.hi - piece.lo

    def cache(self, seq: Sequence, tokens: int) -> None:
        if tokens > seq.visible:
            seq.visible = tokens
        if seq.pieces is not None:
            self._register(seq)
        elif self._named(seq):
            self.reveal(seq)

    def reveal(self, seq: Sequence) -> None:
        """What seq has made visible enters the tree: somebody names it."""
        if seq.pieces is None:
            seq.pieces = []
            self._register(seq)

    def reveal_ended(self, request_id: str) -> None:
        """The same for one that has ended: its idle piece becomes pieces of the tree, at its place in the ring."""
        whole = self.private.pop(request_id, None)
        if whole is None:
            return
        seq = whole.owner
        assert seq is not None
        seq.pieces, seq.cached_blocks, seq.grow_at, seq.visible = [], 0, None, whole.hi * self.size
        self._register(seq)
        for piece in reversed(seq.pieces):
            del piece.users[seq]
            self._link(piece, whole)
        self._unlink(whole)
        seq.pieces = None

    def release(self, seq: Sequence, tokens: int = 0) -> None:
        """All blocks of seq are given back, its last one first."""
        if seq.pieces is None:
            cached = min(seq.visible // self.size, seq.blocks)
            if cached:
                piece = Piece(None, 0, cached, seq)
                self.private[seq.request.id] = piece
                self._link(piece, self.idle)
            self.uncached += seq.blocks - cached
            self.free += seq.blocks
        else:
            uncached = seq.blocks - seq.cached_blocks
            self.uncached += uncached
            self.free += uncached
            for piece in reversed(seq.pieces):
                del piece.users[seq]
                if not piece.users:
                    self._link(piece, self.idle)
                    self.free += piece.hi - piece.lo
            seq.pieces, seq.cached_blocks, seq.grow_at = [], 0, None
        seq.blocks, seq.grows, seq.visible = 0, 1, 0

    # -- the tree

    def _named(self, seq: Sequence) -> bool:
        """Whether its tokens are shared, or somebody has named them before they came."""
        request, known = seq.request, self.root.children
        return bool(request.prefix or (known and (0, ("own:" + request.id, 0)) in known))

    def _register(self, seq: Sequence) -> None:
        """The full blocks of the visible tokens of seq are in the tree."""
        target = seq.visible // self.size
        if target <= seq.cached_blocks:
            return
        assert seq.pieces is not None
        path = seq.path or self._path(seq)
        run, base, parent, offset, node = seq.grow_at or self._place(seq, path)
        while seq.cached_blocks < target:
            length, name = path[run]
            if node is None:
                node = parent.children.get((offset, name))
                if node is None:
                    node = parent.children[offset, name] = Node(parent, (offset, name))
            lo, hi = seq.cached_blocks - base, min(length, target - base)
            last = node.pieces[0] if len(node.pieces) == 1 else None
            if last is not None and last.hi == lo and len(last.users) == 1 and seq in last.users:
                last.hi = hi
            else:
                piece = Piece(node, lo, hi)
                piece.users[seq] = None
                node.pieces.append(piece)
                seq.pieces.append(piece)
            seq.cached_blocks = base + hi
            if hi == length:
                run, base, parent, offset, node = run + 1, base + length, node, length, None
        seq.grow_at = run, base, parent, offset, node

    def _path(self, seq: Sequence) -> Path:
        """The runs of all that seq will ever hold."""
        request, size = seq.request, self.size
        private = request.prompt_tokens - sum(n for _, n in request.prefix)
        path: Path = []
        straddle: list[tuple[str, int, int]] = []
        filled = 0
        for segment, n in (*request.prefix, ("own:" + request.id, private), ("out:" + request.id, seq.outputs)):
            if not n:  # no part of any block
                continue
            at = 0
            if filled:
                at = min(size - filled, n)
                straddle.append((segment, 0, at))
                filled += at
                if filled < size:
                    continue
                path.append((1, tuple(straddle)))
                straddle, filled = [], 0
            if full := (n - at) // size:
                path.append((full, (segment, at)))
                at += full * size
            if at < n:
                straddle, filled = [(segment, at, n - at)], n - at
        seq.path = path
        return path

    def _place(self, seq: Sequence, path: Path) -> tuple[int, int, Node, int, Node | None]:
        """Where the next block to be cached lies: run, blocks before it, parent, offset, node."""
        run, base, node, offset = 0, 0, self.root, 0
        while base + path[run][0] <= seq.cached_blocks:
            length, name = path[run]
            node = node.children[offset, name]
            offset, base, run = length, base + length, run + 1
        return run, base, node, offset, None

    @staticmethod
    def _first_cached(node: Node, at: int, want: int) -> tuple[Piece | None, int]:
        """The piece cached first that holds block `at`, and where it stops being the first."""
        first = next((p for p in node.pieces if p.lo <= at < p.hi), None)
        if first is None:
            return None, at
        end = min(first.hi, want)
        for p in node.pieces:
            if p is first:
                break
            if at < p.lo < end:
                end = p.lo
        return first, end

    def _split(self, piece: Piece, at: int) -> Piece:
        """Blocks before `at` become a piece of their own, which is returned."""
        head = Piece(piece.node, piece.lo, at)
        piece.lo = at
        assert piece.node is not None
        siblings = piece.node.pieces
        siblings.insert(siblings.index(piece), head)
        if piece.users:
            head.users = dict(piece.users)
            for seq in head.users:
                assert seq.pieces is not None
                seq.pieces.insert(seq.pieces.index(piece), head)
        else:
            self._link(head, piece.next)
        return head

    @staticmethod
    def _link(piece: Piece, before: Piece) -> None:
        after = before.prev
        piece.prev, piece.next, after.next, before.prev = after, before, piece, piece

    @staticmethod
    def _unlink(piece: Piece) -> None:
        piece.prev.next, piece.next.prev = piece.next, piece.prev
