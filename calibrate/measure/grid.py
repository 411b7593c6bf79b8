"""Which points are measured, in which order: shapes and grids, without PyTorch.

A point is one row to be: its kind of file and the values of the columns that say what runs. The grid is ordered coarse
to fine, and within a level by kind, so that whatever a cut run has measured spans the whole range.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from sim.errors import Complaint
from sim.models import Model, parse

from ..data import COLUMNS

KINDS = ("steps", "gemm", "attention_prefill", "attention_decode", "elementwise")
WIDTH = {"bfloat16": 2, "float16": 2, "float32": 4, "fp8": 1}  # bytes of a number
_CPU_SIZES = (
    *("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads"),
    *("intermediate_size", "vocab_size"),
)
CPU_MODEL: dict[str, Any] = {"name": "cpu-tiny", **dict(zip(_CPU_SIZES, (3, 512, 8, 2, 1024, 4096), strict=True))}
QUICK_MODEL: dict[str, Any] = {"name": "cpu-quick", **dict(zip(_CPU_SIZES, (2, 256, 4, 2, 768, 2048), strict=True))}


@dataclass(frozen=True)
class Shape:
    """A stack of layers as one GPU holds it, after tensor parallelism; widths in numbers."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int

    @classmethod
    def of(cls, model: Model, tp: int = 1, layers: int | None = None) -> Shape:
        """One GPU's share of the model; fewer layers where given, for all are alike. Complaint if there is none."""
        if refused := model.check_sharding(tp):
            raise Complaint(refused)
        if model.is_moe or model.mlp_matrices != 3:
            raise Complaint(f"{model.name} has no gated MLP in each layer: measured are dense models of the Llama kind")
        return cls(
            layers=min(layers or model.num_hidden_layers, model.num_hidden_layers),
            hidden=model.hidden_size,
            heads=model.num_attention_heads // tp,
            kv_heads=model.kv_heads(tp),
            head_dim=model.head_dim,
            ffn=model.mlp_width // tp,
            vocab=-(-model.vocab_size // tp),
        )

    def model(self, name: str) -> dict[str, Any]:
        """The mapping of a model of this shape, as a scenario takes it; one GPU's share is a model by itself."""
        return {
            "name": name,
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ffn,
            "vocab_size": self.vocab,
        }

    @property
    def qkv(self) -> int:
        """Width of queries, keys and values side by side."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def products(self) -> list[tuple[int, int]]:
        """(n, k) of a layer's four matrix products; the head's is (vocab, hidden)."""
        queries = self.heads * self.head_dim
        return [(self.qkv, self.hidden), (self.hidden, queries), (2 * self.ffn, self.hidden), (self.hidden, self.ffn)]

    @property
    def elements(self) -> int:
        """Weights of the layers and the head."""
        return self.layers * sum(n * k for n, k in self.products) + self.vocab * self.hidden


@dataclass(frozen=True)
class Axes:
    """The values along each axis, ascending, and the most tokens that a point may have."""

    rows: tuple[int, ...]  # of a matrix product, and of element-wise work
    batches: tuple[int, ...]
    prompts: tuple[int, ...]
    contexts: tuple[int, ...]
    pasts: tuple[int, ...]  # tokens in the cache before a prompt's chunk; batch 1
    most_prompt_tokens: int  # batch x prompt
    most_context_tokens: int  # batch x context: bounds the memory of the KV cache


CUDA_AXES = Axes(
    rows=(
        *(1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096),
        *(6144, 8192, 12288, 16384),
    ),
    batches=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    prompts=(128, 256, 512, 1024, 2048, 4096, 8192),
    contexts=(128, 256, 512, 1024, 2048, 4096, 8192, 12288, 16384),
    pasts=(1024, 4096, 16384),
    most_prompt_tokens=32768,
    most_context_tokens=2**19,
)
CPU_AXES = Axes(
    rows=(1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384),
    batches=(1, 2, 4, 8, 16, 32),
    prompts=(16, 24, 32, 48, 64, 128, 256),
    contexts=(16, 64, 128, 256, 512, 1024),
    pasts=(64, 256),
    most_prompt_tokens=256,
    most_context_tokens=8192,
)
QUICK_AXES = Axes(
    rows=(1, 4, 16, 64, 128),
    batches=(1, 2, 4, 8),
    prompts=(16, 24, 32, 64, 128),
    contexts=(16, 64, 128, 256),
    pasts=(64,),
    most_prompt_tokens=128,
    most_context_tokens=1024,
)


@dataclass(frozen=True)
class Point:
    """A row to measure; `level` 0 is the coarsest grid."""

    kind: str
    level: int
    values: dict[str, Any]

    @property
    def key(self) -> tuple[str, ...]:
        """Its place in its file, as text: the values of `key_columns`."""
        return tuple(str(self.values[name]) for name in key_columns(self.kind))

    def __str__(self) -> str:
        return f"{self.kind} {' '.join(f'{name}={self.values[name]}' for name in key_columns(self.kind))}"


def key_columns(kind: str) -> list[str]:
    """The columns that say what runs, not on what nor how long."""
    return [name for name in COLUMNS[kind] if name not in ("backend", "version", "kernel", "latency_us")]


def model_of(name: str | None, device: str, quick: bool) -> Model:
    """The model that is asked for, or what suits the device."""
    if name is not None:
        return parse(name)
    if quick:
        return parse(QUICK_MODEL)
    return parse(CPU_MODEL if device == "cpu" else "llama-3.1-8b")


def points(shape: Shape, axes: Axes, dtypes: Sequence[str]) -> list[Point]:
    """The whole grid, coarse to fine; attention runs in bfloat16 where the weights are fp8."""
    found: list[Point] = []
    for dtype in dtypes:
        found += _steps(shape, axes, dtype)
        found += _gemms(shape, axes, dtype)
        activations = "bfloat16" if dtype == "fp8" else dtype
        if dtype != "fp8" or "bfloat16" not in dtypes:
            found += _attentions(shape, axes, activations)
            found += _elementwise(shape, axes, activations)
    return sorted(found, key=lambda point: (point.level, KINDS.index(point.kind)))


def coarse(found: Sequence[Point]) -> list[Point]:
    """The coarsest level alone."""
    return [point for point in found if point.level == 0]


def _levels(values: Sequence[int]) -> dict[int, int]:
    """Level of each value of an axis: every fourth and the last 0, every second 1, the others 2."""
    last = len(values) - 1
    return {value: 0 if i % 4 == 0 or i == last else 1 if i % 2 == 0 else 2 for i, value in enumerate(values)}


def _grid(*axes: Sequence[int]) -> Iterator[tuple[int, tuple[int, ...]]]:
    levels = [_levels(axis) for axis in axes]
    for values in product(*axes):
        yield max((level[value] for level, value in zip(levels, values, strict=True)), default=0), values


def _prefills(axes: Axes) -> Iterator[tuple[int, int, int, int]]:
    """(level, batch, prompt, past)"""
    for level, (batch, prompt) in _grid(axes.batches, axes.prompts):
        if batch * prompt <= axes.most_prompt_tokens:
            yield level, batch, prompt, 0
    for level, (past, prompt) in _grid(axes.pasts, axes.prompts[::2]):
        yield level, 1, prompt, past


def _decodes(axes: Axes) -> Iterator[tuple[int, int, int]]:
    """(level, batch, context)"""
    for level, (batch, context) in _grid(axes.batches, axes.contexts):
        if batch * context <= axes.most_context_tokens:
            yield level, batch, context


def _steps(shape: Shape, axes: Axes, dtype: str) -> Iterator[Point]:
    def point(level: int, phase: str, batch: int, prompt: int, past: int, context: int) -> Point:
        lengths = {"batch": batch, "prompt_len": prompt, "past_len": past, "context_len": context}
        return Point("steps", level, {"dtype": dtype, **vars(shape), "phase": phase, **lengths})

    for level, batch, prompt, past in _prefills(axes):
        yield point(level, "prefill", batch, prompt, past, 0)
    for level, batch, context in _decodes(axes):
        yield point(level, "decode", batch, 0, 0, context)
    # a chunk beside sequences that decode, as continuous batching has it; coarse, for it is a sum of the two
    for level, (batch, prompt, context) in _grid(axes.batches[1::2], axes.prompts[::2], axes.contexts[1::3]):
        if batch * context <= axes.most_context_tokens:
            yield point(max(level, 1), "mixed", batch, prompt, 0, context)


def _gemms(shape: Shape, axes: Axes, dtype: str) -> Iterator[Point]:
    seen = set()
    for level, (m,) in _grid(axes.rows):
        products = [*shape.products, *([(shape.vocab, shape.hidden)] if m <= axes.batches[-1] else [])]
        for n, k in products:
            if (m, n, k) not in seen:
                seen.add((m, n, k))
                yield Point("gemm", level, {"dtype": dtype, "m": m, "n": n, "k": k})


def _attentions(shape: Shape, axes: Axes, dtype: str) -> Iterator[Point]:
    heads = {"heads": shape.heads, "kv_heads": shape.kv_heads, "head_dim": shape.head_dim}
    dtypes = {"attn_dtype": dtype, "kv_dtype": dtype}
    for level, batch, prompt, past in _prefills(axes):
        values = {**dtypes, "batch": batch, **heads, "prompt_len": prompt, "past_len": past}
        yield Point("attention_prefill", level, values)
    for level, batch, context in _decodes(axes):
        yield Point("attention_decode", level, {**dtypes, "batch": batch, **heads, "context_len": context})


def _elementwise(shape: Shape, axes: Axes, dtype: str) -> Iterator[Point]:
    moved = {  # op: width of a row, numbers read and written a row
        "rmsnorm": (shape.hidden, 2 * shape.hidden),
        "add": (shape.hidden, 3 * shape.hidden),
        "rope": (shape.qkv, 2 * shape.qkv),
        "silu_mul": (shape.ffn, 3 * shape.ffn),
        "embedding": (shape.hidden, 2 * shape.hidden),
    }
    for level, (tokens,) in _grid(axes.rows):
        for op, (width, numbers) in moved.items():
            size = tokens * numbers * WIDTH[dtype]
            yield Point(
                "elementwise", level, {"dtype": dtype, "op": op, "tokens": tokens, "width": width, "bytes": size}
            )
