"""One HTML file that explains itself, and its pictures beside it.

Everything is made first, then written under temporary names, then renamed: a report is whole or not there. It holds no
time of its making, so equal results give equal bytes.
"""

import base64
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from . import catalog, explore, facts, replay, served, winners
from .commands import commands, replayed
from .headline import headline, verdicts
from .load import Run, find
from .plots import Plot, draw_all
from .plots.style import looks, note_of, rate_name, rates_of
from .variants import Variant, finished, variants

SECTIONS = (
    (
        "Distributions",
        "Over all measured requests, tokens or seconds; of replications together.",
        tuple(f"cdf_{name}" for name in catalog.DISTRIBUTIONS),
    ),
    ("Classes", "The same for each class of requests by itself.", ("by_class",)),
    ("Load", "How each policy answers to more traffic.", ("against_rate", "against_throughput")),
    ("Time", "Where requests spend it, and what the engines do meanwhile.", ("where_time_went", "timelines")),
)
STATUSES = ("rejected", "shed", "timed_out", "cancelled", "failed", "unfinished")
DETAILS_LEFT_OUT = {"policy", "rate_per_s", "note"}
TONES = {"stable": "good", "above capacity": "bad"}
CLASS_METRICS = (
    *("requests", "median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_tpot_ms", "p99_e2el_ms"),
    *("output_throughput", "request_goodput", "slo_attainment"),
)


def write_report(run_folders: Iterable[Path | str], out_html: Path | str) -> list[Path]:
    """Writes the report of these results, its PNGs (`NAME-plot.png` beside NAME.html), who wins and why where there are
    several policies (`NAME-winners.md`), and the requests where vLLM's benchmark needs them; returns what was written.

    Raises ResultError for a folder without a result; then nothing is written.
    """
    out = Path(out_html)
    found = variants(find(run_folders))
    runs = [run for variant in found for run in variant.runs]
    plots = draw_all(found)
    files = {out: render(runs, found, plots, out).encode()}
    files |= {out.with_name(f"{out.stem}-{plot.name}.png"): plot.png for plot in plots}
    if of := replayed(found):
        files[out.with_name(_requests(out))] = replay.trace(of.first).encode()
    if text := winners.markdown(found, facts.title(runs)):
        files[out.with_name(f"{out.stem}-winners.md")] = text.encode()
    _write(files)
    return list(files)


def _requests(out: Path) -> str:
    """Name of the file that vLLM's benchmark takes, beside the report."""
    return f"{out.stem}-requests.jsonl"


def render(runs: Sequence[Run], found: Sequence[Variant], plots: Sequence[Plot], out: Path) -> str:
    """The HTML text of the report `out`."""
    folder = Path(__file__).parent / "templates"
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, **options)
    by_name = {plot.name: plot for plot in plots}
    sections = [(title, lead, [by_name[name] for name in names if name in by_name]) for title, lead, names in SECTIONS]
    policies = looks(found)
    return environment.get_template("report.html.j2").render(
        title=facts.title(runs),
        summary=_runs(found),
        headline=headline(found),
        sentences=winners.sentences(found) if len(policies) < 3 else [],
        winners=_winners(found),
        verdicts=verdicts(found),
        facts=facts.facts(runs),
        note=note_of(found),
        table=_table(found),
        classes=_classes(found),
        swatches={label: explore.swatch(look) for label, look in policies.items()},
        few=any(variant.few(metric.name) for variant in found for metric in catalog.KEY),
        replicated=any(len(variant.runs) > 1 for variant in found),
        explore_data=Markup(explore.data(found)),
        commands=commands(found, _requests(out)),
        compared=len(found) > 1,
        outcomes=_outcomes(found),
        sections=[section for section in sections if section[2]],
        encoded={plot.name: base64.b64encode(plot.png).decode() for plot in plots},
        details=_details(found),
        folders=[_seen_from(out.parent, run.folder) for run in runs],
    )


@dataclass(frozen=True)
class Cell:
    text: str
    best: bool = False
    half: str = ""  # of the interval's width
    few: bool = False


def _runs(found: Sequence[Variant]) -> str:
    """What was run, in one line below the title."""
    policies = list(dict.fromkeys(variant.label for variant in found))
    rates = rates_of(found)
    listed = ", ".join(policies[:-1]) + (" and " if len(policies) > 1 else "") + policies[-1]
    text = f"Policies {listed}" if len(policies) > 1 else f"Policy {listed}"
    if len(policies) > 6:
        text = f"{len(policies)} policies"
    text += f" at {len(rates)} rates of arrivals" if len(rates) > 1 else ""
    replications = max(len(variant.runs) for variant in found)
    return text + (f", {replications} replications each" if replications > 1 else "")


def _table(found: Sequence[Variant]) -> dict[str, Any]:
    """Columns in groups, rows in groups by rate; the best of a group of rows is marked, units are those of a column."""
    shown = catalog.key_metrics(lambda name: [variant.value(name) for variant in found])
    units = {m.name: _unit(m, shown, lambda name: [variant.value(name) for variant in found]) for m in shown}
    groups: list[tuple[str, int]] = []
    for metric in shown:
        if groups and groups[-1][0] == metric.group:
            groups[-1] = (metric.group, groups[-1][1] + 1)
        else:
            groups.append((metric.group, 1))
    starts = {m.name for i, m in enumerate(shown) if i == 0 or shown[i - 1].group != m.group}
    bodies = []
    rates = rates_of(found)
    for rate in rates:
        mine = [variant for variant in found if variant.rate_per_s == rate]
        best = {}
        for metric in shown:
            best[metric.name] = served.best_of(metric, mine, units[metric.name][1])
        rows = []
        for place, variant in enumerate(mine):
            cells = []
            for metric in shown:
                value, (_, factor) = variant.value(metric.name), units[metric.name]
                text = catalog.text_in(metric, value, factor)
                half = catalog.text_of_half(value, variant.half_width(metric.name), factor)
                cells.append(Cell(text, place in best[metric.name], half, variant.few(metric.name)))
            kind, evidence = variant.verdict
            verdict = {"text": kind or "–", "tone": TONES.get(kind, "plain"), "evidence": evidence}
            rows.append((variant.label, verdict, finished(variant), cells))
        bodies.append((rate_name(rate) if len(rates) > 1 else "", rows))
    columns = [(metric, units[metric.name][0], metric.name in starts) for metric in shown]
    return {"groups": groups, "columns": columns, "bodies": bodies}


def _winners(found: Sequence[Variant]) -> dict[str, Any] | None:
    """Who wins on which metric, by how much, and why; None for a single policy."""
    told = winners.winners(found)
    if not told:
        return None
    rows = [(win.name, win.first.label, win.cells()) for win in told]
    return {
        "heading": winners.heading(found),
        "heads": winners.HEADS,
        "rows": rows,
        "notes": winners.notes(found),
        "whys": winners.whys(told),
        "portraits": winners.portraits(found),
    }


def _unit(
    metric: catalog.Metric, shown: Sequence[catalog.Metric], has: Callable[[str], list[float | None]]
) -> tuple[str, float]:
    """(unit, factor), the same for all times of a group: median and p99 are to be compared."""
    alike = [m for m in shown if m.group == metric.group] if metric.unit == "ms" else [metric]
    return catalog.shown_in(metric.unit, [value for m in alike for value in has(m.name)])


def _classes(found: Sequence[Variant]) -> dict[str, Any] | None:
    """A row for each class under each policy and rate; None where requests are of one kind."""
    labels = list(dict.fromkeys(label for v in found for run in v.runs for label in run.summary.get("classes") or {}))
    if not labels:
        return None

    def value(variant: Variant, label: str, metric: str) -> float | None:
        values = [((run.summary.get("classes") or {}).get(label) or {}).get(metric) for run in variant.runs]
        there = [float(each) for each in values if each is not None]
        return sum(there) / len(there) if there else None

    by_name = {metric.name: metric for metric in catalog.KEY}

    def has(name: str) -> list[float | None]:
        return [value(variant, label, name) for variant in found for label in labels]

    count = catalog.Metric("requests", "Requests", "", "", None, "Requests")
    shown = [by_name.get(name, count) for name in CLASS_METRICS if any(each is not None for each in has(name))]
    columns = [(metric, *_unit(metric, shown, has)) for metric in shown]
    several = len(rates_of(found)) > 1
    bodies = []
    for variant in found:
        heading = f"{variant.label}, {rate_name(variant.rate_per_s)}" if several else variant.label
        rows = [
            (
                label,
                [catalog.text_in(metric, value(variant, label, metric.name), factor) for metric, _, factor in columns],
            )
            for label in labels
        ]
        bodies.append((variant.label, heading, rows))
    return {"columns": [(metric.alone, unit) for metric, unit, _ in columns], "bodies": bodies}


def _outcomes(found: Sequence[Variant]) -> list[str]:
    """What a reader must know: for every variant the requests that did not finish, and its warnings."""
    told: dict[str, None] = {}
    several = len(rates_of(found)) > 1
    for variant in found:
        where = f"{variant.label} at {rate_name(variant.rate_per_s)}" if several else variant.label
        ended = {status: variant.value(status) or 0.0 for status in STATUSES}
        words = [f"{count:,.0f} {status.replace('_', ' ')}" for status, count in ended.items() if count]
        if words:
            told[f"{where}: {', '.join(words)} of {variant.value('requests') or 0:,.0f} requests"] = None
        told |= {f"{variant.label}: {text}": None for run in variant.runs for text in run.info.get("warnings") or ()}
    return list(told)


def _details(found: Sequence[Variant]) -> dict[str, Any]:
    """All numbers of summary.json: metrics down, variants across."""
    names = dict.fromkeys(name for variant in found for run in variant.runs for name in run.summary)
    rows = []
    for name in names:
        values = [[run.summary.get(name) for run in variant.runs] for variant in found]
        if name in DETAILS_LEFT_OUT or any(isinstance(v, str | list | dict) for each in values for v in each):
            continue
        if any(isinstance(v, bool) for each in values for v in each):
            rows.append((name, ["yes" if each[0] else "no" for each in values]))
        else:
            counts = all(v is None or isinstance(v, int) for each in values for v in each)
            rows.append((name, [catalog.text_of(variant.value(name), counts) for variant in found]))
    several = len(rates_of(found)) > 1
    heads = [(variant.label, rate_name(variant.rate_per_s) if several else "") for variant in found]
    return {"heads": heads, "rows": rows}


def _seen_from(beside: Path, folder: Path) -> str:
    """As a relative path where the folder stands below the report, so that both can be moved together."""
    here, there = beside.resolve(), folder.resolve()
    return str(there.relative_to(here)) if there.is_relative_to(here) and there != here else str(folder)


def _write(files: dict[Path, bytes]) -> None:
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in files}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary[path].write_bytes(content)
        for path in reversed(files):  # the HTML comes first and is renamed last
            temporary[path].replace(path)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
