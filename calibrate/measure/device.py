"""What is measured on: the card or CPU, its driver and libraries, and its peaks, as device.json keeps them.

The mapping under `gpu` is one that a scenario takes: of a known card its data sheet's values, of any other what a large
matrix product and large copies reach here. Measured peaks are the best of several sizes, as bounds should be; on a CPU
they are those of its caches, for shapes that fit there.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sim import gpus
from sim.errors import ScenarioError
from sim.models import Model

from ..data import read_device
from .grid import Shape
from .ops import Data
from .timing import Timer

_CARDS = {  # how the driver names the known ones
    "NVIDIA H100 80GB HBM3": "h100_sxm",
    "NVIDIA H200": "h200_sxm",
    "NVIDIA A100-SXM4-80GB": "a100_sxm",
    "NVIDIA B200": "b200_sxm",
    "NVIDIA L40S": "l40s",
}


def refuse_missing(device: str) -> None:
    """ScenarioError where PyTorch finds no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ScenarioError(f"--device cuda: PyTorch {torch.__version__} finds no CUDA card here; try --device cpu")


def has_fp8(device: str) -> bool:
    """Whether matrix products in fp8 run here: tried, for it depends on card, library and version."""
    try:
        weight = Data(device, "fp8", 1).weight(32, 64)
        weight(torch.ones(16, 64, dtype=torch.bfloat16, device=device))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return True


def card(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cache_bytes(device: str, shape: Shape) -> int:
    """What copies of a kernel's data must exceed, so that it finds them where a step would."""
    if device == "cuda":
        return 2 * getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 * 2**20)
    return min(2 * shape.elements, 32 * 2**20)  # a small stack stays in the CPU's cache as a whole: so may its kernels


def describe(device: str, threads: int, dtypes: Sequence[str], model: Model, shape: Shape, timer: Timer) -> dict:
    """The contents of device.json; measures the peaks."""
    data = {name: Data(device, name, 1) for name in dtypes if name != "fp8"} or {
        "bfloat16": Data(device, "bfloat16", 1)
    }
    sizes = (256, 512, 1024) if device == "cpu" else (4096, 8192)
    peaks: dict[str, Any] = {
        f"{name}_tflops": max(_tflops(each, s, timer) for s in sizes) for name, each in data.items()
    }
    if "fp8" in dtypes and device == "cuda":
        peaks["fp8_tflops"] = max(_tflops(Data(device, "fp8", 1), s, timer) for s in sizes)
    first = next(iter(data.values()))
    megabytes = (1, 4, 16, 64) if device == "cpu" else (256, 1024)
    peaks["copy_gb_per_s"] = max(_copied(first, size, timer) for size in megabytes)
    peaks["read_gb_per_s"] = max(_read(first, size, timer) for size in ((1024, 2048) if device == "cpu" else (8192,)))
    peaks = {name: float(f"{value:.4g}") for name, value in peaks.items()}
    return {
        "card": card(device),
        "device": device,
        "threads": threads,
        "gpu": _mapping(device, threads, peaks, next(iter(data))),
        "measured_peaks": peaks,
        "clock": getattr(timer, "clock", ""),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": _driver() if device == "cuda" else None,
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
        "model": shape.model(model.name),
    }


def keep(folder: Path, made: dict[str, Any]) -> None:
    """Write device.json, whole or not at all."""
    path = folder / "device.json"
    partial = path.with_suffix(".partial")
    try:
        partial.write_text(json.dumps(made, indent=2) + "\n", "utf-8")
        partial.replace(path)
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror}") from None


def already(folder: Path, device: str, threads: int, model: dict[str, Any]) -> dict[str, Any] | None:
    """device.json of an earlier run here. ScenarioError if that was another machine or shape: a folder has one."""
    path = folder / "device.json"
    if not path.exists():
        return None
    found = read_device(folder)
    now = {"card": card(device), "device": device, "threads": threads}
    for name, value in now.items():
        if found.get(name) != value:
            raise ScenarioError(f"{path}: {name}: {found.get(name)}, but this is {value}; measure into another folder")
    if found.get("model") != model:
        raise ScenarioError(f"{path}: model: not the shape that is to be measured; measure into another folder")
    return found


def _tflops(data: Data, size: int, timer: Timer) -> float:
    x, weight = data.normal(size, size), data.weight(size, size)
    return 2 * size**3 / timer.median_s([lambda: weight(x)])[0] / 1e12


def _copied(data: Data, megabytes: int, timer: Timer) -> float:
    """Bytes read and written, 10^9 a second."""
    source = torch.zeros(megabytes * 2**20, dtype=torch.uint8, device=data.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / timer.median_s([lambda: target.copy_(source)])[0] / 1e9


def _read(data: Data, size: int, timer: Timer) -> float:
    """Bytes of weights that one row's product reads, 10^9 a second."""
    weight, row = data.weight(4 * size, size), data.normal(1, size)
    return weight.bytes / timer.median_s([lambda: weight(row)])[0] / 1e9


def _mapping(device: str, threads: int, peaks: dict[str, float], dtype: str) -> dict[str, Any]:
    name = card(device)
    if known := gpus.facts(_CARDS.get(name, "")):
        return known
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        name, memory, sms = name, properties.total_memory, properties.multi_processor_count
    else:
        name, memory, sms = "cpu", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), threads
    mapping = {
        "name": name,
        "memory_gib": round(memory / 2**30, 2),
        "bf16_tflops": peaks[f"{dtype}_tflops"],  # the first type that is measured: the simulator knows one beside fp8
        "memory_gb_per_s": max(peaks["copy_gb_per_s"], peaks["read_gb_per_s"]),
        "sms": sms,
    }
    return {**mapping, "fp8_tflops": peaks["fp8_tflops"]} if "fp8_tflops" in peaks else mapping


def _driver() -> str | None:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None
