"""The worst rows, each with what most likely explains its error, from evidence in the row and in its simulation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .campaigns import FIRST_UNIFIED, version_of
from .score import Scored

FULL = 0.97  # of the KV cache
CLOSER = 0.5  # an explanation leaves at most this share of the error


@dataclass(frozen=True)
class Worst:
    """One row that is far off."""

    scored: Scored
    metric: str
    error: float
    reason: str


def worst(scored: Sequence[Scored], metric: str, quality: str, most: int) -> list[Worst]:
    """The rows that count whose error is greatest, greatest first."""
    found = []
    for each in scored:
        if each.row.quality == quality and each.counts(metric) and (error := each.error(metric)) is not None:
            found.append((abs(error), each.row.run_id, each, error))
    found.sort(key=lambda entry: (-entry[0], entry[1]))
    return [Worst(each, metric, error, reason(each, metric)) for _, _, each, error in found[:most]]


def reason(scored: Scored, metric: str) -> str:
    """What the evidence says, the strongest first; at most two."""
    error = scored.error(metric)
    assert error is not None
    return "; ".join(list(_reasons(scored, metric, error))[:2]) or "nothing in the row or its simulation explains it"


def _reasons(scored: Scored, metric: str, error: float) -> Iterator[str]:
    row, evidence = scored.row, scored.prediction.evidence
    for other in scored.alternatives:
        under = scored.error(metric, other)
        if under is not None and abs(under) < CLOSER * abs(error):
            yield f"with {other.label}, which the row leaves open, {under:+.0%}"
    for which, title in (("ttft", "ttft_ms"), ("tpot", "tpot_ms")):
        stat = row.ttft_stat if which == "ttft" else row.tpot_stat
        if metric == title and stat in ("", "unspecified") and evidence.get(f"median_{which}_ms"):
            under = evidence[f"median_{which}_ms"] / row.measured[metric] - 1.0
            if abs(under) < CLOSER * abs(error):
                yield f"mean or median is not stated: the median would be {under:+.0%}"
    if evidence.get("max_kv_usage") and evidence["max_kv_usage"] > FULL:
        count = evidence["preemptions"]
        yield f"the KV cache runs full ({count} preemptions): a few per cent of it move TTFT by tens of per cent"
    if scored.note:
        yield scored.note
    version = version_of(row, scored.plan.campaign)
    if row.engine == "vllm" and version and version < FIRST_UNIFIED:
        yield "an old engine, bound by its host"
    measured, predicted = row.measured[metric], scored.predicted(metric)
    if metric == "ttft_ms" and predicted is not None and predicted < measured:
        yield f"{measured - predicted:.0f} ms a request missing: front end, or prompts that wait longer"
    if metric == "ttft_ms" and predicted is not None and predicted > measured and "mean_queue_ms" in evidence:
        wait = evidence["mean_queue_ms"]
        yield f"{predicted - measured:.0f} ms too much, where front end and waiting for steps take {wait:.0f} ms"
    if metric == "tpot_ms" and row.tp >= 8 and error < 0:
        yield "TP8 comes out fast: GPUs wait for each other in all-reduces"
    narrow = scored.plan.scenario["engine"]["weight_dtype"] == "fp8"
    if metric == "tpot_ms" and narrow and row.concurrency and 16 < row.concurrency <= 32 and error < 0:
        yield "batches of 17 to 32: fp8 products take a step up at 17 rows"
    if scored.plan.assumed:
        yield f"assumed: {scored.plan.assumed[0]}"
