"""The roofline of a GPU, and on it the operators of a prefill and a decode step, as `sim explain` has found them."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import style

NEAR = 1.7
VISIBLE = 1.005  # ratio of calibrated to ideal time from which both are drawn
SHOWN = (("prefill", style.PALETTE[0], "o"), ("decode", style.PALETTE[1], "s"))


def roofline(found: dict[str, Any]) -> bytes:
    """A PNG. Each operator that computes is a numbered point, named in the legend beside the axes; those that only
    move bytes have no intensity and are left out. A point hangs under the roof, from a ring where the peaks would put
    it, by what its launches do not reach."""
    return style.rendered(_draw, found)


def _draw(found: dict[str, Any]) -> Figure:
    title = f"Roofline: {found['model']} on {found['tensor_parallel_size']} x {found['gpu']}"
    figure, (axes,) = style.frame(title, 1, width=10.5, panel_height=5.2, note=found["note"])
    peak, memory, ridge = found["peak_flop_per_s"], found["memory_byte_per_s"], found["ridge_flop_per_byte"]
    points = [
        (step, color, marker, row)
        for step, color, marker in SHOWN
        for row in found[step]["operators"]
        if row["flops"] and row["bytes"]
    ]
    places = [row["intensity"] for *_, row in points]
    low, high = min(0.3, *places) / 2, max(4 * ridge, *places) * 2
    x = np.geomspace(low, high, 400)
    axes.plot(x, np.minimum(peak, memory * x) / 1e12, color=style.INK, lw=1.6)
    axes.axvline(ridge, color=style.MUTED, lw=1, ls=(0, (4, 3)))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    lowest = min([row["flops"] / row["time_s"] for *_, row in points] + [memory * low])
    axes.set_ylim(lowest / 2e12, 3 * peak / 1e12)
    axes.annotate(
        f"ridge {ridge:.0f} FLOP/byte", (ridge, lowest / 1.6e12), (5, 2), textcoords="offset points", color=style.MUTED
    )
    handles = []
    hang = any(row["ratio"] > VISIBLE for *_, row in points)
    together: list[tuple[float, float, list[str]]] = []  # points so near each other that they share a label
    for number, (step, color, marker, row) in enumerate(points, 1):
        x_at, y_at = row["intensity"], row["flops"] / row["time_s"] / 1e12
        axes.plot(x_at, y_at, marker, color=color, ms=8, alpha=0.75)
        if row["ratio"] > VISIBLE:
            axes.plot([x_at, x_at], [y_at, y_at * row["ratio"]], color=color, lw=1, alpha=0.5)
            axes.plot(x_at, y_at * row["ratio"], marker, color=color, ms=6, mfc="none", alpha=0.6)
        for x_near, y_near, numbers in together:
            if max(x_at / x_near, x_near / x_at) < NEAR and max(y_at / y_near, y_near / y_at) < NEAR:
                numbers.append(str(number))
                break
        else:
            together.append((x_at, y_at, [str(number)]))
        times = f", {row['ratio']:.2f} x the roofline" if row["ratio"] > VISIBLE else ""
        label = f"{number} {step} {row['name']}: {row['bound']}, {100 * row['share']:.0f} % of the step{times}"
        handles.append(Line2D([], [], color=color, marker=marker, ls="", label=label))
    for place, (x_at, y_at, numbers) in enumerate(sorted(together)):
        above = place % 2 > 0 and not hang
        beside = (-7 if above else 7) if x_at < ridge / NEAR else 0  # off the slope
        axes.annotate(
            ", ".join(numbers), (x_at, y_at), (beside, 11 if above else -12), textcoords="offset points", size=8,
            ha="center" if not beside else "right" if above else "left", va="center",
        )  # fmt: skip
    axes.set_xlabel("arithmetic intensity (FLOP/byte)")
    axes.set_ylabel("arithmetic per GPU (TFLOP/s)")
    legend = axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
    legend.set_frame_on(False)
    return figure
