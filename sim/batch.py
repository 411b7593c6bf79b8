"""The state of one lane as a policy sees and changes it, and the plan that its decision leaves behind."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Protocol

from .decodes import DecodeSet
from .request import DECODING, LEAVING, PARTIAL, WAITING, Sequence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .kv import BlockPool, Hit


class WaitingQueue(Protocol):
    """Who waits, in the order in which they are to be admitted. It may also hold what a policy keeps per lane.

    One whose order follows what runs also has `attach(batch)`, which is called once, and lowers the plan's `repeat` to
    the steps for which the answer of `head` or of an iteration holds.
    """

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Sequence]: ...
    def head(self) -> Sequence: ...
    def push(self, seq: Sequence) -> Sequence | None:
        """A new one. Who is refused for it, if the queue is full: itself or another."""

    def put_back(self, seq: Sequence) -> None:
        """A preempted one."""

    def remove(self, seq: Sequence) -> None: ...


class Plan:
    """What a step computes, and for how long that may stand."""

    __slots__ = (
        "aborted", "again", "all_decode", "anew", "entries", "padded_prompt", "padding", "preempted", "repeat",
        "some_decode", "transfer_bytes", "wake_at_s",
    )  # fmt: skip

    def __init__(self) -> None:
        self.entries: dict[Sequence, int] = {}  # sequence -> tokens to compute, in scheduling order
        self.preempted: list[Sequence] = []
        self.aborted: list[Sequence] = []  # who lost its place for good: no preemption, since it never comes back
        self.clear()

    def clear(self) -> None:
        """Nothing is planned. What was handed out before stays as it is."""
        if self.entries:
            self.entries = {}
        if self.preempted:
            self.preempted = []
        if self.aborted:
            self.aborted = []
        self.all_decode = False  # everybody who decodes; else those among `entries`
        self.some_decode = False  # there are such among `entries`
        self.repeat: float = inf  # steps; the engine knows the other limits
        self.padding = 0  # decoding rows that are computed for nobody
        self.padded_prompt = 0  # tokens to which every prompt of the step is padded
        self.anew = False  # the one who decodes computes its whole sequence anew, as a prompt: nothing is kept
        self.transfer_bytes = 0  # that each GPU moves over PCIe before the step's work
        self.wake_at_s: float | None = None  # nothing to compute yet: when to ask again
        self.again = False  # nothing to compute, but this decision has changed what the next one finds

    def __bool__(self) -> bool:
        return self.all_decode or bool(self.entries) or bool(self.preempted) or bool(self.aborted)


class Batch:
    """One lane: who waits, who runs, and the KV blocks. Its verbs change the state and write the plan."""

    def __init__(self, waiting: WaitingQueue, kv: BlockPool, lag: int, max_model_len: int) -> None:
        self.waiting = waiting
        self.kv = kv
        self.lag = lag  # 1 where a step is decided before the last one's outputs are known
        self.max_model_len = max_model_len
        self.now_s = self.start_s = 0.0  # of the decision being made; of its step
        self.step = 0  # the step being decided
        self.processed = 0  # outputs of steps before this one are known
        self.running: dict[Sequence, None] = {}  # in order of admission
        self.partial: dict[Sequence, None] = {}  # running, with a prompt that is not yet whole
        self.decodes = DecodeSet(kv.size)
        self.plan = Plan()
        self.gone: list[Sequence] = []  # who has left since the last decision
        self.refused: list[Sequence] = []  # whom the queue refused, for the engine to collect
        self.prompts: dict[int, list[tuple[Sequence, int, int]]] = {}  # step -> (sequence, tokens, preemptions)
        self.lost = 0  # outputs under way that this decision has thrown away
        self.progress = 0  # first chunks, whole prompts; with the ticks: what a watchdog watches
        self._by_id: dict[str, Sequence] = {}  # of the running, where prefixes are cached
        self.leaving: dict[int, list[Sequence]] = {}  # step of the last token -> sequences
        self.late: dict[int, list[Sequence]] = {}  # step -> preempted while its output was under way
        self.stopping: dict[int, list[Sequence]] = {}  # step of the last token -> whom the next step may still take
        self._admitted = 0

    # -- questions

    def steady(self, budget: int) -> bool:
        """Whether all that run decode, fit the budget and get their blocks: then their order does not matter."""
        decodes = self.decodes
        if self.partial or len(decodes.members) > budget:
            return False
        return decodes.by_position[decodes.tick % decodes.block_size] <= self.kv.free

    def under_way(self, seq: Sequence) -> int:
        """Outputs of a decoding sequence that are scheduled and not yet known: 0 or 1."""
        last = self.step - 1
        if last < self.processed:
            return 0
        return int(seq.joined == last or (self.decodes.taken == last and seq.skipped != last))

    def computed(self, seq: Sequence) -> int:
        """Tokens of a sequence that are computed, or will be when the steps decided so far have run."""
        return self.decodes.tick - seq.born if seq.state == DECODING else seq.computed

    def known_outputs(self, seq: Sequence) -> int:
        """Outputs of any sequence that have been processed."""
        if seq.state == DECODING:
            return self.decodes.tick - seq.born + 1 - seq.prompt - self.under_way(seq)
        if seq.state == LEAVING:
            assert seq.last_step is not None
            return seq.outputs - (seq.last_step >= self.processed)
        return seq.known - seq.prompt

    def missing(self, seq: Sequence) -> int:
        """Tokens that a running sequence has to compute."""
        return 1 if seq.state == DECODING else seq.known - seq.computed

    def lookup(self, seq: Sequence) -> Hit:
        """The prefix hit of a waiting sequence, after what it names has become visible."""
        kv = self.kv
        if seq.request.prefix and kv.hits_running:
            for request_id in self._names(seq):
                other = self._by_id.get(request_id)
                if other is None:
                    kv.reveal_ended(request_id)
                    continue
                if other.state == DECODING:
                    takes = self.plan.all_decode or other.taken == self.step
                    kv.cache(other, self.decodes.tick - other.born + takes - self.under_way(other))
                elif other.state == LEAVING:
                    kv.cache(other, other.computed - self.lag)
                kv.reveal(other)
        return kv.lookup(seq)

    def hit_may_grow(self, seq: Sequence) -> bool:
        """Whether a waiting sequence names tokens that a running one is still giving."""
        if not (seq.request.prefix and self.kv.hits_running):
            return False
        named = (self._by_id.get(request_id) for request_id in self._names(seq))
        return any(other is not None and other.state in (DECODING, LEAVING) for other in named)

    @staticmethod
    def _names(seq: Sequence) -> Iterator[str]:
        for segment, _ in seq.request.prefix:
            if segment[:4] in ("own:", "out:"):
                yield segment[4:]

    # -- verbs

    def take_all(self) -> None:
        """This step takes all that decode."""
        decodes = self.decodes
        if n := decodes.by_position[decodes.tick % decodes.block_size]:  # new blocks that the tick needs
            self.kv.take(n)
        self.plan.all_decode = bool(decodes.members)

    def allocate(self, seq: Sequence, new: int) -> bool:
        """This step computes `new` tokens of a running sequence, if their blocks can be had."""
        decoding = seq.state == DECODING
        computed = self.decodes.tick - seq.born if decoding else seq.computed
        if seq.grows:
            size = self.kv.size
            have = -(-computed // size) if decoding else seq.blocks  # perhaps more than it has filled
            want = max(have, -(-(computed + new) // size))
            if want - have > self.kv.free:
                return False
            self.kv.take(want - have)
            seq.blocks = want
        seq.taken = self.step
        plan = self.plan
        plan.entries[seq] = new
        if decoding:
            plan.some_decode = True
            self.kv.cache(seq, computed + 1 - self.under_way(seq))
        else:
            self.kv.cache(seq, min(computed + new, seq.known))
        return True

    def enqueue(self, seq: Sequence) -> None:
        """seq waits, new or preempted, unless the queue refuses it."""
        refused = self.waiting.push(seq)
        if refused is not None:
            self.refused.append(refused)

    def give_up(self, seq: Sequence, reason: str) -> None:
        """seq, which neither waits nor runs, will never be served."""
        seq.reason = reason
        self.refused.append(seq)

    def reorder(self, seqs: list[Sequence], first: int) -> None:
        """All that decode stand in this order from now on, `first` the place of the first."""
        for place, seq in enumerate(seqs, first):
            seq.order = place
        self.decodes.reorder(seqs)

    def preempt(self, seq: Sequence, lose: bool = False) -> int:
        """seq gives up its blocks and place and waits; returns the tokens that this step had given it.

        Its outputs are kept, to be computed again as if they were prompt; one that is under way still comes.
        lose: it does not, but has to be computed again, and the policy queues seq itself.
        """
        tokens = self._stop(seq, lose)
        seq.preemptions += 1
        if seq.pauses is None:
            seq.pauses = []
        seq.pauses.append(self.now_s)
        if not lose:
            self.waiting.put_back(seq)
        self.plan.preempted.append(seq)
        return tokens

    def abort(self, seq: Sequence, reason: str) -> None:
        """seq gives up its blocks and place for good, and with them the output that is under way."""
        self._stop(seq, lose=True)
        self.plan.aborted.append(seq)
        self.give_up(seq, reason)

    def _stop(self, seq: Sequence, lose: bool) -> int:
        """seq runs no more and has lost its blocks; returns the tokens that this step had given it."""
        step, last, kv = self.step, self.step - 1, self.kv
        tokens = self.plan.entries.pop(seq, 0)
        if seq.state == DECODING:
            pending, taken = self.under_way(seq), seq.taken == step
            self.decodes.drop(seq)
            seq.known = seq.computed + 1 - pending
            if seq.grows and not taken:
                seq.blocks = -(-seq.computed // kv.size)
            whole = seq.computed + taken - pending
            kv.cache(seq, whole)
            if pending and lose:
                self._forget_output(seq)
            elif pending:
                self.late.setdefault(last, []).append(seq)
        elif seq.state == PARTIAL:
            self.partial.pop(seq, None)
            whole = seq.computed
        else:
            self.leaving[last].remove(seq)
            seq.known = seq.computed
            whole = seq.known - 1
            kv.cache(seq, whole)
            if lose:
                self._forget_output(seq)
                seq.last_step = None
            else:
                self.late.setdefault(last, []).append(seq)
        kv.reveal(seq)
        self._release(seq, 0 if lose else whole)
        seq.computed = 0
        seq.state = WAITING
        return tokens

    def admit(self, seq: Sequence, hit: Hit, new: int, blocks: int = 0, order: int | None = None) -> None:
        """One of the queue, any, runs: its cached blocks are used, `new` tokens of it are computed in this step.

        One that holds a reservation takes no more blocks, now or later. blocks: all that it holds then, where it is
        more than these tokens need. order: its place among the running, where it is not the last.
        """
        self.waiting.remove(seq)
        kv = self.kv
        seq.computed = computed = hit.blocks * kv.size if hit.tokens is None else hit.tokens
        if seq.grows:
            if hit.blocks:
                kv.use(seq, hit)
            seq.blocks = blocks = blocks or -(-(computed + new) // kv.size)
            kv.take(blocks - hit.blocks)
        self._admitted += 1
        seq.order = self._admitted if order is None else order
        seq.state = PARTIAL
        self.running[seq] = None
        if kv.hits_running:
            self._by_id[seq.request.id] = seq
            kv.cache(seq, min(computed + new, seq.known))
        self.plan.entries[seq] = new
        if seq.first_step is None:
            seq.first_step, seq.hit_tokens, seq.first_scheduled_s = self.step, computed, self.start_s
            self.progress += 1
        elif seq.pauses:
            seq.pauses.append(self.start_s)

    def _forget_output(self, seq: Sequence) -> None:
        """The last token of its spans never was."""
        self.lost += 1
        if seq.spans[-1] > seq.spans[-2]:
            seq.spans[-1] -= 1
        else:
            del seq.spans[-3:]

    def _release(self, seq: Sequence, tokens: int) -> None:
        self.kv.release(seq, tokens)
        del self.running[seq]
        if self.kv.hits_running:
            del self._by_id[seq.request.id]
