"""Measurements that others publish, brought into this project's columns: python -m calibrate import SOURCE ...

Written are DIR/kernels/<gpu>/<kind>.csv.gz, one file a kind, and source.json beside them: where the rows are from and
under which licence. Nothing that is there already is overwritten.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from sim import gpus
from sim.errors import ScenarioError, show, suggest

from . import importing_aic, importing_vidur
from .data import COLUMNS, gpu_name


def add_parser(commands: Any) -> None:
    """The subcommand; `run` of the parsed options is what to call."""
    parser = commands.add_parser("import", help="bring published measurements into the same columns")
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    aic = sources.add_parser("aiconfigurator", help="the measured tables of the PyPI package aiconfigurator-core")
    aic.add_argument("--package", type=Path, metavar="DIR", help="the package's folder (default: as installed)")
    aic.add_argument("--backend", help="only this engine's tables: vllm, trtllm or sglang; collectives' also nccl")
    vidur = sources.add_parser("vidur", help="profiles of the simulator Vidur: mlp.csv, attention.csv, all_reduce.csv")
    vidur.add_argument("files", nargs="+", type=Path, metavar="FILE", help="profiles of one GPU")
    for each in (aic, vidur):
        each.add_argument("--gpu", required=True, help="a GPU's name, such as h100_sxm")
        each.add_argument("--out", required=True, type=Path, metavar="DIR", help="root of the folders kernels/<gpu>")
        each.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Import into the folder and say what came. Exit code: 0."""
    gpu = gpu_name(options.gpu)
    if options.source == "aiconfigurator":
        tables, notes = importing_aic.tables(gpu, options.backend, options.package)
    else:
        if gpus.facts(gpu) is None:
            raise ScenarioError(f"--gpu: unknown GPU {show(options.gpu)}; {suggest(options.gpu, gpus.names())}")
        tables, notes = importing_vidur.tables(options.files, gpu)
    folder = options.out / "kernels" / gpu
    write(folder, tables, {"gpu": gpu, **notes})
    for kind, frame in tables.items():
        engines = ", ".join(sorted(set(frame["backend"] + " " + frame["version"])))
        print(f"{folder / f'{kind}.csv.gz'}: {len(frame)} rows ({engines})")
    if notes.get("left_out"):
        print("left out: " + "; ".join(f"{count} rows {why}" for why, count in notes["left_out"].items()))
    return 0


def write(folder: Path, tables: dict[str, pd.DataFrame], notes: dict[str, Any]) -> None:
    """Each table as a file of its kind, and what `source.json` is to say."""
    for kind in tables:
        for path in (folder / f"{kind}.csv.gz", folder / f"{kind}.csv"):
            if path.exists():
                raise ScenarioError(f"{path}: is there already; import into another folder, or remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind, frame in tables.items():
            path = folder / f"{kind}.csv.gz"
            rounded = frame.assign(latency_us=frame["latency_us"].map("{:.6g}".format))
            # no time stamp in the file: the same rows give the same bytes
            packing: Any = {"method": "gzip", "compresslevel": 6, "mtime": 0}
            rounded[list(COLUMNS[kind])].to_csv(path, index=False, compression=packing)
        said = {**notes, "date": datetime.now(UTC).date().isoformat()}
        (folder / "source.json").write_text(json.dumps(said, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise ScenarioError(f"{folder}: {error.strerror}") from None
