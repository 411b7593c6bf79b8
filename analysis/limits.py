"""Which limit of the SLO the requests miss."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from .catalog import SLO_OF
from .load import Run
from .variants import Variant


def missed(one: Variant) -> dict[str, float]:
    """Share of the requests that miss each limit (`ttft`, `tpot`, `e2el`), and of those that do not finish."""
    found = [_of(run) for run in one.runs]
    return {name: sum(each[name] for each in found) / len(found) for name in found[0]}


def has_limit(one: Variant, key: str) -> bool:
    """Whether the SLO of any of its requests limits this."""
    scenario = one.first.scenario
    labels = (scenario.get("workload") or {}).get("classes") or [""]
    return any(_limit(scenario, label, key) is not None for label in labels)


def _of(run: Run) -> dict[str, float]:
    requests = run.requests[run.requests["arrival_s"] >= run.warmup_s]
    finished = requests["status"] == "finished"
    shares = {"unfinished": float((~finished).mean())}
    for name, key in SLO_OF.items():
        limit = requests["class"].map(lambda label, key=key: _limit(run.scenario, label, key))
        shares[name] = float((finished & (requests[f"{name}_ms"] > pd.to_numeric(limit))).mean())
    return shares


def _limit(scenario: Mapping[str, Any], label: str, key: str) -> float | None:
    """Of a class: its own SLO, else the scenario's."""
    kind = ((scenario.get("workload") or {}).get("classes") or {}).get(label) or {}
    return ((kind.get("slo") or scenario.get("slo")) or {}).get(key)
