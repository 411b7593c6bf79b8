"""vLLM's first scheduler: prompts by themselves and first, preemption by recomputing or by swapping over PCIe."""

from __future__ import annotations

from typing import Any

import pytest

import sim
from tests.small_schedules import column, content, scenario, seconds, served, step_s

BLOCK = 4 * 131_072  # bytes of 4 tokens of Llama-3.1-8B in bf16


def v0(**more: Any) -> dict[str, Any]:
    return {"name": "vllm_v0", "watermark": 0.0, **more}


def swapping(**more: Any) -> dict[str, Any]:
    return v0(preemption_mode="swap", pcie_gb_per_s=0.001, **more)


def test_a_step_computes_prompts_or_decodes() -> None:
    result = served(scenario(v0()), [(0.0, 10, 4), (0.005, 20, 2)])
    assert content(result) == ["r0:10", "r1:20", "r0:1 r1:1", "r0:1", "r0:1"]
    ticks = result.steps["tick"].to_pylist()
    assert ticks == [None, None, 0, 1, 2]  # a step of prompts only is no tick
    assert [row["ticks"] for row in result.spans.to_pylist()] == [3, 1]  # and tears nothing
    assert seconds(result) == pytest.approx(
        [step_s(10, 10), step_s(20, 20), step_s(2, 11 + 21), step_s(1, 12), step_s(1, 13)], abs=1e-12
    )


def test_prompts_are_whole_and_share_a_budget_and_places() -> None:
    budget = v0(max_num_batched_tokens=512, max_num_seqs=3)
    result = served(scenario(budget), [(0.0, 200, 2), (0.0, 200, 2), (0.0, 200, 2), (0.0, 9, 1)])
    assert content(result) == ["r0:200 r1:200", "r2:200", "r0:1 r1:1 r2:1", "r3:9"]


def test_recomputation() -> None:
    """5 blocks of 4: both fill two, the next token of each needs a third. The last admitted loses."""
    result = served(scenario(v0(), blocks=5, size=4), [(0.0, 7, 6), (0.0, 7, 4)])
    assert content(result) == ["r0:7 r1:7", "r0:1 r1:1", "r0:1 |r1", "r0:1", "r0:1", "r0:1", "r1:9", "r1:1"]
    assert column(result, "preemptions") == [0, 1] and column(result, "output_tokens") == [6, 4]


def test_the_last_to_come_loses_first() -> None:
    """6 blocks of 4, all full after the prompts."""
    result = served(scenario(v0(), blocks=6, size=4), [(0.0, 7, 2)] * 3)
    assert content(result) == ["r0:7 r1:7 r2:7", "r0:1 r1:1 |r2", "r2:8"]


def test_swapping_costs_both_ways_and_computes_nothing_again() -> None:
    result = served(scenario(swapping(), blocks=5, size=4), [(0.0, 7, 6), (0.0, 7, 4)])
    assert content(result) == ["r0:7 r1:7", "r0:1 r1:1", "r0:1 |r1", "r0:1", "r0:1", "r0:1", "r1:1", "r1:1"]
    moved = 2 * BLOCK / 1e6
    decodes = [step_s(1, context) for context in (9, 10, 11, 12, 9, 10)]
    decodes[0] += moved
    decodes[4] += moved
    assert seconds(result) == pytest.approx([step_s(14, 14), step_s(2, 16), *decodes], abs=1e-9)
    assert result.steps["kv_blocks_used"].to_pylist() == [4, 4, 3, 3, 3, 3, 3, 3]
    assert result.steps["waiting"].to_pylist() == [0, 0, 1, 1, 1, 1, 0, 0]
    again = served(scenario(v0(), blocks=5, size=4), [(0.0, 7, 6), (0.0, 7, 4)])
    assert seconds(again)[6] == pytest.approx(step_s(9, 9), abs=1e-9)
    assert column(result, "preempted_s")[1] == pytest.approx(sum(decodes[:4]), abs=1e-9)


def test_no_prompt_while_anybody_is_swapped_out() -> None:
    """r2 would fit beside r0, but r1 comes back first; it decodes in the step that brings it back."""
    result = served(scenario(swapping(), blocks=5, size=4), [(0.0, 7, 6), (0.0, 7, 4), (0.05, 2, 1)])
    assert content(result)[2:] == ["r0:1 |r1", "r0:1", "r0:1", "r0:1", "r1:1", "r2:2", "r1:1"]


def test_who_comes_back_joins_the_decodes() -> None:
    """Three in 8 blocks of 4: r2 comes back when r0 has ended, loses its place again, and comes back for its last."""
    result = served(scenario(swapping(), blocks=8, size=4), [(0.0, 7, 4), (0.0, 11, 9), (0.0, 7, 5)])
    assert content(result) == [
        "r0:7 r1:11 r2:7", "r0:1 r1:1 r2:1", "r0:1 r1:1 |r2", "r0:1 r1:1", "r1:1 r2:1", "r1:1 r2:1", "r1:1 |r2",
        "r1:1", "r1:1", "r2:1",
    ]  # fmt: skip
    assert result.steps["kv_blocks_used"].to_pylist() == [7, 7, 7, 7, 7, 7, 5, 5, 5, 3]
    moved = [BLOCK / 1e6 * blocks for blocks in (2, 2, 3, 3)]
    extra = [
        seconds(result)[i] - step_s(n, tokens) for i, n, tokens in ((2, 2, 22), (4, 2, 24), (6, 1, 17), (9, 1, 11))
    ]
    assert extra == pytest.approx(moved, abs=1e-9)


def test_swap_space_is_limited() -> None:
    """Two blocks are 2 x 0.5 MiB; without room for them vLLM would abort, here the victim fails."""
    roomy, narrow = (
        served(scenario(swapping(swap_space=gib), blocks=5, size=4), [(0.0, 7, 6), (0.0, 7, 4)])
        for gib in (2 * BLOCK / 2**30, 1.9 * BLOCK / 2**30)
    )
    assert column(roomy, "status") == ["finished", "finished"]
    assert column(narrow, "status") == ["finished", "failed"] and column(narrow, "output_tokens") == [6, 2]
    assert "swap_space" in column(narrow, "reason")[1]


def test_what_can_never_come_back_fails_and_the_rest_goes_on() -> None:
    """One sequence grows until it holds all blocks but finds none free: vLLM's worst-case rule."""
    result = served(scenario(swapping(), blocks=5, size=4), [(0.0, 12, 8), (0.0, 3, 2)])
    assert content(result)[-3:] == ["r0:1", " |r0", "r1:1"]
    assert column(result, "status")[0] == "failed" and "never fit again" in column(result, "reason")[0]
    assert column(result, "status")[1] == "finished"


def test_a_free_block_is_needed_even_by_who_takes_none() -> None:
    result = served(scenario(v0(), blocks=4, size=4), [(0.0, 7, 2), (0.0, 7, 3)])
    assert content(result) == ["r0:7 r1:7", "r0:1 |r1", "r1:8", "r1:1"]


def test_the_watermark_stays_free() -> None:
    kept = v0(watermark=0.2)
    result = served(scenario(kept, blocks=10), [(0.0, 64, 2), (0.0, 65, 2), (0.0, 129, 2)])
    assert content(result)[:3] == ["r0:64", "r0:1", "r1:65"]
    assert column(result, "status") == ["finished", "finished", "rejected"]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"max_num_batched_tokens": 300}, r"policy: max_num_batched_tokens \(300\) is less than max_model_len \(512\)"),
        (
            {"max_num_batched_tokens": 600, "max_num_seqs": 700},
            r"max_num_batched_tokens \(600\) is less than max_num_se",
        ),
        (
            {"preemption_mode": "swop"},
            "policy.preemption_mode: must be one of recompute, swap, got 'swop'; did you mean",
        ),
        ({"swap_space": -1.0}, "policy.swap_space: must be a number from 0 to 1000000, got -1.0"),
        ({"chunk_size": 3}, "policy.chunk_size: unknown key .* it is a parameter of sarathi"),
    ],
)
def test_what_is_refused(policy: dict[str, Any], message: str) -> None:
    with pytest.raises(sim.ScenarioError, match=message):
        scenario(v0(**policy))
