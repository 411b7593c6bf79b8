"""What an engine asks of a cost model, and what all cost models share: like steps, one by one or many at once.

A step in which n sequences decode and nothing else happens costs the greatest of a few lines in the context that they
read: intercept + slope x context. The lines of each n are kept. So a step costs a look-up and a multiplication, a
stretch of them one expression over an array. Both use that same expression in the same order, then the noise factor;
the sum begins with the start, ((start + d0) + d1) + ... So a stretch equals its steps bit for bit.
"""

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import numpy as np

from .noise import Noise
from .operators import Prompts

LOOP = 40  # steps up to which a Python loop is faster than numpy
T = TypeVar("T")
Line = tuple[float, float]  # intercept, seconds; slope, seconds per token of context
Lines = tuple[float, float, tuple[Line, ...]]  # the first line, and those that exceed it somewhere: usually none


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


class Pricer(ABC):
    """A StepCost whose decode steps cost the greatest of a few lines in the context."""

    front_end_s = 0.0
    response_s = 0.0
    label = ""

    def __init__(self, noise: Noise | None) -> None:
        self._noise = noise
        self._steady = Memo(self.lines)

    @abstractmethod
    def lines(self, n: int) -> Lines:
        """The lines of steps in which n rows decode, nothing else is computed, and all emit."""

    @abstractmethod
    def mixed(self, n: int, context: int, prompts: Prompts, emitted: int) -> float:
        """Mean price of any other step, seconds."""

    def mean(self, n: int, context: int, prompts: Prompts, emitted: int) -> float:
        if prompts or emitted != n:
            return self.mixed(n, context, prompts, emitted)
        intercept, slope, more = self._steady[n]
        seconds = intercept + slope * context
        for higher, steeper in more:
            seconds = max(seconds, higher + steeper * context)
        return seconds

    def step(self, n: int, context: int, prompts: Prompts, emitted: int) -> float:
        seconds = self.mean(n, context, prompts, emitted)
        return seconds * self._noise.one() if self._noise is not None else seconds

    def stretch(self, steps: int, n: int, context: int, start: float, ends: "array[float]", growth: int) -> None:
        intercept, slope, more = self._steady[n]
        noise = self._noise
        if steps > LOOP:
            contexts = context + growth * np.arange(steps, dtype=np.float64)
            seconds = slope * contexts
            seconds += intercept
            for higher, steeper in more:
                np.maximum(seconds, higher + steeper * contexts, out=seconds)
            if noise is not None:
                seconds *= noise.many(steps)
            seconds[0] += start
            ends.frombytes(np.add.accumulate(seconds).tobytes())
            return
        append = ends.append
        if more:
            for _ in range(steps):
                start += self.step(n, context, (), n)
                append(start)
                context += growth
            return
        reading, more_read = float(context), float(growth)  # exact, and quicker to multiply
        if noise is None:
            for _ in range(steps):
                start += intercept + slope * reading
                append(start)
                reading += more_read
        else:
            for factor in noise.some(steps):
                start += (intercept + slope * reading) * factor
                append(start)
                reading += more_read

    def give_back(self, steps: int) -> None:
        if self._noise is not None:
            self._noise.give_back(steps)
