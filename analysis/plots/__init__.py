"""The pictures of a report: each a function from variants to a `Plot`; `draw_all` gives those that make sense."""

from collections.abc import Sequence

from ..variants import Variant
from .distributions import latency_cdf
from .parts import where_time_went
from .rates import against_rate
from .style import Plot
from .timelines import over_time

__all__ = ["Plot", "against_rate", "draw_all", "latency_cdf", "over_time", "where_time_went"]


def draw_all(variants: Sequence[Variant]) -> list[Plot]:
    """In the order in which a report shows them."""
    plots = [latency_cdf(variants, name) for name in ("ttft", "tpot", "itl", "e2el")]
    if len({variant.rate_per_s for variant in variants}) > 1:
        plots.append(against_rate(variants))
    return [*plots, where_time_went(variants), over_time(variants)]
