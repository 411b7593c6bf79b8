"""Kinds of kernels: which rows of a file are fitted, by which form, and what stands for a number it cannot determine.

Traps of the tables are dealt with here, each where it bites. Rows that serving does not meet (narrow products, contexts
of a few tokens) are left out, lest they bend what matters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sim.cost.forms import DecodeAttention, Efficiency, Gemm, PrefillAttention
from sim.errors import ScenarioError, suggest
from sim.gpus import GPU

from ..data import kernel_file, read_kernels
from ..features import (
    GROUPS,
    HEAD,
    LEAST_CONTEXT,
    LEAST_HEADS,
    LEAST_PROMPT,
    LEAST_WIDTH,
    decode_operator,
    gemm_operator,
    of_one_kernel,
    prefill_operator,
)
from ..split import held_out, mixed
from .points import Make, Points, machine, points
from .solve import PER_NUMBER, Number, Solution, errors, solve

MOST = 4000  # points of one fit: beyond, a fixed choice of them

FRACTION = (0.05, 1.0)
COMPUTE = Number("compute_fraction", *FRACTION, (0.6, 0.8), 1.0, 1.0)
BANDWIDTH = Number("bandwidth_fraction", *FRACTION, (0.5, 0.8), 1.0, 1.0)
LAUNCH_S = 2e-6  # of a kernel within a CUDA graph
FLOOR = Number("floor_s", 5e-7, 1e-3, (3e-6, 12e-6), LAUNCH_S, 1e-3)
OVERLAP = Number("overlap_p", 1.0, 32.0, (1.5, 3.0), 1.0, None)
GEMM = (
    COMPUTE,
    BANDWIDTH,
    FLOOR,
    OVERLAP,
    Number("wave_share", 0.0, 1.0, (0.2, 0.7), 0.0, 1.0, logarithmic=False),
    Number("small_tile_penalty", 0.0, 1.0, (0.05, 0.4), 0.0, 1.0, logarithmic=False),
    Number("chain_s_per_kdepth", 2e-8, 1e-4, (2e-7,), 0.0, 1e-4),
)
BANDS = tuple(
    Number(f"band_excess/{top}", 0.0, 3.0, (0.1,), 0.0, 3.0, logarithmic=False) for top in (64, 128, 256, 512)
)
"""The rows by which vLLM chooses its fp8 kernels [vllm, csrc/quantization: powers of two up to 512]."""
QUANTISE = Number("quantise_fraction", 0.02, 1.0, (0.3,), None, None)
PREFILL = (COMPUTE, BANDWIDTH, FLOOR, OVERLAP, Number("occupancy", 0.02, 100.0, (0.4, 2.0), None, None))
DECODE = (
    BANDWIDTH,
    FLOOR,
    OVERLAP,
    Number("block_s", 1e-9, 1e-4, (1.5e-6, 4e-6), 0.0, 1e-4),
    Number("chain_s_per_ktoken", 1e-9, 1e-3, (0.3e-6, 8e-6), 0.0, 1e-3),
    Number("max_splits", 1.0, 200.0, (1.2, 20.0), 1.0, 200.0),
    Number("ramp_bytes", 1e4, 1e9, (1e6, 5e7), 0.0, 1e9),
)

# which backend's rows stand for an engine's, where its own will not do [measurements/README.md, caveats of 1]
INSTEAD = {
    ("a100_sxm", "vllm", "gemm"): ("sglang", "vLLM's large products on this card are too good: SGLang's instead"),
    ("a100_sxm", "vllm", "moe"): ("sglang", "vLLM has no balanced mixtures on this card: SGLang's instead"),
}
# bytes between which a table shows more than the memory's bandwidth, for it reads the same again from a large cache
CACHED = {
    ("l40s", "gemm"): (0.0, 24e6),
    ("l40s", "attention_decode"): (4e6, 130e6),
    ("b200_sxm", "attention_decode"): (8e6, 130e6),
}


@dataclass(frozen=True)
class Kind:
    """One form of a calibration and the rows that it is fitted to."""

    key: str  # in the calibration's operators
    file: str
    form: Callable[..., Efficiency]
    numbers: tuple[Number, ...]
    make: Make
    rows: Callable[[pd.DataFrame], pd.Series]
    constant: dict[str, Any]
    dtype: str = "bf16"
    weights: Callable[[pd.DataFrame], pd.Series | float] = lambda frame: 1.0

    def numbers_of(self, frame: pd.DataFrame) -> pd.Series:
        """The rows in this kind's number format, whatever their shape."""
        narrow = self.key.endswith("_fp8")
        return (frame["dtype" if self.file == "gemm" else "kv_dtype"] == "fp8") == narrow


def _gemm(key: str, dtype: str, numbers: tuple[Number, ...]) -> Kind:
    def rows(frame: pd.DataFrame) -> pd.Series:
        return (frame["dtype"] == dtype) & (frame["n"] >= LEAST_WIDTH) & (frame["k"] >= LEAST_WIDTH)

    if dtype != "fp8":
        return Kind(key, "gemm", Gemm, numbers, gemm_operator, rows, {})

    def weights(frame: pd.DataFrame) -> pd.Series:
        """The form fits large and small products less well at once, and a step spends its time in the large."""
        return np.sqrt(frame["n"] * frame["k"] / 2**24).clip(0.5, 2.0)

    return Kind(key, "gemm", Gemm, numbers, gemm_operator, rows, {}, "fp8", weights)


def _prefill(key: str, kv: str) -> Kind:
    def rows(frame: pd.DataFrame) -> pd.Series:
        long = (frame["head_dim"] == HEAD) & (frame["prompt_len"] >= LEAST_PROMPT) & (frame["heads"] >= LEAST_HEADS)
        return long & (frame["kv_dtype"] == kv)

    constant = {"tiled": True}
    return Kind(key, "attention_prefill", PrefillAttention, PREFILL, prefill_operator, rows, constant)


def _decode(key: str, kv: str) -> Kind:
    def rows(frame: pd.DataFrame) -> pd.Series:
        long = (frame["head_dim"] == HEAD) & (frame["context_len"] >= LEAST_CONTEXT)
        long &= (frame["heads"] / frame["kv_heads"]).between(*GROUPS)
        return long & (frame["kv_dtype"] == kv)

    return Kind(key, "attention_decode", DecodeAttention, DECODE, decode_operator, rows, {})


KINDS = (
    _gemm("gemm", "bfloat16", GEMM),
    _gemm("gemm_fp8", "fp8", (*GEMM, QUANTISE, *BANDS)),
    _prefill("attention_prefill", "bfloat16"),
    _prefill("attention_prefill_fp8", "fp8"),
    _decode("attention_decode", "bfloat16"),
    _decode("attention_decode_fp8", "fp8"),
)


def bare(kind: Kind) -> Kind:
    """The same as a plain roofline: the greater of two terms, with fractions and a floor, nothing else."""
    return replace(kind, numbers=plain_numbers(kind.numbers), constant={})


def of_engine(kind: Kind, engine: str) -> Kind:
    """Bands of rows are vLLM's: its choice among fp8 kernels."""
    if engine == "vllm":
        return kind
    return replace(kind, numbers=tuple(number for number in kind.numbers if number not in BANDS))


def plain_numbers(numbers: tuple[Number, ...]) -> tuple[Number, ...]:
    return tuple(number for number in numbers if number.name in (COMPUTE.name, BANDWIDTH.name, FLOOR.name))


@dataclass(frozen=True)
class Fitted:
    """What a fit of one kind found."""

    key: str
    values: dict[str, Any]  # of the form, as the file has them
    form: Efficiency
    errors: dict[str, Any]
    bounds: tuple[str, ...]
    notes: tuple[str, ...]
    backend: str
    version: str


def read(root: Path, gpu: str, engine: str, file: str) -> tuple[Path, pd.DataFrame, tuple[str, ...]]:
    """The rows of this engine in a file of kernels, one a shape (its quickest kernel); notes on what was chosen."""
    path = kernel_file(root, gpu, file)
    frame = read_kernels(path, file)
    backend, *notes = INSTEAD.get((gpu, engine, file), (engine,))
    there = sorted(frame["backend"].unique())
    if backend not in there:
        raise ScenarioError(f"{path}: backend: no rows of {backend}; {suggest(backend, there)}")
    frame = frame[frame["backend"] == backend]
    if file == "attention_decode" and (gpu, engine) == ("a100_sxm", "trtllm"):
        shared = frame["heads"] / frame["kv_heads"]
        frame = frame[~shared.between(4, 8)]
        notes.append("decode attention of 4 to 8 query heads per key head left out: faster than the memory is")
    return path, quickest(frame), tuple(notes)


def quickest(frame: pd.DataFrame) -> pd.DataFrame:
    """Of rows that differ in the kernel alone, the one that takes the least time."""
    shape = [name for name in frame.columns if name not in ("kernel", "latency_us", "version")]
    ordered = frame.sort_values("latency_us", kind="stable")
    return ordered.drop_duplicates(shape).sort_index()


def select(kind: Kind, frame: pd.DataFrame, gpu: str) -> pd.DataFrame:
    """The rows that this kind's form is for. Attention in fp8 is preferred to fp8 keys under bf16 arithmetic."""
    frame = frame[kind.rows(frame)]
    if (gpu, kind.file) in CACHED and len(frame):
        least, most = CACHED[gpu, kind.file]
        moved = np.asarray(kind.make(frame).bytes)
        frame = frame[(moved <= least) | (moved >= most)]
    if "attn_dtype" in frame and (frame["attn_dtype"] == "fp8").any():
        frame = frame[frame["attn_dtype"] == "fp8"]
    return frame


def fit_kind(kind: Kind, gpu: GPU, frame: pd.DataFrame, path: Path, own: bool = False) -> Fitted | None:
    """The form of one kind, fitted to what is not held out, with its errors on what is; None: no rows of it.

    own: one measured shape, of which every row counts and all are fitted; its whole steps are what no fit sees.
    """
    measured = frame[kind.numbers_of(frame)]
    frame = measured if own else select(kind, frame, gpu.name)
    if measured.empty:
        return None
    held = np.zeros(len(frame), dtype=bool) if own else held_out(frame, kind.file)
    what = f"{path}: {kind.key}"
    kept = thinned(frame[~held], kind.file)
    if kept.empty:
        raise ScenarioError(
            f"{what}: no points to fit {len(kind.numbers)} numbers, of {len(measured)} rows of that type; at least"
            f" {PER_NUMBER * len(kind.numbers)} of shapes that serving meets are needed (docs/fit.md)"
        )
    train = points(kept, kind.make)
    seen = machine(gpu, kind.dtype)

    def predict(values: Any) -> Any:
        return kind.form(**kind.constant, **nested(values)).seconds(train.operator, seen)

    weights = np.asarray(kind.weights(kept), dtype=float)
    found: Solution = solve(kind.numbers, predict, train.seconds, what, weights=weights)
    order = [number.name for number in kind.numbers]
    values = {**kind.constant, **nested({name: found.values[name] for name in order})}
    form = kind.form(**values)
    test: Points = points(frame[held] if held.any() else frame, kind.make)
    scores = errors(form.seconds(test.operator, seen), test.seconds)
    scores["held_out"] = bool(held.any())
    scores["fitted_points"] = len(train)
    versions = ", ".join(sorted(frame["version"].unique()))
    return Fitted(kind.key, values, form, scores, found.told(kind.key), (), str(frame["backend"].iloc[0]), versions)


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """`name/key` as a mapping `name`; keys whose value is 0 left out of it."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        outer, slash, key = name.partition("/")
        if not slash:
            found[name] = value
        elif value:
            found.setdefault(outer, {})[int(key)] = value
    return found


def fit_own(kind: Kind, gpu: GPU, frame: pd.DataFrame, path: Path) -> Fitted | None:
    """The form of one kind for a folder of one's own: in whole blocks of rows or not, whichever is nearer; a plain
    roofline where there are too few points for more, as a quick measurement has."""
    if kind.file == "attention_prefill":
        frame = frame[of_one_kernel(frame)]
    rows = frame[kind.numbers_of(frame)]
    few = 0 < len(rows) < PER_NUMBER * len(kind.numbers)
    if few:
        kind = bare(kind)
    variants = [kind, replace(kind, constant={})] if kind.constant else [kind]
    found = [fit_kind(each, gpu, frame, path, True) for each in variants]
    there = [each for each in found if each is not None]
    if not there:
        return None
    best = min(there, key=lambda each: each.errors["median_percent"])
    return replace(best, notes=(f"{kind.key}: {len(rows)} points, so a plain roofline",)) if few else best


def thinned(frame: pd.DataFrame, file: str) -> pd.DataFrame:
    """At most MOST rows, always the same ones."""
    if len(frame) <= MOST:
        return frame
    sizes = ("batch", "heads", "kv_heads", "prompt_len", "context_len", "m", "n", "k", "num_tokens", "inter", "moe_tp")
    order = np.argsort(mixed(frame, tuple(name for name in sizes if name in frame)), kind="stable")[:MOST]
    return frame.iloc[np.sort(order)]
