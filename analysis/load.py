"""Result folders -> runs.

A result folder says by itself what it holds; where it stands only helps to tell two like ones apart. Tables are read
when first asked for, and only the columns that the analysis uses.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from sim import inter_token_gaps

from .catalog import PARTS

FILES = ("scenario.yaml", "summary.json", "run.json", "requests.parquet", "spans.parquet", "steps.parquet")
REQUEST_COLUMNS = (
    *("request_id", "class", "status", "arrival_s", "first_token_s", "finish_s", "prompt_tokens", "output_tokens"),
    *("preemptions", "replica", *(f"{part}_s" for part in PARTS)),
)
SPAN_COLUMNS = ("request_id", "engine", "lane", "first_step", "first_tick", "ticks")
STEP_COLUMNS = (
    *(
        "engine",
        "lane",
        "step",
        "tick",
        "decided_s",
        "start_s",
        "end_s",
        "seqs",
        "emitted",
        "kv_blocks_used",
        "waiting",
    ),
    *("prefill_tokens", "decode_tokens"),
)
DEEPEST = 3
"""compare folder / policy and rate / replication: no result folder is looked for further down."""


class ResultError(Exception):
    """A folder that holds no whole result; the text names the folder and what is missing."""


@dataclass(eq=False)
class Run:
    """One result folder."""

    folder: Path
    scenario: dict[str, Any]
    summary: dict[str, Any]
    info: dict[str, Any]

    @property
    def policy(self) -> str:
        """Its label as `compare` gave it, else the name of the policy that the first pool runs."""
        label = self.summary.get("policy")
        if not label:
            pools = list(((self.scenario.get("cluster") or {}).get("pools") or {}).values())
            label = (name_of(pools[0].get("policy")) if pools else None) or name_of(self.scenario.get("policy"))
        return str(label or self.folder.resolve().name)

    @property
    def rate_per_s(self) -> float | None:
        """Requests a second that were asked for; None where arrivals have no rate (a trace as it is, a closed loop)."""
        rate = self.summary.get("rate_per_s")
        if rate is None and "rate_per_s" not in self.summary:
            arrivals = (self.scenario.get("workload") or {}).get("arrivals")
            rate = arrivals.get("rate_per_s") if isinstance(arrivals, dict) else None
        return None if rate is None else float(rate)

    @property
    def note(self) -> str:
        return str(self.summary.get("note") or "")

    @property
    def warmup_s(self) -> float:
        return float(self.summary.get("warmup_s") or 0.0)

    @cached_property
    def draws(self) -> tuple[object, ...]:
        """What decides which requests come: runs that have it in common saw the same ones."""
        scenario = self.scenario
        seed, workload = scenario.get("seed"), str(scenario.get("workload"))
        return (seed, self.summary.get("replication", 0), workload, scenario.get("name"))

    def table(self, kind: str, columns: Sequence[str]) -> pa.Table:
        """Some columns of one of the folder's tables."""
        path = self.folder / f"{kind}.parquet"
        try:
            missing = [name for name in columns if name not in pq.read_schema(path).names]
            if missing:
                raise ResultError(f"{self.folder}: {path.name} has no column {', '.join(missing)}")
            return pq.read_table(path, columns=list(columns))
        except (pa.ArrowException, OSError) as error:
            raise ResultError(f"{self.folder}: {path.name} cannot be read: {str(error).splitlines()[0]}") from error

    @cached_property
    def requests(self) -> pd.DataFrame:
        """One row a request, times in seconds, with `measured` (it counts for latencies) and the latencies in ms."""
        frame: pd.DataFrame = self.table("requests", REQUEST_COLUMNS).to_pandas()
        frame["measured"] = (frame["status"] == "finished") & (frame["arrival_s"] >= self.warmup_s)
        frame["ttft_ms"] = (frame["first_token_s"] - frame["arrival_s"]) * 1000
        frame["e2el_ms"] = (frame["finish_s"] - frame["arrival_s"]) * 1000
        after_first = (frame["output_tokens"] - 1).where(frame["output_tokens"] > 1)
        frame["tpot_ms"] = (frame["finish_s"] - frame["first_token_s"]) * 1000 / after_first
        return frame

    @cached_property
    def steps(self) -> pd.DataFrame:
        """One row a step, by engine, lane and step."""
        frame: pd.DataFrame = self.table("steps", STEP_COLUMNS).to_pandas()
        return frame

    @cached_property
    def gaps(self) -> tuple[np.ndarray, np.ndarray]:
        """(inter-token latencies of the measured requests in ms, how many times each occurs)."""
        requests = self.table("requests", ("request_id",))
        spans = self.table("spans", SPAN_COLUMNS)
        steps = self.table("steps", ("engine", "lane", "step", "tick", "end_s"))
        gap_s, weight = inter_token_gaps(requests, spans, steps, self.requests["measured"].to_numpy())
        return gap_s * 1000, weight

    def distribution(self, name: str, label: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(values, weights) of one of `catalog.DISTRIBUTIONS`, latencies in ms; empty where the run has none. With a
        class's label over its requests only, for what is measured of requests."""
        if name in ("tpot", "itl") and not self.summary.get("streamed", True):
            return np.empty(0), np.empty(0, np.int64)
        if name == "itl":
            return self.gaps
        if name == "output":
            return self._output_by_second()
        counted = self.requests["measured"]
        requests = self.requests[counted if label is None else counted & (self.requests["class"] == label)]
        if name == "speed":
            values = (1000 * requests["output_tokens"] / requests["e2el_ms"].where(requests["e2el_ms"] > 0)).dropna()
        else:
            values = requests[f"{name}_ms"].dropna()
        return values.to_numpy(), np.ones(len(values), np.int64)

    def _output_by_second(self) -> tuple[np.ndarray, np.ndarray]:
        """(tokens generated in a second of the measured window, how many such seconds there were)."""
        seconds = int(self.summary.get("duration") or 0.0)
        if not seconds or not len(self.steps):
            return np.empty(0), np.empty(0, np.int64)
        at = self.steps["end_s"].to_numpy() - self.warmup_s
        inside = (at >= 0) & (at < seconds)
        busy, place = np.unique(at[inside].astype(np.int64), return_inverse=True)
        tokens = np.bincount(place, weights=self.steps["emitted"].to_numpy()[inside], minlength=len(busy))
        values, counts = np.unique(np.append(tokens, 0.0), return_counts=True)
        counts[0] += seconds - len(busy) - 1  # of the idle ones; the one appended is not theirs
        return values[counts > 0], counts[counts > 0]


def find(folders: Iterable[Path | str]) -> list[Run]:
    """The runs in these folders: each a result folder, or one that holds result folders (as `compare` writes them)."""
    runs = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ResultError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
        found = _inside(folder)
        if not found:
            missing = ", ".join(FILES[:2])
            raise ResultError(f"{folder}: holds no result of `sim run` or `sim compare` ({missing} are missing)")
        runs += [read(each) for each in found]
    return list({run.folder.resolve(): run for run in runs}.values())


def read(folder: Path) -> Run:
    """The result in this very folder."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ResultError(f"{folder}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    scenario = _mapping(folder, "scenario.yaml", yaml.safe_load, yaml.YAMLError)
    summary = _mapping(folder, "summary.json", json.loads, ValueError)
    return Run(folder, scenario, summary, _mapping(folder, "run.json", json.loads, ValueError))


def name_of(component: Any) -> str | None:
    """`vllm` of `vllm` or of {name: vllm, ...}."""
    if isinstance(component, dict):
        component = component.get("name")
    return None if component is None else str(component)


def _inside(folder: Path, depth: int = 0) -> list[Path]:
    """Result folders at or below `folder`, in the order of their names. One with some of a result's files counts if
    there is none below it, so that a broken result is named instead of being passed over."""
    if any((folder / f"{kind}.parquet").is_file() for kind in ("requests", "spans", "steps")):
        return [folder]
    found = []
    if depth < DEEPEST:
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        found = [each for path in sorted(below, key=replication) for each in _inside(path, depth + 1)]
    return found or [folder for name in FILES[:1] if (folder / name).is_file()]


def _mapping(folder: Path, name: str, parse: Any, problem: type[Exception]) -> dict[str, Any]:
    try:
        found = parse((folder / name).read_text(encoding="utf-8"))
    except (problem, OSError, UnicodeDecodeError) as error:
        raise ResultError(f"{folder}: {name} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict):
        raise ResultError(f"{folder}: {name} is not a mapping")
    return found


def replication(folder: Path) -> int:
    """k of rep-k, so that rep-10 comes after rep-9; 0 for other names, which keep their order."""
    _, dash, number = folder.name.rpartition("rep-")
    return int(number) if dash and number.isdigit() else 0
