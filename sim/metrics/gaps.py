"""Inter-token latencies of all tokens, from spans and step clocks, without a number per token.

A span is a first step (whose prompt computation gave a token), then a run of ticks in each of which the sequence
emitted. So the gap between two consecutive ticks of a lane belongs to every sequence that emitted at both: its weight
is their number, the running sum of a difference array over the spans. What remains is a few gaps per span: from the
first step to the first tick, and from the last token of a span to the first of the next.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..columns import booleans, values_of
from .columns import numbers


def inter_token_gaps(
    requests: pa.Table, spans: pa.Table, steps: pa.Table, counted: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(gaps in seconds, how many times each occurs), over the tokens of the requests `counted` (a mask; None: all).

    Rows of `spans` must stand in the order of the requests, rows of `steps` by engine, lane and step. A gap does not
    depend on when tokens are delivered as long as each is delivered equally late.
    """
    part = spans.select(["engine", "lane", "first_step", "first_tick", "ticks"])
    owner = _owners(requests, spans)
    if counted is not None and not counted.all():
        keep = counted[owner]
        part = part.filter(booleans(keep))
        owner = owner[keep]
    if not len(owner) or not steps.num_rows:
        return np.empty(0), np.empty(0, np.int64)
    lanes = _Lanes.of(steps)
    lane = lanes.find(numbers(part, "engine"), numbers(part, "lane"))
    first_step, ticks = numbers(part, "first_step"), numbers(part, "ticks")
    computed, ran = first_step >= 0, ticks > 0
    row = np.where(computed, lanes.row[lane] + first_step - lanes.step[lane], 0)
    place = np.where(ran, lanes.place[lane] + numbers(part, "first_tick") - lanes.tick[lane], 0)

    at_row = lanes.end_s[row]
    at_first_tick = lanes.tick_end_s[place] if len(lanes.tick_end_s) else at_row
    at_last_tick = lanes.tick_end_s[np.where(ran, place + ticks - 1, 0)] if len(lanes.tick_end_s) else at_row

    # From the first step to the first tick. Where that step is itself the tick before, this is a gap between ticks.
    both = computed & ran
    merged = both & lanes.is_tick_before(place, row)
    single = both & ~merged
    inside = at_first_tick[single] - at_row[single]

    # From the last token of a span to the first one of the same request's next span.
    next_of_same = np.flatnonzero(owner[1:] == owner[:-1])
    begin_s = np.where(computed, at_row, at_first_tick)
    end_s = np.where(ran, at_last_tick, at_row)
    between = begin_s[next_of_same + 1] - end_s[next_of_same]

    gap_s, weight = _gaps_between_ticks(lanes.tick_end_s, (place + 1 - merged)[ran], (place + ticks)[ran])
    ones = np.ones(len(inside) + len(between), np.int64)
    return np.concatenate([gap_s, inside, between]), np.concatenate([weight, ones])


def _owners(requests: pa.Table, spans: pa.Table) -> np.ndarray:
    """For each span the row of its request."""
    owner = pc.index_in(spans.column("request_id"), value_set=requests.column("request_id").combine_chunks())
    if owner.null_count:
        raise ValueError("spans of a request that is not among the requests")
    return values_of(owner)


def _gaps_between_ticks(tick_end_s: np.ndarray, first: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gap i lies between ticks i - 1 and i; each span counts in the gaps [first, stop). Those that nobody counts in
    (idle times, and where one lane's ticks end and another's begin) are left out."""
    count = len(tick_end_s)
    weight = np.bincount(first, minlength=count + 1)
    weight -= np.bincount(stop, minlength=count + 1)
    np.cumsum(weight, out=weight)
    weight = weight[1:count]
    seen = weight > 0
    if seen.all():
        return np.diff(tick_end_s), weight
    return np.diff(tick_end_s)[seen], weight[seen]


@dataclass
class _Lanes:
    """Where each (engine, lane) begins in the table of steps, and its ticks in the list of all ticks."""

    key: np.ndarray  # engine and lane in one number, growing
    width: int  # of the lane's part of the key
    row: np.ndarray  # its first row, and
    step: np.ndarray  # the number of that step
    place: np.ndarray  # its first tick's place, and
    tick: np.ndarray  # the number of that tick
    end_s: np.ndarray  # of each row
    tick_end_s: np.ndarray  # of each tick
    tick_row: np.ndarray | None  # the row of each tick; None: every row is one

    @classmethod
    def of(cls, steps: pa.Table) -> "_Lanes":
        engine, lane = numbers(steps, "engine"), numbers(steps, "lane")
        row = np.flatnonzero((engine[1:] != engine[:-1]) | (lane[1:] != lane[:-1])) + 1
        row = np.concatenate([[0], row])
        width = int(lane[row].max()) + 1
        end_s = numbers(steps, "end_s")
        if steps.column("tick").null_count:
            tick = numbers(steps, "tick")
            tick_row = np.flatnonzero(tick >= 0)
            tick_end_s, place = end_s[tick_row], np.searchsorted(tick_row, row)
            first = np.zeros(len(row), np.int64)  # of a lane without ticks: never looked at
            has = np.append(place[1:], len(tick_row)) > place
            first[has] = tick[tick_row[place[has]]]
        else:
            tick_row, tick_end_s, place = None, end_s, row
            first = numbers(steps, "tick")[row]
        key = engine[row].astype(np.int64) * width + lane[row]
        return cls(key, width, row, numbers(steps, "step")[row], place, first, end_s, tick_end_s, tick_row)

    def find(self, engine: np.ndarray, lane: np.ndarray) -> np.ndarray:
        """For each (engine, lane) its place in these arrays."""
        if len(self.key) == 1:
            return np.zeros(len(engine), np.int64)
        return np.searchsorted(self.key, engine.astype(np.int64) * self.width + lane)

    def is_tick_before(self, place: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Whether the step in `row` is the tick just before the one at `place`."""
        if self.tick_row is None:
            return row == place - 1
        return (place > 0) & (self.tick_row[np.maximum(place - 1, 0)] == row) if len(self.tick_row) else place < 0
