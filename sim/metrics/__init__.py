"""What a run's records say: the numbers of `summary.json`, named as vLLM's serving benchmark names them.

Everything is derived from the three tables of a result folder with numpy and pyarrow, so the numbers of a run can be
recomputed from its files at any time.
"""

from .classes import summarise_classes
from .gaps import inter_token_gaps
from .intervals import mean_interval, student_t
from .quantiles import QUANTILES, statistics, weighted_quantiles, weighted_statistics
from .summary import LATENCIES, PARTS, REQUEST_COLUMNS, SPAN_COLUMNS, STATUSES, STEP_COLUMNS, summarise

__all__ = [
    "LATENCIES",
    "PARTS",
    "QUANTILES",
    "REQUEST_COLUMNS",
    "SPAN_COLUMNS",
    "STATUSES",
    "STEP_COLUMNS",
    "inter_token_gaps",
    "mean_interval",
    "statistics",
    "student_t",
    "summarise",
    "summarise_classes",
    "weighted_quantiles",
    "weighted_statistics",
]
