"""Calibration files: what real kernels and engines reach of the roofline, as a data file that says where it comes from.

    schema: 1
    name: h100_sxm-vllm
    gpu: h100_sxm
    engine: vllm
    software: {vllm: 0.24.0, cuda: "12.9"}
    source: where the measurements are from
    licence: of the measurements
    date: 2026-01-31
    operators:                    # what is left out is at its ideal: fractions 1, floor 0
      gemm: {compute_fraction: 0.81, bandwidth_fraction: 0.87, floor_s: 3.8e-6}
      all_reduce: {bandwidth_fraction: 0.6, floor_s: 4.3e-6}
    host_s: 0.0                   # per step, where the engine does not hide it behind the GPU
    front_end_s: 0.014            # per request, before it is queued
    response_s: 0.0               # from a step's end to its tokens' delivery
    noise: {sigma: 0.05}
    errors: {gemm: {median_percent: 5.1, p90_percent: 13.6}}   # free form

A launch of an operator takes max(F / (compute_fraction P), B / (bandwidth_fraction W)) + floor_s; for all_reduce W is
the link. Fractions are at most 1, so no price is below its physical floor.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from .. import yamlfile
from ..checking import Section, explain
from ..errors import ScenarioError, show, suggest
from .noise import Spread

SCHEMA = 1
IDEAL = "ideal"
DEFAULT = "default"
FOLDER = Path(__file__).parent / "calibrations"  # <gpu>.yaml: the default of that GPU

Fraction = Annotated[float, Field(gt=0, le=1)]
Text = Annotated[str, Field(min_length=1, max_length=2000)]
Overhead = Annotated[float, Field(ge=0, le=60)]


class Efficiency(Section):
    """What operators of one kind reach."""

    compute_fraction: Annotated[Fraction, Field(description="of the peak FLOP/s")] = 1.0
    bandwidth_fraction: Annotated[
        Fraction, Field(description="of the memory bandwidth; of the link's for all_reduce")
    ] = 1.0
    floor_s: Annotated[float, Field(ge=0, le=1, description="per launch, s")] = 0.0


class Operators(Section):
    """Efficiencies by kind of operator; the keys are `operators.Kind`."""

    gemm: Efficiency = Efficiency()
    attention_prefill: Efficiency = Efficiency()
    attention_decode: Efficiency = Efficiency()
    elementwise: Efficiency = Efficiency()
    all_reduce: Efficiency = Efficiency()
    logits: Efficiency = Efficiency()

    def of(self, kind: str) -> Efficiency:
        found: Efficiency = getattr(self, kind)
        return found


class Calibration(Section):
    """A calibration, checked. Without operators: the ideal roofline."""

    name: Text
    gpu: Annotated[Text, Field(description="on which it was measured")]
    engine: Text
    software: Annotated[Text | dict[str, Any], Field(description="versions")]
    source: Text
    licence: Text
    date: Text
    operators: Operators
    host_s: Annotated[Overhead, Field(description="per step, s")] = 0.0
    front_end_s: Annotated[Overhead, Field(description="per request, before it is queued, s")] = 0.0
    response_s: Annotated[Overhead, Field(description="from a step's end to its tokens' delivery, s")] = 0.0
    noise: Spread = Spread()
    errors: Annotated[dict[str, Any], Field(default_factory=dict, description="of the fit")]

    @property
    def ideal(self) -> bool:
        """Whether it adds nothing to the roofline."""
        return self.operators == Operators() and not (self.host_s or self.front_end_s or self.response_s)


LECTURE = Calibration(
    name=IDEAL,
    gpu="any",
    engine="any",
    software="none",
    source="the GPU's peaks: every operator at max(FLOPs / peak, bytes / bandwidth), no overhead",
    licence="none",
    date="none",
    errors={},
    operators=Operators(),
)


def load_calibration(path: Path | str) -> Calibration:
    """The calibration in a file. ScenarioError, `file:line: key: what is wrong`, if it cannot be read or used."""
    document = yamlfile.read(path)
    data = dict(document.data)
    schema = data.pop("schema", None)
    if schema is None:
        raise document.error((), f"schema: missing; it must be {SCHEMA}")
    if schema is True or schema != SCHEMA:
        raise document.error(("schema",), f"must be {SCHEMA}, the only one that this version reads, got {show(schema)}")
    try:
        return Calibration.model_validate(data)
    except ValidationError as error:
        complaint = explain(error, Calibration, data, "a calibration")
        raise document.error(complaint.path, complaint.what) from None


def packaged() -> list[str]:
    """Names of the GPUs that have a default calibration."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def find_calibration(word: str, gpu: str | None, path: Path | None = None) -> Calibration:
    """`ideal`, `default` (that of the GPU; the ideal one where it has none) or else the file at `path`."""
    if word == DEFAULT and gpu in packaged():
        return load_calibration(FOLDER / f"{gpu}.yaml")
    if word in (DEFAULT, IDEAL):
        return LECTURE
    path = path or Path(word)
    if not path.exists() and not {"/", "\\", "."} & set(word):  # rather a word than a path
        raise ScenarioError(
            f"unknown calibration {show(word)}; {suggest(word, (DEFAULT, IDEAL))}; or the path of a file"
        )
    return load_calibration(path)
