"""From rows of measured kernels to the simulator's own operators, with arrays for counts: fit and check share them.

A frame is what `data.read_kernels` gives. `chosen` keeps the rows of one engine; `parts` splits them into groups that
one set of operators can stand for (a dtype; a number of GPUs), and `predicted` prices them under a calibration:

    frame = chosen(read_kernels(path, "gemm"), "gemm", "vllm")
    for part in parts(frame, "gemm"):
        frame.iloc[part.rows], part.operators   # the sum of their seconds is the row's latency

The counting is that of `sim.cost.operators`; every operator stands for one launch (count 1). Matrix products of experts
are fused with what is between them, so a row of `moe` is the two products and the activation's elementwise pass.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.cost import Operator, Prices, Shard
from sim.cost.forms import ROWS
from sim.cost.operators import BF16, block_pairs, causal_pairs
from sim.cost.operators import gemm as counts
from sim.errors import show, suggest

Rows = NDArray[np.int64]
LEAST_WIDTH = 1024  # of a product
LEAST_CONTEXT = 64  # tokens of a sequence that decodes
LEAST_PROMPT = 64  # tokens; of shorter ones not many come at once
LEAST_HEADS = 4  # of a prompt's attention on one GPU
GROUPS = (2, 16)  # query heads per key head when decoding; tables change kernels beyond
LEAST_EXPERT = 256  # of an expert's part on one GPU: below, moving rows about costs more than what is counted
MOST_EXPERTS = 128  # more were measured under expert parallelism's kernels
HEAD = 128  # size of the heads of all models that matter
KINDS = ("gemm", "attention_prefill", "attention_decode", "elementwise", "collectives", "moe", "steps")
NARROW = ("fp8", "fp8_block")  # one byte a number
PASSES = {"silu_mul": "activation"}  # measured -> as the simulator names it, where that differs
SHAPES: dict[str, tuple[str, ...]] = {
    "gemm": ("dtype", "m", "n", "k"),
    "attention_prefill": ("attn_dtype", "kv_dtype", "batch", "heads", "kv_heads", "head_dim", "prompt_len", "past_len"),
    "attention_decode": ("kv_dtype", "batch", "heads", "kv_heads", "head_dim", "context_len"),
    "elementwise": ("dtype", "op", "tokens", "width", "bytes"),
    "collectives": ("op", "num_gpus", "bytes"),
    "moe": ("dtype", "num_tokens", "hidden", "inter", "topk", "num_experts", "moe_tp", "moe_ep"),
    "steps": (
        *("dtype", "layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab"),
        *("phase", "batch", "prompt_len", "past_len", "context_len"),
    ),
}
"""The columns that say what was computed: one row is left of those that agree in them."""


class Part(NamedTuple):
    """Rows of a frame, by position, and the operators whose seconds sum to each row's latency."""

    rows: Rows
    operators: list[Operator]


def backend_of(frame: pd.DataFrame, engine: str, kind: str = "") -> str:
    """The backend whose rows stand for an engine: its own, else the only one there. ValueError if it has neither.

    Where SGLang's rows are (A100), they are taken for vLLM's matrix products, which reach an implausible 0.91 of the
    peak on a coarse grid there, and for its mixtures, of which none is balanced.
    """
    there = sorted(frame["backend"].unique())
    if engine == "vllm" and kind in ("gemm", "moe") and {"sglang", "vllm"} <= set(there):
        return "sglang"
    if engine in there:
        return engine
    if len(there) == 1:
        return str(there[0])
    raise ValueError(f"backend: no rows of {show(engine)}; {suggest(engine, there)}")


def chosen(frame: pd.DataFrame, kind: str, engine: str, wide: bool = False) -> pd.DataFrame:
    """The rows that stand for an engine, the quickest of each shape, in order of shape; index 0, 1, ...

    Left out are traps of the tables (shared/measurements): fp8 keys under bf16 arithmetic where there is fp8
    arithmetic; TensorRT-LLM 1.0.0's decode attention with 4 to 8 query heads per key head, faster than the memory;
    prompts' attention behind a past where PyTorch has another kernel for it than without;
    NCCL's and host-launched all-reduces; mixtures under expert parallelism, cut thinner than 256, of more than 128
    experts, or under other loads than the most even one (scales per tensor and per block are one dtype).
    And unless `wide`, what the forms are not for: products narrower than 1,024, heads of other sizes than 128, prompts
    and contexts under 64 tokens, prompts' attention of fewer than 4 heads, decoding with fewer than 2 or more than 16
    query heads per key head. Where nothing else was measured, such rows stay.
    """
    if frame.empty:
        return frame
    if kind == "collectives":
        frame = frame[(frame["op"] == "all_reduce") & ~frame["kernel"].str.endswith("_eager")]
        frame = frame[frame["dtype"] != "int8"]
    found = frame[frame["backend"] == backend_of(frame, engine, kind)]
    for rule in (*_TRAPS.get(kind, ()), *(() if wide else _NARROWER.get(kind, ()))):
        kept = found[rule(found)]
        found = kept if len(kept) else found
    if kind == "moe":
        found = found.assign(dtype=found["dtype"].replace("fp8_block", "fp8"))
        mildest = min(found["distribution"].unique(), default=None)  # balanced, power_law_1.01, power_law_1.2
        found = found[found["distribution"] == mildest]
    if kind == "elementwise" and backend_of(frame, engine) == "torch":
        found = _with_norms(found)
    shape = list(SHAPES[kind])
    found = found.sort_values([*shape, "latency_us"], kind="stable").drop_duplicates(shape)
    return found.reset_index(drop=True)


def of_one_kernel(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Prompts' attention by the kernel that runs without a past. Behind one PyTorch has others, engines have not."""
    kernels = frame["kernel"].str.removesuffix("_eager")
    return (frame["backend"] != "torch") | kernels.isin(kernels[frame["past_len"] == 0])


Rule = Callable[[pd.DataFrame], "pd.Series[bool]"]
_TRAPS: dict[str, tuple[Rule, ...]] = {  # what each keeps; a rule that keeps nothing is passed over
    "attention_prefill": (
        of_one_kernel,
        lambda f: (f["attn_dtype"] == "fp8") | ~((f["kv_dtype"] == "fp8") & bool((f["attn_dtype"] == "fp8").any())),
    ),
    "attention_decode": (
        lambda f: (
            ~((f["backend"] == "trtllm") & (f["version"] == "1.0.0") & (f["heads"] / f["kv_heads"]).between(4, 8))
        ),
    ),
    "moe": (
        lambda f: f["moe_ep"] == 1,
        lambda f: f["inter"] // f["moe_tp"] >= LEAST_EXPERT,
        lambda f: f["num_experts"] <= MOST_EXPERTS,
    ),
}
_NARROWER: dict[str, tuple[Rule, ...]] = {
    "gemm": (lambda f: (f["n"] >= LEAST_WIDTH) & (f["k"] >= LEAST_WIDTH),),
    "attention_prefill": (
        lambda f: f["head_dim"] == HEAD,
        lambda f: (f["prompt_len"] >= LEAST_PROMPT) & (f["heads"] >= LEAST_HEADS),
    ),
    "attention_decode": (
        lambda f: f["head_dim"] == HEAD,
        lambda f: (f["context_len"] >= LEAST_CONTEXT) & (f["heads"] / f["kv_heads"]).between(*GROUPS),
    ),
}


def parts(frame: pd.DataFrame, kind: str) -> list[Part]:
    """Groups of rows with their operators. Not for `steps`, each row of which has its own."""
    by = {
        "gemm": ["dtype"],
        "attention_prefill": ["kv_dtype"],
        "attention_decode": ["kv_dtype"],
        "collectives": ["num_gpus"],
        "moe": ["dtype"],
        "elementwise": ["op"],
    }[kind]
    groups = frame.groupby(by, sort=True).indices.values()
    return [Part(np.asarray(rows), operators_of(frame.iloc[rows], kind)) for rows in groups]


def operators_of(frame: pd.DataFrame, kind: str) -> list[Operator]:
    """Operators of one group as `parts` makes them."""
    if kind == "moe":
        return expert_operators(frame)
    make = {
        "gemm": gemm_operator,
        "attention_prefill": prefill_operator,
        "attention_decode": decode_operator,
        "elementwise": elementwise_operator,
        "collectives": all_reduce_operator,
    }[kind]
    return [make(frame)]


def predicted(frame: pd.DataFrame, kind: str, prices: Prices) -> NDArray[np.float64]:
    """Seconds of every row under a calibration."""
    found = np.zeros(len(frame))
    for rows, operators in parts(frame, kind):
        found[rows] = sum(prices.seconds(operator) for operator in operators)
    return found


def gemm_operator(frame: pd.DataFrame) -> Operator:
    """Products of one dtype. In fp8 weights and rows in are a byte wide; the pass that makes them so is the form's."""
    narrow = _one(frame, "dtype") in NARROW
    m, k, n = _ints(frame, "m", "k", "n")
    width = 1 if narrow else BF16
    return Operator(
        *("gemm", "gemm", *counts(m, k, n, width, width)),
        dtype="fp8" if narrow else "bf16",
        narrow=narrow,
        dims=(m, k, n),
    )


def prefill_operator(frame: pd.DataFrame) -> Operator:
    """Causal attention of `batch` like prompts of one KV dtype."""
    batch, new, past = _ints(frame, "batch", "prompt_len", "past_len")
    shard = _attention_shard(frame)
    blocks = -(-new // ROWS)
    pairs, whole_blocks = batch * causal_pairs(new, past), batch * block_pairs(blocks, past)
    dims = (batch * blocks, 4 * whole_blocks * shard.queries, shard.heads)
    return shard.attention("attention_prefill", batch * new, batch * (new + past), pairs, dims)


def decode_operator(frame: pd.DataFrame) -> Operator:
    """Attention of `batch` sequences at one context, of one KV dtype."""
    batch, context = _ints(frame, "batch", "context_len")
    return _attention_shard(frame).decode_attention(batch, batch * context)


def elementwise_operator(frame: pd.DataFrame) -> Operator:
    """One pass over memory."""
    (moved,) = _ints(frame, "bytes")
    op = _one(frame, "op")
    return Operator(PASSES.get(op, op), "elementwise", np.zeros(len(frame)), moved)


def _with_norms(frame: pd.DataFrame) -> pd.DataFrame:
    """A norm and an addition as one pass, `norms`, as the simulator counts them: `calibrate measure` fuses nothing."""
    what = ["backend", "version", "dtype", "tokens", "width"]
    norms, adds = (frame[frame["op"] == op] for op in ("rmsnorm", "add"))
    both = norms.merge(adds[[*what, "latency_us"]], on=what, suffixes=("", "_add"))
    if both.empty:
        return frame
    both = both.assign(op="norms", bytes=2 * both["bytes"], latency_us=both["latency_us"] + both["latency_us_add"])
    rest = frame[~frame["op"].isin(("rmsnorm", "add"))]
    return pd.concat([both[list(frame.columns)], rest], ignore_index=True)


def all_reduce_operator(frame: pd.DataFrame) -> Operator:
    """All-reduces among one number of GPUs."""
    gpus = int(_one(frame, "num_gpus"))
    (size,) = _ints(frame, "bytes")
    nothing = np.zeros(len(frame))
    return Operator("all_reduce", "all_reduce", nothing, nothing, 2 * (gpus - 1) / gpus * size, dims=(gpus,))


def expert_operators(frame: pd.DataFrame) -> list[Operator]:
    """The two products of mixtures of one dtype, and the activation between them.

    Even routing touches as many experts as there are pairs (token, expert), until it touches all: what was measured.
    (The simulator's routing is random, and touches fewer.) Tensor parallelism divides the experts' width, expert
    parallelism their number and with it the rows.
    """
    narrow = _one(frame, "dtype") in NARROW
    width = 1 if narrow else BF16
    tokens, hidden, inter, topk, experts, tp, ep = _ints(
        frame, "num_tokens", "hidden", "inter", "topk", "num_experts", "moe_tp", "moe_ep"
    )
    rows, inter, experts = tokens * topk // ep, inter // tp, experts // ep
    touched = np.minimum(experts, rows).astype(np.float64)
    found = []
    for name, k, n in (("experts_gate_up", hidden, 2 * inter), ("experts_down", inter, hidden)):
        flops, moved = counts(rows, k, n, 0, width)
        moved = moved + (touched * k * n * width).astype(np.int64)
        dims = (rows, touched, k, n)
        dtype: Any = "fp8" if narrow else "bf16"
        found.append(Operator(name, "experts", flops, moved, dtype=dtype, narrow=narrow, dims=dims))
    return [*found, Operator("activation", "elementwise", 0, rows * inter * (2 * BF16 + width))]


def step_operators(row: "pd.Series[float]") -> list[Operator]:
    """The operators of one whole pass, with `count` launches each, as the simulator lists them (no sampling)."""
    shard = _step_shard(row)
    batch, new, past, context = (int(row[name]) for name in ("batch", "prompt_len", "past_len", "context_len"))
    phase = str(row["phase"])
    prompts = {"prefill": [(new, past)] * batch, "decode": [], "mixed": [(new, past)]}[phase]
    decoding = 0 if phase == "prefill" else batch
    rows = sum(new for new, _ in prompts) + decoding
    found = shard.row_operators(rows)
    if prompts:
        found.append(shard.prefill_attention(prompts))
    if decoding:
        found.append(shard.decode_attention(decoding, decoding * context))
    return [*found, shard.logits(decoding + len(prompts))]


def _step_shard(row: "pd.Series[float]") -> Shard:
    narrow = str(row["dtype"]) in NARROW
    heads, kv_heads, wide = int(row["heads"]), int(row["kv_heads"]), int(row["head_dim"])
    return Shard(
        layers=int(row["layers"]), hidden=int(row["hidden"]), queries=heads * wide, kv=kv_heads * wide,
        ffn=int(row["ffn"]), vocab=int(row["vocab"]), heads=heads, kv_heads=kv_heads, tp=1,
        weight=1 if narrow else BF16, row_in=1 if narrow else BF16, cache=BF16, dtype="fp8" if narrow else "bf16",
    )  # fmt: skip


def _attention_shard(frame: pd.DataFrame) -> Shard:
    """With arrays for widths: only attention can be asked of it."""
    heads, kv_heads, wide = _ints(frame, "heads", "kv_heads", "head_dim")
    cache = 1 if _one(frame, "kv_dtype") in NARROW else BF16
    return Shard(
        layers=1, hidden=0, queries=heads * wide, kv=kv_heads * wide, ffn=0, vocab=0, heads=heads, kv_heads=kv_heads,
        tp=1, weight=BF16, row_in=BF16, cache=cache, dtype="bf16",
    )  # fmt: skip


def _ints(frame: pd.DataFrame, *names: str) -> list[Any]:
    """Columns as arrays: counts, as operators take them."""
    return [frame[name].to_numpy(np.int64) for name in names]


def _one(frame: pd.DataFrame, name: str) -> str:
    values = frame[name].unique()
    if len(values) != 1:
        raise ValueError(f"{name}: one value is expected, got {', '.join(map(str, values))}")
    return str(values[0])
