"""Shortest job first, as a predictor of output lengths sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ..registry import register
from .base import Ranked

if TYPE_CHECKING:
    from ..workload.outlook import Outlook


@register("order", "sjf")
@dataclass
class ShortestJob:
    """The shortest predicted output first; the predictor errs."""

    error: Annotated[
        float,
        Field(
            gt=0,
            le=10,
            description=(
                "standard deviation of ln(predicted / true length), 0.5: two in three within x 1.65; without an error"
                " it is sjf_oracle"
            ),
        ),
    ] = 0.5

    def queue(self, outlook: Outlook) -> Ranked:
        predicted = outlook.predictor(self.error)
        return Ranked(lambda seq: predicted(seq.request))
