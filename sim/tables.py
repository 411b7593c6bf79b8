"""The tables of a run: their columns and types, and how arrays become rows of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from .columns import numbers, strings

GROUP = 65_536  # rows of a parquet row group

REQUESTS = pa.schema(
    [(name, pa.string()) for name in ("request_id", "class", "pool")]
    + [("replica", pa.int32()), ("status", pa.string()), ("reason", pa.string()), ("priority", pa.int64())]
    + [(name, pa.float64()) for name in ("arrival_s", "first_scheduled_s", "first_token_s", "finish_s")]
    + [(name, pa.int64()) for name in ("prompt_tokens", "output_tokens", "cached_tokens", "preemptions", "attempts")]
    + [(f"{name}_s", pa.float64()) for name in ("queue", "prefill", "decode", "preempted", "transfer", "retry")]
)
SPANS = pa.schema(
    [("request_id", pa.string()), ("engine", pa.int32()), ("lane", pa.int32())]
    + [(name, pa.int64()) for name in ("first_step", "first_tick", "ticks", "tokens")]
)
STEPS = pa.schema(
    [("engine", pa.int32()), ("lane", pa.int32()), ("step", pa.int64()), ("tick", pa.int64())]
    + [(name, pa.float64()) for name in ("decided_s", "start_s", "end_s")]
    + [(name, pa.int32()) for name in ("seqs", "emitted", "prefill_tokens", "decode_tokens")]
    + [("context_tokens", pa.int64())]
    + [(name, pa.int32()) for name in ("kv_blocks_used", "waiting", "preempted")]
)
Emit = Callable[[pa.Table], None]
"""Takes rows of one table, in order."""


def table(columns: dict[str, Any], schema: pa.Schema) -> pa.Table:
    """Columns are lists of strings, numbers, or numbers and where there are none."""
    arrays = []
    for field in schema:
        values = columns[field.name]
        if isinstance(values, list):
            arrays.append(strings(values))
        elif isinstance(values, tuple):
            arrays.append(numbers(values[0], field.type, values[1]))
        else:
            arrays.append(numbers(values, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def empty(schema: pa.Schema) -> pa.Table:
    """No rows; pyarrow's own way would import pandas."""
    return pa.Table.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)
