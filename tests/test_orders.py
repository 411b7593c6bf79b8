"""Each order of the queue does what makes it itself: waits of theory, bounds, who passes whom, and who starves."""

from __future__ import annotations

import random
from itertools import permutations
from typing import Any

import numpy as np
import pytest

import sim
from analysis.queueing import mg1_mean_wait, priority_mean_waits
from sim import registry
from sim.batch import Batch
from sim.kv import NO_HIT, BlockPool
from sim.orders.fair import Fair
from sim.orders.mlfq import MultiLevelFeedback
from sim.request import DONE, Request, Sequence
from sim.workload.outlook import Outlook
from sim.workload.source import Fixed
from tests.test_fast_forward import assert_equal
from tests.test_queueing import agrees

STEP_S = 0.05
Classes = dict[str, dict[str, Any]]


def scenario(policy: dict[str, Any], workload: dict[str, Any], **changes: Any) -> sim.Scenario:
    """A step takes STEP_S, whatever it computes."""
    data = {
        "model": "llama-3.1-8b",
        "gpu": "h100_sxm",
        "engine": {"max_model_len": 4096},
        "policy": policy,
        "workload": workload,
        "cost": {"name": "linear", "base_s": STEP_S, "per_token_s": 0.0, "per_context_token_s": 0.0},
        **changes,
    }
    return sim.from_mapping(data)


def single_server(order: Any) -> dict[str, Any]:
    return {"name": "static", "batch_size": 1, "max_queue_delay_s": 0.0, "order": order}


def asked(rows: list[tuple[float, int, int, str]]) -> list[Request]:
    """Requests of (arrival, prompt, output, class)."""
    return [
        Request(i, f"r{i}", at, prompt, output, cls=label) for i, (at, prompt, output, label) in enumerate(rows)
    ]  # fmt: skip


def run(made: sim.Scenario, requests: list[Request]) -> dict[str, np.ndarray]:
    result = sim.simulate(made, source=Fixed(iter(requests), len(requests)))
    return {name: result.requests[name].to_numpy() for name in ("first_scheduled_s", "first_token_s", "finish_s")}


def classes(*labels: str, **values: dict[str, Any]) -> dict[str, Any]:
    """A workload whose classes have these values; the requests are given one by one."""
    lengths = {"prompt_tokens": 1, "output_tokens": 1}
    return {
        "num_requests": 1,
        "arrivals": "batch",
        "classes": {label: {**lengths, **values.get(label, {})} for label in labels or values},
    }


# -- all of them


@pytest.mark.parametrize("policy", ["vllm", "static", "tgi"])
def test_fcfs_is_what_engines_do_anyway(policy: str) -> None:
    workload = {
        "num_requests": 150,
        "arrivals": {"name": "poisson", "rate_per_s": 40},
        "prompt_tokens": {"name": "uniform", "min": 1, "max": 300},
        "output_tokens": {"name": "uniform", "min": 1, "max": 200},
    }
    engine = {"max_model_len": 600, "num_gpu_blocks_override": 100 if policy != "static" else 4000}
    limit = {"batch_size": 8} if policy == "static" else {}
    limit |= {"max_batch_prefill_tokens": 600} if policy == "tgi" else {}
    plain, ordered = (
        sim.simulate(scenario({"name": policy, **limit, **order}, workload, engine=engine))
        for order in ({}, {"order": "fcfs"})
    )
    assert plain.requests.equals(ordered.requests) and plain.steps.equals(ordered.steps)
    assert policy != "vllm" or plain.summary["preemptions"] > 0


def test_priority_is_vllms_own() -> None:
    workload = classes(a={"priority": 0}, b={"priority": 2}, c={"priority": 1})
    workload |= {"num_requests": 200, "arrivals": {"name": "poisson", "rate_per_s": 40}}
    for kind in workload["classes"].values():
        kind |= {"prompt_tokens": {"name": "uniform", "min": 1, "max": 300}, "output_tokens": 80}
    engine = {"max_model_len": 600, "num_gpu_blocks_override": 100}
    own, ordered = (
        sim.simulate(scenario({"name": "vllm", **order}, workload, engine=engine))
        for order in ({"scheduling_policy": "priority"}, {"order": "priority"})
    )
    assert own.requests.equals(ordered.requests) and own.steps.equals(ordered.steps)
    assert own.summary["preemptions"] > 0


@pytest.mark.parametrize("name", registry.names("order"))
@pytest.mark.parametrize("policy", ["vllm", "static", "tgi"])
def test_every_order_serves_all_and_stretches_equal_single_steps(policy: str, name: str) -> None:
    """Long queues of two tenants, of which one asks more; decisions are fewer than steps nevertheless."""
    lengths = {"name": "lognormal", "mean": 120, "cv": 1.0, "max": 900}
    kind = {"prompt_tokens": lengths, "output_tokens": lengths}
    workload = {
        "num_requests": 250,
        "arrivals": {"name": "poisson", "rate_per_s": 60},
        "classes": {"a": {**kind, "weight": 3, "priority": 1}, "b": {**kind, "slo": {"ttft_ms": 400}}},
    }
    engine = {"max_model_len": 2048, "num_gpu_blocks_override": 400 if policy != "static" else 2000}
    limit = {"vllm": {"max_num_seqs": 24}, "static": {"batch_size": 12}, "tgi": {"max_concurrent_requests": 300}}
    limit["tgi"] |= {"max_batch_prefill_tokens": 2048}
    fast, slow = (
        sim.simulate(
            scenario({"name": policy, "order": name, **limit[policy]}, workload, engine=engine, fast_forward=fast)
        )
        for fast in (True, False)
    )
    assert fast.summary["finished"] == 250
    assert_equal(fast, slow)
    assert fast.facts["steps"] > 1.5 * fast.facts["decisions"]


def test_an_order_changes_no_draws() -> None:
    made = scenario(
        single_server("sjf"), {"num_requests": 5, "arrivals": "batch", "prompt_tokens": 1, "output_tokens": 9}
    )
    outlook, again = Outlook(made), Outlook(made.with_policy("vllm"))
    requests = asked([(0.0, 1, 100, "a")] * 5)
    small, large = outlook.predictor(0.1), again.predictor(0.5)
    for request in reversed(requests):
        assert np.log(large(request) / 100) == pytest.approx(5 * np.log(small(request) / 100))
    assert len({small(request) for request in requests}) == 5
    assert Outlook(made, replication=1).predictor(0.1)(requests[0]) != small(requests[0])


# -- waits of theory: one server, Poisson arrivals, nobody interrupted


RATE, MOST = 1.2, 20  # outputs are uniform on 1 ... MOST, and a step each
SIZES = np.arange(1, MOST + 1) * STEP_S


def mean_waits(order: Any, workload: dict[str, Any], replications: int = 8) -> list[sim.Result]:
    made = scenario(single_server(order), {"num_requests": 5000, **workload}, warmup_s=200.0, seed=7)
    return [sim.simulate(made, replication=k) for k in range(replications)]


def uniform_jobs() -> dict[str, Any]:
    return {
        "arrivals": {"name": "poisson", "rate_per_s": RATE},
        "prompt_tokens": 1,
        "output_tokens": {"name": "uniform", "min": 1, "max": MOST},
    }


def sjf_theory(error: float) -> float:
    """W(p) = W0 / (1 - load of what is predicted shorter)^2 [Kleinrock, vol. 2, sec. 3.6], over many errors."""
    residual = RATE * float(np.mean(SIZES**2)) / 2
    if error == 0:
        rates = [RATE / MOST] * MOST
        return float(np.mean(priority_mean_waits(rates, SIZES.tolist(), (SIZES**2).tolist())))
    deviates = np.random.default_rng(0).standard_normal((MOST, 20_000))
    sizes = np.repeat(SIZES[:, None], deviates.shape[1], axis=1)
    order = np.argsort((sizes * np.exp(error * deviates)).ravel())
    sorted_sizes = sizes.ravel()[order]
    before = (np.cumsum(sorted_sizes) - sorted_sizes / 2) * RATE / len(order)
    return float(np.mean(residual / (1 - before) ** 2))


def test_shortest_job_first_waits_as_in_theory() -> None:
    fcfs = mg1_mean_wait(RATE, float(np.mean(SIZES)), float(np.std(SIZES) / np.mean(SIZES)))
    theory = {"sjf_oracle": sjf_theory(0), 0.5: sjf_theory(0.5), "fcfs": fcfs}
    assert sorted(theory.values()) == list(theory.values())  # the better the guess, the shorter the wait
    assert sjf_theory(10.0) > 0.9 * fcfs  # a guess that tells nothing
    for order, wait_s in theory.items():
        named = order if isinstance(order, str) else {"name": "sjf", "error": order}
        agrees([r.summary["mean_queue_ms"] / 1000 for r in mean_waits(named, uniform_jobs())], wait_s, most=0.15)


def test_priorities_wait_as_cobham_says() -> None:
    kinds = {"low": (0.4, 12, 2), "urgent": (0.8, 3, 0), "middle": (0.5, 8, 1)}
    rate = sum(weight for weight, _, _ in kinds.values())
    made: Classes = {}
    for label, (weight, n, priority) in kinds.items():
        outputs = {"name": "uniform", "min": 1, "max": 2 * n}
        made[label] = {"weight": weight, "prompt_tokens": 1, "output_tokens": outputs, "priority": priority}
    results = mean_waits("priority", {"arrivals": {"name": "poisson", "rate_per_s": rate}, "classes": made})
    by_urgency = sorted(kinds, key=lambda label: kinds[label][2])
    sizes = [np.arange(1, 2 * kinds[label][1] + 1) * STEP_S for label in by_urgency]
    waits = priority_mean_waits(
        [kinds[label][0] for label in by_urgency],
        [float(np.mean(s)) for s in sizes],
        [float(np.mean(s**2)) for s in sizes],
    )
    for label, wait_s in zip(by_urgency, waits, strict=True):
        agrees([r.summary["classes"][label]["mean_queue_ms"] / 1000 for r in results], wait_s, most=0.2)


def test_cobham_degenerates_to_pollaczek_and_khinchine() -> None:
    assert priority_mean_waits([0.6], [1.0], [3.25]) == pytest.approx([mg1_mean_wait(0.6, 1.0, 1.5)])
    with pytest.raises(ValueError, match="no steady state"):
        priority_mean_waits([0.6, 0.5], [1.0, 1.0], [1.0, 1.0])


def test_the_longest_job_starves_under_sjf() -> None:
    """While shorter ones keep coming, as many as can be served, it is not."""
    rows = [(0.0, 1, 3, "a"), (0.01, 1, 20, "a")] + [(0.05 + 0.1 * i, 1, 2, "a") for i in range(300)]
    found = run(scenario(single_server("sjf_oracle"), classes("a")), asked(rows))
    assert found["finish_s"].argmax() == 1
    served = run(scenario(single_server("fcfs"), classes("a")), asked(rows))
    assert served["finish_s"][1] < 1.5


# -- edf


def lateness(order: str, prompts: list[int], due_ms: list[int]) -> float:
    """The greatest by which a first token misses its deadline, s; all come at once, one by one is computed."""
    cost = {"name": "linear", "base_s": 0.0, "per_token_s": 0.001, "per_context_token_s": 0.0}
    labels = [f"c{i}" for i in range(len(prompts))]
    workload = classes(**{label: {"slo": {"ttft_ms": due}} for label, due in zip(labels, due_ms, strict=True)})
    rows = [(0.0, prompt, 1, label) for prompt, label in zip(prompts, labels, strict=True)]
    found = run(scenario(single_server(order), workload, cost=cost), asked(rows))
    return float((found["first_token_s"] - np.array(due_ms) / 1000).max())


def test_edf_makes_the_greatest_lateness_least() -> None:
    """Jackson's rule, 1955: against all orders of six requests. So where any order keeps all deadlines, it does."""
    rng, feasible, kept = random.Random(3), 0, 0
    for _ in range(25):
        prompts = [rng.randint(10, 500) for _ in range(6)]
        due = [rng.randint(100, 2200) for _ in range(6)]
        least = min(
            max(done - due[i] for i, done in zip(each, np.cumsum([prompts[i] for i in each]), strict=True))
            for each in permutations(range(6))
        )
        assert lateness("edf", prompts, due) == pytest.approx(least / 1000, abs=1e-9)
        feasible += least <= 0
        kept += lateness("fcfs", prompts, due) <= 1e-9
    assert feasible > kept + 3


def test_edf_serves_those_without_a_deadline_last() -> None:
    workload = classes(none={}, late={"slo": {"ttft_ms": 900_000}})
    found = run(scenario(single_server("edf"), workload), asked([(0.0, 1, 3, "none")] * 3 + [(0.01, 1, 1, "late")] * 2))
    assert found["finish_s"][1:3].min() > found["finish_s"][3:].max() > found["finish_s"][0]


# -- fair


def served(result: sim.Result, tenants: dict[str, str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each tenant, when it was served, s, and how much in all by then: prompts 1, outputs 2."""
    ends = result.steps["end_s"].to_numpy()
    ticks = result.steps["tick"].to_numpy(zero_copy_only=False)
    end_of = {int(tick): end for tick, end in zip(ticks, ends, strict=True) if not np.isnan(tick)}
    whose = dict(zip(result.requests["request_id"].to_pylist(), result.requests["class"].to_pylist(), strict=True))
    events: dict[str, list[tuple[float, int]]] = {tenant: [] for tenant in tenants.values()}
    rows = zip(*(result.requests[n].to_pylist() for n in ("class", "first_scheduled_s", "prompt_tokens")), strict=True)
    for label, at, prompt in rows:
        events[tenants[label]].append((at, prompt))
    for row in result.spans.to_pylist():
        times = [] if row["first_step"] is None else [ends[row["first_step"]]]
        times += [end_of[row["first_tick"] + i] for i in range(row["ticks"])]
        events[tenants[whose[row["request_id"]]]] += [(at, 2) for at in times]
    made = {}
    for tenant, pairs in events.items():
        pairs.sort()
        made[tenant] = np.array([at for at, _ in pairs]), np.cumsum([n for _, n in pairs])
    return made


def difference(found: dict[str, tuple[np.ndarray, np.ndarray]], one: str, other: str, times: np.ndarray) -> np.ndarray:
    """Service of one less that of the other until each of the times."""
    by = []
    for tenant in (one, other):
        at, total = found[tenant]
        by.append(np.concatenate([[0], total])[np.searchsorted(at, times, side="right")])
    return np.asarray(by[0] - by[1])


def backlogged(order: str, blocks: int) -> tuple[np.ndarray, int]:
    """Three requests of one tenant on one of the other, all there from the start: the difference of their service while
    both wait, and twice the U of the paper."""
    long = {"name": "uniform", "min": 20, "max": 200}
    workload = {
        "num_requests": 900,
        "arrivals": "batch",
        "classes": {
            "light": {"prompt_tokens": {"name": "uniform", "min": 50, "max": 200}, "output_tokens": 40},
            "chat": {"weight": 2, "prompt_tokens": 100, "output_tokens": 60, "tenant": "heavy"},
            "batch": {"prompt_tokens": 20, "output_tokens": long, "tenant": "heavy"},
        },
    }
    engine = {"max_model_len": 512, "num_gpu_blocks_override": blocks}
    result = sim.simulate(scenario({"name": "vllm", "order": order}, workload, engine=engine))
    tenants = {"light": "light", "chat": "heavy", "batch": "heavy"}
    starts = result.requests["first_scheduled_s"].to_numpy()
    labels = np.array([tenants[label] for label in result.requests["class"].to_pylist()])
    until = min(starts[labels == tenant].max() for tenant in ("light", "heavy"))
    times = result.steps["end_s"].to_numpy()
    found = difference(served(result, tenants), "light", "heavy", times[times < until])
    return found, 2 * max(200, 2 * (blocks - 1) * 16)


@pytest.mark.parametrize("blocks", [60, 150])
def test_fair_keeps_the_bound_between_backlogged_tenants(blocks: int) -> None:
    """Theorem of Sheng et al.: over any interval in which both wait, |W1 - W2| <= 2 max(w_in L, w_out M), where L is
    the longest prompt and M what a batch holds. First come, first served grows apart without end."""
    found, bound = backlogged("fair", blocks)
    assert 0 < found.max() - found.min() <= bound
    apart, _ = backlogged("fcfs", blocks)
    assert apart.max() - apart.min() > 3 * (found.max() - found.min()) and abs(apart[-1]) > bound


def test_a_tenant_saves_nothing_up_while_it_is_away() -> None:
    """After 20 s of one alone, the other's burst shares with it; without the lift it would have all the server."""
    rows = [(0.0, 1, 10, "here")] * 80 + [(20.01, 1, 10, "back")] * 20
    found = run(scenario(single_server("fair"), classes("here", "back")), asked(rows))
    order = np.argsort(found["first_scheduled_s"])[41:61]
    assert [int(i >= 80) for i in order] == [1, 0] * 10 or [int(i >= 80) for i in order] == [0, 1] * 10


def test_fair_counts_outputs_by_their_weight() -> None:
    """A tenant of outputs three times as long gets a third of the requests through; within it, the first is first."""
    rows = [(0.0, 1, 30, "long")] * 60 + [(0.0, 1, 10, "short")] * 60
    order: dict[str, Any] = {"name": "fair", "input_weight": 0}
    found = run(scenario(single_server(order), classes("long", "short")), asked(rows))
    begun = np.argsort(found["first_scheduled_s"])[:40]
    assert (begun < 60).sum() == 10
    assert (np.diff(found["first_scheduled_s"][:60]) > 0).all()


def test_fair_charges_a_prompt_once_and_nobody_who_is_refused() -> None:
    """By hand: one of each tenant is admitted, one refused; the admitted one is preempted and comes back."""
    made = scenario({"name": "vllm", "order": "fair"}, classes("a", "b"))
    queue = Fair(input_weight=1, output_weight=2).queue(Outlook(made))
    batch = Batch(queue, BlockPool(1000, 16), 0, 4096)
    queue.attach(batch)
    one, refused, other = (Sequence(request, 0.0, 9, 9, False) for request in asked([(0.0, 50, 9, c) for c in "aab"]))
    for seq in (one, refused, other):
        batch.enqueue(seq)
    assert queue.head() is one and [seq.request.index for seq in queue] == [0, 2, 1]
    batch.admit(one, NO_HIT, 50)
    assert queue.head() is other and queue.counters == {"a": 50, "b": 0}
    batch.preempt(one)
    batch.plan.clear()
    assert len(queue) == 3 and queue.head() is other
    queue.remove(other)
    batch.give_up(other, "too long")
    other.state = DONE
    assert queue.head() is one
    batch.admit(one, NO_HIT, 50)
    assert queue.head() is refused and queue.counters == {"a": 50, "b": 0}
    batch.enqueue(Sequence(asked([(0.0, 1, 1, "b")])[0], 0.0, 1, 1, False))
    assert queue.counters == {"a": 50, "b": 50}  # lifted: it was away from the queue


# -- mlfq


def test_levels_by_prompt_and_outputs() -> None:
    order = MultiLevelFeedback(levels=4, quantum_tokens=10, skip_join_tokens=100, factor=2)
    assert [order.joins(n) for n in (1, 100, 101, 200, 201, 400, 10_000)] == [0, 0, 1, 1, 2, 2, 3]
    assert [order.level(1, n) for n in (0, 9, 10, 29, 30, 69, 70, 9999)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [order.level(150, n) for n in (0, 19, 20, 59, 60)] == [1, 1, 2, 2, 3]


def feedback(**values: Any) -> dict[str, Any]:
    order = {"name": "mlfq", "quantum_tokens": 10, **values}
    return {"name": "vllm", "max_num_seqs": 1, "async_scheduling": False, "order": order}


ROWS = [(0.0, 1, 200, "a"), (0.26, 1, 5, "a"), (2.01, 1, 5, "a"), (2.02, 1, 5, "a")]


def test_short_jobs_pass_a_long_one_once_it_has_sunk() -> None:
    """The second comes while the first has its quantum, of 10 steps, and waits for its end; the others find it sunk."""
    found = run(scenario(feedback(), classes("a")), asked(ROWS))
    assert found["first_scheduled_s"][1] == pytest.approx(10 * STEP_S)
    assert found["first_token_s"][2] < 2.01 + 2 * STEP_S + 1e-9
    assert found["finish_s"].argmax() == 0
    assert (
        found["finish_s"][0] < (200 + 3 * 5 + 3) * STEP_S
    )  # its tokens are kept: computed again in one step each time


def test_without_preemption_it_orders_only_those_who_wait() -> None:
    for made in (feedback(preemptive=False), single_server({"name": "mlfq", "quantum_tokens": 10})):
        found = run(scenario(made, classes("a")), asked(ROWS))
        assert found["finish_s"].argmin() == 0
        behind = run(scenario(made, classes("a")), asked([*ROWS[:2], (0.27, 2000, 5, "a"), (0.28, 1, 5, "a")]))
        assert behind["finish_s"].argmax() == 2  # skip-join: its long prompt put it on a lower level


def test_a_long_job_starves_under_mlfq() -> None:
    """Known: nothing lifts it up again (FastServe lifts those that have waited long; this order does not)."""
    rows = [(0.0, 1, 50, "a")] + [(0.5 + 0.25 * i, 1, 5, "a") for i in range(200)]
    found = run(scenario(feedback(), classes("a")), asked(rows))
    assert found["finish_s"].argmax() == 0


# -- requests that TGI queues anew: what they were given before counts


def one_at_a_time(order: Any) -> dict[str, Any]:
    return {
        "name": "tgi",
        "support_chunking": False,
        "max_batch_size": 1,
        "max_batch_prefill_tokens": 4096,
        "order": order,
    }


def test_fair_charges_all_goes_of_a_request() -> None:
    made = scenario(one_at_a_time({"name": "fair", "input_weight": 0, "output_weight": 1}), classes("a", "b"))
    rows = [(0.0, 1, 1000, "b"), (0.0, 1, 3000, "a"), (0.0, 1, 1000, "b"), (0.0, 1, 1000, "b"), (0.0, 1, 1000, "b")]
    finish = run(made, asked(rows))["finish_s"] / STEP_S
    # b 1000; a 1024; b 2000; a has had less than 2000, 2048; b 3000; a 3000 and ends; b 4000
    assert finish.round().tolist() == [1000, 6000, 3024, 5048, 7000]


def test_mlfq_sinks_a_request_over_all_its_goes() -> None:
    made = scenario(one_at_a_time({"name": "mlfq", "skip_join_tokens": 4096}), classes("a"))
    found = run(made, asked([(0.0, 1, 2048, "a"), (1.0, 1, 10, "a")]))
    assert found["first_scheduled_s"][1] == pytest.approx(1024 * STEP_S)


# -- messages


@pytest.mark.parametrize(
    ("policy", "path", "what"),
    [
        ("{name: vllm, order: sfj}", "policy.order", "unknown order of the queue 'sfj'; did you mean"),
        ("{name: vllm, order: {name: sjf, error: 0}}", "policy.order.error", "must be a number over 0 and at most 10"),
        (
            "{name: static, order: {name: fair, error: 1}}",
            "policy.order.error",
            "unknown key of the order of the queue",
        ),
        ("{name: vllm, order: 3}", "policy.order", "must be a name or a mapping with name, got 3; accepted names: edf"),
        ("{name: vllm, order: mlfq, scheduling_policy: priority}", "policy", "contradict each other; leave one"),
        ("{name: vllm, order: edf}", "policy.order", "edf needs a time by which first tokens are due, slo.ttft_ms"),
        (
            "{name: vllm, order: {name: fair, input_weight: 0, output_weight: 0}}",
            "policy.order.output_weight",
            "must be over 0 where input_weight is 0",
        ),
    ],
)
def test_what_is_refused(policy: str, path: str, what: str) -> None:
    text = f"""model: llama-3.1-8b
gpu: h100_sxm
workload: {{num_requests: 1, arrivals: batch, prompt_tokens: 1, output_tokens: 1}}
policy: {policy}
"""
    with pytest.raises(sim.ScenarioError) as caught:
        sim.load_text(text, "x.yaml")
    message = str(caught.value)
    assert message.startswith(f"x.yaml:4: {path}: ") and what in message and "\n" not in message


def test_an_order_survives_the_long_form() -> None:
    made = scenario({"name": "vllm", "order": {"name": "sjf"}}, classes("a"))
    assert made.cluster.pools["main"].policy.params["order"] == {"name": "sjf", "error": 0.5}
    assert sim.load_text(made.to_yaml()) == made
