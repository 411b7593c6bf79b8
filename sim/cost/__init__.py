"""What a step costs: operators and their counts, the roofline and its calibrations, the linear cost, step noise.

Importing this package registers the cost models. Its exports are what an engine, `calibrate` and whoever explains a
step need.
"""

from .calibration import Calibration, Operators, find_calibration, load_calibration, packaged
from .forms import Efficiency
from .linear import Linear
from .noise import Noise, Spread
from .operators import BatchShape, Operator, Shard, operators
from .prices import Prices
from .pricing import StepCost
from .roofline import Roofline

__all__ = [
    "BatchShape",
    "Calibration",
    "Efficiency",
    "Linear",
    "Noise",
    "Operator",
    "Operators",
    "Prices",
    "Roofline",
    "Shard",
    "Spread",
    "StepCost",
    "find_calibration",
    "load_calibration",
    "operators",
    "packaged",
]
