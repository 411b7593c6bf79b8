"""The table of measured serving runs: one checked `Row` a line, and filters over its columns.

Times are ms, rates per second, lengths tokens. Empty is None (text: ""): not published. Whatever is not as it must be
is refused with file, line and column.
"""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import isfinite, isnan
from pathlib import Path
from typing import Any

from sim.errors import Complaint, ScenarioError, show, suggest

METRICS = ("ttft_ms", "tpot_ms", "e2e_ms", "req_per_s", "output_tok_per_s")
"""The columns that are predicted."""
QUALITIES = ("A", "B", "C")
TEXT = (
    *("run_id", "quality", "gpu", "model", "weight_dtype", "kv_dtype", "engine", "engine_version", "mode", "arrival"),
    *("length_dist", "prefix_caching", "ttft_stat", "tpot_stat", "notes"),
)
WHOLE = ("tp", "concurrency", "num_requests", "max_num_seqs", "max_num_batched_tokens", "kv_blocks", "kv_tokens")
DEGREES = ("num_gpus", "pp", "dp", "ep")  # 0, 1 and empty mean the same
NUMBERS = ("request_rate_rps", "duration_s", "isl_mean", "osl_mean")
NEEDED = ("run_id", "quality", "gpu", "tp", "model", "engine")
COLUMNS = (*TEXT, *WHOLE, *DEGREES, *NUMBERS, *METRICS)


@dataclass(frozen=True)
class Row:
    """One measured run. `measured` holds those of `METRICS` that are published."""

    file: str
    line: int
    run_id: str
    quality: str
    gpu: str
    model: str
    weight_dtype: str
    kv_dtype: str
    engine: str
    engine_version: str
    mode: str
    arrival: str
    length_dist: str
    prefix_caching: str
    ttft_stat: str
    tpot_stat: str
    notes: str
    tp: int
    concurrency: int | None
    num_requests: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    kv_blocks: int | None
    kv_tokens: int | None
    num_gpus: int | None
    pp: int | None
    dp: int | None
    ep: int | None
    request_rate_rps: float | None
    duration_s: float | None
    isl_mean: float | None
    osl_mean: float | None
    measured: dict[str, float]

    @property
    def folder(self) -> Path:
        """Where the table lies; paths in it are relative to that, or to the folder above."""
        return Path(self.file).parent


def read(path: Path | str) -> list[Row]:
    """All rows of a CSV file, plain or gzipped. ScenarioError, `file:line: column: what is wrong`, at a fault."""
    path = Path(path)
    try:
        with _opened(path) as stream:
            return list(_rows(path, csv.reader(stream, strict=True)))
    except UnicodeDecodeError:
        raise ScenarioError(f"{path}: not UTF-8 text") from None
    except (OSError, EOFError) as error:
        raise ScenarioError(f"{path}: {getattr(error, 'strerror', None) or 'not a whole gzip file'}") from None


def _opened(path: Path) -> Any:
    return gzip.open(path, "rt", encoding="utf-8-sig", newline="") if path.suffix == ".gz" else path.open(
        encoding="utf-8-sig", newline=""
    )  # fmt: skip


def _rows(path: Path, lines: Any) -> Iterator[Row]:
    try:
        header = next(lines, None)
        if not header:
            raise ScenarioError(f"{path}:1: empty; the first line names the columns")
        for name in COLUMNS:
            if header.count(name) != 1:
                what = "column stands twice" if name in header else f"column missing; the file has {', '.join(header)}"
                raise ScenarioError(f"{path}:1: {name}: {what}")
        seen: dict[str, int] = {}
        for cells in lines:
            if not cells:
                continue
            if len(cells) != len(header):
                raise ScenarioError(f"{path}:{lines.line_num}: {len(cells)} fields, the header names {len(header)}")
            row = _row(path, lines.line_num, dict(zip(header, cells, strict=True)))
            if (first := seen.setdefault(row.run_id, row.line)) != row.line:
                raise ScenarioError(f"{path}:{row.line}: run_id: {show(row.run_id)} stands already in line {first}")
            yield row
    except csv.Error as error:
        raise ScenarioError(f"{path}:{lines.line_num}: not CSV: {error}") from None


def _row(path: Path, line: int, cells: dict[str, str]) -> Row:
    def refuse(name: str, wanted: str) -> ScenarioError:
        return ScenarioError(f"{path}:{line}: {name}: must be {wanted}, got {show(cells[name])}")

    def number(name: str, wanted: str, allowed: Callable[[float], bool]) -> float | None:
        text = cells[name].strip()
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            raise refuse(name, wanted) from None
        if isnan(value) or not allowed(value):
            raise refuse(name, wanted)
        return value

    for name in NEEDED:
        if not cells[name].strip():
            raise ScenarioError(f"{path}:{line}: {name}: missing")
    found: dict[str, Any] = {name: cells[name].strip() for name in TEXT}
    if found["quality"] not in QUALITIES:
        raise refuse("quality", f"one of {', '.join(QUALITIES)}")
    for names, least in ((WHOLE, 1), (DEGREES, 0)):
        for name in names:
            value = number(name, f"a whole number from {least}", lambda v, k=least: v >= k and v == v // 1 < 1e15)  # type: ignore[misc]
            found[name] = None if value is None else int(value)
    for name in NUMBERS:  # all requests at once may be written as an infinite rate
        infinite = name == "request_rate_rps"
        found[name] = number(name, "a number over 0", lambda v, i=infinite: v > 0 and (i or isfinite(v)))  # type: ignore[misc]
    measured = {name: number(name, "a number over 0", lambda v: v > 0 and isfinite(v)) for name in METRICS}
    kept = {name: value for name, value in measured.items() if value is not None}
    return Row(file=str(path), line=line, measured=kept, **found)


def select(rows: Sequence[Row], filters: Sequence[str]) -> list[Row]:
    """Rows that pass filters `COLUMN=PATTERN` or `COLUMN!=PATTERN` (with * and ?, whatever the capitals); of several
    = on one column one is enough, otherwise all must hold. Complaint for a filter that is not of that form."""
    wanted: dict[str, list[str]] = defaultdict(list)
    unwanted: list[tuple[str, str]] = []
    for text in filters:
        name, equals, pattern = text.partition("=")
        negated = name.endswith("!")
        name = name.removesuffix("!").strip()
        if not equals:
            raise Complaint(f"must be COLUMN=PATTERN or COLUMN!=PATTERN, got {show(text)}")
        if name not in COLUMNS or name in METRICS:
            raise Complaint(f"unknown column {show(name)}; {suggest(name, [c for c in COLUMNS if c not in METRICS])}")
        if negated:
            unwanted.append((name, pattern.strip().lower()))
        else:
            wanted[name].append(pattern.strip().lower())
    return [
        row
        for row in rows
        if all(any(_matches(row, name, pattern) for pattern in patterns) for name, patterns in wanted.items())
        and not any(_matches(row, name, pattern) for name, pattern in unwanted)
    ]


def _matches(row: Row, name: str, pattern: str) -> bool:
    value = getattr(row, name)
    text = "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return fnmatchcase(text.lower(), pattern)
