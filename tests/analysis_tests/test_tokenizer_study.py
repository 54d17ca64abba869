"""The committed study of tokenizers' laws hangs together: its text, its tables and what was predicted."""

from __future__ import annotations

import importlib
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from gsq import analysis
from gsq.sweeps import load_spec

STUDY = Path(__file__).parents[2] / "results" / "tokenizer-laws"
KEYS = ["quantizer", "downsample", "latent_dim", "groups", "codebook_size", "width", "steps", "seed"]


@pytest.fixture(scope="module")
def answers() -> Iterator[ModuleType]:
    sys.path.insert(0, str(STUDY))
    try:
        yield importlib.import_module("answers")
    finally:
        sys.path.remove(str(STUDY))


NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?")


def close(printed: str, computed: str) -> bool:
    """Another machine's sums may change the last printed digit, and searches end within a percent of each other."""
    one, other = (float(text.replace(",", "")) for text in (printed, computed))
    unit = 10.0 ** -len(printed.partition(".")[2])
    return abs(one - other) <= max(0.01 * abs(other), 1.01 * unit)


def test_the_numbers_of_both_pages_are_those_of_the_tables(answers: ModuleType) -> None:
    for page, name, computed in (
        (STUDY / "README.md", "answers", answers.block()),
        (STUDY.parent / "README.md", "findings", answers.findings()),
    ):
        text = page.read_text(encoding="utf-8")
        printed = text.partition(f"<!-- {name} -->\n")[2].partition(f"<!-- end of {name} -->")[0]
        assert NUMBER.sub("#", printed) == NUMBER.sub("#", computed)
        for one, other in zip(NUMBER.findall(printed), NUMBER.findall(computed), strict=True):
            assert close(one, other), (one, other)


@pytest.mark.parametrize("name", ["grid", "grid-more", "widths", "arms", "lookup", "seeds", "mistuning", "predictions"])
def test_every_planned_cell_is_done(name: str) -> None:
    spec = load_spec(STUDY / f"{name}.yaml")
    frame = analysis.load_results(STUDY / f"{name}.parquet")
    rows = frame[frame["state"] == "done"].drop_duplicates("signature")

    def settings(cells: pd.DataFrame) -> Counter[tuple[object, ...]]:
        named = [key for key in KEYS if key in planned]
        return Counter(cells[named].itertuples(index=False, name=None))

    planned = pd.DataFrame(list(spec.candidates()))
    assert settings(rows) == settings(planned)


def test_the_study_is_as_large_as_its_page_says() -> None:
    grid, arms = (analysis.load_results(STUDY / f"{name}.parquet") for name in ("grid", "arms"))
    longest = grid[grid["steps"] == 1280]
    more = analysis.load_results(STUDY / "grid-more.parquet").query("steps == 1280")
    assert len({*longest["signature"], *more["signature"]}) == 61
    assert (pd.concat([longest, more])["images_seen"] == 40_960).all()
    assert set(arms["quantizer"].value_counts()) == {8} and arms["quantizer"].nunique() == 4
    for size in ("tiny", "small"):
        assert longest[longest["probe"].eq(size)]["signature"].nunique() == 16


def test_arms_spend_the_bits_of_a_cell_of_the_grid() -> None:
    grid, arms = (analysis.load_results(STUDY / f"{name}.parquet") for name in ("grid", "arms"))
    for row in arms.itertuples():
        rates = grid[grid["downsample"] == row.downsample]["bits_per_token"]
        assert (np.abs(rates / row.bits_per_token - 1) <= 0.02).any()


@pytest.mark.usefixtures("answers")
def test_predictions_are_whole_and_scored() -> None:
    predict = importlib.import_module("predict")
    written = pd.read_csv(STUDY / "predictions.csv")
    for name in ("law", "naive", "forest"):
        assert ((written[f"{name}_low"] < written[name]) & (written[name] < written[f"{name}_high"])).all()
    scores = predict.scored(analysis.load_results(STUDY / "predictions.parquet"))
    assert (scores["cells"] == len(written)).all() and len(written) >= 12 and np.isfinite(scores).all().all()
