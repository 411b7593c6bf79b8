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
    "Each point is one run: solid lines are medians, dashed ones p99. Latency that shoots up marks the rate from which "
    "a policy cannot keep up; below it, output follows the rate of arrivals."
)


def against_rate(variants: Sequence[Variant]) -> Plot:
    """Median and p99 of each latency, output tokens and goodput, over the rates that were run."""
    title = "Latency and throughput against the rate of arrivals"
    return Plot("against_rate", title, CAPTION, style.rendered(_draw, variants, title), wide=True)


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
    short, long = LATENCIES[name]
    style.panel_title(axes, long)
    found = [variant.value(f"{which}_{name}_ms") for variant in variants for which in ("median", "p99")]
    unit, factor = shown_in("ms", found)
    there = np.array([value for value in found if value is not None])
    if not len(there):
        style.no_data(axes)
        return
    for which, dash in (("median", "-"), ("p99", style.DASHES[1])):
        for label, one in look.items():
            x, y = _line(variants, label, f"{which}_{name}_ms")
            axes.plot(x, y * factor, color=one.color, linestyle=dash, marker=one.marker, markersize=4.5)
    without = [label for label in look if all(v.value(f"mean_{name}_ms") is None for v in variants if v.label == label)]
    if without:
        axes.set_title(f"{', '.join(without)}: no data", loc="right", size=8, color=style.MUTED, style="italic")
    wide = style.spread(there) > 40
    if not wide:
        axes.set_ylim(bottom=0)
    style.scale(axes, "y", wide)
    axes.set_ylabel(f"{short} ({unit})")
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
        axes.plot(*_line(variants, label, metric), color=one.color, marker=one.marker, markersize=4.5)
    axes.set_ylim(bottom=0)
    style.scale(axes, "y", False)
    axes.set_ylabel(unit)


def _line(variants: Sequence[Variant], label: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """(rates, values) of one policy, NaN where it has no data."""
    mine = [variant for variant in variants if variant.label == label and variant.rate_per_s is not None]
    values = [variant.value(metric) for variant in mine]
    y = np.array([np.nan if value is None else value for value in values], float)
    return np.array([variant.rate_per_s for variant in mine], float), y
