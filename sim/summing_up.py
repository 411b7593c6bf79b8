"""What `sim run` says of its simulations when they have ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .metrics.intervals import mean_interval

if TYPE_CHECKING:
    from .results import Outcome

SHOWN = {
    "mean_ttft_ms": "mean TTFT, ms",
    "p99_ttft_ms": "p99 TTFT, ms",
    "mean_tpot_ms": "mean TPOT, ms",
    "p99_e2el_ms": "p99 E2E, ms",
    "request_throughput": "requests/s",
    "output_throughput": "output tokens/s",
    "request_goodput": "goodput, requests/s",
}
FEW = 1000
"""A p99 of fewer values than this rests on fewer than ten of them."""


def sentence(outcome: Outcome) -> str:
    """What became of the requests, and how fast that was simulated."""
    summary, facts = outcome.summary, outcome.facts
    ended = [f"{summary[status]:,} {status}" for status in ("finished", "rejected", "failed", "unfinished")]
    counts = ", ".join(text for text in ended if not text.startswith("0 "))
    means = [
        f"mean {name} {summary[f'mean_{key}_ms']:,.1f} ms"
        for name, key in (("TTFT", "ttft"), ("TPOT", "tpot"))
        if summary[f"mean_{key}_ms"] is not None
    ]
    speed = summary["requests"] / facts["wall_s"]
    return "; ".join(
        [
            f"{summary['requests']:,} requests: {counts}" if counts else "no requests",
            *means,
            f"{summary['duration']:,.1f} s simulated in {facts['wall_s']:.1f} s ({speed:,.0f} requests/s)",
        ]
    )


def intervals(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """Means over replications with their intervals, a line each; nothing for a single run."""
    if len(summaries) < 2:
        return []
    lines = [f"over {len(summaries)} replications, with 95 % confidence intervals:"]
    for name, words in SHOWN.items():
        values = [summary[name] for summary in summaries if summary[name] is not None]
        if len(values) == len(summaries):
            mean, low, high = mean_interval(values)
            lines.append(f"  {words:<20} {mean:>12,.2f}   {low:,.2f} to {high:,.2f}")
    return lines


def like_ones(outcomes: Sequence[Outcome]) -> list[str]:
    """A warning where replications came out all alike, since an interval over them says nothing."""
    told = [{**outcome.summary, "replication": 0} for outcome in outcomes]
    if len(told) < 2 or any(each != told[0] for each in told):
        return []
    return [f"all {len(told)} replications are equal: nothing in the scenario is drawn at random"]


def verdict(summary: dict[str, Any]) -> str:
    """Whether there was a steady state, and what to keep in mind of the p99."""
    text = f"{summary['verdict']}: {summary['verdict_evidence']}"
    if 0 < summary["measured"] < FEW:
        text += f"; p99 of only {summary['measured']:,} requests"
    return text
