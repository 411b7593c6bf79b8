"""Profiles of the simulator Vidur, as its repository has them: CSV files with `time_stats.<op>.median` in ms.

Known by their columns are mlp.csv (the operators of a layer, by tokens and tensor parallelism), attention.csv (prompt
chunks and decodes over a paged cache) and all_reduce.csv (sizes in bytes); and the tidy form of the first, one file of
several GPUs with `<op>_ms`. Everything ran in fp16, in Sarathi's fork of vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sim.errors import ScenarioError

from .data import COLUMNS, header, one_of, read_columns, times, whole_numbers

_BYTES = 2  # of an fp16 number
_GPUS = {"a100": "a100_sxm", "h100": "h100_sxm", "a40": "a40", "v100": "v100"}  # Vidur's names
_PRODUCTS = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")
_ELEMENTWISE = {  # Vidur's name: ours, numbers read and written of each of a row's width
    "emb": ("embedding", 2),
    "input_layernorm": ("rmsnorm", 2),
    "post_attention_layernorm": ("rmsnorm", 2),
    "attn_rope": ("rope", 2),
    "mlp_act": ("silu_mul", 3),
    "add": ("add", 3),
}
_DIMENSIONS = {  # ours: as the raw profile and as the tidy file call it
    "num_tokens": ("num_tokens", "num_tokens"),
    "tp": ("num_tensor_parallel_workers", "tp"),
    "heads": ("n_head", "n_head"),
    "kv_heads": ("n_kv_head", "n_kv_head"),
    "hidden": ("n_embd", "n_embd"),
    "ffn": ("n_expanded_embd", "n_ffn"),
    "gated": ("use_gated_mlp", "gated"),
}


def tables(files: Sequence[Path], gpu: str) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The frames by kind, in this project's columns, and what source.json says of them."""
    parts: dict[str, list[pd.DataFrame]] = {}
    left_out: dict[str, int] = {}
    for path in files:
        for kind, frame in _read(path, gpu, left_out).items():
            parts.setdefault(kind, []).append(frame)
    found = {kind: pd.concat(parts[kind], ignore_index=True)[list(COLUMNS[kind])] for kind in COLUMNS if kind in parts}
    found = {kind: frame for kind, frame in found.items() if len(frame)}
    if not found:
        raise ScenarioError(f"{', '.join(map(str, files))}: no rows for {gpu}")
    return found, {"source": "Vidur profiles", "licence": "MIT", "left_out": left_out}


def _read(path: Path, gpu: str, left_out: dict[str, int]) -> dict[str, pd.DataFrame]:
    names = header(path)
    if _median("attn_pre_proj") in names:
        return _layer(path, names, None)
    if "attn_pre_proj_ms" in names:
        return _layer(path, names, gpu)
    if _median("attn_decode") in names:
        return _attention(path)
    if _median("all_reduce") in names:
        return {"collectives": _all_reduce(path, left_out)}
    known = ", ".join(map(_median, ("attn_pre_proj", "attn_decode", "all_reduce")))
    raise ScenarioError(f"{path}:1: no Vidur profile: its columns have none of {known}, attn_pre_proj_ms")


def _median(op: str) -> str:
    return f"time_stats.{op}.median"


def _engine(kernel: Any, index: pd.Index) -> pd.DataFrame:
    columns = {"backend": "sarathi", "version": "vidur", "kernel": kernel, "dtype": "float16"}
    return pd.DataFrame(columns, index=index)


def _layer(path: Path, names: list[str], gpu: str | None) -> dict[str, pd.DataFrame]:
    """Matrix products and element-wise work of a layer; `gpu`: of a tidy file, the rows of this GPU."""
    tidy = gpu is not None
    columns = {op: f"{op}_ms" if tidy else _median(op) for op in (*_PRODUCTS, *_ELEMENTWISE)}
    columns = {op: name for op, name in columns.items() if op in _PRODUCTS or name in names}
    theirs = {ours: pair[tidy] for ours, pair in _DIMENSIONS.items()}
    text = [theirs["gated"], *(["gpu"] if tidy else [])]
    frame = read_columns(path, (*theirs.values(), *columns.values(), *text[1:]), text)
    one_of(path, frame, theirs["gated"], ("True", "False"))
    if tidy:
        one_of(path, frame, "gpu", _GPUS)
        frame = frame[frame["gpu"].map(_GPUS) == gpu]
    size = {ours: whole_numbers(path, frame, name) for ours, name in theirs.items() if ours != "gated"}
    tp, hidden = size["tp"], size["hidden"]
    head = hidden // size["heads"]
    queries, keys = size["heads"] // tp * head, (size["kv_heads"] // tp).clip(lower=1) * head
    ffn = size["ffn"] // tp
    shapes = {
        "attn_pre_proj": (queries + 2 * keys, hidden),
        "attn_post_proj": (hidden, queries),
        "mlp_up_proj": (ffn * (1 + (frame[theirs["gated"]] == "True")), hidden),
        "mlp_down_proj": (hidden, ffn),
    }
    widths = {"attn_rope": queries + keys, "mlp_act": ffn}
    products, others = [], []
    for op, name in columns.items():
        there = frame[frame[name].astype(str) != ""]  # a model without this operator has no time of it
        made = _engine(op, there.index)
        made["latency_us"] = times(path, there, name) * 1e3
        if op in shapes:
            n, k = shapes[op]
            products.append(made.assign(m=size["num_tokens"], n=n, k=k))
        else:
            ours, numbers = _ELEMENTWISE[op]
            made = made.assign(op=ours, tokens=size["num_tokens"], width=widths.get(op, hidden))
            others.append(made.assign(bytes=numbers * _BYTES * made["tokens"] * made["width"]))
    return {"gemm": pd.concat(products), "elementwise": pd.concat(others)}


def _attention(path: Path) -> dict[str, pd.DataFrame]:
    """Chunks of one prompt and decodes; the tokens that a decode reads are those in the cache and its own."""
    sizes = ("n_embd", "n_q_head", "n_kv_head", "num_tensor_parallel_workers", "batch_size")
    lengths = ("prefill_chunk_size", "kv_cache_size")
    medians = {kind: _median(f"attn_{kind}") for kind in ("prefill", "decode")}
    text = ["is_prefill", "attention_backend"]
    frame = read_columns(path, (*sizes, *lengths, *medians.values(), *text), text)
    one_of(path, frame, "is_prefill", ("True", "False"))
    found = {}
    for kind, wanted in (("prefill", "True"), ("decode", "False")):
        rows = frame[frame["is_prefill"] == wanted]
        embd, heads, kv_heads, tp, batch = (whole_numbers(path, rows, name) for name in sizes)
        new, past = (whole_numbers(path, rows, name, least=0) for name in lengths)
        made = _engine(rows["attention_backend"], rows.index).assign(
            attn_dtype="float16",
            kv_dtype="float16",
            batch=batch,
            heads=heads // tp,
            kv_heads=(kv_heads // tp).clip(lower=1),
            head_dim=embd // heads,
            latency_us=times(path, rows, medians[kind]) * 1e3,
        )
        made = made.assign(prompt_len=new, past_len=past) if kind == "prefill" else made.assign(context_len=past + 1)
        found[f"attention_{kind}"] = made
    return found


def _all_reduce(path: Path, left_out: dict[str, int]) -> pd.DataFrame:
    sizes = ("num_workers", "size", "devices_per_node")
    frame = read_columns(path, (*sizes, "collective", _median("all_reduce")), ["collective"])
    workers, size, node = (whole_numbers(path, frame, name) for name in sizes)
    made = _engine("nccl", frame.index).assign(
        op=frame["collective"],
        num_gpus=workers,
        elements=size // _BYTES,
        bytes=size,
        latency_us=times(path, frame, _median("all_reduce")) * 1e3,
    )
    across = workers > node
    if across.any():
        why = "of all-reduce across nodes"
        left_out[why] = left_out.get(why, 0) + int(across.sum())
    return made[~across]
