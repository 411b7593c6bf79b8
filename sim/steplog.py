"""The steps of a lane as rows: kept as they came, a row a decision, and made into columns, a row a step, by numpy."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

import numpy as np

from .request import DECODING
from .tables import GROUP, STEPS, Emit, table
from .utilisation import Work

if TYPE_CHECKING:
    from collections.abc import Callable

    from .batch import Plan
    from .lane import Lane


class StepLog:
    """The steps of one lane: a row a decision, made into a row a step when enough have come together.

    `content`, where it is asked for, holds for each decision what its first step computed, for comparison with the
    schedules of real engines.
    """

    WIDTH = 14
    HELD_BACK = 4  # decisions that a stop may still undo

    def __init__(self, engine: int, emit: Emit, content: bool = False) -> None:
        self.engine, self.emit = engine, emit
        self.depth = 1  # of the engine: steps decided and not yet processed
        self.ends = array("d")  # the lane's step clock
        self.content: list[dict[str, Any]] | None = [] if content else None
        self.describe: Callable[[Lane], dict[str, Any]] | None = None  # the policy's own view of a decision
        self.refused: list[str] = []  # by the engine's queue, since the last row of content
        self.ticks = 0  # when stopped: how many there were
        self.steps = 0  # likewise
        self.work = Work()  # sums over the steps, when stopped
        self.count_rows = False  # by number of rows: for mixtures of experts
        self._rows: list[float] = []
        self._growth: list[int] = []  # of the steps of stretches after their first: new blocks
        self._pending = 0

    def grow(self, blocks: list[int]) -> None:
        """New blocks that each step of a stretch takes, but its first; before its row is added."""
        self._growth += blocks

    def add(
        self, first: int, steps: int, tick: int, decided_s: float, seqs: int, emitted: int, prefill: int, decode: int,
        context: int, used: int, released: int, waiting: int, preempted: int, overrun: int,
    ) -> None:  # fmt: skip
        """`steps` like steps from `first` on; tick -1: none decoded.

        context and used (KV blocks) are the first step's; `released` blocks came back before the second, the last
        gave no token for `overrun` of its sequences.
        """
        self._rows += (
            first, steps, tick, decided_s, seqs, emitted, prefill, decode, context, used, released, waiting, preempted,
            overrun,
        )  # fmt: skip
        self._pending += steps
        if self._pending >= GROUP:
            self._flush(self.HELD_BACK)

    def lose(self, tokens: int) -> None:
        """Of the last step's outputs, just under way, so many are thrown away."""
        self._rows[-1] += tokens

    def stop(self, within: int) -> None:
        """The first `within` steps stand, and no others come."""
        self.steps = within
        rows, width = self._rows, self.WIDTH
        while rows and rows[-width] + rows[1 - width] > within:
            first, count = int(rows[-width]), int(rows[1 - width])
            keep = max(within - first, 0)
            if count > 1:
                del self._growth[len(self._growth) - (count - max(keep, 1)) :]
            self._pending -= count - keep
            if not keep:
                del rows[-width:]
                continue
            rows[1 - width], rows[-1] = keep, 0  # who overran did so in the last step
        for at in range(len(self._rows) - self.WIDTH, -1, -self.WIDTH):
            _, steps, tick = self._rows[at : at + 3]
            if tick >= 0:
                self.ticks = int(tick + steps)
                break
        self._flush(0)

    def note(self, lane: Lane, plan: Plan, step: int, start_s: float, now_s: float) -> None:
        """Who is in the step just decided, before it is committed."""
        assert self.content is not None
        told = self.describe(lane) if self.describe is not None else {}
        taken = [
            seq
            for seq in told.pop("order", lane.running)
            if seq in plan.entries or (plan.all_decode and seq.state == DECODING)
        ]  # fmt: skip
        self.content.append(
            {
                "step": step,
                "start_s": start_s,
                "decided_s": now_s,
                "tokens": {seq.request.id: plan.entries.get(seq, 1) for seq in taken},
                "context": {seq.request.id: lane.computed(seq) for seq in taken},
                "preempted": [seq.request.id for seq in plan.preempted],
                "refused": self.refused,
                "free": lane.kv.free,
                "running": len(lane.running),
                "waiting": len(lane.waiting),
                **told,
            }
        )
        self.refused = []

    def _flush(self, held_back: int) -> None:
        kept = len(self._rows) - held_back * self.WIDTH
        rows = np.array(self._rows[: max(kept, 0)], dtype=float).reshape(-1, self.WIDTH)
        if not len(rows):
            return
        count = rows[:, 1].astype(np.int64)
        (first, _, tick, decided, seqs, emitted, prefill, decode, context, used, released, waiting, preempted,
         _) = np.repeat(rows.T, count, axis=1)  # fmt: skip
        total = len(first)
        begin = int(rows[0, 0])
        heads = np.cumsum(count) - count
        nth = np.arange(total) - np.repeat(heads, count)
        later = nth > 0
        ends = np.frombuffer(self.ends, dtype=float)
        end = ends[begin : begin + total].copy()
        before = np.concatenate([[0.0] * max(self.depth - begin, 0), ends[max(begin - self.depth, 0) : begin + total]])
        decided = np.where(later, np.maximum(decided, before[:total]), decided)
        start = np.maximum(decided, before[self.depth - 1 : self.depth - 1 + total])
        emitted[heads + count - 1] -= rows[:, 13]
        preempted[later] = 0
        grown = np.zeros(total)
        grown[later] = self._growth[: total - len(rows)]
        taken = np.cumsum(grown)
        used += taken - np.repeat(taken[heads], count) - released * later
        columns = {
            "engine": np.full(total, self.engine),
            "lane": np.zeros(total),
            "step": np.arange(begin, begin + total),
            "tick": (tick + nth, tick < 0),
            "decided_s": decided,
            "start_s": start,
            "end_s": end,
            "seqs": seqs,
            "emitted": emitted,
            "prefill_tokens": prefill,
            "decode_tokens": decode,
            "context_tokens": context + nth * decode,
            "kv_blocks_used": used,
            "waiting": waiting,
            "preempted": preempted,
        }
        self._sum(columns)
        del ends  # or the clock could not grow
        del self._rows[:kept]
        del self._growth[: total - len(count)]
        self._pending -= total
        self.emit(table(columns, STEPS))

    def _sum(self, columns: dict[str, Any]) -> None:
        work = self.work
        rows = columns["prefill_tokens"] + columns["decode_tokens"]
        work.steps += int(np.count_nonzero(rows))
        work.emitting_steps += int(np.count_nonzero(columns["emitted"]))
        for name in ("prefill_tokens", "decode_tokens", "emitted", "context_tokens"):
            setattr(work, name, getattr(work, name) + int(columns[name].sum()))
        work.busy_s += float((columns["end_s"] - columns["start_s"]).sum())
        if self.count_rows:
            for count, steps in zip(*np.unique(rows[rows > 0], return_counts=True), strict=True):
                work.by_rows[int(count)] = work.by_rows.get(int(count), 0) + int(steps)
