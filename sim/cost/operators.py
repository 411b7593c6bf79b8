"""FLOPs and bytes of one step, operator by operator, on one GPU of a tensor-parallel group.

Counted as the usual accounting does (letters as in `models`): a matrix product of m rows costs 2mkn FLOPs, reads its
weights and its rows once and writes its results once. Attention has FlashAttention's traffic: no S x S matrix in
memory; queries in and outputs out once; keys and values once, however many query heads share them. Its FLOPs belong to
query heads: 4 H per head and pair (query, visible key), of which a causal prompt of S tokens has S(S+1)/2.

Rows are the tokens of a step. Activations are bf16; where arithmetic is fp8, the operator before a product writes the
product's input as fp8. Embedding table, head and routers stay bf16. int8 and int4 shrink the weights alone, as fp8 does
on GPUs without fp8 arithmetic: they are widened on the way to bf16 arithmetic. Left out: norm weights, biases, rotary
tables, learned positions, the all-reduce behind a sharded embedding and the gather of sharded logits; and sampling,
unless a calibration prices it.

Counts of rows may be numpy arrays: the counts of the operators are then arrays too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..memory import kv_dtype_bytes
from ..models import BYTES, WEIGHT_BYTES, Model
from .forms import ROWS

if TYPE_CHECKING:
    from ..gpus import GPU
    from ..scenario import Engine

Kind = Literal[
    "gemm", "experts", "attention_prefill", "attention_decode", "elementwise", "all_reduce", "logits", "sampling"
]
Count = Any  # int, or an array of them
Prompts = Sequence[tuple[int, int]]  # (new, past) of each prompt chunk, tokens
BF16 = BYTES["bf16"]


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of a step on one GPU. Counts are those of one launch; a step launches it `count` times."""

    name: str
    kind: Kind  # the operators that a calibration treats alike
    flops: Count
    bytes: Count  # to and from the GPU's memory
    comm_bytes: Count = 0.0  # sent by this GPU over its link
    count: int = 1
    dtype: Literal["bf16", "fp8"] = "bf16"  # of the arithmetic: which peak holds
    narrow: bool = False  # products in fp8; attention over keys and values of one byte
    dims: tuple[Count, ...] = ()
    """What its form depends on beside the counts. gemm, logits: m, k, n. experts: rows, experts touched, k, n.
    attention_decode: sequences, their context summed, key/value heads. attention_prefill: blocks of ROWS query rows,
    FLOPs of those blocks in whole, query heads. all_reduce: GPUs."""

    @property
    def intensity(self) -> float:
        """FLOPs per byte of memory traffic."""
        return self.flops / self.bytes if self.bytes else 0.0


@dataclass(frozen=True)
class BatchShape:
    """What of a step's batch decides its price."""

    n: int  # decoding rows, padding included
    context: int  # tokens that they read, the new ones included, summed
    prompts: tuple[tuple[int, int], ...] = ()  # (new, past) of each prompt chunk
    emitted: int | None = None  # rows for which logits are computed; None: the decoding rows

    @property
    def rows(self) -> int:
        return self.n + sum(new for new, _ in self.prompts)


def gemm(
    m: Count, k: Count, n: Count, weight: float = BF16, row_in: int = BF16, row_out: int = BF16
) -> tuple[Count, Count]:
    """FLOPs and bytes of (m x k) times (k x n); widths of weights and of the rows in and out, bytes per number."""
    return 2 * m * k * n, whole(k * n * weight) + m * k * row_in + m * n * row_out


def causal_pairs(new: Count, past: Count) -> Count:
    """Pairs (query, visible key) of `new` tokens behind `past` others: each sees all before it, and itself."""
    return new * past + new * (new + 1) // 2


def block_pairs(blocks: Count, past: Count) -> Count:
    """The same for whole blocks of ROWS query rows, each of which computes all keys up to its last row."""
    return ROWS * blocks * past + ROWS * ROWS * blocks * (blocks + 1) // 2


def whole(bytes_: Count) -> Count:
    return bytes_.astype(np.int64) if isinstance(bytes_, np.ndarray) else int(bytes_)


@dataclass(frozen=True)
class Shard:
    """What one GPU holds of a model; widths in numbers, sizes in bytes per number."""

    layers: int
    hidden: int
    queries: int  # width of all query heads here
    kv: int  # width of all key heads here: at least one head, which GPUs beyond the number of heads hold too
    ffn: int
    vocab: int
    heads: int
    kv_heads: int
    tp: int
    weight: float
    row_in: int  # the input of a matrix product
    cache: int  # keys and values
    dtype: Literal["bf16", "fp8"]  # of the arithmetic of weights
    gated: bool = True
    experts: int = 1
    active: int = 1  # experts that compute a token

    @classmethod
    def of(cls, model: Model, gpu: "GPU", engine: "Engine") -> "Shard":
        """The share of each of the engine's GPUs. ValueError if its tensor parallelism does not divide the model."""
        tp = engine.tensor_parallel_size
        if refused := model.check_sharding(tp):
            raise ValueError(refused)
        fp8 = engine.weight_dtype == "fp8" and gpu.fp8_tflops is not None  # without: fp8 weights, bf16 arithmetic
        return cls(
            layers=model.num_hidden_layers,
            hidden=model.hidden_size,
            queries=model.num_attention_heads // tp * model.head_dim,
            kv=model.kv_heads(tp) * model.head_dim,
            ffn=model.mlp_width // tp,
            vocab=-(-model.vocab_size // tp),  # the last GPU's columns are padding where it does not divide
            heads=model.num_attention_heads // tp,
            kv_heads=model.kv_heads(tp),
            tp=tp,
            weight=WEIGHT_BYTES[engine.weight_dtype],
            row_in=BYTES["fp8"] if fp8 else BF16,
            cache=kv_dtype_bytes(engine),
            dtype="fp8" if fp8 else "bf16",
            gated=model.mlp_matrices == 3,
            experts=model.num_local_experts,
            active=model.num_experts_per_tok,
        )

    def row_operators(self, m: Count) -> list[Operator]:
        """Those whose counts depend on the number of rows alone, each of them linear in it."""
        h, wide = self.hidden, self.row_in
        operators = [
            # one row of the table per token is read, never the table
            Operator("embedding", "elementwise", 0, m * h * 2 * BF16),
            # with the residual: sum in, branch in; sum out, normed out (two a layer, one before the head)
            Operator("norms", "elementwise", 0, m * h * (3 * BF16 + wide), count=2 * self.layers + 1),
            self._product("qkv", m, h, self.queries + 2 * self.kv),
            Operator("rope", "elementwise", 0, m * 2 * BF16 * (self.queries + self.kv), count=self.layers),
            # keys and values, still in the GPU's cache, into the KV cache
            Operator("kv_write", "elementwise", 0, m * 2 * self.kv * self.cache, count=self.layers),
            self._product("out_proj", m, self.queries, h),
            *self._mlp(m),
        ]
        if self.tp > 1:  # ring: behind out_proj and behind down, each GPU sends (and receives) this much
            sent = 2 * (self.tp - 1) * m * h * BF16 / self.tp
            operators.append(
                Operator("all_reduce", "all_reduce", 0, 0, comm_bytes=sent, count=2 * self.layers, dims=(self.tp,))
            )
        return operators

    def logits(self, rows: Count) -> Operator:
        """The head, read whole (tied to the input table or not), for the rows that emit."""
        dims = (rows, self.hidden, self.vocab)
        return Operator("logits", "logits", *gemm(*dims), dims=dims)

    def sampling(self, rows: Count) -> Operator:
        """Three passes over fp32 logits of the whole vocabulary: scaled, softmaxed, drawn from."""
        return Operator("sampling", "sampling", 0, rows * (3 * 4 * self.vocab * self.tp))

    def attention(
        self,
        name: Literal["attention_prefill", "attention_decode"],
        queries: Count,
        keys: Count,
        pairs: Count,
        dims: tuple[Count, ...] = (),
    ) -> Operator:
        """Attention of `queries` rows over `pairs` (query, visible key), for which `keys` tokens are read."""
        moved = 2 * queries * self.queries * BF16 + 2 * keys * self.kv * self.cache
        flops = 4 * pairs * self.queries
        return Operator(name, name, flops, moved, count=self.layers, narrow=self.cache == 1, dims=dims)

    def decode_attention(self, n: Count, context: Count) -> Operator:
        return self.attention("attention_decode", n, context, context, (n, context, self.kv_heads))

    def prefill_attention(self, prompts: Sequence[tuple[Count, Count]]) -> Operator:
        """One launch for all prompt chunks of a step."""
        queries = keys = pairs = blocks = in_blocks = 0
        for new, past in prompts:
            queries += new
            keys += new + past
            pairs += causal_pairs(new, past)
            tiles = -(-new // ROWS)
            blocks += tiles
            in_blocks += block_pairs(tiles, past)
        dims = (blocks, 4 * in_blocks * self.queries, self.heads)
        return self.attention("attention_prefill", queries, keys, pairs, dims)

    def _mlp(self, m: Count) -> list[Operator]:
        """The MLP of m rows; of a mixture only what does not depend on which experts are touched.

        Its products are `expert_operators`.
        """
        rows, parts = m * self.active, 2 if self.gated else 1
        activation = rows * self.ffn * (parts * BF16 + self.row_in)
        passes = Operator("activation", "elementwise", 0, activation, count=self.layers)
        if self.experts == 1:
            up = self._product("gate_up" if self.gated else "up", m, self.hidden, parts * self.ffn)
            return [up, passes, self._product("down", m, self.ffn, self.hidden)]
        dims = (m, self.hidden, self.experts)
        router = Operator("router", "gemm", *gemm(*dims), count=self.layers, dims=dims)
        return [router, passes]

    def expert_operators(self, m: Count) -> list[Operator]:
        """Products of a mixture's experts for m rows: FLOPs of the active ones, weights of all that some row touches.

        E (1 - (1 - k/E)^m) experts, the mean over uniform routing. Each expert's rows are read and written once.
        """
        if self.experts == 1:
            return []
        touched = self.experts * (1.0 - (1.0 - self.active / self.experts) ** m)
        rows, found = m * self.active, []
        for name, k, n in (("experts_gate_up", self.hidden, 2 * self.ffn), ("experts_down", self.ffn, self.hidden)):
            flops, moved = gemm(rows, k, n, 0, self.row_in)
            moved += whole(touched * k * n * self.weight)
            found.append(self._computed(Operator(name, "experts", flops, moved, dims=(rows, touched, k, n))))
        return found

    def _product(self, name: str, m: Count, k: int, n: int) -> Operator:
        return self._computed(Operator(name, "gemm", *gemm(m, k, n, self.weight, self.row_in), dims=(m, k, n)))

    def _computed(self, operator: Operator) -> Operator:
        return replace(operator, count=self.layers, dtype=self.dtype, narrow=self.dtype == "fp8")


def operators(model: Model, gpu: "GPU", engine: "Engine", batch: BatchShape) -> list[Operator]:
    """All operators that a step launches, per GPU: prefill, decode and logits only where they have work."""
    shard = Shard.of(model, gpu, engine)
    found = shard.row_operators(batch.rows) + shard.expert_operators(batch.rows)
    if batch.prompts:
        found.append(shard.prefill_attention(batch.prompts))
    if batch.n:
        found.append(shard.decode_attention(batch.n, batch.context))
    if emitted := batch.n if batch.emitted is None else batch.emitted:
        found.append(shard.logits(emitted))
    return found
