"""Runs side by side: the long table of comparison.csv, and the one printed on the terminal."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Group
from rich.table import Table
from rich.text import Text

from . import catalog, pairs, served
from . import winners as won
from .headline import headline, verdicts
from .load import find
from .plots.style import note_of, rate_name, rates_of
from .report import write_report
from .variants import FEW, Variant, finished, variants

__all__ = ["COLUMNS", "PAIRED", "comparison", "paired", "table", "told", "winners", "write_report"]

COLUMNS = ("policy", "rate_per_s", "metric", "value", "ci_low", "ci_high", "replications")
PAIRED = (
    *("policy_a", "policy_b", "rate_per_s", "metric", "difference", "ci_low", "ci_high"),
    *("ratio", "ratio_low", "ratio_high"),
)
MOST_COLUMNS = 4
"""More policies than this stand below each other."""
LONGEST = 12
"""Names longer than this stand on two lines, divided where they have a mark."""


def comparison(run_folders: Iterable[Path | str]) -> pd.DataFrame:
    """Every metric of every policy and rate, a row each (`COLUMNS`); metrics are named as in summary.json.

    `value` is the mean over replications and the interval Student's t at 95 %; with one replication it is empty, and
    where there is no data so is the value. Raises ResultError for a folder without a result.
    """
    rows = []
    for variant in variants(find(run_folders)):
        names = dict.fromkeys(name for run in variant.runs for name in run.summary if name not in catalog.SETTINGS)
        for name in names:
            if any(isinstance(run.summary.get(name), str | list | dict | bool) for run in variant.runs):
                continue
            rows.append((variant.label, variant.rate_per_s, name, *variant.interval(name), len(variant.runs)))
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    kinds = dict.fromkeys(("rate_per_s", "value", "ci_low", "ci_high"), "float64")
    return frame.astype({"replications": "int64", **kinds})


def paired(run_folders: Iterable[Path | str]) -> pd.DataFrame:
    """What separates any two policies that met the same arrivals, a row each metric (`PAIRED`).

    `difference` is policy_a less policy_b, the mean over replications, each of which is paired with its like; the
    interval as in `comparison`. `ratio` is that of policy_a to policy_b, by which who wins is judged (`judge`).
    """
    rows = [
        (gap.a.label, gap.b.label, gap.a.rate_per_s, gap.metric, gap.mean, gap.low, gap.high)
        + (gap.ratio or (None, None, None))
        for gap in pairs.all_gaps(variants(find(run_folders)))
    ]
    frame = pd.DataFrame(rows, columns=list(PAIRED))
    return frame.astype(dict.fromkeys(("rate_per_s", *PAIRED[4:]), "float64"))


def told(run_folders: Iterable[Path | str]) -> list[str]:
    """Who wins, in sentences for the terminal: on what, by how much, why, and where that has no steady state."""
    found = variants(find(run_folders))
    many = len(_policies(found)) > 2
    why = won.sentences(found)
    if many:
        why = [*won.notes(found), *(f"{names}: {text}" for names, text in won.whys(won.winners(found)))]
    return [headline(found), *why, *verdicts(found)]


def winners(run_folders: Iterable[Path | str]) -> Group | None:
    """Who wins on which metric, and by how much, for the terminal; None for fewer than three policies: their `table`
    and what is `told` say it."""
    found = variants(find(run_folders))
    if len(_policies(found)) < 3 or not (told := won.winners(found)):
        return None
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for head in ("", *won.BRIEF):
        made.add_column(head, overflow="fold")
    for win in told:
        best, near, behind, by = win.brief()
        made.add_row(win.name, best, "\n".join(near), behind, by)
    mark = " ?: not decided by them." if any(win.undecided for win in told) else ""
    return Group(made, Text(won.heading(found) + mark, style="dim"))


def table(run_folders: Iterable[Path | str]) -> Group:
    """The key metrics for a terminal of 80 columns, best values in bold with a star, with the report's note below.

    Policies stand beside each other; below each other, with fewer metrics, where there are many or several rates.
    """
    found = variants(find(run_folders))
    across = len(_policies(found)) <= MOST_COLUMNS and len(rates_of(found)) == 1
    made = _metrics_down(found) if across else _policies_down(found)
    several = any(len(variant.runs) > 1 for variant in found)
    below = (
        "* best" if len(found) > 1 else "",
        "± 95 % confidence interval over replications" if several else "",
        f"° rests on fewer than {FEW:,} values" if any(v.few(m.name) for v in found for m in catalog.KEY) else "",
        note_of(found),
    )
    return Group(made, *(Text(text, style="dim") for text in below if text))


def _policies(found: Sequence[Variant]) -> list[str]:
    return list(dict.fromkeys(variant.label for variant in found))


def _metrics_down(found: Sequence[Variant]) -> Table:
    """One rate: a column a policy."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    made.add_column("")
    made.add_column("", style="dim")
    for variant in found:
        made.add_column(variant.label, justify="right", overflow="fold")
    made.add_row("Finished requests", "", *map(finished, found))
    for metric in catalog.key_metrics(lambda name: [variant.value(name) for variant in found]):
        unit, texts = cells(metric, found)
        made.add_row(metric.alone, unit, *texts)
    return made


def _policies_down(found: Sequence[Variant]) -> Table:
    """A row a policy, under a heading for each rate."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    made.add_column("", overflow="fold")
    made.add_column("done", justify="right", no_wrap=True)
    shown = [metric for metric in catalog.KEY if metric.name in catalog.TERMINAL]
    groups = [(rate, [variant for variant in found if variant.rate_per_s == rate]) for rate in rates_of(found)]
    texts: dict[tuple[Variant, str], str] = {}
    for metric in shown:
        whole = [variant.value(metric.name) for variant in found]
        unit, _ = catalog.shown_in(metric.unit, whole)
        for _, mine in groups:
            made_of = cells(metric, mine, whole, "\n")[1]
            texts |= {(variant, metric.name): text for variant, text in zip(mine, made_of, strict=True)}
        made.add_column(f"{metric.brief}\n{unit}", justify="right", no_wrap=True)
    for rate, mine in groups:
        if len(groups) > 1:
            made.add_row(f"[bold]{rate_name(rate)}[/bold]")
        for variant in mine:
            values = (texts[variant, metric.name] for metric in shown)
            made.add_row(divided(variant.label), finished(variant), *values)
    return made


def divided(label: str) -> str:
    """A long name on two lines, behind the mark nearest to its middle; as it is where it has none."""
    marks = [place for place, letter in enumerate(label, 1) if letter in "-_ ." and place < len(label)]
    if len(label) <= LONGEST or not marks:
        return label
    at = min(marks, key=lambda place: abs(place - len(label) / 2))
    return f"{label[:at]}\n{label[at:]}"


def cells(
    metric: catalog.Metric, found: Sequence[Variant], whole: Sequence[float | None] | None = None, between: str = " "
) -> tuple[str, list[str]]:
    """(unit, texts) of one metric of policies that are compared; the unit is chosen for `whole`. An interval stands
    behind its value, or below it where `between` is a line's end."""
    values = [variant.value(metric.name) for variant in found]
    unit, factor = catalog.shown_in(metric.unit, values if whole is None else whole)
    best = served.best_of(metric, found, factor)
    texts = []
    for i, (variant, value) in enumerate(zip(found, values, strict=True)):
        text = catalog.text_in(metric, value, factor) + ("°" if variant.few(metric.name) else "")
        text = f"[bold]{text}*[/bold]" if i in best else text
        half = catalog.text_of_half(value, variant.half_width(metric.name), factor)
        texts.append(f"{text}{between}[dim]±{half}[/dim]" if half else text)
    return unit, texts
