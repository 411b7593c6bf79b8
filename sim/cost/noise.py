"""Step noise: lognormal factors of mean 1, drawn in blocks, used one per step in order.

The factor of a step depends on how many factors were used before it, never on how they were asked for: one by one or
many at once, with some given back in between. That is what lets a cut stretch and single steps agree bit for bit.
"""

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..checking import Section

BLOCK = 8192  # factors per draw; also how many used ones are kept for `give_back`


class Spread(Section):
    """How much step times scatter."""

    sigma: Annotated[
        float, Field(ge=0, le=3, description="standard deviation of the logarithm of a step's time; its mean stays")
    ] = 0.0


class Noise:
    """The factors of one engine's steps."""

    __slots__ = ("_factors", "_listed", "_rng", "_sigma", "_size", "_used")

    def __init__(self, sigma: float, rng: np.random.Generator) -> None:
        self._sigma, self._rng = sigma, rng
        self._factors: NDArray[np.float64] = np.empty(0)
        self._listed: list[float] = []  # the same numbers, for those who want few
        self._used = self._size = 0

    def one(self) -> float:
        used = self._used
        if used == self._size:
            self._draw(1)
            used = self._used
        self._used = used + 1
        return self._listed[used]

    def some(self, count: int) -> list[float]:
        """The next factors as a list."""
        first = self._take(count)  # which may replace the list
        return self._listed[first : self._used]

    def many(self, count: int) -> NDArray[np.float64]:
        """The next factors as an array; not to be written to."""
        first = self._take(count)  # which may replace the array
        return self._factors[first : self._used]

    def give_back(self, count: int) -> None:
        """The last `count` factors will be used again.

        Always possible for those of the last call, and for the last BLOCK; ValueError beyond that.
        """
        if count > self._used:
            raise ValueError(f"{count} factors given back, of which only the last {self._used} are kept")
        self._used -= count

    def _take(self, count: int) -> int:
        first = self._used
        if first + count > self._size:
            self._draw(count)
            first = self._used
        self._used = first + count
        return first

    def _draw(self, count: int) -> None:
        """Room for `count` more factors behind those used; of these only the last BLOCK are kept."""
        forget = max(0, self._used - BLOCK)
        missing = self._used + count - self._size
        drawn = self._rng.standard_normal(-(-missing // BLOCK) * BLOCK)
        drawn *= self._sigma
        drawn -= self._sigma**2 / 2  # the mean of exp(sigma z) is exp(sigma^2 / 2)
        np.exp(drawn, out=drawn)
        self._factors = np.concatenate((self._factors[forget:], drawn))
        self._used -= forget
        self._size = len(self._factors)
        self._listed = self._factors.tolist()
