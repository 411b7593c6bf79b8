"""Seconds of single operators on one GPU under a calibration."""

from typing import TYPE_CHECKING

import numpy as np

from . import table
from .calibration import Calibration
from .forms import Count, Efficiency, Machine, Terms, greatest
from .operators import Operator

if TYPE_CHECKING:
    from ..gpus import GPU


PEAKS = Efficiency()


class Prices:
    """What operators cost. Counts may be numpy arrays; so are the seconds then.

    Measured kernels, where the calibration names a table of them, hold for the GPU of the calibration alone.
    """

    def __init__(self, gpu: "GPU", calibration: Calibration) -> None:
        self.calibration = calibration
        mine = calibration.tables if gpu.name == calibration.gpu else None
        self.measured = table.load(mine) if mine is not None else None
        memory, link = gpu.memory_gb_per_s * 1e9, gpu.link_gb_per_s * 1e9 if gpu.link_gb_per_s else None
        self._machines = {
            "bf16": Machine(gpu.bf16_tflops * 1e12, memory, link, gpu.sms),
            "fp8": Machine((gpu.fp8_tflops or gpu.bf16_tflops) * 1e12, memory, link, gpu.sms),
        }

    def terms(self, operator: Operator) -> Terms:
        """The parts of all its launches in a step."""
        form = self.calibration.operators.of(operator.kind, operator.narrow)
        parts = form.terms(operator, self._machines[operator.dtype])
        return Terms(*(operator.count * part for part in parts))

    def seconds(self, operator: Operator) -> Count:
        """Mean time of all its launches in a step."""
        form, machine = self.calibration.operators.of(operator.kind, operator.narrow), self._machines[operator.dtype]
        found = None if self.measured is None else self.measured.seconds(operator)
        if found is None:
            return operator.count * form.seconds(operator, machine)
        if isinstance(found, np.ndarray) and (lacks := np.isnan(found)).any():
            found = np.where(lacks, form.seconds(operator, machine), found)
        return operator.count * greatest(found, PEAKS.seconds(operator, machine))
