"""Metrics of hand-made and toy records: vLLM's definitions, exact ITL quantiles, nothing where there is no data."""

import json
import math
import time
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import load_text, simulate
from sim.metrics import (
    LATENCIES,
    PARTS,
    REQUEST_COLUMNS,
    SPAN_COLUMNS,
    STATUSES,
    STEP_COLUMNS,
    inter_token_gaps,
    statistics,
    summarise,
    weighted_quantiles,
    weighted_statistics,
)
from tests.fakeresults import Tables, bulk, serve, table_of

QUANTITIES = ("mean", "median", "std", "p90", "p95", "p99")


def records(
    requests: list[dict[str, Any]],
    spans: list[dict[str, Any]] | None = None,
    steps: list[dict[str, Any]] | None = None,
    end_s: float = 10.0,
) -> Tables:
    """Hand-written rows as tables; requests without a `request_id` are numbered."""
    numbered = [{"request_id": str(i)} | row for i, row in enumerate(requests)]
    made = (table_of("requests", numbered), table_of("spans", spans or []), table_of("steps", steps or []))
    return Tables(*made, end_s=end_s, kv_blocks_total={0: 100})


def ticking(ends: list[float], **columns: Any) -> list[dict[str, Any]]:
    """Steps that are all ticks, end to end from 0."""
    starts = [0.0, *ends[:-1]]
    return [
        {"step": i, "tick": i, "start_s": start, "end_s": end} | columns
        for i, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


# --- the cases of other tools' users -----------------------------------------------------------------------------


def test_b24_tpot_is_a_mean_over_requests_and_itl_one_over_tokens() -> None:
    ends = [0.1 + 0.01 * i for i in range(101)]
    requests = [
        {"arrival_s": 0.0, "first_token_s": 0.1, "finish_s": 0.2, "output_tokens": 2},
        {"arrival_s": 0.0, "first_token_s": 0.1, "finish_s": 1.1, "output_tokens": 101},
    ]
    # the first request gets its second token at 0.2, so it is passed over in nine ticks: a span of its own
    spans = [
        {"request_id": "0", "first_step": 0, "first_tick": 1, "ticks": 0},
        {"request_id": "0", "first_tick": 10, "ticks": 1},
        {"request_id": "1", "first_step": 0, "first_tick": 1, "ticks": 100},
    ]
    found = records(requests, spans, ticking(ends)).summarise()
    assert found["mean_tpot_ms"] == pytest.approx(55.0, rel=1e-9)
    assert found["mean_itl_ms"] == pytest.approx(1100 / 101, rel=1e-9)
    assert found["median_itl_ms"] == pytest.approx(10.0, rel=1e-9)


def test_b25_one_output_token_has_no_tpot_and_counts_as_good() -> None:
    requests = [
        {"arrival_s": 0.0, "first_token_s": 0.5, "finish_s": 0.5, "output_tokens": 1},
        {"arrival_s": 0.0, "first_token_s": 0.5, "finish_s": 1.5, "output_tokens": 11},
    ]
    made = records(requests, end_s=2.0)
    found = made.summarise(slo={"": {"ttft_ms": 600.0, "tpot_ms": 50.0}})
    assert found["mean_tpot_ms"] == found["p99_tpot_ms"] == 100.0 and found["std_tpot_ms"] == 0.0
    assert found["request_goodput"] == 0.5 and found["slo_attainment"] == 0.5
    alone = records(requests[:1]).summarise()
    assert alone["mean_tpot_ms"] is None and alone["mean_itl_ms"] is None
    assert alone["mean_ttft_ms"] == 500.0


@pytest.mark.parametrize("service_s, median_ms, p99_ms", [(0.5, 1400.0, 2772.0), (0.507, 1424.5, 2820.51)])
def test_b27_waiting_before_the_first_token_is_part_of_the_latency(
    service_s: float, median_ms: float, p99_ms: float
) -> None:
    requests, free_s = [], 0.0
    for i in range(8):
        begin, arrival = max(free_s, i * 0.1), i * 0.1
        free_s = begin + service_s
        requests.append(
            {"arrival_s": arrival, "first_scheduled_s": begin, "first_token_s": free_s, "finish_s": free_s}
            | {"output_tokens": 1, "queue_s": begin - arrival, "prefill_s": service_s, "decode_s": 0.0}
        )
    found = records(requests).summarise()
    assert found["mean_queue_ms"] == pytest.approx(median_ms, rel=1e-9)
    assert found["median_queue_ms"] == pytest.approx(median_ms, rel=1e-9)
    assert found["p99_queue_ms"] == pytest.approx(p99_ms, rel=1e-9)
    assert found["mean_e2el_ms"] == found["mean_ttft_ms"] == pytest.approx(median_ms + service_s * 1000, rel=1e-9)
    assert found["mean_prefill_ms"] == pytest.approx(service_s * 1000, rel=1e-9)


def test_b31_mean_concurrency_is_the_sum_of_latencies_over_the_duration() -> None:
    made = serve(requests=300, rate_per_s=20.0, max_num_seqs=8)
    found = made.summarise()
    latency = made.requests.column("finish_s").to_numpy() - made.requests.column("arrival_s").to_numpy()
    assert found["mean_concurrency"] * found["duration"] == pytest.approx(latency.sum(), rel=1e-12)
    assert found["mean_concurrency"] == pytest.approx(found["request_throughput"] * found["mean_e2el_ms"] / 1000)


def test_b31_a_table_with_the_reported_figures() -> None:
    """772 requests in 329.83 s with the reported tokens, TTFT and TPOT give the rates printed and 57.6 in flight."""
    rng = np.random.default_rng(0)
    outputs = np.full(772, 174_589 // 772)
    outputs[: 174_589 - outputs.sum()] += 1
    prompts = np.full(772, 130_743 // 772)
    prompts[: 130_743 - prompts.sum()] += 1
    stay = 0.2495 + (outputs - 1) * 0.10819
    arrivals = np.sort(rng.uniform(0, 329.83 - stay.max(), 772))
    requests = [
        {"arrival_s": a, "first_token_s": a + 0.2495, "finish_s": a + s, "prompt_tokens": p, "output_tokens": o}
        for a, s, p, o in zip(arrivals.tolist(), stay.tolist(), prompts.tolist(), outputs.tolist(), strict=True)
    ]
    found = records(requests, end_s=329.83).summarise()
    assert found["request_throughput"] == pytest.approx(2.34, abs=0.005)
    assert found["output_throughput"] == pytest.approx(529.33, abs=0.005)
    assert found["total_token_throughput"] == pytest.approx(925.7, abs=0.05)
    assert found["mean_concurrency"] == pytest.approx(57.6, rel=0.05)


def test_b33_throughput_of_completed_requests_and_of_all_tokens() -> None:
    """One seat, 5 s and 100 tokens a request, stopped at 12 s."""
    requests = [
        {"arrival_s": 0.0, "first_token_s": 0.05, "finish_s": 5.0, "output_tokens": 100},
        {"arrival_s": 0.0, "first_token_s": 5.05, "finish_s": 10.0, "output_tokens": 100},
        {"arrival_s": 0.0, "first_token_s": 10.05, "output_tokens": 40, "status": "unfinished"},
    ]
    steps = ticking([0.05 * (i + 1) for i in range(240)], emitted=1, seqs=1)
    found = records(requests, [], steps, end_s=12.0).summarise()
    assert found["completed"] == found["finished"] == 2 and found["unfinished"] == 1
    assert found["output_throughput"] == pytest.approx(200 / 12)
    assert found["generated_throughput"] == pytest.approx(20.0) and found["generated_tokens"] == 240
    ten_seconds = records(requests, [], steps, end_s=10.0).summarise()
    assert ten_seconds["completed"] == 2 and ten_seconds["generated_throughput"] == pytest.approx(20.0)


def test_b33_a_warmup_cuts_latencies_by_arrival_and_throughput_by_window() -> None:
    requests = [
        {"arrival_s": 0.0, "first_token_s": 1.0, "finish_s": 3.0, "output_tokens": 3},
        {"arrival_s": 1.0, "first_token_s": 4.0, "finish_s": 6.0, "output_tokens": 3},
        {"arrival_s": 6.0, "first_token_s": 6.5, "finish_s": 9.0, "output_tokens": 3},
    ]
    steps = ticking([float(i + 1) for i in range(10)], emitted=1, seqs=2, kv_blocks_used=50)
    found = records(requests, [], steps).summarise(warmup_s=5.0, slo={"": {"ttft_ms": 1000.0}})
    assert found["duration"] == 5.0 and found["requests"] == found["finished"] == 3
    assert found["measured"] == 1 and found["completed"] == 2
    assert found["mean_ttft_ms"] == 500.0 and found["request_throughput"] == 0.4
    assert found["output_throughput"] == 6 / 5 and found["request_goodput"] == 0.2
    assert found["generated_tokens"] == 6  # the step that ends at 5 s included
    assert found["mean_concurrency"] == pytest.approx((1.0 + 3.0) / 5.0)
    assert found["mean_kv_usage"] == pytest.approx(0.5) and found["busy_fraction"] == pytest.approx(1.0)


@pytest.mark.parametrize("requests", [0, 5])
def test_b64_nothing_succeeded_gives_no_latencies(requests: int) -> None:
    rows = [{"arrival_s": 0.1 * i, "status": "rejected", "reason": "prompt too long"} for i in range(requests)]
    found = records(rows, end_s=1.0).summarise(slo={"": {"ttft_ms": 500.0}})
    assert found["requests"] == found["rejected"] == requests and found["completed"] == 0
    for latency in LATENCIES:
        assert {found[f"{which}_{latency}_ms"] for which in QUANTITIES} == {None}
    assert found["request_throughput"] == found["output_throughput"] == found["request_goodput"] == 0.0
    assert found["mean_batch_size"] is None and found["max_kv_usage"] is None
    assert found["mean_concurrency"] == 0.0 and found["max_concurrent_requests"] is None
    assert found["slo_attainment"] == (0.0 if requests else None)
    assert "NaN" not in json.dumps(found)


def test_b64_a_run_of_no_length_has_no_rates() -> None:
    found = records([], end_s=0.0).summarise(slo={"": {"ttft_ms": 500.0}})
    rates = ("request_throughput", "output_throughput", "request_goodput", "generated_throughput", "busy_fraction")
    assert {found[name] for name in rates} == {None}


def test_b65_one_request_of_one_token() -> None:
    row = {"arrival_s": 0.0, "first_token_s": 0.25, "finish_s": 0.25, "prompt_tokens": 10, "output_tokens": 1}
    steps = ticking([0.25], emitted=1, seqs=1)
    span = {"request_id": "0", "first_step": 0, "first_tick": 1, "ticks": 0}
    found = records([row], [span], steps, end_s=0.25).summarise()
    assert found["request_throughput"] == 1 / 0.25
    assert {found[f"{which}_ttft_ms"] for which in QUANTITIES if which != "std"} == {250.0}
    assert found["std_ttft_ms"] == 0.0 and found["mean_itl_ms"] is None
    assert found["max_concurrent_requests"] == 1
    instant = records([row | {"first_token_s": 0.0, "finish_s": 0.0}], end_s=0.0).summarise()
    assert instant["request_throughput"] is None and instant["mean_e2el_ms"] == 0.0


# --- inter-token latencies without a number per token ------------------------------------------------------------


def expanded(made: Tables, counted: np.ndarray | None = None) -> list[float]:
    """Every inter-token latency, one by one, straight from the definition of a span."""
    end_of_step, end_of_tick = {}, {}
    for row in made.steps.to_pylist():
        where = (row["engine"], row["lane"])
        end_of_step[where, row["step"]] = row["end_s"]
        if row["tick"] is not None:
            end_of_tick[where, row["tick"]] = row["end_s"]
    times: dict[str, list[float]] = {row["request_id"]: [] for row in made.requests.to_pylist()}
    for span in made.spans.to_pylist():
        where, mine = (span["engine"], span["lane"]), times[span["request_id"]]
        if span["first_step"] is not None:
            mine.append(end_of_step[where, span["first_step"]])
        mine += [end_of_tick[where, span["first_tick"] + i] for i in range(span["ticks"])]
    chosen = [mine for i, mine in enumerate(times.values()) if counted is None or counted[i]]
    return [late - early for mine in chosen for early, late in pairwise(mine)]


@st.composite
def clocks_and_spans(draw: st.DrawFn) -> Tables:
    """Two engines with up to two lanes, steps of which some are no ticks, and requests that jump between spans."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lanes = draw(st.sampled_from([[(0, 0)], [(0, 0), (1, 0)], [(0, 0), (0, 1), (2, 0)]]))
    every_step_a_tick = draw(st.booleans())
    first = draw(st.sampled_from([0, 7]))  # the number of a lane's first step, and of its first tick
    steps, ticks_of, steps_of = [], {}, {}
    for engine, lane in lanes:
        count = draw(st.integers(1, 12))
        ends = np.cumsum(rng.choice([0.5, 1.0, 0.1, 0.3], count))
        is_tick = np.ones(count, bool) if every_step_a_tick else rng.random(count) < 0.7
        numbers = np.cumsum(is_tick) - 1
        ticks_of[engine, lane] = [int(step) for step in np.flatnonzero(is_tick)]
        steps_of[engine, lane] = count
        for i in range(count):
            tick = first + int(numbers[i]) if is_tick[i] else None
            row = {"engine": engine, "lane": lane, "step": first + i, "tick": tick, "end_s": float(ends[i])}
            steps.append(row | {"start_s": float(ends[i - 1]) if i else 0.0})
    requests, spans = [], []
    for i in range(draw(st.integers(0, 5))):
        requests.append(
            {"request_id": f"r{i}", "arrival_s": 0.0, "output_tokens": 1, "first_token_s": 0.0, "finish_s": 1.0}
        )
        engine, lane = lanes[rng.integers(len(lanes))]
        at = -1  # the last step that gave a token
        for _ in range(rng.integers(1, 4)):
            later = list(range(at + 1, steps_of[engine, lane]))
            if not later:
                break
            computed = bool(rng.random() < 0.7)
            if computed:
                at = int(rng.choice(later))
            coming = [tick for tick, step in enumerate(ticks_of[engine, lane]) if step > at]
            skip = int(rng.integers(0, 2)) if len(coming) > 1 else 0
            ticks = int(rng.integers(0, len(coming) - skip + 1)) if coming else 0
            if not computed and not ticks:
                continue
            first_tick = coming[skip] if coming else len(ticks_of[engine, lane])
            if ticks:
                tick_step = ticks_of[engine, lane][first_tick + ticks - 1]
            span = {
                "request_id": f"r{i}",
                "engine": engine,
                "lane": lane,
                "first_step": first + at if computed else None,
            }
            spans.append(span | {"first_tick": first + first_tick, "ticks": ticks, "tokens": ticks + computed})
            at = tick_step if ticks else at
    made = (table_of("requests", requests), table_of("spans", spans), table_of("steps", steps))
    return Tables(*made, end_s=100.0, kv_blocks_total={0: 10})


@settings(max_examples=300, deadline=None)
@given(made=clocks_and_spans(), chosen=st.integers(0, 31))
def test_gaps_are_those_of_the_expanded_list(made: Tables, chosen: int) -> None:
    counted = np.array([bool(chosen >> i & 1) for i in range(made.requests.num_rows)], bool)
    for mask in (None, counted):
        gap_s, weight = inter_token_gaps(made.requests, made.spans, made.steps, mask)
        assert weight.min(initial=1) > 0
        brute = np.array(expanded(made, mask))
        np.testing.assert_array_equal(np.sort(np.repeat(gap_s, weight)), np.sort(brute))
        found = weighted_statistics(gap_s, weight)
        if len(brute):
            assert found["p99"] == pytest.approx(np.percentile(brute, 99), rel=1e-12)
            assert found["std"] == pytest.approx(brute.std(), rel=1e-9, abs=1e-12)
        else:
            assert set(found.values()) == {None}


@pytest.mark.parametrize("engines, kv_blocks", [(1, 4000), (2, 4000), (1, 200)])
def test_itl_of_a_toy_engine_is_that_of_the_expanded_list(engines: int, kv_blocks: int) -> None:
    made = serve(requests=150, rate_per_s=20.0, engines=engines, kv_blocks=kv_blocks, max_num_seqs=24)
    found, brute = made.summarise(), np.array(expanded(made)) * 1000
    assert (found["preemptions"] > 0) == (kv_blocks == 200)
    assert made.requests.column("output_tokens").to_numpy().sum() - 150 == len(brute)
    for which, percent in (("median", 50), ("p90", 90), ("p95", 95), ("p99", 99)):
        assert found[f"{which}_itl_ms"] == pytest.approx(np.percentile(brute, percent), rel=1e-12)
    assert found["mean_itl_ms"] == pytest.approx(brute.mean(), rel=1e-12)
    assert found["std_itl_ms"] == pytest.approx(brute.std(), rel=1e-9)


def test_a_span_of_an_unknown_request_is_an_error() -> None:
    made = records([{}], [{"request_id": "?", "ticks": 1}], ticking([1.0, 2.0]))
    with pytest.raises(ValueError, match="not among the requests"):
        made.summarise()


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 20)), min_size=1, max_size=40),
    st.lists(st.floats(0, 100), min_size=1, max_size=4),
)
def test_weighted_quantiles_are_those_of_the_expanded_list(
    pairs: list[tuple[float, int]], percents: list[float]
) -> None:
    values, weights = (np.array(column) for column in zip(*pairs, strict=True))
    if not weights.sum():
        weights[0] = 1
    found = weighted_quantiles(values, weights, percents)
    np.testing.assert_allclose(found, np.percentile(np.repeat(values, weights), percents), rtol=1e-12)


# --- the rest of the fields --------------------------------------------------------------------------------------


def test_fields_are_flat_finite_and_named_as_in_vllms_benchmark() -> None:
    found = serve().summarise(slo={"": {"ttft_ms": 500.0}}, note="a note")
    vllm = {"duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput"}
    vllm |= {"request_goodput", "output_throughput", "total_token_throughput"}
    vllm |= {"max_output_tokens_per_s", "max_concurrent_requests"}
    vllm |= {f"{which}_{name}_ms" for which in QUANTITIES for name in ("ttft", "tpot", "itl", "e2el")}
    assert vllm <= set(found)
    assert {f"mean_{part}_ms" for part in PARTS} | set(STATUSES) <= set(found)
    for name, value in found.items():
        assert type(value) in (int, float, bool, str) or value is None, name
        assert not isinstance(value, float) or math.isfinite(value), name
    assert found["note"] == "a note"
    assert sum(found[status] for status in STATUSES) == found["requests"]


def test_parts_add_up_to_the_latency() -> None:
    found = serve(kv_blocks=200, rate_per_s=30.0).summarise()
    assert found["mean_preempted_ms"] > 0
    assert sum(found[f"mean_{part}_ms"] for part in PARTS) == pytest.approx(found["mean_e2el_ms"], rel=1e-12)


def test_unstreamed_results_have_no_tpot_and_no_itl() -> None:
    found = serve(policy="static").summarise()
    assert found["mean_ttft_ms"] == found["mean_e2el_ms"] > 0
    for which in QUANTITIES:
        assert found[f"{which}_tpot_ms"] is None and found[f"{which}_itl_ms"] is None


def test_a_class_with_its_own_slo_is_held_to_that_alone() -> None:
    row = {"arrival_s": 0.0, "first_token_s": 2.0, "finish_s": 3.0, "output_tokens": 11}
    made = records([row, row | {"class": "batch"}, row | {"class": "code"}], end_s=1.0)
    found = made.summarise(slo={"": {"ttft_ms": 1000.0}, "batch": {"e2e_ms": 3000.0}, "code": {"tpot_ms": 50.0}})
    assert found["request_goodput"] == 1.0
    assert made.summarise(slo={"": {"ttft_ms": None}})["request_goodput"] is None
    assert made.summarise(slo={"batch": {"ttft_ms": 1.0}})["request_goodput"] == 2.0


def test_what_the_engines_did() -> None:
    steps = [
        {"engine": 0, "step": 0, "tick": 0, "start_s": 0.0, "end_s": 1.0, "seqs": 4, "emitted": 4, "waiting": 2},
        {"engine": 0, "step": 1, "tick": 1, "start_s": 2.0, "end_s": 5.0, "seqs": 2, "emitted": 2, "waiting": 0},
        {"engine": 1, "step": 0, "tick": 0, "start_s": 0.0, "end_s": 2.0, "seqs": 8, "emitted": 6, "waiting": 9},
    ]
    for row, used in zip(steps, (10, 20, 30), strict=True):
        row["kv_blocks_used"] = used
    made = Tables(
        table_of("requests", []), table_of("spans", []), table_of("steps", steps), 8.0, {0: 100, 1: 50, 2: 50}
    )
    found = made.summarise()
    assert found["steps"] == 3 and found["generated_tokens"] == 12
    assert found["mean_batch_size"] == pytest.approx((4 * 1 + 2 * 3 + 8 * 2) / 6)
    assert found["mean_batch_size_per_step"] == pytest.approx(14 / 3) and found["max_batch_size"] == 8
    assert found["mean_waiting"] == pytest.approx((2 * 1 + 9 * 2) / 6) and found["max_waiting"] == 9
    assert found["busy_fraction"] == pytest.approx(6 / 24)
    assert found["mean_kv_usage"] == pytest.approx((0.1 * 1 + 0.2 * 3 + 0.6 * 2) / 24)
    assert found["max_kv_usage"] == pytest.approx(0.6)
    assert found["max_output_tokens_per_s"] == 6.0
    late = made.summarise(warmup_s=1.5)
    assert late["busy_fraction"] == pytest.approx(3.5 / (6.5 * 3)) and late["max_batch_size"] == 8


def test_prefix_cache_hit_rate_is_over_scheduled_prompts() -> None:
    rows = [
        {"first_scheduled_s": 0.0, "prompt_tokens": 100, "cached_tokens": 48},
        {"first_scheduled_s": 0.5, "prompt_tokens": 60, "cached_tokens": 0, "status": "unfinished"},
        {"prompt_tokens": 1000, "status": "rejected"},
    ]
    assert records(rows).summarise()["prefix_cache_hit_rate"] == 48 / 160
    assert records(rows[2:]).summarise()["prefix_cache_hit_rate"] is None


def test_concurrency_counts_who_is_there_and_not_who_was_refused() -> None:
    rows = [
        {"arrival_s": 0.0, "finish_s": 2.0},
        {"arrival_s": 1.0, "status": "unfinished"},
        {"arrival_s": 2.0, "finish_s": 3.0},
        {"arrival_s": 2.5, "status": "rejected"},
    ]
    found = records(rows, end_s=4.0).summarise()
    assert found["max_concurrent_requests"] == 2  # who leaves at 2.0 has left when the third arrives
    assert found["mean_concurrency"] == pytest.approx((2.0 + 3.0 + 1.0) / 4.0)


def test_a_simulated_age_with_few_steps_takes_no_memory() -> None:
    steps = [{"step": 0, "start_s": 0.0, "end_s": 1.0, "emitted": 2}]
    steps.append({"step": 1, "start_s": 1e12, "end_s": 1e12 + 0.5, "emitted": 3})
    assert records([], [], steps, end_s=2e12).summarise()["max_output_tokens_per_s"] == 3.0


def test_only_the_named_columns_are_read_and_chunks_do_not_matter() -> None:
    made = serve(requests=60)
    wanted = made.requests.select(REQUEST_COLUMNS), made.spans.select(SPAN_COLUMNS), made.steps.select(STEP_COLUMNS)
    split = [pa.concat_tables([table.slice(0, 17), table.slice(17)]) for table in wanted]
    again = summarise(*split, end_s=made.end_s, kv_blocks_total=made.kv_blocks_total)
    assert again == made.summarise()


def test_statistics_of_plain_values() -> None:
    found = statistics(np.array([1.0, 2.0, 4.0]))
    assert found["mean"] == pytest.approx(7 / 3) and found["median"] == 2.0
    assert found["std"] == pytest.approx(np.std([1.0, 2.0, 4.0]))


def test_ten_thousand_requests_take_no_time() -> None:
    made = bulk(10_000, 125_000)
    best = math.inf
    for _ in range(3):
        begin = time.perf_counter()
        made.summarise(slo={"": {"ttft_ms": 500.0}})
        best = min(best, time.perf_counter() - begin)
    assert best < 0.3  # 0.015 s on two idle cores


# --- the simulator's own records ----------------------------------------------------------------------------------

SCENARIO = """
model: llama-3.1-8b
gpu: h100_sxm
engine: {max_model_len: 2048, num_gpu_blocks_override: %d}
replicas: %d
policy: %s
workload:
  num_requests: 150
  arrivals: {name: poisson, rate_per_s: 40}
  prompt_tokens: {name: lognormal, mean: 200, cv: 1.0, max: 1000}
  output_tokens: {name: lognormal, mean: 60, cv: 1.0, max: 500}
cost: {name: linear, base_s: 0.01, per_token_s: 0.00005, per_context_token_s: 0.0000001, noise: {sigma: 0.1}}
"""


@pytest.mark.parametrize(
    "blocks, replicas, policy",
    [
        (5000, 2, "{name: vllm, max_num_seqs: 16, max_num_batched_tokens: 512}"),
        (180, 1, "{name: vllm, max_num_seqs: 64, async_scheduling: false}"),
        (5000, 1, "{name: static, batch_size: 8, max_queue_delay_s: 0.05}"),
    ],
)
def test_real_records_are_summed_up_as_defined(blocks: int, replicas: int, policy: str) -> None:
    result = simulate(load_text(SCENARIO % (blocks, replicas, policy)))
    found, rows = result.summary, result.requests.to_pylist()
    made = Tables(result.requests, result.spans, result.steps, found["end_s"], {})
    assert found["finished"] == 150 and (found["preemptions"] > 0) == (blocks == 180)
    brute = np.array(expanded(made)) * 1000
    assert len(brute) == sum(row["output_tokens"] - 1 for row in rows) == found["generated_tokens"] - 150
    for which, value in (("mean", brute.mean()), ("p99", np.percentile(brute, 99)), ("std", brute.std())):
        assert found[f"{which}_itl_ms"] == pytest.approx(value, rel=1e-9)
    tpot = [
        (row["finish_s"] - row["first_token_s"]) / (row["output_tokens"] - 1)
        for row in rows
        if row["output_tokens"] > 1
    ]
    assert found["mean_tpot_ms"] == pytest.approx(1000 * np.mean(tpot), rel=1e-9)
    latency = [row["finish_s"] - row["arrival_s"] for row in rows]
    assert found["mean_concurrency"] * found["duration"] == pytest.approx(sum(latency), rel=1e-9)
    assert sum(found[f"mean_{part}_ms"] for part in PARTS) == pytest.approx(found["mean_e2el_ms"], rel=1e-9)
    assert 0 < found["busy_fraction"] <= 1 and 0 < found["max_kv_usage"] <= 1
