"""Tables that other tools wrote: read as they were meant, or refused by file and line."""

from __future__ import annotations

import bz2
import datetime
import gzip
import lzma
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gsq.analysis import AnalysisError, fit, load_table
from gsq.analysis.tables.reading import plain_columns
from gsq.analysis.tables.table import numbers

ROWS = [(n, 1.7 + 400 / n**0.34) for n in (1e6, 3e6, 1e7, 3e7, 1e8, 3e8, 1e9, 3e9)]


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt"])
def test_an_empty_cell_moves_no_value(tmp_path: Path, separator: str, suffix: str) -> None:
    lines = [separator.join(("N", "loss", "D"))]
    for i, (n, loss) in enumerate(ROWS):
        lines.append(separator.join(("" if i in (2, 5) else f"{n:.0f}", f"{loss:.6f}", "" if i == 3 else "1000")))
    frame = load_table(written(tmp_path, f"t{suffix}", "\n".join(lines) + "\n"))
    assert frame["N"].isna().tolist() == [i in (2, 5) for i in range(8)]
    assert frame["D"].dropna().tolist() == [1000] * 7
    found = fit(frame, "loss = E + A / N^a", bootstrap=0)
    assert found.n_rows == 6 and found.parameters["a"] == pytest.approx(0.34, abs=0.01)
    assert "2 without N" in found.excluded


@pytest.mark.parametrize(
    ("name", "text", "columns"),
    [
        ("a.csv", "\ufeffN,loss\n1,5.5\n2,4\n", {"N": [1, 2], "loss": [5.5, 4.0]}),
        ("a.csv", "N, loss\r\n1, 5.5\r\n2, 4\r\n", {"N": [1, 2], "loss": [5.5, 4.0]}),
        ("a.csv", "# by x\n#\nN,loss\n1,5.5\n# half way\n2,4\n", {"N": [1, 2], "loss": [5.5, 4.0]}),
        ("a.csv", "sep=;\nN;loss\n1;5,5\n2;4\n;\n", {"N": [1, 2], "loss": [5.5, 4.0]}),
        ("a.csv", "N;loss\n1.000;5,5\n2.000.000;4,25\n", {"N": [1e3, 2e6], "loss": [5.5, 4.25]}),
        ("a.csv", "N;loss\n1.000;5,5\n20.000;4,25\n", {"N": [1e3, 2e4], "loss": [5.5, 4.25]}),
        ("a.csv", 'N,loss\n"1,000,000",5.5\n"200,000",4\n', {"N": [1e6, 2e5], "loss": [5.5, 4.0]}),
        (
            "a.csv",
            'note,N\n"two\nlines, one cell",1\nplain,2\n',
            {"note": ["two\nlines, one cell", "plain"], "N": [1, 2]},
        ),
        ("a.csv", "N,loss\n1,5.5,\n2,4,\n", {"N": [1, 2], "loss": [5.5, 4.0]}),
        ("a.csv", "N,loss,,\n1,5.5,,\n\n,,,\n2,4,,\n", {"N": [1, 2], "loss": [5.5, 4.0]}),
        ("a.txt", "  N   loss\n0 1  5.5\n1 2 4\n", {"row": [0, 1], "N": [1, 2], "loss": [5.5, 4.0]}),
        ("a.txt", '"N" "loss"\n"a" 1 5.5\n"b" 2 4\n', {"row": ["a", "b"], "N": [1, 2], "loss": [5.5, 4.0]}),
        ("a.csv", "id,N\n007,1\n012,2\n", {"id": ["007", "012"], "N": [1, 2]}),
        ("a.csv", "ok,N\nTRUE,1\nFALSE,2\n", {"ok": [True, False], "N": [1, 2]}),
        ("a.dat", "N\tthe loss\n1\t5.5\n", {"N": [1], "the loss": [5.5]}),
    ],
)
def test_what_other_tools_write_is_read_as_meant(tmp_path: Path, name: str, text: str, columns: dict) -> None:
    frame = load_table(written(tmp_path, name, text))
    assert {name: frame[name].tolist() for name in frame} == columns


@pytest.mark.parametrize(
    ("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_packed_files_and_encodings(tmp_path: Path, suffix: str, pack, encoding: str) -> None:
    path = written(tmp_path, f"t.csv{suffix}", pack("N,val/löss\n1,5\n".encode(encoding)))
    assert load_table(path).to_dict("list") == {"N": [1], "val/löss": [5]}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "N,loss,D\n1,5,1\n2,4\n", ("line 3 has 2 values", "N, loss, D")),
        ("a.csv", 'N,loss\n"1\n",5\n\n2,4,3\n', ("line 5 has 3 values",)),
        ("a.csv", "N,loss\n1,5,9\n2,4,9\n", ("line 2 has 3 values where 2",)),
        ("a.tsv", "N\tloss\n1 5\n", ("line 2 has 1 value", "tabs")),
        ("a.tsv", "N loss\n1 5\n", ("'N loss'", "tabs")),
        ("a.csv", "N,loss,loss\n1,5,4\n", ("2 columns are called 'loss' (columns 2, 3)",)),
        ("a.csv", "N,N \n1,5\n", ("2 columns are called 'N'",)),
        ("a.csv", "1,5\n2,4\n", ("line 1 should name the columns", "1, 5")),
        ("a.txt", "# N loss\n1 5\n2 4\n", ("line 2 should name the columns", "without #")),
        ("a.csv", "N,loss\n", ("no rows", "N, loss")),
        ("a.csv", "", ("empty",)),
        ("a.csv", "\n \n", ("empty",)),
        ("a.csv", "# only\n", ("nothing but comments",)),
        ("a.csv", 'N,loss\n1,"5\n2,4\n', ("line 2", "quote")),
        ("a.csv", '{"N": 1}', ("JSON",)),
        ("a.csv", "<html>", ("HTML",)),
        ("a.csv", b"N,l\xe9\n1,2\n", ("UTF-8", "0xe9")),
        ("a.csv", b"PK\x03\x04rest", ("Excel",)),
        ("a.csv.gz", gzip.compress(b"N,loss\n1,5\n", mtime=0)[:15], ("cannot be read",)),
        ("a.parquet", b"PAR1 and no more", ("not a readable Parquet file",)),
        ("a.csv", b"\x00\x01\x02\x00\x00\x00", ("zero bytes",)),
    ],
)
def test_what_cannot_be_read_is_refused_by_file_and_line(
    tmp_path: Path, name: str, text: str | bytes, words: tuple[str, ...]
) -> None:
    path = written(tmp_path, name, text)
    with pytest.raises(AnalysisError) as found:
        load_table(path)
    assert str(found.value).startswith(f"{path}: ") and all(word in str(found.value) for word in words), found.value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('x\n"1,234"\n"5,678"\n', ("'1,234' in row 1", "without marks between thousands")),
        ("x\n2024-01-31\n", ("'2024-01-31'", "date")),
        ("x\n1\n12 %\n", ("'12 %' in row 2",)),
    ],
)
def test_what_may_be_two_numbers_is_not_guessed(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    frame = load_table(written(tmp_path, "t.csv", "N," + text.replace("\n", "\n7,").removesuffix("7,")))
    with pytest.raises(AnalysisError, match=r"column 'x' .*not a number") as found:
        numbers(frame, "x")
    assert all(word in str(found.value) for word in words)


def test_identifiers_keep_their_digits(tmp_path: Path) -> None:
    text = "big,hex,holes,N\n99999999999999999999,12e4567,,1\n99999999999999999998,1e99999,123456789012345678,2\n"
    frame = load_table(written(tmp_path, "t.csv", text))
    assert [str(one) for one in frame["big"]] == ["99999999999999999999", "99999999999999999998"]
    assert frame["hex"].tolist() == ["12e4567", "1e99999"]
    assert frame["holes"].dropna().tolist() == [123456789012345678]
    assert numbers(frame, "big").tolist() == [1e20, 1e20], "as a number it is one"


def test_signatures_of_digits_stay_text(tables, tmp_path: Path) -> None:
    names = ("000123456789", "12345e678901", "123456789012")
    rows = [tables.row((4, 16, 1, 2**i), signature=name, protocol="000000000012") for i, name in enumerate(names, 6)]
    frame = tables.load(rows)
    frame.to_csv(tmp_path / "t.csv", index=False)
    again = load_table(tmp_path / "t.csv", protocol="0000")
    assert tuple(again["signature"]) == names and set(again["protocol"]) == {"000000000012"}
    whole = again[again["signature"] != names[1]].astype({"signature": "int64", "protocol": "int64"})
    whole.to_parquet(tmp_path / "t.parquet")
    assert tuple(load_table(tmp_path / "t.parquet", protocol="0000")["signature"]) == names[::2]


def test_columnar_types_become_plain(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "N": pd.Categorical([10, 20, 10]),
            "loss": [Decimal("5.5"), Decimal("4.25"), Decimal("4")],
            "config": [{"lr": 1}, {"lr": 2}, {"lr": 1}],
            "day": [datetime.date(2024, 1, 1)] * 3,
            "took": pd.to_timedelta([1, 2, 3], unit="s"),
            "run": ["a", "b", "c"],
        }
    ).set_index("run")
    frame.to_parquet(tmp_path / "t.parquet")
    found = load_table(tmp_path / "t.parquet")
    assert found["run"].tolist() == ["a", "b", "c"], "a named index is a column"
    assert numbers(found, "N").tolist() == [10, 20, 10] and found.groupby("N").ngroups == 2
    assert found["loss"].tolist() == [5.5, 4.25, 4.0] and found["config"].nunique() == 2
    for name in ("day", "took", "config"):
        with pytest.raises(AnalysisError, match=rf"column '{name}' .*not a number"):
            numbers(found, name)
    frame.reset_index()[["N", "run"]].to_feather(tmp_path / "t.feather")
    assert load_table(tmp_path / "t.feather")["N"].tolist() == [10, 20, 10]
    twins = pa.table([[1], [2]], names=["a", "a"])
    pq.write_table(twins, tmp_path / "twins.parquet")
    with pytest.raises(AnalysisError, match="2 columns are called 'a'"):
        load_table(tmp_path / "twins.parquet")
    with pytest.raises(AnalysisError, match="2 columns are called 'rfid'"):
        fit(pd.DataFrame([[1.0, 2.0]], columns=["rfid", "rfid"]))


def test_training_curves_are_named_as_such(tmp_path: Path) -> None:
    curves = pa.table({"signature": ["a"] * 3, "step": [1, 2, 3], "loss": [3.0, 2.0, 1.5]})
    path = tmp_path / "quick-curves.parquet"
    pq.write_table(curves.replace_schema_metadata({"gsq_curves_version": "1"}), path)
    with pytest.raises(AnalysisError) as found:
        fit(load_table(path))
    assert "training curves" in str(found.value) and str(tmp_path / "quick.parquet") in str(found.value)
    assert "step, loss" in str(found.value)


@pytest.mark.parametrize("columns", [[0, 1], pd.MultiIndex.from_tuples([("x", "N"), ("y", "loss")])])
def test_names_of_columns_that_are_no_text_become_text(tmp_path: Path, columns: object) -> None:
    frame = pd.DataFrame([[10.0, 5.0], [20.0, 4.0], [40.0, 3.2], [80.0, 2.6]], columns=columns)
    size, loss = map(str, frame.columns)
    law = f"`{loss}` = A * `{size}`^a"
    found = fit(frame, law, bootstrap=0, starts=4)
    frame.to_parquet(tmp_path / "t.parquet")
    assert fit(load_table(tmp_path / "t.parquet"), law, bootstrap=0, starts=4).parameters == found.parameters
    assert found.parameters["a"] == pytest.approx(-0.315, abs=0.001)


def test_names_of_columns_may_be_categories() -> None:
    frame = pd.DataFrame({"groups": [1, 2, 4, 8], "codebook_size": 64, "downsample": 4, "loss": [5.0, 4, 3.2, 2.6]})
    frame.columns = pd.CategoricalIndex(frame.columns)
    found = fit(frame, "loss = A * bits_per_pixel^a", bootstrap=0, starts=4)
    assert found.parameters["a"] == pytest.approx(-0.315, abs=0.001)


def test_long_arrays_within_values_stay_apart() -> None:
    schedules = [np.arange(2000), np.arange(2000) + (np.arange(2000) == 1000)]
    frame = pd.DataFrame({"config": [{"schedule": one, "tags": {"b", "a"}} for one in schedules]})
    assert plain_columns(frame)["config"].nunique() == 2
    assert plain_columns(frame)["config"][0].endswith('"tags": ["a", "b"]}')
