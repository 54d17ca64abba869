"""Synthetic results tables, written as ``gsq gather`` writes them, and the paper's fig. 4."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from gsq.analysis.tables.table import load_results
from gsq.cli.main import app
from gsq.sweeps.schema.columns import write_table

Cell = tuple[int, int, int, int]  # f, D, G, V

QUICKSTART: tuple[Cell, ...] = (
    *((4, 16, g, v) for g in (1, 2, 4) for v in (64, 256, 1024)),
    (4, 8, 1, 64),
    (4, 8, 2, 256),
    (8, 16, 1, 256),
    (8, 16, 4, 256),
    (8, 8, 2, 1024),
)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled laws go to a folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GSQ_CACHE", str(tmp_path_factory.getbasetemp() / "gsq-cache"))
        yield


def row(cell: Cell, seed: int = 0, **more: object) -> dict[str, object]:
    """One done row: rfid = 9 bpp^-0.8, unless ``more`` says otherwise."""
    f, d, g, v = cell
    bpp = g * math.log2(v) / f**2
    out: dict[str, object] = {
        "sweep": "synthetic",
        "signature": f"{f:x}{d:03x}{g:x}{v:05x}{seed:02x}",
        "step": 1000,
        "protocol": "p1a2b3",
        "features": "efficientnet_lite0-0a1b2c",
        "num_images": 2000,
        "quantizer": "gsq",
        "latent_dim": d,
        "groups": g,
        "group_dim": d // g,
        "codebook_size": v,
        "downsample": f,
        "width": 32,
        "image_size": 32,
        "learning_rate": 1e-3,
        "batch_size": 64,
        "steps": 1000,
        "seed": seed,
        "bits_per_token": g * math.log2(v),
        "bits_per_pixel": bpp,
        "rfid": 9 * bpp**-0.8,
        "psnr_db": 20 + 3 * bpp,
        "usage": 0.9,
        "perplexity": 0.8 * v,
        "device_seconds": 60.0,
        "state": "done",
    }
    out.update(more)
    return out


def missing(cell: Cell, state: str, failure: str | None = None) -> dict[str, object]:
    """The row of a planned cell without an evaluation."""
    nothing = ("step", "protocol", "features", "num_images", "rfid", "psnr_db", "usage", "perplexity")
    return row(cell, state=state, failure=failure, **dict.fromkeys(nothing))


def noisy(cells: Iterable[Cell], seeds: int = 1, noise: float = 0.05, random: int = 0) -> list[dict[str, object]]:
    """``seeds`` rows a cell around rfid = 9 bpp^-0.8, log-normal noise."""
    rng = np.random.default_rng(random)
    rows = [row(cell, seed) for cell in cells for seed in range(seeds)]
    return [one | {"rfid": float(one["rfid"]) * math.exp(rng.normal(0, noise))} for one in rows]  # type: ignore[arg-type]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    write_table(rows, path)
    return path


@pytest.fixture
def tables(tmp_path: Path) -> SimpleNamespace:
    """The builders above (a fixture, because test folders are not packages), and ``load(rows)``."""

    def load(rows: list[dict[str, object]], protocol: str | None = None) -> pd.DataFrame:
        return load_results(write(tmp_path / "table.parquet", rows), protocol)

    return SimpleNamespace(QUICKSTART=QUICKSTART, row=row, missing=missing, noisy=noisy, write=write, load=load)


@pytest.fixture(scope="session")
def paper() -> pd.DataFrame:
    """The numbers that the paper prints, as a results table."""
    return load_results(Path(__file__).parents[2] / "results" / "reference" / "gsq_paper.parquet")


@pytest.fixture(scope="session")
def fig4(paper: pd.DataFrame) -> pd.DataFrame:
    """The 20 points of fig. 4: f = 8, G = 1."""
    return paper[paper["sweep"] == "fig4"].reset_index(drop=True)


@pytest.fixture(scope="session")
def joint(paper: pd.DataFrame) -> pd.DataFrame:
    """The 41 distinct points of fig. 4, table 13 without clipping and fig. 1b."""
    rows = paper[paper["sweep"].isin(["fig4", "table13", "fig1b"]) & paper["other_axes"].isna()]
    rows = rows.drop_duplicates(["downsample", "latent_dim", "groups", "codebook_size"]).reset_index(drop=True)
    assert len(rows) == 41
    return rows


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty pictures, where a test is about something else: drawing takes seconds."""
    empty = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    from gsq.analysis.reporting.report import Picture

    monkeypatch.setattr("gsq.analysis.reporting.report._svg", lambda title, draw: Picture(title, "svg+xml", empty))


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``command("fit", "runs.csv")`` runs gsq in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, list(words), env={"COLUMNS": "140"})
