"""SGLang's waiting queue: who is refused when it is full, and the orders in which it is tried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ..content import Runs, common, cut

if TYPE_CHECKING:
    from ..batch import Batch
    from ..radix import Node
    from ..request import Sequence
    from ..sglang_cache import SGLangCache

SchedulePolicy = Literal["fcfs", "lpm", "dfs-weight", "lof", "hrrn", "shortest-prefill-first"]
IN_BATCH = 32  # tokens: less found in the cache is little; as many shared with one before it puts a request off
LONG_QUEUE = 128  # lpm and hrrn order no longer queues
REFRESH = 32  # every so many orderings, the waiting use what they would hit


class Mark:
    """What the scheduler keeps of a request."""

    __slots__ = ("asked", "entry", "hit", "work")

    def __init__(self) -> None:
        self.entry = 0  # grows with each queueing
        self.work = 0  # tokens computed by then, for hrrn
        self.asked = self.hit = 0  # tokens known, and hit, when it was last tried


class Waiting(list["Sequence"]):
    """The queue, in the order in which it stands, and what the scheduler keeps between decisions."""

    def __init__(
        self, kind: SchedulePolicy, by_priority: bool, low_first: bool, most: int | None, ratio: float
    ) -> None:
        super().__init__()
        self.kind, self.by_priority, self.low_first, self.most = kind, by_priority, low_first, most
        self.entries = self.orderings = 0
        self.fresh: list[Sequence] = []  # queued since the last decision
        self.matched: dict[Sequence, int] = {}  # by the last ordering
        # The decode batch, and what goes with it.
        self.ratio = ratio
        self.run: list[Sequence] = []
        self.full = False  # do not try prefill
        self.stale = 0  # tokens of the prefill step whose batch became the decode batch
        self.half: Sequence | None = None  # whose prompt is partly computed
        self.stored = True  # what is computed of it is in the cache
        self.last: tuple[list[Sequence], Sequence | None, int] | None = None  # prefill step: who, half, tokens
        self.countdown = 0  # decisions without prefill
        self.work = 0  # tokens computed, as hrrn counts them
        self.highest = self.lowest = 0  # places given in the batch
        self.seen = 0  # step of the last decision
        self.step = "none"  # its kind
        self.retracted: list[Sequence] = []  # by this decision

    def head(self) -> Sequence:
        return self[0]

    def urgency(self, seq: Sequence) -> float:
        """Smaller is more urgent."""
        return seq.request.priority if self.low_first else -seq.request.priority

    def push(self, seq: Sequence) -> Sequence | None:
        refused = None
        if self.most is not None and len(self) >= self.most:
            refused = seq
            if self.by_priority and self:
                worst = max(self, key=lambda s: (self.urgency(s), s.mark.entry))
                if self.urgency(worst) > self.urgency(seq):
                    refused = worst
                    self.remove(worst)
            refused.reason = f"aborted: {self.most} requests are waiting (max_queued_requests)"
            if refused is seq:
                return refused
        mark = seq.mark
        if mark is None:
            mark = seq.mark = Mark()
        self.entries += 1
        mark.entry, mark.work = self.entries, self.work
        self.fresh.append(seq)
        self.append(seq)
        return refused

    def put_back(self, seq: Sequence) -> None:
        raise NotImplementedError("who loses its KV is queued by the policy")

    # -- orders

    def order(self, batch: Batch) -> None:
        """The queue is put into the order in which it is tried, and stays so."""
        kv: SGLangCache = batch.kv  # type: ignore[assignment]
        kind, long = self.kind, len(self) > LONG_QUEUE
        if not kv.on and kind != "lof":
            kind = "fcfs"
        if kv.on and (kind in ("fcfs", "lof") or (kind in ("lpm", "hrrn") and long)):
            if self.orderings % REFRESH == 0:
                for seq in reversed(self[:LONG_QUEUE]):
                    kv.match(seq, seq.known)
            self.orderings += 1
        if kind == "fcfs":
            if self.by_priority:
                self.sort(key=lambda s: (self.urgency(s), s.mark.entry))
        elif kind == "lof":
            self.sort(key=lambda s: (self.urgency(s) if self.by_priority else 0, -s.limit))
        elif not (long and kind in ("lpm", "hrrn")):
            self._by_match(kv)

    def _by_match(self, kv: SGLangCache) -> None:
        nodes, off = self._match_all(kv)
        matched = self.matched
        if self.kind == "lpm":
            self.sort(key=lambda s: (s in off, 0 if s in off else -matched[s]))
        elif self.kind == "shortest-prefill-first":
            self.sort(key=lambda s: (s in off, max(1, s.known - matched[s]), s.mark.entry))
        elif self.kind == "dfs-weight":
            self[:] = self._depth_first(kv.root, nodes)
        else:
            self.sort(key=lambda s: self._response_ratio(s, s in off))

    def _match_all(self, kv: SGLangCache) -> tuple[dict[Sequence, Node], set[Sequence]]:
        """Where each match ends, and who is put off for one before it that begins alike and is not cached either."""
        self.matched = {}
        nodes: dict[Sequence, Node] = {}
        off: set[Sequence] = set()
        begun: dict[str, list[Runs]] = {}  # by their first segment
        for seq in self:
            pages, nodes[seq] = kv.match(seq, seq.known)
            hit = pages * kv.size
            self.matched[seq] = min(hit, seq.known - 1)
            if hit > IN_BATCH:
                continue
            runs = cut(kv.runs_of(seq), 0, seq.known)
            alike = begun.setdefault(runs[0][0], [])
            if max([common(runs, other) for other in alike], default=0) >= IN_BATCH:
                off.add(seq)
            else:
                alike.append(runs)
        return nodes, off

    def _depth_first(self, root: Node, nodes: dict[Sequence, Node]) -> list[Sequence]:
        """Children by the number of those who wait in or below them; a node's own after its children's."""
        weight: dict[Node, int] = {}
        own: dict[Node, list[Sequence]] = {}
        for seq in self:
            own.setdefault(nodes[seq], []).append(seq)
            node: Node | None = nodes[seq]
            while node is not None:
                weight[node] = weight.get(node, 0) + 1
                node = node.parent
        found: list[Sequence] = []
        stack = [(root, False)]
        while stack:
            at, seen = stack.pop()
            if seen:
                found += own.get(at, [])
                continue
            stack.append((at, True))
            children = sorted((c for c in at.children.values() if c in weight), key=lambda c: -weight[c])
            stack += [(child, False) for child in reversed(children)]
        return found

    def _response_ratio(self, seq: Sequence, off: bool) -> tuple[float, float, str]:
        if off:
            return 2, 0, seq.request.id
        uncached = seq.prompt - self.matched[seq]
        if uncached <= 0:
            return 0, 0, seq.request.id
        return 1, -(self.work - seq.mark.work) / uncached, seq.request.id

    def cut_for_shorter(self, asked: float, left: float, size: int) -> float:
        """Of a half-computed prompt's tokens, what shortest-prefill-first leaves it beside shorter ones; `left` is what
        the chunk has."""
        half = self.half
        assert half is not None
        if self.kind != "shortest-prefill-first" or left < 2 * size:
            return asked
        reserved = 0
        for seq in self:
            need = max(1, seq.known - self.matched[seq])
            pages = -(-need // size) * size
            if need >= half.known - half.computed or reserved + pages > left - size:
                break
            reserved += pages
        return min(asked, (left - reserved) // size * size) if reserved else asked
