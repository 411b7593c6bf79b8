"""How every picture looks: colours, fonts, a frame with title, legend and note, and PNG bytes that depend on the data
alone."""

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ..variants import Variant

PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D"),
    *("#6A3D9A", "#8C510A", "#7F9A00", "#A50026", "#00868B", "#1B2A6B"),
)
"""Okabe and Ito's colours, told apart by colour-blind people; their yellow is left out as it is lost on white. From the
eighth on they are others, which dashes tell apart as well."""
PLAINEST = 7
"""With more policies than this names are not in their colours: too many to tell apart in letters."""
DASHES: tuple[Any, ...] = (
    "-",
    (0, (6, 1.6)),
    (0, (2.4, 1.3)),
    (0, (7, 1.4, 1.6, 1.4)),
    (0, (1.1, 1.1)),
    (0, (5, 1.2, 1, 1.2, 1, 1.2)),
)
"""Each policy has its own too, so that one line shows through another that lies on it."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, MUTED, FAINT, AMBER = "#1c2430", "#5b6675", "#e4e8ee", "#8a5300"
MOST_LINES = 6
"""More policies than this in one panel are drawn as small multiples, each picked out against the others in grey."""
NARROW, WIDE = 6.6, 13.4  # inches: half and whole of the report's column

RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": "#aab3bf",
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": "#aab3bf",
    "ytick.color": "#aab3bf",
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 1.9,
    "lines.solid_capstyle": "round",
    "text.color": INK,
    "path.simplify": True,
}


@dataclass(frozen=True)
class Plot:
    """A picture with what belongs beside it: a file name, what it shows in words, how to read it, and its width."""

    name: str
    title: str
    caption: str
    png: bytes
    wide: bool


@dataclass(frozen=True)
class Look:
    """How one policy is drawn, the same in every plot and in the table."""

    color: str
    dash: Any
    marker: str

    def line(self, **options: Any) -> Line2D:
        return Line2D([], [], color=self.color, linestyle=self.dash, **options)


def looks(variants: Sequence[Variant]) -> dict[str, Look]:
    """Policy label -> look, in the order of the variants."""
    labels = list(dict.fromkeys(variant.label for variant in variants))
    return {
        label: Look(PALETTE[i % len(PALETTE)], DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)])
        for i, label in enumerate(labels)
    }


def shades(count: int) -> list[Any]:
    """Colours from light to dark for ordered things, rates above all."""
    return [matplotlib.colormaps["viridis_r"](0.12 + 0.83 * i / max(1, count - 1)) for i in range(count)]


def rates_of(variants: Sequence[Variant]) -> list[float | None]:
    """The rates in growing order, "no rate" first."""
    return sorted({variant.rate_per_s for variant in variants}, key=lambda rate: -1.0 if rate is None else rate)


def rate_name(rate: float | None) -> str:
    return "as given" if rate is None else f"{rate:g} requests/s"


def note_of(variants: Sequence[Variant]) -> str:
    """What must be said about the prices; with the policies' names where it does not hold for all."""
    said: dict[str, list[str]] = {}
    for variant in variants:
        if variant.note:
            said.setdefault(variant.note, []).append(variant.label)
    everybody = {variant.label for variant in variants}
    return "; ".join(
        note if set(labels) == everybody else f"{', '.join(dict.fromkeys(labels))}: {note}"
        for note, labels in said.items()
    )


def frame(
    title: str,
    panels: int,
    *,
    columns: int = 1,
    panel_height: float = 2.9,
    width: float | None = None,
    handles: Sequence[Artist] = (),
    note: str = "",
    **options: Any,
) -> tuple[Figure, list[Axes]]:
    """A figure with `panels` axes in `columns`; title and legend stand in a band of their own above them and the note
    below, so that nothing covers data."""
    width = width or (WIDE if columns > 1 else NARROW)
    rows = math.ceil(panels / columns)
    names = [str(handle.get_label()) for handle in handles]
    across = max(1, int((width - 0.3) / (0.64 + 0.078 * max(map(len, names), default=1))))
    legend_rows = math.ceil(len(names) / across)
    note = textwrap.fill(note, int(12.5 * width))
    top, bottom = (
        0.42 + 0.215 * legend_rows + 0.06 * bool(names),
        0.05 + (0.08 + 0.14 * len(note.splitlines())) * bool(note),
    )
    height = rows * panel_height + top + bottom
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(rect=(0.004, bottom / height, 0.992, (height - top - bottom) / height))  # type: ignore[union-attr,call-arg]
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
    for spare in axes[panels:]:
        spare.set_visible(False)
    figure.text(0.12 / width, 1 - 0.1 / height, title, va="top", size=11.5, weight="bold").set_in_layout(False)
    if names:
        at = (0.02 / width, 1 - 0.34 / height)
        legend = figure.legend(
            handles=list(handles),
            ncols=min(across, len(names)),
            loc="upper left",
            bbox_to_anchor=at,
            handlelength=2.7,
        )
        legend.set_frame_on(False)
        legend.set_in_layout(False)
    if note:
        text = figure.text(0.12 / width, 0.07 / height, note, size=8, style="italic", color=AMBER)
        text.set_in_layout(False)
    return figure, axes[:panels]


def panel_title(axes: Axes, text: str, color: str = INK) -> None:
    axes.set_title(text, loc="left", size=9.5, weight="bold", color=color, pad=6)


def name_policies(axes: Axes, variants: Sequence[Variant], look: dict[str, Look]) -> None:
    """The variants' policies down the side, in their colours while these are few."""
    axes.set_yticks(range(len(variants)), [variant.label for variant in variants])
    axes.tick_params(axis="y", length=0)
    for text, variant in zip(axes.get_yticklabels(), variants, strict=True):
        text.set_color(look[variant.label].color if len(look) <= PLAINEST else INK)
        text.set_fontweight("bold")


def no_data(axes: Axes, why: str = "no data") -> None:
    """Says so in the middle of empty axes, instead of a scale that means nothing."""
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color=MUTED, size=10, style="italic")
    axes.set_xticks([])
    axes.set_yticks([])


def spread(values: np.ndarray) -> float:
    """Largest over smallest of positive values; 1 where there are none."""
    there = values[np.isfinite(values) & (values > 0)]
    return float(there.max() / there.min()) if len(there) else 1.0


def scale(axes: Axes, which: str, logarithmic: bool) -> None:
    """A linear axis from 0, or a logarithmic one with plain numbers at its ticks."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    if not logarithmic:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(_plain))
        return
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    decades = math.log10(high / low) if low > 0 else 1.0
    steps = (1, 2, 5) if decades < 2.6 else (1, 3) if decades < 3.6 else (1,)
    axis.set_major_locator(LogLocator(subs=steps, numticks=99))
    axis.set_minor_locator(FixedLocator([]))
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_formatter(NullFormatter())


def percent(axes: Axes, which: str = "y") -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))


def rendered(draw: Callable[..., Figure], *arguments: Any) -> bytes:
    """The PNG that `draw` makes, without the date, version or state of anything."""
    with matplotlib.rc_context(RC):
        figure = draw(*arguments)
        target = BytesIO()
        figure.savefig(target, format="png", dpi=150, metadata={"Software": None})
    return target.getvalue()


def _plain(value: float, _: Any) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"
