"""The work of a replica's steps after the warm-up, for its utilisation over the same window as its throughput.

A step counts if it ends in the window, as in throughput. What prompts read is not recorded step by step: the window
gets the share of the requests whose prompts were computed in it, and of one whose prompt was half computed at its
beginning, the part by time.
"""

import numpy as np
import pyarrow as pa

from .columns import values_of
from .utilisation import Work

COLUMNS = ("engine", "start_s", "end_s", "emitted", "prefill_tokens", "decode_tokens", "context_tokens")
"""Of the table of steps, to be kept where a warm-up is cut."""


def work_within(steps: pa.Table, engine: int, warmup_s: float, whole: Work, share: tuple[float, float]) -> Work:
    """Of the steps of `engine` that end at or after `warmup_s`; `whole` sums its run, `share` is of the prompts."""
    column = {name: values_of(steps[name]) for name in COLUMNS}
    inside = (column["engine"] == engine) & (column["end_s"] >= warmup_s)
    column = {name: values[inside] for name, values in column.items()}
    rows = column["prefill_tokens"] + column["decode_tokens"]
    counts: dict[int, int] = {}
    if whole.by_rows:
        counts = {int(k): int(n) for k, n in zip(*np.unique(rows[rows > 0], return_counts=True), strict=True)}
    keys, pairs = share
    context = int(column["context_tokens"].sum())
    return Work(
        steps=int(np.count_nonzero(rows)),
        emitting_steps=int(np.count_nonzero(column["emitted"])),
        busy_s=float((column["end_s"] - column["start_s"]).sum()),
        by_rows=counts,
        prefill_keys=min(round(whole.prefill_keys * keys), context),
        prefill_pairs=round(whole.prefill_pairs * pairs),
        prefill_tokens=int(column["prefill_tokens"].sum()),
        decode_tokens=int(column["decode_tokens"].sum()),
        emitted=int(column["emitted"].sum()),
        context_tokens=context,
    )


def prompts_within(requests: pa.Table, warmup_s: float) -> tuple[float, float]:
    """Share of the keys that prompts read, and of their (query, visible key) pairs, that falls after `warmup_s`."""
    begin, first = values_of(requests["first_scheduled_s"]), values_of(requests["first_token_s"])
    end = np.where(np.isnan(first), begin, first)
    prompt, cached = values_of(requests["prompt_tokens"]), values_of(requests["cached_tokens"])
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = np.where(begin >= warmup_s, 1.0, np.clip((end - warmup_s) / (end - begin), 0.0, 1.0))
    inside = np.nan_to_num(inside)
    scheduled = ~np.isnan(begin)
    keys = np.where(scheduled, prompt, 0.0)
    pairs = np.where(scheduled, prompt * (prompt + 1.0) - cached * (cached + 1.0), 0.0)
    return tuple(  # type: ignore[return-value]
        float((weights * inside).sum() / weights.sum()) if weights.sum() else 0.0 for weights in (keys, pairs)
    )
