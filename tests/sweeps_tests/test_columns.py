"""The results table on disk."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from gsq.cli.main import app
from gsq.config.overrides import SHORT_NAMES
from gsq.errors import UserError
from gsq.sweeps.schema import columns
from gsq.sweeps.schema.columns import (
    COLUMNS,
    KEY,
    SCHEMA_VERSION,
    SCIENCE_COLUMNS,
    SchemaError,
    describe,
    read_table,
    write_table,
)

SAMPLES: dict[str, Any] = {
    "string": "text",
    "int64": 2**52 + 1,
    "float64": 0.1,
    "bool": True,
    "list<float64>": [0.1, 2.0],
}
FULL = {c.name: SAMPLES[c.type] for c in COLUMNS}


def row(signature: str, **more: Any) -> dict[str, Any]:
    return {"sweep": "s", "signature": signature, **more}


def test_the_readme_names_every_column() -> None:
    text = (Path(__file__).parents[2] / "sweeps/README.md").read_text()
    table = text.partition("| | columns of the table")[2].partition("\n\n")[0]
    named = [name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line)]
    assert sorted(named) == sorted(c.name for c in COLUMNS)


def test_every_column_comes_back_as_it_went(folder: Path) -> None:
    path = folder / "deep" / "table.parquet"
    write_table([FULL, row("b", state="planned")], path)
    frame = read_table(path)
    assert list(frame.columns) == [c.name for c in COLUMNS]
    full, missing = frame.iloc[0], frame.iloc[1]
    for column in COLUMNS:
        value = full[column.name]
        assert (list(value) if column.type.startswith("list") else value) == SAMPLES[column.type], column.name
    given = {"sweep", "signature", "state"}
    assert set(frame.columns[missing.notna()]) == given
    assert str(frame["step"].dtype) == str(frame["tokens"].dtype) == "Int64"


def test_pandas_polars_and_duckdb_read_the_same_types_and_values(folder: Path) -> None:
    import duckdb
    import polars

    path = folder / "t.parquet"
    write_table([{**FULL, "step": 2**53 + 1}, row("b")], path)
    types = {
        "string": (str(pd.Series(["text"]).dtype), polars.String, "VARCHAR"),
        "int64": ("Int64", polars.Int64, "BIGINT"),
        "float64": ("float64", polars.Float64, "DOUBLE"),
        "bool": ("boolean", polars.Boolean, "BOOLEAN"),
        "list<float64>": ("object", polars.List(polars.Float64), "DOUBLE[]"),
    }
    frame, lazy = pd.read_parquet(path), polars.read_parquet(path)
    relation = duckdb.read_parquet(str(path))
    assert list(frame.columns) == lazy.columns == relation.columns == [c.name for c in COLUMNS]
    for i, column in enumerate(COLUMNS):
        pandas_type, polars_type, duckdb_type = types[column.type]
        assert str(frame[column.name].dtype) == str(read_table(path)[column.name].dtype) == pandas_type, column.name
        assert lazy.schema[column.name] == polars_type and str(relation.types[i]) == duckdb_type, column.name
    rows = relation.fetchall()
    assert rows == lazy.rows()
    assert rows[0] == tuple({**FULL, "step": 2**53 + 1}.values()) and frame["step"][0] == 2**53 + 1
    assert list(frame.columns[frame.loc[1].notna()]) == [
        name for name, value in zip(relation.columns, rows[1], strict=True) if value is not None
    ]
    assert str(pd.read_parquet(path, columns=["step", "rfid"])["step"].dtype) == "Int64"


def test_types_units_and_descriptions_are_in_the_file(folder: Path) -> None:
    write_table([row("a")], folder / "t.parquet")
    schema = pq.read_schema(folder / "t.parquet")
    assert schema.metadata[b"gsq_schema_version"] == str(SCHEMA_VERSION).encode()
    for column in COLUMNS:
        field = schema.field(column.name)
        assert field.metadata[b"unit"] == column.unit.encode()
        assert field.metadata[b"description"] == column.description.encode() and column.description
    assert schema.field("psnr_db").metadata[b"unit"] == b"dB" and schema.field("psnr_db").type == pa.float64()
    assert schema.field("device_seconds").metadata[b"unit"] == b"s"
    assert schema.field("usage_per_group").type == pa.list_(pa.float64())


@pytest.mark.parametrize("version", ["0", "1", "10", None])
def test_another_schema_version_is_refused_with_what_to_do(folder: Path, version: str | None) -> None:
    path = folder / "old.parquet"
    write_table([row("a")], path)
    metadata = {} if version is None else {"gsq_schema_version": version}
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    with pytest.raises(SchemaError) as caught:
        read_table(path)
    for words in (str(path), f"version {version or 'none'}", f"reads version {SCHEMA_VERSION}", "gsq gather"):
        assert words in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"sweep,signature\n", b"PAR1 and no more PAR1"])
def test_a_file_that_is_no_parquet_is_refused(folder: Path, content: bytes) -> None:
    (folder / "t.parquet").write_bytes(content)
    with pytest.raises(SchemaError, match=r"t\.parquet: not a readable Parquet file"):
        read_table(folder / "t.parquet")


def test_a_file_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(SchemaError, match=r"none\.parquet"):
        read_table(folder / "none.parquet")


def test_two_rows_of_one_key_are_refused(folder: Path) -> None:
    rows = [row("a", step=1, protocol="p"), row("a", step=2, protocol="p"), row("a", step=1, protocol="q"), row("a")]
    write_table(rows, folder / "t.parquet")
    assert len(read_table(folder / "t.parquet")) == 4
    with pytest.raises(ValueError, match=r"'signature': 'a', 'step': 2, 'protocol': 'p'"):
        write_table([*rows, row("a", step=2, protocol="p", rfid=1.0)], folder / "t.parquet")
    with pytest.raises(ValueError, match="two rows"):
        write_table([row("b"), row("b")], folder / "t.parquet")


def test_a_column_that_is_not_in_the_schema_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="rfdi"):
        write_table([row("a", rfdi=1.0)], folder / "t.parquet")
    assert list(folder.glob("*t.parquet*")) == []


def test_a_write_that_fails_leaves_the_old_table_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "t.parquet"
    write_table([row("a")], path)
    before = path.read_bytes()
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        write_table([row("b", step="many")], path)

    def full_disk(*_: Any, **__: Any) -> None:
        # The file has been begun.
        assert len(list(folder.glob(".t.parquet.*.partial"))) == 1
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_table([row("b")], path)
    assert path.read_bytes() == before
    assert [p.name for p in folder.iterdir()] == ["t.parquet"]


def test_science_columns_are_what_must_repeat_and_no_more() -> None:
    roles = {c.name: c.role for c in COLUMNS}
    science = set(SCIENCE_COLUMNS)
    assert len(science) == len(SCIENCE_COLUMNS)
    assert {name for name, role in roles.items() if role in ("axis", "derived", "metric", "protocol")} <= science
    assert {"signature", "step", "images_seen"} <= science
    assert not science & {name for name, role in roles.items() if role in ("provenance", "state")}
    assert science & {name for name, role in roles.items() if role == "cost"} == {"images_seen"}
    assert {"rfid", "psnr_db", "ssim", "usage", "perplexity", "bits_per_pixel", "effective_bits", "protocol"} <= science
    assert set(SHORT_NAMES) <= science


def test_columns_are_named_once_and_hold_the_key() -> None:
    names = [c.name for c in COLUMNS]
    assert len(set(names)) == len(names) and set(KEY) <= set(names)


def test_the_schema_is_described_for_people_and_scripts(folder: Path) -> None:
    shown = CliRunner().invoke(app, ["results", "describe"], env={"COLUMNS": "250"})
    assert shown.exit_code == 0
    lines = {line.split()[0]: " ".join(line.split()) for line in shown.stdout.splitlines()}
    for column in COLUMNS:
        assert lines[column.name] == " ".join(f"{column.name} {column.type} {column.unit} {column.description}".split())
    found = json.loads(CliRunner().invoke(app, ["results", "describe", "--json"]).stdout)
    assert found["version"] == SCHEMA_VERSION and [c["name"] for c in found["columns"]] == [c.name for c in COLUMNS]


def test_a_file_is_described_by_what_it_says_of_itself(folder: Path) -> None:
    path = folder / "t.parquet"
    write_table([row("a")], path)
    assert describe(path) == COLUMNS
    pq.write_table(pq.read_table(path).select(["rfid", "usage_per_group"]), path)
    found = json.loads(CliRunner().invoke(app, ["results", "describe", str(path), "--json"]).stdout)["columns"]
    assert [(c["name"], c["type"]) for c in found] == [("rfid", "float64"), ("usage_per_group", "list<float64>")]
    pq.write_table(pa.table({"x": [1]}), folder / "other.parquet")
    for name, words in (("other.parquet", "'x' has no description"), ("none.parquet", "not a readable Parquet file")):
        refused = CliRunner().invoke(app, ["results", "describe", str(folder / name)])
        assert isinstance(refused.exception, UserError) and words in str(refused.exception)


def test_large_tables_are_written_in_parts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "CHUNK", 3)
    monkeypatch.setattr(columns, "GROUP", 2)
    rows = [row(f"{i}", state="failed" if i % 2 else "done", message=None if i % 3 else f"at {i}") for i in range(20)]
    write_table(rows, folder / "parts.parquet")
    monkeypatch.undo()
    write_table(rows, folder / "whole.parquet")
    parts, whole = pq.ParquetFile(folder / "parts.parquet"), pq.ParquetFile(folder / "whole.parquet")
    assert (parts.num_row_groups, whole.num_row_groups) == (4, 1)
    assert parts.schema_arrow.equals(whole.schema_arrow, check_metadata=True)
    assert parts.read().equals(whole.read()) and parts.read().num_rows == 20
