"""What a validation says to programs: one JSON object, and the files of `--out`."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from .report import Validation, all_worst, assumptions, capacity, saturated, tables
from .rows import METRICS
from .score import groups, reported

WIDTH = 150  # of report.txt


def as_json(found: Validation) -> dict[str, Any]:
    """For programs; errors are fractions, times ms."""
    return {
        "file": found.file,
        "rows": found.rows,
        "simulated": len(found.scored),
        "calibration": found.calibration,
        "against": found.against or None,
        "front_end_ms": {f"{gpu}-{engine}": value for (gpu, engine), value in found.front_ends.items()},
        "errors": {
            quality: [
                {"by": g.by, "group": g.name, "errors": {m: asdict(e) for m, e in g.errors.items()},
                 **({"against": {m: asdict(e) for m, e in g.against.items()}} if found.against else {})}
                for g in groups(found.scored, quality)
            ]
            for quality in found.qualities
        },
        "reported": [
            {"by": g.by, "group": g.name, "errors": {m: asdict(e) for m, e in g.errors.items()}}
            for g in reported(found.scored)
        ],
        "saturated": [
            {"run_id": s.row.run_id, "measured_ttft_ms": s.row.measured["ttft_ms"],
             "predicted_ttft_ms": s.predicted("ttft_ms"),
             "against_ttft_ms": s.predicted("ttft_ms", s.against) if s.against else None}
            for s in saturated(found)
        ],
        "kv_blocks": capacity(found),
        "worst": [
            {"run_id": w.scored.row.run_id, "metric": w.metric, "error": w.error, "reason": w.reason}
            for w in all_worst(found)
        ],
        "unscored": [{"run_id": s.row.run_id, "reason": s.unscored} for s in found.scored if s.unscored],
        "skipped": [{"run_id": row.run_id, "reason": reason} for row, reason in found.skipped],
        "assumptions": assumptions(found),
    }  # fmt: skip


def write(found: Validation, folder: Path) -> None:
    """validation.csv, alternatives.csv, skipped.csv and report.txt. OSError if the folder cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    values = (
        (s.row.run_id, metric, _plain(s.row.measured.get(metric)), _plain(s.predicted(metric)))
        for s in found.scored
        for metric in METRICS
        if s.predicted(metric) is not None
    )
    _csv(folder / "validation.csv", ("run_id", "metric", "measured", "predicted"), values)
    others = (
        (s.row.run_id, other.label, metric, _plain(s.row.measured.get(metric)), _plain(s.predicted(metric, other)))
        for s in found.scored
        for other in (*s.alternatives, *([s.against] if s.against else []))
        for metric in METRICS
        if s.predicted(metric, other) is not None
    )
    _csv(folder / "alternatives.csv", ("run_id", "assumption", "metric", "measured", "predicted"), others)
    _csv(folder / "skipped.csv", ("run_id", "reason"), ((row.run_id, reason) for row, reason in found.skipped))
    with (folder / "report.txt").open("w", encoding="utf-8") as file:
        Console(file=file, width=WIDTH, color_system=None).print(tables(found), soft_wrap=False)


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.8g}"


def _csv(path: Path, header: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(lines)
