"""Arrival processes that react to nothing: Poisson, gamma, constant, all at once.

The first arrival comes after the first gap, as in vLLM's serving benchmark.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isinf
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..registry import register
from .source import BLOCK, Setup, Source, open_loop

Rate = Annotated[float, Field(gt=0, le=1e6, description="mean arrivals per second")]
Rescale = Annotated[
    bool, Field(description="scale the gaps so that the last of num_requests comes at num_requests / rate_per_s")
]

INDEPENDENT = ("poisson", "gamma", "constant")
"""Names of processes whose gaps have nothing to do with each other, so that the rate says all of the load."""


@register("arrivals", "poisson")
@dataclass
class Poisson:
    """Independent users: exponential gaps."""

    rate_per_s: Rate
    rescale: Rescale = False

    def source(self, setup: Setup) -> Source:
        return open_loop(setup, _times(setup, 1.0, self.rate_per_s, self.rescale))


@register("arrivals", "gamma")
@dataclass
class Gamma:
    """Gamma gaps with vLLM's burstiness: below 1 burstier than Poisson, 1 is Poisson, above 1 more even."""

    rate_per_s: Rate
    burstiness: Annotated[
        float,
        Field(
            gt=0,
            allow_inf_nan=True,
            description="shape of the gaps, whose coefficient of variation is 1/sqrt of it; .inf: even",
        ),
    ] = 1.0
    rescale: Rescale = False

    def source(self, setup: Setup) -> Source:
        if isinf(self.burstiness):
            return Constant(self.rate_per_s).source(setup)
        return open_loop(setup, _times(setup, self.burstiness, self.rate_per_s, self.rescale))


@register("arrivals", "constant")
@dataclass
class Constant:
    """Even gaps, without drift: arrival i (from 1) at i / rate_per_s."""

    rate_per_s: Rate

    def source(self, setup: Setup) -> Source:
        return open_loop(setup, self._times())

    def _times(self) -> Iterator[list[float]]:
        first = 1
        while True:
            yield (np.arange(first, first + BLOCK) / self.rate_per_s).tolist()
            first += BLOCK


@register("arrivals", "batch")
@dataclass
class Batch:
    """All at once, at the start."""

    def source(self, setup: Setup) -> Source:
        return open_loop(setup, self._times())

    def _times(self) -> Iterator[list[float]]:
        while True:
            yield [0.0] * BLOCK


def _times(setup: Setup, shape: float, rate_per_s: float, rescale: bool) -> Iterator[list[float]]:
    scale = 1 / rate_per_s
    if rescale:
        assert setup.num_requests is not None  # checked with the scenario
        blocks, left = unit_rate_times(setup, shape), setup.num_requests
        while (block := next(blocks)).size < left:
            left -= block.size
        scale = setup.num_requests / rate_per_s / float(block[left - 1])
    for block in unit_rate_times(setup, shape):
        yield (block * scale).tolist()


def unit_rate_times(setup: Setup, shape: float = 1.0) -> Iterator[NDArray[np.float64]]:
    """Blocks of arrival times at rate 1: at another rate the same draws are only scaled."""
    rng = setup.stream("arrivals")
    last = 0.0
    while True:
        gaps = rng.standard_exponential(BLOCK) if shape == 1 else rng.standard_gamma(shape, BLOCK) / shape
        gaps[0] += last
        sums = np.cumsum(gaps)
        last = float(sums[-1])
        yield sums
