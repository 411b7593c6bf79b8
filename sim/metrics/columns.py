"""Columns of a table as numpy arrays."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..columns import strings, values_of


def numbers(table: pa.Table, name: str, missing: float | None = None) -> np.ndarray:
    """The column `name` as an array; `missing` stands for null (default: NaN among floats, -1 among integers)."""
    return values_of(table.column(name), missing)


def equals(table: pa.Table, name: str, text: str) -> np.ndarray:
    """Where the string column `name` holds `text` (nulls: no)."""
    return values_of(pc.is_in(table.column(name), value_set=strings([text])))
