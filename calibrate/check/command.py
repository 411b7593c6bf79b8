"""python -m calibrate check CALIBRATION --data DIR, and where its table and plot go."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from sim import gpus
from sim.cost import Calibration, find_calibration
from sim.errors import Complaint, ScenarioError
from sim.gpus import GPU

from ..data import read_device
from .points import kernels, own_steps
from .serving import alone, dynamo
from .table import summary, text


def add_parser(commands: Any) -> None:
    """The subcommand; `run` of the parsed options is what to call."""
    parser = commands.add_parser("check", help="hold a calibration against measurements its fit did not see")
    parser.add_argument("calibration", help="`ideal`, the name of a packaged calibration, or a file")
    parser.add_argument(
        "--data",
        required=True,
        type=Path,
        metavar="DIR",
        help="measurements: kernels/<gpu>/gemm.csv.gz and so on, or a folder that `calibrate measure` wrote",
    )
    parser.add_argument("--gpu", help="whose measurements, and on which to price (default: the calibration's)")
    parser.add_argument(
        "--engine", help="whose kernels (default: the calibration's; of ideal vllm, or torch in a measured folder)"
    )
    parser.add_argument("--all", action="store_true", help="all points, those of the fit too")
    parser.add_argument("--wide", action="store_true", help="shapes that the forms are not for, too (docs/check.md)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write check.csv, check.png and points.csv.gz there")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the errors, and write them where that is asked for. Exit code: 0."""
    root: Path = options.data
    if not root.is_dir():
        raise ScenarioError(f"--data: {root}: no such folder")
    calibration = find_calibration(options.calibration, None)
    own = (root / "device.json").is_file()  # one measured shape, which the forms were fitted for
    usual = "torch" if own else "vllm"
    engine = options.engine or (usual if calibration.engine == "any" else calibration.engine)
    gpu = _gpu(options.gpu, calibration, root)
    points, notes = checked(root, gpu, calibration, engine, options.all, options.wide or own)
    if points.empty:
        raise ScenarioError(f"{root}: nothing to check {calibration.name} with on {gpu.name}; " + "; ".join(notes))
    if calibration.gpu not in (gpu.name, "any"):
        notes.insert(0, f"{calibration.name} was measured on {calibration.gpu}, and is applied to {gpu.name} here")
    rows = summary(points)
    which = "all points" if options.all else "points held out of fits"
    if options.out is not None:
        _write(options.out, points, rows, f"{calibration.name} against {gpu.name} {engine}, {which}")
    if options.json:
        found = {"calibration": calibration.name, "gpu": gpu.name, "engine": engine, "data": str(root)}
        print(json.dumps({**found, "points": which, "errors": rows, "notes": notes}, indent=2))
        return 0
    print(f"{calibration.name} on {gpu.name}, against {engine} in {root}; {which}")
    print("errors are predicted / measured - 1: median and p90 of their size, and the signed median\n")
    print(text(rows))
    for note in notes:
        print(f"note: {note}")
    return 0


def checked(
    root: Path, gpu: GPU, calibration: Calibration, engine: str, everything: bool = False, wide: bool = False
) -> tuple[pd.DataFrame, list[str]]:
    """Points, one a row (`points.COLUMNS`), and notes on what the folder lacks."""
    found, notes = kernels(root, gpu, calibration, engine, everything, wide)
    more = own_steps(root, gpu, calibration, engine), dynamo(root, gpu, calibration, engine)
    if len(more[1]):
        notes.append(alone(root, gpu, calibration, engine))
    there = [frame for frame in (found, *more) if not frame.empty]
    return pd.concat(there, ignore_index=True) if there else found, notes


def _gpu(word: str | None, calibration: Calibration, root: Path) -> GPU:
    """As asked for; else as the folder's device.json says; else that of the calibration."""
    if word is None and (root / "device.json").is_file():
        return gpus.parse(read_device(root)["gpu"])
    if word is None and gpus.facts(calibration.gpu) is None:
        what = f"{calibration.name} is not of a known GPU; say which with --gpu: {', '.join(gpus.names())}"
        raise ScenarioError(f"--gpu: missing: {what}")
    try:
        return gpus.parse(word or calibration.gpu)
    except Complaint as complaint:
        raise ScenarioError(f"--gpu: {complaint.what}") from None


def _write(folder: Path, points: pd.DataFrame, rows: list[dict[str, Any]], title: str) -> None:
    from .plot import draw  # matplotlib takes its time to import

    try:
        folder.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).round(3).to_csv(folder / "check.csv", index=False)
        points.to_csv(folder / "points.csv.gz", index=False, float_format="%.6g")
        draw(points, rows, title, folder / "check.png")
    except OSError as error:
        raise ScenarioError(f"--out: {folder}: {error.strerror}") from None
