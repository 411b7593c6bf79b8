"""A folder of measured rows that a run can be cut off from at any moment, and go on with.

Each row is written and flushed as it is measured. A last line without its end is what a kill left: it is dropped when
the file is opened again, and that point is measured anew.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TextIO

from sim.errors import ScenarioError

from ..data import COLUMNS, read_kernels
from .grid import Point, key_columns


class Store:
    """The files of one folder, opened for appending; a context manager that closes them."""

    def __init__(self, folder: Path, backend: str, version: str) -> None:
        self.folder = folder
        self._what = {"backend": backend, "version": version}
        self._files: dict[str, TextIO] = {}
        self._done: dict[str, set[tuple[str, ...]]] = {}

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()

    def path(self, kind: str) -> Path:
        return self.folder / f"{kind}.csv"

    def has(self, point: Point) -> bool:
        """Whether this version of the software has measured it."""
        return point.key in self._opened(point.kind)

    def add(self, point: Point, kernel: str, latency_us: float) -> None:
        """Append a row, whole and on the disk's way before this returns."""
        done = self._opened(point.kind)
        row = {**self._what, "kernel": kernel, **point.values, "latency_us": f"{latency_us:.6g}"}
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([row[name] for name in COLUMNS[point.kind]])
        file = self._files[point.kind]
        file.write(line.getvalue())
        file.flush()
        done.add(point.key)

    def rows(self, kind: str) -> int:
        """Rows of this version in the file."""
        return len(self._opened(kind))

    def _opened(self, kind: str) -> set[tuple[str, ...]]:
        if kind not in self._done:
            self._done[kind] = self._recover(kind)
            self._files[kind] = self.path(kind).open("a", encoding="utf-8", newline="")
        return self._done[kind]

    def _recover(self, kind: str) -> set[tuple[str, ...]]:
        path = self.path(kind)
        packed = path.with_name(f"{path.name}.gz")
        if packed.exists():
            raise ScenarioError(
                f"{packed}: a packed file cannot be added to; unpack it (gunzip), or use another folder"
            )
        header = ",".join(COLUMNS[kind]) + "\n"
        try:
            if path.exists():
                text = path.read_bytes()
                whole = text[: text.rfind(b"\n") + 1]
                if len(whole) < len(text):
                    with path.open("r+b") as file:
                        file.truncate(len(whole))
            else:
                whole = b""
            if not whole:
                path.write_text(header, "utf-8")
        except OSError as error:
            raise ScenarioError(f"{path}: {error.strerror}") from None
        first = whole[: whole.find(b"\n") + 1].decode("utf-8", "replace") or header
        if first != header:
            raise ScenarioError(f"{path}:1: the columns must be {header.strip()}, for rows are added")
        rows = read_kernels(path, kind)
        ours = rows[(rows["version"] == self._what["version"]) & (rows["backend"] == self._what["backend"])]
        return set(ours[key_columns(kind)].astype(str).itertuples(index=False, name=None))
