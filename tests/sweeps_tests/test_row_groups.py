"""Tables in groups of rows, of which a later one has more columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gsq.sweeps.schema import columns
from gsq.sweeps.schema.columns import Column, write_table


def test_columns_that_appear_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "CHUNK", 3)
    extra: dict[str, Column] = {}

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(20):
            values = {"sweep": "s", "signature": f"{number:02}", "step": 1, "protocol": "p", "state": "done"}
            for at in (9, 16):
                if number >= at:
                    extra.setdefault(f"own_{at}", Column(f"own_{at}", "float64", "", "metric", "late"))
                    values[f"own_{at}"] = float(number)
            yield values

    files = {}
    for name, group in (("parts", 2), ("whole", 20)):
        monkeypatch.setattr(columns, "GROUP", group)
        extra.clear()
        write_table(rows(), tmp_path / f"{name}.parquet", extra)
        files[name] = pq.ParquetFile(tmp_path / f"{name}.parquet")
    assert (files["parts"].num_row_groups, files["whole"].num_row_groups) == (4, 1)
    assert files["parts"].read().equals(files["whole"].read(), check_metadata=True)
    assert files["parts"].read(["own_9"])[0].to_pylist() == [None] * 9 + [float(number) for number in range(9, 20)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.parquet", "whole.parquet"]


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "CHUNK", 1)
    monkeypatch.setattr(columns, "GROUP", 1)
    twice = {"sweep": "s", "signature": "a", "step": 1, "protocol": "p", "state": "done"}
    with pytest.raises(ValueError, match="two rows"):
        write_table([twice, twice], tmp_path / "t.parquet")
    assert not any(tmp_path.iterdir())
    write_table([], tmp_path / "none.parquet")
    assert pq.read_table(tmp_path / "none.parquet").num_rows == 0
