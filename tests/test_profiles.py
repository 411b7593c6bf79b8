"""Bursty and piecewise arrivals: mean rates, shapes, and draws that nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sim
from sim.workload import make_source

BASE: dict[str, Any] = {"model": "llama-3.1-8b", "gpu": "h100_sxm"}
LENGTHS = {"prompt_tokens": 100, "output_tokens": 10}


def scenario(arrivals: dict[str, Any], seed: int = 0, **workload: Any) -> sim.Scenario:
    return sim.from_mapping({**BASE, "seed": seed, "workload": {"arrivals": arrivals, **LENGTHS, **workload}})


def times(made: sim.Scenario) -> np.ndarray:
    source, found = make_source(made), []
    while (request := source.next()) is not None:
        found.append(request.arrival_s)
    return np.array(found)


BURSTY = {"name": "bursty", "rate_per_s": 20, "on_s": 5, "off_s": 15}
DAY = {"name": "piecewise", "points": [[0, 2], [100, 10], [200, 0]], "period_s": 300}
LINE = {**DAY, "shape": "linear"}


@pytest.mark.parametrize("periods", ["exponential", "fixed"])
@pytest.mark.parametrize("off_rate", [0, 0.2, 1])
def test_bursty_keeps_the_mean_rate(periods: str, off_rate: float) -> None:
    """Counts of 400 cycles: their spread is that of the periods and of a Poisson process."""
    found = times(scenario({**BURSTY, "periods": periods, "off_rate": off_rate}, duration_s=8000))
    assert np.all(np.diff(found) >= 0) and found[-1] < 8000
    assert len(found) == pytest.approx(160_000, rel=0.15 if periods == "exponential" else 0.01)


def test_bursty_is_silent_in_off_periods_and_poisson_in_on_periods() -> None:
    found = times(scenario({**BURSTY, "periods": "fixed"}, duration_s=2000))
    within = found % 20
    assert within.max() < 5
    counts = np.bincount((within * 10).astype(int), minlength=50)
    assert abs(counts - 800).max() < 5 * np.sqrt(800)  # 80 a second over 100 cycles
    gaps = np.diff(found)
    inside = gaps[gaps < 10]
    assert inside.std() / inside.mean() == pytest.approx(1, abs=0.02)


def test_bursty_is_burstier_than_poisson() -> None:
    def dispersion(arrivals: dict[str, Any]) -> float:
        counts = np.bincount((times(scenario(arrivals, duration_s=4000)) / 10).astype(int), minlength=400)
        return float(counts.var() / counts.mean())

    assert dispersion({"name": "poisson", "rate_per_s": 20}) == pytest.approx(1, abs=0.3)
    assert dispersion(BURSTY) > 50
    assert dispersion({**BURSTY, "off_rate": 1}) == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("shape", ["step", "linear"])
def test_piecewise_follows_its_profile(shape: str) -> None:
    """Rates of each hundredth of the period against the profile's integral over it, within 5 sigma."""
    repeats = 400
    found = times(scenario({**DAY, "shape": shape}, duration_s=300 * repeats))
    counts = np.bincount((found % 300 / 3).astype(int), minlength=100)
    middle = np.arange(100) * 3 + 1.5
    if shape == "step":
        rate = np.where(middle < 100, 2.0, np.where(middle < 200, 10.0, 0.0))
        rate[33], rate[66] = (2 * 1 + 10 * 2) / 3, (10 * 2 + 0) / 3
    else:
        rate = np.interp(middle, [0, 100, 200, 300], [2, 10, 0, 2])
    expected = rate * 3 * repeats
    assert np.all(np.abs(counts - expected) <= 5 * np.sqrt(expected) + 6)


def test_one_point_is_poisson() -> None:
    plain = times(scenario({"name": "poisson", "rate_per_s": 4}, num_requests=5000))
    for points in ([[0, 4]], [[0, 4], [50, 4]]):
        assert np.allclose(
            times(scenario({"name": "piecewise", "points": points}, num_requests=5000)), plain, rtol=1e-12
        )


def test_the_last_rate_stays_or_ends_the_arrivals() -> None:
    stays = times(scenario({"name": "piecewise", "points": [[0, 0], [1000, 5]]}, num_requests=2000))
    assert stays[0] > 1000 and stays[-1] == pytest.approx(1400, rel=0.05)
    ending = scenario({"name": "piecewise", "points": [[0, 5], [100, 0]]}, num_requests=2000)
    source, count = make_source(ending), 0
    while source.next() is not None:
        count += 1
    assert 400 < count < 600
    assert source.warnings == ["arrivals ended before num_requests: the profile's rate stays 0 after its last point"]
    assert sim.simulate(ending).warnings == source.warnings


@pytest.mark.parametrize("arrivals", [BURSTY, DAY, LINE], ids=["bursty", "step", "linear"])
def test_a_rate_changes_times_and_no_lengths(arrivals: dict[str, Any]) -> None:
    lengths = {"prompt_tokens": {"name": "uniform", "min": 1, "max": 999}}

    def asked(made: sim.Scenario) -> list[tuple[int, int]]:
        source = make_source(made)
        return [(r.prompt_tokens, r.output_tokens) for r in iter(source.next, None)]

    plain = scenario(arrivals, num_requests=9000, **lengths)
    assert asked(plain) == asked(plain.with_rate(33))
    assert np.array_equal(times(plain), times(scenario(arrivals, num_requests=9000, **lengths)))
    assert not np.array_equal(times(plain), times(scenario(arrivals, seed=1, num_requests=9000)))


@pytest.mark.parametrize(
    ("arrivals", "workload"),
    [
        (BURSTY, {"duration_s": 20_000}),
        (DAY, {"duration_s": 3000}),
        (LINE, {"duration_s": 3000}),
        ({"name": "piecewise", "points": [[0, 1], [400, 6]]}, {"duration_s": 1000}),
        ({"name": "piecewise", "points": [[0, 1], [400, 6]], "shape": "linear"}, {"num_requests": 9000}),
        ({"name": "piecewise", "points": [[0, 1], [400, 6]], "rate_scale": 3}, {"num_requests": 9000}),
    ],
)
def test_with_rate_gives_that_mean_rate(arrivals: dict[str, Any], workload: dict[str, Any]) -> None:
    made = scenario(arrivals, **workload).with_rate(7.5)
    assert made.rate_per_s == 7.5
    found = times(made)
    rate = len(found) / (found[-1] if "num_requests" in workload else workload["duration_s"])
    assert rate == pytest.approx(7.5, rel=0.1 if arrivals is BURSTY else 0.03)
    if arrivals is BURSTY:  # the periods stay where they are
        plain = times(scenario(arrivals, **workload))
        assert np.flatnonzero(np.diff(plain) > 10).size == pytest.approx(
            np.flatnonzero(np.diff(found) > 10).size, abs=9
        )


def test_overrides_reach_a_profile() -> None:
    made = sim.from_mapping(
        {**BASE, "workload": {"num_requests": 9, "arrivals": DAY, **LENGTHS}},
        overrides=["workload.arrivals.rate_scale=2", "workload.arrivals.shape=linear"],
    )
    assert made.workload.arrivals.params["rate_scale"] == 2 and made.workload.arrivals.params["shape"] == "linear"
    assert sim.load_text(made.to_yaml()) == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": [[1, 2]]}, "points.0: must be at time 0, the first point, got 1"),
        ({"points": [[0, 2], [5, 1], [5, 3]]}, "points.2: must be later than the point before, at 5 s, got 5"),
        ({"points": [[0, 2], [5]]}, "points.1: must be a list of 2"),
        ({"points": [[0, -2]]}, "points.0.1: must be a number from 0"),
        ({"points": [[0, float("nan")]]}, "points.0.1: must be a number from 0"),
        ({"points": []}, "points: must be a list of 1 or more"),
        ({"points": [[0, 0]]}, "points: must have a rate over 0 somewhere"),
        ({"points": [[0, 2e6]]}, "points.0: must be at most 1e+06 requests/s, got 2e+06"),
        ({"period_s": 200}, "period_s: must be over the last point's time, 200 s, got 200"),
        ({"shape": "lines"}, "shape: must be one of step, linear, got 'lines'; did you mean linear?"),
        ({"points": [[0, 1]], "period_s": 1e-5}, "period_s: is too short"),
    ],
)
def test_profiles_that_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(sim.ScenarioError) as error:
        scenario({**DAY, **change}, num_requests=5)
    assert f"workload.arrivals.{message}" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"on_s": 0}, "on_s: must be a number over 0"),
        ({"off_rate": 2}, "off_rate: must be a number from 0 to 1, got 2"),
        ({"on_s": 1e-6, "off_s": 1e-6}, "on_s: is too short: an on and an off period brings 4e-05 requests"),
    ],
)
def test_bursts_that_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(sim.ScenarioError) as error:
        scenario({**BURSTY, **change}, num_requests=5)
    assert f"workload.arrivals.{message}" in str(error.value)


def test_a_profile_that_is_silent_has_no_rate_to_scale() -> None:
    with pytest.raises(sim.ScenarioError, match="its rate is 0 until 50 s"):
        scenario({"name": "piecewise", "points": [[0, 0], [100, 5]]}, duration_s=50).with_rate(3)
