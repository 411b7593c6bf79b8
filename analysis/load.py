"""Result folders -> runs, and runs -> variants (one policy at one rate, with its replications).

A result folder says by itself what it holds; where it stands only helps to tell two like ones apart. Tables are read
when first asked for, and only the columns that the analysis uses.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from sim.metrics import PARTS, REQUEST_COLUMNS, SPAN_COLUMNS, inter_token_gaps

FILES = ("scenario.yaml", "summary.json", "run.json", "requests.parquet", "spans.parquet", "steps.parquet")
STEP_COLUMNS = ("engine", "lane", "step", "tick", "start_s", "end_s", "seqs", "kv_blocks_used", "waiting")
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
            pools = (self.scenario.get("cluster") or {}).get("pools") or {}
            label = name_of(next(iter(pools.values()), {}).get("policy")) or name_of(self.scenario.get("policy"))
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

    def latencies(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(values in ms, weights) of `ttft`, `tpot`, `itl` or `e2el`; empty where the run has none."""
        if name in ("tpot", "itl") and not self.summary.get("streamed", True):
            return np.empty(0), np.empty(0, np.int64)
        if name == "itl":
            return self.gaps
        values = self.requests.loc[self.requests["measured"], f"{name}_ms"].dropna().to_numpy()
        return values, np.ones(len(values), np.int64)

    def parts_s(self) -> dict[str, float | None]:
        """Mean seconds of a measured request's time by part."""
        means = {part: self.summary.get(f"mean_{part}_ms") for part in PARTS}
        return {part: None if mean is None else mean / 1000 for part, mean in means.items()}


@dataclass(eq=False)
class Variant:
    """One policy at one rate: a line in a plot, a row of the table. `runs` are its replications."""

    label: str
    rate_per_s: float | None
    runs: list[Run] = field(default_factory=list)

    @property
    def first(self) -> Run:
        """The replication that stands for all where a picture can show only one, as in timelines."""
        return self.runs[0]

    @property
    def note(self) -> str:
        return self.first.note

    def values(self, metric: str) -> list[float]:
        """The metric of each replication that has it."""
        found = [run.summary.get(metric) for run in self.runs]
        return [float(value) for value in found if value is not None]

    def value(self, metric: str) -> float | None:
        """Mean over replications; None: no data."""
        found = self.values(metric)
        return sum(found) / len(found) if found else None

    def latencies(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """As `Run.latencies`, of all replications together."""
        parts = [run.latencies(name) for run in self.runs]
        return np.concatenate([values for values, _ in parts]), np.concatenate([weights for _, weights in parts])


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


def variants(runs: Sequence[Run]) -> list[Variant]:
    """Runs by policy and rate, in the order of the scenario's policies (else that of the folders) and of the rates.

    Runs of one policy and rate that are not replications of each other (two folders given by hand) are kept apart by
    their folders' names.
    """
    families: dict[tuple[str, float | None, Path], list[Run]] = {}
    for run in runs:
        families.setdefault((run.policy, run.rate_per_s, _family(run.folder)), []).append(run)
    apart = _names_apart([family for _, _, family in families])
    seen = [key[:2] for key in families]
    ambiguous = {policy for policy, rate in seen if seen.count((policy, rate)) > 1}
    made = []
    for (policy, rate, family), members in families.items():
        label = f"{policy} ({apart[family]})" if policy in ambiguous else policy
        made.append(Variant(label, rate, sorted(members, key=lambda run: _number(run.folder))))
    order = [str(label) for run in runs for label in run.scenario.get("policies") or ()]
    order += [variant.label for variant in made]
    return sorted(made, key=lambda each: (order.index(_known(each, order)), each.label, each.rate_per_s or 0.0))


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
        found = [each for path in sorted(below, key=_number) for each in _inside(path, depth + 1)]
    return found or [folder for name in FILES[:1] if (folder / name).is_file()]


def _mapping(folder: Path, name: str, parse: Any, problem: type[Exception]) -> dict[str, Any]:
    try:
        found = parse((folder / name).read_text(encoding="utf-8"))
    except (problem, OSError, UnicodeDecodeError) as error:
        raise ResultError(f"{folder}: {name} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict):
        raise ResultError(f"{folder}: {name} is not a mapping")
    return found


def _family(folder: Path) -> Path:
    """What replications have in common: rep-0, rep-1 ... stand in one folder."""
    whole = folder.resolve()
    return whole.parent if whole.name.startswith("rep-") else whole


def _number(folder: Path) -> int:
    """k of rep-k, so that rep-10 comes after rep-9; 0 for other names, which keep their order."""
    _, dash, number = folder.name.rpartition("rep-")
    return int(number) if dash and number.isdigit() else 0


def _names_apart(folders: Sequence[Path]) -> dict[Path, str]:
    """The shortest ends of these paths that differ."""
    length = 1
    while True:
        names = {folder: "/".join(folder.parts[-length:]) for folder in folders}
        if len(set(names.values())) == len(names) or length >= max(len(folder.parts) for folder in folders):
            return names
        length += 1


def _known(variant: Variant, order: Sequence[str]) -> str:
    """The variant's place in the order: its policy's, where its label had to be made longer."""
    return variant.first.policy if variant.first.policy in order else variant.label
