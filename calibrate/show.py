"""A calibration as text: by kind of operator the fractions of the peaks that it reaches, its floor, its refinements."""

import textwrap
from collections.abc import Callable
from typing import Any

from sim.cost import Calibration, Efficiency, Operators
from sim.cost.forms import AllReduce, Segment
from sim.gpus import GPU

WIDE = 110
GLUE = "\N{NO-BREAK SPACE}"  # holds a number and its unit on one line
WITHOUT_ARITHMETIC = ("elementwise", "all_reduce", "sampling")
SHORT: dict[str, Callable[[Any], str]] = {  # refinements in words, by the name of the form's number
    "wave_share": lambda value: f"waves {value:.2f}",
    "small_tile_penalty": lambda value: f"small tiles {value:.2f}",
    "quantise_fraction": lambda value: f"quantise {value:.2f}",
    "chain_s_per_kdepth": lambda value: f"depth {value * 1e6:.2g} us/k",
    "band_excess": lambda value: "bands " + " ".join(f"{top}: +{100 * more:.0f}%" for top, more in value.items()),
    "block_rows": lambda value: f"blocks of {value:g} rows",
    "tiled": lambda value: "tiled",
    "occupancy": lambda value: f"occupancy {value:.2f}",
    "block_s": lambda value: f"blocks {value * 1e6:.1f} us",
    "chain_s_per_ktoken": lambda value: f"chain {value * 1e6:.2g} us/k",
    "max_splits": lambda value: f"splits {value:.1f}",
    "ramp_bytes": lambda value: f"ramp {value / 1e6:.1f} MB",
}


def table(calibration: Calibration, gpu: GPU | None = None) -> str:
    """The calibration as lines of at most WIDE characters; with a GPU, also what the fractions come to on it."""
    lines = [f"calibration {calibration.name}", *_facts(calibration, gpu), ""]
    heads = ["operator", "of FLOP/s", "of bytes/s", "floor us", "overlap p"]
    if gpu is not None:
        heads += ["TFLOP/s", "GB/s"]
    rows = [[*heads, "refinements"], *(_row(kind, calibration, gpu) for kind in _shown(calibration))]
    lines += _aligned(rows)
    lines += _all_reduce(calibration.operators.all_reduce, gpu)
    lines += _network(calibration)
    lines += _ranges(calibration)
    lines += _errors(calibration.errors)
    return "\n".join(lines)


def _facts(calibration: Calibration, gpu: GPU | None) -> list[str]:
    software = calibration.software
    if isinstance(software, dict):
        software = ", ".join(f"{name} {version}" for name, version in software.items())
    per_seq = f", {calibration.host_per_seq_s * 1e6:.3g} us a sequence" if calibration.host_per_seq_s else ""
    noise = f"sigma {calibration.noise.sigma:g}"
    if (prefill := getattr(calibration.noise, "prefill_sigma", None)) is not None:
        noise += f", {prefill:g} with prefill"
    front, back = calibration.front_end_s * 1e3, calibration.response_s * 1e3
    facts = {
        "gpu": calibration.gpu,
        "engine": calibration.engine,
        "software": software,
        "source": calibration.source,
        "licence": calibration.licence,
        "date": calibration.date,
        "tables": calibration.tables or "",
        "per step": f"{calibration.host_s * 1e3:.4g} ms of host time{per_seq}, unless scheduling is asynchronous",
        "mixed steps": f"{100 * calibration.mixed_overlap:.3g} % of the lesser attention hidden",
        "per request": f"{front:.4g} ms front end, {back:.4g} ms response",
        "noise": noise,
        "shown on": gpu.name if gpu is not None else "",
    }
    return [line for key, value in facts.items() if value for line in _wrapped(f"  {key:<12} ", str(value))]


def _shown(calibration: Calibration) -> list[str]:
    """Kinds that are priced; the fp8 ones where they have a form of their own."""
    operators = calibration.operators
    optional = {"sampling", *(name for name in Operators.model_fields if name.endswith("_fp8"))}
    return [name for name in Operators.model_fields if name not in optional or getattr(operators, name) is not None]


def _row(name: str, calibration: Calibration, gpu: GPU | None) -> list[str]:
    kind, narrow = name.removesuffix("_fp8"), name.endswith("_fp8")
    form, computes = calibration.operators.of(kind, narrow), kind not in WITHOUT_ARITHMETIC
    by_gpus = isinstance(form, AllReduce) and bool(form.by_gpus)
    row = [
        name,
        f"{form.compute_fraction:.3f}" if computes else "-",
        "-" if by_gpus else f"{form.bandwidth_fraction:.3f}",
        "-" if by_gpus else f"{form.floor_s * 1e6:.2f}",
        "max" if form.overlap_p is None else f"{form.overlap_p:.2f}",
    ]
    if gpu is not None:
        peaks: list[float | None] = [gpu.bf16_tflops]
        if kind in ("gemm", "experts"):  # only products of weights are computed in fp8
            peaks = [gpu.fp8_tflops] if narrow else peaks
            alone = getattr(calibration.operators, f"{name}_fp8", None) is None
            peaks += [gpu.fp8_tflops] if not narrow and alone else []
        reached = [f"{form.compute_fraction * peak:.0f}" for peak in peaks if peak]
        row.append("/".join(reached) if computes and reached else "-")
        bandwidth = gpu.link_gb_per_s if kind == "all_reduce" else gpu.memory_gb_per_s
        row.append(f"{form.bandwidth_fraction * bandwidth:.0f}" if bandwidth and not by_gpus else "-")
    own = getattr(calibration.operators, name)
    return [*row, "as gemm" if own is None else "by GPUs, below" if by_gpus else ", ".join(_refinements(form))]


def _refinements(form: Efficiency) -> list[str]:
    """What differs from the form's defaults, beside what all forms have."""
    found = []
    for name, own in getattr(form, "by_pass", {}).items():
        words = f"{name} {own.bandwidth_fraction:.2f} + {own.floor_s * 1e6:.1f} us"
        found.append(words.replace(" ", GLUE))
    for name, field in type(form).model_fields.items():
        value = getattr(form, name)
        if (
            name not in (*Efficiency.model_fields, "by_gpus", "by_pass")
            and value != field.default
            and value is not None
        ):
            words = SHORT[name](value) if name in SHORT else f"{name} {value:g}"
            found.append(words.replace(" ", GLUE))
    return found


def _all_reduce(form: Efficiency, gpu: GPU | None) -> list[str]:
    if not isinstance(form, AllReduce) or not form.by_gpus:
        return []
    link = gpu.link_gb_per_s if gpu is not None else None

    def words(segment: Segment | None) -> list[str]:
        if segment is None:
            return ["-", "-"]
        reached = f"{segment.bandwidth_fraction:.3f}"
        if link:
            reached += f" ({segment.bandwidth_fraction * link:.0f} GB/s)"
        return [f"{segment.floor_s * 1e6:.2f}", reached]

    heads = ["all_reduce", "one-shot: floor us", "of the link", "ring: floor us", "of the link"]
    rows = [[f"{n} GPUs", *words(group.one_shot), *words(group.ring)] for n, group in sorted(form.by_gpus.items())]
    return ["", *_aligned([[*heads, ""], *([*row, ""] for row in rows)])]


def _network(calibration: Calibration) -> list[str]:
    if not calibration.network:
        return []
    rows = [["other collectives", "floor us", "us per GPU", "GB/s", ""]]
    for name, values in calibration.network.items():
        more = values.get("floor_per_gpu_s")
        each = "-" if more is None else f"{more * 1e6:.2f}"
        rows.append([name, f"{values.get('floor_s', 0.0) * 1e6:.2f}", each, f"{values.get('gb_per_s', 0.0):.0f}", ""])
    return ["", *_aligned(rows)]


def _ranges(calibration: Calibration) -> list[str]:
    found = {name: value for name, value in calibration.ranges.model_dump().items() if value is not None}
    if not found:
        return []
    rows = [["measured", "from", "to", ""]]
    rows += [[name.replace("_", " "), f"{least:,.0f}", f"{most:,.0f}", ""] for name, (least, most) in found.items()]
    return ["", *_aligned(rows)]


def _errors(errors: dict[str, Any]) -> list[str]:
    """Those with a median as a table, whatever else there is below it as it stands."""
    if not errors:
        return []
    rows, others = [["errors of the fit", "median %", "p90 %", "signed %", "points", ""]], []

    def walk(found: dict[str, Any], prefix: str) -> None:
        for key, value in found.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict) and "median_percent" in value:
                of_fit = "" if value.get("held_out", True) else "not held out"
                cells = [_number(value.get(word)) for word in ("median_percent", "p90_percent")]
                signed = _number(value.get("signed_median_percent"), "+.1f")
                rows.append([name, *cells, signed, _number(value.get("points"), ",.0f"), of_fit])
            elif isinstance(value, dict):
                walk(value, f"{name} ")
            else:
                for item in value if isinstance(value, list) else [value]:
                    others.extend(_wrapped(f"  {name}: ", str(item), indent=4))

    walk(errors, "")
    return ["", *(_aligned(rows) if len(rows) > 1 else [rows[0][0]]), *others]


def _number(value: Any, form: str = ".1f") -> str:
    return format(value, form) if isinstance(value, int | float) else "-"


def _aligned(rows: list[list[str]]) -> list[str]:
    """First column to the left, the last, of words, too, wrapped; numbers between to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        lines += _wrapped("  ".join(cells) + "  ", row[-1])
    return lines


def _wrapped(head: str, text: str, indent: int | None = None) -> list[str]:
    space = " " * (len(head) if indent is None else indent)
    lines = textwrap.wrap(text, WIDE, initial_indent=head, subsequent_indent=space, break_on_hyphens=False)
    return [line.rstrip().replace(GLUE, " ") for line in lines] or [head.rstrip()]
