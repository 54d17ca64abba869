"""The notebooks run from top to bottom on the committed results."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
# What a notebook repeats for its statistics, and how often is enough to see that it runs.
CUTS = {
    "03_design": {"orders=200": "orders=20", "orders=40": "orders=4", "range(10)": "range(2)"},
    "06_studies": {"queries=2000": "queries=200", "bootstrap=100": "bootstrap=10"},
}


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSQ_RUNS", str(tmp_path / "runs"))
    text = path.read_text()
    for whole, cut in CUTS.get(path.stem, {}).items():
        assert whole in text
        text = text.replace(whole, cut)
    notebook = nbformat.reads(text, as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    if path.stem == "01_quickstart":
        assert any("power_law_bpp" in output.get("text", "") for output in outputs)
        # It trained its own small cut and left the committed results alone.
        assert list((tmp_path / "runs" / "sweeps").glob("*/plan-*.jsonl"))


def test_your_sweep_runs_on_any_table(tmp_path: Path) -> None:
    rows = [
        f"{n},{2 + 400 / n**0.4 + 0.01 * (i % 3)},{'ab'[i % 2]}" for i, n in enumerate((10, 30, 100, 300, 1000, 3000))
    ]
    (tmp_path / "runs.csv").write_text("\n".join(["N,loss,kind", *rows]))
    notebook = nbformat.read(NOTEBOOKS / "04_your_sweep.ipynb", as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert "table =" in first.source
    law, path = "loss = E + A[kind] / N^a", tmp_path / "runs.csv"
    first.source = f"table, law, protocol, save_as = {str(path)!r}, {law!r}, None, None"
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    texts = [output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("N = 6000: loss" in text for text in texts)
