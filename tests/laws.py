"""What must hold of the records of every run, whatever the scenario: design's invariants, as plain assertions.

`Records` reads the three tables of a result; each law is a function of it, and `LAWS` names them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import sim
from analysis.queueing import mean_in_system
from sim import registry
from sim.consistency import check as checked
from sim.request import Request
from sim.workload.source import Setup

STATUSES = ("finished", "rejected", "failed", "unfinished")
PARTS = ("queue_s", "prefill_s", "decode_s", "preempted_s", "transfer_s", "retry_s")
EXACT = 1e-9  # seconds: sums and differences of doubles


@dataclass
class Records:
    """A result, the scenario behind it and what was asked (in the order of the requests; None: the scenario's own)."""

    result: sim.Result
    asked: list[Request] | None = None
    steps: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        self.steps = _columns(self.result.steps)
        self.requests = _columns(self.result.requests)
        self.spans = _columns(self.result.spans)
        self.summary = self.result.summary

    @cached_property
    def scenario(self) -> sim.Scenario:
        return self.result.scenario

    @cached_property
    def sizes(self) -> Any:
        return checked(self.scenario)["main"].sizes

    @property
    def policy(self) -> dict[str, Any]:
        (pool,) = self.scenario.cluster.pools.values()
        return {"name": pool.policy.name, **pool.policy.params}

    @property
    def depth(self) -> int:
        (pool,) = self.scenario.cluster.pools.values()
        return 2 if getattr(registry.build("policy", pool.policy), "async_scheduling", False) else 1

    @property
    def returns_at_the_end(self) -> bool:
        return self.policy["name"] == "triton_dynamic" or self.policy.get("return_results") == "end_of_batch"

    @property
    def refuses_more(self) -> bool:
        """Whether the policy's own rules refuse some who could run: full queues, timeouts, watermarks."""
        return self.policy["name"] in ("sarathi", "triton_dynamic", "vllm_v0")

    @property
    def hides_work(self) -> bool:
        """Whether steps compute or move more than their columns say: padding, recomputation, swapping."""
        return self.policy["name"] in ("naive", "static", "triton_dynamic") or self.swaps

    @property
    def swaps(self) -> bool:
        return self.policy.get("preemption_mode") == "swap"

    @property
    def response_s(self) -> float:
        """From a step's end to the delivery of its tokens."""
        return float(self.summary["response_s"])

    @property
    def end_s(self) -> float:
        duration = self.scenario.workload.duration_s
        return float("inf") if duration is None else duration

    def has(self, status: str) -> np.ndarray:
        return self.requests["status"] == status

    def allowed(self) -> dict[str, tuple[int, int]]:
        """Of each request: its prompt, and the output it would have if it were served to its end."""
        room = self.sizes.num_gpu_blocks * self.sizes.block_size
        longest = self.sizes.max_model_len
        if self.asked is None:
            names = self.requests["request_id"].tolist()
            facts = chain.from_iterable(Setup(self.scenario).facts())
            wanted = dict(zip((f"r{i}" for i in range(10**9)), _take(facts, names), strict=False))
            rows = [(name, *wanted[name][:3]) for name in names]
        else:
            rows = [(r.id, r.prompt_tokens, r.output_tokens, r.max_tokens) for r in self.asked]
        return {
            name: (prompt, min(output, limit or output, longest - prompt, room - prompt + 1))
            for name, prompt, output, limit in rows
        }

    def lanes(self) -> list[np.ndarray]:
        """The rows of `steps` of each engine."""
        engine = self.steps["engine"]
        return [np.flatnonzero(engine == number) for number in np.unique(engine)]

    @cached_property
    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """(row of `spans`, row of `steps`) of every token, by request and time."""
        spans, steps = self.spans, self.steps
        of_step = {(e, s): i for i, (e, s) in enumerate(zip(steps["engine"], steps["step"], strict=True))}
        ticked = np.flatnonzero(~np.isnan(steps["tick"]))
        of_tick = {(steps["engine"][i], steps["tick"][i]): i for i in ticked}
        span, row = [], []
        for i in range(len(spans["engine"])):
            engine = spans["engine"][i]
            if not np.isnan(spans["first_step"][i]):
                span.append(i)
                row.append(of_step[engine, spans["first_step"][i]])
            for tick in range(spans["first_tick"][i], spans["first_tick"][i] + spans["ticks"][i]):
                span.append(i)
                row.append(of_tick[engine, tick])
        return np.array(span, int), np.array(row, int)


def _take(facts: Any, names: list[str]) -> list[Any]:
    most = max((int(name[1:]) for name in names), default=-1) + 1
    return [next(facts) for _ in range(most)]


def _columns(table: pa.Table) -> dict[str, np.ndarray]:
    """As numpy arrays; what is empty becomes nan in numbers, None in texts."""
    return {name: table.column(name).to_numpy() for name in table.column_names}


# -- requests


def every_request_ends_once(r: Records) -> None:
    ids, status = r.requests["request_id"].tolist(), r.requests["status"].tolist()
    assert len(set(ids)) == len(ids)
    assert set(status) <= set(STATUSES)
    assert sum(r.summary[name] for name in STATUSES) == len(ids) == r.summary["requests"]
    if r.asked is not None:
        assert ids == [request.id for request in r.asked if request.arrival_s < r.end_s]
    elif r.scenario.workload.arrivals.name == "closed_loop" and r.end_s < float("inf"):
        indexes = [int(name[1:]) for name in ids]
        assert indexes == sorted(indexes)
    else:
        assert ids == [f"r{i}" for i in range(len(ids))]
        whole = len(ids) == r.scenario.workload.num_requests
        waits = r.scenario.workload.arrivals.name == "closed_loop" and "failed" in status  # clients, for ever
        assert r.end_s < float("inf") or whole or waits
    assert r.end_s < float("inf") or "unfinished" not in status
    explained = np.array([reason is not None for reason in r.requests["reason"]], bool)
    assert (explained | ~(r.has("rejected") | r.has("failed"))).all()
    assert not explained[r.has("finished")].any()


def refused_are_those_that_can_never_run(r: Records) -> None:
    room = r.sizes.num_gpu_blocks * r.sizes.block_size
    prompt = r.requests["prompt_tokens"]
    never = (prompt >= r.sizes.max_model_len) | (prompt > room)
    assert (never <= r.has("rejected")).all()
    assert (never == r.has("rejected")).all() or r.refuses_more
    never = r.has("rejected")
    for name in ("first_scheduled_s", "first_token_s", "finish_s", *([] if r.refuses_more else ["replica"])):
        assert np.isnan(r.requests[name][never].astype(float)).all()
    assert not r.requests["output_tokens"][never].any()


def tokens_out_are_tokens_asked(r: Records) -> None:
    allowed = r.allowed()
    rows = zip(*(r.requests[k] for k in ("request_id", "status", "prompt_tokens", "output_tokens")), strict=True)
    for name, status, prompt, output in rows:
        asked, most = allowed[name]
        assert prompt == asked
        whole = output == most and (r.returns_at_the_end or r.response_s > 0)  # all given, not all delivered
        assert output == most if status == "finished" else output < most or status == "rejected" or whole


def times_are_in_order(r: Records) -> None:
    q, given = r.requests, r.requests["output_tokens"]
    times = [q[name] for name in ("arrival_s", "first_scheduled_s", "first_token_s", "finish_s")]
    for before, after in pairwise(times):
        assert not (before > after).any()
        assert not (np.isnan(before) & ~np.isnan(after)).any()
    assert (np.diff(q["arrival_s"]) >= 0).all() or r.scenario.workload.arrivals.name == "closed_loop"
    assert ((given > 0) <= ~np.isnan(times[1])).all()
    assert (np.isnan(times[3]) == ~r.has("finished")).all()
    assert (np.isnan(times[2]) >= (given == 0)).all()
    if r.returns_at_the_end:
        assert ((times[2] == times[3]) | np.isnan(times[2])).all()
        assert (np.isnan(times[2]) == np.isnan(times[3])).all()
    elif not r.response_s:
        assert (np.isnan(times[2]) == (given == 0)).all()
    assert not (times[2] > r.end_s).any() and not (times[3] > r.end_s).any()
    never = np.isnan(times[1])
    assert not q["cached_tokens"][never].any()
    assert (q["cached_tokens"] < q["prompt_tokens"] + (q["prompt_tokens"] == 0)).all()
    assert not (q["arrival_s"] >= r.end_s).any()


def parts_sum_to_the_latency(r: Records) -> None:
    done = r.has("finished")
    parts = np.array([r.requests[name] for name in PARTS])
    assert np.isnan(parts[:, ~done]).all()
    assert (parts[:, done] >= -EXACT).all()
    latency = (r.requests["finish_s"] - r.requests["arrival_s"])[done]
    assert np.abs(parts[:, done].sum(axis=0) - latency).max(initial=0) < EXACT
    assert ((r.requests["preemptions"] > 0) | ~(r.requests["preempted_s"] > EXACT)).all()


def littles_law(r: Records) -> None:
    """With all finished: mean number in the system x duration = sum of latencies; from the summary, and from events."""
    inside = ~r.has("rejected")
    if r.end_s < float("inf") or r.scenario.warmup_s or not inside.any() or not r.has("finished")[inside].all():
        return
    arrival, finish = r.requests["arrival_s"][inside], r.requests["finish_s"][inside]
    duration, latencies = r.summary["duration"], float((finish - arrival).sum())
    assert abs(r.summary["mean_concurrency"] * duration - latencies) < EXACT * max(1.0, latencies)
    assert abs(mean_in_system(arrival, finish, duration) * duration - latencies) < EXACT * max(1.0, latencies)


# -- steps


def clocks_never_go_back(r: Records) -> None:
    for rows in r.lanes():
        s = {name: values[rows] for name, values in r.steps.items()}
        decided, start, end = s["decided_s"], s["start_s"], s["end_s"]
        assert (s["step"] == np.arange(len(rows))).all()
        ticks = s["tick"][~np.isnan(s["tick"])]
        assert (ticks == np.arange(len(ticks))).all()
        assert np.isfinite([decided, start, end]).all()
        assert (np.diff(decided) >= 0).all() and (start >= decided).all() and (end >= start).all()
        assert (start == np.maximum(decided, np.concatenate([[0.0], end[:-1]]))).all()
        assert (decided[r.depth :] >= end[: -r.depth]).all()
        works = s["prefill_tokens"] + s["decode_tokens"] > 0
        assert ((end > start) >= works).all()
        assert ((end > start) == works).all() or r.swaps
        idle = ~works & (s["preempted"] == 0)  # decisions that only aborted somebody
        assert idle.sum() <= r.has("failed").sum()
        assert (np.isnan(s["tick"]) == (s["decode_tokens"] == 0)).all()
        assert (end <= r.end_s).all()
    order = np.lexsort((r.steps["step"], r.steps["engine"]))
    assert (order == np.arange(len(order))).all()


def steps_keep_to_the_limits(r: Records) -> None:
    s, policy = r.steps, r.policy
    assert (s["emitted"] <= s["seqs"]).all() and (s["decode_tokens"] <= s["seqs"]).all()
    for name in ("seqs", "emitted", "prefill_tokens", "decode_tokens", "context_tokens", "waiting", "preempted"):
        assert (s[name] >= 0).all()
    assert (s["context_tokens"] >= s["prefill_tokens"] + s["decode_tokens"]).all()
    assert (s["kv_blocks_used"] >= 0).all() and (s["kv_blocks_used"] <= r.sizes.num_gpu_blocks).all()
    assert (r.summary["max_kv_usage"] or 0.0) <= 1.0
    if policy["name"] == "vllm":
        assert (s["seqs"] <= (policy.get("max_num_active_seqs") or policy["max_num_seqs"])).all()
        assert (s["prefill_tokens"] + s["decode_tokens"] <= policy["max_num_batched_tokens"]).all()
    elif policy["name"] == "vllm_v0":
        assert (s["seqs"] <= policy["max_num_seqs"]).all()
        whole = (s["prefill_tokens"] > 0) & (s["decode_tokens"] > 0)
        assert not whole.any() or (r.swaps and (s["prefill_tokens"] <= s["seqs"] - s["decode_tokens"])[whole].all())
    elif policy["name"] == "sarathi":
        assert (s["seqs"] <= policy["max_num_seqs"]).all()
        assert (s["prefill_tokens"] <= np.maximum(policy["chunk_size"] - s["decode_tokens"], 0)).all()
    else:
        most = policy.get("batch_size") or policy.get("max_batch_size") or 1
        assert (s["seqs"] <= most).all() and not s["preempted"].any()


def preemptions_are_counted_twice_alike(r: Records) -> None:
    in_steps, of_requests = r.steps["preempted"].sum(), r.requests["preemptions"].sum()
    assert in_steps <= of_requests  # a step that the clock's stop cuts off has no row
    assert in_steps == of_requests or r.has("unfinished").any() or r.has("failed").any()


def prompts_are_computed_once(r: Records) -> None:
    """Without preemption, prompt tokens computed are those of the prompts, less what the prefix cache held."""
    if not r.requests["preemptions"].any() and r.has("finished")[~r.has("rejected")].all():
        done = r.has("finished")
        wanted = (r.requests["prompt_tokens"] - r.requests["cached_tokens"])[done].sum()
        assert r.steps["prefill_tokens"].sum() == wanted


def linear_prices_follow_from_the_rows(r: Records) -> None:
    cost = r.scenario.cost
    if cost.name != "linear" or cost.params.get("noise") or r.hides_work:
        return
    s, p = r.steps, cost.params
    seconds = p["base_s"] + p["per_token_s"] * (s["prefill_tokens"] + s["decode_tokens"])
    seconds = seconds + p["per_context_token_s"] * s["context_tokens"]
    works = s["seqs"] > 0
    assert np.abs(s["end_s"] - s["start_s"] - seconds)[works].max(initial=0) < EXACT


# -- spans


def every_token_is_in_one_span(r: Records) -> None:
    spans, (span, row) = r.spans, r.tokens
    ids = r.requests["request_id"].tolist()
    position = {name: i for i, name in enumerate(ids)}
    owner = np.array([position[name] for name in spans["request_id"].tolist()], int)
    assert (np.diff(owner) >= 0).all()  # in the order of the requests
    assert (spans["tokens"] == spans["ticks"] + ~np.isnan(spans["first_step"])).all() and (spans["tokens"] > 0).all()
    given = np.bincount(owner, weights=spans["tokens"], minlength=len(ids))
    assert (given == r.requests["output_tokens"]).all()
    assert (r.requests["replica"][owner].astype(float) == spans["engine"]).all()
    at = r.steps["end_s"][row]
    same = owner[span][1:] == owner[span][:-1]
    assert (np.diff(at)[same] > 0).all() and (np.diff(row)[same] > 0).all()
    _, first = np.unique(owner[span], return_index=True)
    assert not np.isnan(spans["first_step"][span[first]]).any()  # the first token comes of the prompt
    if not r.returns_at_the_end:
        who = owner[span][first]
        off = at[first] + r.response_s - r.requests["first_token_s"][who]
        assert np.nanmax(np.abs(off), initial=0) < EXACT
        _, last = np.unique(owner[span][::-1], return_index=True)
        last = len(span) - 1 - last
        done = r.has("finished")[owner[span][last]]
        finish = r.requests["finish_s"][owner[span][last]]
        assert np.abs(at[last] + r.response_s - finish)[done].max(initial=0) < EXACT


def steps_emit_what_spans_hold(r: Records) -> None:
    _, row = r.tokens
    assert (np.bincount(row, minlength=len(r.steps["step"])) == r.steps["emitted"]).all()
    assert r.steps["emitted"].sum() == r.requests["output_tokens"].sum()


def decoding_reads_whole_contexts(r: Records) -> None:
    """A step in which all decode and emit reads prompt + outputs so far of each, no more and no less."""
    span, row = r.tokens
    ids = dict(zip(r.requests["request_id"].tolist(), r.requests["prompt_tokens"].tolist(), strict=True))
    names = r.spans["request_id"][span]
    starts = np.flatnonzero(np.concatenate([[True], names[1:] != names[:-1]])) if len(names) else np.empty(0, int)
    before = np.arange(len(names)) - np.repeat(starts, np.diff(np.append(starts, len(names))))
    reads = np.array([ids[name] for name in names], float) + before
    read = np.bincount(row, weights=reads, minlength=len(r.steps["step"]))
    plain = (r.steps["prefill_tokens"] == 0) & (r.steps["emitted"] == r.steps["seqs"])
    assert (read == r.steps["context_tokens"])[plain].all()


def nothing_is_nan(r: Records) -> None:
    for table in (r.result.requests, r.result.spans, r.result.steps):
        for column in table.columns:
            if pa.types.is_floating(column.type):
                assert not pc.any(pc.is_nan(column)).as_py()
    for name, value in r.summary.items():
        assert value is None or value == value, name


LAWS: tuple[Callable[[Records], None], ...] = (
    every_request_ends_once,
    refused_are_those_that_can_never_run,
    tokens_out_are_tokens_asked,
    times_are_in_order,
    parts_sum_to_the_latency,
    littles_law,
    clocks_never_go_back,
    steps_keep_to_the_limits,
    preemptions_are_counted_twice_alike,
    prompts_are_computed_once,
    linear_prices_follow_from_the_rows,
    every_token_is_in_one_span,
    steps_emit_what_spans_hold,
    decoding_reads_whole_contexts,
    nothing_is_nan,
)
