"""Measured kernels, interpolated: an alternative to a calibration's forms for whoever has the measurements.

A file that `python -m calibrate tables` writes (NumPy's npz), named under `tables` in a calibration. It holds, per
kind, `<kind>_shapes` (one row a shape), `<kind>_starts` (where the points of each begin, and the end), `<kind>_points`
and `<kind>_seconds`:

- gemm: shapes k, n, narrow; points m. Straight in the logarithms of m and time; beyond the last m at its FLOP/s.
- attention_decode: shapes heads, kv_heads, head_dim, narrow; points sequences, tokens of each. Straight in both, since
  such attention is linear in the tokens that it reads; beyond the grid by the bandwidth of the largest points (the last
  slope can exceed the memory's).
- attention_prefill: likewise, prompts and tokens of each, nothing before them. Straight in the logarithms, a floor
  apart; beyond the grid as the square of the tokens.

`narrow` as in `Operator`. Whatever the file lacks is left to the forms: other shapes, prompts of unlike lengths or over
a past, experts, element-wise passes, all-reduces. Below the least size measured, time is constant.
"""

from bisect import bisect_left, bisect_right
from functools import lru_cache
from math import exp, log
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..errors import ScenarioError
from .forms import ROWS, Count

if TYPE_CHECKING:
    from .operators import Operator

SCHEMA = 1
COLUMNS = {"gemm": (3, 1), "attention_decode": (4, 2), "attention_prefill": (4, 2)}  # of shapes, of points
Seconds = NDArray[np.float64]
Shape = tuple[int, ...]


class Curve(NamedTuple):
    """Times of one shape of matrix product, by m."""

    logs: Seconds  # of m, ascending
    log_seconds: Seconds

    def __call__(self, m: Count) -> Seconds:
        x = np.log(np.maximum(m, 1.0))
        return np.asarray(np.exp(np.interp(x, self.logs, self.log_seconds) + np.maximum(x - self.logs[-1], 0.0)))


class Surface(NamedTuple):
    """Times of one shape of attention: by sequences, then by tokens of each."""

    batches: Seconds  # ascending
    tokens: list[Seconds]  # of each batch, ascending
    seconds: list[Seconds]
    tokens_per_s: float  # read by the largest points
    rises: list[tuple[list[float], list[float], float]]
    """Of each batch, the same for single prompts: logarithms of tokens; of what its times are above a floor; the floor,
    nine tenths of the least time."""

    def decode(self, n: float, context: Seconds) -> Seconds:
        """n sequences that read `context` tokens in all."""
        each = context / n
        last = float(self.batches[-1])
        if n > last:
            return self._row(len(self.batches) - 1, each) * (n / last)
        above = int(np.searchsorted(self.batches, n))
        found = self._row(above, each)
        if above and self.batches[above] != n:
            below = self.batches[above - 1]
            share = (n - below) / (self.batches[above] - below)
            found = share * found + (1.0 - share) * self._row(above - 1, each)
        return found

    def prefill(self, n: float, new: float) -> float:
        """n prompts of `new` tokens."""
        last = float(self.batches[-1])
        if n > last:
            return self._prompt(len(self.batches) - 1, new) * (n / last)
        above = bisect_left(self.batches, n)
        found, more = self._prompt(above, new), float(self.batches[above])
        if above and more != n:
            fewer = float(self.batches[above - 1])
            share = log(n / fewer) / log(more / fewer)
            found = found**share * self._prompt(above - 1, new) ** (1.0 - share)
        return found

    def _row(self, i: int, each: Seconds) -> Seconds:
        tokens = self.tokens[i]
        more = np.maximum(each - tokens[-1], 0.0) * (self.batches[i] / self.tokens_per_s)
        return np.asarray(np.interp(each, tokens, self.seconds[i]) + more)

    def _prompt(self, i: int, new: float) -> float:
        logs, above, floor = self.rises[i]
        x, last = log(new), len(logs) - 1
        if x >= logs[last]:
            return (exp(above[last]) + floor) * exp(2.0 * (x - logs[last]))
        if x <= logs[0]:
            return exp(above[0]) + floor
        j = bisect_right(logs, x)
        share = (x - logs[j - 1]) / (logs[j] - logs[j - 1])
        return exp(share * above[j] + (1.0 - share) * above[j - 1]) + floor


class Kernels:
    """The contents of a file. Counts may be numpy arrays; what is not known is NaN, or None where nothing is."""

    def __init__(self, tables: dict[str, tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Seconds]]):
        self._gemms: dict[Shape, Curve] = {}
        self._decodes: dict[Shape, Surface] = {}
        self._prefills: dict[tuple[int, bool], list[tuple[Shape, Surface]]] = {}  # by heads and narrow
        for kind, (shapes, starts, points, seconds) in tables.items():
            for row, start, end in zip(shapes.tolist(), starts[:-1], starts[1:], strict=True):
                shape, at, times = tuple(row), points[start:end], seconds[start:end]
                if kind == "gemm":
                    order = np.argsort(at[:, 0], kind="stable")
                    self._gemms[shape] = Curve(np.log(at[order, 0]), np.log(times[order]))
                elif kind == "attention_decode":
                    self._decodes[shape] = _surface(at, times)
                else:
                    self._prefills.setdefault((shape[0], bool(shape[3])), []).append((shape, _surface(at, times)))

    def seconds(self, operator: "Operator") -> Count | None:
        """One launch."""
        if operator.kind in ("gemm", "logits"):
            return self._gemm(operator)
        if operator.kind == "attention_decode":
            return self._decode(operator)
        if operator.kind == "attention_prefill":
            return self._prefill(operator)
        return None

    def _gemm(self, operator: "Operator") -> Count | None:
        m, k, n = operator.dims
        narrow = int(operator.narrow)
        if not isinstance(k, np.ndarray) and not isinstance(n, np.ndarray):
            curve = self._gemms.get((k, n, narrow))
            if curve is None:
                return None
            found = curve(m)
            return found if isinstance(m, np.ndarray) else float(found)
        m, k, n = np.broadcast_arrays(m, k, n)
        result = np.full(m.shape, np.nan)
        for shape, rows in _groups(k, n):
            if (curve := self._gemms.get((*shape, narrow))) is not None:
                result[rows] = curve(m[rows])
        return result

    def _decode(self, operator: "Operator") -> Count | None:
        """The widths of heads follow from the counts: 4 FLOPs a query number and token; keys and values of each."""
        n, context, kv_heads = operator.dims
        width = 1 if operator.narrow else 2
        with np.errstate(divide="ignore", invalid="ignore"):
            queries = np.divide(operator.flops, 4.0 * context)
            keys = (operator.bytes - 4.0 * n * queries) / (2.0 * width * context)
            size = keys / kv_heads
            shape = (queries / size, kv_heads, size)
        if not isinstance(n, np.ndarray) and not isinstance(kv_heads, np.ndarray):  # one shape
            each, _, wide = (float(np.ravel(value)[-1]) for value in shape)
            if not each >= 1 or not wide >= 1:  # NaN: no tokens to read
                return None
            surface = self._decodes.get((round(each), int(kv_heads), round(wide), int(operator.narrow)))
            if surface is None:
                return None
            seconds = surface.decode(n, np.asarray(context, dtype=np.float64))
            return seconds if isinstance(context, np.ndarray) else float(seconds)
        heads, kv, dim, batches, contexts = np.broadcast_arrays(*shape, n, context)
        result = np.full(contexts.shape, np.nan)
        for group, rows in _groups(np.rint(heads), kv, np.rint(dim), batches):
            *key, batch = group
            if (surface := self._decodes.get((*key, int(operator.narrow)))) is not None:
                result[rows] = surface.decode(batch, np.asarray(contexts[rows], dtype=np.float64))
        return result

    def _prefill(self, operator: "Operator") -> Count | None:
        blocks, in_blocks, heads = operator.dims
        if not isinstance(operator.flops, np.ndarray):
            return self._prompts(operator.flops, operator.bytes, blocks, in_blocks, heads, operator.narrow)
        rows = np.stack(np.broadcast_arrays(operator.flops, operator.bytes, blocks, in_blocks, heads), axis=1)
        found = [self._prompts(a, b, c, d, e, operator.narrow) for a, b, c, d, e in rows.tolist()]
        return np.array([np.nan if value is None else value for value in found])

    def _prompts(self, flops: int, moved: int, blocks: int, in_blocks: int, heads: int, narrow: bool) -> float | None:
        """Of like prompts with nothing before them: found back from their counts, which must all agree."""
        for shape, surface in self._prefills.get((heads, narrow), ()):
            _, kv_heads, size, _ = shape
            queries, keys = heads * size, kv_heads * size * (1 if narrow else 2)
            rows, rest = divmod(moved, 4 * queries + 2 * keys)
            if rest or not rows:
                continue
            new = flops // (2 * queries * rows) - 1
            if new < 1 or rows % new:
                continue
            n, whole = rows // new, -(-new // ROWS)
            square = 2 * ROWS * ROWS * whole * (whole + 1) * queries
            if (flops, blocks, in_blocks) == (2 * rows * (new + 1) * queries, n * whole, n * square):
                return surface.prefill(n, new)
        return None


def load(path: Path | str) -> Kernels:
    """The tables in a file, read once. ScenarioError if it is none."""
    try:
        return _load(str(path), Path(path).stat().st_mtime_ns)
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror or 'cannot be read'}") from None
    except (BadZipFile, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ScenarioError(f"{path}: not a file of `python -m calibrate tables`: {what}") from None


@lru_cache(maxsize=8)
def _load(path: str, _: int) -> Kernels:
    with np.load(path, allow_pickle=False) as file:
        if int(file["schema"]) != SCHEMA:
            raise ValueError(f"schema: must be {SCHEMA}")
        return Kernels({kind: _checked(file, kind) for kind in COLUMNS if f"{kind}_shapes" in file})


def _checked(
    file: "np.lib.npyio.NpzFile", kind: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Seconds]:
    shapes, starts, points, seconds = (file[f"{kind}_{part}"] for part in ("shapes", "starts", "points", "seconds"))
    wide, deep = COLUMNS[kind]
    if shapes.ndim != 2 or shapes.shape[1] != wide or points.shape != (len(seconds), deep):
        raise ValueError(f"{kind}: arrays of other sizes than they must have")
    if len(starts) != len(shapes) + 1 or starts[0] != 0 or starts[-1] != len(seconds) or np.any(np.diff(starts) < 1):
        raise ValueError(f"{kind}_starts: does not divide the points")
    if not np.all((seconds > 0) & (seconds < np.inf)) or not np.all(points >= 1):
        raise ValueError(f"{kind}: times and sizes must be above 0")
    return shapes.astype(np.int64), starts.astype(np.int64), points.astype(np.int64), seconds.astype(np.float64)


def _surface(points: NDArray[np.int64], seconds: Seconds) -> Surface:
    order = np.lexsort((points[:, 1], points[:, 0]))
    of_batch, of_tokens = points[order].T.astype(np.float64)
    seconds = seconds[order]
    batches, starts = np.unique(of_batch, return_index=True)
    tokens, times = np.split(of_tokens, starts[1:]), np.split(seconds, starts[1:])
    read = of_batch * of_tokens
    largest = read >= read.max() / 2
    floors = [0.9 * float(each.min()) for each in times]
    rises = [
        (np.log(at).tolist(), np.log(each - floor).tolist(), floor)
        for at, each, floor in zip(tokens, times, floors, strict=True)
    ]
    return Surface(batches, tokens, times, float(np.median(read[largest] / seconds[largest])), rises)


def _groups(*columns: NDArray[np.float64]) -> list[tuple[Shape, NDArray[np.int64]]]:
    """(values, rows) of each combination that there is."""
    found, place = np.unique(np.stack([np.ravel(column) for column in columns], axis=1), axis=0, return_inverse=True)
    order = np.argsort(place.ravel(), kind="stable")
    ends = np.cumsum(np.bincount(place.ravel()))
    rows = np.split(order, ends[:-1])
    return [(tuple(int(value) for value in row), mine) for row, mine in zip(found.tolist(), rows, strict=True)]
