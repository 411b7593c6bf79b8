"""The linear cost: the formula of recorded schedules, and the test double for queueing theory."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..errors import Complaint
from ..registry import register
from .noise import Noise, Spread
from .operators import Prompts
from .pricing import Pieces, Pricer, StepCost

if TYPE_CHECKING:
    from ..gpus import GPU
    from ..models import Model
    from ..scenario import Engine

Seconds = Annotated[float, Field(ge=0, le=1e6)]


@register("cost", "linear")
@dataclass
class Linear:
    """A step costs base + per token computed + per token of context read; the same on every GPU, no front end."""

    base_s: Annotated[Seconds, Field(description="every step, s")]
    per_token_s: Annotated[Seconds, Field(description="per token computed in the step, s")] = 0.0
    per_context_token_s: Annotated[Seconds, Field(description="per token read (computed before or now), s")] = 0.0
    noise: Annotated[Literal[False] | Spread, Field(description="false: none")] = False

    def __post_init__(self) -> None:
        if not (self.base_s or self.per_token_s or self.per_context_token_s):
            raise Complaint(
                "must not be 0 with per_token_s and per_context_token_s: steps would take no time", "base_s"
            )

    def pricer(
        self,
        model: "Model",
        gpu: "GPU",
        engine: "Engine",
        rng: np.random.Generator | None = None,
        resolve: Callable[[str], Path] = Path,
        kernels: str = "vllm",
        asynchronous: bool = False,
    ) -> StepCost:
        """Prices for one engine. Without rng, or sigma 0: the mean."""
        noise = self.noise.factors(rng) if isinstance(self.noise, Spread) else None
        return LinearPricer(self.base_s, self.per_token_s, self.per_context_token_s, noise)


class LinearPricer(Pricer):
    """(base + per_token x tokens) + per_context_token x context, in this order."""

    def __init__(
        self, base_s: float, per_token_s: float, per_context_token_s: float, noise: Noise | None = None
    ) -> None:
        super().__init__(noise)
        self._base, self._token, self._context = base_s, per_token_s, per_context_token_s

    def pieces(self, n: int) -> Pieces:
        return Pieces.line(self._base + self._token * n, self._context)

    def mixed(self, n: int, context: int, prompts: Prompts, emitted: int) -> float:
        for new, past in prompts:
            n += new
            context += past + new
        return self._base + self._token * n + self._context * context

    def alone(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        return self._base + self._token * tokens + self._context * tokens
