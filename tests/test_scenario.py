"""Scenarios: short and long form, every kind of refusal with its place and path, round trips."""

import json
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import Scenario, ScenarioError, load, load_text
from sim.checklist import check, listing
from sim.registry import names as registered

BASE = """\
model: llama-3.1-8b
gpu: h100_sxm
policy: vllm
workload:
  num_requests: 10000
  arrivals: {name: poisson, rate_per_s: 10}
  prompt_tokens: 512
  output_tokens: 256
cost: {name: roofline, calibration: default, noise: {sigma: 0.05}}
seed: 1
"""


def swap(old: str, new: str) -> str:
    assert old in BASE
    return BASE.replace(old, new)


def refused(text: str, *overrides: str, policy: str | None = None) -> str:
    with pytest.raises(ScenarioError) as caught:
        load_text(text, "x.yaml", overrides, policy)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_standard_scenario_resolves_to_its_long_form() -> None:
    scenario = load_text(BASE, "dir/standard.yaml")
    assert (scenario.name, scenario.seed, scenario.replications, scenario.warmup_s) == ("standard", 1, 1, 0.0)
    assert scenario.fast_forward and scenario.policies == {} and scenario.slo.ttft_ms is None
    assert scenario.workload.classes["default"].prompt_tokens.params == {"tokens": 512}  # type: ignore[union-attr]
    pool = scenario.cluster.pools["main"]
    assert (pool.model.name, pool.gpu.name, pool.replicas, pool.role) == ("llama-3.1-8b", "h100_sxm", 1, "mixed")
    assert (pool.policy.params["max_num_seqs"], pool.policy.params["max_num_batched_tokens"]) == (1024, 8192)
    assert scenario.cluster.router.name == "round_robin"
    assert scenario.cost.params["noise"] == {"sigma": 0.05, "prefill_sigma": None}
    assert load_text(scenario.to_yaml()) == scenario
    assert pickle.loads(pickle.dumps(scenario)) == scenario


def test_loading_is_quick() -> None:
    load_text(BASE)
    started = time.perf_counter()
    for _ in range(10):
        load_text(BASE)
    assert (time.perf_counter() - started) / 10 < 0.05


def test_defaults() -> None:
    workload = "workload: {num_requests: 5, arrivals: batch, prompt_tokens: 1, output_tokens: 1}\n"
    least = "model: qwen2.5-7b\ngpu: l40s\n" + workload
    scenario = load_text(least)
    assert (
        scenario.cluster.pools["main"].policy.name == "vllm" and scenario.cost.name == "roofline" and scenario.seed == 0
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "num_requests: 10000",
            "num_requests: 0",
            "x.yaml:5: workload.num_requests: must be a whole number from 1 to 1000000000, got 0",
        ),
        ("num_requests: 10000", "num_requests: 1e3", "got '1e3'; YAML reads it as text, write 1000"),
        ("num_requests: 10000", "num_requests: 100.0", "got 100.0"),
        ("num_requests: 10000", "num_requests: 1000000001", "got 1000000001"),
        ("num_requests: 10000", "num_requests: " + "9" * 400, "a whole number of over 30 digits"),
        ("num_requests: 10000", "num_requests: yes", "got true"),
        ("num_requests: 10000", "num_requests: [1]", "got a list"),
        (
            "num_requests: 10000",
            "num_requests:",
            "x.yaml:5: workload.num_requests: missing; a workload has num_requests or",
        ),
        (
            "num_requests",
            "num_request",
            "x.yaml:5: workload.num_request: unknown key; did you mean num_requests? accepted: num_requests,",
        ),
        (
            "rate_per_s: 10",
            "rate_per_s: 1e3",
            "x.yaml:6: workload.arrivals.rate_per_s: must be a number over 0 and at most 1000000",
        ),
        ("rate_per_s: 10", "rate_per_s: 1e3", "write 1000.0 or 1.0e+3"),
        ("rate_per_s: 10", "rate_per_s: .inf", "got .inf"),
        ("rate_per_s: 10", "rate_per_s: .nan", "got .nan"),
        (
            "rate_per_s: 10",
            "rate: 10",
            "x.yaml:6: workload.arrivals.rate: unknown key of the arrival process poisson; did you mean",
        ),
        (", rate_per_s: 10", "", "x.yaml:6: workload.arrivals.rate_per_s: missing"),
        (
            "poisson",
            "poison",
            "x.yaml:6: workload.arrivals.name: unknown arrival process 'poison'; did you mean poisson? accepted:",
        ),
        ("{name: poisson, rate_per_s: 10}", "poisson", "x.yaml:6: workload.arrivals.rate_per_s: missing"),
        (
            "{name: poisson, rate_per_s: 10}",
            "\n    name: poisson\n    rate_per_s: -1",
            "x.yaml:8: workload.arrivals.rate_per_s: ",
        ),
        (
            "prompt_tokens: 512",
            "prompt_tokens: 0",
            "x.yaml:7: workload.prompt_tokens: must be a whole number from 1 to 10000000, got 0",
        ),
        (
            "prompt_tokens: 512",
            "prompt_tokens: 5.5",
            "x.yaml:7: workload.prompt_tokens: must be a whole number of tokens, a name or",
        ),
        (
            "prompt_tokens: 512",
            "prompt_tokens: {name: normal, mean: 5}",
            "x.yaml:7: workload.prompt_tokens.std: missing",
        ),
        (
            "  prompt_tokens: 512\n",
            "",
            "x.yaml:4: workload.prompt_tokens: missing; a number of tokens or a length distribution",
        ),
        ("policy: vllm", "policy: vlm", "x.yaml:3: policy: unknown policy 'vlm'; did you mean vllm? accepted: "),
        (
            "policy: vllm",
            "policy: {name: vllm, batch_size: 3}",
            "x.yaml:3: policy.batch_size: unknown key of the policy vllm; ",
        ),
        ("policy: vllm", "policy: {name: vllm, batch_size: 3}", "accepted: max_num_seqs, max_num_batched_tokens,"),
        (
            "policy: vllm",
            "policy: {name: vllm, max_num_seqs: 2.0}",
            "x.yaml:3: policy.max_num_seqs: must be a whole number",
        ),
        (
            "policy: vllm",
            "policy: {name: vllm, enable_chunked_prefill: false}",
            "x.yaml:3: policy: max_num_batched_tokens (8192)",
        ),
        ("policy: vllm", "policies: {a b: vllm}", "x.yaml:3: policies.a b: a label has up to 64 letters"),
        ("policy: vllm", "policies:\n  a: vllm\n  b: {name: vlm}", "x.yaml:5: policies.b.name: unknown policy 'vlm'"),
        ("policy: vllm", "policies: [vllm]", "x.yaml:3: policies: must be a mapping, got a list"),
        ("gpu: h100_sxm", "gpu: h100", "x.yaml:2: gpu: unknown GPU 'h100'; did you mean h100_sxm? accepted: h100_sxm,"),
        (
            "gpu: h100_sxm",
            "gpu: {name: h100_sxm,\n  memory_gib: -1}",
            "x.yaml:3: gpu.memory_gib: must be a number over 0",
        ),
        ("gpu: h100_sxm\n", "", "x.yaml:1: gpu: missing; the name of a GPU or a mapping; accepted names: h100_sxm,"),
        (
            "model: llama-3.1-8b",
            "model: llama-3.1-9b",
            "x.yaml:1: model: unknown model 'llama-3.1-9b'; did you mean llama-3.1-8b?",
        ),
        ("model: llama-3.1-8b", "model: no.json", "x.yaml:1: model: no such file: 'no.json'"),
        ("model: llama-3.1-8b", "model:\n  name: x\n  num_hidden_layers: 1e1", "x.yaml:3: model.num_hidden_layers: "),
        (
            "model: llama-3.1-8b",
            "model: llama-3.1-70b",
            "x.yaml:1: model: llama-3.1-70b does not fit: 131.41 GiB weights",
        ),
        ("sigma: 0.05", "sigma: -1", "x.yaml:9: cost.noise.sigma: "),
        ("sigma: 0.05", "sigm: 1", "x.yaml:9: cost.noise.sigm: unknown key; did you mean sigma?"),
        ("name: roofline", "name: roof", "x.yaml:9: cost.name: unknown cost model 'roof'"),
        ("calibration: default", "calibration: no.yaml", "x.yaml:9: cost.calibration: "),
        ("seed: 1", "seed: 1\nseed: 2", "x.yaml:11: seed: repeated key; it stands in line 10 already"),
        ("seed: 1", "seed: -1", "x.yaml:10: seed: must be a whole number from 0 to 4294967295, got -1"),
        ("seed: 1", "seed: 010", "got '010'"),
        ("seed: 1", "sede: 1", "x.yaml:10: sede: unknown key; did you mean seed? accepted: name, model,"),
        ("seed: 1", "replications: 0", "x.yaml:10: replications: must be a whole number from 1 to"),
        ("seed: 1", "warmup_s: -0.5", "x.yaml:10: warmup_s: must be a number from 0"),
        ("seed: 1", "fast_forward: 1", "x.yaml:10: fast_forward: must be true or false, got 1"),
        ("seed: 1", "slo: {ttft_ms: 0}", "x.yaml:10: slo.ttft_ms: must be a number over 0"),
        ("seed: 1", "slo:\n  tpot_ms: 50\n  ttft: 5", "x.yaml:12: slo.ttft: unknown key; did you mean ttft_ms?"),
        ("seed: 1", "slo: 5", "x.yaml:10: slo: must be a mapping with the keys ttft_ms, tpot_ms, e2e_ms, got 5"),
        ("seed: 1", "router: least", "x.yaml:10: router: unknown router 'least'"),
        ("seed: 1", "replicas: 1.5", "x.yaml:10: replicas: must be a whole number"),
        ("seed: 1", "name: ''", "x.yaml:10: name: must be text of 1 to 200 characters, got ''"),
        (
            "seed: 1",
            "engine: {tensor_parallel_size: 3}",
            "x.yaml:10: engine.tensor_parallel_size: 3 GPUs do not divide the 32",
        ),
        (
            "seed: 1",
            "engine: {max_model_len: 1000000}",
            "x.yaml:10: engine.max_model_len: 1000000 tokens are more than the KV",
        ),
        (
            "seed: 1",
            "engine: {gpu_memory_utilization: 1.1}",
            "x.yaml:10: engine.gpu_memory_utilization: must be a number over 0 and",
        ),
        (
            "seed: 1",
            "engine: {weight_dtype: fp9}",
            "must be one of bf16, fp8, int8, int4, got 'fp9'; did you mean fp8?",
        ),
        ("seed: 1", "engine: {kv_cache_dtype: int4}", "must be one of auto, bf16, fp8, int8, got 'int4'"),
        ("seed: 1", "engine: {block_size: 0}", "x.yaml:10: engine.block_size: "),
        ("seed: 1", "engine: {pipeline_parallel_size: 2}", "x.yaml:10: engine.pipeline_parallel_size: unknown key"),
        (
            "seed: 1",
            "cluster: {pools: {a: {gpu: l40s}}}",
            "x.yaml:2: gpu: is shorthand for one pool, and this scenario has cluster: ",
        ),
        ("seed: 1", "workload: 5", "x.yaml:10: workload: repeated key"),
        ("workload:\n", "workload: 5\nno:\n", "x.yaml:5: no: unknown key"),
    ],
)
def test_one_error_with_place_path_and_what_is_accepted(old: str, new: str, message: str) -> None:
    assert message in refused(swap(old, new))


def test_messages_have_one_line_even_for_hostile_values() -> None:
    message = refused(swap("seed: 1", 'seed: "a\\nb' + "x" * 5000 + '"'))
    assert message.startswith("x.yaml:10: seed: ") and len(message) < 300


def test_fp8_weights_need_no_fp8_arithmetic() -> None:
    """They are widened to bf16 on the way, as in vLLM's Marlin kernels."""
    text = swap("gpu: h100_sxm", "gpu: a100_sxm\nengine: {weight_dtype: fp8}")
    assert load_text(text).cluster.pools["main"].engine.weight_dtype == "fp8"
    assert load_text(text, overrides=["gpu.fp8_tflops=312"]).cluster.pools["main"].gpu.fp8_tflops == 312


def test_sharding_needs_a_link() -> None:
    gpu = "{name: own, memory_gib: 80, bf16_tflops: 100, memory_gb_per_s: 500, sms: 40}"
    text = swap("gpu: h100_sxm", f"gpu: {gpu}\nengine:\n  tensor_parallel_size: 2")
    assert refused(text) == "x.yaml:2: gpu.link_gb_per_s: missing; 2 GPUs of own need a link"


def test_warmup_ends_before_the_clock_stops() -> None:
    text = swap("num_requests: 10000", "duration_s: 10") + "warmup_s: 10\n"
    assert refused(text).startswith("x.yaml:11: warmup_s: must be less than workload.duration_s, 10, got 10")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=x", "--set seed=x: seed: must be a whole number from 0 to 4294967295, got 'x'"),
        ("seed=", "--set seed=: seed: "),
        (
            "workload.arrivals.rate_per_s=-1",
            "--set workload.arrivals.rate_per_s=-1: workload.arrivals.rate_per_s: must be",
        ),
        ("workload.num_requests.x=1", "--set workload.num_requests.x=1: workload.num_requests: is 10000 here"),
        ("policy.batch=5", "--set policy.batch=5: policy.batch: unknown key of the policy vllm; "),
        ("policy=vlm", "--set policy=vlm: policy: unknown policy 'vlm'; did you mean vllm?"),
        ("a.b.c=1", "--set a.b.c=1: a: unknown key; accepted: name,"),
        ("engine.max_model_len=999999", "--set engine.max_model_len=999999: engine.max_model_len: "),
        ("policies.a.batch_size=0", "--set policies.a.batch_size=0: policies.a.name: missing; accepted: "),
        (
            "workload.arrivals.name=closed_loop",
            "x.yaml:6: workload.arrivals.rate_per_s: unknown key of the arrival process closed_loop",
        ),
    ],
)
def test_errors_of_overrides_name_the_override(override: str, message: str) -> None:
    assert refused(BASE, override).startswith(message)


def test_overrides_work_on_what_is_not_written() -> None:
    overrides = [
        "policy.max_num_seqs=7", "gpu.memory_gib=60", "engine.block_size=32", "slo.ttft_ms=500", "cost.noise.sigma=0.1",
        "router=least_requests", "replicas=3", "workload.prompt_tokens={name: normal, mean: 50, std: 5}",
    ]  # fmt: skip
    scenario = load_text(
        swap("cost: {name: roofline, calibration: default, noise: {sigma: 0.05}}\n", ""), overrides=overrides
    )
    pool = scenario.cluster.pools["main"]
    assert (pool.policy.params["max_num_seqs"], pool.gpu.memory_gib, pool.engine.block_size, pool.replicas) == (
        7,
        60,
        32,
        3,
    )
    assert scenario.slo.ttft_ms == 500
    assert scenario.cost.params["noise"] == {"sigma": 0.1, "prefill_sigma": None}
    assert (
        load_text(swap("policy: vllm\n", ""), overrides=["policy=static"]).cluster.pools["main"].policy.name == "static"
    )


POLICIES = BASE + "policies:\n  small: {name: vllm, max_num_seqs: 8}\n  stat: {name: static, batch_size: 4000}\n"


def test_which_policy_runs() -> None:
    def pick(text: str, policy: str | None = None) -> Any:
        return load_text(text, policy=policy).cluster.pools["main"].policy

    unwritten = POLICIES.replace("policy: vllm\n", "")
    assert pick(POLICIES).params["max_num_seqs"] == 1024
    assert pick(unwritten).params["max_num_seqs"] == 8
    assert pick(POLICIES, "small").params["max_num_seqs"] == pick(unwritten, "small").params["max_num_seqs"] == 8
    assert pick(POLICIES, "static").params["batch_size"] == 32
    assert refused(POLICIES, policy="smal").endswith(
        "unknown policy 'smal'; did you mean small? accepted: small, stat, " + ", ".join(registered("policy"))
    )


def test_policies_are_checked_when_loaded_and_fitted_when_chosen() -> None:
    assert refused(POLICIES.replace("batch_size: 4000", "batch_size: 0")).startswith(
        "x.yaml:13: policies.stat.batch_size: "
    )
    text = POLICIES + "engine: {max_model_len: 8192}\n"
    message = "x.yaml:13: policies.stat: reserves 32768000 tokens of KV with max_model_len 8192"
    assert refused(text, policy="stat").startswith(message)
    scenario = load_text(text, "x.yaml")
    with pytest.raises(ScenarioError, match=r"x\.yaml:13: policies\.stat: reserves 32768000"):
        scenario.with_policy("stat")
    assert scenario.with_policy("small").cluster.pools["main"].policy.params["max_num_seqs"] == 8
    assert scenario.with_policy("vllm") == scenario
    assert refused(BASE + "engine: {max_model_len: 99999}\n", policy="static").startswith(
        "x.yaml:1: policy static: reserves "
    )
    with pytest.raises(ScenarioError, match=r"x\.yaml: unknown policy 'x'; accepted: small, stat, "):
        scenario.with_policy("x")


def test_rates() -> None:
    scenario = load_text(BASE, "x.yaml")
    assert scenario.with_rate(2.5).workload.arrivals.params["rate_per_s"] == 2.5
    assert scenario.with_rate(10) == scenario
    with pytest.raises(ScenarioError, match=r"x\.yaml:6: workload\.arrivals\.rate_per_s: must be a number over 0"):
        scenario.with_rate(0)
    closed = load_text(swap("poisson, rate_per_s: 10", "closed_loop, concurrency: 4"), "x.yaml")
    with pytest.raises(ScenarioError, match="closed_loop arrivals have no rate"):
        closed.with_rate(5)


LONG = """\
model: llama-3.1-8b
engine: {max_model_len: 8192, gpu_memory_utilization: 0.8}
policy: {name: vllm, max_num_seqs: 64}
workload:
  duration_s: 60
  arrivals: {name: gamma, rate_per_s: 4, burstiness: .inf}
  classes:
    chat:
      weight: 2
      prompt_tokens: {name: lognormal, mean: 512, cv: 1}
      output_tokens: 200
      slo: {ttft_ms: 500}
    code: {prompt_tokens: 4000, output_tokens: 20, max_tokens: 30, priority: -1}
cluster:
  router: least_requests
  pools:
    big:
      gpu: h200_sxm
      replicas: 2
      engine: {tensor_parallel_size: 2, max_model_len: 16384}
    small: {gpu: l40s, model: qwen2.5-7b, policy: static}
"""


def test_the_long_form_with_common_parts() -> None:
    scenario = load_text(LONG)
    big, small = scenario.cluster.pools["big"], scenario.cluster.pools["small"]
    assert (big.engine.tensor_parallel_size, big.engine.max_model_len, big.engine.gpu_memory_utilization) == (
        2,
        16384,
        0.8,
    )
    assert (small.model.name, small.policy.name, small.engine.max_model_len) == ("qwen2.5-7b", "static", 8192)
    assert big.policy.params["max_num_seqs"] == 64 and scenario.workload.classes["chat"].slo.ttft_ms == 500  # type: ignore[union-attr]
    assert load_text(scenario.to_yaml()) == scenario
    assert {pool.policy.name for pool in load_text(LONG, policy="vllm").cluster.pools.values()} == {"vllm"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_model_len: 8192", "max_model_len: 99999999", "x.yaml:2: engine.max_model_len: 99999999 tokens "),
        (
            "max_model_len: 16384",
            "max_model_len: 99999999",
            "x.yaml:20: cluster.pools.big.engine.max_model_len: 99999999",
        ),
        ("gpu: h200_sxm", "gpu: h20", "x.yaml:18: cluster.pools.big.gpu: unknown GPU 'h20'"),
        ("      gpu: h200_sxm\n", "", "x.yaml:17: cluster.pools.big.gpu: missing; "),
        ("model: llama-3.1-8b\n", "", "x.yaml:16: cluster.pools.big.model: missing; "),
        ("replicas: 2", "role: prefill", "x.yaml:19: cluster.pools.big.role: must be mixed, got 'prefill'"),
        ("replicas: 2", "replica: 2", "x.yaml:19: cluster.pools.big.replica: unknown key; did you mean replicas?"),
        ("    big:", "    b.g:", "x.yaml:17: cluster.pools.b.g: a label has"),
        ("router: least_requests", "routers: 1", "x.yaml:15: cluster.routers: unknown key; did you mean router?"),
        (
            "cv: 1",
            "cv: -1",
            "x.yaml:10: workload.classes.chat.prompt_tokens.cv: must be a number from 0 to 100, got -1",
        ),
        ("mean: 512", "mean: x", "x.yaml:10: workload.classes.chat.prompt_tokens.mean: must be a number over 0"),
        ("weight: 2", "weight: 0", "x.yaml:9: workload.classes.chat.weight: "),
        ("ttft_ms: 500", "ttft_ms: .inf", "x.yaml:12: workload.classes.chat.slo.ttft_ms: "),
        (
            "max_tokens: 30",
            "prefix: 30",
            "x.yaml:13: workload.classes.code.prefix: must be a mapping with the keys tokens",
        ),
        (
            "  duration_s: 60",
            "  duration_s: 60\n  prompt_tokens: 5",
            "x.yaml:6: workload.prompt_tokens: is shorthand for one class",
        ),
        ("burstiness: .inf", "burstiness: 0", "x.yaml:6: workload.arrivals.burstiness: must be a number over 0, got 0"),
        (
            "policy: static",
            "policy: {name: static, batch_size: 0}",
            "x.yaml:21: cluster.pools.small.policy.batch_size: ",
        ),
    ],
)
def test_errors_in_the_long_form(old: str, new: str, message: str) -> None:
    assert old in LONG
    assert refused(LONG.replace(old, new)).startswith(message)


def test_files_and_paths(tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n1,2,3\n", encoding="utf-8")
    file = tmp_path / "hour.yaml"
    file.write_text(
        "model: qwen3-14b\ngpu: h100_sxm\nworkload:\n  arrivals: {name: trace, file: traces/t.csv}\n", encoding="utf-8"
    )
    scenario = load(file)
    assert scenario.name == "hour" and scenario.resolve("traces/t.csv") == tmp_path / "traces" / "t.csv"
    assert "file: traces/t.csv" in scenario.to_yaml() and str(tmp_path) not in scenario.to_yaml()
    with pytest.raises(ScenarioError) as caught:
        load(file, ["workload.arrivals.file=none.csv"])
    assert str(caught.value) == "--set workload.arrivals.file=none.csv: workload.arrivals.file: no such file: none.csv"
    with pytest.raises(ScenarioError, match="no such file"):
        load(tmp_path / "none.yaml")


COMPONENTS = st.one_of(
    st.integers(1, 10**6),
    st.builds(
        lambda a, b: {"name": "uniform", "min": min(a, b), "max": max(a, b)}, st.integers(1, 999), st.integers(1, 999)
    ),
    st.builds(lambda m, c: {"name": "lognormal", "mean": m, "cv": c, "max": 9999}, st.floats(1, 9999), st.floats(0, 9)),
    st.builds(lambda m, s: {"name": "normal", "mean": m, "std": s, "min": 1}, st.floats(1, 9999), st.floats(0, 1e-9)),
)
RATES = st.floats(1e-3, 1e6)
ARRIVALS = st.one_of(
    st.just("batch"),
    st.builds(lambda r: {"name": "poisson", "rate_per_s": r}, RATES),
    st.builds(
        lambda r, b: {"name": "gamma", "rate_per_s": r, "burstiness": b},
        RATES,
        st.sampled_from([0.5, 1e-5, float("inf")]),
    ),
    st.builds(
        lambda c, t: {"name": "closed_loop", "concurrency": c, "think_time_s": t}, st.integers(1, 99), st.floats(0, 1e9)
    ),
)
POLICY = st.one_of(
    st.sampled_from(["vllm", "static"]),
    st.builds(
        lambda n, w: {"name": "vllm", "max_num_seqs": n, "watermark": w}, st.integers(1, 1024), st.floats(0, 0.9)
    ),
    st.builds(lambda n: {"name": "static", "batch_size": n}, st.integers(1, 64)),
)
SCENARIOS = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["llama-3.1-8b", "qwen2.5-7b", {"name": "mistral-7b", "vocab_size": 1000}]),
        "gpu": st.sampled_from(["h100_sxm", "b200_sxm", {"name": "l40s", "memory_gib": 48.5}]),
        "workload": st.fixed_dictionaries(
            {
                "num_requests": st.integers(1, 10**9),
                "arrivals": ARRIVALS,
                "prompt_tokens": COMPONENTS,
                "output_tokens": COMPONENTS,
            },
            optional={"ignore_eos": st.booleans(), "duration_s": st.floats(1e-9, 1e9), "priority": st.integers(-5, 5)},
        ),
    },
    optional={
        "name": st.text(min_size=1, max_size=20).filter(lambda t: t.isprintable()),
        "seed": st.integers(0, 2**32 - 1),
        "policy": POLICY,
        "policies": st.dictionaries(st.text("abc-_019", min_size=1, max_size=5), POLICY, max_size=3),
        "slo": st.fixed_dictionaries({}, optional={"ttft_ms": st.floats(1e-6, 1e9), "tpot_ms": st.integers(1, 100)}),
        "engine": st.fixed_dictionaries(
            {}, optional={"block_size": st.sampled_from([1, 16, 64]), "enable_prefix_caching": st.booleans()}
        ),
        "cost": st.sampled_from([{"name": "linear", "base_s": 1e-5, "noise": {"sigma": 0.1}}, "roofline"]),
        "replicas": st.integers(1, 100),
        "fast_forward": st.booleans(),
    },
)


@settings(deadline=None, max_examples=150)
@given(SCENARIOS)
def test_the_long_form_loads_as_an_equal_scenario(data: dict[str, Any]) -> None:
    scenario = load_text(yaml.safe_dump(data))
    text = scenario.to_yaml()
    again = load_text(text, "elsewhere/scenario.yaml")
    assert again == scenario and again.to_yaml() == text
    assert isinstance(again, Scenario)


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=80), st.integers(0, len(BASE)), st.integers(0, 40))
def test_whatever_is_written_is_loaded_or_refused_in_one_line(text: str, at: int, cut: int) -> None:
    try:
        load_text(BASE[:at] + text + BASE[at + cut :], "x.yaml")
    except ScenarioError as error:
        assert "\n" not in str(error) and str(error).startswith("x.yaml:")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "mean", "a"]), inner, max_size=2)
    ),
    max_leaves=4,
)
PATHS = st.sampled_from(
    (
        "model gpu gpu.sms policy policy.name policies "
        "policies.a workload workload.arrivals workload.arrivals.name workload.classes workload.classes.a "
        "workload.prompt_tokens cluster cluster.pools cluster.pools.a cost cost.noise "
        "slo engine engine.block_size router name seed "
        "replicas workload.num_requests cluster.router "
    ).split()
)


@settings(deadline=None, max_examples=400)
@given(PATHS, VALUES)
def test_whatever_stands_at_a_key_is_loaded_or_refused_in_one_line(path: str, value: Any) -> None:
    try:
        load_text(BASE, "x.yaml", [f"{path}={json.dumps(value)}"])
    except ScenarioError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500


def test_check_prints_the_sizes() -> None:
    scenario = load_text(BASE, "x.yaml")
    data = json.loads(check(scenario, as_json=True))
    assert (data["kv_blocks"], data["kv_tokens"], data["max_model_len"]) == (27483, 439728, 131072)
    keys = {"kv_blocks", "kv_tokens", "kv_gib", "weights_gib", "activations_gib", "max_model_len", "max_concurrency"}
    assert keys < set(data) and keys < set(data["pools"]["main"]) and data["pools"]["main"]["usable_blocks"] == 27482
    text = check(scenario)
    assert "GPU KV cache size: 439,728 tokens" in text and "131,072 tokens per request: 3.35x" in text
    assert "warning: max_model_len lowered" in check(scenario.with_policy("static"))
    assert set(json.loads(check(load_text(LONG), as_json=True))["pools"]) == {"big", "small"}


def test_the_listing_names_everything_with_its_parameters() -> None:
    data = json.loads(listing(as_json=True))
    for heading, expected in {
        "policies": {"static", "vllm"},
        "orders": {"fcfs", "fair", "mlfq"},
        "routers": {"round_robin", "least_requests"},
        "arrivals": {"poisson", "gamma", "constant", "batch", "closed_loop", "trace"},
        "lengths": {"fixed", "uniform", "normal", "lognormal", "exponential"},
        "costs": {"roofline", "linear"},
        "models": {"llama-2-70b", "llama-3.1-405b", "qwen3-32b"},
        "gpus": {"h100_sxm", "l40s"},
        "calibrations": {"default", "ideal"},
    }.items():
        assert expected <= {row["name"] for row in data[heading]}, heading
    poisson = next(row for row in data["arrivals"] if row["name"] == "poisson")
    assert poisson["parameters"][0] == {
        "name": "rate_per_s", "type": "a number over 0 and at most 1000000", "default": None, "required": True,
        "help": "mean arrivals per second",
    }  # fmt: skip
    text = listing()
    assert "closed_loop" in text and "think_time_s: a number from 0 to 1000000000; default 0.0;" in text


def test_results_keep_the_label_of_their_policy() -> None:
    """Also where the resolved scenario is run again, which holds all policies and the one that ran."""
    text = """
model: llama-3.1-8b
gpu: h100_sxm
policies: {static: {name: static}, small: {name: vllm, max_num_batched_tokens: 2048}, vllm: vllm}
workload: {num_requests: 5, arrivals: batch, prompt_tokens: 10, output_tokens: 10}
"""
    assert load_text(text).policy_label == "static"
    for label in ("static", "small", "vllm"):
        chosen = load_text(text).with_policy(label)
        assert chosen.policy_label == load_text(text, policy=label).policy_label == label
        assert load_text(chosen.to_yaml()).policy_label == label


def test_a_batch_needs_its_number() -> None:
    text = """
model: llama-3.1-8b
gpu: h100_sxm
workload: {duration_s: 2, arrivals: batch, prompt_tokens: 10, output_tokens: 10}
"""
    with pytest.raises(ScenarioError, match=r"workload.num_requests: missing; all requests of a batch come at once"):
        load_text(text)
