"""Where tables go: to parquet files, in row groups of one size, written by a thread of their own, or into memory."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from .tables import GROUP, empty

# Growing integers are small as differences, repeated ones small in a dictionary; times are neither.
GROWING = ("step", "tick", "first_step", "first_tick", "context_tokens")


class Sink(Protocol):
    """Takes the tables of one kind of record, in order."""

    def write(self, table: pa.Table) -> None: ...

    def close(self) -> None:
        """All that was written is there."""


class MemorySink:
    """Keeps the rows."""

    def __init__(self, schema: pa.Schema) -> None:
        self._tables = [empty(schema)]

    def write(self, table: pa.Table) -> None:
        self._tables.append(table)

    def close(self) -> None: ...

    def table(self) -> pa.Table:
        return pa.concat_tables(self._tables)

    def kept(self) -> pa.Table:
        return self.table()


class ParquetSink:
    """Writes a file. Row groups have `GROUP` rows, but for the last, so that equal rows give equal bytes.

    The columns `keep` stay in memory too, until they are asked for: a summary needs them as soon as the run has ended.
    """

    def __init__(self, path: Path, schema: pa.Schema, keep: tuple[str, ...] = ()) -> None:
        self.path, self.schema = path, schema
        self._keep = [name for name in schema.names if name in keep]
        self._kept = [empty(schema).select(self._keep)]
        plain = [field.name for field in schema if not pa.types.is_floating(field.type) and field.name not in GROWING]
        encoding = {name: "DELTA_BINARY_PACKED" for name in GROWING if name in schema.names}
        encoding |= {field.name: "PLAIN" for field in schema if pa.types.is_floating(field.type)}
        self._writer = pq.ParquetWriter(
            path, schema, compression="snappy", use_dictionary=plain, column_encoding=encoding, write_statistics=False
        )
        self._waiting: list[pa.Table] = []
        self._rows = 0
        self._failed: BaseException | None = None
        self._queue: queue.Queue[pa.Table | None] = queue.Queue(maxsize=4)
        self._thread = threading.Thread(target=self._write, name=path.name, daemon=True)
        self._thread.start()

    def write(self, table: pa.Table) -> None:
        if self._keep:
            self._kept.append(table.select(self._keep))
        self._waiting.append(table)
        self._rows += table.num_rows
        if self._rows >= GROUP:
            whole = pa.concat_tables(self._waiting)
            full = self._rows - self._rows % GROUP
            for at in range(0, full, GROUP):
                self._queue.put(whole.slice(at, GROUP))
            self._waiting = [whole.slice(full)]
            self._rows -= full

    def close(self) -> None:
        if self._rows:
            self._queue.put(pa.concat_tables(self._waiting))
        self._waiting, self._rows = [], 0
        self._queue.put(None)
        self._thread.join()
        self._writer.close()
        if self._failed is not None:
            raise self._failed

    def table(self) -> pa.Table:
        return _read(self.path)

    def kept(self) -> pa.Table:
        kept, self._kept = self._kept, []
        return pa.concat_tables(kept)

    def _write(self) -> None:
        while (table := self._queue.get()) is not None:
            if self._failed is None:
                try:
                    self._writer.write_table(table)
                except BaseException as error:  # handed over by close()
                    self._failed = error


class PartedSink:
    """Rows of several engines, which grow side by side, one engine after the other in the end."""

    def __init__(self, path: Path, schema: pa.Schema, parts: int, keep: tuple[str, ...]) -> None:
        self._whole = (path, schema)
        self.parts = [ParquetSink(path.with_name(f"{path.stem}.{k}.part"), schema, keep) for k in range(parts)]

    def close(self) -> None:
        whole = ParquetSink(*self._whole)
        for part in self.parts:
            part.close()
            with pq.ParquetFile(part.path) as file:
                for group in range(file.num_row_groups):
                    whole.write(file.read_row_group(group))
            part.path.unlink()
        whole.close()

    def table(self) -> pa.Table:
        return _read(self._whole[0])

    def kept(self) -> pa.Table:
        return pa.concat_tables([part.kept() for part in self.parts])


class Sinks:
    """The three tables of one run, in `folder`, or in memory where there is none; of each, columns to be kept."""

    def __init__(
        self,
        schemas: dict[str, pa.Schema],
        engines: int,
        folder: Path | None,
        keep: Mapping[str, tuple[str, ...]],
    ) -> None:
        self._all: dict[str, Any] = {}
        self.steps: list[Any] = []
        for name, schema in schemas.items():
            if folder is None and name == "steps":
                self.steps = [MemorySink(schema) for _ in range(engines)]
            elif folder is None:
                self._all[name] = MemorySink(schema)
            elif name == "steps" and engines > 1:
                self._all[name] = parted = PartedSink(folder / f"{name}.parquet", schema, engines, keep[name])
                self.steps = parted.parts
            else:
                self._all[name] = ParquetSink(folder / f"{name}.parquet", schema, keep[name])
                if name == "steps":
                    self.steps = [self._all[name]]
        self.requests: Sink = self._all["requests"]
        self.spans: Sink = self._all["spans"]

    def close(self) -> None:
        for sink in self._all.values():
            sink.close()

    def table(self, name: str) -> pa.Table:
        """The rows of requests, spans or steps; once closed."""
        if name == "steps" and name not in self._all:
            return pa.concat_tables([sink.table() for sink in self.steps])
        table: pa.Table = self._all[name].table()
        return table

    def kept(self, name: str) -> pa.Table:
        """The kept columns of them, or more; to be asked for once."""
        if name == "steps" and name not in self._all:
            return self.table(name)
        table: pa.Table = self._all[name].kept()
        return table


def _read(path: Path) -> pa.Table:
    with pq.ParquetFile(path) as file:  # pyarrow's read_table would import pandas
        return file.read()
