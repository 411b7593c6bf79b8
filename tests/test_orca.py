"""Orca: batches change at every step, prompts and decodes share steps, memory is reserved for the longest output."""

from __future__ import annotations

import pytest

from tests.small_schedules import column, content, scenario, seconds, served, step_s


def test_who_comes_joins_the_next_step_and_who_ends_makes_room() -> None:
    result = served(scenario({"name": "orca", "max_batch_size": 2}), [(0.0, 10, 3), (0.005, 20, 4), (0.006, 5, 2)])
    assert content(result) == ["r0:10", "r0:1 r1:20", "r0:1 r1:1", "r1:1 r2:5", "r1:1 r2:1"]
    assert seconds(result) == pytest.approx(
        [step_s(10, 10), step_s(21, 11 + 20), step_s(2, 12 + 21), step_s(6, 22 + 5), step_s(2, 23 + 6)], abs=1e-12
    )


@pytest.mark.parametrize(("most", "together"), [(65, True), (66, False)])
def test_memory_is_reserved_for_the_longest_output(most: int, together: bool) -> None:
    """10 blocks hold two sequences of 16 + 64 tokens (the last output is never computed), not two of 16 + 65."""
    asked = [(0.0, 16, 3), (0.0, 16, 3), (0.0, 16, 3)]
    result = served(scenario({"name": "orca"}, blocks=10), asked, dict.fromkeys(range(3), most))
    first = ["r0:16 r1:16", "r0:1 r1:1", "r0:1 r1:1", "r2:16"] if together else ["r0:16", "r0:1", "r0:1", "r1:16"]
    assert content(result)[:4] == first
    assert result.steps["kv_blocks_used"].to_pylist()[:3] == [10 if together else 6] * 3
    assert column(result, "status") == ["finished"] * 3 and column(result, "preemptions") == [0] * 3


def test_nobody_passes_the_head_of_the_queue() -> None:
    asked = [(0.0, 100, 3), (0.0, 100, 3), (0.0, 8, 3)]
    assert content(served(scenario({"name": "orca"}, blocks=10), asked))[:4] == [
        "r0:100",
        "r0:1",
        "r0:1",
        "r1:100 r2:8",
    ]
