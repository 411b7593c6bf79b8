"""Queueing theory in closed form: what degenerate scenarios must reproduce, and rules of thumb for sizing.

Rates are per second, times in seconds; `arrival_rate` is lambda and `service_rate` is mu, of one server. An unstable
queue (utilisation of 1 or more) has no steady state and raises ValueError.

Sources: [K] L. Kleinrock, Queueing Systems, vol. 1, 1975; [GH] D. Gross et al., Fundamentals of Queueing Theory,
4th ed., 2008; [L] D. V. Lindley, The theory of queues with a single server, 1952; [J] J. D. C. Little, A proof for the
queuing formula L = lambda W, 1961; [C] A. Cobham, Priority assignment in waiting line problems, 1954.
"""

import math
from collections.abc import Sequence

import numpy as np


def utilisation(arrival_rate: float, service_rate: float, servers: int = 1) -> float:
    """rho = lambda / (c mu), below 1 or there is no steady state [K, ch. 2]."""
    if arrival_rate < 0 or service_rate <= 0 or servers < 1:
        raise ValueError("rates must be positive, with one server or more")
    rho = arrival_rate / (servers * service_rate)
    if rho >= 1:
        raise ValueError(f"no steady state: {arrival_rate} a second arrive, {servers * service_rate} can be served")
    return rho


def mm1_mean_wait(arrival_rate: float, service_rate: float) -> float:
    """Mean time in the queue of an M/M/1: rho / (mu - lambda) [K, sec. 3.2]."""
    return utilisation(arrival_rate, service_rate) / (service_rate - arrival_rate)


def mm1_mean_in_system(arrival_rate: float, service_rate: float) -> float:
    """Mean number in an M/M/1, waiting or served: rho / (1 - rho) [K, sec. 3.2]."""
    rho = utilisation(arrival_rate, service_rate)
    return rho / (1 - rho)


def mm1_wait_quantile(arrival_rate: float, service_rate: float, share: float) -> float:
    """The waiting time that a `share` (0.99: p99) of the customers of an M/M/1 do not exceed.

    P(wait > t) = rho exp(-(mu - lambda) t) [GH, sec. 2.2], solved for t; 0 for the 1 - rho who do not wait.
    """
    return mmc_wait_quantile(arrival_rate, service_rate, 1, share)


def md1_mean_wait(arrival_rate: float, service_rate: float) -> float:
    """Mean time in the queue of an M/D/1, half that of the M/M/1: rho / (2 mu (1 - rho)) [K, ch. 5]."""
    return mg1_mean_wait(arrival_rate, 1 / service_rate, 0.0)


def md1_mean_in_system(arrival_rate: float, service_rate: float) -> float:
    """Mean number in an M/D/1: rho + rho^2 / (2 (1 - rho)) [K, ch. 5]."""
    return little(arrival_rate, md1_mean_wait(arrival_rate, service_rate) + 1 / service_rate)


def mg1_mean_wait(arrival_rate: float, mean_service_s: float, service_cv: float) -> float:
    """Mean time in the queue of an M/G/1 (Pollaczek and Khinchine): rho E[S] (1 + cv^2) / (2 (1 - rho)) [K, ch. 5].

    service_cv: standard deviation of the service time over its mean.
    """
    rho = utilisation(arrival_rate, 1 / mean_service_s)
    return rho * mean_service_s * (1 + service_cv**2) / (2 * (1 - rho))


def priority_mean_waits(
    arrival_rates: Sequence[float], mean_service_s: Sequence[float], second_moments_s2: Sequence[float]
) -> list[float]:
    """Mean times in the queue of an M/G/1 whose classes come in order of urgency, nobody interrupted (Cobham).

    W(k) = W0 / ((1 - sigma(k-1)) (1 - sigma(k))), where W0 = sum of lambda E[S^2] / 2 over all classes and sigma(k) the
    load of the first k [C; K, vol. 2, sec. 3.6]. Classes of one length each, the shortest first, are the queue in which
    the shortest job comes next. second_moments_s2: E[S^2] of each class.
    """
    residual = sum(rate * moment for rate, moment in zip(arrival_rates, second_moments_s2, strict=True)) / 2
    waits, before = [], 0.0
    for rate, mean in zip(arrival_rates, mean_service_s, strict=True):
        load = before + utilisation(rate, 1 / mean)
        if load >= 1:
            raise ValueError(f"no steady state: the load of the classes up to this one is {load:.3g}")
        waits.append(residual / ((1 - before) * (1 - load)))
        before = load
    return waits


def erlang_c(arrival_rate: float, service_rate: float, servers: int) -> float:
    """Share of the customers of an M/M/c that must wait, Erlang's C [K, sec. 3.5; GH, sec. 2.3].

    By the stable recursion of Erlang's B, B(k) = a B(k-1) / (k + a B(k-1)), and C = B / (1 - rho (1 - B)).
    """
    rho = utilisation(arrival_rate, service_rate, servers)
    load = arrival_rate / service_rate
    blocked = 1.0
    for k in range(1, servers + 1):
        blocked = load * blocked / (k + load * blocked)
    return blocked / (1 - rho * (1 - blocked))


def mmc_mean_wait(arrival_rate: float, service_rate: float, servers: int) -> float:
    """Mean time in the queue of an M/M/c: C / (c mu - lambda) [GH, sec. 2.3]."""
    return erlang_c(arrival_rate, service_rate, servers) / (servers * service_rate - arrival_rate)


def mmc_mean_in_system(arrival_rate: float, service_rate: float, servers: int) -> float:
    """Mean number in an M/M/c: C rho / (1 - rho) + lambda / mu [GH, sec. 2.3]."""
    return little(arrival_rate, mmc_mean_wait(arrival_rate, service_rate, servers) + 1 / service_rate)


def mmc_wait_quantile(arrival_rate: float, service_rate: float, servers: int, share: float) -> float:
    """The waiting time that a `share` of the customers of an M/M/c do not exceed.

    P(wait > t) = C exp(-(c mu - lambda) t) [GH, sec. 2.3], solved for t; 0 for those who do not wait.
    """
    if not 0 <= share < 1:
        raise ValueError(f"a share from 0 to below 1 is wanted, not {share}")
    must_wait = erlang_c(arrival_rate, service_rate, servers)
    if must_wait <= 1 - share:
        return 0.0
    return math.log(must_wait / (1 - share)) / (servers * service_rate - arrival_rate)


def lindley_waits(arrival_s: np.ndarray, service_s: np.ndarray) -> np.ndarray:
    """Waiting times of a single server, first come first served, from its arrivals (sorted) and service times.

    Lindley's recursion W(n+1) = max(0, W(n) + S(n) - (A(n+1) - A(n))) [L], unrolled: with all service before n summed
    up as C(n), the server is free for n at C(n) + max over k <= n of (A(k) - C(k)).
    """
    arrival, service = np.asarray(arrival_s, float), np.asarray(service_s, float)
    before = np.concatenate([[0.0], np.cumsum(service)[:-1]]) if len(service) else np.empty(0)
    slack = arrival - before
    return np.maximum.accumulate(slack) - slack


def little(arrival_rate: float, mean_time_s: float) -> float:
    """Little's law: the mean number in a system is the arrival rate times the mean time in it, L = lambda W [J]."""
    return arrival_rate * mean_time_s


def mean_in_system(arrival_s: np.ndarray, leave_s: np.ndarray, until_s: float) -> float:
    """Time average, from 0 to `until_s`, of the number in a system, the area under N(t): for Little's law."""
    times = np.concatenate([arrival_s, leave_s])
    change = np.concatenate([np.ones(len(arrival_s)), -np.ones(len(leave_s))])
    order = np.argsort(times, kind="stable")
    times, present = np.minimum(times[order], until_s), np.cumsum(change[order])
    return float(np.dot(present, np.diff(times, append=until_s))) / until_s
