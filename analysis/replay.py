"""A run's requests as a file for vLLM's benchmark: its data set `timed_trace`, one JSON object a line.

Each has `timestamp` (s from the first), `input_length`, `output_length` and `hash_ids`, which name the blocks of the
prompt, `chunk_tokens` tokens each: equal ids, equal tokens. So prompts have no block in common but those of one prefix
that all share.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from .load import Run

CHUNK, PREFIX_CHUNK = 512, 16  # tokens: a prefix ends within a block of vLLM's own size


def chunk_tokens(scenario: dict[str, Any]) -> int:
    """Tokens that one of `hash_ids` stands for; the benchmark has to be told."""
    return PREFIX_CHUNK if _shared(scenario) else CHUNK


def trace(run: Run) -> str:
    """The file's text. Requests in order of arrival, with the lengths they had."""
    table = run.table("requests", ["arrival_s", "prompt_tokens", "output_tokens"])
    arrival, prompt, output = (np.nan_to_num(table[name].to_numpy()) for name in table.column_names)
    order = np.argsort(arrival, kind="stable")
    chunk = chunk_tokens(run.scenario)
    common = _shared(run.scenario) // chunk

    def lines() -> Iterator[str]:
        first, fresh = float(arrival[order[0]]), common
        for at in order:
            blocks = -(-int(prompt[at]) // chunk)
            shared = min(common, blocks)
            ids = [*range(shared), *range(fresh, fresh + blocks - shared)]
            fresh += blocks - shared
            row = {
                "timestamp": round(float(arrival[at]) - first, 6),
                "input_length": int(prompt[at]),
                "output_length": max(1, int(output[at] or 0)),
                "hash_ids": ids,
            }
            yield json.dumps(row, separators=(",", ":")) + "\n"

    return "".join(lines()) if len(order) else ""


def _shared(scenario: dict[str, Any]) -> int:
    """Tokens of the one prefix that every request begins with; 0 where there are several, or none."""
    classes = list(((scenario.get("workload") or {}).get("classes") or {}).values())
    prefix = classes[0].get("prefix") if len(classes) == 1 else None
    return int(prefix["tokens"]) if prefix and int(prefix.get("groups") or 1) == 1 else 0
