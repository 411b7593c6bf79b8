"""First come, first served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..policies.base import FCFS
from ..registry import register

if TYPE_CHECKING:
    from ..workload.outlook import Outlook


@register("order", "fcfs")
@dataclass
class FirstCome:
    """First come, first served; the preempted stand in front."""

    def queue(self, outlook: Outlook) -> FCFS:
        return FCFS()
