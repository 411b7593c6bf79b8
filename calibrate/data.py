"""Files of measured times: what columns they have, and reading them with every row checked.

One CSV a kind, plain or gzipped, one row a measured point; times are `latency_us`, microseconds on one GPU. Lengths
count tokens and sizes elements, unless the name says bytes; heads are those of one GPU, after tensor parallelism.
A row of `steps` is one whole pass through a stack of layers, embedding and head included:
- prefill: `batch` sequences of `prompt_len` new tokens each, over `past_len` already in the cache; context_len is 0;
- decode: `batch` sequences of one new token each that reads `context_len` tokens, itself among them; the others are 0;
- mixed: one prompt chunk of `prompt_len` tokens over `past_len`, with `batch` sequences that decode at `context_len`.
The head computes logits for the last position of every sequence.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sim import gpus
from sim.errors import Complaint, ScenarioError, show, suggest

_SHAPE = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab")
_ATTENTION = ("backend", "version", "kernel", "attn_dtype", "kv_dtype", "batch", "heads", "kv_heads", "head_dim")
COLUMNS: dict[str, tuple[str, ...]] = {
    "gemm": ("backend", "version", "kernel", "dtype", "m", "n", "k", "latency_us"),
    "attention_prefill": (*_ATTENTION, "prompt_len", "past_len", "latency_us"),
    "attention_decode": (*_ATTENTION, "context_len", "latency_us"),
    "elementwise": ("backend", "version", "kernel", "dtype", "op", "tokens", "width", "bytes", "latency_us"),
    "collectives": ("backend", "version", "op", "kernel", "dtype", "num_gpus", "elements", "bytes", "latency_us"),
    "moe": (
        *("backend", "version", "kernel", "dtype", "num_tokens", "hidden", "inter", "topk", "num_experts"),
        *("moe_tp", "moe_ep", "distribution", "latency_us"),
    ),
    "steps": (
        *("backend", "version", "dtype", *_SHAPE),
        *("phase", "batch", "prompt_len", "past_len", "context_len", "latency_us"),
    ),
}
"""The columns of each kind of file, in their order."""

DTYPES = ("bfloat16", "float16", "float32", "fp8")
_MORE_DTYPES = {"moe": ("fp8_block",), "collectives": ("half", "int8")}  # as aiconfigurator spells them
OPS = ("rmsnorm", "rope", "silu_mul", "add", "embedding")
PHASES = ("prefill", "decode", "mixed")
_TEXT = ("backend", "version", "kernel", "dtype", "attn_dtype", "kv_dtype", "op", "phase", "distribution")
_FROM_ZERO = ("past_len",)
_FROM_ZERO_IN_STEPS = ("prompt_len", "past_len", "context_len")  # a phase has not all of them
_MOST = 2**53  # the whole numbers up to here are exact as floats


def read_kernels(path: Path | str, kind: str) -> pd.DataFrame:
    """The rows of a file of this kind, its columns in the order of `COLUMNS`; others that it has are left out.

    Raises ScenarioError, `file:line: column: what is wrong`, for the first row that is not as it must be.
    """
    path = Path(path)
    columns = COLUMNS[kind]
    frame = read_columns(path, columns, [name for name in columns if name in _TEXT])
    for name in columns:
        if name in _TEXT:
            one_of(path, frame, name, _known(kind, name))
        elif name == "latency_us":
            frame[name] = times(path, frame, name)
        else:
            zero = name in (_FROM_ZERO_IN_STEPS if kind == "steps" else _FROM_ZERO)
            frame[name] = whole_numbers(path, frame, name, least=0 if zero else 1)
    return frame


def kernel_file(root: Path | str, gpu: str, kind: str) -> Path:
    """The file of this kind: in root/kernels/<gpu>/, or in root itself where that is one card's folder."""
    root = Path(root)
    name = gpu_name(gpu)
    folder = root / "kernels"
    if folder.is_dir():
        there = sorted(each.name for each in folder.iterdir() if each.is_dir())
        if name not in there:
            raise ScenarioError(f"{folder}: unknown GPU {show(gpu)}; {suggest(gpu, there)}")
        root = folder / name
    for ending in (".csv.gz", ".csv"):
        if (found := root / f"{kind}{ending}").is_file():
            return found
    if not root.is_dir():
        raise ScenarioError(f"{root}: no such folder")
    raise ScenarioError(f"{root}: has no {kind}.csv or {kind}.csv.gz")


def gpu_name(gpu: str) -> str:
    """The proper name of a known GPU (h200 is h200_sxm); any other name as it stands."""
    known = gpus.facts(gpu)
    return known["name"] if known is not None else gpu


def read_device(folder: Path | str) -> dict[str, Any]:
    """device.json of a measured folder; under `gpu` the mapping that a scenario takes as its GPU."""
    path = Path(folder) / "device.json"
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ScenarioError(f"{path}: not JSON: {error}") from None
    if not isinstance(found, dict) or "gpu" not in found:
        raise ScenarioError(f"{path}: gpu: missing; it says what the card's peaks are")
    try:
        gpus.parse(found["gpu"])
    except Complaint as complaint:
        raise ScenarioError(f"{path}: {'.'.join(map(str, ('gpu', *complaint.path)))}: {complaint.what}") from None
    return found


def header(path: Path) -> list[str]:
    """The column names that the first line of a CSV file has."""
    try:
        with _opened(path) as lines:
            return next(csv.reader(lines), [])
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise ScenarioError(f"{path}: {getattr(error, 'strerror', None) or 'not a whole gzip file'}") from None
    except UnicodeDecodeError:
        raise ScenarioError(f"{path}: not UTF-8 text") from None


def read_columns(path: Path, columns: tuple[str, ...], text: list[str]) -> pd.DataFrame:
    """These columns, no other; those of `text` as strings without gaps, the others as pandas found them."""
    try:
        names = header(path)
        if not names:
            raise ScenarioError(f"{path}:1: empty; the first line names the columns")
        for name in columns:
            if names.count(name) != 1:
                what = "column stands twice" if name in names else f"column missing among {', '.join(names)}"
                raise ScenarioError(f"{path}:1: {name}: {what}")
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
            frame = pd.read_csv(
                path,
                dtype=dict.fromkeys(text, str),
                na_values={name: [] for name in text},
                keep_default_na=False,
                index_col=False,
                low_memory=False,  # else a column's type can change halfway
            )[list(columns)]
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror or 'not a whole gzip file'}") from None
    except (EOFError, zlib.error):
        raise ScenarioError(f"{path}: not a whole gzip file") from None
    except UnicodeDecodeError:
        raise ScenarioError(f"{path}: not UTF-8 text") from None
    except (pd.errors.ParserError, pd.errors.ParserWarning, csv.Error):
        raise ScenarioError(_ragged(path)) from None
    for name in text:
        refuse(path, frame, name, frame[name].isna() | (frame[name] == ""), lambda _: "missing")
    return frame


def times(path: Path, frame: pd.DataFrame, name: str) -> pd.Series:
    """A column of times (any unit) as floats: above zero and finite."""
    values = _numbers(path, frame, name)
    refuse(path, frame, name, ~((values > 0) & (values < np.inf)), lambda v: f"a time is above 0, got {v}")
    return values


def whole_numbers(path: Path, frame: pd.DataFrame, name: str, least: int = 1) -> pd.Series:
    """A column of whole numbers from `least` up, as int64."""
    values = _numbers(path, frame, name)
    if values.dtype != np.int64 or not len(values) or values.min() < least:
        wrong = ~((values >= least) & (values <= _MOST) & (values == np.floor(values)))
        refuse(path, frame, name, wrong, lambda v: f"must be a whole number of {least} or more, got {v}")
    return values.astype(np.int64)


def one_of(path: Path, frame: pd.DataFrame, name: str, known: Iterable[str] | None) -> None:
    """Refuse values of a column of words that are not among the known ones; None: any will do."""
    if known is not None:
        refuse(
            *(path, frame, name, ~frame[name].isin(list(known))), lambda v: f"unknown: {show(v)}; {suggest(v, known)}"
        )


def refuse(path: Path, frame: pd.DataFrame, name: str, wrong: pd.Series, what: Callable[[str], str]) -> None:
    """Complain of the first row that is wrong, with its line; `what` says it of the value as it stands there.

    The index of `wrong` numbers the rows of the file, from 0: some may have been left out before.
    """
    if not wrong.any():
        return
    row = int(wrong.index[int(np.argmax(wrong.to_numpy()))])
    if path.suffix == ".parquet":  # has rows, not lines
        raise ScenarioError(f"{path}: row {row + 1}: {name}: {what(str(frame.loc[row, name]))}")
    line, cells = _line(path, row)
    value = cells.get(name) or ""
    raise ScenarioError(f"{path}:{line}: {name}: {what(value) if value else 'missing'}")


def _numbers(path: Path, frame: pd.DataFrame, name: str) -> pd.Series:
    values = frame[name]
    if values.dtype != bool and pd.api.types.is_numeric_dtype(values):
        # an empty cell makes a column text here (keep_default_na=False), so a NaN was written as one
        refuse(path, frame, name, values.isna(), lambda v: f"must be a number, got {v}")
        return values
    found = pd.to_numeric(values.astype(str), errors="coerce")
    refuse(path, frame, name, found.isna(), lambda v: f"must be a number, got {show(v)}")
    return found


def _known(kind: str, name: str) -> tuple[str, ...] | None:
    if name.endswith("dtype"):
        return DTYPES + _MORE_DTYPES.get(kind, ())
    return {"elementwise.op": OPS, "steps.phase": PHASES}.get(f"{kind}.{name}")


def _opened(path: Path) -> io.TextIOBase:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _line(path: Path, row: int) -> tuple[int, dict[str, str]]:
    """The line on which a row stands, and its cells: read again, for it is needed once at most."""
    with _opened(path) as lines:
        reader = csv.reader(lines)
        names = next(reader)
        number = reader.line_num + 1
        for cells in reader:
            if cells:  # pandas passes empty lines over
                if row == 0:
                    return number, dict(zip(names, cells, strict=False))
                row -= 1
            number = reader.line_num + 1
    raise AssertionError("a row that pandas read is not in the file")


def _ragged(path: Path) -> str:
    with _opened(path) as lines:
        reader = csv.reader(lines)
        width = len(next(reader))
        for cells in reader:
            if len(cells) > width:
                return f"{path}:{reader.line_num}: {len(cells)} values, but the first line names {width} columns"
    return f"{path}: not a CSV file"
