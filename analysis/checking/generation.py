"""Summarise generation probes: learned rates, gFID beside rFID, and where their two orders disagree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from gsq.analysis.errors import AnalysisError
from gsq.analysis.jsonable import jsonable
from gsq.analysis.tables.table import is_results, measured, numbers, varying
from gsq.config.axes import CONFIGURATION, SYMBOLS
from gsq.words import counted, span


@dataclass(frozen=True)
class Generation:
    """The probed cells of a table, under one evaluation protocol and one probe protocol."""

    probe: str
    """The probe's size and protocol."""
    cells: tuple[str, ...]
    """The varying axes of each cell, in words."""
    prior_bits_per_pixel: tuple[float, ...]
    rfid: tuple[float, ...]
    gfid: tuple[float, ...]
    converged: int
    """Number of cells whose probe has levelled off."""
    overfit: int
    """Number of cells whose probe got worse on held-out images."""
    correlation: float
    """Rank correlation of rfid and gfid; NaN for fewer than three cells."""
    disagree: tuple[tuple[str, str], ...]
    """Pairs of cells where the first has the lower rfid and the second the lower gfid, the widest first."""

    @property
    def pairs(self) -> int:
        return len(self.cells) * (len(self.cells) - 1) // 2

    @property
    def lines(self) -> tuple[str, ...]:
        """Return the findings, in sentences."""
        least = int(np.argmin(self.gfid))
        rate = self.prior_bits_per_pixel
        found = [
            f"Probe {self.probe}: {span(f'{min(rate):.3g}', f'{max(rate):.3g}')} prior bits per pixel over "
            f"{counted(len(self.cells), 'cell')}; the least gFID is {self.gfid[least]:.4g}, at {self.cells[least]} "
            f"({rate[least]:.3g} prior bits per pixel, rFID {self.rfid[least]:.4g})",
            f"The orders by rFID and by gFID differ in {len(self.disagree)} of {counted(self.pairs, 'pair')} of cells "
            f"(rank correlation {self.correlation:+.2f})",
        ]
        if self.disagree:
            better, other = self.disagree[0]
            found.append(f"Most so {better} (lower rFID) and {other} (lower gFID)")
        if self.converged < len(self.cells):
            found.append(f"{len(self.cells) - self.converged} of the probes had not levelled off (probe_converged)")
        if self.overfit:
            found.append(f"{self.overfit} of the probes got worse on held-out images (probe_overfits)")
        return tuple(found)

    @property
    def text(self) -> str:
        return ". ".join(self.lines) + "."

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {**jsonable(self), "lines": list(self.lines)}


def generation(frame: pd.DataFrame) -> Generation:
    """Compare rFID and gFID over the probed cells. Raises AnalysisError where there are none, or several protocols."""
    if not is_results(frame) or "gfid" not in frame or not frame["gfid"].notna().any():
        raise AnalysisError(
            "no cell has a gfid: probe the finished cells with gsq evaluate SWEEP --probe tiny, and gather again"
        )
    rows, _ = measured(frame, "gfid", ("prior_bits_per_pixel", "rfid"))
    rate, rfid, gfid = (numbers(rows, name) for name in ("prior_bits_per_pixel", "rfid", "gfid"))
    names = varying(rows, (*CONFIGURATION, "seed"))
    cells = [" ".join(f"{SYMBOLS.get(n, n)}={row[n]}" for n in names) or "cell" for _, row in rows.iterrows()]
    apart: list[tuple[float, tuple[str, str]]] = []
    for i in range(len(rows)):
        for j in range(len(rows)):
            if rfid[i] < rfid[j] and gfid[i] > gfid[j]:
                apart.append((float(np.log(rfid[j] / rfid[i]) * np.log(gfid[i] / gfid[j])), (cells[i], cells[j])))
    correlation = np.nan
    if len(rows) > 2 and np.ptp(rfid) > 0 and np.ptp(gfid) > 0:
        correlation = float(np.corrcoef(pd.Series(rfid).rank(), pd.Series(gfid).rank())[0, 1])
    return Generation(
        f"{rows['probe'].iloc[0]} ({rows['probe_protocol'].iloc[0]})",
        tuple(cells),
        tuple(rate.tolist()),
        tuple(rfid.tolist()),
        tuple(gfid.tolist()),
        int(rows["probe_converged"].fillna(False).astype(bool).sum()),
        int(rows["probe_overfits"].fillna(False).astype(bool).sum()),
        correlation,
        tuple(pair for _, pair in sorted(apart, key=lambda one: -one[0])),
    )
