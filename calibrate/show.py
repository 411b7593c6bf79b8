"""A calibration as a table: per kind of operator the fractions of the peaks that it reaches, and its floor."""

from sim.cost import Calibration, Operators
from sim.gpus import GPU

WITHOUT_ARITHMETIC = ("elementwise", "all_reduce")


def table(calibration: Calibration, gpu: GPU | None = None) -> str:
    """The calibration as text; with a GPU, also what the fractions come to on it."""
    software = calibration.software
    if isinstance(software, dict):
        software = ", ".join(f"{name} {version}" for name, version in software.items())
    facts = {
        "gpu": calibration.gpu,
        "engine": calibration.engine,
        "software": software,
        "source": calibration.source,
        "licence": calibration.licence,
        "date": calibration.date,
        "per step": f"{calibration.host_s * 1e3:g} ms of host time",
        "per request": f"{calibration.front_end_s * 1e3:g} ms front end, {calibration.response_s * 1e3:g} ms response",
        "noise": f"sigma {calibration.noise.sigma:g}",
    }
    lines = [f"calibration {calibration.name}", *(f"  {key:<12} {value}" for key, value in facts.items()), ""]
    heads = ["operator", "of peak FLOP/s", "of bandwidth", "floor us"]
    if gpu is not None:
        heads += ["TFLOP/s bf16", "TFLOP/s fp8", "GB/s"]
        lines.insert(-1, f"  {'shown on':<12} {gpu.name}")
    rows = [heads, *(_row(kind, calibration, gpu) for kind in Operators.model_fields)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join((row[0].ljust(len(first)), *others)).rstrip())
    if calibration.errors:
        lines += ["", "errors of the fit", *_nested(calibration.errors, 1)]
    return "\n".join(lines)


def _row(kind: str, calibration: Calibration, gpu: GPU | None) -> list[str]:
    reached = calibration.operators.of(kind)
    computes = kind not in WITHOUT_ARITHMETIC
    row = [
        kind,
        f"{reached.compute_fraction:.3f}" if computes else "-",
        f"{reached.bandwidth_fraction:.3f}",
        f"{reached.floor_s * 1e6:.2f}",
    ]
    if gpu is not None:
        # only products of weights are computed in fp8
        peaks = (gpu.bf16_tflops, gpu.fp8_tflops if kind == "gemm" else None)
        row += [f"{reached.compute_fraction * peak:.0f}" if computes and peak else "-" for peak in peaks]
        bandwidth = gpu.link_gb_per_s if kind == "all_reduce" else gpu.memory_gb_per_s
        row.append(f"{reached.bandwidth_fraction * bandwidth:.0f}" if bandwidth else "-")
    return row


def _nested(value: dict[str, object], level: int) -> list[str]:
    lines = []
    for key, inner in value.items():
        if isinstance(inner, dict):
            lines += [f"{'  ' * level}{key}", *_nested(inner, level + 1)]
        else:
            lines.append(f"{'  ' * level}{key} {inner}")
    return lines
