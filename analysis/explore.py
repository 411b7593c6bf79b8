"""The data of a report's interactive view: few and short enough numbers to stand in the page itself."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import catalog
from .plots.style import Look, looks, rate_name, rates_of
from .stats import ecdf
from .variants import Variant

MOST_POINTS = 140
"""Of a curve; its ends and what lies above p99 are kept more finely."""
LOADS = (
    ("p99_ttft_ms", "p99 TTFT", "ttft"),
    ("median_ttft_ms", "median TTFT", "ttft"),
    ("p99_tpot_ms", "p99 TPOT", "tpot"),
    ("p99_itl_ms", "p99 ITL", "itl"),
    ("p99_e2el_ms", "p99 E2E", "e2el"),
    ("request_goodput", "goodput", ""),
    ("output_throughput", "output tokens/s", ""),
)


def data(found: Sequence[Variant]) -> str:
    """JSON that may stand between script tags."""
    look = looks(found)
    rates = rates_of(found)
    numbers = {label: number for number, label in enumerate(look)}
    content = {
        "policies": [{"label": label} | swatch(one) for label, one in look.items()],
        "rates": [rate_name(rate) for rate in rates],
        "distributions": [_distribution(found, name, numbers, rates) for name in catalog.DISTRIBUTIONS],
        "loads": [_load(found, *each, numbers) for each in LOADS if _has(found, each[0])] if len(rates) > 1 else [],
    }
    text = json.dumps(content, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def swatch(look: Look) -> dict[str, str]:
    """How to draw a policy's line in SVG."""
    dash = "" if look.dash == "-" else " ".join(f"{2 * length:g}" for length in look.dash[1])
    return {"color": look.color, "dash": dash}


def _has(found: Sequence[Variant], metric: str) -> bool:
    return any(variant.value(metric) is not None for variant in found)


def _distribution(
    found: Sequence[Variant], name: str, numbers: dict[str, int], rates: Sequence[float | None]
) -> dict[str, Any]:
    what = catalog.DISTRIBUTIONS[name]
    curves = [(variant, *_thinned(*ecdf(*variant.distribution(name)))) for variant in found]
    unit, factor = catalog.shown_in(what.unit, [float(x[-1]) for _, x, _ in curves if len(x)])
    return {
        "title": what.short,
        "axis": f"{what.short} ({unit})" if what.unit == "ms" else what.short,
        "unit": unit,
        "whose": what.whose,
        "slo": _limit(found, name, factor),
        "series": [
            {
                "policy": numbers[variant.label],
                "rate": rates.index(variant.rate_per_s),
                "x": [_short(value * factor) for value in x],
                "y": [_short(share) for share in y],
            }
            for variant, x, y in curves
        ],
    }


def _load(found: Sequence[Variant], metric: str, title: str, latency: str, numbers: dict[str, int]) -> dict[str, Any]:
    plain = {"request_goodput": "req/s", "output_throughput": "tok/s"}.get(metric, "ms")
    unit, factor = catalog.shown_in(plain, [variant.value(metric) for variant in found])
    series: dict[int, list[dict[str, float]]] = {}
    for variant in sorted(found, key=lambda v: v.rate_per_s or 0.0):
        value, low, high = variant.interval(metric)
        if value is None or variant.rate_per_s is None:
            continue
        low, high = (value if low is None else low), (value if high is None else high)
        point = {"value": _short(value * factor), "low": _short(low * factor), "high": _short(high * factor)}
        point |= {"rate": variant.rate_per_s, "tokens": _short(variant.value("output_throughput") or 0.0)}
        series.setdefault(numbers[variant.label], []).append(point)
    return {
        "title": title,
        "axis": f"{title} ({unit})" if latency else title,
        "unit": unit,
        "slo": _limit(found, latency, factor),
        "series": [{"policy": policy, "points": points} for policy, points in series.items()],
    }


def _limit(found: Sequence[Variant], latency: str, factor: float) -> float | None:
    """The SLO's limit that all share, in the unit shown."""
    limits = {(variant.first.scenario.get("slo") or {}).get(catalog.SLO_OF.get(latency, "")) for variant in found}
    limit = limits.pop() if len(limits) == 1 else None
    return None if limit is None else _short(limit * factor)


def _thinned(values: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(values) <= MOST_POINTS:
        return values, share
    wanted = np.concatenate([np.linspace(0.0, 0.98, MOST_POINTS - 40), np.linspace(0.98, 1.0, 40)])
    kept = np.unique(np.searchsorted(share, wanted).clip(0, len(values) - 1))
    return values[kept], share[kept]


def _short(value: float) -> float:
    return float(f"{value:.5g}")
