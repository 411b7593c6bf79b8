"""Batch size, KV use and waiting requests over simulated time."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..load import Run
from ..stats import binned_mean
from ..variants import Variant
from . import style
from .style import Plot

BINS = 240
MOST_COLUMNS = 3
MOST_OF_MEDIAN = 5
"""Strips end at so many times the time at which the middle run does."""
ROWS = (
    ("batch", "batch size", "sequences in the batch"),
    ("kv", "KV use", "KV cache in use"),
    ("waiting", "waiting", "requests waiting"),
)
CAPTION = (
    "Averages over equal slices of the run, all replicas together. A full KV cache or a batch at its limit explains a "
    "queue; a queue that only grows means that the rate is above capacity."
)


def over_time(variants: Sequence[Variant]) -> Plot:
    """Lines by policy, a column a rate (some of them where there are many); strips of colour for many policies."""
    rates = _chosen(style.rates_of(variants))
    caption = CAPTION
    if len(rates) < len(style.rates_of(variants)):
        caption += f" Shown for {', '.join(f'{rate:g}' for rate in rates if rate is not None)} requests/s."
    title = "Batch size, KV cache and queue over time"
    policies = len({variant.label for variant in variants})
    strips = policies > style.MOST_LINES
    png = style.rendered(_draw_strips if strips else _draw_lines, variants, title)
    return Plot("timelines", title, caption, png, wide=True)


def _chosen(rates: list[float | None]) -> list[float | None]:
    """Lowest, highest and what lies between them, as many as there are columns."""
    places = np.linspace(0, len(rates) - 1, min(MOST_COLUMNS, len(rates))).round().astype(int)
    return [rates[place] for place in places]


def _draw_lines(variants: Sequence[Variant], title: str) -> Figure:
    look = style.looks(variants)
    one_policy = len(look) == 1
    rates = _chosen(style.rates_of(variants))
    handles = [] if one_policy else [Line2D([], [], color=one.color, label=label) for label, one in look.items()]
    columns = len(rates)
    figure, every = style.frame(
        title,
        3 * columns,
        columns=columns,
        width=style.WIDE,
        panel_height=1.55,
        handles=handles,
        note=style.note_of(variants),
        sharex="col",
        sharey="row",
    )
    for column, rate in enumerate(rates):
        mine = [variant for variant in variants if variant.rate_per_s == rate]
        end_s = max((float(variant.first.summary.get("end_s") or 0.0) for variant in mine), default=0.0)
        unit, seconds = _time_unit(end_s)
        edges = np.linspace(0.0, end_s, BINS + 1)
        for row, (name, _, _) in enumerate(ROWS):
            axes = every[row * columns + column]
            for variant in mine:
                values = _values(variant.first, name, edges)
                axes.plot(
                    edges[:-1] / seconds,
                    values,
                    color=look[variant.label].color,
                    linewidth=1.5,
                    drawstyle="steps-post",
                )
        if len(rates) > 1:
            style.panel_title(every[column], style.rate_name(rate))
        every[2 * columns + column].set_xlabel(f"simulated time ({unit})")
        every[2 * columns + column].set_xlim(0, end_s / seconds if end_s else 1.0)
        if not any(len(variant.first.steps) for variant in mine):
            for row in range(3):
                axes = every[row * columns + column]
                axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", color=style.MUTED)
    for row, (name, label, _) in enumerate(ROWS):
        _scale(every[row * columns], name)
        every[row * columns].set_ylabel(label)
    figure.align_ylabels(every[::columns])
    return figure


def _scale(axes: Axes, name: str) -> None:
    """The common scale of a row of axes."""
    if name == "kv":
        axes.set_ylim(-0.02, 1.04)
        axes.set_yticks([0, 0.5, 1.0])
        style.percent(axes)
    else:
        top = max(1.0, axes.get_ylim()[1])
        axes.set_ylim(-0.02 * top, top)  # so that a line of zeros can be seen
        style.scale(axes, "y", False)


def _draw_strips(variants: Sequence[Variant], title: str) -> Figure:
    """For many policies: a strip each, darker where there is more; at the highest rate."""
    rate = style.rates_of(variants)[-1]
    mine = [variant for variant in variants if variant.rate_per_s == rate]
    look = style.looks(variants)
    ends_s = [float(variant.first.summary.get("end_s") or 0.0) for variant in mine]
    end_s = min(max(ends_s, default=0.0), MOST_OF_MEDIAN * float(np.median(ends_s))) or 1.0  # else the rest is too thin
    unit, seconds = _time_unit(end_s)
    edges = np.linspace(0.0, end_s, BINS + 1)
    if len(style.rates_of(variants)) > 1:
        title += f", at {style.rate_name(rate)}"
    height = 0.75 + 0.24 * len(mine)
    note = style.note_of(variants)
    figure, every = style.frame(title, 3, columns=3, panel_height=height, note=note, sharey=True)
    for axes, (name, _, label) in zip(every, ROWS, strict=True):
        rows = np.array([_values(variant.first, name, edges) for variant in mine])
        top = 1.0 if name == "kv" else max(1.0, float(np.nanmax(rows, initial=0.0)))
        extent = (0.0, end_s / seconds, len(mine) - 0.5, -0.5)
        image = axes.imshow(
            rows, aspect="auto", cmap="YlGnBu", vmin=0, vmax=top, extent=extent, interpolation="nearest"
        )
        axes.grid(visible=False)
        for line in range(1, len(mine)):
            axes.axhline(line - 0.5, color="white", linewidth=1.6)
        style.panel_title(axes, label)
        bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.015, aspect=30)
        bar.outline.set_visible(False)
        if name == "kv":
            style.percent(bar.ax)
        axes.set_xlabel(f"simulated time ({unit})")
        axes.tick_params(axis="y", length=0)
    style.name_policies(every[0], mine, look)
    return figure


def _time_unit(end_s: float) -> tuple[str, float]:
    return ("h", 3600.0) if end_s > 4 * 3600 else ("min", 60.0) if end_s > 600 else ("s", 1.0)


def _values(run: Run, name: str, edges_s: np.ndarray) -> np.ndarray:
    """The mean in each slice; NaN after the run's last step."""
    steps = run.steps
    found = np.zeros(len(edges_s) - 1)
    if not len(steps):
        return np.full(len(found), np.nan)
    column = {"batch": "seqs", "kv": "kv_blocks_used", "waiting": "waiting"}[name]
    for _, lane in steps.groupby(["engine", "lane"], sort=True):
        start, end = lane["start_s"].to_numpy(), lane["end_s"].to_numpy()
        if name == "waiting":  # who waits goes on waiting while nothing is computed
            end = np.append(start[1:], end[-1])
        found += binned_mean(start, end, lane[column].to_numpy(dtype=float), edges_s)
    if name == "kv":
        found /= float(run.summary.get("kv_blocks_total") or np.nan)
    found[edges_s[:-1] >= float(steps["end_s"].max())] = np.nan
    return found
