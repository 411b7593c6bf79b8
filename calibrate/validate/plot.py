"""The scatter plot: predicted against measured, a panel a metric, both axes logarithmic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .rows import METRICS
from .score import Scored

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")  # Okabe and Ito's
MARKERS = ("o", "s", "^", "D", "v", "P")
UNITS = {
    "ttft_ms": "TTFT, ms",
    "tpot_ms": "TPOT, ms",
    "e2e_ms": "E2E latency, ms",
    "req_per_s": "requests/s",
    "output_tok_per_s": "output tokens/s",
}
BAND = 0.2  # errors within the grey band


def scatter(scored: Sequence[Scored], path: Path, title: str) -> bool:
    """Draw the rows of quality A (filled) and B (open) that count; False, and no file, if nothing was measured."""
    shown = [s for s in scored if not s.unscored]
    metrics = [m for m in METRICS if any(s.error(m) is not None for s in shown)]
    if not metrics:
        return False
    gpus, engines = sorted({s.plan.gpu for s in shown}), sorted({s.row.engine for s in shown})
    colours = {gpu: COLOURS[i % len(COLOURS)] for i, gpu in enumerate(gpus)}
    markers = {engine: MARKERS[i % len(MARKERS)] for i, engine in enumerate(engines)}
    columns = min(3, len(metrics))
    lines = -(-len(metrics) // columns)
    figure = Figure(figsize=(4.3 * columns, 4.2 * lines + 0.9), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, metric in zip(grid, metrics, strict=False):
        _panel(axes, metric, [s for s in shown if s.error(metric) is not None], colours, markers)
    for axes in grid[len(metrics) :]:
        axes.set_axis_off()
    handles = [Line2D([], [], color=colours[gpu], marker="o", linestyle="", label=gpu) for gpu in gpus]
    handles += [Line2D([], [], color="#5b6675", marker=markers[e], linestyle="", label=e) for e in engines]
    handles += [
        Line2D([], [], color="#5b6675", marker="o", linestyle="", markerfacecolor="none", label="quality B"),
        Line2D([], [], color="#e4e8ee", linewidth=8, label=f"within {BAND:.0%}"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(8, len(handles)), frameon=False)
    figure.suptitle(title, fontsize=10, ha="left", x=0.01)
    figure.savefig(path, metadata={"Software": None})
    return True


def _panel(axes: Axes, metric: str, rows: Sequence[Scored], colours: dict[str, str], markers: dict[str, str]) -> None:
    values = [v for s in rows for v in (s.row.measured[metric], s.predicted(metric)) if v]
    low, high = min(values) / 1.3, max(values) * 1.3
    ends = np.array([low, high])
    axes.fill_between(ends, ends * (1 - BAND), ends * (1 + BAND), color="#e4e8ee", linewidth=0)
    axes.plot(ends, ends, color="#aab3bf", linewidth=1)
    for each in rows:
        predicted = each.predicted(metric)
        assert predicted is not None  # it has an error
        colour = colours[each.plan.gpu]
        face = colour if each.row.quality == "A" else "none"
        axes.plot(
            each.row.measured[metric], predicted, marker=markers[each.row.engine], markersize=4,
            color=colour, markerfacecolor=face, markeredgewidth=0.8, alpha=0.75, linestyle="",
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set_xlabel("measured", fontsize=8)
    axes.set_ylabel("predicted", fontsize=8)
    axes.set_title(f"{UNITS[metric]} ({len(rows)} rows)", fontsize=9)
    narrow = high / low < 30
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
