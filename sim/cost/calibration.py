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
      gemm: {compute_fraction: 0.81, bandwidth_fraction: 0.87, floor_s: 3.8e-6, overlap_p: 3.3}
      all_reduce: {bandwidth_fraction: 0.6, floor_s: 4.3e-6}
    host_s: 0.0                   # per step, where the engine does not hide it behind the GPU
    host_per_seq_s: 0.0           # and per sequence of the step
    front_end_s: 0.014            # per request, before it is queued
    response_s: 0.0               # from a step's end to its tokens' delivery
    noise: {sigma: 0.05}
    ranges: {decode_context_tokens: [1, 262144]}   # of the measurements
    errors: {gemm: {median_percent: 5.1, p90_percent: 13.6}}   # free form

A launch of an operator takes what `forms` says; with fractions and a floor alone max(F / (compute_fraction P), B /
(bandwidth_fraction W)) + floor_s; for all_reduce W is the link. Fractions are at most 1, so no price is below its
physical floor.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from .. import yamlfile
from ..checking import Section, explain
from ..errors import ScenarioError, show, suggest
from . import table
from .forms import AllReduce, DecodeAttention, Efficiency, Experts, Gemm, Passes, PrefillAttention
from .noise import Spread

SCHEMA = 1
IDEAL = "ideal"
DEFAULT = "default"
FOLDER = Path(__file__).parent / "calibrations"  # <gpu>-<engine>.yaml: the defaults

Text = Annotated[str, Field(min_length=1, max_length=2000)]
Overhead = Annotated[float, Field(ge=0, le=60)]
Range = Annotated[list[float], Field(min_length=2, max_length=2)]


class Ranges(Section):
    """What was measured, least and most; beyond it the forms go on, as rooflines do. null: not stated."""

    gemm_rows: Annotated[Range | None, Field(description="rows of a step's matrix products")] = None
    decode_sequences: Annotated[Range | None, Field(description="sequences that decode in a step")] = None
    decode_context_tokens: Annotated[Range | None, Field(description="tokens that they read, summed")] = None
    prompt_tokens: Annotated[Range | None, Field(description="of a prompt")] = None

    def beyond(self, seen: Mapping[str, float]) -> list[str]:
        """What of the most that was asked for, by the names of the fields, is more than was measured."""
        found = []
        for name, most in seen.items():
            measured = getattr(self, name)
            if measured is not None and most > measured[1]:
                found.append(f"{name.replace('_', ' ')} {most:,.0f} (measured to {measured[1]:,.0f})")
        return found


class Operators(Section):
    """Forms by kind of operator; the keys are `operators.Kind`, with _fp8 for what has a form of its own there."""

    gemm: Gemm = Gemm()
    gemm_fp8: Annotated[Gemm | None, Field(description="products in fp8; null: as gemm")] = None
    experts: Annotated[Experts | None, Field(description="null: as gemm, without its waves")] = None
    experts_fp8: Annotated[Experts | None, Field(description="null: as experts")] = None
    attention_prefill: PrefillAttention = PrefillAttention()
    attention_prefill_fp8: Annotated[PrefillAttention | None, Field(description="keys and values in a byte")] = None
    attention_decode: DecodeAttention = DecodeAttention()
    attention_decode_fp8: Annotated[DecodeAttention | None, Field(description="keys and values in a byte")] = None
    elementwise: Passes = Passes()
    all_reduce: AllReduce = AllReduce()
    logits: Annotated[Gemm | None, Field(description="null: as gemm")] = None
    sampling: Annotated[Efficiency | None, Field(description="null: not priced")] = None

    def of(self, kind: str, narrow: bool = False) -> Efficiency:
        """The form of operators of a kind; `narrow` as `Operator` has it."""
        found: Efficiency | None = (getattr(self, f"{kind}_fp8", None) if narrow else None) or getattr(self, kind)
        if found is not None:
            return found
        gemm = (self.gemm_fp8 if narrow else None) or self.gemm
        if kind == "logits":
            return gemm
        return Efficiency(**{name: getattr(gemm, name) for name in Efficiency.model_fields})


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
    tables: Annotated[
        Text | None,
        Field(description="file of measured kernels, used before the forms, relative to this one; null: none"),
    ] = None
    mixed_overlap: Annotated[
        float,
        Field(ge=0, le=1, description="share of the lesser attention, prefill or decode, hidden in a step of both"),
    ] = 0.0
    host_s: Annotated[Overhead, Field(description="per step, unless scheduling is asynchronous, s")] = 0.0
    host_per_seq_s: Annotated[Overhead, Field(description="and per sequence of the step, s")] = 0.0
    front_end_s: Annotated[Overhead, Field(description="per request, before it is queued, s")] = 0.0
    response_s: Annotated[Overhead, Field(description="from a step's end to its tokens' delivery, s")] = 0.0
    noise: Spread = Spread()
    network: Annotated[
        dict[str, dict[str, float]],
        Field(description="other collectives: name -> floor_s, gb_per_s of bus bandwidth"),
    ] = {}
    ranges: Annotated[Ranges, Field(description="of what was measured")] = Ranges()
    errors: Annotated[dict[str, Any], Field(description="of the fit")] = {}

    @property
    def ideal(self) -> bool:
        """Whether it adds nothing to the roofline."""
        overheads = self.host_s, self.host_per_seq_s, self.front_end_s, self.response_s
        return self.operators == Operators() and self.tables is None and not any(overheads)


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
    try:
        facts = Path(path).stat()
    except OSError:
        return _load(path, 0, 0)  # which says what is wrong
    return _load(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=32)  # every replica of a cluster asks for the same one
def _load(path: Path | str, changed_ns: int, size: int) -> Calibration:
    document = yamlfile.read(path)
    data = dict(document.data)
    schema = data.pop("schema", None)
    if schema is None:
        raise document.error((), f"schema: missing; it must be {SCHEMA}")
    if schema is True or schema != SCHEMA:
        raise document.error(("schema",), f"must be {SCHEMA}, the only one that this version reads, got {show(schema)}")
    try:
        found = Calibration.model_validate(data)
    except ValidationError as error:
        complaint = explain(error, Calibration, data, "a calibration")
        raise document.error(complaint.path, complaint.what) from None
    if found.tables is None:
        return found
    tables = str(Path(path).parent / found.tables)
    try:
        table.load(tables)
    except ScenarioError as error:
        raise document.error(("tables",), str(error)) from None
    return found.model_copy(update={"tables": tables})


def packaged() -> list[str]:
    """Names of the calibrations that come with this version: GPU-engine."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def find_calibration(word: str, gpu: str | None, path: Path | None = None, engine: str = "vllm") -> Calibration:
    """`ideal`, `default`, the name of a packaged one, or else the file at `path`.

    `default` is that of the GPU with this engine, or with vllm; the ideal one where the GPU has none.
    """
    names = packaged()
    if word == DEFAULT:
        word = next((name for name in (f"{gpu}-{engine}", f"{gpu}-vllm") if name in names), IDEAL)
    if word == IDEAL:
        return LECTURE
    if word in names:
        return load_calibration(FOLDER / f"{word}.yaml")
    path = path or Path(word)
    if not path.exists() and not {"/", "\\", "."} & set(word):  # rather a word than a path
        known = (DEFAULT, IDEAL, *names)
        raise ScenarioError(f"unknown calibration {show(word)}; {suggest(word, known)}; or the path of a file")
    return load_calibration(path)
