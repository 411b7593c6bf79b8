"""Element-wise passes and sampling: bandwidth from vidur's tables, floors as they are known from traces.

Vidur's times are rounded to 1 us and its norms and activations are not fused, so only its residual additions (two
passes read, one written) and only those far beyond the cache tell the bandwidth. Engines since 2025 fuse what it
measured apart; a launch within a CUDA graph takes about 2 us [vLLM 0.19 on an RTX PRO 6000: 2.4 to 2.7 us, norms,
activation and rotation alike, measured one by one].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from sim.cost import Operator
from sim.cost.forms import Efficiency, Machine, Passes, PassName
from sim.errors import ScenarioError
from sim.gpus import GPU, parse

from ..data import kernel_file, read_columns, read_kernels, times, whole_numbers
from ..features import chosen, parts
from ..split import held_out
from .kinds import BANDWIDTH, FLOOR, LAUNCH_S, Fitted
from .points import machine
from .solve import Number, errors, solve

SAMPLING_LAUNCHES = 8
ELSEWHERE = 0.88  # of the memory bandwidth, where nothing was measured: A100's share, as fitted here
BEYOND_CACHE = 90e6  # bytes moved: nearly twice the L2 of an H100
PASS_NAMES = get_args(PassName)
PER_PASS = 2  # points for each of a pass's two numbers: its sizes lie on a line
NAMES = {"h100_sxm": "h100", "h200_sxm": "h100", "a100_sxm": "a100"}
SHARE = (Number("bandwidth_fraction", 0.05, 1.0, (0.8,), ELSEWHERE, ELSEWHERE),)


def fit_passes(gpu: GPU, root: Path) -> Fitted:
    """Element-wise passes; of a GPU that vidur has not, the usual share of the bandwidth."""
    path = root / "vidur" / "vidur_layer_ops.csv.gz"
    if gpu.name not in NAMES or not path.is_file():
        note = f"elementwise: not measured on this card; {ELSEWHERE} of the bandwidth and {LAUNCH_S * 1e6:g} us taken"
        values = {"bandwidth_fraction": ELSEWHERE, "floor_s": LAUNCH_S}
        return Fitted("elementwise", values, Efficiency(**values), {}, (), (note,), "none", "none")
    frame = read_columns(path, ("gpu", "num_tokens", "n_embd", "add_ms"), ["gpu"])
    frame["tokens"], wide = whole_numbers(path, frame, "num_tokens"), whole_numbers(path, frame, "n_embd")
    frame["bytes"] = 6 * frame["tokens"] * wide
    frame["seconds"] = 1e-3 * times(path, frame[["add_ms"]].replace(0, 5e-4), "add_ms")
    frame = frame[(frame["gpu"] == NAMES[gpu.name]) & (frame["bytes"] >= BEYOND_CACHE)]
    held = held_out(frame, "elementwise")
    bandwidth = parse(f"{NAMES[gpu.name]}_sxm").memory_gb_per_s * 1e9  # the card's that was measured

    def seconds(values: Any, part: Any) -> Any:
        return part["bytes"].to_numpy() / (values["bandwidth_fraction"] * bandwidth) + LAUNCH_S

    train, test = frame[~held], frame[held]
    found = solve(SHARE, lambda values: seconds(values, train), train["seconds"].to_numpy(), f"{path}: elementwise")
    values = {"bandwidth_fraction": found.values["bandwidth_fraction"] or ELSEWHERE, "floor_s": LAUNCH_S}
    scores = errors(np.asarray(seconds(values, test)), test["seconds"].to_numpy())
    notes = [f"elementwise: floor of {LAUNCH_S * 1e6:g} us not fitted (the table has 1 us steps)"]
    if gpu.name == "h200_sxm":
        notes.append("elementwise: H100's share of the bandwidth")
    form, told = Efficiency(**values), found.told("elementwise")
    return Fitted("elementwise", values, form, scores, told, tuple(notes), "vidur", "2024")


def fit_own_passes(gpu: GPU, root: Path, engine: str, roofline: bool = False) -> Fitted:
    """Of a folder that `calibrate measure` wrote: bandwidth and floor of all passes together, and of each by itself.

    Nothing is fused there: a rotary embedding is many launches, an addition one. roofline: together alone.
    """
    try:
        path = kernel_file(root, gpu.name, "elementwise")
    except ScenarioError:
        return fit_passes(gpu, root)
    frame = chosen(read_kernels(path, "elementwise"), "elementwise", engine)
    seen, what = machine(gpu), f"{path}: elementwise"
    measured = frame["latency_us"].to_numpy() * 1e-6
    passes = parts(frame, "elementwise")
    together = Operator("all", "elementwise", np.zeros(len(frame)), frame["bytes"].to_numpy())
    values, bounds = _of_passes(together, measured, seen, what)
    form: Passes = Passes(**values)
    if not roofline:
        own: dict[str, Any] = {}
        for rows, (operator,) in passes:
            if operator.name in PASS_NAMES and len(rows) >= 2 * PER_PASS:
                found, told = _of_passes(operator, measured[rows], seen, what)
                own[operator.name] = found
                bounds += tuple(f"{operator.name}: {line}" for line in told)
        if "rope" in own:  # measured with the writes to the cache, so the launches are counted there
            own["kv_write"] = {**own["rope"], "floor_s": 0.0}
        values["by_pass"] = own
        form = Passes(**values)
    predicted = np.zeros(len(frame))
    for rows, (operator,) in passes:
        predicted[rows] = form.seconds(operator, seen)
    scores = {**errors(predicted, measured), "held_out": False}
    told = tuple(f"elementwise: {line}" for line in bounds)
    backend, version = str(frame["backend"].iloc[0]), str(frame["version"].iloc[0])
    return Fitted("elementwise", values, form, scores, told, (), backend, version)


def _of_passes(
    operator: Operator, measured: NDArray[np.float64], seen: Machine, what: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Bandwidth and floor, and what was not determined."""

    def predict(values: Any) -> Any:
        return Efficiency(**values).seconds(operator, seen)

    found = solve((BANDWIDTH, FLOOR), predict, measured, what, per_number=PER_PASS)
    return {name: found.values[name] for name in ("bandwidth_fraction", "floor_s")}, found.bounds


def sampling(passes: Efficiency) -> dict[str, float]:
    """Three passes over the logits in eight launches, at the bandwidth of norms; not fitted itself."""
    of = passes.by_pass.get("norms", passes) if isinstance(passes, Passes) else passes
    return {"bandwidth_fraction": of.bandwidth_fraction, "floor_s": SAMPLING_LAUNCHES * LAUNCH_S}
