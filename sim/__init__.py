"""servesim's simulator: from a scenario to the records of a run."""

from .errors import ScenarioError
from .run import Result, simulate
from .scenario import Scenario, from_mapping, load, load_text

__all__ = ["Result", "Scenario", "ScenarioError", "from_mapping", "load", "load_text", "simulate"]
