"""Sarathi-Serve: decodes never wait, chunks of prompts fill the budget, and vLLM's early memory rules."""

from __future__ import annotations

from typing import Any

import pytest

from tests.small_schedules import column, content, scenario, seconds, served, step_s


def sarathi(chunk: int = 512, watermark: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"name": "sarathi", "chunk_size": chunk, "watermark": watermark, **more}


def test_decodes_come_first_then_started_prompts_then_new_ones() -> None:
    result = served(scenario(sarathi(32)), [(0.0, 20, 8), (0.005, 70, 3), (0.006, 30, 2)])
    assert content(result) == [
        "r0:20",
        "r0:1 r1:31",
        "r0:1 r1:31",
        "r0:1 r1:8 r2:23",  # the rest of the started prompt, then a new one
        "r0:1 r1:1 r2:7",
        "r0:1 r1:1 r2:1",
        "r0:1",
        "r0:1",
    ]
    assert seconds(result)[3] == pytest.approx(step_s(32, 23 + 70 + 23), abs=1e-12)
    assert (
        result.steps["kv_blocks_used"].to_pylist()[1] == 2 + 5
    )  # all blocks of a prompt are taken with its first chunk


def test_the_budget_does_not_bound_decodes() -> None:
    result = served(scenario(sarathi(2)), [(0.0, 2, 6), (0.0, 2, 6), (0.0, 2, 6), (0.0, 2, 1)])
    assert content(result)[:5] == ["r0:2", "r0:1 r1:1", "r0:1 r1:1", "r0:1 r1:1", "r0:1 r1:1"]
    assert content(result)[5] == "r0:1 r1:1" and content(result)[6] == "r1:1 r2:1"


def test_who_finds_no_free_block_is_preempted_and_computed_again() -> None:
    """5 blocks of 4: both fill two, the next token of each needs a third."""
    result = served(scenario(sarathi(), blocks=5, size=4), [(0.0, 7, 6), (0.0, 7, 4)])
    assert content(result) == [
        "r0:7 r1:7", "r0:1 r1:1", "r0:1 |r1", "r0:1", "r0:1", "r0:1", "r1:9", "r1:1",
    ]  # fmt: skip
    assert column(result, "preemptions") == [0, 1] and column(result, "output_tokens") == [6, 4]
    assert seconds(result)[6] == pytest.approx(step_s(9, 9), abs=1e-12)


def test_a_free_block_is_needed_even_by_who_takes_none() -> None:
    """4 blocks of 4 are full: the last admitted gives up its own, and takes them again in the same step."""
    result = served(scenario(sarathi(), blocks=4, size=4), [(0.0, 7, 2), (0.0, 7, 3)])
    assert content(result)[:2] == ["r0:7 r1:7", "r0:1 r1:8 |r1"]
    assert column(result, "preemptions") == [0, 1]


def test_started_prompts_can_be_preempted() -> None:
    """r1 holds all blocks of its prompt from its first chunk on; r0 needs one of them."""
    result = served(scenario(sarathi(6), blocks=5, size=4), [(0.0, 4, 9), (0.0, 15, 1)])
    assert content(result)[:2] == ["r0:4 r1:2", "r0:1 |r1"]


def test_the_watermark_stays_free() -> None:
    kept = sarathi(watermark=0.2)
    result = served(scenario(kept, blocks=10), [(0.0, 64, 2), (0.0, 65, 2), (0.0, 129, 2), (0.0, 128, 2)])
    assert content(result)[:3] == ["r0:64", "r0:1", "r1:65"]  # 4 + 5 blocks would leave one of two
    assert column(result, "status") == ["finished", "finished", "rejected", "finished"]
    assert column(result, "reason")[2] == "9 KV blocks can never be had: 10, less a watermark of 2"


def test_places_are_limited() -> None:
    result = served(scenario(sarathi(max_num_seqs=1)), [(0.0, 5, 2), (0.0, 5, 1)])
    assert content(result) == ["r0:5", "r0:1", "r1:5"]
