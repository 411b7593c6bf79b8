"""Prompt and output lengths drawn together from a CSV file, so that what goes with what in it stays so.

Without column names those of the trace layouts are looked for: prompt_tokens,output_tokens, then Azure's
ContextTokens,GeneratedTokens, BurstGPT's Request tokens,Response tokens and Vidur's
num_prefill_tokens,num_decode_tokens. Rows without prompt or output tokens
(failed requests) are never drawn.
"""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path as FilePath
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..errors import Complaint, suggest
from ..registry import register
from .tracefile import LAYOUTS, count_of, decoded

Resolve = Callable[[str], FilePath]
Column = Annotated[str | None, Field(min_length=1, max_length=200)]
VIDUR = ("num_prefill_tokens", "num_decode_tokens")
Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


@register("length_pairs", "empirical")
@dataclass
class Empirical:
    """Rows of a CSV file, each as likely as any other: prompt and output tokens of one row go together."""

    file: Annotated[str, Field(min_length=1, max_length=4000, description="path, relative to the scenario's file")]
    prompt_column: Annotated[Column, Field(description="header of the prompt tokens; none: as in a trace")] = None
    output_column: Annotated[Column, Field(description="header of the output tokens; none: as in a trace")] = None

    def __post_init__(self) -> None:
        for given, other in ((self.prompt_column, "output_column"), (self.output_column, "prompt_column")):
            if given is not None and getattr(self, other) is None:
                raise Complaint("missing; a file has two columns of lengths, name both or neither", other)

    def verify(self, resolve: Resolve) -> None:
        """Reads the whole file: what is wrong in it is known before anything is simulated."""
        try:
            self._pairs(resolve)
        except Complaint as complaint:
            raise complaint.under("file") from None

    def draw(self, rng: np.random.Generator, count: int, resolve: Resolve) -> Pairs:
        """Prompt and output tokens of `count` requests."""
        prompts, outputs = self._pairs(resolve)
        rows = rng.integers(0, prompts.size, count)
        return prompts[rows], outputs[rows]

    def _pairs(self, resolve: Resolve) -> Pairs:
        path = resolve(self.file)
        try:
            stamp = path.stat()
            return _read(path, self.file, self.prompt_column, self.output_column, stamp.st_mtime_ns, stamp.st_size)
        except FileNotFoundError:
            raise Complaint(f"no such file: {self.file}") from None
        except OSError as error:
            raise Complaint(f"cannot be read: {self.file}: {error.strerror}") from None


@lru_cache(maxsize=8)
def _read(path: FilePath, name: str, prompt: str | None, output: str | None, _mtime_ns: int, _size: int) -> Pairs:
    """Kept for the runs of a comparison, as long as the file stays the same."""
    return parse(decoded(path.read_bytes(), name), name, prompt, output)


def parse(text: str, name: str, prompt: str | None = None, output: str | None = None) -> Pairs:
    """The lengths in a text; `name` is what messages call it. A Complaint with `name:line: column: what` otherwise."""
    lines = csv.reader(io.StringIO(text, newline=""))
    rows: list[tuple[int, int]] = []
    try:
        header = [column.strip() for column in next(lines, [])]
        columns = _columns(header, name, prompt, output)
        places = [header.index(column) for column in columns]
        for row in lines:
            if not any(row):
                continue  # an empty line, such as the last
            at = "row"
            try:
                if len(row) != len(header):
                    raise ValueError(f"has {len(row)} fields, the header has {len(header)}")
                pair = []
                for column, place in zip(columns, places, strict=True):
                    at = column
                    pair.append(count_of(row[place]))
            except ValueError as error:
                raise Complaint(f"{name}:{lines.line_num}: {at}: {error}") from None
            rows.append((pair[0], pair[1]))
    except csv.Error as error:
        raise Complaint(f"{name}:{lines.line_num}: is not CSV: {error}") from None
    if not rows:
        raise Complaint(f"{name}:1: has a header, but no lengths")
    table = np.array(rows, dtype=np.int64)
    table = table[(table > 0).all(axis=1)]
    if not table.size:
        raise Complaint(f"{name}:1: none of its {len(rows)} rows has both prompt and output tokens")
    return table[:, 0], table[:, 1]


def _columns(header: list[str], name: str, prompt: str | None, output: str | None) -> tuple[str, str]:
    """The two columns that are asked for, or the first known pair."""
    if not any(header):
        raise Complaint(f"{name}:1: is empty; a file of lengths has a header")
    known = [*(layout[1:] for layout in LAYOUTS), VIDUR]
    if prompt is not None and output is not None:
        chosen = (prompt, output)
        missing = next((column for column in chosen if column not in header), None)
        if missing is not None:
            raise Complaint(f"{name}:1: {missing}: column missing; {suggest(missing, header)}")
    else:
        found = next((pair for pair in known if all(column in header for column in pair)), None)
        if found is None:
            pairs = " or ".join(",".join(pair) for pair in known)
            nearest = max(known, key=lambda pair: sum(column in header for column in pair))
            missing = next(column for column in nearest if column not in header)
            raise Complaint(
                f"{name}:1: {missing}: column missing; accepted: {pairs}, or name others by prompt_column and"
                " output_column"
            )
        chosen = found
    for column in chosen:
        if header.count(column) > 1:
            raise Complaint(f"{name}:1: {column}: stands {header.count(column)} times in the header")
    return chosen
