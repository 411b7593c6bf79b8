"""Mixtures of experts: the whole MLP of a layer was measured, and is fitted as the simulator sums it.

That is the two products of the experts and the activation between; routing and permuting, which the simulator does not
count, end up in the floors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sim.cost.forms import Efficiency, Experts
from sim.gpus import GPU

from ..features import expert_operators
from ..split import held_out
from .kinds import BANDWIDTH, COMPUTE, LAUNCH_S, OVERLAP, Fitted, plain_numbers, quickest, thinned
from .points import machine
from .solve import Number, Seconds, errors, solve

FLOOR = Number("floor_s", 5e-7, 1e-3, (5e-6, 1.5e-5), LAUNCH_S, 1e-3)
LEAST_WIDTH = 256  # of an expert's part on one GPU: below, moving rows about costs more than what is counted
MOST_EXPERTS = 128  # DeepSeek-V3's 256 were measured under expert parallelism's kernels
NUMBERS = (COMPUTE, BANDWIDTH, FLOOR, OVERLAP, Number("block_rows", 1.0, 256.0, (4.0, 64.0), 1.0, 256.0))


def fit_experts(
    key: str, gpu: GPU, frame: pd.DataFrame, path: Path, passes: Efficiency, roofline: bool = False
) -> Fitted | None:
    """Experts whose weights are all on this GPU, cut by tensor parallelism alone; routing as even as can be.

    Of tables without even routing, the least skewed; of scales per tensor and per block, the quicker. `passes` prices
    the activation. roofline: fractions and a floor alone.
    """
    numbers = plain_numbers(NUMBERS) if roofline else NUMBERS
    narrow = key.endswith("fp8")
    frame = frame[frame["dtype"].isin(("fp8", "fp8_block") if narrow else ("bfloat16",)) & (frame["moe_ep"] == 1)]
    frame = quickest(frame.assign(dtype="fp8" if narrow else "bfloat16"))
    wide = frame["inter"] // frame["moe_tp"] >= LEAST_WIDTH
    frame = frame[wide & (frame["num_experts"] <= MOST_EXPERTS)]
    if frame.empty:
        return None
    notes = []
    best = min(frame["distribution"].unique())  # balanced, power_law_1.01, power_law_1.2
    if best != "balanced":
        notes.append(f"{key}: routing measured as {best}, for want of balanced")
    frame = frame[frame["distribution"] == best]
    held = held_out(frame, "moe")
    seen, plain = machine(gpu, "fp8" if narrow else "bf16"), machine(gpu)

    def seconds(form: Experts, rows: pd.DataFrame) -> Seconds:
        up, down, between = expert_operators(rows)
        found: Seconds = form.seconds(up, seen) + form.seconds(down, seen) + passes.seconds(between, plain)
        return found

    def predict(values: Mapping[str, Any]) -> Seconds:
        return seconds(Experts(**values), train)

    train, test = thinned(frame[~held], "moe"), frame[held]
    found = solve(numbers, predict, train["latency_us"].to_numpy() * 1e-6, f"{path}: {key}")
    values: dict[str, Any] = {number.name: found.values[number.name] for number in numbers}
    form = Experts(**values)
    scores = {**errors(seconds(form, test), test["latency_us"].to_numpy() * 1e-6), "held_out": True}
    scores["fitted_points"] = len(train)
    versions = ", ".join(sorted(frame["version"].unique()))
    backend = str(frame["backend"].iloc[0])
    return Fitted(key, values, form, scores, found.told(key), tuple(notes), backend, versions)
