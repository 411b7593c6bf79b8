"""Static batching: waits for a full batch or a delay, pads, runs until the last sequence ends, admits nobody before."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

import sim
from sim.request import Request
from sim.workload.source import Fixed
from tests.random_cases import OWN

BASE, TOKEN, CONTEXT = 0.01, 1e-4, 1e-6
Asked = list[tuple[float, int, int]]  # arrival, prompt, output


def scenario(batch_size: int, delay_s: float, returns: str = "as_each_ends", **changes: Any) -> sim.Scenario:
    return sim.from_mapping(
        {
            "model": "llama-3.1-8b",
            "gpu": "h100_sxm",
            "engine": {"max_model_len": 2048},
            "policy": {
                "name": "static",
                "batch_size": batch_size,
                "max_queue_delay_s": delay_s,
                "return_results": returns,
            },
            "workload": dict(OWN),
            "cost": {"name": "linear", "base_s": BASE, "per_token_s": TOKEN, "per_context_token_s": CONTEXT},
            **changes,
        }
    )


def run(made: sim.Scenario, asked: Asked) -> sim.Result:
    requests = [Request(i, f"r{i}", at, prompt, output, output) for i, (at, prompt, output) in enumerate(asked)]
    return sim.simulate(made, source=Fixed(iter(requests), len(requests)))


def column(result: sim.Result, name: str) -> Any:
    return result.requests[name].to_numpy()


def batch_s(prompts: list[int], outputs: list[int]) -> tuple[list[float], list[float]]:
    """When each step of a batch that starts at 0 ends, by hand, and when each of its sequences has its last token.

    Every row is computed in every step: prompts padded to the longest, rows that have ended as one token more.
    """
    rows, longest = len(prompts), max(prompts)
    now = BASE + TOKEN * rows * longest + CONTEXT * rows * longest
    ends, contexts = [now], dict(enumerate(prompts))
    for step in range(1, max(outputs)):
        going = [i for i in contexts if outputs[i] > step]
        read = sum(prompts[i] + step for i in going)
        now += BASE + TOKEN * rows + CONTEXT * read
        ends.append(now)
    return ends, [ends[n - 1] for n in outputs]


def test_a_full_batch_starts_at_once() -> None:
    result = run(scenario(3, 10.0), [(0.0, 100, 5), (0.5, 100, 5), (1.25, 100, 5), (1.3, 100, 5)])
    assert column(result, "first_scheduled_s")[:3].tolist() == [1.25] * 3
    assert result.steps["seqs"].to_pylist()[0] == 3


@pytest.mark.parametrize("delay_s", [0.0, 0.2, 3.0])
def test_a_part_of_a_batch_starts_after_the_delay_of_its_first(delay_s: float) -> None:
    result = run(scenario(3, delay_s), [(1.0, 100, 1), (1.0 + 0.9 * delay_s, 100, 1)])
    assert column(result, "first_scheduled_s") == pytest.approx([1.0 + delay_s] * 2, abs=1e-12)
    assert result.steps.num_rows == 1


def test_who_comes_at_the_end_of_the_delay_is_in_the_batch() -> None:
    assert run(scenario(3, 0.5), [(1.0, 100, 1), (1.5, 100, 1)]).steps.num_rows == 1
    assert run(scenario(3, 0.5), [(1.0, 100, 1), (1.5 + 1e-9, 100, 1)]).steps.num_rows == 2


def test_nobody_is_admitted_before_the_batch_has_ended() -> None:
    """Places and memory of those that have ended stay empty; the next batch is whoever has come by then."""
    asked = [(0.0, 50, 100), (0.0, 50, 2), *[(0.05 + 0.01 * i, 50, 3) for i in range(5)]]
    result = run(scenario(2, 0.0), asked)
    start, finish = column(result, "first_scheduled_s"), column(result, "finish_s")
    assert start.tolist() == [0.0, 0.0, *[finish[0]] * 2, *[finish[2]] * 2, finish[4]]
    assert finish[1] < finish[0]


def test_the_delay_counts_from_the_arrival_also_during_a_batch() -> None:
    result = run(scenario(2, 0.5), [(0.0, 50, 100), (0.6, 50, 1), (5.0, 50, 1)])
    start, finish = column(result, "first_scheduled_s"), column(result, "finish_s")
    assert start[0] == 0.5 and start[1] == finish[0] > 1.1  # its delay was over while the first ran
    assert start[2] == 5.5


@pytest.mark.parametrize("seed", range(6))
def test_padding_is_computed_and_paid(seed: int) -> None:
    rng = random.Random(seed)
    rows = rng.randint(2, 8)
    prompts = [rng.randint(1, 400) for _ in range(rows)]
    outputs = [rng.randint(1, 60) for _ in range(rows)]
    result = run(scenario(rows, 1.0), [(0.0, p, o) for p, o in zip(prompts, outputs, strict=True)])
    ends, finish = batch_s(prompts, outputs)
    assert result.steps["end_s"].to_numpy() == pytest.approx(np.array(ends), abs=1e-9)
    assert column(result, "finish_s") == pytest.approx(np.array(finish), abs=1e-9)
    assert result.steps["decode_tokens"].to_pylist() == [0] + [sum(o > i for o in outputs) for i in range(1, len(ends))]
    assert result.steps["prefill_tokens"].to_pylist()[0] == sum(prompts)


def test_equal_lengths_need_no_padding() -> None:
    """Then a static batch costs what the same batch costs under continuous batching."""
    asked: Asked = [(0.0, 200, 30)] * 4
    static = run(scenario(4, 1.0), asked)
    vllm = run(scenario(4, 1.0, policy={"name": "vllm", "async_scheduling": False}), asked)
    assert static.steps["end_s"].equals(vllm.steps["end_s"])
    assert static.requests.drop_columns(["cached_tokens"]).equals(vllm.requests.drop_columns(["cached_tokens"]))


def test_results_at_the_end_of_the_batch() -> None:
    """The same steps; but everybody gets everything when the last has ended, so there are no times between tokens."""
    asked: Asked = [(0.0, 100, 40), (0.0, 20, 3), (0.0, 60, 17), (0.3, 10, 2)]
    each, whole = (run(scenario(3, 0.1, returns), asked) for returns in ("as_each_ends", "end_of_batch"))
    assert whole.steps.equals(each.steps)
    ended = [column(each, "finish_s")[0]] * 3
    assert column(whole, "finish_s").tolist()[:3] == ended
    assert (column(whole, "first_token_s") == column(whole, "finish_s")).all()
    assert (column(each, "first_token_s") < column(each, "finish_s")).all()
    assert column(each, "finish_s")[1] < column(each, "finish_s")[2] < ended[0]
    assert column(whole, "output_tokens").tolist() == [40, 3, 17, 2]
    for name in ("mean_tpot_ms", "mean_itl_ms", "p99_itl_ms"):
        assert whole.summary[name] is None and each.summary[name] > 0
    assert whole.summary["mean_ttft_ms"] == whole.summary["mean_e2el_ms"]
    assert whole.summary["streamed"] is False and each.summary["streamed"] is True


def test_a_batch_that_the_clock_cuts_off_delivers_nothing_or_what_has_ended() -> None:
    cut = {**OWN, "duration_s": 0.2}
    asked: Asked = [(0.0, 20, 3), (0.0, 20, 100)]
    each = run(scenario(2, 0.0, workload=cut), asked)
    assert column(each, "status").tolist() == ["finished", "unfinished"]
    whole = run(scenario(2, 0.0, "end_of_batch", workload=cut), asked)
    assert column(whole, "status").tolist() == ["unfinished", "unfinished"]
    assert np.isnan(column(whole, "first_token_s")).all() and not np.isnan(column(each, "first_token_s")).any()


@pytest.mark.parametrize("returns", ["as_each_ends", "end_of_batch"])
def test_clients_in_a_loop_hear_when_it_is_delivered(returns: str) -> None:
    """The next round starts when the results are out: the two variants differ by when a client may ask again."""
    loop = {
        "num_requests": 12,
        "ignore_eos": True,
        "arrivals": {"name": "closed_loop", "concurrency": 4},
        "prompt_tokens": 10,
        "output_tokens": {"name": "uniform", "min": 1, "max": 30},
    }
    result = sim.simulate(scenario(4, 0.02, returns, workload=loop))
    arrival, finish = column(result, "arrival_s"), column(result, "finish_s")
    assert set(np.unique(arrival)) <= {0.0, *finish}
    if returns == "end_of_batch":
        assert len(np.unique(finish)) == 3  # three rounds of four
    else:
        assert len(np.unique(finish)) > 6


def test_its_reservation_must_fit_the_memory() -> None:
    """batch_size x max_model_len tokens, whatever the lengths; refused with both numbers."""
    engine = {"max_model_len": 2048, "num_gpu_blocks_override": 1001}
    with pytest.raises(sim.ScenarioError, match=r"16384 tokens.*2048.*16000"):
        scenario(8, 0.1, engine=engine)
    fits = run(scenario(7, 0.0, engine=engine), [(0.0, 10, 2)] * 3)
    assert fits.steps["kv_blocks_used"].to_pylist() == [3 * 128] * 2


def test_blocks_are_held_for_the_whole_length_and_given_back() -> None:
    result = run(scenario(2, 0.0), [(0.0, 10, 3), (0.0, 10, 9), (1.0, 2000, 4)])
    used = result.steps["kv_blocks_used"].to_pylist()
    assert used == [256] * 3 + [128] * 6 + [128] * 4


def test_prefixes_are_not_shared_and_nobody_is_preempted() -> None:
    asked = [Request(i, f"r{i}", 0.0, 64, 4, 4, 0, (("sys", 64),)) for i in range(4)]
    result = sim.simulate(scenario(2, 0.0), source=Fixed(iter(asked), 4))
    assert result.summary["prefix_cache_hit_rate"] == 0.0 and result.summary["preemptions"] == 0


def test_outputs_are_not_foreseen() -> None:
    """A sequence may end by a stop token; the batch is the same, for nobody looks at limits."""
    ends = [
        sim.simulate(scenario(2, 0.0), source=Fixed(iter([Request(0, "r0", 0.0, 9, 7, most)]), 1)).steps["end_s"]
        for most in (7, 500, None)
    ]
    assert ends[0].equals(ends[1]) and ends[0].equals(ends[2])
