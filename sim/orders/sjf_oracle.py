"""Shortest job first by the true lengths: a bound that no engine reaches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..registry import register
from .base import Ranked

if TYPE_CHECKING:
    from ..workload.outlook import Outlook


@register("order", "sjf_oracle")
@dataclass
class ShortestJobOracle:
    """The shortest true output first: it cheats, as a bound for what any predictor could bring."""

    def queue(self, outlook: Outlook) -> Ranked:
        return Ranked(lambda seq: outlook.oracle(seq.request))
