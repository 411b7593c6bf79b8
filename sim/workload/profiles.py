"""Arrivals whose rate changes over time: bursts, and a profile such as a day's curve.

Both are Poisson processes with a rate that varies, made by a change of time: arrivals at rate 1, the same draws as
`poisson` takes, are mapped to the times at which the rate's integral reaches them. So another rate moves arrivals, and
changes neither draws nor periods.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice, pairwise
from math import inf
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..errors import Complaint
from ..registry import register
from .arrivals import Rate, unit_rate_times
from .source import BLOCK, Setup, Source, open_loop

if TYPE_CHECKING:
    from ..scenario import Workload

MOST_RATE = 1e6
LEAST_OF_A_PIECE = 0.01  # requests
Part = tuple[float, float, float]  # seconds, rate at its begin and at its end; the rate is linear between
Seconds = Annotated[float, Field(gt=0, le=1e9)]


@register("arrivals", "bursty")
@dataclass
class Bursty:
    """Bursts: on and off periods in turn, Poisson within each. rate_per_s is the mean over both."""

    rate_per_s: Rate
    on_s: Annotated[Seconds, Field(description="mean length of an on period, s")]
    off_s: Annotated[Seconds, Field(description="mean length of an off period, s")]
    off_rate: Annotated[
        float, Field(ge=0, le=1, description="rate in off periods as a share of that in on periods; 0: silence")
    ] = 0.0
    periods: Annotated[
        Literal["exponential", "fixed"],
        Field(description="random lengths (Markov-modulated), or always on_s and off_s, beginning with on"),
    ] = "exponential"

    def __post_init__(self) -> None:
        _check_length(self.rate_per_s * (self.on_s + self.off_s), "an on and an off period", "on_s")

    def source(self, setup: Setup) -> Source:
        on = self.rate_per_s * (self.on_s + self.off_s) / (self.on_s + self.off_rate * self.off_s)
        off = on * self.off_rate
        return open_loop(
            setup, _arrivals(setup, ((length, rate, rate) for length, rate in self._periods(setup, on, off)))
        )

    def _periods(self, setup: Setup, on: float, off: float) -> Iterator[tuple[float, float]]:
        both = ((self.on_s, on), (self.off_s, off))
        if self.periods == "fixed":
            yield from cycle(both)
        rng = setup.stream("arrivals/periods")
        first = int(rng.random() * (self.on_s + self.off_s) >= self.on_s)  # as if it had gone on for ever
        while True:
            for k, length in enumerate(rng.standard_exponential(BLOCK).tolist()):
                mean, rate = both[(first + k) % 2]
                yield mean * length, rate


@register("arrivals", "piecewise")
@dataclass
class Piecewise:
    """A rate profile over time, such as a day's curve: Poisson with the rate that the points give."""

    points: Annotated[
        list[Annotated[list[Annotated[float, Field(ge=0, le=1e9)]], Field(min_length=2, max_length=2)]],
        Field(min_length=1, max_length=10_000, description="[time_s, rate_per_s] pairs, the first at time 0"),
    ]
    shape: Annotated[
        Literal["step", "linear"], Field(description="the rate stays until the next point, or goes there in a line")
    ] = "step"
    period_s: Annotated[
        float | None,
        Field(gt=0, le=1e9, description="the profile begins anew after this time; none: the last rate stays"),
    ] = None
    rate_scale: Annotated[float, Field(gt=0, le=1e9, description="all rates are multiplied by it")] = 1.0

    def __post_init__(self) -> None:
        times = [time_s for time_s, _ in self.points]
        if times[0] != 0:
            raise Complaint(f"must be at time 0, the first point, got {times[0]:g}", "points", 0)
        for i, (before, after) in enumerate(pairwise(times)):
            if after <= before:
                raise Complaint(f"must be later than the point before, at {before:g} s, got {after:g}", "points", i + 1)
        for i, (_, rate) in enumerate(self.points):
            if rate * self.rate_scale > MOST_RATE:
                raise Complaint(
                    f"must be at most {MOST_RATE:g} requests/s, got {rate * self.rate_scale:g}", "points", i
                )
        if self.period_s is not None and self.period_s <= times[-1]:
            raise Complaint(f"must be over the last point's time, {times[-1]:g} s, got {self.period_s:g}", "period_s")
        if not any(rate for _, rate in self.points):
            raise Complaint("must have a rate over 0 somewhere", "points")
        if self.period_s is not None:
            brought = sum(_expected(*part) for part in islice(self._parts(self.rate_scale), len(self.points)))
            _check_length(brought / len(self.points), "a point of the profile", "period_s")

    def scale_to(self, rate_per_s: float, workload: "Workload", resolve: Callable[[str], FilePath]) -> float:
        """The rate_scale for that mean rate: over a period, or over the run where the profile does not repeat."""
        seconds = self.period_s or workload.duration_s
        if seconds is None:
            assert workload.num_requests is not None  # checked with the scenario
            seconds = workload.num_requests / rate_per_s
        mean = self._expected_by(seconds) / seconds
        if not mean:
            raise Complaint(f"its rate is 0 until {seconds:g} s, so there is none to scale", "points")
        return rate_per_s / mean

    def _expected_by(self, time_s: float) -> float:
        """Arrivals until `time_s`, on average, at rate_scale 1."""
        expected = 0.0
        for seconds, begin, end in self._parts(1.0):
            if time_s <= seconds:
                share = time_s / seconds if seconds < inf else 0.0
                return expected + _expected(time_s, begin, begin + (end - begin) * share)
            expected += _expected(seconds, begin, end)
            time_s -= seconds
        return expected

    def source(self, setup: Setup) -> Source:
        warnings: list[str] = []
        return open_loop(setup, self._times(setup, warnings), warnings)

    def _times(self, setup: Setup, warnings: list[str]) -> Iterator[list[float]]:
        """The times of arrivals; it is said where they end by themselves."""
        yield from _arrivals(setup, self._parts(self.rate_scale))
        if setup.num_requests is not None:
            warnings.append("arrivals ended before num_requests: the profile's rate stays 0 after its last point")

    def _parts(self, scale: float) -> Iterator[Part]:
        """The profile as pieces; without a period the last rate stays."""
        times = [time_s for time_s, _ in self.points]
        rates = [rate * scale for _, rate in self.points]
        ends = [*times[1:], self.period_s if self.period_s is not None else inf]
        after = [*rates[1:], rates[0] if self.period_s is not None else rates[-1]]
        once = [
            (end - begin, rate, then if self.shape == "linear" else rate)
            for begin, end, rate, then in zip(times, ends, rates, after, strict=True)
        ]
        return cycle(once) if self.period_s is not None else iter(once)


def _check_length(requests: float, what: str, key: str) -> None:
    """Far shorter pieces than gaps are a constant rate, and would take for ever to walk through."""
    if requests < LEAST_OF_A_PIECE:
        raise Complaint(
            f"is too short: {what} brings {requests:.2g} requests on average, at least {LEAST_OF_A_PIECE:g} are needed;"
            " use poisson",
            key,
        )


def _expected(seconds: float, begin: float, end: float) -> float:
    """Arrivals that a piece brings on average."""
    return seconds * (begin + end) / 2 if begin or end else 0.0


def _arrivals(setup: Setup, parts: Iterable[Part]) -> Iterator[list[float]]:
    return _mapped(unit_rate_times(setup), iter(parts))


def _mapped(sums: Iterator[NDArray[np.float64]], parts: Iterator[Part]) -> Iterator[list[float]]:
    """Blocks of growing times at rate 1 -> the times at which the rate's integral reaches them; shorter where the
    pieces end before."""
    table = np.empty((0, 5))  # of the pieces at hand: begin in s, integral at its begin and its end, rate, slope
    start_s = integral = latest_s = 0.0
    for block in sums:
        last = float(block[-1])
        table = table[np.searchsorted(table[:, 2], block[0]) :]
        rows = []
        while integral < last:
            part = next(parts, None)
            if part is None:
                break
            seconds, begin, end = part
            more = _expected(seconds, begin, end)
            rows.append((start_s, integral, integral + more, begin, (end - begin) / seconds))
            start_s += seconds
            integral += more
        if rows:
            table = np.concatenate([table, np.array(rows)])
        block = block[: int(np.searchsorted(block, integral, side="right"))]
        if block.size:
            at = table[np.searchsorted(table[:, 2], block)]
            rest = block - at[:, 1]
            rate, slope = at[:, 3], at[:, 4]
            # rest = rate t + slope t^2 / 2, solved for t without cancellation
            root = np.sqrt(np.maximum(rate * rate + 2 * slope * rest, 0.0))
            times = at[:, 0] + 2 * rest / (rate + root)
            times[0] = max(times[0], latest_s)  # rounding where two pieces meet must not turn time back
            np.maximum.accumulate(times, out=times)
            latest_s = float(times[-1])
            yield times.tolist()
        if integral < last:
            return
