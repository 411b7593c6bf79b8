"""A stack of decoder layers with embedding and head, and one step of it; the whole that the kernels have to explain.

A step begins with token ids and ends with the logits of each sequence's last position. Sampling is not part of it, nor
is an engine's host time. Weights and cache are random; each layer has its own, so none is read twice in a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import ops
from .grid import Shape
from .kernels import relative, softmax_rows
from .ops import Data, Linear

_LENGTHS = {  # a small step of each phase, for the check
    "prefill": {"batch": 2, "prompt_len": 24, "past_len": 8, "context_len": 0},
    "decode": {"batch": 3, "prompt_len": 0, "past_len": 0, "context_len": 40},
    "mixed": {"batch": 2, "prompt_len": 16, "past_len": 16, "context_len": 24},
}


@dataclass(frozen=True)
class Layer:
    norm: Tensor
    qkv: Linear
    out: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


class Stack:
    """The weights, in fp8 those of the layers alone: quantised checkpoints keep table and head as they are."""

    def __init__(self, shape: Shape, data: Data) -> None:
        self.shape, self.data = shape, data

        def layer() -> Layer:
            qkv, out, gate_up, down = (data.weight(n, k) for n, k in shape.products)
            return Layer(data.normal(shape.hidden), qkv, out, data.normal(shape.hidden), gate_up, down)

        self.layers = [layer() for _ in range(shape.layers)]
        self.table = data.normal(shape.vocab, shape.hidden)
        self.norm = data.normal(shape.hidden)
        self.head = Linear(data.normal(shape.vocab, shape.hidden, scale=shape.hidden**-0.5))


class Group:
    """Sequences alike in a step, and their cache: a prompt's chunk behind `past` tokens, or one new token each."""

    def __init__(self, stack: Stack, sequences: int, new: int, past: int) -> None:
        shape = stack.shape
        self.sequences, self.new, self.past = sequences, new, past
        self.rows = sequences * new
        size = (sequences, shape.kv_heads, past + new, shape.head_dim)
        self.caches = [(stack.data.normal(*size), stack.data.normal(*size)) for _ in range(shape.layers)]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.caches[layer]
        ops.keep(keys, k, self.past)
        ops.keep(values, v, self.past)
        if self.new > 1:
            return ops.attend_prompt(q, keys, values, self.past)
        return ops.attend_decode(q, keys, values)


class Step:
    """One step, ready to run as often as one likes: it writes the same places of its cache each time."""

    def __init__(self, stack: Stack, values: dict[str, Any]) -> None:
        self.stack = stack
        batch, prompt, past = values["batch"], values["prompt_len"], values["past_len"]
        self.groups = []
        if prompt:
            self.groups.append(Group(stack, batch if values["phase"] == "prefill" else 1, prompt, past))
        if values["phase"] != "prefill":
            self.groups.append(Group(stack, batch, 1, values["context_len"] - 1))
        device, shape = stack.data.device, stack.shape
        self.ids = stack.data.ids(sum(group.rows for group in self.groups), shape.vocab)
        positions = [torch.arange(g.past, g.past + g.new, device=device).repeat(g.sequences) for g in self.groups]
        self.cos, self.sin = ops.angles(torch.cat(positions), shape.head_dim, stack.data.dtype)
        ends, first = [], 0
        for group in self.groups:
            ends.append(first + group.new * torch.arange(1, group.sequences + 1, device=device) - 1)
            first += group.rows
        self.ends = torch.cat(ends)

    def __call__(self) -> Tensor:
        """Logits, one row a sequence."""
        stack, shape = self.stack, self.stack.shape
        heads, turned_heads = shape.heads, shape.heads + shape.kv_heads
        x = ops.embed(self.ids, stack.table)
        for number, layer in enumerate(stack.layers):
            qkv = layer.qkv(ops.rmsnorm(x, layer.norm)).view(len(x), -1, shape.head_dim)
            turned = ops.rotate(qkv[:, :turned_heads], self.cos, self.sin)
            parts, first = [], 0
            for group in self.groups:
                rows = slice(first, first + group.rows)
                part = group.attend(number, turned[rows, :heads], turned[rows, heads:], qkv[rows, turned_heads:])
                parts.append(part)
                first += group.rows
            attended = parts[0] if len(parts) == 1 else torch.cat(parts)
            x = x + layer.out(attended)
            x = x + layer.down(ops.silu_mul(layer.gate_up(ops.rmsnorm(x, layer.mlp_norm))))
        return stack.head(ops.rmsnorm(x[self.ends], stack.norm))


def step_error(shape: Shape, data: Data, phase: str) -> float:
    """Relative error of a small step of this phase against fp64; the heads are those of `shape`, the rest is small."""
    small = Shape(2, 128, shape.heads, shape.kv_heads, shape.head_dim, 256, 512)
    step = Step(Stack(small, data), {"phase": phase, **_LENGTHS[phase]})
    exact = _exact(step)  # first: the step writes its keys and values into the cache
    return relative(step(), exact)


def _exact(step: Step) -> Tensor:
    """The logits in fp64, sequence by sequence and row by row, from the definition."""
    logits, first = [], 0
    for group in step.groups:
        for sequence in range(group.sequences):
            ids = step.ids[first : first + group.new]
            logits.append(_exact_sequence(step.stack, group, sequence, ids))
            first += group.new
    return torch.stack(logits)


def _exact_sequence(stack: Stack, group: Group, sequence: int, ids: Tensor) -> Tensor:
    shape = stack.shape
    share = shape.heads // shape.kv_heads
    x = stack.table[ids].double()
    positions = torch.arange(group.past, group.past + group.new, device=ids.device)
    cos, sin = ops.angles(positions, shape.head_dim, torch.float64)
    for number, layer in enumerate(stack.layers):
        qkv = (_normed(x, layer.norm) @ layer.qkv.exact.double().T).view(len(ids), -1, shape.head_dim)
        turned = ops.rotate(qkv[:, : shape.heads + shape.kv_heads], cos, sin)
        old_keys, old_values = (cache[sequence, :, : group.past].double() for cache in group.caches[number])
        out = torch.empty(len(ids), shape.heads, shape.head_dim, dtype=torch.float64, device=ids.device)
        for head in range(shape.heads):
            kv = head // share
            keys = torch.cat((old_keys[kv], turned[:, shape.heads + kv]))
            values = torch.cat((old_values[kv], qkv[:, shape.heads + shape.kv_heads + kv]))
            for row in range(len(ids)):
                seen = group.past + row + 1
                out[row, head] = softmax_rows(turned[row, head][None], keys[:seen], values[:seen])[0]
        x = x + out.flatten(1) @ layer.out.exact.double().T
        gate, up = (_normed(x, layer.mlp_norm) @ layer.gate_up.exact.double().T).chunk(2, dim=-1)
        x = x + (gate / (1 + (-gate).exp()) * up) @ layer.down.exact.double().T
    return (_normed(x[-1:], stack.norm) @ stack.head.exact.double().T)[0]


def _normed(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + ops.EPSILON).rsqrt() * weight.double()
