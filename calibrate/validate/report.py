"""What a validation says to people: tables for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text

from .reasons import Worst, worst
from .rows import METRICS, Row
from .score import Errors, Group, Scored, groups, reported

TITLES = {
    "ttft_ms": "TTFT",
    "tpot_ms": "TPOT",
    "e2e_ms": "E2E",
    "req_per_s": "requests/s",
    "output_tok_per_s": "tokens/s",
}
LATENCIES = ("ttft_ms", "tpot_ms")


@dataclass(frozen=True)
class Validation:
    """All that a validation found."""

    file: str
    rows: int
    calibration: str
    against: str  # empty: nothing to compare with
    scored: tuple[Scored, ...]
    skipped: tuple[tuple[Row, str], ...]
    front_ends: dict[tuple[str, str], float]
    fitted: bool  # whether these came from rows
    most_worst: int = 8

    @property
    def qualities(self) -> list[str]:
        return [q for q in ("A", "B") if any(s.row.quality == q and not s.unscored for s in self.scored)]


def tables(found: Validation) -> Lines:
    """For the terminal."""
    parts: list[Any] = [_summary(found)]
    for quality in found.qualities:
        parts += [Text(), _errors(groups(found.scored, quality), f"Quality {quality}: errors in per cent")]
    if beside := reported(found.scored):
        parts += [Text(), _errors(beside, "Reported, not scored: errors in per cent")]
    if found.against:
        parts += [Text(), _against(found)]
    parts += [Text(), *_saturated(found), *_capacity(found), *_worst(found), *_skipped(found), _assumed(found)]
    return Lines(*parts)


def _summary(found: Validation) -> Text:
    lines = [
        f"{found.file}: {found.rows} rows, {len(found.scored)} simulated, {len(found.skipped)} not",
        f"calibration {found.calibration}" + (f", against {found.against}" if found.against else ""),
    ]
    for note, count in sorted(Counter(s.note for s in found.scored if s.note).items()):
        lines.append(f"{count} rows: {note}")
    for why, count in sorted(Counter(s.unscored for s in found.scored if s.unscored).items()):
        lines.append(f"{count} rows do not count: {why}")
    for (gpu, engine), value in found.front_ends.items():
        whence = "median over the rows of 4 clients, which leave the score of TTFT and E2E" if found.fitted else "given"
        lines.append(f"front end of {engine} on {gpu}: {value:.1f} ms a request ({whence})")
    lines.append("error = predicted / measured - 1; median and p90 of its size, in brackets the signed median")
    return Text("\n".join(lines))


def _cell(errors: Errors | None) -> str:
    if errors is None:
        return ""
    return f"{100 * errors.median:.1f} / {100 * errors.p90:.1f} ({100 * errors.signed:+.1f})"


def _errors(lines: Sequence[Group], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    shown = [metric for metric in METRICS if any(metric in line.errors for line in lines)]
    table.add_column("by")
    table.add_column("group", no_wrap=True, max_width=60)
    for metric in shown:
        table.add_column("rows", justify="right")
        table.add_column(TITLES[metric], justify="right", no_wrap=True)
    last = ""
    for line in lines:
        cells = [line.by if line.by != last else "", line.name]
        for metric in shown:
            errors = line.errors.get(metric)
            cells += [str(errors.rows) if errors else "", _cell(errors)]
        table.add_row(*cells)
        last = line.by
    return table


def _against(found: Validation) -> Table:
    title = f"The same rows with {found.against}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in ("quality", "group", "TTFT", f"TTFT {found.against}", "TPOT", f"TPOT {found.against}"):
        table.add_column(name, justify="left" if name in ("quality", "group") else "right", overflow="fold")
    for quality in found.qualities:
        for line in groups(found.scored, quality):
            if line.by in ("all", "engine, GPU", "TP"):
                cells = [_cell(side.get(metric)) for metric in LATENCIES for side in (line.errors, line.against)]
                table.add_row(quality, line.name, *cells)
    return table


def saturated(found: Validation) -> list[Scored]:
    """Rows whose measured TTFT is beyond 5 s, those of quality C left out."""
    return [s for s in found.scored if s.saturated and not s.unscored]


def _saturated(found: Validation) -> list[Any]:
    rows = saturated(found)
    if not rows:
        return []
    table = Table(title="Saturated: TTFT of 5 s and more was measured", title_justify="left", box=None, pad_edge=False)
    for name in (
        "run",
        "measured s",
        "predicted s",
        *([found.against] if found.against else []),
        "KV used",
        "preemptions",
    ):
        table.add_column(name, justify="left" if name == "run" else "right", overflow="fold")
    for each in rows:
        other = each.predicted("ttft_ms", each.against) if each.against else None
        seconds = [each.row.measured["ttft_ms"], each.predicted("ttft_ms"), *([other] if found.against else [])]
        usage = each.prediction.evidence.get("max_kv_usage") or 0.0
        cells = [f"{value / 1000:.2f}" if value is not None else "" for value in seconds]
        table.add_row(each.row.run_id, *cells, f"{usage:.0%}", str(each.prediction.evidence.get("preemptions")))
    return [table, Text()]


def capacity(found: Validation) -> list[dict[str, Any]]:
    """KV blocks where the row states them (its run then has them), and what the memory's formula gives."""
    lines = {}
    for each in found.scored:
        blocks = each.row.kv_blocks or (each.row.kv_tokens or 0) // 16
        predicted = each.prediction.evidence.get("predicted_kv_blocks")
        if blocks and predicted:
            key = (each.row.model, each.plan.gpu, each.row.tp, blocks)
            facts = dict(zip(("model", "gpu", "tp", "kv_blocks"), key, strict=True))
            lines[key] = {**facts, "predicted": predicted, "error": predicted / blocks - 1.0}
    return [lines[key] for key in sorted(lines)]


def _capacity(found: Validation) -> list[Any]:
    lines = capacity(found)
    if not lines:
        return []
    table = Table(title="KV blocks, where rows state them", title_justify="left", box=None, pad_edge=False)
    for name in ("model", "GPU", "TP", "stated", "predicted", "error"):
        table.add_column(name, justify="left" if name in ("model", "GPU") else "right")
    for line in lines:
        numbers = (str(line["tp"]), f"{line['kv_blocks']:,}", f"{line['predicted']:,}", f"{line['error']:+.1%}")
        table.add_row(line["model"], line["gpu"], *numbers)
    return [table, Text()]


def all_worst(found: Validation) -> list[Worst]:
    return [w for q in found.qualities for m in METRICS for w in worst(found.scored, m, q, found.most_worst)]


def _worst(found: Validation) -> list[Any]:
    table = Table(title="Worst rows", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in ("metric", "run", "measured", "predicted", "error", "likely reason"):
        table.add_column(
            name, justify="right" if name in ("measured", "predicted", "error") else "left", overflow="fold"
        )
    for each in all_worst(found):
        if each.metric in LATENCIES or each.metric == "output_tok_per_s":
            predicted = each.scored.predicted(each.metric)
            numbers = (f"{each.scored.row.measured[each.metric]:.4g}", f"{predicted:.4g}", f"{each.error:+.1%}")
            table.add_row(TITLES[each.metric], each.scored.row.run_id, *numbers, each.reason)
    return [table, Text()] if table.row_count else []


def _skipped(found: Validation) -> list[Any]:
    if not found.skipped:
        return []
    table = Table(title="Not simulated", title_justify="left", box=None, pad_edge=False)
    table.add_column("rows", justify="right")
    table.add_column("reason", overflow="fold")
    for reason, count in Counter(reason for _, reason in found.skipped).most_common():
        table.add_row(str(count), reason)
    return [table, Text()]


def assumptions(found: Validation) -> dict[str, list[str]]:
    """By campaign what its recipe says, and what single rows left open, with how many did."""
    told: dict[str, list[str]] = {}
    for name in sorted({s.plan.campaign.name for s in found.scored}):
        own = [s for s in found.scored if s.plan.campaign.name == name]
        counted = Counter(text for s in own for text in s.plan.assumed)
        told[name] = [*own[0].plan.campaign.says, *(f"{text} ({count} rows)" for text, count in counted.most_common())]
    return told


def _assumed(found: Validation) -> Text:
    lines = ["Assumed where the rows do not say"]
    for name, texts in assumptions(found).items():
        lines += [f"  {name}:", *(f"    {text}" for text in texts)]
    return Text("\n".join(lines))
