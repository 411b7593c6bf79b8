"""Arrivals and lengths from a trace file."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..errors import Complaint
from ..registry import register
from ..request import Request
from . import tracefile
from .source import BLOCK, Fixed, Setup, Source

if TYPE_CHECKING:
    from ..scenario import Workload

Resolve = Callable[[str], FilePath]


@register("arrivals", "trace")
@dataclass
class Replay:
    """A recorded trace: arrivals and lengths from a CSV file."""

    file: Annotated[str, Field(min_length=1, max_length=4000, description="path, relative to the scenario's file")]
    rate_scale: Annotated[
        float, Field(gt=0, le=1e9, description="arrival times are divided by it: 2 is twice the load")
    ] = 1.0
    window_s: Annotated[
        list[Annotated[float, Field(ge=0, le=1e9)]] | None,
        Field(
            min_length=2,
            max_length=2,
            description="[from, to) of the trace's own time, s; from becomes 0; none: the whole trace",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.window_s is not None and not self.window_s[0] < self.window_s[1]:
            raise Complaint(f"must be [from, to] with from < to, got {self.window_s}", "window_s")

    def verify(self, resolve: Resolve) -> None:
        """Reads the whole file: what is wrong in it is known before anything is simulated."""
        try:
            trace = tracefile.read(resolve(self.file), self.file)
        except Complaint as complaint:
            raise complaint.under("file") from None
        if not self._chosen(trace).size:
            last = float(trace.arrival_s[-1])
            raise Complaint(
                f"holds no request, the trace's are from {float(trace.arrival_s[0]):g} to {last:g} s", "window_s"
            )

    def scale_to(self, rate_per_s: float, workload: "Workload", resolve: Resolve) -> float:
        """The rate_scale for that mean rate: of the requests that come, by the time to the last of them."""
        times = self._times(tracefile.read(resolve(self.file), self.file))[: workload.num_requests]
        if not times.size or times[-1] <= 0:
            raise Complaint("all its requests come at once, so they have no rate", "file")
        return rate_per_s * float(times[-1] / times.size)

    def source(self, setup: Setup) -> Source:
        trace = tracefile.read(setup.resolve(self.file), self.file)
        chosen = self._chosen(trace)
        times = self._times(trace) / self.rate_scale
        if setup.duration_s is not None:
            times = times[: int(np.searchsorted(times, setup.duration_s))]
        times = times[: setup.num_requests]
        chosen = chosen[: times.size]
        requests = self._requests(setup, times, trace.prompt_tokens[chosen], trace.output_tokens[chosen])
        return Fixed(requests, int(times.size), self._warnings(setup, trace, times))

    def _chosen(self, trace: tracefile.Trace) -> NDArray[Any]:
        if self.window_s is None:
            return np.arange(trace.arrival_s.size)
        first, last = np.searchsorted(trace.arrival_s, self.window_s)
        return np.arange(first, last)

    def _times(self, trace: tracefile.Trace) -> NDArray[Any]:
        times: NDArray[Any] = trace.arrival_s[self._chosen(trace)]
        return times - self.window_s[0] if self.window_s else times

    def _requests(
        self, setup: Setup, times: NDArray[Any], prompts: NDArray[Any], outputs: NDArray[Any]
    ) -> Iterator[Request]:
        facts = iter(setup.labelled(prompts.tolist(), outputs.tolist()))
        index, by_length = 0, setup.ignore_eos
        for first in range(0, times.size, BLOCK):
            for arrival_s in times[first : first + BLOCK].tolist():
                prompt, output, limit, priority, prefix, label = next(facts)
                yield Request(index, f"r{index}", arrival_s, prompt, output, limit, priority, prefix, label, by_length)
                index += 1

    def _warnings(self, setup: Setup, trace: tracefile.Trace, times: NDArray[Any]) -> list[str]:
        warnings = []
        if trace.dropped:
            warnings.append(f"{self.file}: {trace.dropped} rows without output tokens dropped, as failed requests")
        wanted, there = setup.num_requests, self._chosen(trace).size
        if wanted is not None and wanted > there:
            warnings.append(f"{self.file}: has {there} requests, fewer than num_requests {wanted}")
        elif times.size < there and times.size and times[-1] > 0:  # a head may be far quieter or busier than the whole
            whole = self._times(trace)[-1] / self.rate_scale
            mean = f", {there / whole:.4g} over the whole trace" if whole > 0 else ""
            warnings.append(
                f"{self.file}: first {times.size} of {there} requests, {times.size / times[-1]:.4g} requests/s{mean}"
            )
        if not trace.absolute and trace.arrival_s[0] > 1e8:
            warnings.append(
                f"{self.file}: arrival_s begins at {trace.arrival_s[0]:.0f} s; it is used as it stands, is it a date?"
            )
        return warnings
