"""The metrics of each request class, for runs that mix several."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..columns import booleans
from .columns import equals
from .engines import summarise_steps
from .steady import STEADY
from .summary import Slo, summarise

OF_THE_RUN = (
    *("duration", "warmup_s", "end_s", "engines", "kv_blocks_total", "streamed", "note", "mser5_warmup_s"),
    *STEADY,
)


def summarise_classes(
    requests: pa.Table,
    spans: pa.Table,
    steps: pa.Table,
    labels: list[str],
    *,
    slo: Mapping[str, Slo],
    **settings: Any,
) -> dict[str, dict[str, Any]]:
    """What `summarise` says of the requests of each class alone, but for what is about the engines or the run.

    A class without an SLO of its own has that of `slo[""]`; settings are those of `summarise`.
    """
    engines = {*summarise_steps(steps.slice(0, 0), 0.0, 0.0, {}), *OF_THE_RUN}
    found = {}
    for label in labels:
        mine = requests.filter(booleans(equals(requests, "class", label)))
        own = spans.filter(pc.is_in(spans.column("request_id"), value_set=mine.column("request_id").combine_chunks()))
        limits = slo.get(label, slo.get("", {}))
        metrics = summarise(mine, own, steps, slo={"": limits}, **settings)
        found[label] = {name: value for name, value in metrics.items() if name not in engines}
    return found
