"""Measured kernels as operators: the counts that the simulator's own functions give for each row of a file.

A fit prices these operators with the forms that the simulator prices with, so the two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.cost import Operator, Shard
from sim.cost.forms import Machine
from sim.cost.operators import gemm
from sim.gpus import GPU

WIDTH = {"bfloat16": 2, "float16": 2, "half": 2, "fp8": 1, "fp8_block": 1, "int8": 1, "float32": 4}
Floats = NDArray[np.float64]
Make = Callable[[pd.DataFrame], Operator]


@dataclass(frozen=True)
class Points:
    """Launches and how long they took."""

    frame: pd.DataFrame
    operator: Operator  # counts are arrays, one value a row
    seconds: Floats

    def __len__(self) -> int:
        return len(self.seconds)


def points(frame: pd.DataFrame, make: Make) -> Points:
    return Points(frame, make(frame), frame["latency_us"].to_numpy() * 1e-6)


def machine(gpu: GPU, dtype: str = "bf16") -> Machine:
    """What forms know of a GPU, as `sim.cost.Prices` sees it."""
    tflops = (gpu.fp8_tflops or gpu.bf16_tflops) if dtype == "fp8" else gpu.bf16_tflops
    link = gpu.link_gb_per_s * 1e9 if gpu.link_gb_per_s else None
    return Machine(tflops * 1e12, gpu.memory_gb_per_s * 1e9, link, gpu.sms)


def gemm_operator(frame: pd.DataFrame) -> Operator:
    """Products of one dtype: fp8 reads rows and weights of a byte and writes bf16."""
    fp8 = frame["dtype"].iloc[0] == "fp8"
    m, k, n = (frame[name].to_numpy() for name in ("m", "k", "n"))
    width = 1 if fp8 else 2
    flops, moved = gemm(m, k, n, width, width)
    return Operator("gemm", "gemm", flops, moved, dtype="fp8" if fp8 else "bf16", narrow=fp8, dims=(m, k, n))


def decode_operator(frame: pd.DataFrame) -> Operator:
    batch = frame["batch"].to_numpy()
    return _shard(frame).decode_attention(batch, batch * frame["context_len"].to_numpy())


def prefill_operator(frame: pd.DataFrame) -> Operator:
    """Batches of equal prompts: one launch for all."""
    new, past, batch = (frame[name].to_numpy() for name in ("prompt_len", "past_len", "batch"))
    prompt: Any = (new, past)
    one = _shard(frame).prefill_attention([prompt])
    blocks, in_blocks, heads = one.dims
    dims = (batch * blocks, batch * in_blocks, heads)
    return replace(one, flops=batch * one.flops, bytes=batch * one.bytes, dims=dims)


def all_reduce_operator(frame: pd.DataFrame) -> Operator:
    """Sums among one number of GPUs; the operator counts what a ring sends."""
    gpus = int(frame["num_gpus"].iloc[0])
    sent = 2 * (gpus - 1) / gpus * frame["bytes"].to_numpy()
    return Operator("all_reduce", "all_reduce", 0, 0, comm_bytes=sent, dims=(gpus,))


def expert_operators(frame: pd.DataFrame) -> tuple[Operator, Operator, Operator]:
    """A mixture's MLP on one GPU: both products of its experts, and the activation between.

    Balanced routing touches as many experts as there are pairs (token, expert), until all are.
    """
    fp8 = frame["dtype"].iloc[0] != "bfloat16"
    width = 1 if fp8 else 2
    tokens, hidden, experts = (frame[name].to_numpy() for name in ("num_tokens", "hidden", "num_experts"))
    inter = frame["inter"].to_numpy() // frame["moe_tp"].to_numpy()
    rows = tokens * frame["topk"].to_numpy()
    touched = np.minimum(experts, rows).astype(np.float64)
    found = []
    for name, k, n in (("experts_gate_up", hidden, 2 * inter), ("experts_down", inter, hidden)):
        flops, moved = gemm(rows, k, n, 0, width)
        moved = moved + (touched * k * n * width).astype(np.int64)
        dims = (rows, touched, k, n)
        found.append(Operator(name, "experts", flops, moved, dtype="fp8" if fp8 else "bf16", narrow=fp8, dims=dims))
    passes = Operator("activation", "elementwise", 0, rows * inter * (4 + width))
    return found[0], found[1], passes


def _shard(frame: pd.DataFrame) -> Shard:
    """One layer whose widths are those of each row."""
    heads: Any = frame["heads"].to_numpy()
    kv_heads: Any = frame["kv_heads"].to_numpy()
    size: Any = frame["head_dim"].to_numpy()
    rest: dict[str, Any] = {"layers": 1, "hidden": 0, "ffn": 0, "vocab": 0, "tp": 1, "weight": 2, "row_in": 2}
    cache = WIDTH[frame["kv_dtype"].iloc[0]]
    return Shard(
        queries=heads * size, kv=kv_heads * size, heads=heads, kv_heads=kv_heads, cache=cache, dtype="bf16", **rest
    )
