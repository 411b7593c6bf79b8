"""All fits of one GPU and engine, put together as a calibration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import pandas as pd

from sim import gpus
from sim.cost import Calibration, Efficiency
from sim.cost.calibration import Operators, Ranges
from sim.cost.forms import Gemm
from sim.errors import ScenarioError, show
from sim.gpus import GPU

from ..data import kernel_file, read_device, read_kernels
from .context import check_context
from .host import Host, fit_host
from .kinds import KINDS, Fitted, bare, fit_kind, fit_own, of_engine, read
from .links import Network, fit_all_reduce, fit_network
from .mixtures import fit_experts
from .overlap import fit_overlap
from .passes import fit_own_passes, fit_passes, sampling

HOST_GPU = "h200_sxm"  # on which whole steps were measured
SERVED = ("vllm", "trtllm")  # engines whose requests come through a server like the one that was measured
FOR_HOST = ("gemm", "gemm_fp8", "attention_prefill", "attention_decode")
STATIC = (
    "gemm_fp8 is shipped without the launch that finds the scales of its input (measured floor {had:.1f} us; shipped"
    " that of bf16): checkpoints with static scales pay the pass over the rows alone. Its errors are those of measured"
    " kernels, with the launch"
)


@dataclass(frozen=True)
class Result:
    """What was fitted, and what is to be said of it."""

    fitted: tuple[Fitted, ...]
    network: Network
    mixed_overlap: float
    host: Host | None
    errors: dict[str, Any]
    ranges: dict[str, list[int]]
    bounds: tuple[str, ...]
    notes: tuple[str, ...]

    def operators(self) -> dict[str, Any]:
        return {each.key: each.values for each in self.fitted}


def fit_all(root: Path, gpu_name: str, engine: str, jobs: int = 1, roofline: bool = False) -> Result:
    """Every kind of which there are measurements. ScenarioError if a file is not as it must be, or has too little.

    roofline: each operator as a plain roofline, fractions and a floor: what the refined forms are to be better than.
    """
    kinds = [bare(kind) if roofline else of_engine(kind, engine) for kind in KINDS]
    gpu = card(root, gpu_name)
    frames: dict[str, tuple[Path, pd.DataFrame, tuple[str, ...]]] = {}
    notes: list[str] = []
    for file in ("gemm", "attention_prefill", "attention_decode", "moe"):
        try:
            frames[file] = read(root, gpu.name, engine, file)
            notes += frames[file][2]
        except ScenarioError as error:
            if "has no" not in str(error):
                raise
            notes.append(f"{file}: not measured, left at its ideal")
    if not frames:
        kernel_file(root, gpu.name, "gemm")  # complains
    own = (root / "device.json").is_file()
    passes = fit_own_passes(gpu, root, engine, roofline) if own else fit_passes(gpu, root)
    if own:
        notes.append(
            "one measured shape: all of its kernels are fitted; `calibrate check` holds its whole steps to them"
        )
    tasks: list[Callable[[], Fitted | None]] = [
        joblib.delayed(fit_own if own else fit_kind)(kind, gpu, frames[kind.file][1], frames[kind.file][0])
        for kind in kinds
        if kind.file in frames
    ]
    if "moe" in frames:
        path, frame, _ = frames["moe"]
        tasks += [
            joblib.delayed(fit_experts)(key, gpu, frame, path, passes.form, roofline)
            for key in ("experts", "experts_fp8")
        ]
    links = _collectives(root, gpu.name)
    if links is not None:
        tasks.append(joblib.delayed(fit_all_reduce)(gpu, engine, links[1], links[0], roofline))
    found = [each for each in joblib.Parallel(n_jobs=jobs)(tasks) if each is not None]
    found.append(passes)
    network = fit_network(gpu.name, None if links is None else links[1], root)
    overlap = fit_overlap(root) if engine == "vllm" else None
    host = host_of(root, found if (gpu.name, engine) == (HOST_GPU, "vllm") else [], jobs) if engine in SERVED else None
    if engine == "trtllm":
        found = _static(found, notes)
    if roofline:
        notes.append("plain rooflines: fractions of the peaks and a floor for each operator, nothing else")
    price = sampling(passes.form)
    found.append(Fitted("sampling", price, Efficiency(**price), {}, (), (), "none", "none"))
    notes.append("sampling: 8 launches of 2 us and the bandwidth of element-wise passes, not fitted itself")
    scores = {each.key: each.errors for each in found if each.errors}
    prefill = next((each for each in found if each.key == "attention_prefill"), None)
    if prefill is not None and (over := check_context(prefill.form, gpu, engine, root)) is not None:
        scores["prefill_over_context"] = over
        notes.append("prefill_over_context: predicted beside LLMServingSim's table, both floors left out")
    scores["network"] = network.errors
    if overlap is not None:
        scores["mixed_overlap"] = overlap.errors
        notes.append("mixed_overlap is that of vLLM 0.19 on RTX cards")
    if host is not None and engine != "vllm":
        host = Host({"front_end_s": host.values["front_end_s"]}, {}, {}, (), ())
        notes.append("front end of vLLM on an H200 under Dynamo (Llama-3.1-8B FP8), for want of this engine's own")
    elif host is not None:
        scores |= host.errors
        notes.append("host time, front end and noise are those of an H200 under Dynamo (Llama-3.1-8B FP8)")
    bounds = [line for each in found for line in each.bounds] + list(network.bounds)
    bounds += (overlap.bounds if overlap else ()) + (host.bounds if host else ())
    notes += [line for each in found for line in each.notes] + list(network.notes)
    return Result(
        tuple(sorted(found, key=lambda each: list(Operators.model_fields).index(each.key))),
        network,
        0.0 if overlap is None else overlap.value,
        host,
        {name: score for name, score in scores.items() if score},
        ranges_of({file: frame for file, (_, frame, _) in frames.items()}),
        tuple(bounds),
        tuple(notes),
    )


def card(root: Path, name: str) -> GPU:
    """The GPU: a known one, or what the measured folder says of its own. ScenarioError if the folder is of another."""
    if not (root / "device.json").is_file():
        return gpus.parse(name)
    own = gpus.parse(read_device(root)["gpu"])
    if name != own.name:
        raise ScenarioError(f"--gpu: {root} was measured on {own.name}, got {show(name)}")
    return own


def host_of(root: Path, known: list[Fitted], jobs: int = 1) -> Host | None:
    """The host's time, over the kernels of the card on which whole steps were measured; `known` may have them."""
    if not (root / "steps" / "dynamo_h200_decode.csv").is_file():
        return None
    gpu = gpus.parse(HOST_GPU)
    if not known:
        frames = {file: read(root, HOST_GPU, "vllm", file) for file in {kind.file for kind in KINDS}}
        known = joblib.Parallel(n_jobs=jobs)(
            joblib.delayed(fit_kind)(kind, gpu, frames[kind.file][1], frames[kind.file][0])
            for kind in KINDS
            if kind.key in FOR_HOST
        )
    passes = fit_passes(gpu, root)
    values = {each.key: each.values for each in (*known, passes) if each.key in (*FOR_HOST, "elementwise")}
    values["sampling"] = sampling(passes.form)
    return fit_host(plain(HOST_GPU, values), root)


def plain(gpu: str, values: dict[str, Any]) -> Calibration:
    """A calibration of kernels alone, to price with while fitting."""
    words = dict.fromkeys(("name", "engine", "software", "source", "licence", "date"), "fitting")
    return Calibration(gpu=gpu, operators=Operators(**values), **words)  # type: ignore[arg-type]


def ranges_of(frames: dict[str, pd.DataFrame]) -> dict[str, list[int]]:
    """What was measured, least and most."""
    found: dict[str, list[int]] = {}
    if (gemm := frames.get("gemm")) is not None:
        found["gemm_rows"] = [int(gemm["m"].min()), int(gemm["m"].max())]
    if (decode := frames.get("attention_decode")) is not None:
        found["decode_sequences"] = [int(decode["batch"].min()), int(decode["batch"].max())]
        tokens = decode["batch"] * decode["context_len"]
        found["decode_context_tokens"] = [1, int(tokens.max())]
    if (prefill := frames.get("attention_prefill")) is not None:
        found["prompt_tokens"] = [int(prefill["prompt_len"].min()), int(prefill["prompt_len"].max())]
    assert set(found) <= set(Ranges.model_fields)
    return found


def _collectives(root: Path, gpu: str) -> tuple[Path, pd.DataFrame] | None:
    try:
        path = kernel_file(root, gpu, "collectives")
    except ScenarioError:
        return None
    return path, read_kernels(path, "collectives")


def _static(found: list[Fitted], notes: list[str]) -> list[Fitted]:
    """TensorRT-LLM's fp8 products without the launch that finds scales."""
    by_key = {each.key: each for each in found}
    if "gemm" not in by_key or "gemm_fp8" not in by_key:
        return found
    fp8 = by_key["gemm_fp8"]
    notes.append(STATIC.format(had=fp8.values["floor_s"] * 1e6))
    values = {**fp8.values, "floor_s": by_key["gemm"].values["floor_s"]}
    shipped = replace(fp8, values=values, form=Gemm(**values))
    return [shipped if each.key == "gemm_fp8" else each for each in found]
