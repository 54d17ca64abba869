"""Parquet files that are written by groups of rows, so that a large table never is in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


class RowGroups:
    """A Parquet file that is written by groups of rows; where a later one has more columns, it is written again."""

    def __init__(self, path: Path) -> None:
        self._path, self._earlier = path, path.with_name(f"{path.name}.earlier")
        self._writer: pq.ParquetWriter | None = None

    def write(self, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
        """Write one group; ``schema`` has the columns of all groups before."""
        import pyarrow.parquet as pq

        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, schema)
        elif not self._writer.schema.equals(schema):
            self._writer.close()
            self._path.replace(self._earlier)
            self._writer = pq.ParquetWriter(self._path, schema)
            with pq.ParquetFile(self._earlier) as earlier:
                for number in range(earlier.num_row_groups):
                    self._append([earlier.read_row_group(number)])
            self._earlier.unlink()
        self._append(map(_plain, tables))

    def _append(self, tables: Iterable[pa.Table]) -> None:
        import pyarrow as pa

        assert self._writer is not None
        schema = self._writer.schema
        # Decoded group by group: the whole table takes several times the memory.
        self._writer.write_table(
            pa.concat_tables([pa.Table.from_batches([], schema), *tables], promote_options="default").cast(schema)
        )

    def close(self) -> None:
        """Write the end of the file."""
        if self._writer is not None:
            self._writer.close()
        self._earlier.unlink(missing_ok=True)


def compact(table: pa.Table) -> pa.Table:
    """Texts, which rows of a sweep mostly share, once each."""
    import pyarrow as pa

    texts = [i for i, field in enumerate(table.schema) if field.type == pa.string()]
    for i in texts:
        table = table.set_column(i, table.schema.field(i).name, table.column(i).dictionary_encode())
    return table


def _plain(table: pa.Table) -> pa.Table:
    import pyarrow as pa

    for i, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(i, field.name, table.column(i).cast(pa.string()))
    return table


def array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """``pyarrow.array`` of values or None, which imports pandas, and with it 40 MB, unless the values are what ``kind``
    says: str, float (or int that it holds), int, bool, or lists of them. Raises ArrowInvalid or TypeError otherwise."""
    import numpy as np
    import pyarrow as pa

    types = {type(value) for value in values} - {NoneType}
    is_list = pa.types.is_list(kind)
    wanted: dict[Any, set[type]] = {
        pa.string(): {str},
        pa.float64(): {float, int},
        pa.int64(): {int},
        pa.bool_(): {bool},
    }
    if not types <= ({list} if is_list else wanted.get(kind, set())) or (
        int in types and any(type(value) is int and abs(value) >= 2**53 for value in values)
    ):
        return pa.array(values, kind)
    there = np.fromiter((value is not None for value in values), dtype=bool, count=len(values))
    buffers = [None if there.all() else pa.py_buffer(np.packbits(there, bitorder="little"))]
    if is_list or kind == pa.string():
        parts: list[Any] = [value or () if is_list else (value or "").encode() for value in values]
        offsets = np.zeros(len(parts) + 1, dtype=np.int32)
        np.cumsum([len(part) for part in parts], out=offsets[1:])
        buffers.append(pa.py_buffer(offsets))
        if is_list:
            child = array([one for part in parts for one in part], kind.value_type)
            return pa.Array.from_buffers(kind, len(values), buffers, children=[child])
        return pa.Array.from_buffers(kind, len(values), [*buffers, pa.py_buffer(b"".join(parts))])
    flat = np.array([value or 0 for value in values], dtype=kind.to_pandas_dtype())
    if kind == pa.bool_():
        flat = np.packbits(flat, bitorder="little")
    return pa.Array.from_buffers(kind, len(values), [*buffers, pa.py_buffer(flat)])
