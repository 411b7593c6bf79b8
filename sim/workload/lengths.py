"""Length distributions: how many tokens a prompt or an output has.

Drawn, rounded to whole tokens, clipped to [min, max]; without `min` at least 1, without `max` at most 10^7. `mean` is
the distribution's own, before clipping.
"""

from dataclasses import dataclass
from math import log, sqrt
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..errors import Complaint
from ..registry import register

MOST_TOKENS = 10**7

Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS, description="tokens")]
Mean = Annotated[float, Field(gt=0, le=MOST_TOKENS, description="mean before clipping, tokens")]
Least = Annotated[int | None, Field(ge=1, le=MOST_TOKENS, description="least, tokens; none: 1")]
Most = Annotated[int | None, Field(ge=1, le=MOST_TOKENS, description="most, tokens; none: no limit")]


@register("lengths", "fixed")
@dataclass
class Fixed:
    """Always the same number of tokens; a plain number is short for it."""

    tokens: Tokens

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        return np.full(count, self.tokens, np.int64)


@register("lengths", "uniform")
@dataclass
class Uniform:
    """Whole numbers from min to max, all equally likely, both ends included."""

    min: Tokens
    max: Tokens

    def __post_init__(self) -> None:
        if self.min > self.max:
            raise Complaint(f"must be at least min, {self.min}, got {self.max}", "max")

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        return rng.integers(self.min, self.max, count, endpoint=True)


@register("lengths", "normal")
@dataclass
class Normal:
    """Normal (Gaussian), rounded and clipped."""

    mean: Mean
    std: Annotated[float, Field(ge=0, le=MOST_TOKENS, description="standard deviation before clipping, tokens")]
    min: Least = None
    max: Most = None

    def __post_init__(self) -> None:
        _check(self.mean, self.min, self.max)

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        return _whole(self.mean + self.std * rng.standard_normal(count), self.min, self.max)


@register("lengths", "lognormal")
@dataclass
class Lognormal:
    """Lognormal, given by its mean and its coefficient of variation; most real lengths look like it."""

    mean: Mean
    cv: Annotated[float, Field(ge=0, le=100, description="standard deviation / mean, before clipping")]
    min: Least = None
    max: Most = None

    def __post_init__(self) -> None:
        _check(self.mean, self.min, self.max)

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        variance = log(1 + self.cv**2)
        return _whole(
            np.exp(log(self.mean) - variance / 2 + sqrt(variance) * rng.standard_normal(count)), self.min, self.max
        )


@register("lengths", "exponential")
@dataclass
class Exponential:
    """Exponential: coefficient of variation 1."""

    mean: Mean
    min: Least = None
    max: Most = None

    def __post_init__(self) -> None:
        _check(self.mean, self.min, self.max)

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        return _whole(self.mean * rng.standard_exponential(count), self.min, self.max)


def _check(mean: float, least: int | None, most: int | None) -> None:
    low, high = least or 1, most or MOST_TOKENS
    if low > high:
        raise Complaint(f"must be at least min, {low}, got {high}", "max")
    if not low <= mean <= high:
        raise Complaint(f"must be within [min, max], here from {low} to {high}, got {mean:g}", "mean")


def _whole(values: NDArray[np.float64], least: int | None, most: int | None) -> NDArray[np.int64]:
    return np.clip(np.rint(values), least or 1, most or MOST_TOKENS).astype(np.int64)
