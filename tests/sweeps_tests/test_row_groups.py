"""Tables in groups of rows, of which a later one has more columns."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gsq.sweeps.schema import columns
from gsq.sweeps.schema.columns import Column, write_table
from gsq.sweeps.schema.row_groups import array


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


VALUES: list[tuple[Any, list[Any]]] = [
    (pa.string(), ["", "a", None, "grün", "a"]),
    (pa.string(), [None, None]),
    (pa.float64(), [1.5, None, float("nan"), float("inf"), 3]),
    (pa.int64(), [1, None, -(2**62), 0]),
    (pa.bool_(), [True, None, False] * 5),
    (pa.list_(pa.float64()), [[1.0, 2.0], None, [], [None, 0.5]]),
    (pa.string(), []),
]


@pytest.mark.parametrize(("kind", "values"), VALUES)
def test_arrays_are_those_of_pyarrow(kind: Any, values: list[Any]) -> None:
    found, wanted = array(values, kind), pa.array(values, kind)
    found.validate(full=True)
    assert found.type == wanted.type and repr(found.to_pylist()) == repr(wanted.to_pylist())
    assert found.null_count == wanted.null_count


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.int64(), ["many"]),
        (pa.string(), [3]),
        (pa.float64(), ["1"]),
        (pa.float64(), [2**53 + 1]),
        (pa.bool_(), [2]),
        (pa.list_(pa.float64()), [["a"]]),
    ],
)
def test_other_values_are_refused(kind: Any, values: list[Any]) -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        array(values, kind)


@pytest.mark.skipif(int(pa.__version__.split(".")[0]) < 20, reason="pyarrow 18 imports pandas itself")
def test_a_table_is_written_without_pandas(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from gsq.sweeps.schema.columns import write_table; "
        "write_table([{'sweep': 's', 'signature': 'a', 'step': 1, 'protocol': 'p', 'state': 'done', 'rfid': 1.5, "
        "'usage_per_group': [0.5]}], Path('t.parquet')); assert 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert pq.read_table(tmp_path / "t.parquet")["usage_per_group"].to_pylist() == [[0.5]]
