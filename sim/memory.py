"""KV cache size: what is left of a GPU's memory after weights, activations and the CUDA context.

    KV = gpu_memory_utilization x memory - weights / TP - activations - 0.55 GiB
    activations = tokens x (4 h + 6 ffn / TP) bytes + sequences x vocabulary x (2 / TP + 8) bytes

h is the hidden size, ffn the MLP's width; tokens and sequences are the most that one step holds. The second term is
the sampler's logits. vLLM up to 0.15 sorted them, after the layers: 40 bytes a logit [vllm-project/vllm#32558: 1.25 GiB
for 256 x 131,072], beside the hidden states. Under `sampler: sort` activations are therefore

    max(tokens x (4 h + 6 ffn / TP), tokens x 2 h + sequences x vocabulary x 40) bytes

There is no reserve beyond it: with gpu_memory_utilization 1 all the rest is KV. All sizes are per GPU, GiB = 2^30
bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import Complaint
from .models import BYTES, Model

if TYPE_CHECKING:
    from .scenario import Engine, Pool

GIB = 2**30
CUDA_CONTEXT_GIB = 0.55
SORTED_LOGIT_BYTES = 40  # the logit in fp32 and a copy, sorted values and 8-byte indices, the sort's own buffers


class MemoryRefused(Complaint):
    """What was asked for does not fit the memory; the numbers are in the message. The path is relative to the pool."""


@dataclass(frozen=True)
class KVSizes:
    """Sizes of a replica's KV cache, per GPU; `kv_blocks` and `kv_tokens` as vLLM prints them, null block included."""

    num_gpu_blocks: int  # usable: kv_blocks - 1, since the null block holds no tokens
    kv_blocks: int
    block_size: int
    kv_tokens: int
    kv_gib: float
    weights_gib: float
    activations_gib: float
    max_model_len: int  # effective: as written, or lowered to what fits
    max_concurrency: float  # kv_tokens / max_model_len
    warnings: list[str] = field(default_factory=list)


def activation_bytes(model: Model, tp: int, tokens: int, sequences: int, sampler: str = "triton") -> float:
    """Most memory that a step's intermediate results take, bytes per GPU."""
    width = model.mlp_width * model.num_experts_per_tok  # of a mixture, the experts that compute a token
    hidden = tokens * (4 * model.hidden_size + 6 * width / tp)
    logits = sequences * model.vocab_size
    if sampler == "sort":
        return max(hidden, tokens * 2 * model.hidden_size + logits * SORTED_LOGIT_BYTES)
    return hidden + logits * (2 / tp + 8)


def block_bytes(model: Model, engine: "Engine") -> int:
    """Bytes per GPU of one KV block."""
    return engine.block_size * model.kv_bytes_per_token(kv_dtype_bytes(engine), engine.tensor_parallel_size)


def kv_dtype_bytes(engine: "Engine") -> int:
    """Bytes of one number in the KV cache; `auto` is bf16."""
    return BYTES["bf16" if engine.kv_cache_dtype == "auto" else engine.kv_cache_dtype]


def kv_cache(pool: "Pool", policy: Any) -> KVSizes:
    """Sizes of a replica of this pool under this policy. MemoryRefused if model, context or reservation do not fit.

    A policy says how much it computes at once by `max_num_batched_tokens` and `max_num_seqs` (or `batch_size`), or by
    a method `activation_tokens(max_model_len)`; without either, a prompt of the greatest length. What it sets aside
    for good, it says by `reserve_tokens(max_model_len)`.
    """
    model, engine = pool.model, pool.engine
    most = engine.max_model_len or model.max_position_embeddings
    plans = _Plans(pool, policy)
    warnings: list[str] = []
    if engine.max_model_len is not None:
        length = engine.max_model_len
        try:
            sizes = plans.sizes(length)
        except MemoryRefused:
            if not plans.fits(min(length, engine.block_size)):
                raise
            what = f"{length} tokens at once take {plans.activations_gib(length):.2f} GiB of activations per GPU"
            raise MemoryRefused(f"{what}; accepted: up to {plans.longest(length)}", "engine", "max_model_len") from None
        _refuse_written(plans, sizes, length, warnings)
        if model.max_position_embeddings is not None and length > model.max_position_embeddings:
            warnings.append(
                f"max_model_len {length} is beyond the model's own context of {model.max_position_embeddings} tokens"
            )
    else:
        length = plans.longest(most)
        sizes = plans.sizes(length)
        if most is not None and length < most:
            held = f"the KV cache of {sizes.kv_tokens} tokens"
            warnings.append(f"max_model_len lowered from {most} to {length}, what {plans.holder(held)} holds")
    if engine.num_gpu_blocks_override is not None and sizes.kv_gib > plans.free_gib(length):
        free = max(0.0, plans.free_gib(length))
        warnings.append(
            f"num_gpu_blocks_override asks for {sizes.kv_gib:.2f} GiB of KV, the memory leaves {free:.2f} GiB"
        )
    return KVSizes(
        num_gpu_blocks=sizes.kv_blocks - 1,
        kv_blocks=sizes.kv_blocks,
        block_size=engine.block_size,
        kv_tokens=sizes.kv_tokens,
        kv_gib=sizes.kv_gib,
        weights_gib=plans.weights_gib,
        activations_gib=plans.activations_gib(length),
        max_model_len=length,
        max_concurrency=sizes.kv_tokens / length,
        warnings=warnings,
    )


@dataclass(frozen=True)
class _Sizes:
    kv_blocks: int
    kv_tokens: int
    kv_gib: float


class _Plans:
    """A pool's memory as a function of max_model_len, on which a policy's activations and reservation may depend."""

    def __init__(self, pool: "Pool", policy: Any) -> None:
        self.pool, self.policy = pool, policy
        self.model, self.engine, self.tp = pool.model, pool.engine, pool.engine.tensor_parallel_size
        self.weights_gib = self.model.weight_bytes(self.engine.weight_dtype, self.tp) / GIB
        self.block = block_bytes(self.model, self.engine)
        self.sequences = int(getattr(policy, "max_num_seqs", None) or getattr(policy, "batch_size", None) or 1)
        self.reserve: Callable[[int], int] | None = getattr(policy, "reserve_tokens", None)

    def activations_gib(self, length: int) -> float:
        of_policy = getattr(self.policy, "activation_tokens", None)
        tokens = of_policy(length) if of_policy else getattr(self.policy, "max_num_batched_tokens", None) or length
        return activation_bytes(self.model, self.tp, tokens, self.sequences, self.engine.sampler) / GIB

    def free_gib(self, length: int, utilization: float | None = None) -> float:
        share = self.engine.gpu_memory_utilization if utilization is None else utilization
        return share * self.pool.gpu.memory_gib - self.weights_gib - self.activations_gib(length) - CUDA_CONTEXT_GIB

    def sizes(self, length: int) -> _Sizes:
        """Blocks and tokens for this max_model_len; refused if there is no room for a block besides the null block."""
        engine = self.engine
        if engine.num_gpu_blocks_override is not None:
            self._refuse_weights(length, 1.0, 0.0)
            blocks = engine.num_gpu_blocks_override
        elif engine.kv_cache_memory_bytes is not None:
            self._refuse_weights(length, 1.0, engine.kv_cache_memory_bytes / GIB)
            blocks = engine.kv_cache_memory_bytes // self.block
            if blocks < 2:
                held = f"{engine.kv_cache_memory_bytes} bytes hold {blocks} blocks of {self.block} bytes"
                what = f"{held}; accepted: at least {2 * self.block}"
                raise MemoryRefused(what, "engine", "kv_cache_memory_bytes")
        else:
            self._refuse_weights(length, None, 2 * self.block / GIB)
            blocks = int(self.free_gib(length) * GIB // self.block)
        return _Sizes(blocks, blocks * engine.block_size, blocks * self.block / GIB)

    def fits(self, length: int) -> bool:
        """Whether one request of this length, and what the policy reserves, find room."""
        try:
            sizes = self.sizes(length)
        except MemoryRefused:
            return False
        needed = -(-length // self.engine.block_size)
        return needed < sizes.kv_blocks and (self.reserve is None or self.reserve(length) <= self._usable(sizes))

    def longest(self, most: int | None) -> int:
        """The greatest max_model_len up to `most` that fits: `most` itself, or else whole blocks."""
        if most is not None and self.fits(most):
            return most
        size = self.engine.block_size
        low, high = 1, (most or 2**30) // size + 1  # in blocks; low fits or nothing does, high is too much
        if not self.fits(size):
            sizes = self.sizes(size)  # refuses, and says why, if it is the weights
            needed = self.reserve(size) if self.reserve else size
            raise MemoryRefused(self._short(sizes, needed, f"even with max_model_len {size}"), "policy")
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits(middle * size) else (low, middle)
        return low * size

    def holder(self, held: str) -> str:
        return f"{held}, {self.sequences} times reserved," if self.reserve else held

    def _usable(self, sizes: _Sizes) -> int:
        return (sizes.kv_blocks - 1) * self.engine.block_size

    def _short(self, sizes: _Sizes, needed: int, when: str) -> str:
        holds = f"{self._usable(sizes)} ({sizes.kv_gib:.2f} GiB per GPU)"
        return f"reserves {needed} tokens of KV {when}, the memory holds {holds}"

    def _refuse_weights(self, length: int, utilization: float | None, kv_gib: float) -> None:
        free = self.free_gib(length, utilization)
        if free >= kv_gib and free > 0:
            return
        activations = self.activations_gib(length)
        memory = self.pool.gpu.memory_gib
        share = self.engine.gpu_memory_utilization if utilization is None else utilization
        need = self.weights_gib + activations + CUDA_CONTEXT_GIB
        asked = f" and {kv_gib:.2f} GiB of KV" if utilization is not None and kv_gib else ""
        raise MemoryRefused(
            f"{self.model.name} does not fit: {self.weights_gib:.2f} GiB weights + {activations:.2f} GiB activations + "
            f"{CUDA_CONTEXT_GIB} GiB context = {need:.2f} GiB per GPU{asked}, of {share:g} x {memory:g} = "
            f"{share * memory:.2f} GiB on {self.pool.gpu.name}; raise engine.tensor_parallel_size ({self.tp}) "
            "or use smaller dtypes",
            "model",
        )


def _refuse_written(plans: _Plans, sizes: _Sizes, length: int, warnings: list[str]) -> None:
    """A written max_model_len must fit, but where the blocks are counted by hand: then requests are rejected singly."""
    needed = -(-length // plans.engine.block_size)
    if needed >= sizes.kv_blocks:
        what = f"{length} tokens are more than the KV cache of {sizes.kv_tokens} tokens holds"
        if plans.engine.num_gpu_blocks_override is None:
            fits = plans.longest(length)
            raise MemoryRefused(
                f"{what} ({sizes.kv_gib:.2f} GiB per GPU); accepted: up to {fits}", "engine", "max_model_len"
            )
        warnings.append(f"max_model_len: {what}; requests that do not fit are rejected singly")
    if plans.reserve and plans.reserve(length) > plans._usable(sizes):
        short = plans._short(sizes, plans.reserve(length), f"with max_model_len {length}")
        raise MemoryRefused(f"{short}; accepted: max_model_len up to {plans.longest(length)}", "policy")
