"""How much of the lesser attention a step with both kinds hides behind the other: from rows that time all three.

Only LLMServingSim's tables have them, vLLM 0.19 on two RTX cards: a prompt chunk over a context, sequences that decode,
and both in one step. The share is taken from measured times alone, without any form.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data import read_columns, times, whole_numbers
from .solve import Number, errors, rounded, solve

COLUMNS = ("gpu", "model", "tp", "prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
SHARE = (Number("mixed_overlap", 0.0, 1.0, (0.3,), 0.0, 1.0, logarithmic=False),)


@dataclass(frozen=True)
class Overlap:
    value: float
    errors: dict[str, Any]
    bounds: tuple[str, ...]


def fit_overlap(root: Path) -> Overlap | None:
    """None where there is no such table."""
    path = root / "llmservingsim" / "vllm019_attention.csv.gz"
    if not path.is_file():
        return None
    frame = read_columns(path, COLUMNS, ["gpu", "model"])
    for name in COLUMNS[2:-1]:
        frame[name] = whole_numbers(path, frame, name, least=0)
    frame["seconds"] = 1e-6 * times(path, frame, "time_us")
    card = ["gpu", "model", "tp"]
    alone = frame["n_decode"] == 0, frame["prefill_chunk"] == 0
    of_prompt, of_decode = [*card, "prefill_chunk", "kv_prefill"], [*card, "n_decode", "kv_decode"]
    prompt = frame[alone[0]].groupby(of_prompt)["seconds"].min().rename("prompt")
    decode = frame[alone[1]].groupby(of_decode)["seconds"].min().rename("decode")
    both = frame[~alone[0] & ~alone[1]].join(prompt, on=of_prompt).join(decode, on=of_decode)
    both = both.dropna(subset=["prompt", "decode"])
    long, lesser = both["prompt"] + both["decode"], both[["prompt", "decode"]].min(axis=1)

    def seconds(values: Any) -> Any:
        return (long - values["mixed_overlap"] * lesser).to_numpy()

    measured = both["seconds"].to_numpy()
    found = solve(SHARE, seconds, measured, str(path))
    value = float(found.values["mixed_overlap"] or 0.0)
    scores = errors(np.asarray(seconds({"mixed_overlap": value})), measured)
    return Overlap(rounded(value), {**scores, "held_out": False}, found.told("prompts and decodes at once"))
