"""The target of a design: a parameter, a prediction, the choice between laws, or the noise."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from gsq.analysis.errors import AnalysisError
from gsq.words import counted

_NUMBER = re.compile(r"\s*([+-]?\d+\.?\d*(?:[eE][+-]?\d+)?)\s*(?:(?:\*\*|\^)\s*(\d+))?\s*")

Kind = Literal["parameter", "predict", "discriminate", "noise"]


@dataclass(frozen=True)
class Target:
    """The quantity that the runs should narrow."""

    kind: Kind
    parameter: str = ""
    cells: tuple[Mapping[str, float], ...] = ()
    """Cells to predict; if empty, every measured and candidate configuration."""
    rows: pd.DataFrame | None = field(default=None, compare=False, repr=False)
    """A table of cells in place of ``cells``: see :func:`target_rows`."""

    @property
    def text(self) -> str:
        """Describe the target in words."""
        if self.rows is not None:
            return f"the prediction at {counted(len(self.rows), 'target row')}"
        if self.kind == "parameter":
            return f"the interval of {self.parameter}"
        if self.kind == "predict":
            return "the prediction at " + (
                "; ".join(cell_text(cell) for cell in self.cells) or "every measured and candidate cell"
            )
        return "which law is right" if self.kind == "discriminate" else "the seed noise"


def read_target(text: str) -> Target:
    """The target in ``text``: "parameter=alpha", "predict latent_dim=16,codebook_size=2**18", "predict" (every cell),
    "discriminate" or "noise". Raises AnalysisError for anything else."""
    word, _, rest = text.strip().partition(" ")
    kind, _, name = word.partition("=")
    if kind == "parameter" and name and not rest:
        return Target("parameter", name)
    if word in ("discriminate", "noise") and not rest:
        return Target("discriminate" if word == "discriminate" else "noise")
    if word == "predict":
        cells: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in rest.split(","))):
            axis, _, value = part.partition("=")
            found = _NUMBER.fullmatch(value)
            if not found:
                raise AnalysisError(f"target {text!r}: {part!r} is not AXIS=NUMBER, such as codebook_size=2**18")
            cells[axis.strip()] = float(found[1]) ** int(found[2] or 1)
        return Target("predict", cells=(cells,) if cells else ())
    raise AnalysisError(
        f"target {text!r} is none of: parameter=NAME; predict AXIS=NUMBER,... (or predict alone, for every cell); "
        "discriminate; noise"
    )


def target_rows(frame: pd.DataFrame) -> Target:
    """Make the prediction of every row of ``frame`` the target. Columns that no law reads are ignored.

    Raises AnalysisError for a table without a row."""
    if frame.empty:
        raise AnalysisError("the table of target rows has no row; each of its rows is a cell to predict")
    return Target("predict", rows=frame.reset_index(drop=True))


def plain(value: object) -> object:
    """A cell of a table as a plain number or text."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | float | np.integer | np.floating):
        return int(value) if float(value).is_integer() else float(value)
    return None if value is None or value is pd.NA else str(value)


def cell_text(cell: Mapping[str, object]) -> str:
    """ "latent_dim=16 groups=8"."""
    words = ((name, plain(value)) for name, value in cell.items())
    return " ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in words)


def interval_text(pair: tuple[float, float]) -> str:
    """ "1.2 to 3.4", or "open"."""
    return "open" if not np.isfinite(pair).all() else f"{pair[0]:.4g} to {pair[1]:.4g}"
