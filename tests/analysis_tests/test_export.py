"""Tables as a paper prints them: mean and spread over seeds, units, best in bold, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gsq.analysis import AnalysisError, export_table, load_results


@pytest.fixture
def frame(tables, tmp_path: Path) -> pd.DataFrame:
    """Two configurations of three seeds, one of a single seed, and one that failed."""
    rows = [tables.row((4, 16, 1, 64), seed, rfid=value) for seed, value in enumerate((10.0, 12.0, 14.0))]
    rows += [tables.row((4, 16, 2, 64), seed, rfid=value) for seed, value in enumerate((5.0, 6.0, 7.0))]
    rows += [tables.row((4, 16, 4, 64), 0, rfid=8.0), tables.missing((4, 16, 8, 64), "failed", "out_of_memory")]
    return load_results(tables.write(tmp_path / "t.parquet", rows))


def csv(frame: pd.DataFrame, **options: object) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(export_table(frame, **options).text("csv")))  # type: ignore[arg-type]


def test_mean_and_standard_deviation_are_those_of_the_seeds(frame: pd.DataFrame) -> None:
    found = csv(frame, columns=["rfid", "psnr_db"])
    assert found["groups"].tolist() == [1, 2, 4] and found["runs"].tolist() == [3, 3, 1]
    np.testing.assert_allclose(found["rfid"], [12, 6, 8])
    np.testing.assert_allclose(found["rfid sd"], [2, 1, np.nan])
    assert "psnr_db [dB]" in found and export_table(frame).left_out.count("out_of_memory") == 1


def test_the_best_is_bold_by_the_direction_of_its_metric(frame: pd.DataFrame) -> None:
    text = export_table(frame, ["rfid", "psnr_db", "device_seconds"]).text("markdown")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:5]]
    head = [cell.strip() for cell in text.splitlines()[0].strip("|").split("|")]
    assert [row[head.index("rFID")].startswith("**") for row in rows] == [False, True, False]
    assert [row[head.index("PSNR [dB]")].startswith("**") for row in rows] == [False, False, True]
    assert not any("**" in row[head.index("device time [s]")] for row in rows)
    assert rows[1][head.index("rFID")] == "**6.00 ± 1.00**"
    assert "**" not in export_table(frame, ["rfid"], best={"rfid": "none"}).text("markdown")


def test_latex_escapes_and_has_as_many_cells_as_columns() -> None:
    frame = pd.DataFrame({"model": ["a_b", "50% & #1", "c"], "loss": [2e-9, 3.5, 4e12], "n": [1, 2, 3]})
    text = export_table(frame, ["loss"], ["model", "n"], best={"loss": "min"}).text("latex")
    assert r"a\_b & 1 & $\mathbf{2 \times 10^{-9}}$ \\" in text and r"50\% \& \#1" in text
    assert r"$4 \times 10^{12}$" in text and r"\begin{tabular}{lrr}" in text


def test_keys_without_a_column_of_the_schema_are_columns_of_their_own(tables, tmp_path: Path) -> None:
    rows = [
        tables.row(
            (4, 16, 1, 64), seed, signature=f"{i}{seed}" + "a" * 10, other_axes=f'{{"quantizer.init": "{kind}"}}'
        )
        for i, kind in enumerate(("spherical", "uniform"))
        for seed in (0, 1)
    ]
    found = csv(load_results(tables.write(tmp_path / "t.parquet", rows)), columns=["rfid"])
    assert found["quantizer.init"].tolist() == ["spherical", "uniform"] and found["runs"].tolist() == [2, 2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"by": ["downsample"]}, ("groups", "--by groups", "--where")),
        ({"columns": ["rfdi"]}, ("rfdi", "rfid")),
        ({"columns": ["rfid"], "by": ["rfid"]}, ("rfid", "--by", "--column")),
        ({"columns": ["features"]}, ("features",)),
        ({"best": {"mse": "min"}}, ("mse", "rfid")),
        ({"columns": ["rfid"], "best": {"rfid": "low"}}, ("low", "min", "max")),
        ({"digits": 0}, ("digits", "0")),
    ],
)
def test_what_cannot_be_averaged_is_refused(frame: pd.DataFrame, options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(AnalysisError) as error:
        export_table(frame, **options)  # type: ignore[arg-type]
    assert all(word in str(error.value) for word in words), error.value


def test_another_table_must_say_its_columns() -> None:
    with pytest.raises(AnalysisError, match="--column") as error:
        export_table(pd.DataFrame({"model": ["a"], "loss": [1.0]}), by=["model"])
    assert "loss" in str(error.value)


def test_protocols_are_not_mixed(tables, tmp_path: Path) -> None:
    rows = [tables.row((4, 16, 1, 64)), tables.row((4, 16, 1, 64), protocol="other")]
    with pytest.raises(AnalysisError, match="protocol"):
        export_table(load_results(tables.write(tmp_path / "t.parquet", rows)))


def test_the_command_writes_one_format_whole(frame, command) -> None:
    done = command("export", "t.parquet", "--latex", "--column", "rfid", "--output", "a/t.tex")
    assert done.exit_code == 0, done.output
    assert Path("a/t.tex").read_text() == export_table(frame, ["rfid"]).text("latex")
    assert "out_of_memory" in done.output and "a/t.tex" in done.output
    # Without a format, the name of the file decides.
    for name, form in (("b.csv", "csv"), ("c.tex", "latex"), ("d.md", "markdown")):
        assert command("export", "t.parquet", "--column", "rfid", "--output", name).exit_code == 0
        assert Path(name).read_text() == export_table(frame, ["rfid"]).text(form)
    for wrong in (["--latex", "--csv"], ["--best", "rfid"], ["--best", "rfid=up"], ["--where", "groups > 99"]):
        refused = command("export", "t.parquet", *wrong, "--output", "e.tex")
        assert isinstance(refused.exception, AnalysisError) and not Path("e.tex").exists(), wrong


def test_a_column_with_fewer_values_says_so() -> None:
    frame = pd.DataFrame({"model": [*"aabb"], "loss": [4.0, 3, 2, 1], "accuracy": [0.5, np.nan, 0.7, np.inf]})
    found = export_table(frame, ["loss", "accuracy"], ["model"])
    assert "no accuracy in 2 of 4 runs" in found.left_out and "no accuracy in 2 of 4 runs" in found.note
    assert not export_table(frame, ["loss"], ["model"]).left_out


def test_the_suffix_of_a_file_says_its_format_and_no_table_is_replaced(command) -> None:
    Path("runs.csv").write_text("model,loss\n<64|x,4\nb,3\n")
    asked = ("export", "runs.csv", "--by", "model", "--column", "loss", "--output")
    assert command(*asked, "t.tex").exit_code == 0 and command(*asked, "t.csv").exit_code == 0
    assert r"\textless{}64\textbar{}x & $4$" in Path("t.tex").read_text()
    assert Path("t.csv").read_text().startswith("model,loss,loss sd,runs")
    before = Path("runs.csv").read_bytes()
    for args in (asked, ("fit", "runs.csv", "--law", "loss = A", "--output")):
        result = command(*args, "../" + Path.cwd().name + "/runs.csv")
        assert isinstance(result.exception, AnalysisError) and "runs.csv is what is read" in str(result.exception)
    assert Path("runs.csv").read_bytes() == before
