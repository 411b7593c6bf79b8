"""What the measured table calls GPUs, models, dtypes and engines, and what the simulator knows of them.

A name that leads nowhere gives the reason why its rows cannot be simulated.
"""

from __future__ import annotations

import re
from dataclasses import fields

from sim import gpus, models, registry


class Skip(Exception):
    """A row cannot be simulated; the text says why."""


WEIGHTS = {"bf16": "bf16", "fp16": "bf16", "fp8": "fp8", "int8": "int8", "int4": "int4"}
CACHES = {"bf16": "bf16", "fp16": "bf16", "auto": "bf16", "fp8": "fp8", "int8": "int8"}
UNSTATED = ("", "unstated", "unspecified", "unknown")
UNSUPPORTED = (  # what the name has: what the model has that sim/models.py cannot express
    ("deepseek", "latent attention (MLA) and shared experts"),
    ("kimi", "latent attention (MLA) and shared experts"),
    ("glm-5", "latent attention (MLA) with a sparse index"),
    ("gpt-oss", "a sliding window in every other layer"),
    ("qwen3.5", "linear attention in three of four layers"),
    ("qwen3-next", "linear attention in three of four layers"),
    ("llama-4", "chunked attention in three of four layers, and shared experts"),
    ("gemma", "a sliding window in most layers"),
)
_ALIASES = {
    "mistral-nemo-2407": "mistral-nemo-12b",
    "mistral-nemo": "mistral-nemo-12b",
    "mistral-large": "mistral-large-2407",
    "hermes-3-llama-3.1-405b": "llama-3.1-405b",
    "minimax-m2": "minimax-m2.5",  # M2, M2.1 and M2.5 have one shape
    "minimax-m2.1": "minimax-m2.5",
}
_DROPPED = re.compile(
    r"\(.*?\)|^meta-(?=llama)|[-_](hf|chat|instruct|base|it|fp8|fp4|nvfp4|int4|int8|awq|gptq|dynamic|kv|w4a16|w8a8)(?![\w.])"
    r"|-v0\.\d|-2507"
)


ENGINES = {  # as the table names them: the policy, the engine whose kernels it runs
    "vllm": ("vllm", "vllm"),
    "vllm_v0": ("vllm_v0", "vllm"),  # up to 0.7: prompts first
    "trtllm": ("trtllm", "trtllm"),
    "nim": ("trtllm", "trtllm"),
    "sglang": ("sglang", "sglang"),
}


def gpu_of(name: str) -> str:
    """The simulator's name of a GPU."""
    plain = re.sub(r"[\s-]+", "_", name.strip().lower())
    known = gpus.facts(plain) or gpus.facts(f"{plain}_sxm")
    if known is None:
        raise Skip(f"unknown GPU {name}")
    found: str = known["name"]
    return found


def model_of(name: str) -> str:
    """The simulator's name of a model, from its Hugging Face name; tunings and quantisations share a shape."""
    plain = name.strip().lower()
    for part, what in UNSUPPORTED:
        if part in plain:
            raise Skip(f"model {name.split('/')[-1]}: {what}")
    short = plain.split("/")[-1].strip()
    while (cut := _DROPPED.sub("", short).strip()) != short:
        short = cut
    short = _ALIASES.get(short, short)
    if short not in models.names():
        raise Skip(f"unknown model {name}")
    return short


def weights_of(name: str, gpu: str) -> tuple[str, bool]:
    """The dtype of the weights, and whether the row states it."""
    if name.lower() in UNSTATED:
        return "bf16", False
    if name.lower() not in WEIGHTS:
        raise Skip(f"weights in {name.split()[0]} are not among {', '.join(dict.fromkeys(WEIGHTS.values()))}")
    dtype = WEIGHTS[name.lower()]
    if dtype == "fp8" and gpus.parse(gpu).fp8_tflops is None:
        raise Skip(f"{gpu} has no fp8 arithmetic")
    return dtype, True


def cache_of(name: str) -> str | None:
    """The dtype of the KV cache; None where the row does not state it."""
    if name.lower() in UNSTATED:
        return None
    if name.lower() not in CACHES:
        raise Skip(f"a KV cache in {name} is not among {', '.join(dict.fromkeys(CACHES.values()))}")
    return CACHES[name.lower()]


def policy_of(engine: str) -> tuple[str, str]:
    """(policy, the engine whose kernels it runs)."""
    if engine not in ENGINES:
        raise Skip(f"unknown engine {engine}")
    return ENGINES[engine]


def accepted(policy: str, wanted: dict[str, object]) -> dict[str, object]:
    """Those of the parameters that the policy has and that are known."""
    has = {field.name for field in fields(registry.get("policy", policy)) if field.init}
    return {name: value for name, value in wanted.items() if name in has and value is not None}
