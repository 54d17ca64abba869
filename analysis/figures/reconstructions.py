"""Reconstructions of the same images by several cells, side by side.

A run leaves ``samples.png``: the first images of its evaluation above its reconstructions of them. Here the originals
are compared pixel for pixel. Cells that reconstructed the same ones share one row of originals, so that each column
shows one image; a cell whose originals differ, because it had other data or another image size, stands apart with its
own. A picture of any other layout is shown whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from gsq.analysis.errors import AnalysisError
from gsq.analysis.figures.settings import plain, settings
from gsq.analysis.figures.style import save_picture, style
from gsq.analysis.tables.table import measured, varying

T = TypeVar("T")
Pixels = npt.NDArray[np.uint8]
FEW = 8  # cells that are shown of many
_GAP = 4  # white rows between originals and reconstructions, as gsq.evaluation.evaluate.save_samples leaves them


@dataclass(frozen=True)
class Strip:
    """One cell's reconstructions of the images, left to right."""

    title: str
    pixels: Pixels
    """(H, W, 3) uint8."""
    entry: int
    """Index of its entry."""


@dataclass(frozen=True)
class Sheet:
    """Cells that reconstructed the same images."""

    originals: Pixels | None
    """(H, W, 3) uint8; None where the picture has another layout and is shown whole."""
    strips: tuple[Strip, ...]


def read_picture(title: str, path: str | Path) -> Pixels:
    """Read a picture as (H, W, 3) uint8. Raises AnalysisError where it is missing or unreadable."""
    from PIL import Image

    if not Path(path).is_file():
        raise AnalysisError(f"{path}: no such picture (of {title!r}); evaluate the run first")
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise AnalysisError(f"{path}: not a readable PNG ({error})") from error


def split(picture: Pixels) -> tuple[Pixels, Pixels] | None:
    """Originals and reconstructions of a ``samples.png``; None where the picture has another layout."""
    half, odd = divmod(len(picture) - _GAP, 2)
    if odd or half < 1 or not (picture[half : half + _GAP] == 255).all():
        return None
    return picture[:half], picture[half + _GAP :]


def sheets(entries: Sequence[tuple[str, Pixels]]) -> tuple[Sheet, ...]:
    """Group the entries (title, picture) by the images that they reconstruct, in order of appearance."""
    found: dict[object, tuple[Pixels | None, list[Strip]]] = {}
    for number, (title, picture) in enumerate(entries):
        halves = split(picture)
        if halves is None:
            found[number] = (None, [Strip(title, picture, number)])
            continue
        originals, made = halves
        _, strips = found.setdefault((originals.shape, originals.tobytes()), (originals, []))
        strips.append(Strip(title, made, number))
    return tuple(Sheet(originals, tuple(strips)) for originals, strips in found.values())


def chosen_cells(frame: pd.DataFrame, pictures: Mapping[str, object], most: int = FEW) -> list[tuple[str, str]]:
    """Choose at most ``most`` cells that have a picture, as (title, signature), from the lowest rFID to the highest.

    With more cells, takes the first, the last and evenly spaced ones between them. Empty where no row has a
    signature. Raises AnalysisError like :func:`analysis.measured`.
    """
    rows = measured(frame)[0].sort_values("rfid", kind="stable")
    if "signature" not in rows:
        return []
    names = varying(rows)
    there = [
        (cell_title(row, names), str(row["signature"])) for _, row in rows.iterrows() if row["signature"] in pictures
    ]
    return spread(there, most)


def cell_title(row: pd.Series, names: Sequence[str]) -> str:
    """ "rFID 86.6, G=4, V=1024": what a picture shows, without mathematics."""
    place = settings({name: plain(row[name]) for name in names if pd.notna(row[name])}, powers=False)
    return f"rFID {row['rfid']:.4g}" + (f", {place}" if place else "")


def spread(values: Sequence[T], most: int) -> list[T]:
    """Take at most ``most`` of the values, spaced evenly, including the first and the last."""
    if len(values) <= most:
        return list(values)
    return [values[i] for i in np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))]


def compare_reconstructions(
    frame: pd.DataFrame, pictures: Mapping[str, str | Path], path: str | Path | None = None, most: int = FEW
) -> Figure:
    """The same images as several cells reconstruct them: originals on top, below them a row for each cell, from the
    least rFID to the largest.

    ``frame``: a results table of one protocol; ``pictures``: signature to the ``samples.png`` of the run, as
    ``sweeps.sample_pictures`` returns them; ``path``: as for :func:`reconstruction_figure`; ``most``: cells to show.
    Raises AnalysisError where no measured cell has a picture.
    """
    cells = chosen_cells(frame, pictures, most)
    return reconstruction_figure([(title, pictures[signature]) for title, signature in cells], path)


def reconstruction_figure(entries: Sequence[tuple[str, str | Path]], path: str | Path | None = None) -> Figure:
    """Pictures of runs below each other, each under its title; originals that several share are drawn once, above them.

    ``entries``: (title, ``samples.png`` of a run); ``path``: where the figure is saved as PNG. Raises AnalysisError
    where there are no entries or one cannot be read.
    """
    if not entries:
        raise AnalysisError("no pictures to stack; each run leaves samples.png in its folder once it is evaluated")
    rows: list[tuple[str, Pixels]] = []
    for sheet in sheets([(title, read_picture(title, file)) for title, file in entries]):
        rows += [] if sheet.originals is None else [("originals", sheet.originals)]
        rows += [(strip.title, strip.pixels) for strip in sheet.strips]
    width = 9.0
    heights = [width * picture.shape[0] / picture.shape[1] for _, picture in rows]
    with style():
        figure = Figure(figsize=(width, sum(heights) + 0.32 * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), 1, squeeze=False, gridspec_kw={"height_ratios": heights}).ravel()
        for (title, picture), axes in zip(rows, grid, strict=True):
            axes.imshow(picture, interpolation="nearest", aspect="equal")
            axes.set_title(title, loc="left", fontsize=9, pad=3)
            axes.set_axis_off()
        return save_picture(figure, path)
