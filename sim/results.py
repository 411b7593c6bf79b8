"""Simulations and their result folders.

These are written under a temporary name and renamed when whole, so that a killed run leaves no half result.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ScenarioError
from .run import simulate

if TYPE_CHECKING:
    from .frontend import Progress
    from .scenario import Scenario

# Any of these says that a folder was written by us, and may be replaced.
MARKS = ("run.json", "comparison.csv", "rep-0/run.json")


@dataclass(frozen=True)
class Job:
    """One simulation to be run: a replication of a scenario, into an existing, empty folder."""

    scenario: Scenario
    folder: Path
    replication: int = 0


@dataclass(frozen=True)
class Outcome:
    """What is left of a simulation whose tables are in its folder; small enough to come back from another process."""

    job: Job
    summary: dict[str, Any]
    facts: dict[str, Any]
    warnings: list[str]


def jobs(scenario: Scenario, folder: Path) -> list[Job]:
    """All replications of a scenario: into `folder` itself, or rep-0, rep-1 ... below it, which are made."""
    folder.mkdir(exist_ok=True)
    if scenario.replications == 1:
        return [Job(scenario, folder)]
    made = [Job(scenario, folder / f"rep-{number}", number) for number in range(scenario.replications)]
    for job in made:
        job.folder.mkdir()
    return made


def run(job: Job, progress: Progress | None = None) -> Outcome:
    """Simulate, and write the result folder."""
    started = datetime.now(UTC)
    result = simulate(job.scenario, replication=job.replication, folder=job.folder, progress=progress)
    _write_text(job.folder / "scenario.yaml", job.scenario.to_yaml())
    _write_json(job.folder / "summary.json", result.summary)
    _write_json(
        job.folder / "run.json",
        {
            "servesim": release(),
            "started_at": started.isoformat(timespec="seconds"),
            **result.facts,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "warnings": result.warnings,
        },
    )
    return Outcome(job, result.summary, result.facts, result.warnings)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` once the block has ended well.

    ScenarioError if something stands there that is not a result, or it cannot be written.
    """
    ours = folder.is_dir() and any((folder / mark).exists() for mark in MARKS)
    if folder.exists() and not ours and not (folder.is_dir() and not any(folder.iterdir())):
        raise ScenarioError(f"{folder}: exists and holds no results of a run; name another folder, or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except FileExistsError as error:
        raise ScenarioError(f"{folder}: cannot be written: {error.filename} is a file") from None
    except OSError as error:
        raise ScenarioError(f"{folder}: cannot be written: {error.strerror}") from None
    try:
        made.chmod(0o777 & ~_umask())
        yield made
        old = made.with_name(made.name + "-old")
        if folder.exists():
            folder.rename(old)
        made.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def release() -> str:
    """The version of this software."""
    try:
        return version("servesim")
    except PackageNotFoundError:
        return "unknown"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
