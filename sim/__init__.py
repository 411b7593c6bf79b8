"""servesim's simulator: from a scenario to the records of a run."""

from .errors import ScenarioError
from .metrics import inter_token_gaps, mean_interval, student_t
from .run import Result, simulate
from .scenario import Scenario, from_mapping, load, load_text

__all__ = [
    "Result",
    "Scenario",
    "ScenarioError",
    "from_mapping",
    "inter_token_gaps",
    "load",
    "load_text",
    "mean_interval",
    "simulate",
    "student_t",
]
