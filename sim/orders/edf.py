"""Earliest deadline first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..registry import register
from .base import Ranked

if TYPE_CHECKING:
    from ..workload.outlook import Outlook


@register("order", "edf")
@dataclass
class EarliestDeadline:
    """The earliest deadline first: arrival plus the SLO's ttft_ms; requests without one come last."""

    needs_deadlines: ClassVar[bool] = True

    def queue(self, outlook: Outlook) -> Ranked:
        return Ranked(lambda seq: outlook.deadline_s(seq.request))
