"""What to type to measure on real GPUs what was simulated: `vllm serve` and `vllm bench serve`, from the scenario.

Fixed and uniform lengths are random prompts to vLLM's benchmark, and Poisson, gamma and constant arrivals a rate. What
is neither is replayed from a file of the simulated requests (`replay`). What cannot be expressed, a comment says.
"""

import shlex
from collections.abc import Sequence
from typing import Any

from .load import name_of
from .plots.style import rates_of
from .replay import chunk_tokens
from .variants import Variant

HUGGING_FACE = {
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "llama-2-13b": "meta-llama/Llama-2-13b-hf",
    "llama-2-70b": "meta-llama/Llama-2-70b-hf",
    "llama-3-8b": "meta-llama/Meta-Llama-3-8B-Instruct",
    "llama-3-70b": "meta-llama/Meta-Llama-3-70B-Instruct",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "llama-3.1-70b": "meta-llama/Llama-3.1-70B-Instruct",
    "llama-3.1-405b": "meta-llama/Llama-3.1-405B-Instruct",
    "llama-3.2-1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama-3.2-3b": "meta-llama/Llama-3.2-3B-Instruct",
    "llama-3.3-70b": "meta-llama/Llama-3.3-70B-Instruct",
    "codellama-34b": "codellama/CodeLlama-34b-Instruct-hf",
    "mistral-7b": "mistralai/Mistral-7B-Instruct-v0.3",
    "mistral-nemo-12b": "mistralai/Mistral-Nemo-Instruct-2407",
    "mixtral-8x7b": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "opt-13b": "facebook/opt-13b",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "qwen2.5-14b": "Qwen/Qwen2.5-14B-Instruct",
    "qwen2.5-32b": "Qwen/Qwen2.5-32B-Instruct",
    "qwen2.5-72b": "Qwen/Qwen2.5-72B-Instruct",
    "qwen3-4b": "Qwen/Qwen3-4B",
    "qwen3-8b": "Qwen/Qwen3-8B",
    "qwen3-14b": "Qwen/Qwen3-14B",
    "qwen3-32b": "Qwen/Qwen3-32B",
    "qwen3-30b-a3b": "Qwen/Qwen3-30B-A3B",
    "yi-34b": "01-ai/Yi-34B-Chat",
}
Scenario = dict[str, Any]


RATES = ("poisson", "gamma", "constant")
NO_RATE = ("closed_loop", "batch")


def replayed(found: Sequence[Variant]) -> Variant | None:
    """Of which variant the benchmark needs the requests as a file; None where it does without."""
    first = next((variant for variant in found if _is_vllm(variant)), None)
    return first if first is not None and _from_file(first.first.scenario) else None


def commands(found: Sequence[Variant], file: str = "requests.jsonl") -> list[str]:
    """Shell text: a server for each of vLLM's policies, then the load; empty where no policy is vLLM's.

    `file` is where the requests of `replayed` are written.
    """
    servers: dict[str, str] = {}
    for variant in found:
        if _is_vllm(variant):
            servers.setdefault(variant.label, _serve(_pools(variant.first.scenario)[0]))
    if not servers:
        return []
    told = []
    for text in dict.fromkeys(servers.values()):
        labels = [label for label, other in servers.items() if other == text]
        told.append((f"# {', '.join(labels)}\n" if len({v.label for v in found}) > 1 else "") + text)
    first = next(variant for variant in found if variant.label in servers)
    return [*told, _bench(first, [rate for rate in rates_of(found) if rate is not None], file)]


def _is_vllm(variant: Variant) -> bool:
    pools = _pools(variant.first.scenario)
    return len(pools) == 1 and name_of(pools[0].get("policy")) == "vllm"


def _pools(scenario: Scenario) -> list[Scenario]:
    return list((scenario.get("cluster") or {}).get("pools", {}).values())


def _model(pool: Scenario) -> tuple[str, str]:
    """(what vLLM calls the model, a comment where that is not known)."""
    name = name_of(pool.get("model")) or "MODEL"
    known = HUGGING_FACE.get(name)
    return known or name, "" if known else f"# {name}: put the model's Hugging Face name or folder here\n"


def _serve(pool: Scenario) -> str:
    engine, policy = pool.get("engine") or {}, pool.get("policy") or {}
    policy = policy if isinstance(policy, dict) else {}
    model, comment = _model(pool)
    weights, cache = engine.get("weight_dtype", "bf16"), engine.get("kv_cache_dtype", "auto")
    words: list[tuple[str, Any]] = [("--tensor-parallel-size", engine.get("tensor_parallel_size", 1))]
    if int(pool.get("replicas") or 1) > 1:
        words.append(("--data-parallel-size", pool["replicas"]))
        comment += "# its own load balancing stands for the scenario's router\n"
    words += [("--dtype", "bfloat16"), ("--quantization", None if weights == "bf16" else weights)]
    words.append(("--kv-cache-dtype", None if cache in ("auto", "bf16") else cache))
    words.append(("--gpu-memory-utilization", engine.get("gpu_memory_utilization")))
    words += [(_option(key), engine.get(key)) for key in ("max_model_len", "block_size", "num_gpu_blocks_override")]
    words.append(("--kv-cache-memory-bytes", engine.get("kv_cache_memory_bytes")))
    words += [(_option(key), policy.get(key)) for key in ("max_num_seqs", "max_num_batched_tokens")]
    if policy.get("scheduling_policy", "fcfs") != "fcfs":
        words.append(("--scheduling-policy", policy["scheduling_policy"]))
    words.append(("--long-prefill-token-threshold", policy.get("long_prefill_token_threshold") or None))
    flags = [_option(key, engine.get(key, True)) for key in ("enable_prefix_caching",)]
    flags += [_option(key, policy.get(key, True)) for key in ("enable_chunked_prefill", "async_scheduling")]
    return comment + _joined(["vllm serve", shlex.quote(model)], words, flags)


def _bench(variant: Variant, rates: Sequence[float], file: str) -> str:
    scenario, summary = variant.first.scenario, variant.first.summary
    workload, arrivals = scenario.get("workload") or {}, _arrivals(scenario)
    model, _ = _model(_pools(scenario)[0])
    notes: list[str] = []
    several = len(rates) > 1
    lengths: list[tuple[str, Any]]
    if _from_file(scenario):
        lengths = [("--dataset-name", "timed_trace"), ("--dataset-path", shlex.quote(file))]
        lengths.append(("--timed-trace-chunk-hash-size", chunk_tokens(scenario)))
        notes.append(f"{file}, beside the report, has the simulated requests: when each comes, and its lengths")
        _say_of_prefixes(workload, notes)
        count = summary.get("requests")
    else:
        lengths = _random(_lengths(workload), workload, notes)
        count = workload.get("num_requests") or summary.get("requests")
    own_times = arrivals.get("name") not in (*RATES, *NO_RATE)
    scales = [f"{float(variant.rate_per_s or rates[0]) / rate:.6g}" for rate in rates] if several else []
    if own_times:
        load: list[tuple[str, Any]] = [("--timed-trace-sec-multiplier", "$scale" if several else 1)]
        if several and arrivals.get("name") != "trace":
            notes.append(f"other rates send the {arrivals.get('name')} arrivals of the first, faster or slower")
    else:
        load = _load(arrivals, summary, several, notes)
    limits = scenario.get("slo") or {}
    names = {"ttft_ms": "ttft", "tpot_ms": "tpot", "e2e_ms": "e2el"}
    goodput = " ".join(f"{names[key]}:{limits[key]:g}" for key in names if limits.get(key) is not None)
    words = [*lengths, ("--num-prompts", count), *load, ("--goodput", goodput or None)]
    words += [("--percentile-metrics", "ttft,tpot,itl,e2el"), ("--metric-percentiles", "50,90,95,99")]
    words.append(("--seed", scenario.get("seed", 0)))
    flags = ["--self-timed"] if own_times else []
    flags += ["--disable-shuffle"] if _from_file(scenario) else []
    flags.append("--ignore-eos")
    if not workload.get("ignore_eos"):
        notes.append("random tokens have no natural end: --ignore-eos keeps the output lengths")
    text = _joined(["vllm bench serve", f"--model {shlex.quote(model)}"], words, flags)
    if several:
        text = text.replace("\n", "\n  ")
        each = f"scale in {' '.join(scales)}" if own_times else f"rate in {' '.join(f'{rate:g}' for rate in rates)}"
        text = f"for {each}; do\n  {text}\ndone"
    return "".join(f"# {note}\n" for note in notes) + text


def _arrivals(scenario: Scenario) -> Scenario:
    arrivals = (scenario.get("workload") or {}).get("arrivals") or {}
    return arrivals if isinstance(arrivals, dict) else {"name": arrivals}


def _from_file(scenario: Scenario) -> bool:
    own_times = _arrivals(scenario).get("name") not in (*RATES, *NO_RATE)
    return own_times or not _lengths(scenario.get("workload") or {})


def _load(arrivals: Scenario, summary: Scenario, several: bool, notes: list[str]) -> list[tuple[str, Any]]:
    """When requests are sent, where that is a rate or a number of users."""
    name, rate = arrivals.get("name"), arrivals.get("rate_per_s")
    if name == "closed_loop":
        if arrivals.get("think_time_s"):
            notes.append("vLLM's benchmark has no think time between answer and next request")
        return [("--request-rate", "inf"), ("--max-concurrency", arrivals.get("concurrency"))]
    if name == "batch":
        return [("--request-rate", "inf")]
    burstiness = arrivals.get("burstiness") if name == "gamma" else None
    if name == "constant" or burstiness == float("inf"):
        burstiness = 1_000_000
    if rate is None:
        rate = summary.get("rate_per_s") or summary.get("arrival_rate_per_s")
    shown = "$rate" if several else f"{rate:.4g}" if rate is not None else "inf"
    return [("--request-rate", shown), ("--burstiness", burstiness)]


def _lengths(workload: Scenario) -> list[tuple[int, float]]:
    """(middle, half width by middle) of the prompts' and the outputs' lengths; empty if not both fixed or uniform."""
    classes = list((workload.get("classes") or {}).values())
    found = []
    for key in ("prompt_tokens", "output_tokens"):
        law = classes[0].get(key) if len(classes) == 1 else None
        if isinstance(law, int):
            law = {"name": "fixed", "tokens": law}
        if not isinstance(law, dict):
            return []
        if law.get("name") == "fixed":
            found.append((int(law["tokens"]), 0.0))
        elif law.get("name") == "uniform" and law.get("min") is not None:
            middle = (law["min"] + law["max"]) / 2
            found.append((round(middle), round((law["max"] - middle) / middle, 4) if middle else 0.0))
        else:
            return []
    return found


def _random(lengths: Sequence[tuple[int, float]], workload: Scenario, notes: list[str]) -> list[tuple[str, Any]]:
    """Random prompts of these lengths, behind a shared prefix if there is one."""
    (prompt, prompt_width), (output, output_width) = lengths
    prefix = next(iter(workload["classes"].values())).get("prefix")
    dataset: list[tuple[str, Any]] = [("--random-input-len", prompt)]
    if prefix and prompt:
        shared = min(int(prefix["tokens"]), int(prompt) - 1)
        _say_of_prefixes(workload, notes, "one shared prefix instead of {groups}")
        dataset = [("--random-prefix-len", shared), ("--random-input-len", prompt - shared)]
    ratio: Any = prompt_width if prompt_width == output_width else None
    if ratio is None:
        ratio = shlex.quote(f'{{"input": {prompt_width:g}, "output": {output_width:g}}}')
    return [
        ("--dataset-name", "random"),
        *dataset,
        ("--random-output-len", output),
        ("--random-range-ratio", ratio or None),
    ]


def _say_of_prefixes(
    workload: Scenario, notes: list[str], text: str = "the {groups} shared prefixes are not in it, so nothing is cached"
) -> None:
    for kind in (workload.get("classes") or {}).values():
        prefix = kind.get("prefix")
        groups = int(prefix.get("groups") or 1) if prefix else 0
        if groups > 1 or (groups and len(workload["classes"]) > 1):
            notes.append(text.format(groups=groups))
            return


def _option(key: str, on: bool = True) -> str:
    return f"--{'' if on else 'no-'}{key.replace('_', '-')}"


def _joined(start: list[str], words: Sequence[tuple[str, Any]], flags: Sequence[str]) -> str:
    """Options in lines of a readable width, each line but the last continued."""
    parts = [f"{name} {value}" for name, value in words if value is not None] + list(flags)
    lines, line = [], " ".join(start)
    for part in parts:
        if len(line) + len(part) > 92:
            lines.append(line)
            line = f"    {part}"
        else:
            line += f" {part}"
    return " \\\n".join([*lines, line])
