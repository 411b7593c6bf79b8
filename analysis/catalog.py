"""What the metrics are called, in which unit they are shown, and which way is better.

Names are the fields of summary.json. The table of a report and the one on the terminal show `KEY`; everything else is
in comparison.csv and in the report's list of all metrics.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

LATENCIES = {
    "ttft": ("TTFT", "Time to first token"),
    "tpot": ("TPOT", "Time per output token"),
    "itl": ("ITL", "Inter-token latency"),
    "e2el": ("E2E", "End-to-end latency"),
}


@dataclass(frozen=True)
class Distribution:
    """What a cumulative distribution is drawn of. `whose` are the things it is the distribution over."""

    name: str
    short: str
    long: str
    unit: str
    whose: str
    read: str

    @property
    def title(self) -> str:
        return f"{self.long} ({self.short})" if self.unit == "ms" else self.long


DISTRIBUTIONS = {
    each.name: each
    for each in (
        Distribution(
            "ttft", *LATENCIES["ttft"], "ms", "requests",
            "How long a user waits for the first token, queueing included.",
        ),
        Distribution(
            "tpot", *LATENCIES["tpot"], "ms", "requests",
            "The average pace of each request after its first token; requests of one token have none.",
        ),
        Distribution(
            "itl", *LATENCIES["itl"], "ms", "tokens",
            "Every pause between two tokens of a request: the tail shows stalls that averages hide.",
        ),
        Distribution("e2el", *LATENCIES["e2el"], "ms", "requests", "From arrival to the last token."),
        Distribution(
            "speed", "tokens/s of a request", "Tokens per second of each request", "tok/s", "requests",
            "Output tokens of a request over its end-to-end latency: what its user gets, waiting included.",
        ),
        Distribution(
            "output", "output tokens/s", "Output tokens per second, in one-second windows", "tok/s", "seconds",
            "What all replicas generate in each second of the measured window, idle seconds included.",
        ),
    )
}  # fmt: skip
PARTS = {
    "queue": "waiting in the queue",
    "prefill": "computing the prompt",
    "decode": "generating tokens",
    "preempted": "preempted",
    "transfer": "moving KV between engines",
    "retry": "lost to retries",
}
ANEW = "queued anew"
"""What `preempted` is of a policy that preempts nobody."""
TERMINAL = (
    *("median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_itl_ms", "p99_e2el_ms"),
    *("request_throughput", "output_throughput", "request_goodput"),
)
"""Those of `KEY` for which 80 columns are enough when policies and rates stand below each other."""
SETTINGS = frozenset(
    "name policy rate_per_s seed replication model gpu tensor_parallel_size replicas kv_tokens kv_blocks max_model_len"
    " response_s warmup_s streamed note".split()
)
"""Fields of summary.json that say how a run was made, not what came out."""
SLO_OF = {"ttft": "ttft_ms", "tpot": "tpot_ms", "e2el": "e2e_ms"}
WORST_FOR_MS = 20_000.0
"""From here on milliseconds are hard to read, and seconds are shown."""


@dataclass(frozen=True)
class Metric:
    """One column of the table: under the heading of its `group`, or alone by its `words`."""

    name: str
    group: str
    title: str
    unit: str
    better: Literal["low", "high"] | None = None
    words: str = ""

    @property
    def alone(self) -> str:
        return self.words or f"{self.group} {self.title}"

    @property
    def brief(self) -> str:
        """For narrow columns: two lines."""
        return f"{'' if self.words else self.group}\n{self.title}"


KEY = (
    Metric("median_ttft_ms", "TTFT", "median", "ms", "low"),
    Metric("p99_ttft_ms", "TTFT", "p99", "ms", "low"),
    Metric("median_tpot_ms", "TPOT", "median", "ms", "low"),
    Metric("p99_tpot_ms", "TPOT", "p99", "ms", "low"),
    Metric("median_itl_ms", "ITL", "median", "ms", "low"),
    Metric("p99_itl_ms", "ITL", "p99", "ms", "low"),
    Metric("median_e2el_ms", "E2E", "median", "ms", "low"),
    Metric("p99_e2el_ms", "E2E", "p99", "ms", "low"),
    Metric("request_throughput", "Throughput", "requests", "req/s", "high", "Requests finished"),
    Metric("output_throughput", "Throughput", "tokens", "tok/s", "high", "Output tokens"),
    Metric("request_goodput", "Within SLO", "goodput", "req/s", "high", "Goodput"),
    Metric("slo_attainment", "Within SLO", "share", "%", "high", "Within the SLO"),
    Metric("mean_batch_size", "Engines", "batch size", "seqs", None, "Mean batch size"),
    Metric("mean_kv_usage", "Engines", "KV use", "%", None, "Mean KV use"),
    Metric("preemptions", "Engines", "preempted", "times", None, "Preemptions"),
)


def key_metrics(has: Callable[[str], Iterable[float | None]]) -> list[Metric]:
    """`KEY` without what no scenario asked for or nothing did: the SLO's columns without an SLO, preemptions that are
    all 0. Latencies stay, with data or without; `has(name)` gives the metric's values."""
    always = (*(f"_{name}_ms" for name in LATENCIES), "throughput")

    def wanted(metric: Metric) -> bool:
        values = [value for value in has(metric.name) if value is not None]
        return metric.name.endswith(always) or (any(values) if metric.name == "preemptions" else bool(values))

    return [metric for metric in KEY if wanted(metric)]


def shown_in(unit: str, values: Sequence[float | None]) -> tuple[str, float]:
    """(unit, factor) in which these values of one metric are best read."""
    there = [abs(value) for value in values if value is not None]
    if unit == "ms" and there and max(there) >= WORST_FOR_MS:
        return "s", 1e-3
    if unit == "%":
        return "%", 100.0
    return unit, 1.0


def text_of(value: float | None, whole: bool = False) -> str:
    """Three significant digits or more, thousands apart; an en dash where there is no data. `whole`: a count."""
    if value is None:
        return "–"
    size = abs(value)
    digits = 0 if whole or size >= 100 or not size else 1 if size >= 10 else 2 if size >= 1 else 3 if size >= 0.1 else 4
    return f"{value:,.{digits}f}"


def text_of_half(value: float | None, half: float | None, factor: float = 1.0) -> str:
    """Half an interval's width, with as many digits as the value it belongs to; empty where there is none."""
    if value is None or half is None:
        return ""
    _, _, digits = text_of(value * factor).partition(".")
    return f"{half * factor:,.{len(digits)}f}"


def short(value: float) -> str:
    """Two significant digits, whole from 10 on: `-0.12`, `9.6`, `1,240`."""
    return f"{value:,.0f}" if abs(value) >= 9.95 else f"{value:.2g}"


def percent(share: float | None) -> str:
    """`8.2 %`, `45 %`; a share that is almost the whole is not told as the whole."""
    if share is None:
        return "no data"
    return "over 99 %" if 0.995 <= share < 1 else f"{short(100 * share)} %"


def times(ratio: float) -> str:
    return f"{short(ratio)} times"


def text_in(metric: Metric, value: float | None, factor: float) -> str:
    """As the tables show it."""
    return text_of(None if value is None else value * factor, whole=metric.unit in ("times", ""))


def best_of(metric: Metric, values: Sequence[float | None], factor: float = 1.0) -> set[int]:
    """Places of the best of several values, all those that look like it when shown with this factor; none where all
    are alike or there is one value only."""
    there = [value for value in values if value is not None]
    if metric.better is None or len(there) < 2:
        return set()
    shown = text_in(metric, min(there) if metric.better == "low" else max(there), factor)
    alike = {i for i, value in enumerate(values) if text_in(metric, value, factor) == shown}
    return alike if len(alike) < len(there) else set()
