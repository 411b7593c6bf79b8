"""Errors by operator and shape range: median, 90th percentile and signed median of predicted / measured - 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

HEADS = ("operator", "range", "points", "median %", "p90 %", "signed %")
ALL = "all"


def summary(points: pd.DataFrame) -> list[dict[str, Any]]:
    """One mapping a line: each range of each operator, in order of size, then `all` of it where there are several."""
    found = []
    for operator, mine in points.groupby("operator", sort=False):
        ranges = mine.groupby("range")["size"].min()
        order = sorted(ranges.index, key=lambda label: (_first_number(label), ranges[label]))
        for label in order:
            found.append({"operator": operator, "range": label, **errors(mine[mine["range"] == label])})
        if len(order) > 1:
            found.append({"operator": operator, "range": ALL, **errors(mine)})
    return found


def errors(points: pd.DataFrame) -> dict[str, Any]:
    """Of predicted / measured - 1, in percent."""
    off = 100 * (points["predicted_s"] / points["measured_s"] - 1).to_numpy(float)
    return {
        "points": len(off),
        "median_percent": float(np.median(np.abs(off))),
        "p90_percent": float(np.percentile(np.abs(off), 90)),
        "signed_percent": float(np.median(off)),
    }


def text(rows: list[dict[str, Any]]) -> str:
    """The same as a table."""
    lines, before = [HEADS], ""
    for row in rows:
        name = row["operator"] if row["operator"] != before else ""
        before = row["operator"]
        reached = (f"{row['median_percent']:.1f}", f"{row['p90_percent']:.1f}", f"{row['signed_percent']:+.1f}")
        lines.append((name, row["range"], f"{row['points']:,}", *reached))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = []
    for line in lines:
        cells = [
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        shown.append("  ".join(cells).rstrip())
    return "\n".join(shown)


def _first_number(label: str) -> int:
    """GPUs in front of all-reduce ranges, which sort by them first."""
    word = label.split(" GPUs")[0]
    return int(word) if word.isdecimal() else 0
