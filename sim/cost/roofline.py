"""The sum of rooflines over the operators of a step, folded so that a step costs about a microsecond.

Every operator is a few counts, each linear in something: matrix products, element-wise passes and all-reduces in the
rows m, logits in the rows that emit, decode attention in (rows, context), prefill attention in (rows, keys, pairs). The
coefficients are taken from the counting functions of `operators` themselves, at construction. A calibration whose forms
are not a maximum of two lines plus a floor replaces the method of that operator here (`_rows`, `_logits`, `_attention`,
`_prefill`); step and stretch stay as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from ..errors import Complaint, ScenarioError
from ..registry import register
from .calibration import DEFAULT, IDEAL, Calibration, find_calibration
from .noise import Noise, Spread
from .operators import BatchShape, Operator, Prompts, Shard, operators
from .pricing import Line, Lines, Memo, Pricer

if TYPE_CHECKING:
    from ..gpus import GPU
    from ..models import Model
    from ..scenario import Engine

OPTIMISTIC = "roofline without overheads, optimistic"


@register("cost", "roofline")
@dataclass
class Roofline:
    """A step costs the sum of its operators, each at the roofline or at what a calibration says is reached of it."""

    calibration: Annotated[
        str,
        Field(
            min_length=1,
            max_length=4096,
            description=f"{DEFAULT} (the GPU's own if there is one, else {IDEAL}), {IDEAL} (peaks alone) or a file",
        ),
    ] = DEFAULT
    noise: Annotated[bool | Spread, Field(description="true: as calibrated (none for ideal); false: none")] = True

    def verify(self, resolve: Callable[[str], Path]) -> None:
        """Complains if the calibration cannot be read."""
        try:
            self._find(None, resolve)
        except ScenarioError as error:
            raise Complaint(str(error), "calibration") from None

    def pricer(
        self,
        model: "Model",
        gpu: "GPU",
        engine: "Engine",
        rng: np.random.Generator | None = None,
        resolve: Callable[[str], Path] = Path,
    ) -> "RooflinePricer":
        """Prices for one engine. Without rng, or sigma 0: the mean. `resolve` gives the real path of a file."""
        calibration = self._find(gpu.name, resolve)
        if isinstance(self.noise, Spread):
            sigma = self.noise.sigma
        else:
            sigma = calibration.noise.sigma if self.noise else 0.0
        noise = Noise(sigma, rng) if rng is not None and sigma else None
        return RooflinePricer(model, gpu, engine, calibration, noise)

    def _find(self, gpu: str | None, resolve: Callable[[str], Path]) -> Calibration:
        word = self.calibration
        return find_calibration(word, gpu, None if word in (DEFAULT, IDEAL) else resolve(word))


class Prices:
    """Seconds of single operators on one GPU under a calibration."""

    def __init__(self, gpu: "GPU", calibration: Calibration) -> None:
        self.calibration = calibration
        self._peaks = {"bf16": gpu.bf16_tflops * 1e12, "fp8": (gpu.fp8_tflops or gpu.bf16_tflops) * 1e12}
        self._memory = gpu.memory_gb_per_s * 1e9
        self._link = gpu.link_gb_per_s * 1e9 if gpu.link_gb_per_s else None

    def terms(self, operator: Operator) -> tuple[float, float, float]:
        """Seconds of arithmetic, memory and link that an operator needs in a step; linear in its counts."""
        reached = self.calibration.operators.of(operator.kind)
        compute = operator.flops / (reached.compute_fraction * self._peaks[operator.dtype])
        memory = operator.bytes / (reached.bandwidth_fraction * self._memory)
        network = 0.0
        if operator.comm_bytes:
            network = operator.comm_bytes / (reached.bandwidth_fraction * self._link) if self._link else inf
        return operator.count * compute, operator.count * memory, operator.count * network

    def floor(self, operator: Operator) -> float:
        """What its launches take however little they have to do."""
        return operator.count * self.calibration.operators.of(operator.kind).floor_s

    def seconds(self, operator: Operator) -> float:
        """Mean time of all its launches in a step."""
        return max(self.terms(operator)) + self.floor(operator)


class RooflinePricer(Pricer):
    """One engine's steps."""

    def __init__(
        self, model: "Model", gpu: "GPU", engine: "Engine", calibration: Calibration, noise: Noise | None = None
    ) -> None:
        super().__init__(noise)
        self._shape = model, gpu, engine
        self.prices = prices = Prices(gpu, calibration)
        self.front_end_s, self.response_s = calibration.front_end_s, calibration.response_s
        self.label = _label(calibration, gpu.name)
        self._shard = shard = Shard.of(model, gpu, engine)

        # rows: one line for all that only moves bytes, and two lines a matrix product
        self._fixed, self._per_row = calibration.host_s, 0.0
        self._products: list[tuple[float, float, float]] = []  # compute per row; memory fixed and per row
        for none, one in zip(shard.row_operators(0), shard.row_operators(1), strict=True):
            fixed, per_row = prices.terms(none), prices.terms(_less(one, none))
            self._fixed += prices.floor(one)
            if one.flops:
                self._products.append((per_row[0], fixed[1], per_row[1]))
            else:
                self._per_row += sum(per_row)

        head, heads = shard.logits(0), shard.logits(1)
        per_row = prices.terms(_less(heads, head))
        self._head = prices.floor(heads), per_row[0], prices.terms(head)[1], per_row[1]

        row, token = (prices.terms(shard.decode_attention(*at)) for at in ((1, 0), (0, 1)))
        self._decode = prices.floor(shard.decode_attention(1, 1)), token[0], row[1], token[1]

        query, key, pair = (
            prices.terms(shard.attention("attention_prefill", *at)) for at in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
        )
        self._prompt = prices.floor(shard.prefill_attention([(1, 0)])), pair[0], query[1], key[1]

        self._rows_of, self._logits_of, self._attention_of = Memo(self._rows), Memo(self._logits), Memo(self._attention)

    def operators(self, n: int, context: int, prompts: Prompts, emitted: int) -> list[Operator]:
        """The operators whose prices (`prices.seconds`), with the host's time, sum to the mean of this step."""
        return operators(*self._shape, BatchShape(n, context, tuple(prompts), emitted))

    def lines(self, n: int) -> Lines:
        base = self._rows_of[n] + self._logits_of[n]
        intercept, slope, more = self._attention_of[n]
        return base + intercept, slope, tuple((base + higher, steeper) for higher, steeper in more)

    def mixed(self, n: int, context: int, prompts: Prompts, emitted: int) -> float:
        rows, pairs, keys = n, 0, 0
        for new, past in prompts:
            rows += new
            keys += past + new
            pairs += new * (past + past + new + 1)  # twice `causal_pairs`
        seconds = self._rows_of[rows] + self._logits_of[emitted]
        if n:
            intercept, slope, more = self._attention_of[n]
            reading = intercept + slope * context
            for higher, steeper in more:
                reading = max(reading, higher + steeper * context)
            seconds += reading
        if rows > n:
            seconds += self._prefill(rows - n, keys, pairs // 2)
        return seconds

    def _rows(self, m: int) -> float:
        """Host time, products, element-wise passes and all-reduces of a step of m rows."""
        seconds = self._fixed + self._per_row * m
        for compute, fixed, per_row in self._products:
            seconds += max(compute * m, fixed + per_row * m)
        for operator in self._shard.expert_operators(m):  # not linear in m
            seconds += self.prices.seconds(operator)
        return seconds

    def _logits(self, rows: int) -> float:
        floor, compute, fixed, per_row = self._head
        return max(compute * rows, fixed + per_row * rows) + floor if rows else 0.0

    def _attention(self, n: int) -> Lines:
        """Decode attention of n rows, lines in the context: memory, and arithmetic where that can be more."""
        floor, compute, per_row, memory = self._decode
        more: tuple[Line, ...] = ((floor, compute),) if compute > memory else ()
        return floor + per_row * n, memory, more

    def _prefill(self, queries: int, keys: int, pairs: int) -> float:
        floor, compute, per_query, per_key = self._prompt
        return max(compute * pairs, per_query * queries + per_key * keys) + floor


def _less(one: Operator, none: Operator) -> Operator:
    """What one row adds: whole numbers, so exact."""
    return replace(one, flops=one.flops - none.flops, bytes=one.bytes - none.bytes)


def _label(calibration: Calibration, gpu: str) -> str:
    if calibration.ideal:
        return OPTIMISTIC
    elsewhere = "" if calibration.gpu == gpu else f", measured on {calibration.gpu}, applied to {gpu}"
    return f"calibrated by {calibration.name}{elsewhere}"
