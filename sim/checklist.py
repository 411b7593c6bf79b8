"""What `check` and `list` print: a scenario's derived sizes, and everything that a scenario may name.

JSON is for programs: one object, keys as documented in the functions. Text is for people.
"""

import json
from typing import Any

from . import consistency, gpus, models, registry
from .cost import find_calibration, packaged
from .gpus import GPU
from .memory import KVSizes
from .models import Model
from .scenario import Scenario
from .workload import make_source

SIZES = ("kv_blocks", "kv_tokens", "kv_gib", "weights_gib", "activations_gib", "max_model_len", "max_concurrency")
HEADINGS = {
    "policy": "policies",
    "order": "orders",
    "router": "routers",
    "arrivals": "arrivals",
    "lengths": "lengths",
    "length_pairs": "length_pairs",
    "cost": "costs",
}


def check(scenario: Scenario, as_json: bool = False) -> str:
    """The sizes of each pool's KV cache, and warnings; the scenario was checked when it was loaded.

    JSON: name, warnings, pools {label: {replicas, gpu, model, policy, usable_blocks and `SIZES`}}; the first pool's
    sizes stand at the top too. GiB per GPU; kv_blocks and kv_tokens as vLLM prints them, null block included.
    """
    pools = consistency.check(scenario)
    warnings = [text for pool in pools.values() for text in pool.sizes.warnings] + list(make_source(scenario).warnings)
    if not as_json:
        parts = [f"{scenario.name}: ok"]
        for label, checked in pools.items():
            pool = scenario.cluster.pools[label]
            gpus_of = f"{pool.engine.tensor_parallel_size} x {pool.gpu.name}"
            parts.append(f"pool {label}: {pool.replicas} x {pool.policy.name}, {pool.model.name} on {gpus_of}")
            parts += [f"  {line}" for line in size_lines(checked.sizes)]
        return "\n".join(parts + [f"warning: {text}" for text in warnings])
    rows: dict[str, dict[str, Any]] = {}
    for label, checked in pools.items():
        pool = scenario.cluster.pools[label]
        facts = {"replicas": pool.replicas, "gpu": pool.gpu.name, "model": pool.model.name, "policy": pool.policy.name}
        rows[label] = {**facts, **sizes_of(checked.sizes), "usable_blocks": checked.sizes.num_gpu_blocks}
    first = next(iter(pools.values()))
    return json.dumps({"name": scenario.name, **sizes_of(first.sizes), "warnings": warnings, "pools": rows}, indent=2)


def sizes_of(sizes: KVSizes) -> dict[str, float]:
    return {key: getattr(sizes, key) for key in SIZES}


def size_lines(sizes: KVSizes) -> list[str]:
    """A pool's sizes for the terminal, the last two as vLLM prints them at its start."""
    return [
        f"GiB per GPU: weights {sizes.weights_gib:.2f}, activations {sizes.activations_gib:.2f}, KV {sizes.kv_gib:.2f}",
        f"KV blocks: {sizes.kv_blocks:,} of {sizes.block_size} tokens, the null block among them",
        f"GPU KV cache size: {sizes.kv_tokens:,} tokens",
        f"Maximum concurrency for {sizes.max_model_len:,} tokens per request: {sizes.max_concurrency:.2f}x",
    ]


def listing(as_json: bool = False) -> str:
    """Every policy, order, router, arrival process, length distribution, cost model, model, GPU and calibration.

    JSON: for each heading a list of {name, help, parameters [{name, type, default, required, help}]}, or the values
    of a model or GPU.
    """
    data = {heading: [_component(kind, name) for name in registry.names(kind)] for kind, heading in HEADINGS.items()}
    known_models = [models.parse(name).model_dump() for name in models.names()]
    known_gpus = [gpus.parse(name).model_dump() for name in gpus.names()]
    if as_json:
        keys = {"model_parameters": registry.rows(Model), "gpu_parameters": registry.rows(GPU)}
        everything = {**data, "models": known_models, "gpus": known_gpus, "calibrations": _calibrations(), **keys}
        return json.dumps(everything, indent=2)
    lines = []
    for heading, rows in data.items():
        lines += [heading, *(line for row in rows for line in _lines(row)), ""]
    lines += ["models", *(f"  {row['name']:<18}{_model_line(row)}" for row in known_models)]
    lines += ["  a mapping has", *_lines({"parameters": registry.rows(Model)}), ""]
    lines += ["gpus", *(f"  {row['name']:<18}{_gpu_line(row)}" for row in known_gpus)]
    lines += ["  a mapping has", *_lines({"parameters": registry.rows(GPU)}), ""]
    lines += ["calibrations", *(f"  {row['name']:<18}{row['help']}" for row in _calibrations())]
    return "\n".join(lines)


def _component(kind: str, name: str) -> dict[str, Any]:
    cls = registry.get(kind, name)
    return {"name": name, "help": registry.help_line(cls), "parameters": registry.parameters(cls)}


def _lines(row: dict[str, Any]) -> list[str]:
    lines = [f"  {row['name']:<18}{row['help']}"] if "name" in row else []
    for parameter in row["parameters"]:
        default = "required" if parameter["required"] else f"default {_word(parameter['default'])}"
        lines.append(f"    {parameter['name']}: {parameter['type']}; {default}; {parameter['help']}".rstrip("; "))
    return lines


def _word(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def _model_line(row: dict[str, Any]) -> str:
    size = models.parse(row["name"]).num_parameters / 1e9
    heads = f"{row['num_attention_heads']}/{row['num_key_value_heads']} heads of {row['head_dim']}"
    layers, context = row["num_hidden_layers"], row["max_position_embeddings"]
    return f"{size:.1f} billion parameters, {layers} layers, {heads}, context {context}"


def _gpu_line(row: dict[str, Any]) -> str:
    fp8 = f"{row['fp8_tflops']:g}" if row["fp8_tflops"] else "no"
    peaks = f"{row['bf16_tflops']:g} TFLOP/s bf16, {fp8} fp8, {row['memory_gb_per_s']:g} GB/s memory"
    return f"{row['memory_gib']:g} GiB, {peaks}, {row['sms']} SMs, link {row['link_gb_per_s']:g} GB/s"


def _calibrations() -> list[dict[str, str]]:
    """The two words, and the packaged files."""
    rows = [
        {"name": "default", "help": "the packaged one of the GPU and the engine, where there is one, else ideal"},
        {"name": "ideal", "help": "peaks without overheads: optimistic"},
    ]
    return rows + [{"name": name, "help": find_calibration(name, None).source} for name in packaged()]
