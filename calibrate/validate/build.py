"""From a measured row to scenarios: the stated assumption first, then the others that may have held."""

from __future__ import annotations

import copy
import csv
import re
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from sim import gpus, models

from .campaigns import FIRST_ASYNC, FIRST_UNIFIED, LAST_SORTING, Campaign, campaign_of, version_of
from .names import Skip, accepted, cache_of, gpu_of, model_of, policy_of, weights_of
from .rows import Row

BLOCK = 16  # tokens; the blocks that rows count
PROMPTS = 100  # distinct ones of the BLIS rows
MOST_SPREAD = 2048  # tokens; what ShareGPT's samples are cut to
UNSPLIT = 8192  # tokens of a step in engines that do not split prompts
TRACE = "trace.csv"  # what a scenario calls the trace that is written beside it
Scenario = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is simulated for a row."""

    row: Row
    campaign: Campaign
    gpu: str
    kernels: str  # the engine whose calibration prices the steps
    scenario: Scenario
    trace: str | None = None  # CSV text, to be written as `TRACE`
    assumed: tuple[str, ...] = ()  # what this row, beyond its campaign, left open
    alternatives: dict[str, Scenario] = field(default_factory=dict)  # label: the scenario under it


def build(row: Row) -> Plan:
    """The plan of a row; Skip with the reason if it cannot be simulated."""
    campaign = campaign_of(row)
    gpu, model = gpu_of(row.gpu), model_of(row.model)
    weights, weights_stated = weights_of(row.weight_dtype, gpu)
    cache = cache_of(row.kv_dtype)
    _refuse_parallelism(row)
    version = version_of(row, campaign)
    old = row.engine == "vllm" and version is not None and version < FIRST_UNIFIED
    policy, kernels = policy_of("vllm_v0" if old else row.engine)
    assumed = []
    if not weights_stated:
        assumed.append(f"weights in {weights}: the row does not say")
    if cache is None:
        cache = campaign.kv_by_gpu.get(gpu, campaign.kv_dtype)
        assumed.append(f"KV in {cache}: the row does not say")
    engine: dict[str, Any] = {
        "tensor_parallel_size": row.tp,
        "weight_dtype": weights,
        "kv_cache_dtype": cache,
        "gpu_memory_utilization": _share(row.notes) or campaign.memory_share,
        "enable_prefix_caching": campaign.lengths == "shared" and row.prefix_caching != "off",
    }
    if old:  # whole prompts, so none may be longer than a step
        engine["max_model_len"] = min(UNSPLIT, models.parse(model).max_position_embeddings or UNSPLIT)
    if (blocks := row.kv_blocks or (row.kv_tokens or 0) // BLOCK) > 1:
        engine["num_gpu_blocks_override"] = blocks
    if row.engine == "vllm" and version is not None and FIRST_UNIFIED <= version <= LAST_SORTING:
        engine["sampler"] = "sort"
    trace, workload = _workload(row, campaign)
    scenario = {
        "name": row.run_id[:200],
        "model": model,
        "gpu": gpu,
        "engine": engine,
        "policy": {"name": policy, **accepted(policy, _parameters(row, campaign, gpu, version, old))},
        "workload": workload,
    }
    alternatives = {}
    fp8 = gpus.parse(gpu).fp8_tflops is not None
    for other in campaign.kv_alternatives if cache_of(row.kv_dtype) is None else ():
        if other != cache and (fp8 or other != "fp8"):
            alternatives[f"kv_dtype={other}"] = _changed(scenario, kv_cache_dtype=other)
    if not weights_stated and fp8:
        alternatives["weight_dtype=fp8"] = _changed(scenario, weight_dtype="fp8")
    return Plan(row, campaign, gpu, kernels, scenario, trace, tuple(assumed), alternatives)


def _refuse_parallelism(row: Row) -> None:
    for degree, what in ((row.dp, "data"), (row.pp, "pipeline"), (row.ep, "expert")):
        if (degree or 1) > 1:
            raise Skip(f"{what} parallelism over {degree} GPUs cannot be simulated yet")
    if row.num_gpus is not None and row.num_gpus > row.tp:
        raise Skip("more GPUs than tensor parallelism uses: data or expert parallelism cannot be simulated yet")


def _share(notes: str) -> float | None:
    """gpu_memory_utilization, where the notes have it."""
    found = re.search(r"gpu_mem(?:ory)?_util(?:ization)?[=\s]+(0?\.\d+|1\.0)", notes)
    return float(found[1]) if found else None


def _parameters(row: Row, campaign: Campaign, gpu: str, version: tuple[int, int] | None, old: bool) -> dict[str, Any]:
    """Parameters of whatever policy it will be; those that it does not have are left out."""
    clients = row.concurrency if campaign.seqs_are_clients else None
    seqs = row.max_num_seqs or (campaign.seqs_by_gpu.get(gpu, clients) if row.engine == "vllm" else clients)
    tokens = row.max_num_batched_tokens or campaign.tokens
    if row.engine == "vllm":
        wanted = campaign.async_scheduling
        asynchronous = wanted if wanted is not None else version is None or version >= FIRST_ASYNC
        found = {"max_num_seqs": seqs, "max_num_batched_tokens": tokens, "async_scheduling": asynchronous}
        return {**found, "max_num_seqs": seqs or 256, "enable_chunked_prefill": False} if old else found
    wait = row.engine == "trtllm" and row.isl_mean == row.osl_mean == 1024 and row.tp < 8 and campaign.seqs_are_clients
    return {
        "max_batch_size": seqs,
        "max_num_tokens": tokens,
        "max_num_batched_tokens": tokens,
        "max_running_requests": seqs,
        "max_num_seqs": seqs,
        **({"batch_wait_timeout_iters": 20, "batch_wait_max_tokens_ratio": 0.9} if wait else {}),
        **campaign.policy.get(row.engine, {}),
    }


def _workload(row: Row, campaign: Campaign) -> tuple[str | None, dict[str, Any]]:
    """(CSV text of a trace if there is one, the scenario's workload)."""
    if row.isl_mean is None or row.osl_mean is None:
        raise Skip("its prompt and output lengths are not published")
    prompt, output = _lengths(row.isl_mean, row.osl_mean, campaign.lengths)
    workload: dict[str, Any] = {"ignore_eos": True, "prompt_tokens": prompt, "output_tokens": output}
    rate, clients, number = row.request_rate_rps, row.concurrency, row.num_requests
    if campaign.lengths == "shared":
        workload["prefix"] = {"tokens": prompt, "groups": PROMPTS}
    if campaign.lengths == "trace":
        return _traced(row, workload)
    if "batch" in row.arrival or (rate is not None and not isfinite(rate)):
        number = number or clients
        if number is None:
            raise Skip("how many requests there were is not published")
        return None, {**workload, "num_requests": number, "arrivals": "batch"}
    if clients is not None and ("closed" in row.arrival or rate is None):
        arrivals: Any = {"name": "closed_loop", "concurrency": clients}
        number = number or campaign.prompts_per_client * clients
    elif rate is not None:
        arrivals = {"name": "constant" if "constant" in row.arrival else "poisson", "rate_per_s": rate}
        number = number or max(1, round(rate * (row.duration_s or 600.0)))
    else:
        raise Skip("neither its request rate nor its concurrency is published")
    return None, {**workload, "num_requests": number, "arrivals": arrivals}


def _lengths(prompt: float, output: float, kind: str) -> tuple[Any, Any]:
    if kind == "uniform_80":
        low, high = (max(1, int(0.8 * prompt)), max(1, int(0.8 * output))), (round(prompt), round(output))
        return tuple({"name": "uniform", "min": a, "max": max(a, b)} for a, b in zip(low, high, strict=True))  # type: ignore[return-value]
    if kind == "spread":
        return tuple(
            {"name": "lognormal", "mean": mean, "cv": cv, "max": max(MOST_SPREAD, round(4 * mean))}
            for mean, cv in ((prompt, 1.2), (output, 1.0))
        )  # type: ignore[return-value]
    return max(1, round(prompt)), max(1, round(output))


def _traced(row: Row, workload: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A recorded trace: the replica's share of it, every n-th request; scaled to the row's means."""
    named = re.search(r"(\S+\.csv)", row.length_dist)
    slice_of = re.search(r"(\d+)DP\d+TP\w*?_(\d+)\)", row.length_dist)
    if named is None:
        raise Skip("its trace is not named")
    paths = [folder / named[1] for folder in (row.folder, row.folder.parent, row.folder.parent.parent)]
    path = next((each for each in paths if each.is_file()), None)
    if path is None:
        raise Skip(f"its trace {named[1]} is not there")
    found = _read_trace(path)
    if slice_of is not None:
        found = found[int(slice_of[2]) :: int(slice_of[1])]
    assert row.isl_mean is not None and row.osl_mean is not None
    means = [sum(each[at] for each in found) / len(found) for at in (1, 2)]
    scales = row.isl_mean / means[0], row.osl_mean / means[1]
    lines = [
        f"{at:.6f},{max(1, round(prompt * scales[0]))},{max(1, round(output * scales[1]))}"
        for at, prompt, output in found
    ]
    text = "\n".join(["arrival_s,prompt_tokens,output_tokens", *lines, ""])
    number = row.num_requests or len(found)
    if number == len(found):
        return text, {"ignore_eos": True, "arrivals": {"name": "trace", "file": TRACE}}
    if row.request_rate_rps is None:  # the run had other requests than the file: lengths of the file, Poisson
        raise Skip("its trace has another number of requests, and its rate is not published")
    lengths = {"name": "empirical", "file": TRACE}
    arrivals = {"name": "poisson", "rate_per_s": row.request_rate_rps}
    return text, {"ignore_eos": True, "num_requests": number, "arrivals": arrivals, "lengths": lengths}


def _read_trace(path: Path) -> list[tuple[float, int, int]]:
    """(arrival, s; prompt tokens; output tokens) of a trace whose times are ns."""
    try:
        with path.open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        return [(int(r["StartTimeOffset"]) / 1e9, int(r["ContextTokens"]), int(r["GeneratedTokens"])) for r in rows]
    except (OSError, KeyError, ValueError, TypeError):
        raise Skip(f"its trace {path.name} cannot be read") from None


def _changed(scenario: Scenario, **engine: Any) -> Scenario:
    changed = copy.deepcopy(scenario)
    changed["engine"].update(engine)
    if "kv_cache_dtype" in engine:
        changed["engine"].pop("num_gpu_blocks_override", None)  # the blocks are those of the stated dtype
    return changed
