"""Model FLOPs utilisation and model bandwidth utilisation (MFU, MBU) of a replica's GPUs.

MFU is the time that the arithmetic done would take at the GPU's peak, over the time in question; MBU the same for the
bytes moved and the memory bandwidth. Counted by the functions of `cost.operators`, so a causal prompt counts half of
the square, and no step priced by a roofline can exceed 1. Arithmetic counts at the peak of its own dtype. Rows of
padding are not counted, what is computed again after a preemption is.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .cost.calibration import LECTURE
from .cost.operators import Operator, Shard
from .cost.prices import Prices

if TYPE_CHECKING:
    from .scenario import Pool


@dataclass
class Work:
    """What a replica's steps computed, in sums over the steps."""

    steps: int = 0  # with rows
    emitting_steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    emitted: int = 0
    context_tokens: int = 0  # keys read, of prompts and of decoding sequences
    busy_s: float = 0.0
    by_rows: dict[int, int] = field(default_factory=dict)  # rows of a step -> steps
    most: dict[str, int] = field(default_factory=dict)  # in one step, by the names of a calibration's ranges
    prefill_keys: int = 0  # of the keys read, those that prompts read
    prefill_pairs: int = 0  # (query, visible key) of prompts


@dataclass(frozen=True)
class Utilisation:
    """Seconds per GPU that the work would take at the peak, and at the whole memory bandwidth."""

    arithmetic_s: float
    memory_s: float

    def over(self, seconds: float) -> tuple[float | None, float | None]:
        """MFU and MBU over so many seconds."""
        return (self.arithmetic_s / seconds, self.memory_s / seconds) if seconds > 0 else (None, None)


def utilisation(pool: "Pool", work: Work) -> Utilisation:
    """Of one replica of this pool."""
    shard = Shard.of(pool.model, pool.gpu, pool.engine)
    prices = Prices(pool.gpu, LECTURE)
    arithmetic = memory = 0.0

    def add(operator: Operator, times: int = 1) -> None:
        nonlocal arithmetic, memory
        compute, moving, *_ = prices.terms(operator)
        arithmetic += times * compute
        memory += times * moving

    rows = work.prefill_tokens + work.decode_tokens
    for operator in shard.row_operators(rows):
        add(operator)
    for operator in shard.row_operators(0):  # weights are read once in each step
        add(operator, work.steps - 1)
    add(shard.logits(work.emitted))
    add(shard.logits(0), work.emitting_steps - 1)
    decode_keys = work.context_tokens - work.prefill_keys
    pairs = decode_keys + work.prefill_pairs
    dims = rows, work.context_tokens, shard.kv_heads
    add(shard.attention("attention_decode", rows, work.context_tokens, pairs, dims))
    for count, steps in work.by_rows.items():
        for operator in shard.expert_operators(count):
            add(operator, steps)
    return Utilisation(arithmetic, memory)
