"""Least squares for the numbers of a form: on the logarithm of times, bounded, robust, and the same on every run.

A number that ends at a bound was not determined by the data. It is reported, set to what it means there (no such term,
or its limit) and the others are fitted anew.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.errors import ScenarioError

DIGITS = 4  # significant, of what is written
SCALE = 0.1  # of the robust loss: errors beyond 10 % pull less than their square
RUNS = 3  # of the starts, the best so many are followed
NEAR = 2e-3  # of a bound, as a share of the range
PER_NUMBER = 4  # points that each number needs

Values = dict[str, float | None]
Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Number:
    """One number of a form: its bounds, where to start, and what stands in its place if it ends at a bound."""

    name: str
    low: float
    high: float
    starts: tuple[float, ...]
    at_low: float | None
    at_high: float | None
    logarithmic: bool = True

    def inner(self, value: float) -> float:
        return math.log(value) if self.logarithmic else value

    def outer(self, value: float) -> float:
        found = math.exp(value) if self.logarithmic else value
        return min(max(found, self.low), self.high)


@dataclass(frozen=True)
class Solution:
    """The numbers, rounded as they are written, and which of them were not determined."""

    values: Values
    bounds: tuple[str, ...]

    def told(self, name: str) -> tuple[str, ...]:
        """What was not determined, of the operator of this name."""
        return tuple(f"{name}: {line}" for line in self.bounds)


def solve(
    numbers: Sequence[Number],
    predict: Callable[[Mapping[str, float | None]], Seconds],
    measured: Seconds,
    what: str,
    per_number: int = PER_NUMBER,
    runs: int = RUNS,
    weights: Seconds | float = 1.0,
) -> Solution:
    """The numbers with which `predict` comes nearest to the measured times. ScenarioError if there are too few.

    weights: of the logarithms' differences, each its own.
    """
    needed = per_number * len(numbers)
    if len(measured) < needed:
        raise ScenarioError(
            f"{what}: {len(measured)} points to fit {len(numbers)} numbers; at least {needed} are needed"
        )
    fixed: Values = {}
    reports: list[str] = []
    free = list(numbers)
    logs = np.log(measured)

    def residuals(values: Values) -> Seconds:
        return np.asarray((np.log(predict(values)) - logs) * weights)

    while free:
        found = _least(free, lambda values: residuals({**fixed, **values}), runs)
        stuck = [(number, side) for number in free if (side := _at_bound(number, found[number.name]))]
        if not stuck:
            return Solution({**fixed, **{name: rounded(value) for name, value in found.items()}}, tuple(reports))
        for number, side in stuck:
            fixed[number.name] = number.at_low if side == "lower" else number.at_high
            bound = number.low if side == "lower" else number.high
            shown = "null" if fixed[number.name] is None else f"{fixed[number.name]:g}"
            reports.append(f"{number.name} ended at its {side} bound {bound:g}; set to {shown}")
            free.remove(number)
    return Solution(fixed, tuple(reports))


def rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def errors(predicted: Seconds, measured: Seconds) -> dict[str, Any]:
    """How far off, in percent: median, 90th percentile, signed median, spread of the logarithm, number of points."""
    ratio = predicted / measured
    off = 100 * np.abs(ratio - 1)
    logs = np.log(ratio)
    return {
        "median_percent": round(float(np.median(off)), 1),
        "p90_percent": round(float(np.percentile(off, 90)), 1),
        "signed_median_percent": round(float(np.median(100 * (ratio - 1))), 1),
        "log_spread": rounded(spread(logs)),
        "points": len(ratio),
    }


def spread(logs: Seconds) -> float:
    """A standard deviation that single bad points do not move: 1.4826 median absolute deviations."""
    return float(1.4826 * np.median(np.abs(logs - np.median(logs))))


def _least(numbers: Sequence[Number], residuals: Callable[[Values], Seconds], runs: int) -> dict[str, float]:
    """The best of a few descents."""
    optimise = optimiser()

    def values(inner: Sequence[float]) -> dict[str, float]:
        return {number.name: number.outer(value) for number, value in zip(numbers, inner, strict=True)}

    def cost(start: tuple[float, ...]) -> float:
        off = residuals(dict(zip((number.name for number in numbers), start, strict=True))) / SCALE
        return float(np.sum(np.sqrt(1 + off**2) - 1))

    starts = sorted(itertools.product(*(number.starts for number in numbers)), key=cost)[:runs]
    low = [number.inner(number.low) for number in numbers]
    high = [number.inner(number.high) for number in numbers]
    best = None
    for start in starts:
        found = optimise.least_squares(
            lambda inner: residuals(values(inner)),  # type: ignore[arg-type]
            [number.inner(value) for number, value in zip(numbers, start, strict=True)],
            bounds=(low, high),
            loss="soft_l1",
            f_scale=SCALE,
            x_scale=[max(abs(b - a) / 10, 1e-9) for a, b in zip(low, high, strict=True)],
            max_nfev=60,
        )
        if best is None or found.cost < best.cost * (1 - 1e-9):
            best = found
    assert best is not None
    return values(best.x)


def _at_bound(number: Number, value: float) -> str | None:
    low, high, at = number.inner(number.low), number.inner(number.high), number.inner(value)
    margin = NEAR * (high - low)
    return "lower" if at - low < margin else "upper" if high - at < margin else None


def optimiser() -> Any:
    """scipy.optimize; a clear error where it is not installed, for nothing but fits needs it."""
    try:
        import scipy.optimize
    except ImportError:
        raise ScenarioError("fitting needs scipy: pip install 'servesim[calibrate]'") from None
    return scipy.optimize
