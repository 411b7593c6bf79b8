"""No batching, no KV cache: each token costs what a prompt of all tokens before it costs."""

from __future__ import annotations

import pytest

from tests.small_schedules import BASE, CONTEXT, TOKEN, column, scenario, served


@pytest.mark.parametrize("fast_forward", [True, False])
def test_a_request_costs_the_sum_of_its_prompts(fast_forward: bool) -> None:
    prompt, output = 100, 150
    made = scenario({"name": "naive"}, fast_forward=fast_forward)
    result = served(made, [(0.0, prompt, output)] * 2)
    known = sum(range(prompt, prompt + output))
    whole = output * BASE + (TOKEN + CONTEXT) * known
    assert column(result, "finish_s") == pytest.approx([whole, 2 * whole], rel=1e-12)
    assert column(result, "first_scheduled_s") == pytest.approx([0.0, whole], rel=1e-12)  # one at a time
    assert result.steps["seqs"].to_pylist() == [1] * 2 * output
    assert set(result.steps["kv_blocks_used"].to_pylist()) == {0}
    times = result.steps["end_s"].to_numpy() - result.steps["start_s"].to_numpy()
    assert times[output - 1] == pytest.approx(BASE + (TOKEN + CONTEXT) * (prompt + output - 1), rel=1e-9)


def test_the_roofline_prices_a_prompt() -> None:
    """The step that gives the second token costs what a prompt one token longer costs."""
    made = scenario({"name": "naive"}, cost={"name": "roofline", "calibration": "ideal", "noise": False})
    result = served(made, [(0.0, 200, 2), (0.0, 201, 1)])
    first, second, longer = result.steps["end_s"].to_numpy() - result.steps["start_s"].to_numpy()
    assert first < second == pytest.approx(longer, rel=1e-9)


def test_it_has_no_parameters() -> None:
    import sim

    with pytest.raises(sim.ScenarioError, match=r"policy.batch_size: unknown key .* it is a parameter of static"):
        scenario({"name": "naive", "batch_size": 1})
