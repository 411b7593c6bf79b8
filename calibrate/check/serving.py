"""Whole steps of an engine that serves: time to first token of one prompt, time between tokens of a steady batch.

steps/dynamo_h200_prefill.csv and _decode.csv [ai-dynamo 1.6.1, planner profiling, Apache-2.0]: vLLM under Dynamo on one
H200, Llama-3.1-8B-Instruct-FP8 with bf16 keys and values. Taken are chunks of 8,192 tokens, vLLM's default there, and
the host's time as the calibration has it; vLLM's calibrations have theirs from this very set, so it is `alone`, the
error of the GPU's part by itself, that no fit has seen. TTFT is front end + steps + response; the time between tokens
is one step of the batch that the throughput implies, each sequence at the mean context.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sim import models
from sim.cost import Calibration
from sim.cost.roofline import RooflinePricer
from sim.gpus import GPU
from sim.scenario import Engine

from ..data import read_columns, refuse, times, whole_numbers
from .table import errors

GPU_NAME, ENGINE, MODEL = "h200_sxm", "vllm", "llama-3.1-8b"
CHUNK = 8192
TTFT, ITL = "TTFT", "time between tokens"


def alone(root: Path, gpu: GPU, calibration: Calibration, engine: str) -> str:
    """What the kernels alone come to, in words."""
    found = dynamo(root, gpu, calibration.model_copy(update={"front_end_s": 0.0}), engine, asynchronous=True)
    parts = [f"{name} {errors(mine)['signed_percent']:+.1f} %" for name, mine in found.groupby("operator", sort=False)]
    return f"whole steps may have been fitted to; without host and front end, signed: {', '.join(parts)}"


def dynamo(root: Path, gpu: GPU, calibration: Calibration, engine: str, asynchronous: bool = False) -> pd.DataFrame:
    """One row a measured point, as `points.COLUMNS`; none where the files or the GPU and engine are not theirs."""
    folder = root / "steps"
    if gpu.name != GPU_NAME or engine != ENGINE:
        return pd.DataFrame()
    pricer = RooflinePricer(models.parse(MODEL), gpu, Engine(weight_dtype="fp8"), calibration, None, asynchronous)
    found = []
    if (path := folder / "dynamo_h200_prefill.csv").is_file():
        found.append(_prefill(path, pricer))
    if (path := folder / "dynamo_h200_decode.csv").is_file():
        found.append(_decode(path, pricer))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def ttft_s(pricer: RooflinePricer, prompt: int) -> float:
    """Of one prompt that finds the engine idle."""
    seconds, past = pricer.front_end_s + pricer.response_s, 0
    while past < prompt:
        new = min(CHUNK, prompt - past)
        seconds += pricer.mean(0, 0, [(new, past)], int(past + new == prompt))
        past += new
    return seconds


def _prefill(path: Path, pricer: RooflinePricer) -> pd.DataFrame:
    frame = read_columns(path, ("isl", "ttft_ms"), [])
    prompts, measured = whole_numbers(path, frame, "isl"), times(path, frame, "ttft_ms") / 1000
    ranges = ["prompt to 2048" if prompt <= 2048 else "prompt over 2048" for prompt in prompts]
    seconds = [ttft_s(pricer, int(prompt)) for prompt in prompts]
    return _frame(TTFT, ranges, prompts, measured, seconds)


def _decode(path: Path, pricer: RooflinePricer) -> pd.DataFrame:
    frame = read_columns(path, ("mean_context_tokens", "itl_ms", "batch_from_throughput"), [])
    contexts, measured = whole_numbers(path, frame, "mean_context_tokens"), times(path, frame, "itl_ms") / 1000
    batches = pd.to_numeric(frame["batch_from_throughput"], errors="coerce")
    refuse(path, frame, "batch_from_throughput", ~(batches > 0), lambda v: f"must be a number above 0, got {v}")
    counts = batches.round().clip(lower=1).astype(int)
    pairs = list(zip(counts, contexts, strict=True))
    seconds = [pricer.mean(int(n), int(n * context), [], int(n)) for n, context in pairs]
    ranges = ["batch to 16" if n <= 16 else "batch 17-256" if n <= 256 else "batch over 256" for n in counts]
    return _frame(ITL, ranges, counts, measured, seconds)


def _frame(
    name: str, ranges: list[str], size: "pd.Series[int]", measured: "pd.Series[float]", seconds: list[float]
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "operator": name,
            "range": ranges,
            "size": size.astype(float),
            "measured_s": measured,
            "predicted_s": seconds,
        }
    )
