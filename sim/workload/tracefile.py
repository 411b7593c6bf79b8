"""Reads request traces: CSV with a header, in one of three layouts.

    arrival_s,prompt_tokens,output_tokens            plain: seconds, used as they stand
    TIMESTAMP,ContextTokens,GeneratedTokens          Azure: dates, or seconds; the first becomes 0
    Timestamp,Request tokens,Response tokens         BurstGPT: seconds; the first becomes 0

Other columns are ignored. A byte order mark, CRLF and quoted fields are read like their absence. Rows are sorted by
time, ties stay in the file's order. Rows without output tokens (failed requests in the published traces) are dropped
and counted. Anything that is missing, negative, infinite or no number is refused, with file, line and column.
"""

import csv
import io
from calendar import timegm
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from math import isfinite
from pathlib import Path as FilePath

import numpy as np
from numpy.typing import NDArray

from ..errors import Complaint, show, suggest

LAYOUTS = (
    ("arrival_s", "prompt_tokens", "output_tokens"),
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    ("Timestamp", "Request tokens", "Response tokens"),
)
MOST_TOKENS = 10**7
MOST_SECONDS = 1e12
NANO = 10**9


@dataclass(frozen=True)
class Trace:
    """The requests of a trace file, in order of arrival."""

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    dropped: int  # rows without output tokens
    absolute: bool  # whether the file has points in time, of which the first became 0


def read(path: FilePath, name: str) -> Trace:
    """The trace in a file; `name` is what messages call it. A Complaint with `name:line: column: what` otherwise."""
    try:
        stamp = path.stat()
        return _read(path, name, stamp.st_mtime_ns, stamp.st_size)
    except FileNotFoundError:
        raise Complaint(f"no such file: {name}") from None
    except OSError as error:
        raise Complaint(f"cannot be read: {name}: {error.strerror}") from None


@lru_cache(maxsize=4)
def _read(path: FilePath, name: str, _mtime_ns: int, _size: int) -> Trace:
    """Kept for the runs of a comparison, as long as the file stays the same."""
    return parse(decoded(path.read_bytes(), name), name)


def decoded(raw: bytes, name: str) -> str:
    """The text of a file; a Complaint where it is none."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Complaint(f"{name}:{raw[: error.start].count(10) + 1}: is not UTF-8 text") from None


def parse(text: str, name: str) -> Trace:
    """The trace in a text."""
    lines = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [column.strip() for column in next(lines, [])]
        layout, columns = _layout(header, name)
        rows = list(_rows(lines, columns, layout, len(header), name))
    except csv.Error as error:
        raise Complaint(f"{name}:{lines.line_num}: is not CSV: {error}") from None
    if not rows:
        raise Complaint(f"{name}:1: has a header, but no requests")
    stamps = np.array([row[0] for row in rows])
    kept = np.array([row[2] for row in rows]) > 0
    if not kept.any():
        raise Complaint(f"{name}:1: none of its {len(rows)} requests has output tokens")
    order = np.argsort(stamps[kept], kind="stable")
    prompts, outputs = (np.array([row[k] for row in rows], dtype=np.int64)[kept][order] for k in (1, 2))
    stamps = stamps[kept][order]
    absolute = layout is not LAYOUTS[0]
    arrival_s = (stamps - stamps[0]) / NANO if stamps.dtype.kind == "i" else stamps - (stamps[0] if absolute else 0.0)
    return Trace(arrival_s, prompts, outputs, int((~kept).sum()), absolute)


def _layout(header: list[str], name: str) -> tuple[tuple[str, str, str], list[int]]:
    """The layout whose columns are all there, and where they are."""
    for layout in LAYOUTS:
        if all(column in header for column in layout):
            for column in layout:
                if header.count(column) > 1:
                    raise Complaint(f"{name}:1: {column}: stands {header.count(column)} times in the header")
            return layout, [header.index(column) for column in layout]
    nearest = max(LAYOUTS, key=lambda layout: sum(column in header for column in layout))
    missing = next(column for column in nearest if column not in header)
    if not any(header):
        raise Complaint(f"{name}:1: is empty; a trace has a header with {', '.join(LAYOUTS[0])}")
    hint = suggest(missing, header).split("? ")
    near = f"; {hint[0]}?" if len(hint) > 1 else ""
    layouts = " or ".join(",".join(layout) for layout in LAYOUTS)
    raise Complaint(f"{name}:1: {missing}: column missing{near}; accepted: {layouts}")


def _rows(
    lines: Iterator[list[str]], columns: list[int], layout: tuple[str, str, str], width: int, name: str
) -> Iterator[tuple[float | int, int, int]]:
    first, second, third = columns
    line = 1
    stamp: Callable[[str], float | int] | None = None
    for row in lines:
        line = lines.line_num  # type: ignore[attr-defined]
        if not row or not any(row):
            continue  # an empty line, such as the last
        at = ""
        try:
            at = "row"
            if len(row) != width:
                raise ValueError(f"has {len(row)} fields, the header has {width}")
            at = layout[0]
            if stamp is None:  # dates or seconds: the first row decides
                stamp = _nanoseconds if _is_date(row[first]) else _seconds
            time = stamp(row[first])
            at = layout[1]
            prompt = count_of(row[second])
            at = layout[2]
            yield time, prompt, count_of(row[third])
        except ValueError as error:
            raise Complaint(f"{name}:{line}: {at}: {error}") from None


def count_of(text: str) -> int:
    """A field that holds a number of tokens."""
    if text.isdecimal() and len(text) < 9:  # the usual row, at once
        count = int(text)
    else:
        number = _number(text)
        if number < 0 or number != int(number):
            raise ValueError(f"must be a whole number of tokens >= 0, got {show(text.strip())}")
        count = int(number)
    if count > MOST_TOKENS:
        raise ValueError(f"must be at most {MOST_TOKENS} tokens, got {show(text.strip())}")
    return count


def _seconds(text: str) -> float:
    number = _number(text)
    if not 0 <= number <= MOST_SECONDS:
        raise ValueError(f"must be seconds from 0 to {MOST_SECONDS:g}, got {show(text.strip())}")
    return number


def _number(text: str) -> float:
    if not text.strip():
        raise ValueError("is missing")
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"must be a number, got {show(text.strip())}") from None
    if not isfinite(number) or "_" in text:
        raise ValueError(f"must be a finite number, got {show(text.strip())}")
    return number


def _is_date(text: str) -> bool:
    return len(text.strip()) >= 10 and text.strip()[4] == "-"


def _nanoseconds(text: str) -> int:
    """A date such as `2023-11-16 18:15:46.6805900` or `2024-05-10 00:00:00.009930+00:00`, in ns since 1970.

    In whole numbers, which keep all seven digits; seconds in a float do not.
    """
    word = text.strip()
    if not word:
        raise ValueError("is missing")
    try:
        seconds, offset_s = _zone(word[16:])
        whole, _, fraction = seconds.partition(".")
        if not (len(whole) == 3 and whole[0] == ":" and whole[1:] <= "60" and len(fraction) <= 9):
            raise ValueError
        if not (whole[1:] + fraction).isdecimal() or not word.isascii():
            raise ValueError
        return (_minute(word[:16]) + int(whole[1:]) - offset_s) * NANO + int(fraction.ljust(9, "0"))
    except ValueError:
        what = f"must be a date such as 2023-11-16 18:15:46.6805900, got {show(word)}"
        raise ValueError(what) from None


@lru_cache(maxsize=4096)
def _minute(word: str) -> int:
    """`2023-11-16 18:15` in seconds since 1970; thousands of requests share one."""
    if len(word) != 16 or word[4] + word[7] + word[13] != "--:" or word[10] not in " T":
        raise ValueError
    parts = (word[:4], word[5:7], word[8:10], word[11:13], word[14:16])
    if not all(part.isdecimal() for part in parts):
        raise ValueError
    year, month, date, hour, minute = (int(part) for part in parts)
    return timegm(datetime(year, month, date, hour, minute).timetuple())  # the zone is the caller's


def _zone(clock: str) -> tuple[str, int]:
    """The clock without its time zone, and the zone's offset in seconds."""
    if clock[-1:] in ("Z", "z"):
        return clock[:-1].rstrip(), 0
    for sign, factor in (("+", 1), ("-", -1)):
        if sign in clock:
            clock, _, zone = clock.partition(sign)
            digits = zone.replace(":", "").ljust(4, "0")
            if len(digits) != 4 or not digits.isdecimal():
                raise ValueError
            return clock.rstrip(), factor * (int(digits[:2]) * 3600 + int(digits[2:]) * 60)
    return clock, 0
