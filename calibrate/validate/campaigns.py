"""How each campaign ran its measurements, where its rows do not say: from its public recipes at the date of the runs.

What a row states always goes before what its campaign does. `says` is printed, so that nobody has to guess what was
assumed. The first campaign that matches a row has it; the last one matches all.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .rows import Row

FIRST_UNIFIED = (0, 8)  # vLLM's engine "v1"; before it prompts went first and were not split
FIRST_ASYNC = (0, 14)  # asynchronous scheduling by default
LAST_SORTING = (0, 15)  # sampled by sorting all logits, which costs memory


@dataclass(frozen=True)
class Campaign:
    """A source of rows and its recipe."""

    name: str
    matches: Callable[[Row], bool]
    lengths: str  # uniform_80: uniform in [0.8, 1] x nominal; fixed; spread: lognormal; shared: all prompt hits; trace
    says: tuple[str, ...]
    prompts_per_client: int = 10
    version: tuple[int, int] | None = None  # of vLLM, where the row does not say
    async_scheduling: bool | None = None  # None: the version's default
    tokens: int | None = None  # max_num_batched_tokens; None: the engine's default
    seqs_are_clients: bool = False  # max_num_seqs = concurrency, but where `seqs_by_gpu` has another
    seqs_by_gpu: dict[str, int] = field(default_factory=dict)
    memory_share: float = 0.9  # gpu_memory_utilization
    kv_dtype: str = "bf16"
    kv_by_gpu: dict[str, str] = field(default_factory=dict)  # where a recipe of that GPU says another
    kv_alternatives: tuple[str, ...] = ()  # dtypes that it may have been, the stated one left out
    stat: str = "mean"
    policy: dict[str, dict[str, Any]] = field(default_factory=dict)  # more of a policy's parameters, by engine
    unscored: Callable[[Row], str | None] = lambda row: None  # why a row does not count


def campaign_of(row: Row) -> Campaign:
    return next(campaign for campaign in CAMPAIGNS if campaign.matches(row))


def version_of(row: Row, campaign: Campaign) -> tuple[int, int] | None:
    """(major, minor) of the engine; None where neither row nor campaign say."""
    found = re.match(r"v?(\d+)\.(\d+)", row.engine_version)
    return (int(found[1]), int(found[2])) if found else campaign.version


def _starts(*prefixes: str) -> Callable[[Row], bool]:
    return lambda row: row.run_id.startswith(prefixes)


def _in_house_unscored(row: Row) -> str | None:
    if row.engine == "vllm" and "8b" in row.model.lower():
        return "latencies imply up to 118,000 prefill tokens/s a GPU"
    return "its start pattern is not published; lock-step or staggered starts differ by 15 to 23 % in TPOT"


_CLOSED = "closed loop of `concurrency` clients that start together, 10 prompts each, end-of-sequence ignored"
_TRT_WAIT = "TensorRT-LLM: 16384 tokens a step, fp8 KV, no block reuse, batch waiting at 1024/1024 with TP < 8"


def _inference_x(row: Row) -> bool:
    return "inferencex" in row.length_dist.lower()


CAMPAIGNS = (
    Campaign(
        "InferenceX MoE",
        lambda row: _inference_x(row) and any(name in row.model.lower() for name in ("minimax", "qwen")),
        "uniform_80",
        (
            _CLOSED,
            "lengths uniform in [0.8, 1] x nominal; latencies are means",
            "vLLM: its defaults, 0.95 of the memory (recipes of spring 2026; they changed often)",
            "fp8 in blocks is priced as plain fp8",
        ),
        memory_share=0.95,
        kv_alternatives=("bf16", "fp8"),
    ),
    Campaign(
        "InferenceX",
        _inference_x,
        "uniform_80",
        (
            _CLOSED,
            "lengths uniform in [0.8, 1] x nominal; latencies are means",
            "vLLM: 8192 tokens a step, max_num_seqs = concurrency (512 on B200), asynchronous scheduling; 0.10.2 where"
            " no version is stated",
            "KV dtype where not stated: fp8 on H200 and B200, as the recipes of autumn 2025 say for 70B; bf16 on H100,"
            " whose recipe of the date says nothing (a later one fp8); the other dtype in alternatives.csv",
            _TRT_WAIT,
        ),
        version=(0, 10),
        async_scheduling=True,
        tokens=8192,
        seqs_are_clients=True,
        seqs_by_gpu={"b200_sxm": 512},
        kv_by_gpu={"h200_sxm": "fp8", "b200_sxm": "fp8"},
        kv_alternatives=("bf16", "fp8"),
        policy={"trtllm": {"max_num_tokens": 16384}, "sglang": {}},
    ),
    Campaign(
        "NVIDIA in-house",
        lambda row: "in-house" in row.length_dist.lower(),
        "fixed",
        (_CLOSED + " (the start pattern is not published)", "lengths fixed", "reported, not scored"),
        tokens=8192,
        kv_alternatives=("bf16", "fp8"),
        unscored=_in_house_unscored,
    ),
    Campaign(
        "BLIS",
        _starts("blis"),
        "shared",
        (
            "constant rate; about 100 distinct prompts, so all but the last block of each is a prefix hit",
            "asynchronous scheduling (vLLM 0.15's default); offload of KV to the host is left out",
        ),
        async_scheduling=True,
    ),
    Campaign(
        "H200 70B report",
        _starts("h200_70b"),
        "spread",
        (
            "Poisson; lengths lognormal with the stated means, cv 1.2 (prompt) and 1.0 (output), at most 2048 each",
            "latencies are medians; max_num_seqs as by default; prompts share nothing",
        ),
        async_scheduling=True,
        tokens=8192,
        kv_dtype="fp8",
        kv_alternatives=("bf16", "fp8"),
        stat="p50",
    ),
    Campaign(
        "APEX",
        _starts("apex"),
        "trace",
        (
            "the trace's arrivals and prompts, every n-th request for one of n replicas; outputs scaled to the mean",
            "vLLM 0.6.0: max_num_seqs 256, whole prompts, synchronous; 0.97 of the memory as the notes say",
        ),
        version=(0, 6),
        tokens=8192,
    ),
    Campaign(
        "vLLM CI",
        _starts("vllmci"),
        "fixed",
        ("vLLM 0.6: synchronous, whole prompts; TPOT is E2E / output tokens where the row says so",),
        version=(0, 6),
        tokens=8192,
    ),
    Campaign(
        "TensorRT-LLM overview",
        lambda row: row.mode == "offline_max_throughput" and row.engine in ("trtllm", "nim"),
        "fixed",
        (
            "all requests at once, fixed lengths; 0.9 of the memory that weights and activations leave is KV",
            "8192 tokens a step, so prompts longer than that are refused; outputs are reserved whole",
        ),
        tokens=8192,
        kv_dtype="fp8",
        kv_alternatives=("bf16", "fp8"),
    ),
    Campaign(
        "NIM",
        _starts("nim"),
        "fixed",
        (_CLOSED + "; engine settings not published: as TensorRT-LLM's",),
        tokens=8192,
        kv_dtype="fp8",
        kv_alternatives=("bf16", "fp8"),
    ),
    Campaign("LLMServingSim", _starts("lss"), "spread", ("lengths lognormal with the stated means",)),
    Campaign("Lambda", _starts("lambda"), "fixed", ("vLLM 0.5 to 0.6",), version=(0, 6)),
    Campaign(
        "other",
        lambda row: True,
        "fixed",
        (_CLOSED + ", or Poisson where a rate is given", "lengths fixed at the stated means; engine's defaults"),
        kv_alternatives=("bf16", "fp8"),
    ),
)
