"""A bar on the terminal while points are measured, with the time left."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import Any


class Progress:
    """Counts points; nothing where stderr is no terminal. Time left never exceeds what the budget has."""

    def __init__(self, points: int, end: float) -> None:
        self._points, self._end = points, end
        self._begun = time.monotonic()
        self._count = 0
        self._stack = ExitStack()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            columns = (
                progress.TextColumn("measuring {task.fields[kind]:<17}"),
                progress.BarColumn(bar_width=20),
                progress.TextColumn("{task.completed}/{task.total} points, {task.fields[left]} left"),
            )
            bar = progress.Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar = self._stack.enter_context(bar)
            self._task = bar.add_task("", total=self._points, kind="", left=clock(self._end - self._begun))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def done(self, kind: str) -> None:
        """One more point of this kind is measured."""
        self._count += 1
        if self._bar is not None:
            self._bar.update(self._task, advance=1, kind=kind, left=clock(self.left_s(time.monotonic())))

    def left_s(self, now: float) -> float:
        """Seconds left, if the points to come take what the ones so far took."""
        each_s = (now - self._begun) / max(1, self._count)
        return max(0.0, min(self._end - now, each_s * (self._points - self._count)))


def clock(seconds: float) -> str:
    """m:ss"""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
