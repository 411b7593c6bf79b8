"""Measured kernels with their times, as a fit takes them: the operators are those of `features`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.cost import Operator
from sim.cost.forms import Machine
from sim.gpus import GPU

Floats = NDArray[np.float64]
Make = Callable[[pd.DataFrame], Operator]


@dataclass(frozen=True)
class Points:
    """Launches and how long they took."""

    frame: pd.DataFrame
    operator: Operator  # counts are arrays, one value a row
    seconds: Floats

    def __len__(self) -> int:
        return len(self.seconds)


def points(frame: pd.DataFrame, make: Make) -> Points:
    return Points(frame, make(frame), frame["latency_us"].to_numpy() * 1e-6)


def machine(gpu: GPU, dtype: str = "bf16") -> Machine:
    """What forms know of a GPU, as `sim.cost.Prices` sees it."""
    tflops = (gpu.fp8_tflops or gpu.bf16_tflops) if dtype == "fp8" else gpu.bf16_tflops
    link = gpu.link_gb_per_s * 1e9 if gpu.link_gb_per_s else None
    return Machine(tflops * 1e12, gpu.memory_gb_per_s * 1e9, link, gpu.sms)
