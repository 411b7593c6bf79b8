"""The sum of the operators of a step, kept by what each depends on so that a step costs about a microsecond.

Matrix products, element-wise passes and all-reduces depend on the rows of a step, logits on the rows that emit: both
are worked out once for each number, by the counting functions of `operators` and the forms of the calibration. Decode
attention depends on the sequences and their context: for each number of sequences it is kept as straight pieces between
contexts 9 % apart (within 0.1 % of the form; exact where the form itself is made of lines).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..errors import Complaint, ScenarioError
from ..registry import register
from .calibration import DEFAULT, IDEAL, LECTURE, Calibration, find_calibration
from .forms import AllReduce, DecodeAttention
from .noise import Noise, Spread
from .operators import BatchShape, Operator, Prompts, Shard, operators
from .prices import Prices
from .pricing import Blocks, Memo, Pieces, Pricer, Seconds

if TYPE_CHECKING:
    from ..gpus import GPU
    from ..models import Model
    from ..scenario import Engine

CONTEXTS = 2.0 ** (np.arange(20 * 8 + 1) / 8)  # tokens per sequence, 1 to 1,048,576
FAR = 2**40  # tokens: far enough for a slope to have all its digits
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
            description=(
                f"{DEFAULT} (that of the GPU and engine if there is one, else {IDEAL}), {IDEAL} (peaks alone), the name"
                " of a packaged one or a file"
            ),
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
        kernels: str = "vllm",
        asynchronous: bool = False,
    ) -> "RooflinePricer":
        """Prices for one engine. Without rng, or sigma 0: the mean. `resolve` gives the real path of a file.

        `kernels` is the engine whose calibration is the default; one that schedules asynchronously hides the host's
        time behind the GPU.
        """
        calibration = self._find(gpu.name, resolve, kernels)
        spread = self.noise if isinstance(self.noise, Spread) else calibration.noise if self.noise else Spread()
        return RooflinePricer(model, gpu, engine, calibration, spread.factors(rng), asynchronous)

    def _find(self, gpu: str | None, resolve: Callable[[str], Path], kernels: str = "vllm") -> Calibration:
        word = self.calibration
        return find_calibration(word, gpu, None if word in (DEFAULT, IDEAL) else resolve(word), kernels)


class RooflinePricer(Pricer):
    """One engine's steps."""

    def __init__(
        self,
        model: "Model",
        gpu: "GPU",
        engine: "Engine",
        calibration: Calibration,
        noise: Noise | None = None,
        asynchronous: bool = False,
    ) -> None:
        super().__init__(noise)
        self._shape = model, gpu, engine
        self.prices, self.ideal = Prices(gpu, calibration), Prices(gpu, LECTURE)
        self.front_end_s, self.response_s = calibration.front_end_s, calibration.response_s
        self.label = _label(calibration, gpu.name, engine.tensor_parallel_size)
        self.host_s = 0.0 if asynchronous else calibration.host_s
        self.host_per_seq_s = 0.0 if asynchronous else calibration.host_per_seq_s
        self._hidden = calibration.mixed_overlap
        self._samples = calibration.operators.sampling is not None
        self._shard = Shard.of(model, gpu, engine)
        self._rows_of, self._logits_of = Blocks(self._rows), Blocks(self._logits)
        self._attention_of = Memo(self._attention)
        self._prompt_of = Memo(lambda tokens: self._prefill([(tokens, 0)]))  # attention of one, nothing before it

    def operators(self, n: int, context: int, prompts: Prompts, emitted: int) -> list[Operator]:
        """The operators whose prices (`seconds`), with the host's time, sum to the mean of this step."""
        found = operators(*self._shape, BatchShape(n, context, tuple(prompts), emitted))
        return [*found, self._shard.sampling(emitted)] if self._samples and emitted else found

    def seconds(self, operator: Operator) -> float:
        """What one of them adds to the step."""
        if operator.kind == "attention_decode":
            n, context, _ = operator.dims
            return self._attention_of[n](context)
        return float(self.prices.seconds(operator))

    def pieces(self, n: int) -> Pieces:
        return self._attention_of[n].plus(self._rows_of[n] + self._logits_of[n] + self._host(n))

    def mixed(self, n: int, context: int, prompts: Prompts, emitted: int) -> float:
        rows = n
        for new, _ in prompts:
            rows += new
        seconds = self._rows_of[rows] + self._logits_of[emitted] + self._host(n + len(prompts))
        decode = self._attention_of[n](context) if n else 0.0
        if rows == n:
            return seconds + decode
        whole = len(prompts) == 1 and prompts[0][1] == 0
        prefill = self._prompt_of[rows - n] if whole else self._prefill(prompts)
        return seconds + decode + prefill - self._hidden * min(decode, prefill)

    def _prefill(self, prompts: Prompts) -> float:
        found: float = self.prices.seconds(self._shard.prefill_attention(prompts))
        return found

    def alone(self, tokens: NDArray[np.int64]) -> Seconds:
        attention: Seconds = self.prices.seconds(self._shard.prefill_attention([(tokens, 0)]))
        return self._rows(tokens) + self._logits_of[1] + self._host(1) + attention

    def _host(self, seqs: int) -> float:
        return self.host_s + self.host_per_seq_s * seqs

    def _rows(self, m: NDArray[np.int64]) -> Seconds:
        """Products, element-wise passes and all-reduces of steps of m rows."""
        found = [*self._shard.row_operators(m), *self._shard.expert_operators(m)]
        return self._sum(found, m)

    def _logits(self, rows: NDArray[np.int64]) -> Seconds:
        """The head and, where it is priced, the sampling of so many rows; none, nothing."""
        head = self._shard.logits(rows)
        return np.where(rows > 0, self._sum([head, self._shard.sampling(rows)] if self._samples else [head], rows), 0.0)

    def _sum(self, found: list[Operator], counts: NDArray[np.int64]) -> Seconds:
        return sum((self.prices.seconds(operator) for operator in found), start=np.zeros(len(counts)))

    def _attention(self, n: int) -> Pieces:
        """Decode attention of n sequences, by their context."""
        shard, prices = self._shard, self.prices
        form = prices.calibration.operators.of("attention_decode", shard.cache == 1)
        lines_alone = form.overlap_p is None and isinstance(form, DecodeAttention) and form.linear
        if lines_alone and prices.measured is None:
            none, far = prices.terms(shard.decode_attention(n, 0)), prices.terms(shard.decode_attention(n, FAR))
            lines = [(a, (b - a) / FAR) for a, b in zip(none[:-1], far[:-1], strict=True)]
            return Pieces.greatest(lines).plus(none.floor)
        contexts = n * CONTEXTS
        return Pieces.through(contexts, prices.seconds(shard.decode_attention(n, contexts)))


def _label(calibration: Calibration, gpu: str, gpus: int) -> str:
    if calibration.ideal:
        return OPTIMISTIC
    elsewhere = "" if calibration.gpu == gpu else f", measured on {calibration.gpu}, applied to {gpu}"
    known = [
        f"{words} {found['median_percent']:.0f} %"
        for kind, words in (("gemm", "matrix products"), ("attention_decode", "decode attention"))
        if isinstance(found := calibration.errors.get(kind), dict)
        and isinstance(found.get("median_percent"), int | float)
    ]
    errors = f" (median error of its kernels: {', '.join(known)})" if known else ""
    bare = gpus > 1 and calibration.operators.all_reduce == AllReduce()
    missing = ", all-reduces not measured and at their ideal" if bare else ""
    return f"calibrated by {calibration.name}{errors}{elsewhere}{missing}"
