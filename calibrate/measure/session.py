"""Measures points one by one: makes what a point needs, checks it against fp64, times it."""

from __future__ import annotations

import gc

import torch

from sim.errors import ScenarioError

from . import device as devices
from .grid import Point, Shape
from .kernels import TOLERANCE, work
from .ops import Data
from .stack import Stack, Step, step_error
from .timing import CPU_EFFORT, CUDA_EFFORT, QUICK_EFFORT, CpuTimer, CudaTimer, Timer


class Session:
    """What lasts from point to point on one device: the timer, and a stack for each type of weights."""

    def __init__(self, device: str, threads: int, shape: Shape, quick: bool) -> None:
        self._device, self._shape = device, shape
        self.timer: Timer
        if device == "cuda":
            self.timer = CudaTimer(QUICK_EFFORT if quick else CUDA_EFFORT)
            gc.freeze()  # else collecting after each point would look through all that was imported
        else:
            self.timer = CpuTimer(QUICK_EFFORT if quick else CPU_EFFORT, threads)
        self.turns = 1 if device == "cuda" else 2 if quick else 3
        self.skipped: dict[str, int] = {}  # why points were left out: how many
        self._data: dict[str, Data] = {}
        self._stacks: dict[str, Stack] = {}
        self._sound: set[tuple[str, str]] = set()  # (dtype, phase) whose small step was checked

    def measure(self, point: Point, first: bool = True) -> tuple[str, float] | None:
        """The kernel's name and its time in us; None if it cannot run here. ScenarioError if a result is wrong.

        `first`: the point's first turn, in which its result is checked.
        """
        try:
            return self._step(point, first) if point.kind == "steps" else self._kernel(point, first)
        except torch.cuda.OutOfMemoryError:
            self._skip("they do not fit into the memory")
        except RuntimeError as error:  # some kernel that this version lacks, for these lengths or types
            self._skip(f"PyTorch cannot run them: {str(error).splitlines()[0]}")
        finally:
            if self._device == "cuda":  # caches of gigabytes, and graphs with memory of their own
                gc.collect()
                torch.cuda.empty_cache()
        return None

    def _skip(self, why: str) -> None:
        self.skipped[why] = self.skipped.get(why, 0) + 1

    def _kernel(self, point: Point, first: bool) -> tuple[str, float]:
        dtype = str(point.values.get("dtype") or point.values["attn_dtype"])
        made = work(point, self._of(dtype), self._shape)
        if first:
            _accept(str(point), made.error(), TOLERANCE[dtype])
        seconds, clean = self.timer.median_s(made.calls)
        return made.kernel if clean else f"{made.kernel}_eager", seconds * 1e6

    def _step(self, point: Point, first: bool) -> tuple[str, float]:
        dtype, phase = point.values["dtype"], point.values["phase"]
        if (dtype, phase) not in self._sound:
            error = step_error(self._shape, Data(self._device, dtype, 1), phase)
            # errors of the layers add up
            _accept(f"a small {phase} step in {dtype}", error, 2 * TOLERANCE[dtype])
            self._sound.add((dtype, phase))
        if dtype not in self._stacks:
            self._stacks[dtype] = Stack(self._shape, self._of(dtype))
        step = Step(self._stacks[dtype], point.values)
        if first and not bool(step().isfinite().all()):
            raise ScenarioError(f"{point}: its logits are not all finite")
        return "", self.timer.median_s([step])[0] * 1e6

    def _of(self, dtype: str) -> Data:
        if dtype not in self._data:
            self._data[dtype] = Data(self._device, dtype, devices.cache_bytes(self._device, self._shape))
        return self._data[dtype]


def _accept(what: str, error: float, most: float) -> None:
    if not error <= most:
        raise ScenarioError(f"{what}: differs from fp64 by {error:.2g} of its size, more than {most:g}: not measured")
