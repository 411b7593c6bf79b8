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
    prefill_sigma: Annotated[
        float | None, Field(ge=0, le=3, description="the same of steps that compute prompts; null: as sigma")
    ] = None

    def factors(self, rng: np.random.Generator | None) -> "Noise | None":
        """One engine's; none without a generator or without spread."""
        return Noise(self.sigma, rng, self.prefill_sigma) if rng is not None and self.scatters else None

    @property
    def scatters(self) -> bool:
        return bool(self.sigma or self.prefill_sigma)


class Noise:
    """The factors of one engine's steps. A step has one draw; which sigma it is read with depends on the step."""

    __slots__ = ("_factors", "_prefill_sigma", "_prompted", "_rng", "_sigma", "_size", "_used")

    def __init__(self, sigma: float, rng: np.random.Generator, prefill_sigma: float | None = None) -> None:
        self._sigma, self._rng = sigma, rng
        self._prefill_sigma = sigma if prefill_sigma is None else prefill_sigma
        self._factors: NDArray[np.float64] = np.empty(0)
        self._prompted = self._factors  # what the same draws give in steps that compute prompts
        self._used = self._size = 0

    def one(self, prompts: bool = False) -> float:
        """The next factor, of a step that computes prompts or of one that does not."""
        used = self._used
        if used == self._size:
            self._draw(1)
            used = self._used
        self._used = used + 1
        return (self._prompted if prompts else self._factors).item(used)

    def some(self, count: int) -> list[float]:
        """The next factors as a list."""
        first = self._take(count)  # which may replace the array
        factors: list[float] = self._factors[first : self._used].tolist()
        return factors

    def many(self, count: int, prompts: bool = False) -> NDArray[np.float64]:
        """The next factors as an array; not to be written to."""
        first = self._take(count)  # which may replace the array
        return (self._prompted if prompts else self._factors)[first : self._used]

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
        prompted = np.concatenate((self._prompted[forget:], _lognormal(self._prefill_sigma, drawn)))
        if self._prefill_sigma == self._sigma:
            self._factors = prompted
        else:
            self._factors = np.concatenate((self._factors[forget:], _lognormal(self._sigma, drawn)))
        self._prompted = prompted
        self._used -= forget
        self._size = len(self._factors)


def _lognormal(sigma: float, drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """Factors of mean 1 from standard normal numbers: the mean of exp(sigma z) is exp(sigma^2 / 2)."""
    return np.exp(sigma * drawn - sigma**2 / 2)
