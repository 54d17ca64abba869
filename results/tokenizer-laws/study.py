"""What the study's answers share: its rows, and how numbers and panels look."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t

from gsq import analysis
from gsq.analysis.figures.style import log_axis

HERE = Path(__file__).parent
SWEEPS = ("grid", "grid-more", "seeds", "lookup", "arms", "widths", "predictions")
STEPS = (160, 320, 640, 1280)
LONGEST, WIDTH = STEPS[-1], 8
CELL = ("downsample", "latent_dim", "groups", "codebook_size")
AXES = (*CELL, "width", "steps", "seed")
BPP = "bits_per_pixel"
BITS = "downsample^a * bits_per_token^(-b)"
ARMS = {"rvq": "residual vq", "fsq": "fsq", "simvq": "simvq", "bsq": "bsq"}


@dataclass(frozen=True)
class Answer:
    """What the study says of one question."""

    question: str
    text: str
    """A sentence or two, with the numbers and their 95 % intervals; the first one stands alone."""
    draw: Callable[[Figure], None]

    @property
    def finding(self) -> str:
        return self.text.partition(". ")[0].removesuffix(".") + "."


@cache
def table() -> pd.DataFrame:
    """All finished rows. ``lookup`` is exact or bfloat16."""
    paths = [HERE / f"{name}.parquet" for name in SWEEPS]
    frame = analysis.load_tables([path for path in paths if path.exists()])
    frame = frame.assign(
        lookup=np.where(frame["sweep"] == "tokenizer-lookup", "bfloat16", "exact"),
        effective_bits_per_pixel=frame["effective_bits"] / frame["downsample"] ** 2,
    )
    return frame[frame["state"] == "done"].reset_index(drop=True)


def grid(frame: pd.DataFrame, steps: int | None = LONGEST, width: int | None = WIDTH) -> pd.DataFrame:
    """The rows of gsq with the exact look-up, at one length of training and one width (None: at all)."""
    chosen = (frame["quantizer"] == "gsq") & (frame["lookup"] == "exact")
    chosen &= frame["steps"].isin(STEPS if steps is None else (steps,))
    if width is not None:
        chosen &= frame["width"] == width
    rows = frame[chosen]
    if "probe" in rows:  # rows of the evaluation itself; a probe's have a probe_protocol
        rows = rows[~rows.duplicated("signature")]
    return rows.reset_index(drop=True)


def over_seeds(rows: pd.DataFrame, keys: Sequence[str], *others: str) -> pd.DataFrame:
    """The geometric mean of rfid over the rows that share ``keys``, and the plain means of ``others``."""
    groups = rows.assign(rfid=np.log(rows["rfid"].to_numpy(float))).groupby([*keys], as_index=False)
    means = groups[["rfid", *others]].mean()
    return means.assign(rfid=np.exp(means["rfid"].to_numpy(float)))


def equal_flops(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the study's width beside those of half of it after twice the images, at about as many FLOPs."""
    half = rows[rows["width"] == WIDTH // 2].assign(steps=lambda one: one["steps"] // 2)
    return rows[rows["width"] == WIDTH].merge(half, on=[*CELL, "steps", "seed"], suffixes=("", "_half"))


def doubled(frame: pd.DataFrame) -> pd.DataFrame:
    """The cells that were trained for twice the longest, at every length."""
    keys = ["downsample", "latent_dim", "groups", "codebook_size"]
    rows = frame[(frame["quantizer"] == "gsq") & (frame["lookup"] == "exact") & (frame["width"] == WIDTH)]
    twice = rows[rows["steps"] == 2 * LONGEST][keys].drop_duplicates()
    return rows.merge(twice, on=keys)


def span(value: float, ends: tuple[float, float], form: str = ".2f") -> str:
    """``0.31 [0.28, 0.34]``."""
    return f"{value:{form}} [{ends[0]:{form}}, {ends[1]:{form}}]"


def parameter(fit: analysis.Fit, name: str, form: str = ".2f") -> str:
    return span(fit.parameters[name], fit.profile_intervals[name], form)


def mean_interval(values: np.ndarray) -> np.ndarray:
    """Mean and the ends of its 95 % interval, by Student's t."""
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean() + np.array([0.0, -half, half])


def resampled(count: int, statistic: Callable[[np.ndarray], object]) -> tuple[np.ndarray, np.ndarray]:
    """A statistic of all cells' places, and the 95 % ends of it over resampled cells: shapes (...) and (2, ...).

    Resampling cells and not rows is right for lengths of training, which share a trunk.
    """
    draw = np.random.default_rng(0)
    values = [statistic(draw.integers(0, count, count)) for _ in range(1000)]
    return np.asarray(statistic(np.arange(count))), np.percentile(np.array(values), [2.5, 97.5], axis=0)


def slopes(columns: Sequence[object], target: object) -> np.ndarray:
    """Shape (columns, targets): exponents of a least-squares power law of ``columns`` for each column of ``target``."""
    design = [np.log(np.asarray(one, float)) for one in columns]
    outcome = np.log(np.asarray(target, float))
    return np.linalg.lstsq(np.column_stack([np.ones(len(outcome)), *design]), outcome, rcond=None)[0][1:]


def name_axes(axis: Axes, x: str, y: str, log: str = "xy") -> None:
    """Name the axes of a finished panel; the logarithmic ones get ticks at round numbers."""
    axis.set(xlabel=x, ylabel=y)
    for name, one in (("x", axis.xaxis), ("y", axis.yaxis)):
        if name in log:
            (axis.set_xscale if name == "x" else axis.set_yscale)("log")
            log_axis(one, axis.get_xlim() if name == "x" else axis.get_ylim())


def words(name: str) -> str:
    return {"rfid": "rFID"}.get(name, name.replace("_", " "))


def shades(count: int) -> list[tuple[float, ...]]:
    return [tuple(colour) for colour in matplotlib.colormaps["viridis"](np.linspace(0.1, 0.85, count))]


def bars(axis: Axes, places: object, values: object, ends: np.ndarray, **looks: Any) -> None:
    centre = np.asarray(values, float)
    axis.errorbar(np.asarray(places, float), centre, np.abs(ends - centre), fmt="o", capsize=3, **looks)
