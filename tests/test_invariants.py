"""What holds of every run: the laws of tests/laws.py on random scenarios, the engines' books, and determinism."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

import sim
import sim.run
from sim import registry
from sim.engine import Engine
from sim.prefix import PrefixCache
from sim.radix import RadixTree
from sim.request import Request
from sim.trtllm_cache import TRTLLMCache
from tests import random_cases
from tests.laws import LAWS, Records

ROOT = Path(__file__).parent.parent
seeds = st.integers(0, 2**32 - 1)


def plenty(examples: int) -> Any:
    """A smaller seed is no simpler scenario, so there is nothing to shrink."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )


def random_case(seed: int, policy: str | None = None) -> tuple[dict[str, Any], list[Any]]:
    data, asked = random_cases.case(random.Random(seed), policy)
    note(f"random.Random({seed}), {policy}: {data}")
    return data, asked


@plenty(250)
@given(seeds)
def test_the_laws_hold(seed: int) -> None:
    data, asked = random_case(seed)
    own = data["workload"]["arrivals"] != "batch"
    records = Records(random_cases.run(data, asked), None if own else asked)
    for law in LAWS:
        law(records)


# Engines with limits of their own (lengths, memory) are held to them by their recorded schedules.
OTHERS = ["naive", "orca", "sarathi", "static", "triton_dynamic", "vllm_v0"]


@pytest.mark.parametrize("policy", OTHERS)
@plenty(60)
@given(seeds)
def test_the_laws_hold_under_each_policy(policy: str, seed: int) -> None:
    data, asked = random_case(seed, policy)
    own = data["workload"]["arrivals"] != "batch"
    records = Records(random_cases.run(data, asked), None if own else asked)
    for law in LAWS:
        law(records)


OF_VLLM = {  # what it refuses, and its limits; and static's
    "refused_are_those_that_can_never_run",
    "tokens_out_are_tokens_asked",
    "steps_keep_to_the_limits",
}


@pytest.mark.parametrize("policy", [name for name in registry.names("policy") if name not in ("static", "vllm")])
@plenty(25)
@given(seed=seeds)
def test_the_general_laws_hold_under_every_policy(policy: str, seed: int) -> None:
    data, asked = random_cases.case(random.Random(seed), policy)
    note(f"random.Random({seed}): {data}")
    records = Records(random_cases.run(data, asked), asked if data["workload"]["arrivals"] == "batch" else None)
    for law in LAWS:
        if law.__name__ not in OF_VLLM:
            law(records)


def engines_of(data: dict[str, Any], asked: list[Any]) -> list[Engine]:
    """The engines of a run that goes on until all have ended."""
    data["workload"].pop("duration_s", None)
    made: list[Engine] = []

    class Watched(Engine):
        def __init__(self, *arguments: Any, **others: Any) -> None:
            super().__init__(*arguments, **others)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sim.run, "Engine", Watched)
        random_cases.run(data, asked)
    return made


@pytest.mark.parametrize("policy", [name for name in registry.names("policy") if name not in ("static", "vllm")])
@plenty(25)
@given(seed=seeds)
def test_other_caches_end_with_nothing_in_use(policy: str, seed: int) -> None:
    """Free, cached and used blocks are all there are, and nobody holds any when nobody is there."""
    data, asked = random_cases.case(random.Random(seed), policy)
    note(f"random.Random({seed}): {data}")
    made = engines_of(data, asked)
    for engine in made:
        kv = engine.lane.kv
        if not engine.unfinished():
            assert not kv.used
        if isinstance(kv, RadixTree):
            nodes = [kv.root]
            for node in nodes:
                nodes += node.children.values()
                assert node.users >= sum(child.users for child in node.children.values()) or node is kv.root
            assert sum(node.pages for node in nodes) == kv.cached
            assert sum(node.pages for node in nodes if not node.users) == kv.evictable + kv.root.pages
        if isinstance(kv, TRTLLMCache):
            queued, item = 0, kv.queue.next
            while item is not kv.queue:
                queued += item.count
                assert not item.refs
                item = item.next
            assert queued == kv.free
            if not engine.unfinished():
                assert not kv.all_held


@plenty(80)
@given(seeds)
def test_blocks_in_use_are_those_of_the_sequences_that_run(seed: int) -> None:
    """Without shared blocks: after each decision used = the sum over the running of blocks for tokens computed.

    A sequence gives its blocks back when its last step is processed, which is `depth` decisions later, or sooner
    where the engine has nothing else to do.
    """
    data, asked = random_case(seed)
    data["engine"]["enable_prefix_caching"] = False
    data["replicas"] = 1
    data["workload"].pop("duration_s", None)
    result = sim.simulate(
        random_cases.scenario_of(data, fast_forward=False), random_cases.source_of(data, asked), record_content=True
    )
    assert result.content is not None
    records = Records(result)
    span, row = records.tokens
    last_row = dict(zip(records.spans["request_id"][span].tolist(), row.tolist(), strict=True))
    steps, size = records.steps, data["engine"]["block_size"]
    whole = -(-records.sizes.max_model_len // size) if data["policy"]["name"] == "static" else 0
    finished = set(records.requests["request_id"][records.has("finished")].tolist())
    held: dict[str, int] = {}
    for i, entry in enumerate(result.content[0]):
        decided = steps["decided_s"][i]
        for name in [n for n in held if n in finished and steps["end_s"][last_row[n]] <= decided and last_row[n] < i]:
            del held[name]
        for name in entry["preempted"]:
            held.pop(name, None)
        for name, new in entry["tokens"].items():
            held[name] = whole or -(-(entry["context"][name] + new) // size)
        assert sum(held.values()) == steps["kv_blocks_used"][i] == records.sizes.num_gpu_blocks - entry["free"], i
        assert len(held) >= steps["seqs"][i]


@plenty(120)
@given(seeds)
def test_engines_end_empty(seed: int) -> None:
    """When all have ended nobody is anywhere, and all blocks are free; free + used is constant."""
    engines_end_empty(*random_case(seed))


@pytest.mark.parametrize("policy", OTHERS)
@plenty(40)
@given(seeds)
def test_engines_end_empty_under_each_policy(policy: str, seed: int) -> None:
    engines_end_empty(*random_case(seed, policy))


def engines_end_empty(data: dict[str, Any], asked: list[Any]) -> None:
    made = engines_of(data, asked)
    if any(engine.stalled for engine in made):
        return
    assert len(made) == data["replicas"]
    for engine in made:
        lane, kv = engine.lane, engine.lane.kv
        assert not engine.unfinished()
        assert not (lane.running or lane.waiting or lane.partial or lane.decodes.members)
        assert not (lane.left or lane.done)
        assert not kv.used
        assert not any(lane.decodes.by_position) and not lane.decodes.growing and not lane.decodes.context
        assert len(lane.ends) == lane.step
        if isinstance(kv, PrefixCache):
            cached, piece = 0, kv.idle.next
            while piece is not kv.idle:
                assert not piece.users and piece.hi > piece.lo
                cached += piece.hi - piece.lo
                piece = piece.next
            assert cached + kv.uncached == kv.total


def test_what_is_decided_ahead_of_the_stop_has_not_happened() -> None:
    """An engine that decides ahead has admitted the second request before the stop, to a step that never starts."""
    asked = [Request(i, f"r{i}", 0.15 * i, 40, 9, 9, 0, (("sys", 32),)) for i in range(2)]
    for stop_s, scheduled in ((0.25, False), (0.35, True)):
        data = {
            "model": "llama-3.1-8b",
            "gpu": "h100_sxm",
            "workload": {**random_cases.OWN, "duration_s": stop_s},
            "cost": {"name": "linear", "base_s": 0.1},
        }
        result = random_cases.run(data, asked)
        for law in LAWS:
            law(Records(result, asked))
        late = result.requests.to_pylist()[1]
        assert (late["first_scheduled_s"] is not None) == scheduled and late["cached_tokens"] == 32 * scheduled
        assert late["status"] == "unfinished" and late["output_tokens"] == 0


# -- same seed, same bytes


CLUSTER = """
name: bytes
model: llama-3.1-8b
gpu: h100_sxm
replicas: 2
router: least_requests
engine: {num_gpu_blocks_override: 150, max_model_len: 2048}
policy: {name: vllm, max_num_seqs: 32, scheduling_policy: priority}
workload:
  num_requests: 300
  arrivals: {name: gamma, rate_per_s: 40, burstiness: 0.5}
  classes:
    chat: {prompt_tokens: {name: lognormal, mean: 200, cv: 1, max: 1000}, output_tokens: {name: exponential, mean: 60}}
    batch: {prompt_tokens: 700, output_tokens: {name: uniform, min: 1, max: 90}, priority: 1, weight: 0.3}
cost: {name: roofline, noise: {sigma: 0.05}}
slo: {ttft_ms: 500}
seed: 11
"""
FILES = ("scenario.yaml", "requests.parquet", "spans.parquet", "steps.parquet", "summary.json")


def run_file(folder: Path, hash_seed: str, *overrides: str) -> dict[str, str]:
    """The digest of each file of `python -m sim run`, in a process of its own with its own hashes of strings."""
    folder.mkdir()
    scenario = folder / "bytes.yaml"
    scenario.write_text(CLUSTER)
    options = [word for override in overrides for word in ("--set", override)]
    subprocess.run(
        [sys.executable, "-m", "sim", "run", str(scenario), "--out", str(folder / "out"), *options],
        cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hash_seed}, check=True, capture_output=True,
    )  # fmt: skip
    assert {path.name for path in (folder / "out").iterdir()} == {*FILES, "run.json"}
    return {name: hashlib.sha256((folder / "out" / name).read_bytes()).hexdigest() for name in FILES}


def test_same_seed_same_bytes_in_any_process(tmp_path: Path) -> None:
    first = run_file(tmp_path / "one", "0")
    assert run_file(tmp_path / "two", "4242") == first
    single = run_file(tmp_path / "three", "7", "fast_forward=false")
    assert {name for name in FILES if single[name] != first[name]} == {"scenario.yaml"}
    other = run_file(tmp_path / "four", "0", "seed=12")
    assert all(other[name] != first[name] for name in FILES)
    table = pq.read_table(tmp_path / "one" / "out" / "requests.parquet")
    assert table.num_rows == 300 and json.loads((tmp_path / "one" / "out" / "summary.json").read_text())["preemptions"]


def test_many_simulations_share_a_process() -> None:
    """A run's records do not depend on what ran before it."""
    cases = [random_cases.case(random.Random(seed)) for seed in range(30)]
    first = [random_cases.run(*case) for case in cases]
    for case, before in reversed(list(zip(cases, first, strict=True))):
        again = random_cases.run(*case)
        assert again.requests.equals(before.requests) and again.steps.equals(before.steps)
        assert again.spans.equals(before.spans) and again.summary == before.summary


def test_replications_differ_and_replication_0_is_the_plain_run() -> None:
    scenario = sim.load_text(CLUSTER)
    plain, zero, one = (
        sim.simulate(scenario),
        sim.simulate(scenario, replication=0),
        sim.simulate(scenario, replication=1),
    )
    assert plain.requests.equals(zero.requests) and plain.steps.equals(zero.steps)
    for name in ("arrival_s", "prompt_tokens", "output_tokens"):
        assert not plain.requests[name].equals(one.requests[name])


# -- common random numbers


ASKED = ("request_id", "class", "priority", "prompt_tokens", "output_tokens")


def asked_of(result: sim.Result) -> Any:
    assert result.summary["finished"] == result.summary["requests"]
    return result.requests.select(list(ASKED))


@pytest.mark.parametrize(
    "change",
    [
        ["policy={name: static, batch_size: 3}", "engine.num_gpu_blocks_override=400"],
        ["policy.max_num_seqs=3", "policy.scheduling_policy=fcfs"],
        ["replicas=5", "router=round_robin"],
        ["cost={name: linear, base_s: 0.01}"],
        ["engine.num_gpu_blocks_override=2000", "policy.max_num_batched_tokens=512"],
    ],
    ids=lambda change: change[0].split("=")[0].split(".")[0],
)
def test_what_serves_does_not_change_who_asks(change: list[str]) -> None:
    plain, changed = sim.simulate(sim.load_text(CLUSTER)), sim.simulate(sim.load_text(CLUSTER, overrides=change))
    assert asked_of(changed).equals(asked_of(plain))
    assert changed.requests["arrival_s"].equals(plain.requests["arrival_s"])
    assert not changed.requests["finish_s"].equals(plain.requests["finish_s"])


def test_a_rate_scales_the_arrivals_and_changes_no_length() -> None:
    plain, quick = sim.simulate(sim.load_text(CLUSTER)), sim.simulate(sim.load_text(CLUSTER).with_rate(160))
    assert asked_of(quick).equals(asked_of(plain))
    slow_s, quick_s = (result.requests["arrival_s"].to_numpy() for result in (plain, quick))
    assert np.allclose(quick_s * 4, slow_s, rtol=1e-12)


@pytest.mark.parametrize("policy", ["vllm", "{name: static, batch_size: 1}"], ids=["vllm", "static"])
def test_a_closed_loop_asks_the_same_of_any_policy(policy: str) -> None:
    """Requests take their lengths in the order of issue, so the i-th asks the same whoever ends first."""
    loop = ["workload.arrivals={name: closed_loop, concurrency: 20, think_time_s: 0.3, think_time: exponential}"]
    plain = sim.simulate(sim.load_text(CLUSTER, overrides=loop))
    changed = sim.simulate(sim.load_text(CLUSTER, overrides=[*loop, f"policy={policy}"]))
    assert asked_of(changed).equals(asked_of(plain))
