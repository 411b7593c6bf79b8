"""Latencies of each request class by itself, by policy."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ..catalog import LATENCIES, SLO_OF, shown_in
from ..stats import ecdf
from ..variants import Variant
from . import style
from .distributions import curve
from .style import Plot

MOST_CLASSES = 4
SHOWN = ("ttft", "tpot", "e2el")
LOG_FROM = 20.0


def labels_of(variants: Sequence[Variant]) -> list[str]:
    """The classes that the scenarios name."""
    named = [(variant.first.scenario.get("workload") or {}).get("classes") or {} for variant in variants]
    return list(dict.fromkeys(label for classes in named for label in classes))


def by_class(variants: Sequence[Variant]) -> Plot:
    """CDFs of TTFT, TPOT and E2E latency, a column a class, at the highest rate."""
    labels, rates = labels_of(variants), style.rates_of(variants)
    caption = "Each class of requests by itself: read as above. A dotted line is the class's SLO."
    if len(labels) > MOST_CLASSES:
        caption += f" The first {MOST_CLASSES} of {len(labels)} classes."
    title = "Latency by request class" + (f", at {style.rate_name(rates[-1])}" if len(rates) > 1 else "")
    return Plot("by_class", title, caption, style.rendered(_draw, variants, title), wide=True)


def _draw(variants: Sequence[Variant], title: str) -> Figure:
    labels = labels_of(variants)[:MOST_CLASSES]
    look = style.looks(variants)
    mine = [variant for variant in variants if variant.rate_per_s == style.rates_of(variants)[-1]]
    columns = len(labels)
    figure, every = style.frame(
        title,
        len(SHOWN) * columns,
        columns=columns,
        width=style.WIDE,
        panel_height=2.1,
        handles=[one.line(label=label) for label, one in look.items()],
        note=style.note_of(variants),
        sharex="row",
        sharey=True,
    )
    for row, name in enumerate(SHOWN):
        axes_of = every[row * columns : (row + 1) * columns]
        curves = {(v, label): ecdf(*v.distribution(name, label)) for v in mine for label in labels}
        seen = np.concatenate([values for values, _ in curves.values()])
        if not len(seen):
            for axes in axes_of:
                axes.text(0.5, 0.45, "no data", transform=axes.transAxes, ha="center", color=style.MUTED)
                axes.set_xlabel(LATENCIES[name][0])
            continue
        unit, factor = shown_in("ms", [float(values[-1]) for values, _ in curves.values() if len(values)])
        for axes, label in zip(axes_of, labels, strict=True):
            for variant in mine:
                values, share = curves[variant, label]
                one = look[variant.label]
                curve(axes, values * factor, share, color=one.color, linestyle=one.dash, zorder=3)
            limit = _limit(variants, label, name)
            if limit is not None:
                axes.axvline(limit * factor, color=style.INK, linewidth=0.9, linestyle=(0, (1, 2)), zorder=2)
            axes.set_xlabel(f"{LATENCIES[name][0]} ({unit})")
            axes.tick_params(labelbottom=True)
        wide = bool(seen.min() > 0 and seen.max() / np.percentile(seen, 1) > LOG_FROM)
        if not wide:
            axes_of[0].set_xlim(0, float(seen.max()) * factor * 1.03)
        for axes in axes_of:
            style.scale(axes, "x", wide)
    for axes, label in zip(every, labels, strict=False):
        style.panel_title(axes, label)
    for axes in every:
        axes.set_ylim(-0.02, 1.03)
        axes.set_yticks([0, 0.5, 1.0])
        style.percent(axes)
    for axes in every[::columns]:
        axes.set_ylabel("share of requests")
    return figure


def _limit(variants: Sequence[Variant], label: str, name: str) -> float | None:
    """The class's own SLO, else the scenario's; None where policies have different ones."""
    found = set()
    for variant in variants:
        scenario = variant.first.scenario
        own = (((scenario.get("workload") or {}).get("classes") or {}).get(label) or {}).get("slo")
        found.add((own or scenario.get("slo") or {}).get(SLO_OF[name]))
    return found.pop() if len(found) == 1 else None
