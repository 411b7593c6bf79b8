"""What an engine asks of a cost model, and what all cost models share: like steps, one by one or many at once.

A step in which n sequences decode and nothing else happens costs a piecewise linear function of the context that
they read: intercept + slope x context, by the piece in which the context lies. The pieces of each n are kept. So a step
costs a look-up and a multiplication, a stretch of them one expression over an array. Both use that same expression in
the same order, then the noise factor; the sum begins with the start, ((start + d0) + d1) + ... So a stretch equals its
steps bit for bit.
"""

from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import repeat
from math import inf
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .noise import Noise
from .operators import Prompts

LOOP = 40  # steps up to which a Python loop is faster than numpy
BLOCK = 64  # counts that are priced together
T = TypeVar("T")
Seconds = NDArray[np.float64]


class Pieces(NamedTuple):
    """A piecewise linear function of the context, in tokens, from 0 on: piece i holds from knots[i] to knots[i + 1]."""

    knots: list[float]  # the first 0, the last infinite
    intercepts: list[float]  # seconds
    slopes: list[float]  # seconds per token

    @classmethod
    def line(cls, intercept: float, slope: float) -> "Pieces":
        return cls([0.0, inf], [intercept], [slope])

    @classmethod
    def through(cls, contexts: Seconds, seconds: Seconds) -> "Pieces":
        """The function that goes straight between these points, and on beyond the outer ones."""
        slopes = np.diff(seconds) / np.diff(contexts)
        intercepts = seconds[:-1] - slopes * contexts[:-1]
        return cls([0.0, *contexts[1:-1].tolist(), inf], intercepts.tolist(), slopes.tolist())

    @classmethod
    def greatest(cls, lines: "Iterable[tuple[float, float]]") -> "Pieces":
        """The greatest of lines (intercept, slope), which may be none of them for long."""
        knots, above = [0.0], []
        rest, at = list(lines), 0.0
        intercept, slope = max(rest, key=lambda line: (line[0], line[1]))
        while True:
            above.append((intercept, slope))
            steeper = [(a, b) for a, b in rest if b > slope]
            if not steeper:
                break
            at, slope, intercept = min(((intercept - a) / (b - slope), -b, a) for a, b in steeper)
            slope = -slope
            knots.append(at)
        return cls([*knots, inf], [a for a, _ in above], [b for _, b in above])

    def plus(self, seconds: float) -> "Pieces":
        return self._replace(intercepts=[seconds + intercept for intercept in self.intercepts])

    def __call__(self, context: float) -> float:
        i = bisect_right(self.knots, context) - 1
        return self.intercepts[i] + self.slopes[i] * context


class StepCost(Protocol):
    """The price of one engine's steps, in seconds. It holds the engine's noise, so each engine has its own."""

    front_end_s: float  # from a request's arrival to its place in the engine's queue
    response_s: float  # from a step's end to the delivery of its tokens
    label: str  # what every table and plot made with it must say; empty if nothing

    def step(self, n: int, context: int, prompts: Prompts, emitted: int) -> float:
        """The next step: n decoding rows (padding included) that read `context` tokens in all, their new ones included;
        (new, past) tokens of each prompt chunk; the rows for which logits are computed (n + whole prompts)."""
        ...

    def mean(self, n: int, context: int, prompts: Prompts, emitted: int) -> float:
        """The price of such a step before noise. Uses no factor."""
        ...

    def stretch(self, steps: int, n: int, context: int, start: float, ends: "array[float]", growth: int) -> None:
        """Append the ends of the next `steps` steps, the first of which starts at `start`: n >= 1 rows decode and emit,
        `growth` of them, the rest being padding, one token longer from step to step. Bit for bit what
        `step(n, context + i growth, (), n)` gives."""
        ...

    def anew(self, steps: int, tokens: int, start: float, ends: "array[float]") -> None:
        """The same for steps that compute one whole prompt each and nothing else: `tokens` tokens in the first, one
        more from step to step. Bit for bit what they give one by one."""
        ...

    def give_back(self, steps: int) -> None:
        """The last `steps` steps priced do not happen: the next steps get their noise factors."""
        ...


class Memo(dict[int, T], Generic[T]):
    """A function of a count, each value worked out once. At most as many entries as a step may have tokens."""

    def __init__(self, compute: Callable[[int], T]) -> None:
        super().__init__()
        self._compute = compute

    def __missing__(self, count: int) -> T:
        self[count] = value = self._compute(count)
        return value


class Blocks(dict[int, float]):
    """The same for a function of an array of counts: BLOCK neighbours are worked out at once.

    A count always has the same place in its block, so the same bits, however numpy walks over an array.
    """

    def __init__(self, compute: Callable[[NDArray[np.int64]], Seconds]) -> None:
        super().__init__()
        self._compute = compute

    def __missing__(self, count: int) -> float:
        first = count - count % BLOCK
        counts = range(first, first + BLOCK)
        self.update(zip(counts, self._compute(np.array(counts)).tolist(), strict=True))
        return self[count]


class Pricer(ABC):
    """A StepCost whose decode steps cost a piecewise linear function of the context."""

    front_end_s = 0.0
    response_s = 0.0
    label = ""

    def __init__(self, noise: Noise | None) -> None:
        self._noise = noise
        self._steady = Memo(self.pieces)
        self._anew = Memo(self._neighbours)

    @abstractmethod
    def pieces(self, n: int) -> Pieces:
        """What steps cost in which n rows decode, nothing else is computed, and all emit."""

    @abstractmethod
    def mixed(self, n: int, context: int, prompts: Prompts, emitted: int) -> float:
        """Mean price of any other step, seconds."""

    @abstractmethod
    def alone(self, tokens: NDArray[np.int64]) -> Seconds:
        """Mean prices of steps each of which computes one whole prompt of so many tokens, and nothing else."""

    def mean(self, n: int, context: int, prompts: Prompts, emitted: int) -> float:
        if prompts or emitted != n:
            return self.mixed(n, context, prompts, emitted)
        return self._steady[n](context)

    def step(self, n: int, context: int, prompts: Prompts, emitted: int) -> float:
        seconds = self.mean(n, context, prompts, emitted)
        return seconds * self._noise.one(bool(prompts)) if self._noise is not None else seconds

    def stretch(self, steps: int, n: int, context: int, start: float, ends: "array[float]", growth: int) -> None:
        knots, intercepts, slopes = self._steady[n]
        noise = self._noise
        piece = bisect_right(knots, context) - 1
        if steps > LOOP:
            contexts = context + growth * np.arange(steps, dtype=np.float64)
            if contexts[-1] < knots[piece + 1]:
                seconds = slopes[piece] * contexts
                seconds += intercepts[piece]
            else:
                at = np.searchsorted(knots, contexts, side="right") - 1
                seconds = np.asarray(slopes)[at] * contexts
                seconds += np.asarray(intercepts)[at]
            if noise is not None:
                seconds *= noise.many(steps)
            seconds[0] += start
            ends.frombytes(np.add.accumulate(seconds).tobytes())
            return
        append = ends.append
        intercept, slope, knot = intercepts[piece], slopes[piece], knots[piece + 1]
        reading, more_read = float(context), float(growth)  # exact, and quicker to multiply
        for factor in repeat(None, steps) if noise is None else noise.some(steps):
            if reading >= knot:
                piece = bisect_right(knots, reading) - 1
                intercept, slope, knot = intercepts[piece], slopes[piece], knots[piece + 1]
            price = intercept + slope * reading
            start += price if factor is None else price * factor
            append(start)
            reading += more_read

    def anew(self, steps: int, tokens: int, start: float, ends: "array[float]") -> None:
        blocks = range(tokens // BLOCK, (tokens + steps - 1) // BLOCK + 1)
        seconds = np.concatenate([self._anew[block] for block in blocks])[tokens % BLOCK :][:steps]
        if self._noise is not None:
            seconds *= self._noise.many(steps, prompts=True)
        seconds[0] += start
        ends.frombytes(np.add.accumulate(seconds).tobytes())

    def _neighbours(self, block: int) -> Seconds:
        """Prices of BLOCK whole prompts. Always worked out together, so a length always has the same bits."""
        tokens = np.arange(block * BLOCK, (block + 1) * BLOCK)
        return self.alone(np.maximum(tokens, 1))  # no prompt is empty

    def give_back(self, steps: int) -> None:
        if self._noise is not None:
            self._noise.give_back(steps)
