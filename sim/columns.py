"""Arrow arrays from numpy and strings, and back, by their buffers: pyarrow's own ways would import pandas.

That import takes longer than many a run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def numbers(values: np.ndarray, kind: pa.DataType, missing: np.ndarray | None = None) -> pa.Array:
    """An array of ints or floats; null where `missing` is true."""
    if len(values) == 0:
        return pa.nulls(0, kind)
    values = np.ascontiguousarray(values, dtype=_DTYPES[kind])
    valid = None
    if missing is not None and missing.any():
        valid = pa.py_buffer(np.packbits(~missing, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(values)])


def strings(values: Sequence[str | None]) -> pa.Array:
    """An array of strings; null where there is None."""
    if not values:
        return pa.nulls(0, pa.string())
    encoded = [b"" if value is None else value.encode() for value in values]
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([len(value) for value in encoded], out=offsets[1:])
    valid = None
    if None in values:
        valid = pa.py_buffer(np.packbits([value is not None for value in values], bitorder="little"))
    return pa.Array.from_buffers(
        pa.string(), len(values), [valid, pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    )


_DTYPES = {pa.int32(): np.int32, pa.int64(): np.int64, pa.float64(): np.float64}


def values_of(column: pa.Array | pa.ChunkedArray, missing: float | None = None) -> np.ndarray:
    """A column of ints, floats or booleans as numpy, without a copy where it is one piece without nulls.

    `missing` stands for null; by default NaN among floats, -1 among integers, False among booleans.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [_values(chunk, missing) for chunk in chunks]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, dtype=_DTYPES.get(column.type, np.bool_))


def booleans(values: np.ndarray) -> pa.Array:
    """An array of booleans."""
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(np.packbits(values, bitorder="little"))])


def _bits(buffer: pa.Buffer, offset: int, count: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(buffer, np.uint8), count=offset + count, bitorder="little")[offset:].view(bool)


def _values(chunk: pa.Array, missing: float | None) -> np.ndarray:
    valid, data = chunk.buffers()
    offset, count = chunk.offset, len(chunk)
    if not count:
        return np.empty(0, dtype=_DTYPES.get(chunk.type, np.bool_))
    if pa.types.is_boolean(chunk.type):
        found, absent = _bits(data, offset, count), 0.0
    else:
        dtype = np.dtype(_DTYPES[chunk.type])
        found = np.frombuffer(data, dtype, count, offset * dtype.itemsize)
        absent = np.nan if dtype.kind == "f" else -1.0
    if valid is not None and chunk.null_count:
        filler = np.array(absent if missing is None else missing).astype(found.dtype)
        found = np.where(_bits(valid, offset, count), found, filler)
    return found
