"""Tables: reading one, choosing a protocol, derived axes, and the rows that a fit may use.

Works on any DataFrame that has the columns it needs; what is absent (protocol, state, signature) is taken as
"one protocol, every row done, every row its own run". Column names and units of results: ``sweeps.schema``.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.errors import AnalysisError
from sweeps import association, schema

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

# Axes that follow from the others, and what they follow from: (needs, formula). The paper's names: D, G, V, f.
DERIVED: dict[str, tuple[tuple[str, ...], Callable[..., Array]]] = {
    "group_dim": (("latent_dim", "groups"), lambda d, g: d / g),
    "bits_per_token": (("groups", "codebook_size"), lambda g, v: g * np.log2(v)),
    "bits_per_pixel": (("groups", "codebook_size", "downsample"), lambda g, v, f: g * np.log2(v) / f**2),
    "bits_per_dimension": (("latent_dim", "groups", "codebook_size"), lambda d, g, v: g * np.log2(v) / d),
    "compression_ratio": (("downsample", "latent_dim"), lambda f, d: 3 * f**2 / d),
    "tokens_per_image": (("groups", "image_size", "downsample"), lambda g, h, f: g * (h / f) ** 2),
}

# What makes a configuration. Seeds and repeats repeat it, and group_dim = D / G follows from two others.
CONFIGURATION_AXES: tuple[str, ...] = tuple(
    c.name for c in schema.COLUMNS if c.role == "axis" and c.name not in ("seed", "repeat", "group_dim")
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


# Why a repeat of a run, which has a value, is left out all the same.
REPEATED = "repeated to compare codes"


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
        if REPEATED in self.counts:
            return f"{missing} of {self.cells} cells {'is' if missing == 1 else 'are'} left out: {parts}"
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


def load_reference() -> pd.DataFrame:
    """The numbers that the GSQ paper prints (arXiv 2412.02632v2) as a results table, one row a trained model.

    They ship with the package, to be compared with one's own or fitted; results/reference/README.md says more."""
    return load_results(Path(__file__).with_name("gsq_paper.parquet"))


def load_table(path: str | Path, protocol: str | None = None) -> pd.DataFrame:
    """Read a results table, or any other table: Parquet or CSV with a header. See :func:`load_results`."""
    path = Path(path)
    if path.suffix.lower() in (".csv", ".tsv", ".txt") and path.is_file():
        try:
            frame = pd.read_csv(path, sep="," if path.suffix.lower() == ".csv" else r"\s+")
        except (ValueError, OSError) as error:
            raise AnalysisError(f"{path}: not a readable table ({str(error).splitlines()[0]})") from error
        return frame if protocol is None else select_protocol(frame, protocol)
    if path.is_file() and _is_foreign(path):
        frame = pd.read_parquet(path)
        return frame if protocol is None else select_protocol(frame, protocol)
    return load_results(path, protocol)


def _is_foreign(path: Path) -> bool:
    """Whether ``path`` is a Parquet file that no gsq wrote."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return b"gsq_schema_version" not in (pq.read_schema(path).metadata or {})
    except (pa.ArrowInvalid, OSError):
        return False


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


def as_asked(frame: pd.DataFrame, target: str = "rfid") -> pd.DataFrame:
    """The rows of the protocol that the sweep's file asks for, where a table has several and names it (``asked``).

    Those of all of them where the file asks for several (sizes of images), and every row where it asks for none.
    """
    if "asked" not in frame or "protocol" not in frame or len(protocol_counts(frame, target)) < 2:
        return frame
    counts = protocol_counts(frame[frame["asked"].fillna(False).astype(bool)], target)
    if len(counts) == 1:
        return select_protocol(frame, next(iter(counts)))
    return frame[frame["protocol"].isin(list(counts)) | frame["protocol"].isna()] if counts else frame


def protocol_counts(frame: pd.DataFrame, target: str = "rfid") -> dict[str, int]:
    """Protocol to number of rows with a ``target``, the most frequent first.

    Falls back to the feature extractor where a table names no protocol."""
    name = next((n for n in ("protocol", "features") if n in frame), None)
    if name is None or target not in frame:
        return {}
    names = frame.loc[frame[target].notna(), name]
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


def with_derived(frame: pd.DataFrame, *, fresh: bool = False) -> pd.DataFrame:
    """``frame`` with the derived axes that follow from its columns, where they are absent; ``fresh``: computed anew.

    Raises AnalysisError where an axis is zero or negative.
    """
    new: dict[str, Array] = {}
    for name, (axes, formula) in DERIVED.items():
        if (name in frame and not fresh) or any(axis not in frame for axis in axes):
            continue
        values = [numbers(frame, axis) for axis in axes]
        for axis, one in zip(axes, values, strict=True):
            if np.nanmin(one, initial=np.inf) <= 0:
                raise AnalysisError(f"column {axis!r} must be positive, got {np.nanmin(one):g}")
        new[name] = formula(*values)
    return frame.assign(**new) if new else frame


def measured(frame: pd.DataFrame, target: str = "rfid", columns: Sequence[str] = ()) -> tuple[pd.DataFrame, Excluded]:
    """The rows used in a fit, and a count of what was left out.

    Used: state done, no repeat of a run under other code, a finite ``target`` (positive, if it is rfid), no empty cell
    in ``columns``, the last evaluated step of each signature (every step, if ``columns`` name it); derived axes are
    added where they are absent. Of several protocols the one that the sweep's file asks for is taken (``as_asked``).
    Raises AnalysisError where the table is empty, lacks a column, mixes evaluation protocols, or has no row with a
    value.
    """
    if frame.empty:
        raise AnalysisError("the table has no rows. Gather a sweep first: gsq gather SWEEP")
    require_columns(frame, target)
    frame = as_asked(frame, target)
    counts = protocol_counts(frame, target)
    if len(counts) > 1:
        listed = "; ".join(f"{name} ({count} rows)" for name, count in counts.items())
        raise AnalysisError(
            f"the table mixes {len(counts)} evaluation protocols, whose {target} values cannot be compared: {listed}. "
            f"Select one: protocol={next(iter(counts))!r} in load_results, or --protocol on the command line"
        )
    last = frame if "step" in columns else _last_steps(frame)
    cells = with_derived(last).reset_index(drop=True)
    reasons = _reasons(cells, target, columns)
    left_out = Counter(reason for reason in reasons if reason)
    keep = np.array([not reason for reason in reasons])
    if not keep.any():
        listed = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
        raise AnalysisError(
            f"none of the {len(cells)} cells has a value: {listed}. See gsq status SWEEP for the reasons; "
            "when runs have finished, gather again"
        )
    failed = np.array([reason.startswith("failed") for reason in reasons])
    warnings = _failures_by_axis(cells, keep, failed) or _large_end_warning(cells, keep, failed)
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


def _reasons(cells: pd.DataFrame, target: str, columns: Sequence[str]) -> list[str]:
    """Why each cell cannot be used, in words; "" for one that can."""
    states = cells["state"].fillna("done") if "state" in cells else ["done"] * len(cells)
    failures = cells["failure"].fillna("error") if "failure" in cells else ["error"] * len(cells)
    empty = {name: np.isnan(numbers(cells, name)) for name in columns}
    # Of a results table only: another one's column of that name is its own.
    repeats = numbers(cells, "repeat") if {"repeat", "signature"} <= set(cells) else np.zeros(len(cells))
    reasons = []
    for i, (state, failure, value) in enumerate(zip(states, failures, numbers(cells, target), strict=True)):
        if repeats[i] > 0:
            reasons.append(REPEATED)
        elif state == "failed":
            reasons.append(f"failed ({failure})")
        elif state != "done":
            reasons.append(str(state))
        elif np.isnan(value):
            reasons.append("done but not evaluated" if "state" in cells else f"without {target}")
        elif not np.isfinite(value) or (target == "rfid" and value <= 0):
            reasons.append(f"with {'an' if target == 'rfid' else 'a'} {target} that is not finite and positive")
        else:
            reasons.append(next((f"without {name}" for name, holes in empty.items() if holes[i]), ""))
    return reasons


def _failures_by_axis(
    cells: pd.DataFrame, keep: npt.NDArray[np.bool_], failed: npt.NDArray[np.bool_]
) -> tuple[str, ...]:
    """A warning for each axis with which failure goes (sweeps.association: exact, corrected for the number of axes)."""
    ended = cells[keep | failed]
    if not failed.any():
        return ()
    tests = []
    for name in varying(ended):
        values = ended[name].tolist()
        # What is no number, or lacks somewhere, is tested as text.
        plain = ended[name].notna().all() and pd.api.types.is_numeric_dtype(ended[name])
        say = (lambda value: f"{value:g}") if plain else str
        tests += association.goes_with(
            name, values if plain else [*map(str, values)], failed[keep | failed].tolist(), say
        )
    return tuple(test.sentence for test in association.corrected(tests) if test.adjusted_p < association.LEVEL)


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
        "missing at random, and a fit over the survivors can be biased there",
    )


def large_end(name: str) -> int:
    """1 where large values of the axis cost more memory and time, -1 where small ones do (downsample)."""
    return _LARGE_END.get(name, 1)


def varying(frame: pd.DataFrame, names: Sequence[str] = CONFIGURATION_AXES) -> list[str]:
    """The columns among ``names`` that are present and take more than one value (null is not a value)."""
    return [name for name in names if name in frame and frame[name].nunique() > 1]


def single(frame: pd.DataFrame, name: str) -> str | None:
    """The one value of column ``name``, as text; None where it is absent or takes none or several."""
    values: list[object] = list(frame[name].dropna().unique()) if name in frame else []
    return str(values[0]) if len(values) == 1 else None


def configuration_ids(frame: pd.DataFrame, columns: Sequence[str] = ()) -> Index:
    """Shape (rows,): rows that differ only in the seed share a number, counted from 0 in order of appearance.

    They differ in the axes of a results table or in ``columns``, those of a law. Without any, each row is its own.
    """
    axes = [name for name in dict.fromkeys([*CONFIGURATION_AXES, *columns]) if name in frame]
    if not axes:
        return np.arange(len(frame))
    return frame.groupby(axes, dropna=False, sort=False).ngroup().to_numpy().astype(np.int64)


def results_table(frame: pd.DataFrame) -> pd.DataFrame:
    """A compact frame to show: the axes that vary, bits_per_pixel, rfid, psnr_db (dB), usage, perplexity,
    device_seconds, state; one row a cell (its last step), sorted by bits_per_pixel. Failed cells stay in."""
    cells = with_derived(_last_steps(as_asked(frame)))
    names = [*varying(cells), *varying(cells, ("seed", "protocol")), "bits_per_pixel", "rfid", "psnr_db"]
    names += ["usage", "perplexity", "device_seconds", "state"]
    if "failure" in cells and cells["failure"].notna().any():
        names.append("failure")
    order = [name for name in ("bits_per_pixel", *varying(cells)) if name in cells]
    shown = cells.sort_values(order, kind="stable") if order else cells
    return shown[[name for name in names if name in shown]].reset_index(drop=True)
