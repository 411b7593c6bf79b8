"""Simulating rows: which calibration prices them, and the predicted counterparts of the measured columns.

Rows are independent of each other: they run in processes of their own, and what they give does not depend on how many.
"""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import sim
from sim.consistency import check
from sim.cost import find_calibration, packaged
from sim.errors import ScenarioError

from .build import TRACE, Plan, Scenario
from .rows import METRICS, Row

STATED = "stated"  # the assumption under which validation.csv predicts
DEFAULT, IDEAL = "default", "ideal"


@dataclass(frozen=True)
class Prediction:
    """What a simulation of a row gives: metrics under the names of the measured columns (ms, per s), and evidence."""

    run_id: str
    label: str  # STATED, or the assumption that differs
    metrics: dict[str, float]
    evidence: dict[str, Any] = field(default_factory=dict)
    failed: str = ""  # why it could not be simulated, else empty


class Calibrations:
    """Words and files of `--calibration` -> the one for a GPU and an engine."""

    def __init__(self, words: Sequence[str]) -> None:
        """ScenarioError if a file cannot be read."""
        self.words = tuple(words) or (DEFAULT,)
        self._files: dict[tuple[str, str], str] = {}
        self._any: str | None = None  # a calibration of no GPU in particular
        self._default = DEFAULT in self.words
        self._folders = [Path(word) for word in self.words if Path(word).is_dir()]
        for folder in self._folders:
            if not any(folder.glob("*.yaml")):
                raise ScenarioError(f"{folder}: no calibration in it; expected files such as h100_sxm-vllm.yaml")
        for word in self.words:
            if word == DEFAULT or Path(word).is_dir():
                continue
            found = find_calibration(word, None)
            path = word if word == IDEAL or word in packaged() else str(Path(word).resolve())
            if found.gpu == "any":
                self._any = path
            else:
                self._files[found.gpu, found.engine] = path

    def of(self, gpu: str, engine: str) -> tuple[str | None, str]:
        """(what a scenario's `calibration` is to be, a note); None where these words have none for the GPU."""
        for folder in self._folders:
            for name in (f"{gpu}-{engine}", gpu, f"{gpu}-vllm"):
                if (path := folder / f"{name}.yaml").is_file():
                    return str(path.resolve()), "" if engine in name or name == gpu else f"kernels of vllm for {engine}"
        if (path := self._files.get((gpu, engine))) is not None:  # type: ignore[assignment]
            return str(path), ""
        other = next((key for key in sorted(self._files) if key[0] == gpu), None)
        if other is not None:
            return self._files[other], f"kernels of {other[1]} for {engine}"
        if self._default:
            for name in (f"{gpu}-{engine}", f"{gpu}-vllm"):
                if name in packaged():
                    return name, "" if name.endswith(engine) else f"kernels of vllm for {engine}"
            return IDEAL, f"no calibration of {gpu} with {engine}: the ideal roofline, optimistic"
        return self._any, ""

    def __str__(self) -> str:
        return ", ".join(self.words)


@dataclass(frozen=True)
class Job:
    """One simulation."""

    row: Row
    label: str
    scenario: Scenario
    trace: str | None
    stats: tuple[str, str]  # of TTFT and TPOT
    seed: int


def job(plan: Plan, label: str, calibration: str, seed: int) -> Job:
    """The simulation of a row under one of its assumptions."""
    scenario = copy.deepcopy(plan.scenario if label == STATED else plan.alternatives[label])
    scenario["cost"] = {"name": "roofline", "calibration": calibration, "noise": False}
    row, stat = plan.row, plan.campaign.stat

    def stated(text: str) -> str:
        return text if text and text != "unspecified" else stat

    return Job(row, label, scenario, plan.trace, (stated(row.ttft_stat), stated(row.tpot_stat)), seed)


def run_all(jobs: Sequence[Job], processes: int | None, ended: Callable[[], None] = lambda: None) -> list[Prediction]:
    """Predictions in the order of the jobs; `processes` at a time, None: as many as there are cores."""
    import joblib  # late: the commands beside this one start without it

    at_a_time = min(len(jobs), processes or joblib.cpu_count())
    if at_a_time <= 1:
        found = []
        for each in jobs:
            found.append(predict(each))
            ended()
        return found
    given = []
    work = (joblib.delayed(predict)(each) for each in jobs)
    for prediction in joblib.Parallel(at_a_time, return_as="generator", batch_size=4)(work):
        given.append(prediction)
        ended()
    return given


def predict(job: Job) -> Prediction:
    """Simulate; what is refused is told, not raised."""
    row = job.row
    try:
        with tempfile.TemporaryDirectory(prefix="validate-") as folder:
            if job.trace is not None:
                (Path(folder) / TRACE).write_text(job.trace)
            scenario, blocks = _loaded(job, Path(folder))
            result = sim.simulate(scenario)
    except ScenarioError as error:
        what = re.sub(r"^\S*scenario\.yaml(:\d+)*: ", "", str(error))  # it lay in a folder that is gone
        return Prediction(row.run_id, job.label, {}, failed=f"refused: {what}")
    summary = result.summary
    if summary["finished"] == 0:
        return Prediction(row.run_id, job.label, {}, failed=f"nothing finished: {'; '.join(result.warnings)[:200]}")
    keys = ("max_kv_usage", "mean_kv_usage", "preemptions", "max_batch_size", "mean_waiting", "max_waiting", "verdict")
    evidence = {
        key: summary[key]
        for key in (*keys, "mean_queue_ms", "prefix_cache_hit_rate", "kv_blocks", "finished", "requests")
    }
    evidence["predicted_kv_blocks"] = blocks
    for name in ("ttft", "tpot", "e2el"):
        evidence |= {f"{which}_{name}_ms": summary[f"{which}_{name}_ms"] for which in ("mean", "median")}
    evidence["warnings"] = result.warnings
    metrics = {name: value for name, value in _metrics(summary, job).items() if value is not None}
    return Prediction(row.run_id, job.label, metrics, evidence)


def _loaded(job: Job, folder: Path) -> tuple[sim.Scenario, int]:
    """The scenario, and the KV blocks that the memory's formula gives, whatever the row states."""
    data = {**job.scenario, "seed": job.seed}
    engine = {k: v for k, v in data["engine"].items() if k != "num_gpu_blocks_override"}
    free = _scenario({**data, "engine": engine}, folder)
    blocks = next(iter(check(free).values())).sizes.kv_blocks
    return (free if engine == data["engine"] else _scenario(data, folder)), blocks


def _scenario(data: Scenario, folder: Path) -> sim.Scenario:
    return sim.load_text(yaml.safe_dump(data, sort_keys=False), str(folder / "scenario.yaml"))


def _metrics(summary: dict[str, Any], job: Job) -> dict[str, float | None]:
    ttft, tpot = job.stats
    found = {
        "ttft_ms": _latency(summary, "ttft", ttft),
        "tpot_ms": _latency(summary, "tpot", tpot),
        "e2e_ms": summary["mean_e2el_ms"],
        "req_per_s": summary["request_throughput"],
        "output_tok_per_s": summary["output_throughput"],
    }
    mean_output = summary["total_output_tokens"] / summary["completed"] if summary["completed"] else 0.0
    if "e2e/" in tpot and mean_output:  # the source divides all of it by the output
        found["tpot_ms"] = summary["mean_e2el_ms"] / mean_output
    elif tpot.startswith("derived") and mean_output > 1:  # a ratio of means
        found["tpot_ms"] = (summary["mean_e2el_ms"] - summary["mean_ttft_ms"]) / (mean_output - 1)
    elif "ITL" in tpot:
        found["tpot_ms"] = summary["mean_itl_ms"]
    return {name: found[name] for name in METRICS}


def _latency(summary: dict[str, Any], name: str, stat: str) -> float | None:
    which = "median" if stat in ("p50", "median") else "mean"
    found: float | None = summary[f"{which}_{name}_ms"]
    return found
