"""Which measured points are kept from the fits, so that errors are those of predictions.

The rule looks at a row alone, never at its neighbours, so a part of a file is split as the whole is. Held out are about
half of the sizes (all rows of a size together: a form must carry from one size to the next), and all rows of one
model's shapes: widths of 5120 (Qwen3-32B), a 70B model's attention on four GPUs, Mixtral 8x22B.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

SIZES = {  # the columns whose values decide together
    "gemm": ("m",),
    "attention_prefill": ("batch", "prompt_len"),
    "attention_decode": ("batch", "context_len"),
    "elementwise": ("tokens",),
    "collectives": ("bytes",),
    "moe": ("num_tokens",),
    "steps": ("batch", "prompt_len", "past_len", "context_len"),
}


def held_out(frame: pd.DataFrame, kind: str) -> NDArray[np.bool_]:
    """Rows of a file of this kind that no fit looks at."""
    held = mixed(frame, SIZES[kind]) >> np.uint64(63) == 1
    if kind == "gemm":
        held |= ((frame["n"] == 5120) | (frame["k"] == 5120)).to_numpy()
    elif kind in ("attention_prefill", "attention_decode"):
        held |= ((frame["heads"] == 16) & (frame["kv_heads"] == 2)).to_numpy()
    elif kind == "moe":
        held |= (frame["hidden"] == 6144).to_numpy()
    return np.asarray(held, dtype=np.bool_)


def mixed(frame: pd.DataFrame, columns: tuple[str, ...]) -> NDArray[np.uint64]:
    """A scrambled number of 64 bits for each row, from its whole numbers in these columns (splitmix64)."""
    state = np.zeros(len(frame), dtype=np.uint64)
    for name in columns:
        state = state + frame[name].to_numpy().astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state
