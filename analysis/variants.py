"""Runs -> variants: one policy at one rate with its replications, a line in a plot and a row of the table."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sim import mean_interval

from .catalog import ANEW, PARTS
from .load import Run, replication

FEW = 1000
"""A p99 of fewer values than this rests on fewer than ten of them, and is marked."""
WORST = ("stable", "drained", "no data", "above capacity")


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

    def interval(self, metric: str) -> tuple[float | None, float | None, float | None]:
        """(mean over replications, low, high) at 95 %; no interval with one, nothing without data."""
        found = self.values(metric)
        return mean_interval(found) if found else (None, None, None)

    def half_width(self, metric: str) -> float | None:
        """Of the interval, which lies evenly about the mean."""
        mean, low, _ = self.interval(metric)
        return None if mean is None or low is None else mean - low

    def few(self, metric: str) -> bool:
        """Whether this is a p99 that rests on fewer than `FEW` values in some replication."""
        which, _, rest = metric.partition("_")
        name = rest.removesuffix("_ms")
        key = f"measured_{name}" if name in ("tpot", "itl") else "measured"
        counts = [int(run.summary.get(key) or FEW) for run in self.runs]
        return which == "p99" and self.value(metric) is not None and min(counts) < FEW

    @property
    def verdict(self) -> tuple[str, str]:
        """(stable, above capacity, drained or no data; the evidence), of the replication that fares worst."""
        told = [
            (str(run.summary.get("verdict") or ""), str(run.summary.get("verdict_evidence") or "")) for run in self.runs
        ]
        return max(told, key=lambda pair: WORST.index(pair[0]) if pair[0] in WORST else -1)

    def parts_s(self) -> dict[str, float | None]:
        """Mean seconds of a measured request's time by part."""
        means = {part: self.value(f"mean_{part}_ms") for part in PARTS}
        return {part: None if mean is None else mean / 1000 for part, mean in means.items()}

    def called(self, part: str) -> str:
        """What a part of its requests' time is called. Without preemptions `preempted` is the time of requests that
        went back to the queue by themselves, as tgi's do at its limit of outputs."""
        return ANEW if part == "preempted" and self.value("preemptions") == 0 else PARTS[part]

    def distribution(self, name: str, label: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """As `Run.distribution`, of all replications together."""
        parts = [run.distribution(name, label) for run in self.runs]
        return np.concatenate([values for values, _ in parts]), np.concatenate([weights for _, weights in parts])


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
        made.append(Variant(label, rate, sorted(members, key=lambda run: replication(run.folder))))
    order = [str(label) for run in runs for label in run.scenario.get("policies") or ()]
    order += [variant.label for variant in made]
    return sorted(made, key=lambda each: (order.index(_known(each, order)), each.label, each.rate_per_s or 0.0))


def finished(variant: Variant) -> str:
    """`198/200`: requests that finished, of all that arrived."""
    done, every = (variant.value(name) or 0.0 for name in ("finished", "requests"))
    return f"{done:,.0f}" if done == every else f"{done:,.0f}/{every:,.0f}"


def _family(folder: Path) -> Path:
    """What replications have in common: rep-0, rep-1 ... stand in one folder."""
    whole = folder.resolve()
    return whole.parent if whole.name.startswith("rep-") else whole


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
