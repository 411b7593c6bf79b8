"""Cumulative distributions by policy: of latencies, and of tokens per second."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..catalog import DISTRIBUTIONS, SLO_OF, shown_in
from ..stats import ecdf, half_width
from ..variants import Variant
from . import style
from .style import Look, Plot

MOST_IN_BAND = 300
"""Values at which a band is drawn."""
LOG_FROM = 5.0
"""A logarithmic axis where the largest value is this many times the smallest that matters (the first percentile)."""


def cdf(variants: Sequence[Variant], name: str) -> Plot:
    """CDF of one of `DISTRIBUTIONS`: one panel, or one a rate, or one a policy where there are too many."""
    what = DISTRIBUTIONS[name]
    several = len(_panels(variants)) > 1
    reading = f"A point says which share of {what.whose} was at most that slow; further left is better."
    if what.unit != "ms":
        reading = f"A point says which share of {what.whose} had at most that many; further right is better."
    caption = f"{what.read} {reading}"
    if any(len(variant.runs) > 1 for variant in variants):
        caption += " Bands are 95 % intervals over replications."
    if len(_lines(variants)) > style.MOST_LINES and several:
        caption += " Each panel picks out one policy; the others are grey."
    png = style.rendered(_draw, variants, name, what.title)
    return Plot(f"cdf_{name}", f"{what.title}, cumulative distribution by policy", caption, png, wide=several)


def _lines(variants: Sequence[Variant]) -> list[str]:
    return list(dict.fromkeys(variant.label for variant in variants))


def _panels(variants: Sequence[Variant]) -> list[tuple[str, list[Variant]]]:
    """(title, the variants that stand out in it)."""
    rates, policies = style.rates_of(variants), _lines(variants)
    if len(rates) == 1 and len(policies) > style.MOST_LINES:
        return [(label, [variant for variant in variants if variant.label == label]) for label in policies]
    if len(rates) == 1 or len(policies) == 1:
        return [("", list(variants))]
    return [(style.rate_name(rate), [v for v in variants if v.rate_per_s == rate]) for rate in rates]


def _draw(variants: Sequence[Variant], name: str, title: str) -> Figure:
    panels, look = _panels(variants), style.looks(variants)
    picked_out = len(panels) > 1 and len(style.rates_of(variants)) == 1
    by_rate = len(look) == 1 and len(variants) > 1
    curves = {variant: ecdf(*variant.distribution(name)) for variant in variants}
    seen = np.concatenate([values for values, _ in curves.values()])
    unit, factor = shown_in(
        DISTRIBUTIONS[name].unit, [float(np.percentile(values, 99)) for values, _ in curves.values() if len(values)]
    )
    shade = dict(zip(variants, style.shades(len(variants)), strict=True))
    if by_rate:
        handles = [Look(shade[v], "-", "o").line(label=style.rate_name(v.rate_per_s)) for v in variants]
    else:
        there = {variant.label for variant, (values, _) in curves.items() if len(values)}
        handles = [one.line(label=label + ("" if label in there else " (no data)")) for label, one in look.items()]
    columns = 1 if len(panels) == 1 else 4 if len(panels) > 6 or len(panels) == 4 else min(3, len(panels))
    figure, every = style.frame(
        title,
        len(panels),
        columns=columns,
        panel_height=2.2 if picked_out else 2.9 if len(panels) == 1 else 2.6,
        handles=() if picked_out else handles,
        note=style.note_of(variants),
        sharex=True,
        sharey=True,
    )
    for axes, (heading, mine) in zip(every, panels, strict=True):
        for variant, (values, share) in curves.items():
            if variant in mine and (band := _band(variant, name, values)) is not None:
                color = shade[variant] if by_rate else look[variant.label].color
                axes.fill_between(band[0] * factor, band[1], band[2], color=color, alpha=0.18, linewidth=0, zorder=2)
            if variant in mine:
                color = shade[variant] if by_rate else look[variant.label].color
                dash = "-" if picked_out or by_rate else look[variant.label].dash
                curve(axes, values * factor, share, color=color, linestyle=dash, zorder=3)
            elif picked_out:
                curve(axes, values * factor, share, color="#c3cad3", linewidth=0.9, zorder=2)
        if heading:
            style.panel_title(axes, heading, look[heading].color if picked_out else style.INK)
        if not any(len(curves[variant][0]) for variant in mine):
            axes.text(0.5, 0.45, "no data", transform=axes.transAxes, ha="center", color=style.MUTED, style="italic")
    _dress(
        every,
        columns,
        seen * factor,
        f"{DISTRIBUTIONS[name].short} ({unit})" if unit in ("ms", "s") else DISTRIBUTIONS[name].short,
        name,
    )
    _slo(every, variants, name, factor, len(seen) > 0)
    return figure


def _band(variant: Variant, name: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(values, low, high): the 95 % interval of the share at each value over replications; None with one."""
    if len(variant.runs) < 2 or not len(values):
        return None
    at = values[np.unique(np.linspace(0, len(values) - 1, MOST_IN_BAND).astype(int))]
    shares = []
    for run in variant.runs:
        its, weights = run.distribution(name)
        order = np.argsort(its)
        upto = np.append(0, np.cumsum(weights[order]))
        if not upto[-1]:
            return None
        shares.append(upto[np.searchsorted(its[order], at, side="right")] / upto[-1])
    half = half_width(np.array(shares))
    mean = np.mean(shares, axis=0)
    return at, np.maximum(mean - half, 0.0), np.minimum(mean + half, 1.0)


def curve(axes: Axes, values: np.ndarray, share: np.ndarray, **options: Any) -> None:
    if len(values):
        axes.step(np.append(values[0], values), np.append(0.0, share), where="post", **options)


def _dress(every: Sequence[Axes], columns: int, seen: np.ndarray, label: str, name: str) -> None:
    positive = seen[seen > 0]
    wide = len(positive) == len(seen) > 0 and seen.max() / np.percentile(seen, 1) > LOG_FROM
    for i, axes in enumerate(every):
        axes.set_ylim(-0.02, 1.03)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
        style.percent(axes)
        if not wide and len(seen):
            axes.set_xlim(0, float(seen.max()) * 1.03)
        if len(seen):
            style.scale(axes, "x", wide)
        else:
            axes.set_xticks([])
        if DISTRIBUTIONS[name].unit == "ms":
            axes.axhline(0.99, color="#aab3bf", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
            axes.text(0.008, 0.955, "p99", transform=axes.transAxes, va="top", size=7.5, color=style.MUTED)
        if i % columns == 0:
            axes.set_ylabel(f"share of {DISTRIBUTIONS[name].whose}")
        if i + columns >= len(every):
            axes.set_xlabel(label)
            axes.tick_params(labelbottom=True)


def _slo(every: Sequence[Axes], variants: Sequence[Variant], name: str, factor: float, there: bool) -> None:
    """The limit that all variants share, as a line; left out where it lies outside what is seen."""
    limits = {(variant.first.scenario.get("slo") or {}).get(SLO_OF.get(name, "")) for variant in variants}
    limit = limits.pop() if len(limits) == 1 else None
    if limit is None or not there:
        return
    for axes in every:
        low, high = axes.get_xlim()
        if low < limit * factor < high:
            axes.axvline(limit * factor, color=style.INK, linewidth=0.9, linestyle=(0, (1, 2)), zorder=2)
            share = axes.transAxes.inverted().transform(axes.transData.transform((limit * factor, 0.0)))[0]
            clear = share > 0.4 or not axes.get_title(loc="left")  # above the panel, if its title leaves room
            at = (limit * factor, 1.0 if clear else 0.0)
            offset = (0, 2) if clear else (3, 3)
            text = axes.annotate("SLO", at, offset, axes.get_xaxis_transform(), textcoords="offset points", size=7.5)
            text.set_horizontalalignment("center" if clear else "left")
