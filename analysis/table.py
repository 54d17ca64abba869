"""Results tables: reading one, choosing a protocol, and the rows that a fit may use.

Works on any DataFrame that has the columns it needs; what is absent (protocol, state, signature) is taken as
"one protocol, every row done, every row its own run". Column names and units: ``sweeps.schema``.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.errors import AnalysisError
from sweeps import schema

Array = npt.NDArray[np.float64]

# What makes a configuration. The seed repeats it, and group_dim = D / G follows from two others.
CONFIGURATION_AXES: tuple[str, ...] = tuple(
    c.name for c in schema.COLUMNS if c.role == "axis" and c.name not in ("seed", "group_dim")
)
# Axes whose large end (for downsample: the small end) costs more memory and time, where runs die first.
_LARGE_END = {
    "latent_dim": 1,
    "groups": 1,
    "codebook_size": 1,
    "downsample": -1,
    "width": 1,
    "image_size": 1,
    "batch_size": 1,
    "bits_per_pixel": 1,
    "learning_rate": 1,
}


@dataclass(frozen=True)
class Excluded:
    """What a fit leaves out. Cells are runs: one for each signature."""

    cells: int
    """Cells in the table."""
    used: int
    """Cells with a value."""
    counts: dict[str, int]
    """Reason in words to number of cells."""
    warnings: tuple[str, ...] = ()
    """Where the failed cells sit at the large end of an axis."""

    @property
    def text(self) -> str:
        """For instance "3 of 12 cells have no value: 2 failed (out_of_memory), 1 queued"; "" if none."""
        if not self.counts:
            return ""
        missing = self.cells - self.used
        parts = ", ".join(f"{count} {reason}" for reason, count in sorted(self.counts.items()))
        return f"{missing} of {self.cells} cells {'has' if missing == 1 else 'have'} no value: {parts}"


def load_results(path: str | Path, protocol: str | None = None) -> pd.DataFrame:
    """Read a results table (Parquet, written by ``gsq gather``). Config keys that the sweep varied and that have no
    column of the schema become columns under their own names, such as ``quantizer.init``.

    ``protocol``: keep the evaluations of this protocol, see :func:`select_protocol`. Raises AnalysisError
    where the file is missing or is not a results table, or where it holds no row of the protocol.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.parquet")) if path.parent.is_dir() else []
        there = f"; tables there: {', '.join(near[:8])}" if near else ""
        raise AnalysisError(f"{path}: no such results table{there}. Make one with: gsq gather SWEEP")
    try:
        frame = schema.read_table(path)
    except schema.SchemaError as error:
        raise AnalysisError(str(error)) from error
    others = [json.loads(text) if isinstance(text, str) else {} for text in frame["other_axes"]]
    frame = pd.concat([frame, pd.DataFrame(others, index=frame.index)], axis=1)
    return frame if protocol is None else select_protocol(frame, protocol)


def select_protocol(frame: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """The rows evaluated under ``protocol`` (its hash, or the unique beginning of it).

    A cell that has no evaluation under it keeps one row, without metrics, so that it stays visible.
    """
    require_columns(frame, "protocol")
    counts = protocol_counts(frame)
    matches = [name for name in counts if name.startswith(protocol)] if protocol else []
    if protocol in matches:
        matches = [protocol]
    if len(matches) != 1:
        listed = "; ".join(f"{name} ({count} rows)" for name, count in counts.items()) or "none"
        what = "matches several protocols" if matches else "is not a protocol of this table"
        raise AnalysisError(f"protocol {protocol!r} {what}. Protocols and their rows: {listed}")
    chosen = frame["protocol"] == matches[0]
    if "signature" not in frame:
        return frame[chosen].reset_index(drop=True)
    others = frame[~frame["signature"].isin(frame.loc[chosen, "signature"])]
    others = _last_steps(others).copy()
    blank = [c.name for c in schema.COLUMNS if c.role in ("metric", "protocol") or c.name == "step"]
    for name in blank:
        if name in others:
            others[name] = pd.Series([None] * len(others), index=others.index, dtype=others[name].dtype)
    return pd.concat([part for part in (frame[chosen], others) if len(part)]).sort_index().reset_index(drop=True)


def protocol_counts(frame: pd.DataFrame) -> dict[str, int]:
    """Protocol to number of rows with an rfid, the most frequent first.

    Falls back to the feature extractor where a table names no protocol."""
    name = next((n for n in ("protocol", "features") if n in frame), None)
    if name is None or "rfid" not in frame:
        return {}
    names = frame.loc[frame["rfid"].notna(), name]
    if not names.notna().any():
        return {}
    return {str(key): int(count) for key, count in names.fillna("(none)").value_counts().items()}


def require_columns(frame: pd.DataFrame, *names: str) -> None:
    """Raise AnalysisError naming the first column that ``frame`` lacks."""
    for name in names:
        if name not in frame.columns:
            columns = [str(column) for column in frame.columns]
            near = difflib.get_close_matches(name, columns, 3) or columns[:8]
            raise AnalysisError(
                f"column {name!r} is missing from the table; it has {len(columns)} columns, such as "
                f"{', '.join(near)}. Gather the sweep again (gsq gather SWEEP), or add the column"
            )


def numbers(frame: pd.DataFrame, name: str) -> Array:
    """Column ``name`` as float64 of shape (rows,); null becomes NaN. Raises AnalysisError if not numeric."""
    require_columns(frame, name)
    try:
        return frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise AnalysisError(f"column {name!r} holds something that is not a number: {error}") from error


def with_bits_per_pixel(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` with bits_per_pixel = G log2(V) / f^2 where it is absent and its three axes are present."""
    axes = ("groups", "codebook_size", "downsample")
    if "bits_per_pixel" in frame or any(name not in frame for name in axes):
        return frame
    groups, size, downsample = (numbers(frame, name) for name in axes)
    for name, values in zip(axes, (groups, size, downsample), strict=True):
        if np.nanmin(values, initial=np.inf) <= 0:
            raise AnalysisError(f"column {name!r} must be positive, got {np.nanmin(values):g}")
    return frame.assign(bits_per_pixel=groups * np.log2(size) / downsample**2)


def measured(frame: pd.DataFrame) -> tuple[pd.DataFrame, Excluded]:
    """The rows used in a fit, and a count of what was left out.

    Used: state done, finite positive rfid, the last evaluated step of each signature; bits_per_pixel is added
    where it is absent and follows from the axes. Raises AnalysisError where the table is empty, has no column
    rfid, mixes evaluation protocols, or has no cell with a value.
    """
    if frame.empty:
        raise AnalysisError("the table has no rows. Gather a sweep first: gsq gather SWEEP")
    require_columns(frame, "rfid")
    counts = protocol_counts(frame)
    if len(counts) > 1:
        listed = "; ".join(f"{name} ({count} rows)" for name, count in counts.items())
        raise AnalysisError(
            f"the table mixes {len(counts)} evaluation protocols, whose rfid values cannot be compared: "
            f"{listed}. "
            f"Select one: protocol={next(iter(counts))!r} in load_results, or --protocol on the command line"
        )
    cells = with_bits_per_pixel(_last_steps(frame)).reset_index(drop=True)
    reasons = _reasons(cells)
    left_out = Counter(reason for reason in reasons if reason)
    keep = np.array([not reason for reason in reasons])
    if not keep.any():
        listed = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
        raise AnalysisError(
            f"none of the {len(cells)} cells has a value: {listed}. See gsq status SWEEP for the reasons; "
            "when runs have finished, gather again"
        )
    failed = np.array([reason.startswith("failed") for reason in reasons])
    warnings = _large_end_warning(cells, keep, failed)
    excluded = Excluded(len(cells), int(keep.sum()), dict(left_out), warnings)
    return cells[keep].reset_index(drop=True), excluded


def _last_steps(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a signature, the one of the largest step; a null step loses against any number."""
    if "signature" not in frame or "step" not in frame or frame["signature"].isna().all():
        return frame
    ordered = frame.assign(_step=numbers(frame, "step")).sort_values("_step", na_position="first", kind="stable")
    unnamed = ordered["signature"].isna()
    keep = unnamed | ~ordered["signature"].duplicated(keep="last")
    return ordered[keep].drop(columns="_step").sort_index()


def _reasons(cells: pd.DataFrame) -> list[str]:
    """Why each cell cannot be used, in words; "" for one that can."""
    states = cells["state"].fillna("done") if "state" in cells else ["done"] * len(cells)
    failures = cells["failure"].fillna("error") if "failure" in cells else ["error"] * len(cells)
    reasons = []
    for state, failure, rfid in zip(states, failures, numbers(cells, "rfid"), strict=True):
        if state == "failed":
            reasons.append(f"failed ({failure})")
        elif state != "done":
            reasons.append(str(state))
        elif np.isnan(rfid):
            reasons.append("done but not evaluated")
        else:
            reasons.append("" if 0 < rfid < np.inf else "with an rfid that is not finite and positive")
    return reasons


def _large_end_warning(
    cells: pd.DataFrame, keep: npt.NDArray[np.bool_], failed: npt.NDArray[np.bool_]
) -> tuple[str, ...]:
    """One warning naming the axes on which every failed cell lies beyond the median measured cell."""
    if not failed.any():
        return ()
    beyond = []
    for name, sign in _LARGE_END.items():
        if name not in cells:
            continue
        values = sign * numbers(cells, name)
        if np.all(values[failed] > np.nanmedian(values[keep])):
            beyond.append(f"{name} {'above' if sign > 0 else 'below'} {abs(np.nanmedian(values[keep])):g}")
    if not beyond:
        return ()
    count = int(failed.sum())
    who = "the failed cell has" if count == 1 else f"all {count} failed cells have"
    return (
        f"{who} {', '.join(beyond)} (the medians of the measured cells): failures at that end are not "
        "missing at "
        "random, and a fit over the survivors can be biased there",
    )


def varying(frame: pd.DataFrame, names: Sequence[str] = CONFIGURATION_AXES) -> list[str]:
    """The columns among ``names`` that are present and take more than one value (null is not a value)."""
    return [name for name in names if name in frame and frame[name].nunique() > 1]


def single(frame: pd.DataFrame, name: str) -> str | None:
    """The one value of column ``name``, as text; None where it is absent or takes none or several."""
    values: list[object] = list(frame[name].dropna().unique()) if name in frame else []
    return str(values[0]) if len(values) == 1 else None


def configuration_ids(frame: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Shape (rows,): rows that differ only in the seed share a number, counted from 0 in order of
    appearance."""
    axes = varying(frame)
    if not axes:
        single = not any(name in frame for name in CONFIGURATION_AXES)
        return np.arange(len(frame)) if single else np.zeros(len(frame), dtype=np.int64)
    return frame.groupby(axes, dropna=False, sort=False).ngroup().to_numpy().astype(np.int64)


def results_table(frame: pd.DataFrame) -> pd.DataFrame:
    """A compact frame to show: the axes that vary, bits_per_pixel, rfid, psnr_db (dB), usage, perplexity,
    device_seconds, state; one row a cell (its last step), sorted by bits_per_pixel. Failed cells stay in."""
    cells = with_bits_per_pixel(_last_steps(frame))
    names = [*varying(cells), *varying(cells, ("seed", "protocol")), "bits_per_pixel", "rfid", "psnr_db"]
    names += ["usage", "perplexity", "device_seconds", "state"]
    if "failure" in cells and cells["failure"].notna().any():
        names.append("failure")
    order = [name for name in ("bits_per_pixel", *varying(cells)) if name in cells]
    shown = cells.sort_values(order, kind="stable") if order else cells
    return shown[[name for name in names if name in shown]].reset_index(drop=True)
