"""The pictures of a report: each a function from variants to a `Plot`; `draw_all` gives those that make sense."""

from collections.abc import Sequence

from ..catalog import DISTRIBUTIONS
from ..variants import Variant
from .classes import by_class, labels_of
from .distributions import cdf
from .parts import where_time_went
from .rates import against_rate, against_throughput
from .style import Plot
from .timelines import over_time

__all__ = ["Plot", "against_rate", "against_throughput", "by_class", "cdf", "draw_all", "over_time", "where_time_went"]


def draw_all(variants: Sequence[Variant]) -> list[Plot]:
    """In the order in which a report shows them."""
    plots = [cdf(variants, name) for name in DISTRIBUTIONS]
    if len({variant.rate_per_s for variant in variants}) > 1:
        plots += [against_rate(variants), against_throughput(variants)]
    if len(labels_of(variants)) > 1:
        plots.append(by_class(variants))
    return [*plots, where_time_went(variants), over_time(variants)]
