"""A line on the terminal while simulations run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .frontend import Progress
    from .results import Job, Outcome


class ProgressLine:
    """One line for each simulation that runs in this process, and one that counts them where there are several;
    nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._bar: Any = None

    def __enter__(self) -> ProgressLine:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = self._stack.enter_context(
                Progress(
                    TextColumn("{task.description}"),
                    BarColumn(bar_width=20),
                    TextColumn("{task.fields[told]}, left"),
                    TimeRemainingColumn(),
                    console=Console(stderr=True),
                    transient=True,
                )
            )
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def progress(self, job: Job) -> Progress | None:
        """The callback of one simulation in this process."""
        if self._bar is None:
            return None
        bar, scenario = self._bar, job.scenario
        name = scenario.policy_label + (f" {job.replication + 1}/{scenario.replications}" if job.replication else "")
        task = bar.add_task(name, total=None, told="")
        duration_s = scenario.workload.duration_s

        def show(simulated_s: float, done: int, total: int | None) -> None:
            speed = done / (bar.tasks[task].elapsed or 1e-9)
            completed, whole = (simulated_s, duration_s) if duration_s is not None else (done, total)
            told = f"{done:,} requests, {simulated_s:,.0f} s simulated, {speed:,.0f} requests/s"
            bar.update(task, completed=completed, total=whole, told=told)

        return show

    def counting(self, total: int) -> Callable[[Outcome], None]:
        """What to call as each of `total` simulations ends."""
        if self._bar is None or total == 1:
            return lambda _: None
        bar, requests = self._bar, 0
        task = bar.add_task("all", total=total, told=f"0 of {total} simulations")

        def ended(outcome: Outcome) -> None:
            nonlocal requests
            requests += outcome.summary["requests"]
            done = int(bar.tasks[task].completed) + 1
            speed = requests / (bar.tasks[task].elapsed or 1e-9)
            told = f"{done} of {total} simulations, {requests:,} requests, {speed:,.0f} requests/s"
            bar.update(task, completed=done, told=told)

        return ended
