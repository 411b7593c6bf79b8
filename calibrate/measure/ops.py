"""The operations of a decoder layer, written plainly in PyTorch: what steps are made of and kernels measured by.

Rows are tokens. Keys and values of a layer are [sequences, key/value heads, tokens, head_dim], contiguous, not paged.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention
from torch.nn.attention import SDPBackend
from torch.nn.attention.bias import causal_lower_right

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
    query = _by_head(q, keys)
    mask: dict[str, Any] = {"is_causal": True}
    if past:  # else the diagonal would start at the first key
        mask = {"attn_mask": causal_lower_right(query.shape[2], keys.shape[2])}
    out = F.scaled_dot_product_attention(query, keys, values, enable_gqa=query.shape[1] != keys.shape[1], **mask)
    return out.transpose(1, 2).reshape(len(q), -1)


def attend_decode(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of one token a sequence over its whole cache."""
    return F.scaled_dot_product_attention(_by_group(q, keys), keys, values).reshape(len(q), -1)


def prompt_kernel(q: Tensor, keys: Tensor, past: int) -> str:
    """Which of PyTorch's kernels `attend_prompt` runs. Behind a past it looks for others than without."""
    query = _by_head(q, keys)
    grouped = query.shape[1] != keys.shape[1]
    if not past:
        return _chosen(query, keys, True, grouped)
    asked = SDPAParams(query, keys, keys, None, 0.0, False, grouped)
    if can_use_flash_attention(asked):
        return f"sdpa_{SDPBackend.FLASH_ATTENTION.name.lower()}"
    if can_use_efficient_attention(asked):
        return f"sdpa_{SDPBackend.EFFICIENT_ATTENTION.name.lower()}"
    return "sdpa_masked"


def decode_kernel(q: Tensor, keys: Tensor) -> str:
    """Which of PyTorch's kernels `attend_decode` runs."""
    return _chosen(_by_group(q, keys), keys, False, False)


def _by_head(q: Tensor, keys: Tensor) -> Tensor:
    """[sequences x tokens, heads, head_dim] as [sequences, heads, tokens, head_dim]."""
    sequences, (rows, heads, width) = len(keys), q.shape
    return q.view(sequences, rows // sequences, heads, width).transpose(1, 2)


def _by_group(q: Tensor, keys: Tensor) -> Tensor:
    """The query heads of a key/value head as rows of one block, so that the cache is read once for them all."""
    return q.view(len(q), keys.shape[1], -1, keys.shape[3])


def _chosen(query: Tensor, keys: Tensor, causal: bool, grouped: bool) -> str:
    try:
        chosen = torch._fused_sdp_choice(query, keys, keys, None, 0.0, causal, enable_gqa=grouped)
        return f"sdpa_{SDPBackend(chosen).name.lower()}"
    except (AttributeError, TypeError, ValueError, RuntimeError):  # private, so it may go
        return "sdpa"
