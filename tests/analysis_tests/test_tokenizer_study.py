"""The tables of the study of tokenizers' laws are those that its files plan, and its predictions are scored."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from gsq import analysis
from gsq.sweeps import load_spec

STUDY = Path(__file__).parents[2] / "results" / "tokenizer-laws"
KEYS = ["quantizer", "downsample", "latent_dim", "groups", "codebook_size", "width", "steps", "seed"]


@pytest.mark.parametrize("name", ["grid", "widths", "predictions"])
def test_every_planned_cell_is_done(name: str) -> None:
    spec = load_spec(STUDY / f"{name}.yaml")
    frame = analysis.load_results(STUDY / f"{name}.parquet")
    rows = frame[frame["state"] == "done"].drop_duplicates("signature")

    def settings(cells: pd.DataFrame) -> Counter[tuple[object, ...]]:
        named = [key for key in KEYS if key in planned]
        return Counter(cells[named].itertuples(index=False, name=None))

    planned = pd.DataFrame(list(spec.candidates()))
    assert settings(rows) == settings(planned)


def test_the_grid_is_as_large_and_as_long_as_its_page_says() -> None:
    grid = analysis.load_results(STUDY / "grid.parquet")
    longest = grid[grid["steps"] == 1280]
    assert len(longest) == 40 and (longest["images_seen"] == 40_960).all()


def test_predictions_are_whole_and_scored_as_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(STUDY)
    import predict

    written = pd.read_csv(STUDY / "predictions.csv")
    for name in ("law", "naive", "forest"):
        assert ((written[f"{name}_low"] < written[name]) & (written[name] < written[f"{name}_high"])).all()
    scores = predict.scored(analysis.load_results(STUDY / "predictions.parquet"))
    assert (scores["cells"] == len(written)).all() and len(written) >= 12
    page = " ".join((STUDY / "README.md").read_text(encoding="utf-8").split())
    for row in scores.itertuples():
        assert f"({row.log_rmse:.2f}, {row.log_score:.2f})" in page.replace("log-RMSE ", "").replace("log score ", "")
    law, naive, forest = (round(share * len(written)) for share in scores["inside"])
    assert f"{law} lie within the 95 %" in page and f"{naive} within those of the naive" in page
    assert f"and {forest} within those of the random forest" in page
