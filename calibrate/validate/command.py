"""python -m calibrate validate FILE: from measured rows to a report of predicted against measured."""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from sim.errors import Complaint, ScenarioError

from .build import Plan, build
from .files import as_json, write
from .names import Skip
from .predict import STATED, Calibrations, Job, Prediction, job, run_all
from .report import Validation, tables
from .rows import Row, read, select
from .score import FEW_CLIENTS, Scored, front_ends, twins

AGAINST = "calibration"  # the label of predictions with the other one


def add_parser(commands: Any) -> None:
    """Enter `validate` among the subcommands."""
    parser: argparse.ArgumentParser = commands.add_parser("validate", help="simulate measured serving runs and compare")
    parser.add_argument("file", type=Path, help="the table of measured runs, CSV")
    parser.add_argument(
        "--filter", action="append", default=[], metavar="COLUMN=PATTERN",
        help="rows that match, such as gpu=H100* or quality!=C; repeat for more",
    )  # fmt: skip
    parser.add_argument(
        "--calibration", action="append", default=[], metavar="NAME|FILE|FOLDER",
        help="default (the packaged one of each GPU and engine), ideal, or files; repeat for several GPUs",
    )  # fmt: skip
    parser.add_argument(
        "--against", action="append", default=[], metavar="NAME|FILE|FOLDER", help="a second calibration, side by side"
    )
    front = parser.add_mutually_exclusive_group()
    front.add_argument(
        "--front-end-ms", type=_milliseconds, metavar="MS", help="added to each TTFT, beside the calibration's own"
    )
    front.add_argument(
        "--fit-front-end", action="store_true",
        help="one constant for each engine and GPU, from rows of 4 clients, which then do not count",
    )  # fmt: skip
    parser.add_argument("--no-alternatives", action="store_true", help="only the stated assumption of each row")
    parser.add_argument("--worst", type=int, default=8, metavar="N", help="worst rows shown of each metric")
    parser.add_argument("--seed", type=_seed, default=0, help="of the drawn lengths and arrivals")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes; default: as many as there are cores")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="also write validation.csv, report.txt, scatter.png ..."
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.set_defaults(run=run)


def _milliseconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 60_000:
        raise argparse.ArgumentTypeError("must be from 0 to 60000")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError("must be from 0 to 4294967295")
    return value


def run(options: argparse.Namespace) -> int:
    """Exit code: 0, or 2 if the file or an option is not as it must be."""
    try:
        for name, value, least in (("worst", options.worst, 0), ("jobs", options.jobs, 1)):
            if value is not None and value < least:
                raise ScenarioError(f"--{name}: must be {least} or more, got {value}")
        rows = read(options.file)
        try:
            chosen = select(rows, options.filter)
        except Complaint as complaint:
            raise ScenarioError(f"--filter: {complaint.what}") from None
        if not chosen:
            raise ScenarioError(f"{options.file}: no row{' passes --filter' if options.filter else 's'}")
        found = validate(chosen, options)
        if options.out:
            _write(found, options.out)
    except ScenarioError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(as_json(found), indent=2, allow_nan=False))
    else:
        console = Console()
        Console(width=max(console.width, 130)).print(tables(found))
        if options.out:
            print(f"\n{options.out}: written")
    return 0


def _write(found: Validation, folder: Path) -> None:
    from .plot import scatter  # late: matplotlib takes a second

    try:
        write(found, folder)
        scatter(found.scored, folder / "scatter.png", f"{Path(found.file).name}, calibration {found.calibration}")
    except OSError as error:
        raise ScenarioError(f"{folder}: cannot be written: {error.strerror}") from None


def validate(rows: list[Row], options: argparse.Namespace) -> Validation:
    """Simulate the rows; `options` as `add_parser` has them."""
    first, second = Calibrations(options.calibration), Calibrations(options.against) if options.against else None
    plans: list[tuple[Plan, str]] = []  # and the note of the calibration
    skipped: list[tuple[Row, str]] = []
    jobs: list[Job] = []
    for row in rows:
        try:
            plan = build(row)
            word, note = first.of(plan.gpu, plan.kernels)
            if word is None:
                raise Skip(f"no calibration for {plan.gpu} among {first}")
        except Skip as reason:
            skipped.append((row, str(reason)))
            continue
        plans.append((plan, note))
        jobs.append(job(plan, STATED, word, options.seed))
        if not options.no_alternatives:
            jobs += [job(plan, label, word, options.seed) for label in plan.alternatives]
        other = second.of(plan.gpu, plan.kernels)[0] if second else None
        if other is not None:
            jobs.append(replace(job(plan, STATED, other, options.seed), label=AGAINST))
    predictions: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in run_all(jobs, options.jobs, _Progress(len(jobs))):
        predictions[prediction.run_id].append(prediction)
    scored = []
    again = twins(rows)
    for plan, note in plans:
        stated, *more = predictions[plan.row.run_id]
        if stated.failed:
            skipped.append((plan.row, stated.failed))
            continue
        against = next((p for p in more if p.label == AGAINST and not p.failed), None)
        if against is not None:
            against = replace(against, label=f"calibration={second}")
        others = tuple(p for p in more if p.label != AGAINST and not p.failed)
        scored.append(Scored(plan, stated, others, against, note=note, twin=again.get(plan.row.run_id, "")))
    constants: dict[tuple[str, str], float] = {}
    if options.front_end_ms is not None:
        constants = {(s.plan.gpu, s.row.engine): options.front_end_ms for s in scored}
    elif options.fit_front_end:
        constants = front_ends(scored)
    if constants:
        scored = [_late(each, constants, options.fit_front_end) for each in scored]
    order = {row.run_id: number for number, row in enumerate(rows)}
    skipped.sort(key=lambda pair: order[pair[0].run_id])
    return Validation(
        file=rows[0].file,
        rows=len(rows),
        calibration=str(first),
        against=str(second) if second else "",
        scored=tuple(scored),
        skipped=tuple(skipped),
        front_ends=constants,
        fitted=options.fit_front_end,
        most_worst=options.worst,
    )


def _late(scored: Scored, constants: dict[tuple[str, str], float], fitted: bool) -> Scored:
    """With the front end's constant; rows that it came from leave the score of what it enters."""
    value = constants.get((scored.plan.gpu, scored.row.engine), 0.0)
    taken = fitted and scored.row.concurrency == FEW_CLIENTS
    return replace(scored, front_end_ms=value, left_out=frozenset(("ttft_ms", "e2e_ms") if taken else ()))


class _Progress:
    """Counts simulations on the terminal, where there is one."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.shown = total, 0, sys.stderr.isatty()

    def __call__(self) -> None:
        self.done += 1
        if self.shown:
            end = "\n" if self.done == self.total else ""
            print(f"\r{self.done} of {self.total} simulations", end=end, file=sys.stderr, flush=True)
