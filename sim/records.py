"""What became of the requests: a row each, and a row for each of their spans.

Sequences are kept as they ended and become columns in groups, by numpy; token times are looked up in the step clocks.
"""

from __future__ import annotations

from array import array
from itertools import chain
from math import inf

import numpy as np

from .request import FINISHED, UNFINISHED, Sequence
from .tables import REQUESTS, SPANS, Emit, table


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
        self.emit_requests(table(columns, REQUESTS))

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
        self.emit_spans(table(columns, SPANS))
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
