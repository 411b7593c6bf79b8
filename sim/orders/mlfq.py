"""Multi-level feedback: who has been given much makes way for who has been given little.

FastServe's idea [Wu et al., Fast Distributed Inference Serving for Large Language Models, 2023] in tokens, not in
seconds: no length is known, so a request sinks by a level whenever it has had the level's quantum of outputs. Its
prompt is known, so a long one joins lower at once (skip-join).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ..registry import register
from .base import Ranked, given

if TYPE_CHECKING:
    from ..batch import Batch
    from ..request import Sequence
    from ..workload.outlook import Outlook


@register("order", "mlfq")
@dataclass
class MultiLevelFeedback:
    """Multi-level feedback: requests sink as they are given tokens, long prompts join lower, the top level first."""

    levels: Annotated[int, Field(ge=1, le=32, description="levels; on the last one stay all that have sunk to it")] = 4
    quantum_tokens: Annotated[
        int, Field(ge=1, le=10_000_000, description="outputs on the top level, after which a request sinks to the next")
    ] = 32
    skip_join_tokens: Annotated[
        int, Field(ge=1, le=10_000_000, description="longest prompt that joins at the top level")
    ] = 512
    factor: Annotated[int, Field(ge=1, le=100, description="both grow by it from level to level")] = 2
    preemptive: Annotated[
        bool, Field(description="under vllm, who runs on a worse level loses its blocks to a head that finds no room")
    ] = True

    def queue(self, outlook: Outlook) -> FeedbackQueue:
        return FeedbackQueue(self)

    def joins(self, prompt_tokens: int) -> int:
        """The level at which a prompt of that length joins; 0 is the top."""
        level, longest = 0, self.skip_join_tokens
        while level < self.levels - 1 and prompt_tokens > longest:
            level, longest = level + 1, longest * self.factor
        return level

    def leaves(self, joined: int, level: int) -> float:
        """Outputs with which one that joined at `joined` sinks below `level`, in all; infinite for the last."""
        if level >= self.levels - 1:
            return inf
        return sum(self.quantum_tokens * self.factor**each for each in range(joined, level + 1))

    def level(self, prompt_tokens: int, outputs: int) -> int:
        level = joined = self.joins(prompt_tokens)
        while outputs >= self.leaves(joined, level):
            level += 1
        return level


class FeedbackQueue(Ranked):
    """The best level first, then the earliest arrival."""

    _batch: Batch

    def __init__(self, order: MultiLevelFeedback) -> None:
        super().__init__(self._level)
        self._order = order

    def attach(self, batch: Batch) -> None:
        self._batch = batch

    def _level(self, seq: Sequence) -> int:
        return self._order.level(seq.request.prompt_tokens, given(self._batch, seq))

    def displaced(self, batch: Batch) -> Sequence | None:
        """Who decodes on a worse level than the head waits on: of the worst, the one admitted last; None: nobody.

        That changes when the next of them sinks, and so long the plan may stand.
        """
        if not self._order.preemptive:
            return None
        order, level = self._order, self._level(self.head())
        worst, found = (level, -1), None
        soonest = inf
        for seq in batch.decodes.members:
            outputs = given(batch, seq)
            asked = seq.request.prompt_tokens
            joined = order.joins(asked)
            left = order.leaves(joined, level) - outputs
            if joined > level or left <= 0:
                rank = order.level(asked, outputs), seq.order
                if rank > worst:
                    worst, found = rank, seq
            elif left < soonest:
                soonest = left
        batch.plan.repeat = min(batch.plan.repeat, soonest)
        return found
