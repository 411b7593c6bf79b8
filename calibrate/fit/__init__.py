"""python -m calibrate fit: measured kernels and steps into a calibration file."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any

import yaml

from sim import gpus
from sim.cost import Calibration, load_calibration
from sim.errors import ScenarioError

from .assemble import Result, card, fit_all
from .document import LICENCE, changes, document, key_in, key_of, source_of
from .solve import optimiser

__all__ = ["Result", "add_parser", "fit", "fit_all"]


def add_parser(subparsers: Any) -> None:
    """The command `fit`."""
    parser = subparsers.add_parser("fit", help="fit a calibration to measured kernels")
    parser.add_argument("--gpu", required=True, help="such as h100_sxm; or the name in the folder's device.json")
    parser.add_argument("--engine", default="vllm", help="whose kernels (the column backend): vllm, trtllm, ...")
    parser.add_argument("--data", required=True, type=Path, help="folder of measurements (docs/fit.md)")
    parser.add_argument("--out", required=True, type=Path, help="the file to write")
    parser.add_argument(
        "--form",
        choices=("refined", "roofline"),
        default="refined",
        help="roofline: fractions and a floor for each operator, nothing else, to compare with",
    )
    parser.add_argument("--date", help="of the measurements or the fit, as the file is to have it; today's")
    parser.add_argument("--source", help="where the measurements are from, as the file is to have it")
    parser.add_argument("--licence", help="of the measurements")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--force", action="store_true", help="fit even if the file is that of these data and options")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Fit, write, and say what was found. A file of the same data, options and version is left as it is."""
    date = options.date or datetime.date.today().isoformat()
    root: Path = options.data
    if not root.is_dir():
        raise ScenarioError(f"{root}: no such folder")
    if options.jobs < 1:
        raise ScenarioError(f"--jobs: must be 1 or more, got {options.jobs}")
    optimiser()  # complains early
    gpu = card(root, options.gpu).name
    key = key_of(root, gpu, options.engine, tuple(map(str, (date, options.source, options.licence, options.form))))
    if not options.force and options.out.exists() and key_in(options.out) == key:
        print(f"{options.out}: fitted to these data already (key {key}); --force fits anew")
        return 0
    roofline = options.form == "roofline"
    result = fit_all(root, gpu, options.engine, options.jobs, roofline)
    source = options.source or source_of(root)
    licence = options.licence or (LICENCE if (root / "kernels").is_dir() else "not stated")
    text = document(result, gpu, options.engine, date, key, source, licence, "-roofline" if roofline else "")
    old = None
    if options.out.exists():
        try:
            old = load_calibration(options.out)
        except ScenarioError:
            print(f"{options.out}: replaced; it could not be read")
    new = fit(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    print(report(result))
    if gpus.facts(gpu) is not None:
        print("\n" + changes(old, new))
    print(f"\nwritten to {options.out}")
    return 0


def fit(text: str) -> Calibration:
    """The calibration in a text, checked."""
    data = yaml.safe_load(text)
    del data["schema"]
    return Calibration.model_validate(data)


def report(result: Result) -> str:
    """Errors on what was held out, whole steps, and what the data did not determine."""
    lines = [f"{'held out':<24}{'median %':>9}{'p90 %':>8}{'signed %':>10}{'points':>8}"]
    for name, found in [*result.errors.items(), *result.network.errors.items()]:
        if "median_percent" in found:
            of_fit = "" if found.get("held_out", True) else "  (of the fit)"
            cells = (found["median_percent"], found["p90_percent"], found["signed_median_percent"])
            lines.append(f"{name:<24}{cells[0]:>9.1f}{cells[1]:>8.1f}{cells[2]:>+10.1f}{found['points']:>8}{of_fit}")
    if result.host is not None:
        lines += ["", *result.host.lines]
    lines += [f"note: {line}" for line in result.notes]
    lines += [f"warning: {line}" for line in result.bounds]
    return "\n".join(lines)
