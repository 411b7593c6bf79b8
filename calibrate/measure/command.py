"""python -m calibrate measure --device cuda|cpu --out DIR"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from sim.errors import Complaint, ScenarioError, show, suggest

from ..data import DTYPES
from . import grid
from .grid import Point, Shape
from .progress import Progress
from .store import Store

_MINUTES = {"cuda": 8.0, "cpu": 1.0}
NEEDS_TORCH = "measuring needs PyTorch: pip install 'servesim[measure]'"


def add_parser(commands: Any) -> None:
    """The subcommand; `run` of the parsed options is what to call."""
    parser = commands.add_parser("measure", help="time real steps and kernels on the GPU or CPU at hand")
    parser.add_argument("--device", required=True, choices=("cuda", "cpu"), help="where to run")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder; a run goes on where one ended")
    parser.add_argument("--model", help="a known model or a config.json (default: llama-3.1-8b; on a CPU a tiny one)")
    parser.add_argument("--tp", type=_count, default=1, metavar="N", help="measure one GPU's share of N (default 1)")
    parser.add_argument("--layers", type=_count, default=4, metavar="N", help="layers of the stack (default 4)")
    parser.add_argument(
        "--dtypes",
        type=_dtypes,
        metavar="LIST",
        help="of weights, comma separated: bfloat16, float16, float32, fp8 (default: bfloat16, and fp8 if the GPU can)",
    )
    parser.add_argument("--minutes", type=_minutes, metavar="M", help="stop in time (default: 8; on a CPU 1)")
    parser.add_argument("--threads", type=_count, default=1, metavar="N", help="threads on a CPU (default 1: steadier)")
    parser.add_argument("--quick", action="store_true", help="a coarse grid, on a CPU of smaller shapes: seconds")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure what is missing in the folder. Exit code: 0, also where time ran out; 130 if interrupted."""
    try:
        import torch
    except ModuleNotFoundError:
        raise ScenarioError(NEEDS_TORCH) from None
    from . import device as devices
    from .session import Session

    began = time.monotonic()
    devices.refuse_missing(options.device)
    dtypes = options.dtypes or ["bfloat16"]
    if options.dtypes is None and options.device == "cuda" and devices.has_fp8("cuda"):
        dtypes = ["bfloat16", "fp8"]
    elif "fp8" in dtypes and not devices.has_fp8(options.device):
        raise ScenarioError(f"--dtypes: no matrix products in fp8 on {devices.card(options.device)}")
    shape, model = _shape(options)
    points = grid.points(shape, _axes(options), dtypes)
    if options.quick and options.device == "cuda":
        points = grid.coarse(points)
    _make(options.out)
    end = began + 60 * (options.minutes or _MINUTES[options.device])
    threads = options.threads if options.device == "cpu" else 1
    with _threads(torch, threads), torch.inference_mode():
        session = Session(options.device, threads, shape, options.quick)
        known = devices.already(options.out, options.device, threads, shape.model(model.name))
        with Store(options.out, "torch", torch.__version__) as store:
            todo = [point for point in points if not store.has(point)]
            try:
                if known is None or (todo and known.get("torch") != torch.__version__):
                    made = devices.describe(options.device, threads, dtypes, model, shape, session.timer)
                    devices.keep(options.out, made)
                _measure(todo, session, store, end)
            except KeyboardInterrupt:
                rows = sum(store.has(point) for point in points)
                print(f"interrupted: {rows} of {len(points)} points are there; {_AGAIN}", file=sys.stderr)
                return 130
            _report(points, todo, session.skipped, store, time.monotonic() - began)
    return 0


_AGAIN = "the same command goes on from here"


def _measure(todo: Sequence[Point], session: Any, store: Store, end: float) -> None:
    """Measure level by level until done or out of time.

    On a CPU in several turns, of which a point keeps its least time: what else runs on a machine slows stretches of
    seconds, and one turn would take that for a property of the points that it meets then.
    """
    last = session.turns - 1
    with Progress(len(todo) * session.turns, end) as progress:
        for _, group in groupby(todo, key=lambda point: point.level):
            points = list(group)
            found: dict[int, tuple[str, float]] = {}  # what is not yet in the store, by place in `points`
            try:
                for turn in range(session.turns):
                    for place, point in enumerate(points):
                        if time.monotonic() >= end:
                            return
                        if turn and place not in found:  # left out
                            continue
                        new = session.measure(point, first=turn == 0)
                        if new is not None:
                            found[place] = min(new, found.get(place, new), key=lambda pair: pair[1])
                            if turn == last:
                                store.add(point, *found.pop(place))
                        progress.done(point.kind)
            finally:  # out of time, interrupted or a wrong result: what has had a turn is kept
                for place, pair in found.items():
                    store.add(points[place], *pair)


def _report(
    points: Sequence[Point], todo: Sequence[Point], skipped: dict[str, int], store: Store, seconds: float
) -> None:
    measured = sum(store.has(point) for point in todo)
    print(f"measured {measured} points in {seconds:.1f} s, {len(points) - len(todo)} were there already")
    for why, count in skipped.items():
        print(f"{count} points left out: {why}")
    left = len(todo) - measured - sum(skipped.values())
    if left:
        print(f"out of time with {left} of {len(points)} points to go, the finest; {_AGAIN}")
    for kind in grid.KINDS:
        print(f"  {store.path(kind)}: {store.rows(kind)} rows")


def _shape(options: argparse.Namespace) -> tuple[Shape, Any]:
    try:
        model = grid.model_of(options.model, options.device, options.quick)
        return Shape.of(model, options.tp, options.layers), model
    except Complaint as complaint:
        name = "--tp" if "GPUs" in complaint.what else "--model"
        raise ScenarioError(f"{name}: {complaint.what}") from None


def _axes(options: argparse.Namespace) -> grid.Axes:
    if options.device == "cuda":
        return grid.CUDA_AXES
    return grid.QUICK_AXES if options.quick else grid.CPU_AXES


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ScenarioError(f"--out: {folder}: {error.strerror}") from None


@contextmanager
def _threads(torch: Any, count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got {show(text)}")
    return int(text)


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {show(text)}")
    return value


def _dtypes(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in DTYPES:
            raise argparse.ArgumentTypeError(f"unknown dtype {show(word)}; {suggest(word, DTYPES)}")
    return list(dict.fromkeys(words))
