"""The linear cost: its formula, and what all pricers share: a stretch is its steps, bit for bit."""

from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import gpus, models, registry
from sim.cost import Linear, Noise, Spread, StepCost
from sim.cost.linear import LinearPricer
from sim.cost.pricing import BLOCK, LOOP, Pieces, Pricer
from sim.errors import Complaint
from sim.scenario import Engine

ANY: tuple[models.Model, gpus.GPU, Engine] = (models.parse("llama-3.1-8b"), gpus.parse("h100_sxm"), Engine())


class Bent(Pricer):
    """Lines that cross within reach, so that each is the greatest somewhere."""

    def pieces(self, n: int) -> Pieces:
        return Pieces.greatest([(0.01, 1e-7), (0.009, 3e-7), (0.001 * n, 1e-8)])

    def mixed(self, n: int, context: int, prompts: Any, emitted: int) -> float:
        return 0.01 + 1e-5 * sum(new for new, _ in prompts)

    def alone(self, tokens: Any) -> Any:
        return 0.01 + 1e-5 * tokens**1.01


def pair(kind: type[Pricer], sigma: float, seed: int) -> tuple[StepCost, StepCost]:
    def make() -> StepCost:
        noise = Noise(sigma, np.random.default_rng(seed)) if sigma else None
        return Bent(noise) if kind is Bent else LinearPricer(0.0071, 1.3e-5, 3.7e-8, noise)

    return make(), make()


@settings(deadline=None)
@given(
    st.sampled_from([Bent, LinearPricer]),
    st.sampled_from([0.0, 0.05]),
    st.integers(0, 5),
    st.lists(
        st.tuples(
            st.integers(1, 3 * LOOP), st.integers(1, 300), st.integers(1, 300_000), st.floats(0, 1), st.booleans()
        ),
        max_size=8,
    ),
)
def test_a_stretch_is_its_steps_bit_for_bit_also_when_cut(
    kind: type[Pricer], sigma: float, seed: int, stretches: list[tuple[int, int, int, float, bool]]
) -> None:
    fast, slow = pair(kind, sigma, seed)
    ends, single = array("d", [0.125]), [0.125]
    for steps, n, context, kept, prompt in stretches:
        context += n
        fast.stretch(steps, n, context, ends[-1], ends, n)
        cut = max(1, int(kept * steps))
        fast.give_back(steps - cut)
        del ends[len(ends) - (steps - cut) :]
        for i in range(cut):
            single.append(single[-1] + slow.step(n, context + i * n, [], n))
        if prompt:
            ends.append(ends[-1] + fast.step(n, context, [(64, 16)], n + 1))
            single.append(single[-1] + slow.step(n, context, [(64, 16)], n + 1))
    assert ends.tolist() == single


def test_long_stretches_too() -> None:
    for kind in (Bent, LinearPricer):
        fast, slow = pair(kind, 0.05, 3)
        ends, now = array("d"), 0.1
        fast.stretch(30_000, 7, 9_000, now, ends, 7)
        for i, end in enumerate(ends):
            now += slow.step(7, 9_000 + 7 * i, [], 7)
            assert end == now


@settings(deadline=None)
@given(
    st.sampled_from([Bent, LinearPricer]),
    st.sampled_from([0.0, 0.05]),
    st.lists(st.tuples(st.integers(1, 3 * BLOCK), st.integers(1, 5000), st.floats(0, 1)), max_size=6),
)
def test_so_is_a_stretch_of_prompts(kind: type[Pricer], sigma: float, stretches: list[tuple[int, int, float]]) -> None:
    fast, slow = pair(kind, sigma, 5)
    ends, single = array("d", [0.125]), array("d", [0.125])
    for steps, tokens, kept in stretches:
        fast.anew(steps, tokens, ends[-1], ends)
        cut = max(1, int(kept * steps))
        fast.give_back(steps - cut)
        del ends[len(ends) - (steps - cut) :]
        for more in range(cut):
            slow.anew(1, tokens + more, single[-1], single)
    assert ends == single


def test_the_formula() -> None:
    cost = Linear(0.005, 2e-5, 1e-7).pricer(*ANY)
    assert cost.step(3, 300, [], 3) == 0.005 + 2e-5 * 3 + 1e-7 * 300
    ends = array("d")
    cost.anew(1, 50, 0.0, ends)
    assert ends[0] == cost.step(0, 0, [(50, 0)], 1)
    assert cost.step(3, 300, [(50, 0), (20, 80)], 4) == 0.005 + 2e-5 * 73 + 1e-7 * (300 + 50 + 100)
    assert (cost.front_end_s, cost.response_s, cost.label) == (0.0, 0.0, "")


def test_noise_only_where_asked_for() -> None:
    rng = np.random.default_rng(1)
    assert Linear(0.005).pricer(*ANY, rng=rng).step(1, 1, [], 1) == 0.005
    assert Linear(0.005, noise=Spread(sigma=0.0)).pricer(*ANY, rng=rng).step(1, 1, [], 1) == 0.005
    noisy = Linear(0.005, noise=Spread(sigma=0.1)).pricer(*ANY, rng=rng)
    assert noisy.step(1, 1, [], 1) != 0.005
    assert noisy.mean(1, 1, [], 1) == 0.005
    assert Linear(0.005, noise=Spread(sigma=0.1)).pricer(*ANY).step(1, 1, [], 1) == 0.005  # no generator: the mean


def test_in_a_scenario() -> None:
    component = registry.parse("cost", {"name": "linear", "base_s": 0.01, "noise": {"sigma": 0.05}})
    assert registry.build("cost", component) == Linear(0.01, noise=Spread(sigma=0.05))
    assert registry.build("cost", registry.parse("cost", component.plain())).noise == Spread(sigma=0.05)
    for wrong, path, words in (
        ({"base_s": 0.0}, ("base_s",), "take no time"),
        ({"base_s": -1.0}, ("base_s",), "a number from 0"),
        ({}, ("base_s",), "missing"),
        ({"base_s": 0.01, "noise": True}, ("noise",), "false or a mapping with the keys sigma, prefill_sigma"),
        ({"base_s": 0.01, "noise": {"sigma": -0.1}}, ("noise", "sigma"), "from 0 to 3"),
        ({"base_s": 0.01, "noise": {"sgma": 0.1}}, ("noise", "sgma"), "did you mean sigma"),
        ({"base": 0.01}, ("base",), "did you mean base_s"),
    ):
        with pytest.raises(Complaint, match=words) as caught:
            registry.parse("cost", {"name": "linear", **wrong})
        assert caught.value.path == path


def test_pricer_takes_a_resolver_as_every_cost_model_does() -> None:
    assert Linear(0.01).pricer(*ANY, resolve=Path).step(1, 1, [], 1) == 0.01
