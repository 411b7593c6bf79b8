"""Latency and throughput against the rate of arrivals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..catalog import LATENCIES, SLO_OF, shown_in
from ..variants import Variant
from . import style
from .style import Look, Plot

CAPTION = (
    "Each point is one run, or the mean of its replications with a 95 % interval: solid lines are medians, dashed ones "
    "p99. Latency that shoots up marks the rate from which a policy cannot keep up; below it, output follows the rate "
    "of arrivals."
)
THROUGHPUT_CAPTION = (
    "Each point is one rate of arrivals, joined in their order. Right and low is good: more tokens at a like latency. "
    "A line that turns straight up has reached what the policy can give; a dotted line is the SLO."
)


def against_rate(variants: Sequence[Variant]) -> Plot:
    """Median and p99 of each latency, output tokens and goodput, over the rates that were run."""
    title = "Latency and throughput against the rate of arrivals"
    return Plot("against_rate", title, CAPTION, style.rendered(_draw, variants, title), wide=True)


def against_throughput(variants: Sequence[Variant]) -> Plot:
    """p99 of TTFT, TPOT and E2E latency against the output tokens per second that were reached."""
    title = "Latency against throughput"
    png = style.rendered(_draw_throughput, variants, title)
    return Plot("against_throughput", title, THROUGHPUT_CAPTION, png, wide=True)


def _draw_throughput(variants: Sequence[Variant], title: str) -> Figure:
    look = style.looks(variants)
    handles = [Line2D([], [], color=o.color, marker=o.marker, label=p) for p, o in look.items()]
    figure, every = style.frame(
        title, 3, columns=3, panel_height=2.85, handles=handles, note=style.note_of(variants), sharex=True
    )
    for axes, name in zip(every, ("ttft", "tpot", "e2el"), strict=True):
        metric = f"p99_{name}_ms"
        style.panel_title(axes, f"p99 {LATENCIES[name][0]}")
        found = [variant.value(metric) for variant in variants]
        unit, factor = shown_in("ms", found)
        if all(value is None for value in found):
            style.no_data(axes)
            continue
        for label, one in look.items():
            x, y, y_half = _line(variants, label, metric)
            _, tokens, tokens_half = _line(variants, label, "output_throughput")
            axes.plot(tokens, y * factor, color=one.color, linewidth=1.3, marker=one.marker, markersize=4.5)
            _bars(axes, tokens, y * factor, one.color, y_half=y_half * factor, x_half=tokens_half)
            reached = np.flatnonzero(~np.isnan(y))
            if len(reached) and name == "ttft":
                at = (tokens[reached[-1]], y[reached[-1]] * factor)
                axes.annotate(f"{x[reached[-1]]:g}/s", at, (5, -9), textcoords="offset points", size=7, color=one.color)
        _dress_latency(axes, variants, name, unit, factor, found)
        axes.set_xlim(left=0)
        style.scale(axes, "x", False)
        axes.set_xlabel("output tokens/s")
    return figure


def _draw(variants: Sequence[Variant], title: str) -> Figure:
    look = style.looks(variants)
    handles = [Line2D([], [], color=o.color, marker=o.marker, label=p) for p, o in look.items()]
    handles += [Line2D([], [], color=style.MUTED, linestyle=dash, label=name) for dash, name in _KINDS]
    note = style.note_of(variants)
    figure, every = style.frame(title, 6, columns=3, panel_height=2.75, handles=handles, note=note, sharex=True)
    for axes, name in zip(every[:4], LATENCIES, strict=True):
        _latency(axes, variants, look, name)
    _rate_of(every[4], variants, look, "output_throughput", "Output tokens", "tokens/s")
    _rate_of(every[5], variants, look, "request_goodput", "Goodput: requests within the SLO", "requests/s")
    for axes in every[3:]:
        axes.set_xlabel("rate of arrivals (requests/s)")
    for axes in every:
        axes.set_xlim(0, 1.05 * max(rate or 0.0 for rate in style.rates_of(variants)))
    return figure


_KINDS: tuple[tuple[Any, str], ...] = (("-", "median"), (style.DASHES[1], "p99"))


def _latency(axes: Axes, variants: Sequence[Variant], look: dict[str, Look], name: str) -> None:
    style.panel_title(axes, LATENCIES[name][1])
    found = [variant.value(f"{which}_{name}_ms") for variant in variants for which in ("median", "p99")]
    unit, factor = shown_in("ms", found)
    there = np.array([value for value in found if value is not None])
    if not len(there):
        style.no_data(axes)
        return
    for which, dash in (("median", "-"), ("p99", style.DASHES[1])):
        for label, one in look.items():
            x, y, half = _line(variants, label, f"{which}_{name}_ms")
            axes.plot(x, y * factor, color=one.color, linestyle=dash, marker=one.marker, markersize=4.5)
            _bars(axes, x, y * factor, one.color, y_half=half * factor)
    without = [label for label in look if all(v.value(f"mean_{name}_ms") is None for v in variants if v.label == label)]
    if without:
        axes.set_title(f"{', '.join(without)}: no data", loc="right", size=8, color=style.MUTED, style="italic")
    _dress_latency(axes, variants, name, unit, factor, found)


def _dress_latency(
    axes: Axes, variants: Sequence[Variant], name: str, unit: str, factor: float, found: Sequence[float | None]
) -> None:
    """The scale of a latency that goes up, and its SLO."""
    wide = style.spread(np.array([value for value in found if value is not None])) > 40
    if not wide:
        axes.set_ylim(bottom=0)
    style.scale(axes, "y", wide)
    axes.set_ylabel(f"{LATENCIES[name][0]} ({unit})")
    limits = {(variant.first.scenario.get("slo") or {}).get(SLO_OF.get(name, "")) for variant in variants}
    limit = limits.pop() if len(limits) == 1 else None
    if limit is not None and axes.get_ylim()[0] < limit * factor < axes.get_ylim()[1]:
        axes.axhline(limit * factor, color=style.INK, linewidth=0.9, linestyle=(0, (1, 2)), zorder=2)
        at = (0.0, limit * factor)
        axes.annotate("SLO", at, (3, 2), axes.get_yaxis_transform(), textcoords="offset points", size=7.5)


def _rate_of(
    axes: Axes, variants: Sequence[Variant], look: dict[str, Look], metric: str, title: str, unit: str
) -> None:
    style.panel_title(axes, title)
    if all(variant.value(metric) is None for variant in variants):
        style.no_data(axes, "no SLO given" if metric == "request_goodput" else "no data")
        return
    for label, one in look.items():
        x, y, half = _line(variants, label, metric)
        axes.plot(x, y, color=one.color, marker=one.marker, markersize=4.5)
        _bars(axes, x, y, one.color, y_half=half)
    axes.set_ylim(bottom=0)
    style.scale(axes, "y", False)
    axes.set_ylabel(unit)


def _line(variants: Sequence[Variant], label: str, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rates, values, half of their intervals) of one policy, NaN where it has none."""
    mine = [variant for variant in variants if variant.label == label and variant.rate_per_s is not None]

    def column(values: list[float | None]) -> np.ndarray:
        return np.array([np.nan if value is None else value for value in values], float)

    values = column([variant.value(metric) for variant in mine])
    halves = column([variant.half_width(metric) for variant in mine])
    return np.array([variant.rate_per_s for variant in mine], float), values, halves


def _bars(
    axes: Axes, x: np.ndarray, y: np.ndarray, color: str, *, y_half: np.ndarray, x_half: np.ndarray | None = None
) -> None:
    """Intervals as a band along y, and as bars along x; nothing where there was one replication."""
    if np.isnan(y_half).all():
        return
    low = np.maximum(y - y_half, y * 0.02)  # on a logarithmic axis nothing reaches 0
    if x_half is None:
        axes.fill_between(x, low, y + y_half, color=color, alpha=0.16, linewidth=0, zorder=1)
        return
    inside = ~np.isnan(y) & ~np.isnan(y_half)
    y_error = np.vstack([(y - low)[inside], y_half[inside]])
    axes.errorbar(
        x[inside], y[inside], yerr=y_error, xerr=x_half[inside], fmt="none", ecolor=color, elinewidth=0.9, capsize=2
    )
