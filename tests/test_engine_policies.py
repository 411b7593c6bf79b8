"""What engines refuse at their start and at their front ends, and how a wrong parameter is told."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

import sim
from sim import ScenarioError, registry
from sim.policies.tgi import more_in_goes
from sim.request import Request
from sim.workload.source import Fixed
from tests import engine_parity, random_cases
from tests.laws import Records, clocks_never_go_back

SGLANG = Path(__file__).parent / "data" / "sglang_schedules"

BASE = """model: llama-3.1-8b
gpu: h100_sxm
engine: {max_model_len: 4096, block_size: 16}
workload: {num_requests: 3, arrivals: batch, prompt_tokens: 20, output_tokens: 5}
"""


def refused(policy: str, extra: str = "") -> str:
    with pytest.raises(ScenarioError) as caught:
        sim.simulate(sim.load_text(f"{BASE}{extra}policy: {policy}\n", "x.yaml"))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("policy", "rule"),
    [
        ("{name: tgi, max_input_tokens: 300, max_total_tokens: 300}", "max_input_tokens (300) must be less than"),
        ("{name: tgi, max_total_tokens: 5000}", "max_total_tokens (5000) is more than engine.max_model_len (4096)"),
        ("{name: tgi, max_batch_total_tokens: 4000}", "max_total_tokens (4096) must be at most max_batch_total_tokens"),
        (
            "{name: tgi, max_total_tokens: 900, max_batch_total_tokens: 1000}",
            "max_batch_prefill_tokens (4096) must be at most max_batch_total_tokens (1000)",
        ),
        (
            "{name: tgi, support_chunking: false, max_batch_prefill_tokens: 512}",
            "max_batch_prefill_tokens (512) must be at least max_input_tokens (4095)",
        ),
        ("{name: tgi, requires_padding: true}", "requires_padding: true needs support_chunking: false"),
        ("{name: sglang, chunked_prefill_size: 100}", "must be a multiple of the page size, engine.block_size (16)"),
        (
            "{name: sglang, enable_priority_scheduling: true, schedule_policy: lpm}",
            "enable_priority_scheduling: true needs schedule_policy fcfs or lof, not lpm",
        ),
        (
            "{name: sglang, retraction_policy: priority}",
            "retraction_policy priority needs enable_priority_scheduling: true",
        ),
        ("{name: trtllm, chunk_unit_size: 24}", "must be a multiple of engine.block_size (16)"),
    ],
)
def test_what_an_engine_refuses_at_its_start(policy: str, rule: str) -> None:
    message = refused(policy)
    assert message.startswith("x.yaml:5: policy: ")
    assert rule in message


def test_shortest_prefill_first_needs_the_radix_cache() -> None:
    with pytest.raises(ScenarioError, match="needs the radix cache: "):
        sim.load_text(
            BASE.replace("block_size: 16", "enable_prefix_caching: false")
            + "policy: {name: sglang, schedule_policy: shortest-prefill-first}\n",
            "x.yaml",
        )


@pytest.mark.parametrize(
    ("policy", "owner"),
    [
        ("{name: vllm, max_queued_requests: 3}", "it is a parameter of sglang"),
        ("{name: sglang, max_num_seqs: 3}", "it is a parameter of sarathi, vllm and vllm_v0"),
        ("{name: vllm, max_batch_size: 3}", "it is a parameter of orca, tgi, triton_dynamic and trtllm"),
        ("{name: sglang, page_size: 16}", "here it is engine.block_size"),
        ("{name: trtllm, max_seq_len: 2048}", "here it is engine.max_model_len"),
    ],
)
def test_a_parameter_of_another_engine_names_that_engine(policy: str, owner: str) -> None:
    message = refused(policy)
    key = policy.split(", ")[1].split(":")[0]
    assert message.startswith(f"x.yaml:5: policy.{key}: unknown key of the policy ")
    assert owner in message


def simulated(policy: dict[str, Any], asked: list[Request], fast_forward: bool, **engine: Any) -> sim.Result:
    data = {
        "model": "llama-3.1-8b",
        "gpu": "h100_sxm",
        "engine": {"max_model_len": 400, "num_gpu_blocks_override": 61, "block_size": 16, **engine},
        "policy": policy,
        "workload": dict(random_cases.OWN),
        "cost": {"name": "linear", "base_s": 0.01},
    }
    scenario = random_cases.scenario_of(data, fast_forward)
    return sim.simulate(scenario, source=Fixed(iter(asked), len(asked)))


def run(policy: dict[str, Any], asked: list[Request], **engine: Any) -> list[dict[str, Any]]:
    quick, single = (simulated(policy, asked, fast, **engine).requests.to_pylist() for fast in (True, False))
    assert quick == single
    return quick


@pytest.mark.parametrize(
    ("where", "key", "hint"),
    [
        ("policy", "block_size", "it stands under engine, engine.block_size"),
        ("policy", "page_size", "sglang has it; in a scenario it is engine.block_size"),
        ("engine", "page_size", "sglang has it; in a scenario it is engine.block_size"),
        ("engine", "max_num_seqs", "it stands under policy, for it is a parameter of sarathi, vllm and vllm_v0"),
    ],
)
def test_a_key_in_the_wrong_place_is_told_the_right_one(where: str, key: str, hint: str) -> None:
    text = BASE + "policy: {name: vllm}\n"
    with pytest.raises(ScenarioError, match=f"{where}.{key}: unknown key.*; {hint}; "):
        sim.load_text(text, "x.yaml", [f"{where}.{key}=16"])


def test_tgi_refuses_who_finds_too_many_in_the_system() -> None:
    asked = [Request(i, f"r{i}", 0.001 * i, 20, 5, 5) for i in range(6)]
    asked.append(Request(6, "r6", 5.0, 20, 5, 5))
    rows = run({"name": "tgi", "max_concurrent_requests": 4, "max_batch_prefill_tokens": 400}, asked)
    assert [row["status"] for row in rows] == ["finished"] * 4 + ["rejected"] * 2 + ["finished"]
    assert rows[4]["reason"].startswith("overloaded: 4 requests are in the system")


def test_tgi_queues_who_has_given_1024_outputs_anew() -> None:
    """Its outputs are prompt then: 20 + 1024 tokens, of which one block of 16 is in the cache, in chunks of 400."""
    asked = [Request(0, "r0", 0.0, 20, 1500, 1500), Request(1, "r1", 0.0, 20, 1024, 1500)]
    policy = {"name": "tgi", "max_batch_prefill_tokens": 400}
    for fast_forward in (True, False):
        result = simulated(policy, asked, fast_forward, max_model_len=2000, num_gpu_blocks_override=300)
        rows, steps = result.requests.to_pylist(), result.steps.to_pylist()
        assert [(row["output_tokens"], row["status"], row["preemptions"]) for row in rows] == [
            (1500, "finished", 0),
            (1024, "finished", 0),
        ]
        prompts = [step["prefill_tokens"] for step in steps if step["prefill_tokens"]]
        assert prompts == [40, 400, 400, 228]
        assert sum(step["emitted"] for step in steps) == 2524


@pytest.mark.parametrize(
    ("prompt", "asked", "longest", "total", "more"),
    [
        (1044, 0, 9999, 10000, 0),
        (1044, 476, 9999, 10000, 476),
        (1044, 1024, 9999, 10000, 1024),
        (1044, 3000, 9999, 10000, 3000),
        (1044, 3000, 1043, 10000, 0),  # what it has is too long a prompt
        (1044, 3000, 1044, 10000, 1024),
        (1044, 3000, 2068, 10000, 2048),
        (1044, 3000, 2067, 10000, 1024),
        (1044, 3000, 9999, 4043, 2048),  # the last go's 952 outputs do not fit
        (1044, 3000, 9999, 4044, 3000),
    ],
)
def test_tgi_validates_each_go_anew(prompt: int, asked: int, longest: int, total: int, more: int) -> None:
    """As a loop over the goes, in closed form."""
    by_hand, held, left = 0, prompt, asked
    while left and held <= longest and held + min(left, 1024) <= total:
        new = min(left, 1024)
        by_hand, held, left = by_hand + new, held + new, left - new
    assert more_in_goes(prompt, asked, longest, total) == by_hand == more


def test_a_full_queue_of_sglang_refuses_the_newcomer() -> None:
    asked = [Request(i, f"r{i}", 0.001 * i, 20, 50, 50) for i in range(5)]
    policy = {"name": "sglang", "max_running_requests": 1, "max_queued_requests": 2, "disable_overlap_schedule": True}
    rows = run(policy, asked)
    assert [row["status"] for row in rows] == ["finished"] * 3 + ["rejected"] * 2
    assert rows[3]["reason"] == "aborted: 2 requests are waiting (max_queued_requests)"


def test_sglang_keeps_what_a_refused_one_has_given() -> None:
    """Retracted requests are queued anew, and find the queue full."""
    asked = [Request(i, f"r{i}", 0.0, 40, 260, 260) for i in range(8)]
    policy = {"name": "sglang", "schedule_conservativeness": 0.05, "max_queued_requests": 8}
    rows = run(policy, asked)
    assert sum(row["preemptions"] for row in rows) > 0
    finished = [row for row in rows if row["status"] == "finished"]
    assert all(row["output_tokens"] == 260 for row in finished)


def test_who_is_aborted_by_sglang_was_not_preempted() -> None:
    """The one that runs cannot grow beside a prompt under way: the recorded case interval_abort."""
    asked = [Request(0, "a", 0.0, 300, 780, 780), Request(1, "b", 0.3, 700, 10, 10)]
    data = {
        "model": "llama-3.1-8b",
        "gpu": "h100_sxm",
        "engine": {"max_model_len": 4096, "num_gpu_blocks_override": 1201, "block_size": 1},
        "policy": {
            "name": "sglang",
            "max_running_requests": 8,
            "chunked_prefill_size": 64,
            "schedule_conservativeness": 0.01,
            "prefill_decode_interval": 30,
            "disable_overlap_schedule": True,
        },
        "workload": dict(random_cases.OWN),
        "cost": {"name": "linear", "base_s": 0.006},
    }
    for fast_forward in (True, False):
        scenario = random_cases.scenario_of(data, fast_forward)
        records = Records(sim.simulate(scenario, source=Fixed(iter(asked), len(asked))), asked)
        assert records.requests["status"].tolist() == ["failed", "finished"]
        assert records.requests["preemptions"].tolist() == [0, 0]
        assert (records.steps["seqs"] == 0).sum() == 1
        assert not records.steps["preempted"].any()
        clocks_never_go_back(records)


def test_trtllm_sets_memory_aside_for_max_tokens() -> None:
    """Two requests of 380 tokens in 60 blocks of 16, and a third waits, though all outputs are short."""
    asked = [Request(i, f"r{i}", 0.0, 20, 30, 360) for i in range(3)]
    rows = run({"name": "trtllm"}, asked)
    assert rows[2]["first_scheduled_s"] >= rows[1]["finish_s"]
    sooner = run({"name": "trtllm", "capacity_scheduler_policy": "MAX_UTILIZATION"}, asked)
    assert sooner[2]["first_scheduled_s"] < rows[2]["first_scheduled_s"]


def test_who_ends_in_one_step_is_released_in_the_order_of_the_batch() -> None:
    """A ends by its stop token, which is known a step late, B by its limit. A's tokens were used before B's, so they go
    first when C needs room, and D finds nothing."""
    case = json.loads(gzip.decompress((SGLANG / "ov_full.case.json.gz").read_bytes()))
    case |= {"max_total_tokens": 400, "context_length": 390, "max_running_requests": 8, "chunked_prefill_size": 512}
    shapes = {  # arrival, prompt, output, max_new, prefix
        "A": (0.0, 100, 4, 9, []),
        "B": (0.0, 120, 4, 4, []),
        "F": (0.0200003, 5, 3, 3, []),
        "C": (1.0003, 250, 1, 1, []),
        "D": (2.0003, 110, 2, 2, [["own:A", 100]]),
    }
    names = ("arrival", "prompt_tokens", "output_tokens", "max_new_tokens", "prefix")
    case["requests"] = [{"id": name} | dict(zip(names, values, strict=True)) for name, values in shapes.items()]
    for fast_forward in (True, False):
        steps = [line for line in engine_parity.replay("sglang", case, fast_forward) if "tokens" in line]
        first = {name: next(line["tokens"][name] for line in steps if name in line["tokens"]) for name in shapes}
        assert first == {"A": 100, "B": 120, "F": 5, "C": 250, "D": 110}


@pytest.mark.parametrize("fits", [False, True])
def test_trtllm_says_that_a_chunk_does_not_fit_the_budget(fits: bool) -> None:
    """Prompts over the budget never start, shorter ones pass them: the recordings' case unit_over_budget."""
    asked = [Request(0, "r0", 0.0, 100, 5, 5), Request(1, "r1", 0.0, 30, 5, 5)]
    unit = 32 if fits else 64
    rows = run({"name": "trtllm", "enable_chunked_prefill": True, "max_num_tokens": 40, "chunk_unit_size": unit}, asked)
    assert [row["status"] for row in rows] == ["finished" if fits else "failed", "finished"]
    never = "it can never be scheduled: a chunk of 64 tokens (chunk_unit_size) does not fit max_num_tokens (40)"
    assert rows[0]["reason"] == (None if fits else never)


def test_trtllm_says_that_a_paused_prompt_outgrew_the_budget() -> None:
    """A paused request's outputs are computed as prompt, and whole prompts of more than the budget are an error."""
    asked = [Request(i, f"r{i}", 0.0, 90, 290, 290) for i in range(6)]
    policy = {"name": "trtllm", "capacity_scheduler_policy": "MAX_UTILIZATION", "max_num_tokens": 100}
    rows = run(policy, asked, num_gpu_blocks_override=40)
    failed = [row["reason"] for row in rows if row["status"] == "failed"]
    assert failed
    assert all(reason.endswith("is over max_num_tokens (100)") for reason in failed)


def test_tgi_says_that_a_prompt_is_too_long_where_no_output_is_asked_for() -> None:
    """Without a max_tokens of its own a request may give what max_total_tokens leaves, at least 0."""
    asked = [Request(0, "r0", 0.0, 120, 5, None), Request(1, "r1", 0.0, 20, 5, 0)]
    rows = run({"name": "tgi", "max_total_tokens": 100, "max_batch_prefill_tokens": 100}, asked)
    assert rows[0]["reason"] == "validation: the prompt of 120 tokens is longer than max_input_tokens (99)"
    assert rows[1]["reason"] == "validation: the prompt is empty, or no output is asked for"


@pytest.mark.parametrize(("tokens", "blocks"), [(10, 0), (16, 0), (32, 1), (40, 1)])
def test_tgi_never_uses_one_of_its_blocks(tokens: int, blocks: int) -> None:
    assert registry.get("policy", "tgi")(max_batch_total_tokens=tokens).pool(100, 16, False).total == blocks


def small_trtllm(capacity: str, blocks: int, *asked: tuple[float, int, int, tuple[tuple[str, int], ...]]) -> list[Any]:
    """Status, outputs and reason of each (arrival, prompt, outputs, prefix), in blocks of 4, with 8 tokens a step."""
    policy = {"name": "trtllm", "max_num_tokens": 8, "capacity_scheduler_policy": capacity}
    policy |= {"enable_chunked_prefill": True, "disable_overlap_scheduler": True}
    made = [Request(i, f"r{i}", at, prompt, n, n, 0, prefix) for i, (at, prompt, n, prefix) in enumerate(asked)]
    rows = run(policy, made, max_model_len=36, num_gpu_blocks_override=blocks + 1, block_size=4)
    return [(row["status"], row["output_tokens"], row["reason"]) for row in rows]


def test_trtllm_prompts_wait_for_each_other_for_ever() -> None:
    """Rule: the second pass ends at the first whose need is not met; nobody behind is tried, even in its prompt.

    r1 is skipped while r0 computes its prefix, so r2 starts. r1 then stands first and needs more than r2 leaves.
    """
    rows = small_trtllm("GUARANTEED_NO_EVICT", 10, (0, 11, 4, (("b", 9),)), (0, 24, 6, (("b", 13),)), (0, 9, 6, ()))
    assert [status for status, _, _ in rows] == ["finished", "failed", "failed"]
    assert all(reason.endswith("hold, which may not pass it") for _, _, reason in rows[1:])


def test_trtllm_may_run_out_of_blocks_by_its_own_count() -> None:
    """Rule: R is the number of referenced blocks of the match, at most (P - 1) // block_size. So R of r3 is 2, though
    only one of the two blocks that it can use is referenced: its third, which it computes again, counts too."""
    rows = small_trtllm(
        "STATIC_BATCH",
        10,
        (0, 1, 8, ()),
        (0.011, 12, 3, (("b", 9),)),
        (0.031, 20, 7, (("b", 17),)),
        (0.031, 12, 8, (("b", 12),)),
    )
    assert [(status, outputs) for status, outputs, _ in rows[:2]] == [("finished", 8), ("finished", 3)]
    assert [(status, outputs) for status, outputs, _ in rows[2:]] == [("failed", 5), ("failed", 5)]
    assert all(reason.startswith("no free block is left") for _, _, reason in rows[2:])


def test_requests_that_fail_are_told_in_a_warning() -> None:
    asked = [Request(0, "r0", 0.0, 100, 5, 5), Request(1, "r1", 0.0, 30, 5, 5)]
    policy = {"name": "trtllm", "enable_chunked_prefill": True, "max_num_tokens": 40, "chunk_unit_size": 64}
    (told,) = simulated(policy, asked, True).warnings
    assert told.startswith("1 failed; the first, r0: it can never be scheduled: a chunk of 64 tokens")
