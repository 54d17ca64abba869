"""Parquet files that are written by groups of rows, so that a large table never is in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

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
            pa.concat_tables([schema.empty_table(), *tables], promote_options="default").cast(schema)
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
