"""What the engines did, from the table of steps: tokens, batch sizes, KV use, waiting requests, busy time."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from .columns import numbers
from .quantiles import weighted_sum


def summarise_steps(
    steps: pa.Table, warmup_s: float, end_s: float, kv_blocks_total: Mapping[int, int]
) -> dict[str, Any]:
    """Over the window [warmup_s, end_s]: steps and tokens of those that ended in it, the rest weighted by time in it.

    Batch size and waiting requests are per engine and averaged over the time in which it works; KV use and busy
    fraction over the whole window and all engines (blocks of idle engines count as free).
    """
    duration = max(0.0, end_s - warmup_s)
    start, end = numbers(steps, "start_s"), numbers(steps, "end_s")
    last = end_s + 1e-9  # ends are sums, and the run has counted those that rounding carries past the stop
    whole = not len(end) or (start.min() >= warmup_s and end.max() <= last)
    inside = slice(None) if whole else (end >= warmup_s) & (end <= last)
    emitted = numbers(steps, "emitted")[inside]
    tokens = int(emitted.sum())
    found: dict[str, Any] = {
        "steps": len(emitted),
        "generated_tokens": tokens,
        "generated_throughput": tokens / duration if duration else None,
        "max_output_tokens_per_s": _peak(end[inside] - warmup_s, emitted),
    }
    seqs = numbers(steps, "seqs")
    with_work = int(np.count_nonzero(seqs[inside]))
    found["mean_batch_size_per_step"] = int(seqs[inside].sum()) / with_work if with_work else None

    spent = end - start if whole else np.maximum(np.minimum(end, end_s) - np.maximum(start, warmup_s), 0.0)
    del start, end, emitted
    within = slice(None) if whole else spent > 0
    busy_s = float(spent.sum())

    def average(values: np.ndarray, over_s: float) -> float | None:
        return weighted_sum(values, spent) / over_s if over_s else None

    def largest(values: np.ndarray) -> float | None:
        return values[within].max().item() if busy_s else None

    found["mean_batch_size"], found["max_batch_size"] = average(seqs, busy_s), largest(seqs)
    waiting = numbers(steps, "waiting")
    found["mean_waiting"], found["max_waiting"] = average(waiting, busy_s), largest(waiting)
    engine_time = duration * len(kv_blocks_total)
    found["busy_fraction"] = busy_s / engine_time if engine_time else None
    use = numbers(steps, "kv_blocks_used") / _totals(steps, kv_blocks_total)
    found["mean_kv_usage"] = average(use, engine_time)
    found["max_kv_usage"] = largest(use) if engine_time else None
    return found


def _totals(steps: pa.Table, kv_blocks_total: Mapping[int, int]) -> np.ndarray | float:
    """KV blocks of each step's engine; one number when all have the same."""
    sizes = set(kv_blocks_total.values())
    if len(sizes) <= 1:
        return float(sizes.pop()) if sizes else 1.0
    by_engine = np.full(max(kv_blocks_total) + 1, np.nan)
    by_engine[list(kv_blocks_total)] = list(kv_blocks_total.values())
    return by_engine[numbers(steps, "engine")]


def _peak(at_s: np.ndarray, tokens: np.ndarray) -> float | None:
    """Most tokens in one of the seconds into which the window is cut."""
    if not len(at_s):
        return None
    second = at_s.astype(np.int64)
    if second.max() > 10 * len(second) + 1_000_000:  # almost all seconds are idle: don't make room for them
        second = np.unique(second, return_inverse=True)[1]
    return float(np.bincount(second, weights=tokens).max())
