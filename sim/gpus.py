"""GPUs by name: what a roofline needs to know of them.

Peaks are dense, without sparsity, from NVIDIA's data sheets (H100 SXM 989 / 1979 TFLOP/s and 3.35 TB/s, H200 the same
with 4.8 TB/s, A100 80 GB SXM 312 and 2.04, B200 2250 / 4500 and 8, L40S 362 / 733 and 0.864). Memory is what the
driver's tools report to PyTorch, in GiB, less than the name promises. Links are one GPU's, in one direction: NVLink's
half of the usual sum, PCIe 4.0 x16 for the L40S.
"""

from typing import Annotated, Any

from pydantic import Field, ValidationError

from .checking import Section, explain
from .errors import Complaint, show, suggest


class GPU(Section):
    """One GPU; a pool's replica has tensor_parallel_size of them."""

    name: Annotated[str, Field(min_length=1, max_length=200, description="a known name, or a name of your own")]
    memory_gib: Annotated[float, Field(gt=0, le=100_000, description="memory as PyTorch reports it, GiB")]
    bf16_tflops: Annotated[float, Field(gt=0, le=1e6, description="dense bf16 peak, TFLOP/s")]
    fp8_tflops: Annotated[
        float | None, Field(gt=0, le=1e6, description="dense fp8 peak, TFLOP/s; none: no fp8 arithmetic")
    ] = None
    memory_gb_per_s: Annotated[float, Field(gt=0, le=1e7, description="memory bandwidth, 10^9 bytes/s")]
    sms: Annotated[int, Field(ge=1, le=100_000, description="streaming multiprocessors")]
    link_gb_per_s: Annotated[
        float | None, Field(gt=0, le=1e6, description="link to other GPUs, one direction, 10^9 bytes/s")
    ] = None


_FIELDS = ("memory_gib", "bf16_tflops", "fp8_tflops", "memory_gb_per_s", "sms", "link_gb_per_s")
_KNOWN: dict[str, tuple[float, float, float | None, float, int, float]] = {
    "h100_sxm": (79.1, 989.0, 1979.0, 3350.0, 132, 450.0),
    "h200_sxm": (139.8, 989.0, 1979.0, 4800.0, 132, 450.0),
    "a100_sxm": (79.15, 312.0, None, 2039.0, 108, 300.0),
    "b200_sxm": (178.35, 2250.0, 4500.0, 8000.0, 148, 900.0),
    "l40s": (44.39, 362.0, 733.0, 864.0, 142, 32.0),
}
_ALIASES = {"h200": "h200_sxm", "b200": "b200_sxm", "a100_80gb_sxm": "a100_sxm", "a100_sxm_80gb": "a100_sxm"}


def names() -> list[str]:
    return list(_KNOWN)


def facts(name: str) -> dict[str, Any] | None:
    """The values of a known GPU, its proper name among them; capitals and - for _ are allowed."""
    plain = name.lower().replace("-", "_")
    plain = _ALIASES.get(plain, plain)
    return {"name": plain, **dict(zip(_FIELDS, _KNOWN[plain], strict=True))} if plain in _KNOWN else None


def parse(value: Any) -> GPU:
    """A name, or a mapping; one with the name of a known GPU changes some of its values."""
    if isinstance(value, GPU):
        return value
    if isinstance(value, str):
        known = facts(value)
        if known is None:
            raise Complaint(
                f"unknown GPU {show(value)}; {suggest(value, names())}; or a mapping with {', '.join(GPU.model_fields)}"
            )
        return GPU(**known)
    if not isinstance(value, dict):
        raise Complaint(
            f"must be the name of a GPU or a mapping, got {show(value)}; accepted names: {', '.join(names())}"
        )
    name = value.get("name", "custom")
    known = (facts(name) if isinstance(name, str) else None) or {}
    data = {"name": name, **known, **{k: v for k, v in value.items() if k != "name"}}
    try:
        return GPU.model_validate(data)
    except ValidationError as error:
        raise explain(error, GPU, data) from None
