"""Several tables as one: a shared run counts once, the sweep stays a column, and what cannot be mixed is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from gsq.analysis import AnalysisError, load_results, load_tables, make_report, measured
from gsq.analysis.fitting.saved import read_saved


@pytest.fixture
def gsq(tables, command):
    """Runs ``gsq ARGS`` where results/ has the sweeps a and b, which share three runs; one failed in a alone."""
    rows = tables.noisy(tables.QUICKSTART)
    lost = tables.missing(tables.QUICKSTART[-1], "failed", "out_of_memory") | {"signature": rows[-1]["signature"]}
    tables.write(Path("results/a.parquet"), [{**one, "sweep": "a"} for one in [*rows[:8], lost]])
    tables.write(Path("results/b.parquet"), [{**one, "sweep": "b"} for one in rows[5:]])
    tables.write(Path("results/all.parquet"), rows)
    return command


def test_a_shared_run_counts_once_and_the_sweep_is_a_column(gsq) -> None:
    frame = load_tables(["results/a.parquet", "results/b.parquet"])
    rows, excluded = measured(frame)
    whole = load_results("results/all.parquet")
    assert sorted(rows["signature"]) == sorted(whole["signature"]) and excluded.text == ""
    assert rows["sweep"].value_counts().to_dict() == {"a": 8, "b": len(whole) - 8}
    assert frame.dtypes["groups"] == whole.dtypes["groups"] and frame.dtypes["repeat"] == whole.dtypes["repeat"]


def test_fit_of_two_sweeps_is_that_of_one_table_with_their_runs(gsq) -> None:
    both, one = (
        gsq("fit", *names, "--law", "power_law_bpp", "--bootstrap", "0", "--json") for names in (["a", "b"], ["all"])
    )
    assert both.exit_code == 0, both.output
    found, expected = (json.loads(done.stdout) for done in (both, one))
    assert found["table"] == ["a", "b"] and expected["table"] == "all"
    for name, value in expected["fits"][0]["parameters"].items():
        assert found["fits"][0]["parameters"][name]["value"] == pytest.approx(value["value"], rel=1e-6)


def test_each_sweep_by_itself_and_a_saved_fit_of_both(gsq) -> None:
    done = gsq("fit", "a", "b", "--law", "power_law_bpp", "--by", "sweep", "--bootstrap", "0", "--json")
    assert [one["law"] for one in json.loads(done.stdout)["fits"]] == [
        f"power_law_bpp (sweep = {name})" for name in "ab"
    ]
    assert gsq("fit", "a", "b", "--law", "power_law_bpp", "--bootstrap", "0", "--output", "f.json").exit_code == 0
    assert read_saved("f.json")[0] == ["a", "b"]


def test_a_figure_and_an_export_of_two_tables(gsq) -> None:
    done = gsq("plot", "a", "b", "--kind", "pareto")
    assert done.exit_code == 0, done.output
    assert Path("results/a-b-pareto.png").is_file()
    assert (
        gsq("export", "a", "b", "--csv").stdout.splitlines()[1:]
        == gsq("export", "all", "--csv").stdout.splitlines()[1:]
    )


def test_one_report_of_two_tables(gsq) -> None:
    done = gsq("report", "a", "b")
    assert done.exit_code == 0, done.output
    page = Path("results/a-b-report.html").read_text()
    assert "a-b" in page and "results/a.parquet, results/b.parquet" in done.output
    report = make_report(load_tables(["results/a.parquet", "results/b.parquet"]), "a-b")
    assert report.counts == {"done": len(load_results("results/all.parquet"))} and "sweep" in report.main


def test_other_tables_count_every_row_and_keep_their_names(tmp_path: Path) -> None:
    for name, loss in (("x", 1.0), ("y", 1.0)):
        pd.DataFrame({"N": [1, 2], "loss": [loss, 2.0]}).to_csv(tmp_path / f"{name}.csv", index=False)
    frame = load_tables([tmp_path / "x.csv", tmp_path / "y.csv"])
    assert frame["table"].tolist() == ["x", "x", "y", "y"] and len(frame) == 4


def test_what_does_not_go_together_is_refused(gsq, tables, tmp_path: Path) -> None:
    Path("x.csv").write_text("N,loss\n1,2\n")
    Path("y.csv").write_text("size,error\n1,2\n")
    other = [
        {**one, "protocol": "other", "signature": f"f{i:011x}"} for i, one in enumerate(tables.noisy(tables.QUICKSTART))
    ]
    tables.write(Path("results/c.parquet"), other)
    asked = [{**one, "signature": f"e{i:011x}", "asked": True} for i, one in enumerate(tables.noisy(tables.QUICKSTART))]
    tables.write(Path("results/asked.parquet"), asked)
    for names, words in (
        (["a", "x.csv"], ("x.csv", "results/a.parquet")),
        (["x.csv", "y.csv"], ("y.csv", "size", "loss")),
        (["a", "results/a.parquet"], ("twice",)),
        (["a", "nowhere"], ("nowhere",)),
        (["a", "c"], ("results/a.parquet: p1a2b3", "results/c.parquet: other", "--protocol")),
        (["asked", "c"], ("results/asked.parquet: p1a2b3", "results/c.parquet: other")),
    ):
        done = gsq("fit", *names)
        assert isinstance(done.exception, AnalysisError), names
        assert all(word in str(done.exception) for word in words), done.exception
    assert gsq("fit", "a", "c", "--law", "power_law_bpp", "--protocol", "other", "--bootstrap", "0").exit_code == 0
