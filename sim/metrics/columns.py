"""Arrow columns as numpy arrays, without a copy wherever Arrow's memory allows it."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def numbers(table: pa.Table, name: str, missing: float | int | None = None) -> np.ndarray:
    """The column `name` as an array; `missing` stands for null (default: NaN among floats, -1 among integers)."""
    column = table.column(name)
    if column.null_count:
        if missing is None:
            missing = float("nan") if pa.types.is_floating(column.type) else -1
        column = pc.fill_null(column, pa.scalar(missing, column.type))
    if column.num_chunks == 1:
        return column.chunk(0).to_numpy()
    return column.to_numpy()


def equals(table: pa.Table, name: str, text: str) -> np.ndarray:
    """Where the string column `name` holds `text` (nulls: no)."""
    return pc.fill_null(pc.equal(table.column(name), text), False).to_numpy()
