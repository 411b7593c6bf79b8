"""A check of prompt attention over tokens computed before: LLMServingSim's table of an H100, which no fit looks at.

It was timed otherwise than the tables fitted to: its launches cost about 3 us where theirs cost 10. The slope over the
context is what it can tell, so the two floors are left out on both sides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sim.cost.forms import Efficiency
from sim.gpus import GPU

from ..data import read_columns, times, whole_numbers
from ..features import prefill_operator
from .points import machine
from .solve import errors

FLOOR_S = 3.2e-6  # of the table [measurements/README.md, 7]
LEAST_PAST = 512  # tokens; below, floors are most of the time
NUMBERS = ("tp", "n_q_head_model", "n_kv_head_model", "batch", "prefill_chunk", "kv_cache")


def check_context(form: Efficiency, gpu: GPU, engine: str, root: Path) -> dict[str, Any] | None:
    """Errors of predictions; None where there is no table of this card and engine."""
    path = root / "llmservingsim" / "v0_h100_prefill_attention.csv.gz"
    if (gpu.name, engine) != ("h100_sxm", "vllm") or not path.is_file():
        return None
    frame = read_columns(path, (*NUMBERS, "prefill_median_ms"), [])
    for name in NUMBERS:
        frame[name] = whole_numbers(path, frame, name, least=0)
    seconds = 1e-3 * times(path, frame, "prefill_median_ms").to_numpy() - FLOOR_S
    frame = frame.assign(
        heads=frame["n_q_head_model"] // frame["tp"],
        kv_heads=np.maximum(frame["n_kv_head_model"] // frame["tp"], 1),
        head_dim=128,
        kv_dtype="bfloat16",
        prompt_len=frame["prefill_chunk"],
        past_len=frame["kv_cache"],
    )
    long = (frame["past_len"] >= LEAST_PAST).to_numpy()
    predicted = np.asarray(form.seconds(prefill_operator(frame), machine(gpu))) - form.floor_s
    return {**errors(predicted[long], seconds[long]), "held_out": True}
