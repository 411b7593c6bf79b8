"""A fit as a calibration file; what a new file changes, in steps that one can picture."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

import sim.cost
from sim import gpus
from sim.cost import Calibration, load_calibration
from sim.errors import ScenarioError

from .assemble import HOST_GPU, Result
from .host import kernels, prefill

PUBLIC = "public measurements of aiconfigurator-core 0.12.0 (kernels, collectives)"
MORE = {
    "vidur": "microsoft/vidur @7d475133 (element-wise passes, links between nodes)",
    "network": "microsoft/apex_plus @87690965 (transfers between GPUs)",
    "llmservingsim": "casys-kaist/LLMServingSim @5daddb21 (mixed batches)",
    "steps": "ai-dynamo 1.6.1 (whole steps)",
}
LICENCE = "Apache-2.0 (aiconfigurator, dynamo), MIT (vidur, LLMServingSim, apex_plus)"
HELD_OUT = "about half of the sizes and one model's shapes (calibrate/split.py): no fit saw them"
OWN = "none of these kernels, but all whole steps of the folder: `calibrate check` holds them to the fit"
STEPS = (  # name, model, dtype, TP, sequences, context of each, prompt
    ("8B fp8, decode 8 x 1024", "llama-3.1-8b", "fp8", 1, 8, 1024, 0),
    ("8B fp8, decode 64 x 1024", "llama-3.1-8b", "fp8", 1, 64, 1024, 0),
    ("8B fp8, prefill 1024", "llama-3.1-8b", "fp8", 1, 0, 0, 1024),
    ("8B fp8, prefill 8192", "llama-3.1-8b", "fp8", 1, 0, 0, 8192),
    ("70B bf16 TP4, decode 8 x 1024", "llama-3.1-70b", "bf16", 4, 8, 1024, 0),
    ("70B bf16 TP4, decode 64 x 1024", "llama-3.1-70b", "bf16", 4, 64, 1024, 0),
    ("70B bf16 TP4, prefill 1024", "llama-3.1-70b", "bf16", 4, 0, 0, 1024),
    ("70B bf16 TP4, prefill 8192", "llama-3.1-70b", "bf16", 4, 0, 0, 8192),
)
ANCHORS = (  # Dynamo on an H200, with the host's time [steps/dynamo_h200_*.csv]: the same, and milliseconds measured
    ("Dynamo 8B fp8, decode 1 x 2997", "llama-3.1-8b", "fp8", 1, 1, 2997, 0, 4.43),
    ("Dynamo 8B fp8, decode 48 x 2997", "llama-3.1-8b", "fp8", 1, 48, 2997, 0, 9.94),
    ("Dynamo 8B fp8, decode 188 x 2997", "llama-3.1-8b", "fp8", 1, 188, 2997, 0, 26.76),
    ("Dynamo 8B fp8, prefill 1117", "llama-3.1-8b", "fp8", 1, 0, 0, 1117, 38.49),
    ("Dynamo 8B fp8, prefill 8236", "llama-3.1-8b", "fp8", 1, 0, 0, 8236, 171.03),
)


def document(
    result: Result, gpu: str, engine: str, date: str, key: str, source: str, licence: str, suffix: str = ""
) -> str:
    """The text of the file: the same for the same data, options and version. suffix: of the name, GPU-engine."""
    versions = {
        each.key: f"{each.backend} {each.version}" for each in result.fitted if each.backend not in ("none", "fitted")
    }
    host = result.host
    data: dict[str, Any] = {
        "schema": 1,
        "name": f"{gpu}-{engine}{suffix}",
        "gpu": gpu,
        "engine": engine,
        "software": {"servesim": version(), **versions},
        "source": source,
        "licence": licence,
        "date": date,
        "operators": result.operators(),
        "mixed_overlap": result.mixed_overlap,
        **(host.values if host is not None else {}),
    }
    if host is not None and host.noise:
        data["noise"] = host.noise
    data["network"] = result.network.values
    data["ranges"] = result.ranges
    data["errors"] = {
        **result.errors,
        "fit": {
            "key": key,
            "held_out": OWN if all(score.get("held_out") is False for score in result.errors.values()) else HELD_OUT,
            "notes": list(result.notes),
            "set_by_hand": list(result.bounds),
        },
    }
    return yaml.safe_dump(data, sort_keys=False, width=110, allow_unicode=True)


def source_of(root: Path) -> str:
    """Where the measurements are from."""
    if not (root / "kernels").is_dir():
        return f"measured kernels in {root.name}/"
    return "; ".join((PUBLIC, *(words for folder, words in MORE.items() if (root / folder).is_dir())))


def version() -> str:
    return metadata.version("servesim")


def key_of(root: Path, gpu: str, engine: str, options: tuple[str, ...]) -> str:
    """What a fit depends on, in 16 letters: its data, its options, and the code of forms and fits."""
    digest = hashlib.sha256("\0".join((gpu, engine, *options, version())).encode())
    many = (root / "kernels").is_dir()  # cards in one collection; else the folder is one card's
    folders = [root / "kernels" / name for name in sorted({gpu, HOST_GPU})] if many else [root]
    for folder in (*folders, *(root / name for name in MORE)):
        for path in sorted(folder.glob("*")):
            if path.name.endswith((".csv", ".csv.gz", "device.json")):
                digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    here = Path(__file__).parent
    code = [*sorted(here.glob("*.py")), here.parent / "split.py", here.parent / "data.py"]
    code += [Path(sim.cost.__file__).parent / name for name in ("forms.py", "operators.py")]
    for path in code:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def key_in(path: Path) -> str | None:
    """The key of an existing file; None if it has none or cannot be read."""
    try:
        fit = load_calibration(path).errors.get("fit")
    except ScenarioError:
        return None
    return fit.get("key") if isinstance(fit, dict) else None


def changes(old: Calibration | None, new: Calibration) -> str:
    """Steps under the old and the new file, in milliseconds, beside what was measured."""
    rows: list[tuple[str, ...]] = [("step", "old", "new", "measured")]
    for name, *shape in STEPS:
        rows.append((name, *(_shown(each, _kernels(each, shape)) for each in (old, new)), "-"))
    if new.gpu == "h200_sxm":
        for name, *shape, measured in ANCHORS:
            rows.append((name, *(_shown(each, _whole(each, shape)) for each in (old, new)), f"{measured:.2f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join((first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))))
        for first, *rest in rows
    ]
    return "\n".join(("milliseconds; kernels alone, but for Dynamo's, with the host's time", *lines))


def _shown(calibration: Calibration | None, value: float | None) -> str:
    return "-" if calibration is None or value is None else f"{value * 1e3:.2f}"


def _kernels(calibration: Calibration | None, shape: list[Any]) -> float | None:
    if calibration is None or gpus.facts(calibration.gpu) is None:
        return None
    model, dtype, tp, n, context, prompt = shape
    if prompt:
        return prefill(calibration, calibration.gpu, model, dtype, prompt, tp)
    return kernels(calibration, calibration.gpu, model, dtype, n, context, (), tp)


def _whole(calibration: Calibration | None, shape: list[Any]) -> float | None:
    found = _kernels(calibration, shape)
    if calibration is None or found is None:
        return None
    n, prompt = shape[3], shape[5]
    host = calibration.host_s + calibration.host_per_seq_s * max(n, 1)
    return found + host + (calibration.front_end_s if prompt else 0.0)
