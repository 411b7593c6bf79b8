"""Where the time of a request went: stacked bars of its parts, by policy."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..catalog import ANEW, PARTS, text_of, text_of_half
from ..variants import Variant
from . import style
from .style import Plot

SHADES = {
    "queue": "#d9dee5",
    "prefill": "#93a5bb",
    "decode": "#3d5a7d",
    "preempted": "#b3446c",
    "transfer": "#d8b365",
    "retry": "#5ab4ac",
}
"""Greys and slates, which no policy has; the parts that ought to be small stand out."""
MOST_OF_MEDIAN = 5
"""Bars are cut at so many times the middle one where the longest is over four times as long as that."""
CAPTION = (
    "Mean over finished requests; the parts add up to the mean end-to-end latency, written at the end of each bar; "
    "» marks one that is cut. "
    "A long grey part is waiting for a place, a red one time lost to preemption or to queueing anew."
)


def where_time_went(variants: Sequence[Variant]) -> Plot:
    """One bar a policy, one panel a rate."""
    title = "Where the time of a request went"
    return Plot("where_time_went", title, CAPTION, style.rendered(_draw, variants, title), wide=True)


def _draw(variants: Sequence[Variant], title: str) -> Figure:
    rates, look = style.rates_of(variants), style.looks(variants)
    spent = {variant: variant.parts_s() for variant in variants}
    shown = [p for i, p in enumerate(PARTS) if i < 3 or any((parts[p] or 0.0) > 0 for parts in spent.values())]
    handles = [Patch(color=SHADES[part], label=label(part, spent)) for part in shown]
    columns = min(4, len(rates)) if len(rates) != 3 else 3
    height = 0.95 + 0.36 * max(2, len(look))
    note = style.note_of(variants)
    figure, every = style.frame(
        title, len(rates), columns=columns, width=style.WIDE, panel_height=height, handles=handles, note=note
    )
    for i, (axes, rate) in enumerate(zip(every, rates, strict=True)):
        mine = [variant for variant in variants if variant.rate_per_s == rate]
        _bars(axes, mine, spent, shown, 1.1 if columns == 1 else 1.3 if any(len(v.runs) > 1 for v in mine) else 1.22)
        style.name_policies(axes, mine, look)
        if len(rates) > 1:
            style.panel_title(axes, style.rate_name(rate))
        if i + columns >= len(rates):
            axes.set_xlabel("mean time of a request (s)")
    return figure


def label(part: str, spent: dict[Variant, dict[str, float | None]]) -> str:
    """One for all bars: those that were preempted and those that queued anew have one colour."""
    names = {variant.called(part) for variant, parts in spent.items() if parts[part]}
    return names.pop() if len(names) == 1 else f"{PARTS[part]} or {ANEW}" if names else PARTS[part]


def _end(totals: Sequence[float]) -> float:
    """Where the axis ends: at the longest bar, or where that would leave most of several too short to see, earlier."""
    middle = float(np.median(totals)) if len(totals) > 2 else 0.0
    longest = max(totals, default=0.0)
    return MOST_OF_MEDIAN * middle if middle and longest > 4 * MOST_OF_MEDIAN * middle else longest


def _half(variant: Variant, total_s: float) -> str:
    half_ms = variant.half_width("mean_e2el_ms")
    return text_of_half(total_s, None if half_ms is None else half_ms / 1000)


def _bars(
    axes: Axes,
    mine: Sequence[Variant],
    spent: dict[Variant, dict[str, float | None]],
    shown: Sequence[str],
    room: float,
) -> None:
    axes.grid(axis="y", visible=False)
    axes.set_ylim(len(mine) - 0.4, -0.6)
    totals = [sum(value or 0.0 for value in spent[variant].values()) for variant in mine]
    longest = _end(totals)
    for place, (variant, total) in enumerate(zip(mine, totals, strict=True)):
        if spent[variant]["queue"] is None:
            axes.text(0.012, place, "no data", transform=axes.get_yaxis_transform(), va="center", color=style.MUTED)
            continue
        left = 0.0
        for part in shown:
            width = spent[variant][part] or 0.0
            axes.barh(
                place, max(0.0, min(width, longest - left)), left=left, height=0.62, color=SHADES[part], linewidth=0
            )
            left += width
        half = _half(variant, total)
        said = f"{text_of(total)} ± {half} s" if half else f"{text_of(total)} s"
        said = f"» {said}" if total > longest else said  # the bar is cut
        axes.annotate(said, (min(total, longest), place), (4, 0), textcoords="offset points", va="center", size=8.5)
    if longest:
        axes.set_xlim(0, longest * room)
        style.scale(axes, "x", False)
    else:
        axes.set_xticks([])
