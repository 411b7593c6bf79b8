"""What the metrics are called, in which unit they are shown, and which way is better.

Names are the fields of summary.json. The table of a report and the one on the terminal show `KEY`; everything else is
in comparison.csv and in the report's list of all metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

LATENCIES = {
    "ttft": ("TTFT", "Time to first token"),
    "tpot": ("TPOT", "Time per output token"),
    "itl": ("ITL", "Inter-token latency"),
    "e2el": ("E2E", "End-to-end latency"),
}
PARTS = {
    "queue": "waiting in the queue",
    "prefill": "computing the prompt",
    "decode": "generating tokens",
    "preempted": "preempted",
    "transfer": "moving KV between engines",
    "retry": "lost to retries",
}
SLO_OF = {"ttft": "ttft_ms", "tpot": "tpot_ms", "e2el": "e2e_ms"}
WORST_FOR_MS = 20_000.0
"""From here on milliseconds are hard to read, and seconds are shown."""


@dataclass(frozen=True)
class Metric:
    """One column of the table."""

    name: str
    group: str
    title: str
    unit: str
    better: Literal["low", "high"] | None = None

    @property
    def full(self) -> str:
        return f"{self.group} {self.title}".strip()


KEY = (
    Metric("median_ttft_ms", "TTFT", "median", "ms", "low"),
    Metric("p99_ttft_ms", "TTFT", "p99", "ms", "low"),
    Metric("median_tpot_ms", "TPOT", "median", "ms", "low"),
    Metric("p99_tpot_ms", "TPOT", "p99", "ms", "low"),
    Metric("median_itl_ms", "ITL", "median", "ms", "low"),
    Metric("p99_itl_ms", "ITL", "p99", "ms", "low"),
    Metric("median_e2el_ms", "E2E latency", "median", "ms", "low"),
    Metric("p99_e2el_ms", "E2E latency", "p99", "ms", "low"),
    Metric("request_throughput", "Throughput", "requests", "req/s", "high"),
    Metric("output_throughput", "Throughput", "output tokens", "tok/s", "high"),
    Metric("request_goodput", "Within SLO", "goodput", "req/s", "high"),
    Metric("slo_attainment", "Within SLO", "share", "%", "high"),
    Metric("mean_batch_size", "Engines", "batch size", "seqs", None),
    Metric("mean_kv_usage", "Engines", "KV use", "%", None),
    Metric("preemptions", "Engines", "preempted", "times", None),
)


def shown_in(unit: str, values: Sequence[float | None]) -> tuple[str, float]:
    """(unit, factor) in which these values of one metric are best read."""
    there = [abs(value) for value in values if value is not None]
    if unit == "ms" and there and max(there) >= WORST_FOR_MS:
        return "s", 1e-3
    if unit == "%":
        return "%", 100.0
    return unit, 1.0


def text_of(value: float | None) -> str:
    """Three significant digits or more, thousands apart; an en dash where there is no data."""
    if value is None:
        return "–"
    size = abs(value)
    digits = 0 if size >= 100 or value == int(value) else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{digits}f}"


def best_of(metric: Metric, values: Sequence[float | None]) -> set[int]:
    """Places of the best of several values, as they are shown; none where all are alike or nothing is to be compared."""
    there = [value for value in values if value is not None]
    if metric.better is None or len(values) < 2 or not there:
        return set()
    best = min(there) if metric.better == "low" else max(there)
    _, factor = shown_in(metric.unit, values)
    alike = {
        i for i, value in enumerate(values) if value is not None and text_of(value * factor) == text_of(best * factor)
    }
    return alike if len(alike) < len(values) else set()
