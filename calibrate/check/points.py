"""Measured points beside what a calibration says of them: one row a point, with its operator and shape range."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.cost import Calibration, Prices
from sim.errors import ScenarioError
from sim.gpus import GPU

from ..data import kernel_file, read_kernels
from ..features import NARROW, chosen, parts, predicted, step_operators
from ..fit.kinds import CACHED
from ..split import held_out

COLUMNS = ("operator", "range", "size", "measured_s", "predicted_s")
Labels = NDArray[np.str_]
Sizes = NDArray[np.float64]


class Kind(NamedTuple):
    """How the rows of one kind of file are named and sorted."""

    title: str
    dtype: str  # the column that divides them; empty: none
    size: Callable[[pd.DataFrame], pd.Series[float]]
    unit: str  # of the size
    edges: tuple[float, ...]  # a range ends at each, which is in it
    labels: tuple[str, ...]


def _kv_bytes(frame: pd.DataFrame) -> pd.Series[float]:
    width = frame["kv_dtype"].isin(NARROW).map({True: 1, False: 2})
    return 2.0 * width * frame["batch"] * frame["context_len"] * frame["kv_heads"] * frame["head_dim"]


def _column(name: str) -> Callable[[pd.DataFrame], pd.Series[float]]:
    return lambda frame: frame[name].astype(float)


MB = 1e6
KINDS: dict[str, Kind] = {
    "gemm": Kind(
        *("matrix product", "dtype", _column("m"), "rows m", (16, 64, 512, 4096)),
        ("m 1-16", "m 17-64", "m 65-512", "m 513-4096", "m over 4096"),
    ),
    "attention_prefill": Kind(
        *("prefill attention", "kv_dtype", _column("prompt_len"), "prompt length", (512, 2048, 8192)),
        ("prompt to 512", "prompt 513-2048", "prompt 2049-8192", "prompt over 8192"),
    ),
    "attention_decode": Kind(
        *("decode attention", "kv_dtype", _kv_bytes, "bytes of keys and values", (20 * MB, 200 * MB)),
        ("KV under 20 MB", "KV 20-200 MB", "KV over 200 MB"),
    ),
    "collectives": Kind(
        *("all-reduce", "", _column("bytes"), "bytes", (256 * 1024, 4 * MB)),
        ("to 256 KiB", "to 4 MB", "over 4 MB"),
    ),
    "moe": Kind(
        *("mixture", "dtype", _column("num_tokens"), "tokens", (16, 128, 1024)),
        ("tokens 1-16", "tokens 17-128", "tokens 129-1024", "tokens over 1024"),
    ),
    "elementwise": Kind(
        *("element-wise", "", _column("bytes"), "bytes", (MB, 20 * MB)),
        ("under 1 MB", "1-20 MB", "over 20 MB"),
    ),
}
UNITS = {kind.title: kind.unit for kind in KINDS.values()}


def kernels(
    root: Path, gpu: GPU, calibration: Calibration, engine: str, everything: bool, wide: bool = False
) -> tuple[pd.DataFrame, list[str]]:
    """Points of all files of kernels that are there, and notes on what is not. ScenarioError if there is none."""
    found, notes, missing, there = [], [], [], []
    prices = Prices(gpu, calibration)
    for name in KINDS:
        try:
            path = kernel_file(root, gpu.name, name)
        except ScenarioError as error:
            missing.append(error)
            continue
        there.append(name)
        frame = rows(path, name, engine, wide)
        launch = _quantising_s(frame, calibration) if name == "gemm" else 0.0
        if not everything:
            frame = frame[held_out(frame, name)].reset_index(drop=True)
        frame, more = _usable(frame, name, gpu, path)
        notes += more
        if name == "collectives" and gpu.link_gb_per_s is None:
            notes.append(f"{path}: all-reduces left out, for {gpu.name} has no link")
            continue
        if frame.empty:
            notes.append(f"{path}: no rows to check")
            continue
        seconds = predicted(frame, name, prices)
        if launch:
            seconds = np.where(frame["dtype"] == "fp8", seconds + launch, seconds)
            notes.append(
                f"{path}: fp8 was measured with a launch that finds the scales of the input, which {calibration.name}"
                f" leaves out, as static scales do: {launch * 1e6:.1f} us are added to its prices here"
            )
        found.append(_points(frame, name, seconds))
    if len(missing) == len(KINDS) and not _steps_file(root, gpu.name):
        raise missing[0]
    if missing:
        notes.append(f"{root}: not measured there: {', '.join(name for name in KINDS if name not in there)}")
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=list(COLUMNS)), notes


def _usable(frame: pd.DataFrame, kind: str, gpu: GPU, path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Without what a table read from the GPU's large cache over and over, where the fit leaves that out too."""
    if (gpu.name, kind) not in CACHED or frame.empty:
        return frame, []
    least, most = CACHED[gpu.name, kind]
    keep = np.ones(len(frame), dtype=bool)
    for place, (operator,) in parts(frame, kind):
        moved = np.asarray(operator.bytes)
        keep[place] = (moved <= least) | (moved >= most)
    what = f"{path}: {np.sum(~keep):,} points left out that were read from the GPU's cache, faster than its memory"
    return frame[keep].reset_index(drop=True), [what]


def _quantising_s(frame: pd.DataFrame, calibration: Calibration) -> float:
    """TensorRT-LLM's launch that finds scales: what the least fp8 product takes more than the least in bf16."""
    if calibration.engine != "trtllm":
        return 0.0
    narrow = frame["dtype"] == "fp8"
    least = [frame.loc[which, "latency_us"].min() * 1e-6 for which in (narrow, ~narrow)]
    return max(float(least[0] - least[1]), 0.0) if narrow.any() and not narrow.all() else 0.0


def rows(path: Path, kind: str, engine: str, wide: bool = False) -> pd.DataFrame:
    """The rows of a file that stand for an engine."""
    try:
        return chosen(read_kernels(path, kind), kind, engine, wide)
    except ValueError as error:
        raise ScenarioError(f"{path}: {error}") from None


def own_steps(root: Path, gpu: GPU, calibration: Calibration, engine: str) -> pd.DataFrame:
    """Whole steps as `calibrate measure` writes them: sums of operators, host and sampling left out as there."""
    path = _steps_file(root, gpu.name)
    if path is None:
        return pd.DataFrame(columns=list(COLUMNS))
    prices, frame = Prices(gpu, calibration), rows(path, "steps", engine)
    seconds = []
    for _, row in frame.iterrows():
        times = {operator.name: float(prices.seconds(operator)) for operator in step_operators(row)}
        both = [times.get(f"attention_{phase}", 0.0) for phase in ("prefill", "decode")]
        seconds.append(sum(times.values()) - calibration.mixed_overlap * min(both))
    tokens = frame["batch"] * (frame["prompt_len"] + frame["past_len"] + frame["context_len"])
    return pd.DataFrame(
        {
            "operator": "step " + frame["dtype"].replace({"bfloat16": "bf16"}).astype(str),
            "range": frame["phase"].mask((frame["phase"] == "prefill") & (frame["past_len"] > 0), "prefill, past"),
            "size": tokens.astype(float),
            "measured_s": frame["latency_us"] * 1e-6,
            "predicted_s": seconds,
        }
    )


def _steps_file(root: Path, gpu: str) -> Path | None:
    try:
        return kernel_file(root, gpu, "steps")
    except ScenarioError:
        return None


def _points(frame: pd.DataFrame, name: str, seconds: Sizes) -> pd.DataFrame:
    kind = KINDS[name]
    size = kind.size(frame)
    place = np.searchsorted(kind.edges, size.to_numpy(), side="left")
    ranges = pd.Series(np.array(kind.labels)[place], index=frame.index)
    if name == "collectives":
        ranges = frame["num_gpus"].astype(str) + " GPUs, " + ranges
    dtype = " " + frame[kind.dtype].replace({"bfloat16": "bf16"}).astype(str) if kind.dtype else ""
    return pd.DataFrame(
        {
            "operator": kind.title + dtype,
            "range": ranges,
            "size": size,
            "measured_s": frame["latency_us"] * 1e-6,
            "predicted_s": seconds,
        }
    )
