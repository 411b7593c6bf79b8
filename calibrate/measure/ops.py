"""The operations of a decoder layer, written plainly in PyTorch: what steps are made of and kernels measured by.

Rows are tokens. Keys and values of a layer are [sequences, key/value heads, tokens, head_dim], contiguous, not paged.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.attention.bias import causal_lower_right

from .grid import Shape

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
EPSILON = 1e-5
_DRAWS = 999_983  # prime: repeats fall on other places of each row
_ROW_SCALE = 16.0  # static, per tensor: activations of some 1/16 to 8 lie well within e4m3's range


class Data:
    """Random tensors of one type on one device; always the same, for the draws are seeded."""

    def __init__(self, device: str, dtype: str, footprint: int) -> None:
        """`footprint`: bytes that copies of weights or caches must come to before the first may be used again."""
        self.device, self.name = device, dtype
        self.dtype = DTYPES["bfloat16" if dtype == "fp8" else dtype]
        self.footprint = footprint
        self._generator = torch.Generator(device=device).manual_seed(0)

    def normal(self, *size: int, scale: float = 1.0) -> Tensor:
        """Drawn in the type itself, for an fp32 copy of a large cache might not fit; and the same again after a
        million, for a CPU draws slowly."""
        made = torch.empty(size, dtype=self.dtype, device=self.device)
        flat = made.view(-1)
        drawn = flat[:_DRAWS].normal_(0.0, scale, generator=self._generator)
        for start in range(_DRAWS, flat.numel(), _DRAWS):
            part = flat[start : start + _DRAWS]
            part.copy_(drawn[: part.numel()])
        return made

    def ids(self, count: int, vocab: int) -> Tensor:
        return torch.randint(vocab, (count,), device=self.device, generator=self._generator)

    def weight(self, n: int, k: int) -> Linear:
        """Of a product that keeps the scale of its rows."""
        return Linear(self.normal(n, k, scale=k**-0.5), fp8=self.name == "fp8")

    def copies(self, size: int) -> int:
        """How many copies of something of `size` bytes keep each other out of the cache."""
        return max(1, min(32, -(-self.footprint // size)))


class Linear:
    """Rows times a weight [n, k]; in fp8 the rows are scaled and narrowed first, as a part of it."""

    kernel = "torch.nn.functional.linear"

    def __init__(self, weight: Tensor, fp8: bool = False) -> None:
        self.exact = weight  # as it was drawn, for the check
        self._narrow: Tensor | None = None
        if fp8:
            self.kernel = "torch._scaled_mm"
            scale = weight.abs().max().float() / torch.finfo(torch.float8_e4m3fn).max
            self._narrow = (weight / scale).to(torch.float8_e4m3fn)
            self._scale = scale.reshape(())
            self._row_scale = torch.tensor(1 / _ROW_SCALE, device=weight.device)

    def copy(self) -> Linear:
        """The same elsewhere in memory."""
        made = copy(self)
        made.exact = self.exact.clone()
        if self._narrow is not None:
            made._narrow = self._narrow.clone()
        return made

    @property
    def bytes(self) -> int:
        used = self.exact if self._narrow is None else self._narrow
        return used.numel() * used.element_size()

    def __call__(self, rows: Tensor) -> Tensor:
        if self._narrow is None:
            return F.linear(rows, self.exact)
        narrow = (rows * _ROW_SCALE).to(torch.float8_e4m3fn)
        return torch._scaled_mm(
            *(narrow, self._narrow.t()),
            scale_a=self._row_scale,
            scale_b=self._scale,
            out_dtype=rows.dtype,
            use_fast_accum=True,
        )


def embed(ids: Tensor, table: Tensor) -> Tensor:
    return F.embedding(ids, table)


def rmsnorm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, EPSILON)


def silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def angles(positions: Tensor, head_dim: int, dtype: Any) -> tuple[Tensor, Tensor]:
    """Cosines and sines, [tokens, 1, head_dim / 2]: made before a step, as engines look them up in a table."""
    steps = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float64) / head_dim
    turned = positions.double()[:, None, None] * 10000.0**-steps
    return turned.cos().to(dtype), turned.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [tokens, heads, head_dim]; pairs are the halves of a head."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def keep(cache: Tensor, new: Tensor, start: int) -> None:
    """Write the keys or values of [sequences x tokens, heads, head_dim] into the cache, from `start` on."""
    sequences, heads, _, width = cache.shape
    rows = new.view(sequences, -1, heads, width).transpose(1, 2)
    cache[:, :, start : start + rows.shape[2]].copy_(rows)


def attend_prompt(q: Tensor, keys: Tensor, values: Tensor, past: int) -> Tensor:
    """Causal attention of [sequences x tokens, heads, head_dim] behind `past` tokens of the cache."""
    sequences, kv_heads, _, width = keys.shape
    rows, heads, _ = q.shape
    query = q.view(sequences, rows // sequences, heads, width).transpose(1, 2)
    mask: dict[str, Any] = {"is_causal": True}
    if past:  # else the diagonal would start at the first key
        mask = {"attn_mask": causal_lower_right(query.shape[2], keys.shape[2])}
    out = F.scaled_dot_product_attention(query, keys, values, enable_gqa=heads != kv_heads, **mask)
    return out.transpose(1, 2).reshape(rows, heads * width)


def attend_decode(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of one token a sequence over its whole cache.

    The query heads of a key/value head stand as rows of one block, so that the cache is read once for them all.
    """
    sequences, kv_heads, _, width = keys.shape
    query = q.view(sequences, kv_heads, -1, width)
    return F.scaled_dot_product_attention(query, keys, values).reshape(sequences, -1)


def attention_kernel(shape: Shape, data: Data, causal: bool) -> str:
    """Which of PyTorch's kernels serves attention here; the choice depends on type and heads, not on lengths."""
    heads = shape.heads if causal else shape.kv_heads
    query = data.normal(1, heads, 128, shape.head_dim)
    keys = data.normal(1, shape.kv_heads, 128, shape.head_dim)
    try:
        grouped = heads != shape.kv_heads
        chosen = torch._fused_sdp_choice(query, keys, keys, None, 0.0, causal, enable_gqa=grouped)
        return f"sdpa_{SDPBackend(chosen).name.lower()}"
    except (AttributeError, TypeError, ValueError, RuntimeError):  # private, so it may go
        return "sdpa"
