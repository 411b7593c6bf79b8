"""Time of the host: what whole steps take beyond their kernels, on an engine that schedules synchronously.

Measured on one set, an H200 under Dynamo with Llama-3.1-8B in fp8: decode steps at many batches and contexts, and the
time to the first token of lone prompts. Kernels are fixed as fitted before; what is left of decode steps is a constant
and a part per sequence, of first tokens a constant: the front end. Both spreads are those of whole steps.

The part per sequence absorbs errors of the kernels under it and does not transfer well [calibration_notes.md, 4].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim import gpus, models
from sim.cost import BatchShape, Calibration, Prices, Shard, operators
from sim.scenario import Engine

from ..data import read_columns, times, whole_numbers
from .solve import Number, errors, rounded, solve, spread

CHUNK = 8192  # tokens that a step computes at most, vLLM's default for serving
DECODE = (
    Number("host_s", 1e-5, 0.1, (1e-3,), 0.0, 0.1),
    Number("host_per_seq_s", 1e-7, 1e-3, (2e-5,), 0.0, 1e-3),
)
PREFILL = (Number("front_end_s", 1e-4, 0.5, (0.014,), 0.0, 0.5),)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Host:
    """Host terms and spreads of steps, with their errors, and lines to print."""

    values: dict[str, float]
    noise: dict[str, float]
    errors: dict[str, dict[str, Any]]
    bounds: tuple[str, ...]
    lines: tuple[str, ...]


def kernels(
    calibration: Calibration,
    gpu: str,
    model: str,
    dtype: str,
    n: int,
    context: int,
    prompts: tuple[tuple[int, int], ...] = (),
    tp: int = 1,
) -> float:
    """Seconds of a step's kernels, sampling included, without any time of the host. `context` per sequence."""
    engine = Engine(tensor_parallel_size=tp, weight_dtype=dtype)  # type: ignore[arg-type]
    card, shape = gpus.parse(gpu), models.parse(model)
    emitted = n + len(prompts)
    batch = BatchShape(n, n * context, prompts, emitted)
    prices = Prices(card, calibration)
    found = operators(shape, card, engine, batch)
    if calibration.operators.sampling is not None:
        found.append(Shard.of(shape, card, engine).sampling(emitted))
    total = sum(float(prices.seconds(operator)) for operator in found)
    if n and prompts:
        attention = [float(prices.seconds(each)) for each in found if each.kind.startswith("attention")]
        total -= calibration.mixed_overlap * min(attention)
    return total


def prefill(calibration: Calibration, gpu: str, model: str, dtype: str, tokens: int, tp: int = 1) -> float:
    """Seconds of the steps of one lone prompt, in chunks."""
    starts = range(0, tokens, CHUNK)
    return sum(
        kernels(calibration, gpu, model, dtype, 0, 0, ((min(CHUNK, tokens - past), past),), tp) for past in starts
    )


def fit_host(calibration: Calibration, root: Path) -> Host | None:
    """None where the set is not there. `calibration` is the H200's."""
    steps = root / "steps"
    if not (steps / "dynamo_h200_decode.csv").is_file():
        return None
    decode, first = _decode(steps / "dynamo_h200_decode.csv"), _prefill(steps / "dynamo_h200_prefill.csv")
    where = ("h200_sxm", "llama-3.1-8b", "fp8")
    batch = decode["batch_from_throughput"].to_numpy()
    whole = np.maximum(np.rint(batch), 1).astype(int)
    of_decode = np.array(
        [
            kernels(calibration, *where, int(n), int(context))
            for n, context in zip(whole, decode["mean_context_tokens"], strict=True)
        ]
    )
    of_prefill = np.array([prefill(calibration, *where, int(tokens)) for tokens in first["isl"]])
    itl, ttft = decode["seconds"].to_numpy(), first["seconds"].to_numpy()

    def step(values: Mapping[str, Any]) -> Floats:
        return np.asarray(of_decode + values["host_s"] + values["host_per_seq_s"] * whole)

    found = solve(DECODE, step, itl, "steps/dynamo_h200_decode.csv")
    host = {name: float(value or 0.0) for name, value in found.values.items()}
    own = host["host_s"] + host["host_per_seq_s"]

    def answer(values: Mapping[str, Any]) -> Floats:
        return np.asarray(of_prefill + own + values["front_end_s"])

    front = solve(PREFILL, answer, ttft, "steps/dynamo_h200_prefill.csv")
    values = {**host, "front_end_s": float(front.values["front_end_s"] or 0.0)}
    decoded, answered = step(values), answer(values)
    noise = {"sigma": spread(np.log(decoded / itl)), "prefill_sigma": spread(np.log(answered / ttft))}
    scores = {
        "whole_decode_steps": {**errors(decoded, itl), "held_out": False},
        "whole_prefills": {**errors(answered, ttft), "held_out": False},
    }
    return Host(
        values,
        {name: rounded(value) for name, value in noise.items()},
        scores,
        found.told("host") + front.told("host"),
        (
            f"Dynamo H200 8B FP8 decode: ITL = kernels + {values['host_s'] * 1e3:.2f} ms"
            f" + {values['host_per_seq_s'] * 1e6:.1f} us per sequence",
            f"Dynamo H200 8B FP8 prefill: TTFT = kernels + {1e3 * own:.2f} ms + {values['front_end_s'] * 1e3:.1f} ms",
        ),
    )


def _decode(path: Path) -> pd.DataFrame:
    frame = read_columns(path, ("mean_context_tokens", "itl_ms", "batch_from_throughput"), [])
    frame["mean_context_tokens"] = whole_numbers(path, frame, "mean_context_tokens")
    frame["batch_from_throughput"] = times(path, frame, "batch_from_throughput")
    frame["seconds"] = 1e-3 * times(path, frame, "itl_ms")
    return frame


def _prefill(path: Path) -> pd.DataFrame:
    frame = read_columns(path, ("isl", "ttft_ms"), [])
    frame["isl"] = whole_numbers(path, frame, "isl")
    frame["seconds"] = 1e-3 * times(path, frame, "ttft_ms")
    return frame
