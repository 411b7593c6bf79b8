"""Errors of predictions, and which rows count.

An error is predicted / measured - 1. Quality A comes first, B stands by itself, C never counts. TTFT counts where less
than 5 s were measured: above, the run is saturated, and whether the simulator says so is told row by row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, field, replace

import numpy as np

from sim import models

from .build import Plan
from .predict import Prediction
from .rows import METRICS, Row

SATURATED_MS = 5000.0
CONCURRENCIES = (4, 8, 16, 32, 64, 128)
FEW_CLIENTS = 4  # the rows from which a front-end constant may come


@dataclass(frozen=True)
class Scored:
    """A simulated row: its prediction under the stated assumption, the others, and the other calibration's."""

    plan: Plan
    prediction: Prediction
    alternatives: tuple[Prediction, ...] = ()
    against: Prediction | None = None
    front_end_ms: float = 0.0  # added to TTFT and E2E
    left_out: frozenset[str] = frozenset()  # metrics that do not count, since something was taken from them
    note: str = ""  # of the calibration
    twin: str = ""  # an earlier row that is this one under another name

    @property
    def row(self) -> Row:
        return self.plan.row

    @property
    def unscored(self) -> str | None:
        """Why this row does not count at all."""
        if self.row.quality == "C":
            return "quality C"
        return "the same run stands under another name" if self.twin else self.plan.campaign.unscored(self.row)

    def predicted(self, metric: str, prediction: Prediction | None = None) -> float | None:
        found = (prediction or self.prediction).metrics.get(metric)
        late = self.front_end_ms if metric in ("ttft_ms", "e2e_ms") else 0.0
        return None if found is None else found + late

    def error(self, metric: str, prediction: Prediction | None = None) -> float | None:
        """predicted / measured - 1; None where either is missing."""
        measured, found = self.row.measured.get(metric), self.predicted(metric, prediction)
        return None if measured is None or found is None else found / measured - 1.0

    def counts(self, metric: str) -> bool:
        """Whether this metric of this row is in the score."""
        return not self.unscored and self.shows(metric)

    def shows(self, metric: str) -> bool:
        """Whether this metric of this row has an error worth a table, be it of the score or beside it."""
        if metric in self.left_out or metric not in self.row.measured:
            return False
        return not (metric == "ttft_ms" and self.saturated)

    @property
    def saturated(self) -> bool:
        return self.row.measured.get("ttft_ms", 0.0) >= SATURATED_MS

    @property
    def moe(self) -> bool:
        return models.parse(self.plan.scenario["model"]).is_moe


@dataclass(frozen=True)
class Errors:
    """Of one metric in one group of rows, as fractions."""

    rows: int
    median: float
    p90: float
    signed: float

    @staticmethod
    def of(errors: Iterable[float]) -> Errors | None:
        found = np.array(list(errors))
        if not len(found):
            return None
        sizes = np.abs(found)
        return Errors(len(found), float(np.median(sizes)), float(np.quantile(sizes, 0.9)), float(np.median(found)))


Key = Callable[[Scored], str]
GROUPS: dict[str, Key] = {
    "engine, GPU": lambda s: f"{s.row.engine} {s.plan.gpu} {'MoE' if s.moe else 'dense'}",
    "source": lambda s: s.plan.campaign.name,
    "model": lambda s: f"{s.plan.scenario['model']} {s.plan.scenario['engine']['weight_dtype']}",
    "TP": lambda s: f"{s.row.engine} {s.plan.gpu} {'MoE' if s.moe else 'dense'} TP{s.row.tp}",
    "concurrency": lambda s: concurrency(s.row),
}
"""By what rows are grouped."""


@dataclass(frozen=True)
class Group:
    """A line of the error table."""

    by: str
    name: str
    errors: dict[str, Errors]
    against: dict[str, Errors] = field(default_factory=dict)


def twins(rows: Sequence[Row]) -> dict[str, str]:
    """Rows that repeat an earlier one, configuration and measured values alike: {run_id: that of the earlier one}."""
    first: dict[tuple[object, ...], str] = {}
    found = {}
    for row in rows:
        if row.measured:
            same = replace(row, line=0, run_id="", notes="", measured={})
            earlier = first.setdefault((repr(astuple(same)), *sorted(row.measured.items())), row.run_id)
            if earlier != row.run_id:
                found[row.run_id] = earlier
    return found


def concurrency(row: Row) -> str:
    """The clients of a closed loop, in classes that sort; open loops by themselves."""
    if row.concurrency is None or row.mode != "agg":
        return "open loop" if row.mode == "agg" else row.mode.replace("_", " ")
    low = 0
    for high in CONCURRENCIES:
        if row.concurrency <= high:
            return f"c {low + 1:3d} to {high:3d}" if low else f"c   1 to {high:3d}"
        low = high
    return f"c over {low}"


def groups(scored: Sequence[Scored], quality: str) -> list[Group]:
    """The error table of a quality: all its rows, then by each of `GROUPS`."""
    rows = [each for each in scored if each.row.quality == quality and not each.unscored]
    return _groups(rows, {"all": lambda s: f"quality {quality}", **GROUPS})


def reported(scored: Sequence[Scored]) -> list[Group]:
    """Errors of rows of quality A and B that do not count, for information."""
    rows = [each for each in scored if each.row.quality != "C" and each.unscored]
    return _groups(
        rows, {"why": lambda s: str(s.unscored), "engine, GPU": GROUPS["engine, GPU"], "model": GROUPS["model"]}
    )


def _groups(rows: Sequence[Scored], keys: dict[str, Key]) -> list[Group]:
    found = []
    for by, key in keys.items():
        parts: dict[str, list[Scored]] = defaultdict(list)
        for each in rows:
            parts[key(each)].append(each)
        for name, part in sorted(parts.items()):
            errors, against = _errors(part, None), _errors(part, "against")
            if errors:
                found.append(Group(by, name, errors, against))
    return found


def _errors(part: Sequence[Scored], which: str | None) -> dict[str, Errors]:
    found = {}
    for metric in METRICS:
        values = []
        for each in part:
            other = each.against if which else each.prediction
            if other is not None and each.shows(metric) and (error := each.error(metric, other)) is not None:
                values.append(error)
        if (errors := Errors.of(values)) is not None:
            found[metric] = errors
    return found


def front_ends(scored: Sequence[Scored]) -> dict[tuple[str, str], float]:
    """(GPU, engine): the median of measured less predicted TTFT over rows of 4 clients, ms, never below 0."""
    missing: dict[tuple[str, str], list[float]] = defaultdict(list)
    for each in scored:
        measured, predicted = each.row.measured.get("ttft_ms"), each.prediction.metrics.get("ttft_ms")
        if each.row.concurrency == FEW_CLIENTS and each.counts("ttft_ms") and measured and predicted is not None:
            missing[each.plan.gpu, each.row.engine].append(measured - predicted)
    return {key: max(0.0, float(np.median(values))) for key, values in sorted(missing.items())}
