"""Two panels an operator: measured against predicted, and the error against the size, coloured by shape range."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .points import UNITS
from .serving import ITL, TTFT
from .table import ALL, errors

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc3d6b", "#7a5195", "#56b4e9", "#8c6d1f", "#d55e00", "#444444")
MOST = 4000  # points drawn of one operator
LEAST_SPAN, MOST_SPAN = 20.0, 100.0  # percent, of the error's axis
MUTED = "#5b6672"


def draw(points: pd.DataFrame, rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Write a PNG."""
    operators = list(points["operator"].unique())
    columns = 1 if len(operators) == 1 else 2
    deep = -(-len(operators) // columns)
    figure = Figure(figsize=(8.4 * columns, 3.3 * deep + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, fontweight="bold", x=0.01, ha="left")
    grid = figure.subplots(deep, 2 * columns, squeeze=False)
    for place, operator in enumerate(operators):
        left, right = grid[place // columns][2 * (place % columns) :][:2]
        _one(left, right, points[points["operator"] == operator], operator, rows)
    for empty in grid.flat[2 * len(operators) :]:
        empty.set_axis_off()
    figure.savefig(path, dpi=110)


def _one(left: Axes, right: Axes, mine: pd.DataFrame, operator: str, rows: list[dict[str, Any]]) -> None:
    ranges = [row["range"] for row in rows if row["operator"] == operator and row["range"] != ALL]
    colour = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(ranges)}
    drawn = mine.iloc[:: -(-len(mine) // MOST)]
    hue = drawn["range"].map(colour).to_numpy()
    small = 5 if len(drawn) > 500 else 14
    unit, factor = _unit(mine["measured_s"])
    measured, predicted = drawn["measured_s"] * factor, drawn["predicted_s"] * factor
    off = 100 * (drawn["predicted_s"] / drawn["measured_s"] - 1)
    left.scatter(measured, predicted, s=small, c=hue, linewidths=0, alpha=0.55, rasterized=True, zorder=2)
    ends = np.array([min(measured.min(), predicted.min()) * 0.8, max(measured.max(), predicted.max()) * 1.25])
    left.plot(ends, ends, color="#222", linewidth=1, zorder=3)
    left.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    left.set_xlabel(f"measured ({unit})")
    left.set_ylabel(f"predicted ({unit})")
    found = errors(mine)
    left.set_title(operator, loc="left", fontsize=10.5, fontweight="bold")
    right.set_title(
        f"median {found['median_percent']:.1f} %, p90 {found['p90_percent']:.1f} %, "
        f"signed {found['signed_percent']:+.1f} %",
        loc="left",
        fontsize=9.5,
        color=MUTED,
    )
    span = float(np.clip(1.15 * np.percentile(np.abs(off), 99), LEAST_SPAN, MOST_SPAN))
    right.axhspan(-10, 10, color="#e9edf2", zorder=0)
    right.axhline(0, color="#222", linewidth=1, zorder=1)
    right.scatter(
        drawn["size"], off.clip(-span, span), s=small, c=hue, linewidths=0, alpha=0.55, rasterized=True, zorder=2
    )
    right.set(xscale="log", ylim=(-span * 1.04, span * 1.04))
    right.set_xlabel(_size(operator))
    right.set_ylabel("predicted / measured - 1 (%)")
    handles = [right.scatter([], [], s=22, color=colour[label], label=label) for label in ranges]
    right.legend(handles=handles, fontsize=7, ncols=2 if len(ranges) > 4 else 1, framealpha=0.85, loc="best")
    for axes in (left, right):
        axes.tick_params(labelsize=8)
        axes.grid(True, color="#dde3ea", linewidth=0.6, zorder=0)
        axes.set_axisbelow(True)
        for which in ("x", "y") if axes is left else ("x",):
            axis = axes.xaxis if which == "x" else axes.yaxis
            axis.set_major_locator(LogLocator(numticks=7))
            axis.set_major_formatter(FuncFormatter(_short))
            axis.set_minor_formatter(NullFormatter())


def _size(operator: str) -> str:
    names = {**UNITS, TTFT: "prompt length", ITL: "sequences that decode", "step": "tokens computed and read"}
    return next(unit for title, unit in names.items() if operator.startswith(title))


def _unit(seconds: pd.Series[float]) -> tuple[str, float]:
    return ("us", 1e6) if seconds.median() < 1e-3 else ("ms", 1e3)


def _short(value: float, _: int) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
