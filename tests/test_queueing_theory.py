"""The closed forms against numbers from textbooks, against each other and against Lindley's recursion."""

import math

import numpy as np
import pytest

from analysis import queueing as q


def test_mm1_of_the_textbook() -> None:
    # lambda 4, mu 5: L = 4, Wq = 0.8, W = 1
    assert q.mm1_mean_in_system(4, 5) == pytest.approx(4.0)
    assert q.mm1_mean_wait(4, 5) == pytest.approx(0.8)
    assert q.little(4, q.mm1_mean_wait(4, 5) + 1 / 5) == pytest.approx(q.mm1_mean_in_system(4, 5))


def test_md1_waits_half_as_long_as_mm1() -> None:
    assert q.md1_mean_wait(4, 5) == pytest.approx(0.4)
    assert q.md1_mean_in_system(4, 5) == pytest.approx(0.8 + 0.8**2 / (2 * 0.2))
    assert q.mg1_mean_wait(4, 0.2, 1.0) == pytest.approx(q.mm1_mean_wait(4, 5))


def test_erlang_c_of_the_tables() -> None:
    # 2 servers at rho 0.75: 9/14; 3 at a load of 2: 4/9; one server: rho
    assert q.erlang_c(1.5, 1, 2) == pytest.approx(9 / 14)
    assert q.erlang_c(2, 1, 3) == pytest.approx(4 / 9)
    assert q.erlang_c(0.8, 1, 1) == pytest.approx(0.8)
    assert q.erlang_c(90, 1, 100) == pytest.approx(0.2169, abs=1e-4)
    assert 0 < q.erlang_c(995, 1, 1000) < 1  # no overflow


def test_mmc_by_its_definition() -> None:
    lam, mu, c = 7.0, 2.0, 5
    load = lam / mu
    rho = load / c
    p0 = 1 / (sum(load**k / math.factorial(k) for k in range(c)) + load**c / math.factorial(c) / (1 - rho))
    queue = p0 * load**c * rho / (math.factorial(c) * (1 - rho) ** 2)
    assert q.mmc_mean_wait(lam, mu, c) == pytest.approx(queue / lam)
    assert q.mmc_mean_in_system(lam, mu, c) == pytest.approx(queue + load)
    assert q.mmc_mean_wait(4, 5, 1) == pytest.approx(q.mm1_mean_wait(4, 5))


def test_quantiles_invert_the_tail() -> None:
    t = q.mm1_wait_quantile(4, 5, 0.99)
    assert 0.8 * math.exp(-t) == pytest.approx(0.01)
    assert q.mm1_wait_quantile(4, 5, 0.2) == 0.0  # a fifth do not wait
    t = q.mmc_wait_quantile(7, 2, 5, 0.9)
    assert q.erlang_c(7, 2, 5) * math.exp(-3 * t) == pytest.approx(0.1)


@pytest.mark.parametrize("rates", [(5, 5, 1), (6, 5, 1), (10, 5, 2), (-1, 5, 1), (1, 0, 1), (1, 1, 0)])
def test_no_steady_state_is_an_error(rates: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match=r"steady state|positive"):
        q.mmc_mean_wait(*rates)
    with pytest.raises(ValueError, match="share"):
        q.mmc_wait_quantile(1, 2, 1, 1.0)


def test_lindley_unrolled_is_lindley_step_by_step() -> None:
    rng = np.random.default_rng(3)
    arrivals, services = np.cumsum(rng.exponential(1.0, 5000)), rng.exponential(0.9, 5000)
    waits, wait = [0.0], 0.0
    for n in range(4999):
        wait = max(0.0, wait + services[n] - (arrivals[n + 1] - arrivals[n]))
        waits.append(wait)
    np.testing.assert_allclose(q.lindley_waits(arrivals, services), waits, rtol=1e-9, atol=1e-9)
    assert len(q.lindley_waits(np.empty(0), np.empty(0))) == 0


def test_lindley_reaches_the_closed_forms() -> None:
    rng = np.random.default_rng(5)
    size = 400_000
    arrivals = np.cumsum(rng.exponential(1 / 6, size))
    assert q.lindley_waits(arrivals, rng.exponential(0.1, size)).mean() == pytest.approx(
        q.mm1_mean_wait(6, 10), rel=0.04
    )
    assert q.lindley_waits(arrivals, np.full(size, 0.1)).mean() == pytest.approx(q.md1_mean_wait(6, 10), rel=0.04)


def test_little_on_records() -> None:
    arrivals, leaves = np.array([0.0, 1.0, 1.5]), np.array([2.0, 4.0, 2.0])
    assert q.mean_in_system(arrivals, leaves, 4.0) == pytest.approx((2.0 + 3.0 + 0.5) / 4.0)
    assert q.mean_in_system(arrivals, leaves, 4.0) == pytest.approx(q.little(3 / 4.0, (leaves - arrivals).mean()))
    assert q.mean_in_system(arrivals, leaves, 3.0) == pytest.approx((2.0 + 2.0 + 0.5) / 3.0)
