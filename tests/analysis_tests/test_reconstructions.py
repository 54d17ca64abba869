"""Reconstructions of the same images stand side by side, and of other images apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gsq.analysis import AnalysisError, compare_reconstructions, reconstruction_figure
from gsq.analysis.figures.reconstructions import chosen_cells, read_picture, sheets, split
from gsq.evaluation.evaluate import save_samples


def images(random: int, size: int = 16) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(random).integers(0, 255, (4, 3, size, size), np.uint8))


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Path]:
    """Pictures as runs leave them: a and c of the same originals, b of others, d of the same in another size."""
    found = {}
    for name, originals, made in (("a", 0, 1), ("b", 9, 2), ("c", 0, 3)):
        found[name] = tmp_path / f"{name}.png"
        save_samples(images(originals), images(made), found[name])
    found["d"] = tmp_path / "d.png"
    save_samples(images(0, 32), images(4, 32), found["d"])
    return found


def test_a_picture_is_split_where_the_run_put_the_margin(pictures: dict[str, Path]) -> None:
    picture = read_picture("a", pictures["a"])
    halves = split(picture)
    assert halves is not None and halves[0].shape == halves[1].shape == ((len(picture) - 4) // 2, picture.shape[1], 3)
    assert np.array_equal(halves[0], picture[: len(halves[0])])
    assert np.array_equal(halves[1], picture[-len(halves[1]) :])
    assert split(np.zeros((20, 8, 3), np.uint8)) is None, "no margin"


def test_equal_originals_are_shown_once(pictures: dict[str, Path]) -> None:
    found = sheets([(name, read_picture(name, path)) for name, path in pictures.items()])
    assert [[strip.title for strip in one.strips] for one in found] == [["a", "c"], ["b"], ["d"]]
    figure = reconstruction_figure(list(pictures.items()))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["originals", "a", "c", "originals", "b", "originals", "d"]
    shown = np.asarray(figure.axes[1].images[0].get_array())
    assert np.array_equal(shown, split(read_picture("a", pictures["a"]))[1])  # type: ignore[index]


def test_cells_go_from_the_least_rfid_to_the_largest(tables, pictures: dict[str, Path], tmp_path: Path) -> None:
    rows = [tables.row((4, 16, g, 64), signature=name, rfid=10.0 * g) for name, g in (("a", 4), ("c", 1), ("none", 2))]
    frame = tables.load(rows)
    assert [signature for _, signature in chosen_cells(frame, pictures)] == ["c", "a"], "one has no picture"
    figure = compare_reconstructions(frame, pictures, tmp_path / "out" / "side.png")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["originals", "rFID 10, G=1", "rFID 40, G=4"]
    assert (tmp_path / "out" / "side.png").is_file()
    many = tables.load([tables.row((4, 16, 1, 64), seed, rfid=float(seed + 1)) for seed in range(20)])
    every = dict.fromkeys(many["signature"], Path())
    titles = [title for title, _ in chosen_cells(many, every, 3)]
    assert [title.split(",")[0] for title in titles] == ["rFID 1", "rFID 11", "rFID 20"], "the best and the worst too"
    with pytest.raises(AnalysisError, match="no pictures"):
        compare_reconstructions(frame, {})
