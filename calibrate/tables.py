"""python -m calibrate tables --gpu NAME --engine NAME --data DIR --out FILE.npz [--with CALIBRATION] [--for-check]

Measured kernels as the file that a calibration names under `tables` (`sim.cost.table` says what is in it and how it is
interpolated): matrix products, decode attention, and prefill attention of like prompts with nothing before them.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.cost.calibration import FOLDER, find_calibration, load_calibration
from sim.cost.table import SCHEMA, load
from sim.errors import ScenarioError

from .data import gpu_name, kernel_file, read_kernels
from .features import NARROW, chosen
from .split import held_out

SHAPE = {
    "gemm": ["k", "n", "narrow"],
    "attention_decode": ["heads", "kv_heads", "head_dim", "narrow"],
    "attention_prefill": ["heads", "kv_heads", "head_dim", "narrow"],
}
POINT = {
    "gemm": ["m"],
    "attention_decode": ["batch", "context_len"],
    "attention_prefill": ["batch", "prompt_len"],
}
SLOWER = 1.1
"""A point this many times as slow as both its neighbours make it, and as a larger one, is a disturbance."""


def add_parser(commands: Any) -> None:
    """The subcommand; `run` of the parsed options is what to call."""
    parser = commands.add_parser("tables", help="make a table of measured kernels for a calibration to interpolate")
    parser.add_argument("--gpu", required=True, help="whose measurements, such as h100_sxm")
    parser.add_argument("--engine", required=True, help="whose kernels, such as vllm")
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="measurements, as `check` takes them")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.npz", help="what to write")
    parser.add_argument(
        "--with",
        dest="base",
        metavar="CALIBRATION",
        help="also write FILE.yaml: this calibration (a packaged name or a file) with the table",
    )
    parser.add_argument(
        "--for-check",
        action="store_true",
        help="leave out the points that `check` judges by, to judge the table itself",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the file and say what is in it. Exit code: 0."""
    out: Path = options.out
    if out.suffix != ".npz":
        raise ScenarioError(f"--out: {out}: the name must end in .npz")
    base = None if options.base is None else _text_of(options.base)
    counts = build(options.gpu, options.engine, options.data, out, options.for_check)
    for kind, (shapes, points, dropped) in counts.items():
        also = f", {dropped} disturbed ones left out" if dropped else ""
        print(f"{kind:<18} {shapes:5} shapes {points:7,} points{also}")
    if base is None:
        print(f"wrote {out}; name it in a calibration of {gpu_name(options.gpu)}: tables: {out.name}")
        return 0
    beside = out.with_suffix(".yaml")
    beside.write_text(_with_table(base, out), "utf-8")
    load_calibration(beside)
    print(f"wrote {out} and {beside}")
    return 0


def build(
    gpu: str, engine: str, data: Path | str, out: Path | str, for_check: bool = False
) -> dict[str, tuple[int, int, int]]:
    """Write the tables of one GPU and engine; per kind the numbers of shapes, points, and points left out as disturbed.

    Of several kernels of a shape the quickest is taken. `for_check` leaves out what `split.held_out` holds out.
    """
    arrays: dict[str, Any] = {"schema": SCHEMA, "gpu": gpu_name(gpu), "engine": engine}
    counts, missing = {}, []
    for kind in SHAPE:
        try:
            path = kernel_file(data, gpu, kind)
        except ScenarioError as error:
            missing.append(error)
            continue
        try:
            frame = chosen(read_kernels(path, kind), kind, engine, wide=True)
        except ValueError as error:
            raise ScenarioError(f"{path}: {error}") from None
        if for_check:
            frame = frame[~held_out(frame, kind)]
        if kind == "attention_prefill":
            frame = frame[frame["past_len"] == 0]
        if frame.empty:
            continue
        frame = frame.assign(narrow=frame["dtype" if kind == "gemm" else "kv_dtype"].isin(NARROW).astype(int))
        frame = frame.sort_values([*SHAPE[kind], *POINT[kind], "latency_us"], kind="stable")
        frame = frame.drop_duplicates([*SHAPE[kind], *POINT[kind]])  # dtypes that cost alike, bfloat16 and float16
        bad = disturbed(frame) if kind == "gemm" else np.zeros(len(frame), dtype=bool)
        kept = frame[~bad]
        arrays |= _arrays(kind, kept)
        counts[kind] = (len(arrays[f"{kind}_shapes"]), len(kept), int(bad.sum()))
    if not counts:
        raise missing[0] if missing else ScenarioError(f"{data}: no rows for a table")
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(out, **arrays)
    except OSError as error:
        raise ScenarioError(f"--out: {out}: {error.strerror}") from None
    load(out)
    return counts


def disturbed(frame: pd.DataFrame) -> NDArray[np.bool_]:
    """Matrix products, sorted by shape and m, that are slow by themselves: than the line between their neighbours, and
    than the next larger product of the same weights. (One slower than its neighbours alone may be a tile's edge.)"""
    shape, m = frame[SHAPE["gemm"]].to_numpy(), np.log(frame["m"].to_numpy(float))
    time = np.log(frame["latency_us"].to_numpy())
    found = np.zeros(len(frame), dtype=bool)
    if len(frame) < 3:
        return found
    one = np.all(shape[2:] == shape[:-2], axis=1)
    share = (m[1:-1] - m[:-2]) / np.where(one, m[2:] - m[:-2], 1.0)
    line = time[:-2] + share * (time[2:] - time[:-2])
    over = np.log(SLOWER)
    found[1:-1] = one & (time[1:-1] > line + over) & (time[1:-1] > time[2:] + over)
    return found


def _arrays(kind: str, frame: pd.DataFrame) -> dict[str, Any]:
    shapes = frame[SHAPE[kind]].to_numpy(np.int64)
    new = np.ones(len(frame), dtype=bool)
    new[1:] = np.any(shapes[1:] != shapes[:-1], axis=1)
    return {
        f"{kind}_shapes": shapes[new],
        f"{kind}_starts": np.append(np.flatnonzero(new), len(frame)),
        f"{kind}_points": frame[POINT[kind]].to_numpy(np.int64),
        f"{kind}_seconds": frame["latency_us"].to_numpy() * 1e-6,
    }


def _text_of(word: str) -> str:
    """The YAML of a calibration, packaged or a file."""
    for path in (FOLDER / f"{word}.yaml", Path(word)):
        if path.is_file():
            return path.read_text("utf-8")
    find_calibration(word, None)  # which complains of an unknown one
    raise ScenarioError(f"--with: {word} has no file; name a packaged calibration or a file")


def _with_table(text: str, out: Path) -> str:
    """The same YAML with its `tables` line before `operators`, in place of one that it has."""
    without = re.sub(r"^tables:.*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"^operators:", f"tables: {out.name}\noperators:", without, count=1, flags=re.MULTILINE)
