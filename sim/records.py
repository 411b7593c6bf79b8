"""What a run records: rows of requests, spans and steps, in columns, and where they go.

Facts are kept as they came (a sequence that has ended, a row a decision) and become columns in groups, by numpy.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from itertools import chain
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from .columns import numbers, strings
from .request import DECODING, FINISHED, UNFINISHED, Sequence

if TYPE_CHECKING:
    from .batch import Plan
    from .lane import Lane

GROUP = 65_536  # rows of a parquet row group

REQUESTS = pa.schema(
    [(name, pa.string()) for name in ("request_id", "class", "pool")]
    + [("replica", pa.int32()), ("status", pa.string()), ("reason", pa.string()), ("priority", pa.int64())]
    + [(name, pa.float64()) for name in ("arrival_s", "first_scheduled_s", "first_token_s", "finish_s")]
    + [(name, pa.int64()) for name in ("prompt_tokens", "output_tokens", "cached_tokens", "preemptions", "attempts")]
    + [(f"{name}_s", pa.float64()) for name in ("queue", "prefill", "decode", "preempted", "transfer", "retry")]
)
SPANS = pa.schema(
    [("request_id", pa.string()), ("engine", pa.int32()), ("lane", pa.int32())]
    + [(name, pa.int64()) for name in ("first_step", "first_tick", "ticks", "tokens")]
)
STEPS = pa.schema(
    [("engine", pa.int32()), ("lane", pa.int32()), ("step", pa.int64()), ("tick", pa.int64())]
    + [(name, pa.float64()) for name in ("decided_s", "start_s", "end_s")]
    + [(name, pa.int32()) for name in ("seqs", "emitted", "prefill_tokens", "decode_tokens")]
    + [("context_tokens", pa.int64())]
    + [(name, pa.int32()) for name in ("kv_blocks_used", "waiting", "preempted")]
)
Emit = Callable[[pa.Table], None]


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
        self.ticks = 0  # when stopped: how many there were
        self.steps = 0  # likewise
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

    def stop(self, within: int) -> None:
        """The first `within` steps stand, and no others come."""
        self.steps = within
        rows, width = self._rows, self.WIDTH
        while rows and rows[-width] + rows[1 - width] > within:
            first, steps = int(rows[-width]), int(rows[1 - width])
            keep = max(within - first, 0)
            if steps > 1:
                del self._growth[len(self._growth) - (steps - max(keep, 1)) :]
            self._pending -= steps - keep
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
        taken = [
            seq
            for seq in lane.running
            if seq in plan.entries or plan.all_decode and seq.state == DECODING
        ]  # fmt: skip
        self.content.append(
            {
                "step": step,
                "start_s": start_s,
                "decided_s": now_s,
                "tokens": {seq.request.id: plan.entries.get(seq, 1) for seq in taken},
                "context": {seq.request.id: lane.computed(seq) for seq in taken},
                "preempted": [seq.request.id for seq in plan.preempted],
                "free": lane.kv.free,
                "running": len(lane.running),
                "waiting": len(lane.waiting),
            }
        )

    def _flush(self, held_back: int) -> None:
        kept = len(self._rows) - held_back * self.WIDTH
        rows = np.array(self._rows[: max(kept, 0)], dtype=float).reshape(-1, self.WIDTH)
        if not len(rows):
            return
        count = rows[:, 1].astype(np.int64)
        (first, _, tick, decided, seqs, emitted, prefill, decode, context, used, released, waiting, preempted,
         overrun) = np.repeat(rows.T, count, axis=1)  # fmt: skip
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
        del ends  # or the clock could not grow
        del self._rows[:kept]
        del self._growth[: total - len(count)]
        self._pending -= total
        self.emit(_table(columns, STEPS))


class RequestLog:
    """One row a request, in the order of the requests, whatever the order in which they end."""

    CHUNK = 16_384

    def __init__(self, response_s: float, emit_requests: Emit, emit_spans: Emit) -> None:
        self.response_s = response_s
        self.emit_requests, self.emit_spans = emit_requests, emit_spans
        self.end_s = inf  # what would be delivered later never is
        self.lanes: list[tuple[str, array[float]]] = []  # of each engine: its pool and step clock
        self.closed = 0
        self._next = 0  # index of the next request to be written
        self._rows: dict[int, Sequence] = {}

    def close(self, seq: Sequence) -> None:
        """seq has ended, or never will."""
        self._rows[seq.request.index] = seq
        self.closed += 1
        if self.closed % self.CHUNK == 0:
            self.flush()

    def flush(self) -> None:
        """Write what has ended and whose forerunners all have."""
        rows, at = self._rows, self._next
        seqs = []
        while (seq := rows.pop(at, None)) is not None:
            seqs.append(seq)
            at += 1
        self._next = at
        if seqs:
            self._write(seqs)

    def finish(self) -> None:
        """Write all the rest; requests that never came leave gaps."""
        rest = [self._rows[index] for index in sorted(self._rows)]
        self._rows = {}
        if rest:
            self._write(rest)

    def _write(self, seqs: list[Sequence]) -> None:
        requests = [seq.request for seq in seqs]
        ids = [r.id for r in requests]
        engine = np.array([seq.engine for seq in seqs], dtype=np.int32)
        given = self._write_spans(seqs, ids, engine)
        arrival = np.array([r.arrival_s for r in requests])
        scheduled = np.array([seq.first_scheduled_s for seq in seqs])
        never_scheduled = np.array([seq.first_step is None for seq in seqs])
        first = self._times(engine, [seq.spans[0] if seq.spans else -1 for seq in seqs])
        status = [seq.status for seq in seqs]
        ended = np.array([s == FINISHED for s in status])
        finish = self._times(
            engine,
            [
                -1 if s != FINISHED else seq.last_step if seq.delivered_step is None else seq.delivered_step
                for seq, s in zip(seqs, status, strict=True)
            ],
        )
        finish += self.response_s
        delivered = first + self.response_s
        for i, seq in enumerate(seqs):
            if seq.delivered_step is not None:
                delivered[i] = finish[i]
        for i in np.flatnonzero(finish > self.end_s).tolist():
            status[i], ended[i] = UNFINISHED, False
        delivered[delivered > self.end_s] = np.nan
        early, late = np.zeros(len(seqs)), np.zeros(len(seqs))
        for i, seq in enumerate(seqs):
            if seq.pauses and ended[i]:
                early[i], late[i] = _paused(seq.pauses, first[i], finish[i] - self.response_s)
        nothing = np.zeros(len(seqs))
        unended = ~ended
        columns = {
            "request_id": ids,
            "class": [r.cls for r in requests],
            "pool": [self.lanes[e][0] if e >= 0 else None for e in engine.tolist()],
            "replica": (engine, engine < 0),
            "status": status,
            "reason": [seq.reason for seq in seqs],
            "priority": np.array([r.priority for r in requests]),
            "arrival_s": arrival,
            "first_scheduled_s": (scheduled, never_scheduled),
            "first_token_s": (delivered, np.isnan(delivered)),
            "finish_s": (finish, unended),
            "prompt_tokens": np.array([r.prompt_tokens for r in requests]),
            "output_tokens": given,
            "cached_tokens": np.array([seq.hit_tokens for seq in seqs]),
            "preemptions": np.array([seq.preemptions for seq in seqs]),
            "attempts": engine >= 0,
            "queue_s": (scheduled - arrival, unended),
            "prefill_s": (first - scheduled - early, unended),
            "decode_s": (finish - first - late, unended),
            "preempted_s": (early + late, unended),
            "transfer_s": (nothing, unended),
            "retry_s": (nothing, unended),
        }
        self.emit_requests(_table(columns, REQUESTS))

    def _write_spans(self, seqs: list[Sequence], ids: list[str], engine: np.ndarray) -> np.ndarray:
        """Returns the tokens that each has given."""
        flat = np.array(list(chain.from_iterable([seq.spans for seq in seqs])), dtype=float).reshape(-1, 3)
        owner = np.repeat(np.arange(len(seqs)), [len(seq.spans) // 3 for seq in seqs])
        ticks = (flat[:, 2] - flat[:, 1]).astype(np.int64)
        goes_on = np.isnan(flat[:, 0])
        tokens = ticks + ~goes_on
        given = np.bincount(owner, weights=tokens, minlength=len(seqs)).astype(np.int64)
        real = tokens > 0
        owner, goes_on = owner[real], goes_on[real]
        whose = [ids[k] for k in owner.tolist()]
        columns = {
            "request_id": whose,
            "engine": engine[owner],
            "lane": np.zeros(len(owner)),
            "first_step": (np.where(goes_on, 0, flat[real, 0]), goes_on),
            "first_tick": flat[real, 1],
            "ticks": ticks[real],
            "tokens": tokens[real],
        }
        self.emit_spans(_table(columns, SPANS))
        return given

    def _times(self, engine: np.ndarray, steps: list[int | None]) -> np.ndarray:
        """The ends of steps in seconds; nan for -1."""
        at = np.array(steps, dtype=np.int64)
        times = np.full(len(at), np.nan)
        for number, (_, ends) in enumerate(self.lanes):
            here = (engine == number) & (at >= 0)
            if len(ends) and here.any():
                times[here] = np.frombuffer(ends, dtype=float)[at[here]]
        return times


def _paused(pauses: list[float], first_token_s: float, finish_s: float) -> tuple[float, float]:
    """Seconds spent waiting again after preemptions, before the first token and after it."""
    early = late = 0.0
    for i in range(0, len(pauses), 2):
        begin = pauses[i]
        end = pauses[i + 1] if i + 1 < len(pauses) else finish_s
        early += max(min(end, first_token_s) - begin, 0.0)
        late += max(end - max(begin, first_token_s), 0.0)
    return early, late


def _table(columns: dict[str, Any], schema: pa.Schema) -> pa.Table:
    """Columns are lists of strings, numbers, or numbers and where there are none."""
    arrays = []
    for field in schema:
        values = columns[field.name]
        if isinstance(values, list):
            arrays.append(strings(values))
        elif isinstance(values, tuple):
            arrays.append(numbers(values[0], field.type, values[1]))
        else:
            arrays.append(numbers(values, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)
