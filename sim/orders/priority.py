"""The most urgent class first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..policies.base import ByPriority
from ..registry import register

if TYPE_CHECKING:
    from ..workload.outlook import Outlook


@register("order", "priority")
@dataclass
class Priority:
    """The smallest priority value of the request classes first, of equals the earliest; vLLM's rule."""

    def queue(self, outlook: Outlook) -> ByPriority:
        return ByPriority()
