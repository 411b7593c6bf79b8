"""Kernels by themselves: the calls to time for a point of the grid, and a check of their result in fp64.

The check recomputes some rows of what the measured call itself gave, in fp64, at the very size that is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import ops
from .grid import Point, Shape
from .ops import Data

TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 2e-2, "fp8": 0.12}
"""Largest relative error (2-norm) of a row against fp64. Rounding makes up a fifth of it; a wrong mask is far above."""


@dataclass
class Work:
    """What is timed at a point."""

    kernel: str
    calls: Sequence[Callable[[], Any]]
    error: Callable[[], float]  # runs the first call and compares


def work(point: Point, data: Data, shape: Shape) -> Work:
    """The kernel of a point; `data` is of its type."""
    made = {
        "gemm": _gemm,
        "attention_prefill": _prefill,
        "attention_decode": _decode,
        "elementwise": _elementwise,
    }
    return made[point.kind](point.values, data, shape)


def relative(found: Tensor, exact: Tensor) -> float:
    """Largest relative error of a row; NaN counts as endless."""
    wrong = (found.double() - exact).norm(dim=-1) / exact.norm(dim=-1).clamp_min(1e-30)
    worst = float(wrong.max())
    return worst if worst == worst else float("inf")


def softmax_rows(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of some queries [n, head_dim] over keys that they all see, in fp64."""
    scores = query.double() @ keys.double().T / keys.shape[-1] ** 0.5
    return scores.softmax(dim=-1) @ values.double()


def _some(count: int, most: int = 3) -> list[int]:
    """A few of `count` indices: first, last and between."""
    return sorted({round(i * (count - 1) / max(1, most - 1)) for i in range(most)})


def _gemm(values: dict[str, Any], data: Data, shape: Shape) -> Work:
    m, n, k = values["m"], values["n"], values["k"]
    x = data.normal(m, k)
    first = data.weight(n, k)
    weights = [first, *(first.copy() for _ in range(data.copies(first.bytes) - 1))]

    def error() -> float:
        rows, columns = _some(m, 4), _some(n, 256)
        exact = x[rows].double() @ first.exact[columns].double().T
        return relative(first(x)[rows][:, columns], exact)

    return Work(first.kernel, [partial(each, x) for each in weights], error)


def _caches(sequences: int, tokens: int, data: Data, shape: Shape) -> list[tuple[Tensor, Tensor]]:
    size = (sequences, shape.kv_heads, tokens, shape.head_dim)
    first = (data.normal(*size), data.normal(*size))
    copies = data.copies(2 * first[0].numel() * first[0].element_size())
    return [first, *((first[0].clone(), first[1].clone()) for _ in range(copies - 1))]


def _prefill(values: dict[str, Any], data: Data, shape: Shape) -> Work:
    sequences, prompt, past = values["batch"], values["prompt_len"], values["past_len"]
    q = data.normal(sequences * prompt, shape.heads, shape.head_dim)
    # a prompt's own keys were written just before and are in the cache; what was there already is not
    caches = _caches(sequences, past + prompt, data, shape)[: None if past else 1]
    keys, held = caches[0]

    def error() -> float:
        out = ops.attend_prompt(q, keys, held, past).view(sequences, prompt, shape.heads, -1)
        query = q.view(sequences, prompt, shape.heads, -1)
        last, worst = sequences - 1, 0.0
        for head in _some(shape.heads, 2):
            group = head // (shape.heads // shape.kv_heads)
            for row in _some(prompt):
                seen = past + row + 1
                exact = softmax_rows(query[last, row, head][None], keys[last, group, :seen], held[last, group, :seen])
                worst = max(worst, relative(out[last, row, head][None], exact))
        return worst

    kernel = ops.prompt_kernel(q, keys, past)
    calls = [partial(ops.attend_prompt, q, k, v, past) for k, v in caches]
    return Work(kernel, calls, error)


def _decode(values: dict[str, Any], data: Data, shape: Shape) -> Work:
    sequences = values["batch"]
    q = data.normal(sequences, shape.heads, shape.head_dim)
    caches = _caches(sequences, values["context_len"], data, shape)
    keys, held = caches[0]

    def error() -> float:
        out = ops.attend_decode(q, keys, held).view(sequences, shape.heads, -1)
        worst = 0.0
        for row in _some(sequences, 2):
            for head in _some(shape.heads, 2):
                group = head // (shape.heads // shape.kv_heads)
                exact = softmax_rows(q[row, head][None], keys[row, group], held[row, group])
                worst = max(worst, relative(out[row, head][None], exact))
        return worst

    kernel = ops.decode_kernel(q, keys)
    calls = [partial(ops.attend_decode, q, k, v) for k, v in caches]
    return Work(kernel, calls, error)


Made = tuple[Callable[[], Any], Callable[[], Tensor], Callable[[], Tensor]]
"""What is timed; some rows of what it gave; the same rows in fp64."""


def _elementwise(values: dict[str, Any], data: Data, shape: Shape) -> Work:
    """Activations were written just before and may be in the cache, as they are in a step: no copies."""
    some = _some(values["tokens"])
    call, found, exact = _ELEMENTWISE[values["op"]](values["tokens"], some, data, shape)
    return Work("torch", [call], lambda: relative(found().flatten(1), exact().flatten(1)))


def _rmsnorm(tokens: int, some: list[int], data: Data, shape: Shape) -> Made:
    x, weight = data.normal(tokens, shape.hidden), data.normal(shape.hidden)

    def exact() -> Tensor:
        rows = x[some].double()
        return rows * (rows.square().mean(-1, keepdim=True) + ops.EPSILON).rsqrt() * weight.double()

    return lambda: ops.rmsnorm(x, weight), lambda: ops.rmsnorm(x, weight)[some], exact


def _add(tokens: int, some: list[int], data: Data, shape: Shape) -> Made:
    x, y = data.normal(tokens, shape.hidden), data.normal(tokens, shape.hidden)
    return lambda: x + y, lambda: (x + y)[some], lambda: x[some].double() + y[some].double()


def _silu_mul(tokens: int, some: list[int], data: Data, shape: Shape) -> Made:
    x = data.normal(tokens, 2 * shape.ffn)

    def exact() -> Tensor:
        gate, up = x[some].double().chunk(2, dim=-1)
        return gate / (1 + (-gate).exp()) * up

    return lambda: ops.silu_mul(x), lambda: ops.silu_mul(x)[some], exact


def _embedding(tokens: int, some: list[int], data: Data, shape: Shape) -> Made:
    table, ids = data.normal(shape.vocab, shape.hidden), data.ids(tokens, shape.vocab)
    return lambda: ops.embed(ids, table), lambda: ops.embed(ids, table)[some], lambda: table[ids[some]].double()


def _rope(tokens: int, some: list[int], data: Data, shape: Shape) -> Made:
    """Queries and keys turned, keys and values written to their cache: all that is between two kernels of a step."""
    heads, groups, width = shape.heads, shape.kv_heads, shape.head_dim
    qkv = data.normal(tokens, heads + 2 * groups, width)
    cos, sin = ops.angles(torch.arange(tokens, device=data.device), width, data.dtype)
    keys, values = data.normal(1, groups, tokens, width), data.normal(1, groups, tokens, width)

    def call() -> Tensor:
        turned = ops.rotate(qkv[:, : heads + groups], cos, sin)
        ops.keep(keys, turned[:, heads:], 0)
        ops.keep(values, qkv[:, heads + groups :], 0)
        return turned

    def found() -> Tensor:
        queries = call()[:, :heads]
        return torch.cat((queries, keys[0].transpose(0, 1), values[0].transpose(0, 1)), dim=1)[some]

    def exact() -> Tensor:
        rows = qkv[some].double()
        pairs = torch.complex(*rows[:, : heads + groups].chunk(2, dim=-1))
        steps = torch.arange(width // 2, device=data.device, dtype=torch.float64) * 2 / width
        turns = torch.tensor(some, device=data.device).double()[:, None, None] * 10000.0**-steps
        turned = pairs * torch.polar(torch.ones_like(turns), turns)
        return torch.cat((torch.cat((turned.real, turned.imag), dim=-1), rows[:, heads + groups :]), dim=1)

    return call, found, exact


_ELEMENTWISE: dict[str, Callable[[int, list[int], Data, Shape], Made]] = {
    "rmsnorm": _rmsnorm,
    "add": _add,
    "silu_mul": _silu_mul,
    "embedding": _embedding,
    "rope": _rope,
}
