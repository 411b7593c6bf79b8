"""Tables of `aiconfigurator-core`, NVIDIA's measured kernels: parquet in the wheel, CSV in text files before 0.12.

They lie in systems/data/<system>/, each in a folder of its engine and one of the engine's version; of several versions
the newest is taken, table by table. Latencies are in ms, heads per GPU, message sizes in elements. The package is only
read: none of its code is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.lib
import pyarrow.parquet

from sim.errors import ScenarioError, show, suggest

from .data import COLUMNS, DTYPES, header, read_columns, times, whole_numbers

PACKAGE = "aiconfigurator_core"
_BYTES = {"half": 2, "float16": 2, "bfloat16": 2, "int8": 1, "fp8": 1}
_ATTENTION = {
    "kernel": "kernel_source",
    "attn_dtype": "attn_dtype",
    "kv_dtype": "kv_cache_dtype",
    "batch": "batch_size",
    "heads": "num_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
}
_RENAMED: dict[
    str, dict[str, dict[str, str]]
] = {  # kind: table, its columns by ours; backend, version and latency are the same everywhere
    "gemm": {"gemm_perf": {"kernel": "kernel_source", "dtype": "gemm_dtype", "m": "m", "n": "n", "k": "k"}},
    "attention_prefill": {
        "context_attention_perf": {
            **_ATTENTION,
            "prompt_len": "isl",
            "past_len": "step",
        }
    },
    "attention_decode": {
        "generation_attention_perf": {
            **_ATTENTION,
            "isl": "isl",
            "step": "step",
        }
    },
    "collectives": {
        name: {
            "op": "op_name",
            "kernel": "kernel_source",
            "dtype": dtype,
            "num_gpus": "num_gpus",
            "elements": "message_size",
        }
        for name, dtype in (("custom_allreduce_perf", "allreduce_dtype"), ("nccl_perf", "nccl_dtype"))
    },
    "moe": {
        "moe_perf": {
            "kernel": "kernel_source",
            "dtype": "moe_dtype",
            "num_tokens": "num_tokens",
            "hidden": "hidden_size",
            "inter": "inter_size",
            "topk": "topk",
            "num_experts": "num_experts",
            "moe_tp": "moe_tp_size",
            "moe_ep": "moe_ep_size",
            "distribution": "distribution",
        }
    },
}
_TEXT = ("kernel", "dtype", "attn_dtype", "kv_dtype", "op", "distribution")
_FROM_ZERO = ("past_len",)
_KNOWN_DTYPES = {"moe": (*DTYPES, "fp8_block"), "collectives": (*DTYPES, "half", "int8")}


def tables(gpu: str, backend: str | None, package: Path | None) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The frames by kind, in this project's columns, and what source.json says of them."""
    root = _root(package)
    systems = sorted(each.name for each in root.iterdir() if each.is_dir())
    if gpu not in systems:
        raise ScenarioError(f"{root}: unknown GPU {show(gpu)}; {suggest(gpu, systems)}")
    left_out: dict[str, int] = {}
    found: dict[str, pd.DataFrame] = {}
    engines: set[str] = set()
    for kind, of_kind in _RENAMED.items():
        frames = []
        for table, renamed in of_kind.items():
            for path in _newest(root / gpu, table, engines):
                if backend is None or path.parent.parent.name == backend:
                    frames.append(_read(path, kind, renamed, left_out))
        if frames:
            found[kind] = pd.concat(frames, ignore_index=True)
    if backend is not None and backend not in engines:
        raise ScenarioError(f"--backend: unknown {show(backend)}; {suggest(backend, sorted(engines))}")
    if not found:
        names = ", ".join(table for of_kind in _RENAMED.values() for table in of_kind)
        raise ScenarioError(f"{root / gpu}: has none of the tables {names}")
    return found, {"source": f"aiconfigurator-core {_version(package)}", "licence": "Apache-2.0", "left_out": left_out}


def _root(package: Path | None) -> Path:
    """systems/data of the package, found without importing it."""
    if package is None:
        spec = find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise ScenarioError("aiconfigurator-core is not installed: pip install 'servesim[aic]'")
        package = Path(spec.submodule_search_locations[0])
    for root in (package / "systems" / "data", package / PACKAGE / "systems" / "data"):
        if root.is_dir():
            return root
    raise ScenarioError(f"{package}: has no systems/data, as the package {PACKAGE} has")


def _version(package: Path | None) -> str:
    try:
        return version("aiconfigurator-core") if package is None else f"in {package}"
    except PackageNotFoundError:
        return "of unknown version"


def _newest(system: Path, table: str, engines: set[str]) -> Iterator[Path]:
    """The table's file of each engine's newest version, unless that holds less than half of what another one does:
    such a one only adds to the one before. Engines that are met are noted."""
    by_engine: dict[str, list[Path]] = {}
    for ending in ("parquet", "txt", "csv"):
        for path in system.rglob(f"{table}.{ending}"):
            by_engine.setdefault(path.parent.parent.name, []).append(path)
    engines |= set(by_engine)
    for _, paths in sorted(by_engine.items()):
        rows = {path: _rows(path) for path in paths}
        enough = [path for path in paths if 2 * rows[path] >= max(rows.values())]
        yield max(enough, key=lambda path: _order(path.parent.name))


def _rows(path: Path) -> int:
    """How many rows a table has; of text the bytes, which compare alike."""
    try:
        return pyarrow.parquet.read_metadata(path).num_rows if path.suffix == ".parquet" else path.stat().st_size
    except (OSError, pyarrow.lib.ArrowException) as error:
        raise ScenarioError(f"{path}: not a readable parquet file: {str(error).splitlines()[0]}") from None


def _order(name: str) -> list[tuple[int, int, str]]:
    """1.3.0rc20 behind 1.3.0rc9, before 1.3.0: numbers as numbers, letters before the end."""
    parts = [
        (0, int(part), "") if part.isdigit() else (-1, 0, part) for part in re.findall(r"\d+|[a-z]+", name.lower())
    ]
    return [*parts, (0, -1, "")]


def _read(path: Path, kind: str, renamed: dict[str, str], left_out: dict[str, int]) -> pd.DataFrame:
    """One table in our columns."""
    columns = (*renamed.values(), "latency")
    text = [theirs for ours, theirs in renamed.items() if ours in _TEXT]
    frame = _raw(path, columns, text)
    if "window_size" in frame:
        windowed = whole_numbers(path, frame, "window_size", least=0) > 0
        _drop(left_out, "of attention with a window", int(windowed.sum()))
        frame = frame[~windowed]
    made = pd.DataFrame({"backend": path.parent.parent.name, "version": path.parent.name}, index=frame.index)
    for ours, theirs in renamed.items():
        if ours in _TEXT:
            made[ours] = frame[theirs]
        else:
            made[ours] = whole_numbers(path, frame, theirs, least=0 if ours in _FROM_ZERO else 1)
    made["latency_us"] = times(path, frame, "latency") * 1e3
    if kind == "attention_decode":
        made["context_len"] = made["isl"] + made["step"]  # what was there, and the tokens since
    known = _KNOWN_DTYPES.get(kind, DTYPES)
    for name in [name for name in COLUMNS[kind] if name.endswith("dtype")]:
        other = ~made[name].isin(known)
        for dtype, count in made[other][name].value_counts().items():
            _drop(left_out, f"of dtype {dtype}", count)
        made = made[~other]
    if kind == "collectives":
        made["bytes"] = made["elements"] * made["dtype"].map(_BYTES)
    return made[list(COLUMNS[kind])]


def _drop(left_out: dict[str, int], why: str, count: int) -> None:
    if count:
        left_out[why] = left_out.get(why, 0) + int(count)


def _raw(path: Path, columns: tuple[str, ...], text: list[str]) -> pd.DataFrame:
    """These columns as they stand, and the window's size where the table has it."""
    if path.suffix != ".parquet":
        window = ("window_size",) if "window_size" in header(path) else ()
        return read_columns(path, (*columns, *window), text)
    try:
        names = pyarrow.parquet.read_schema(path).names
        for name in columns:
            if name not in names:
                raise ScenarioError(f"{path}: {name}: column missing among {', '.join(names)}")
        wanted = [*columns, *(["window_size"] if "window_size" in names else [])]
        return pyarrow.parquet.read_table(path, columns=wanted).to_pandas()
    except (OSError, pyarrow.lib.ArrowException) as error:
        raise ScenarioError(f"{path}: not a readable parquet file: {str(error).splitlines()[0]}") from None
