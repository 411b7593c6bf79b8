"""Step factors: mean 1, the same however they are asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cost.noise import BLOCK, Noise


def noise(sigma: float = 0.3, seed: int = 7) -> Noise:
    return Noise(sigma, np.random.default_rng(seed))


REFERENCE = np.concatenate([np.exp(np.random.default_rng(7).standard_normal(20 * BLOCK) * 0.3 - 0.3**2 / 2)])


def test_lognormal_with_mean_one() -> None:
    drawn = noise().many(20 * BLOCK)
    standard_error = np.sqrt(np.expm1(0.3**2) / len(drawn))
    assert abs(drawn.mean() - 1) < 4 * standard_error
    assert np.log(drawn).std() == pytest.approx(0.3, rel=0.01)
    assert noise(0.0).many(10).tolist() == [1.0] * 10


calls = st.lists(
    st.tuples(st.sampled_from(["one", "some", "many"]), st.integers(1, 3 * BLOCK), st.floats(0, 1)),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(calls)
def test_the_sequence_does_not_depend_on_how_it_is_taken(calls: list[tuple[str, int, float]]) -> None:
    factors, place = noise(), 0
    for how, count, share in calls:
        if place + count > len(REFERENCE):
            break
        if how == "one":
            count = 1
            got = [factors.one()]
        else:
            got = list(getattr(factors, how)(count))
        assert got == REFERENCE[place : place + count].tolist()
        back = int(share * count)
        factors.give_back(back)
        place += count - back


def test_a_block_can_always_be_given_back() -> None:
    factors = noise()
    for _ in range(3 * BLOCK):
        factors.one()
    factors.give_back(BLOCK)
    assert factors.one() == REFERENCE[2 * BLOCK]
    with pytest.raises(ValueError, match="given back"):
        factors.give_back(4 * BLOCK)


def test_seeds() -> None:
    assert noise(seed=1).some(5) == noise(seed=1).some(5) != noise(seed=2).some(5)


def test_steps_with_prompts_have_a_spread_of_their_own() -> None:
    """Their factors come from the same draws, so what one step is changes no other step's factor."""
    mixed, plain = Noise(0.3, np.random.default_rng(7), 0.1), noise()
    prompted = np.exp(np.random.default_rng(7).standard_normal(3 * BLOCK) * 0.1 - 0.1**2 / 2)
    for place in range(2 * BLOCK + 5):
        other = plain.one()
        assert mixed.one(place % 3 == 0) == (prompted[place] if place % 3 == 0 else other)
    mixed.give_back(7)
    assert mixed.one(True) == prompted[2 * BLOCK - 2]
    assert mixed.many(BLOCK, prompts=True).tolist() == prompted[2 * BLOCK - 1 : 3 * BLOCK - 1].tolist()
