"""Tables: reading one, choosing a protocol, derived axes, and the rows that a fit may use.

Works on any DataFrame that has the columns it needs. What ``protocol``, ``state``, ``signature``, ``step`` and
``repeat`` say counts in gsq's own tables alone (:func:`is_results`); in any other table they are columns like the rest,
and every row is a run of its own. Column names and units of results: ``gsq.sweeps.schema.columns``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from gsq.analysis.errors import AnalysisError
from gsq.analysis.tables import reading
from gsq.analysis.tables.columns import (
    Array,
    Index,
    completed,
    is_results,
    labels,
    moved,
    numbers,
    quoted,
    require_columns,
    require_shown,
    single,
    unquoted,
    varying,
    with_derived,
)
from gsq.analysis.tables.left_out import REPEATED, Excluded, failure_warnings, large_end, protocol_warnings
from gsq.analysis.tables.remembering import remembered
from gsq.config.axes import CONFIGURATION
from gsq.sweeps.schema import columns as schema
from gsq.words import counted

__all__ = [
    "REPEATED",
    "Array",
    "Excluded",
    "Index",
    "completed",
    "configuration_ids",
    "is_results",
    "labels",
    "large_end",
    "load_reference",
    "load_results",
    "load_table",
    "measured",
    "moved",
    "numbers",
    "protocol_counts",
    "quoted",
    "require_columns",
    "require_shown",
    "results_table",
    "rows_taken",
    "select_protocol",
    "single",
    "states",
    "unquoted",
    "varying",
    "with_derived",
]


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
    frame = _with_other_axes(frame)
    return frame if protocol is None else select_protocol(frame, protocol)


def load_reference() -> pd.DataFrame:
    """The numbers that the GSQ paper prints (arXiv 2412.02632v2) as a results table, one row a trained model.

    They ship with the package, to fit them or to compare with your own; results/reference/README.md says more."""
    return load_results(Path(__file__).with_name("gsq_paper.parquet"))


def load_table(path: str | Path, protocol: str | None = None) -> pd.DataFrame:
    """Read a results table, or any other table: Parquet, Feather, or text with a line of column names (CSV, tabs or
    other separators; also gz, bz2, xz). See :func:`load_results` and :mod:`gsq.analysis.tables.reading`.

    Raises AnalysisError for a file that is missing or no such table, naming the line where it is one of text.
    """
    path = Path(path)
    try:
        start = path.open("rb").read(8) if path.is_file() else b""
    except OSError as error:
        raise AnalysisError(f"{path}: cannot be read ({error.strerror})") from error
    parquet = path.suffix.lower() in (".parquet", ".pq") or start.startswith(b"PAR1")
    if path.is_file() and start.startswith(b"ARROW1"):
        frame = reading.read_feather(path)
    elif path.is_file() and not parquet:
        frame = reading.read_text(path, _own_text)
    elif path.is_file() and start.startswith(b"PAR1") and (kind := _foreign_kind(path)):
        frame = reading.read_parquet(path)
        if kind == "curves":
            frame.attrs["curves"] = str(path)
    else:
        return load_results(path, protocol)
    frame = _with_other_axes(_with_text_signatures(frame)) if is_results(frame) else frame
    return frame if protocol is None else select_protocol(frame, protocol)


def _foreign_kind(path: Path) -> str:
    """ "curves" for a Parquet file of training curves, "other" for one that is no table of gsq's, "" for a results
    table (or for a file that cannot be read, which its reader says better)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        known = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError):
        return ""
    return "" if b"gsq_schema_version" in known else "curves" if b"gsq_curves_version" in known else "other"


def _own_text(names: Sequence[str]) -> list[str]:
    """The columns of a results table that hold text, where the names are those of one: a signature such as 12345e678901
    is no number."""
    if "signature" not in names or not {"sweep", "step", "protocol"} & {*names}:
        return []
    return [c.name for c in schema.COLUMNS if c.type == "string"]


def _with_text_signatures(frame: pd.DataFrame) -> pd.DataFrame:
    """Signatures and protocols that another tool has read as whole numbers become text of 12 digits again."""
    for name in ("signature", "protocol"):
        if name in frame and pd.api.types.is_integer_dtype(frame[name].dtype):
            text = [None if pd.isna(value) else f"{value:012d}" for value in frame[name]]
            frame = frame.assign(**{name: pd.Series(text, index=frame.index, dtype=object)})
    return frame


def _with_other_axes(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` with the config keys in ``other_axes`` as columns of their own, where it has none of them yet."""
    if "other_axes" not in frame:
        return frame
    others = [json.loads(text) if isinstance(text, str) and text else {} for text in frame["other_axes"]]
    new = pd.DataFrame(others, index=frame.index)
    return pd.concat([frame, new[[name for name in new if name not in frame]]], axis=1)


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
        listed = "; ".join(f"{name} ({counted(count, 'row')})" for name, count in counts.items()) or "none"
        what = "matches several protocols" if matches else "is not a protocol of this table"
        raise AnalysisError(f"protocol {protocol!r} {what}. Protocols and their rows: {listed}")
    chosen = frame["protocol"] == matches[0]
    if not is_results(frame):
        return frame[chosen].reset_index(drop=True)
    others = frame[~frame["signature"].isin(frame.loc[chosen, "signature"])]
    others = _last_steps(others).copy()
    blank = [c.name for c in schema.COLUMNS if c.role in ("metric", "protocol") or c.name == "step"]
    for name in blank:
        if name in others:
            others[name] = pd.Series([None] * len(others), index=others.index, dtype=others[name].dtype)
    return pd.concat([part for part in (frame[chosen], others) if len(part)]).sort_index().reset_index(drop=True)


def as_asked(frame: pd.DataFrame, target: str = "rfid") -> pd.DataFrame:
    """Keep the rows of the protocol that the sweep's file asks for (column ``asked``), where a table has several.

    Where the file asks for several protocols (sizes of images), the rows of all of them stay; where it asks for none,
    every row does.
    """
    if "asked" not in frame or "protocol" not in frame or len(protocol_counts(frame, target)) < 2:
        return frame
    counts = protocol_counts(frame[frame["asked"].fillna(False).astype(bool)], target)
    if len(counts) == 1:
        return select_protocol(frame, next(iter(counts)))
    return frame[frame["protocol"].isin(list(counts)) | frame["protocol"].isna()] if counts else frame


def protocol_counts(frame: pd.DataFrame, target: str = "rfid") -> dict[str, int]:
    """How many rows with a ``target`` each protocol has, the most frequent first.

    Counts by feature extractor where a table names no protocol. A table that is not gsq's has protocols only if the
    target is a metric of the schema."""
    name = next((n for n in ("protocol", "features") if n in frame), None)
    if name is None or target not in frame:
        return {}
    metric = target in schema.BY_NAME and schema.BY_NAME[target].role == "metric"
    if not is_results(frame) and (not metric or pd.api.types.is_numeric_dtype(frame[name].dtype)):
        return {}
    names = frame.loc[frame[target].notna(), name]
    if not names.notna().any():
        return {}
    return {str(key): int(count) for key, count in names.fillna("(none)").value_counts().items()}


@remembered
def measured(
    frame: pd.DataFrame, target: str = "rfid", columns: Sequence[str] = (), factors: Sequence[str] = ()
) -> tuple[pd.DataFrame, Excluded]:
    """Select the rows that a fit uses, and count what is left out.

    A fit uses :func:`rows_taken` with a finite ``target`` (positive, if it is rfid) and no empty value in ``columns``,
    which hold numbers, or in ``factors``, which may hold text. From gsq's own tables it uses only rows of state done
    that do not repeat a run under other code. Absent derived axes are added. Among several protocols, it uses the one
    that the sweep's file asks for (``as_asked``). Raises AnalysisError where the table is empty, lacks a
    column or has two of one name, mixes evaluation protocols, or has no row with a value."""
    if frame.empty:
        raise AnalysisError("the table has no rows. Gather a sweep first: gsq gather SWEEP")
    reading.refuse_twins([*frame.columns], "the table")
    frame = reading.plain_columns(frame)
    require_columns(frame, target)
    frame = as_asked(frame, target)
    counts = protocol_counts(frame, target)
    if len(counts) > 1:
        listed = "; ".join(f"{name} ({counted(count, 'row')})" for name, count in counts.items())
        raise AnalysisError(
            f"the table mixes {len(counts)} evaluation protocols, whose {target} values cannot be compared: {listed}. "
            f"Select one: protocol={next(iter(counts))!r} in load_results, or --protocol on the command line"
        )
    frame = _one_probe(frame, (target, *columns))
    cells = with_derived(rows_taken(frame, target, columns)).reset_index(drop=True)
    reasons = _reasons(cells, target, columns, factors)
    left_out = Counter(reason for reason in reasons if reason)
    keep = np.array([not reason for reason in reasons])
    if not keep.any():
        listed = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
        hint = ". See gsq status SWEEP for the reasons; when runs have finished, gather again"
        raise AnalysisError(f"none of the {len(cells)} cells has a value: {listed}{hint if is_results(cells) else ''}")
    failed = np.array([reason.startswith("failed") for reason in reasons])
    warnings = (*failure_warnings(cells, keep, failed), *protocol_warnings(cells[keep]))
    excluded = Excluded(len(cells), int(keep.sum()), dict(left_out), warnings)
    return cells[keep].reset_index(drop=True), excluded


def _one_probe(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The rows with a generation probe, where a fit reads its columns. Raises AnalysisError for several protocols."""
    names = [name for name in columns if name in schema.PROBED and name in frame]
    if not names or "probe_protocol" not in frame or not is_results(frame):
        return frame
    found = frame.loc[frame[names].notna().all(axis=1), "probe_protocol"]
    counts = found.fillna("(none)").value_counts()
    if len(counts) > 1:
        listed = "; ".join(f"{name} ({counted(count, 'row')})" for name, count in counts.items())
        raise AnalysisError(
            f"the table mixes {len(counts)} probe protocols, whose {names[0]} values cannot be compared: {listed}. "
            f"Select one: --where \"probe_protocol == '{counts.index[0]}'\""
        )
    # A cell with another probe alone stays visible, as one without a value.
    kept = frame["probe_protocol"].isna() | frame["probe_protocol"].isin(counts.index)
    return frame[kept | ~frame["signature"].isin(frame.loc[kept, "signature"])]


def rows_taken(frame: pd.DataFrame, target: str = "rfid", columns: Sequence[str] = ()) -> pd.DataFrame:
    """The rows that a law with these ``columns`` is about: in gsq's own tables the last evaluated step of each run, or
    every evaluation where the law reads ``step``; in any other table every row.

    Fits, comparisons, reports, cards, figures and designs all call this function.
    """
    if not is_results(frame) or frame["signature"].isna().all():
        return frame
    if "step" not in frame or "step" not in columns:
        return _last_steps(frame, target)
    # A run that several sweeps share has its evaluations once.
    ordered = _by_presence(frame.reset_index(drop=True), target)
    again = ordered["signature"].notna() & ordered.duplicated(["signature", "step"], keep="last")
    return ordered[~again].sort_index()


def states(frame: pd.DataFrame) -> list[str]:
    """The state of each row; every row of a table that is not gsq's is done."""
    if "state" not in frame or not is_results(frame):
        return ["done"] * len(frame)
    return [str(state) for state in frame["state"].fillna("done")]


def _by_presence(frame: pd.DataFrame, target: str) -> pd.DataFrame:
    """Move rows without a ``target`` to the front; otherwise keep the order."""
    if target not in frame:
        return frame
    return frame.assign(_there=frame[target].notna()).sort_values("_there", kind="stable").drop(columns="_there")


def _last_steps(frame: pd.DataFrame, target: str = "rfid") -> pd.DataFrame:
    """One row for each signature, that of its largest step (a null step counts as the smallest). Among rows of one
    step, as of several protocols, one with a ``target`` wins."""
    if not is_results(frame) or "step" not in frame or frame["signature"].isna().all():
        return frame
    ordered = _by_presence(frame, target)
    ordered = ordered.assign(_step=numbers(ordered, "step")).sort_values("_step", na_position="first", kind="stable")
    unnamed = ordered["signature"].isna()
    keep = unnamed | ~ordered["signature"].duplicated(keep="last")
    return ordered[keep].drop(columns="_step").sort_index()


def _reasons(cells: pd.DataFrame, target: str, columns: Sequence[str], factors: Sequence[str] = ()) -> list[str]:
    """Why each cell cannot be used, in words; "" for one that can."""
    own = is_results(cells)
    failures = cells["failure"].fillna("error") if own and "failure" in cells else ["error"] * len(cells)
    empty = {name: np.isnan(numbers(cells, name)) for name in columns}
    empty |= {name: labels(cells, name) == "" for name in factors}
    repeats = numbers(cells, "repeat") if own and "repeat" in cells else np.zeros(len(cells))
    reasons = []
    for i, (state, failure, value) in enumerate(zip(states(cells), failures, numbers(cells, target), strict=True)):
        if repeats[i] > 0:
            reasons.append(REPEATED)
        elif state == "failed":
            reasons.append(f"failed ({failure})")
        elif state != "done":
            reasons.append(state)
        elif np.isnan(value):
            evaluated = own and "state" in cells and target not in schema.PROBED
            reasons.append("done but not evaluated" if evaluated else f"without {target}")
        elif not np.isfinite(value) or (target == "rfid" and value <= 0):
            reasons.append(f"with {'an' if target == 'rfid' else 'a'} {target} that is not finite and positive")
        else:
            reasons.append(next((f"without {name}" for name, holes in empty.items() if holes[i]), ""))
    return reasons


def configuration_ids(frame: pd.DataFrame, columns: Sequence[str] = ()) -> Index:
    """Shape (rows,): rows that differ only in the seed share a number, counted from 0 in order of appearance.

    They differ in the axes of a results table or in ``columns``, those of a law. Without any, each row is its own.
    """
    axes = [name for name in dict.fromkeys([*CONFIGURATION, *columns]) if name in frame]
    if not axes:
        return np.arange(len(frame))
    return frame.groupby(axes, dropna=False, sort=False).ngroup().to_numpy().astype(np.int64)


def results_table(frame: pd.DataFrame) -> pd.DataFrame:
    """A compact frame to show: the axes that vary, bits_per_pixel, rfid, psnr_db (dB), usage, perplexity,
    device_seconds, state; one row a cell (its last step), sorted by bits_per_pixel. Failed cells stay in. A table that
    has none of these columns is shown as it is."""
    cells = with_derived(_last_steps(as_asked(frame)))
    names = [*varying(cells), *varying(cells, ("seed", "protocol")), "bits_per_pixel", "rfid", "psnr_db"]
    names += ["usage", "perplexity", "device_seconds", "state"]
    if "failure" in cells and cells["failure"].notna().any():
        names.append("failure")
    order = [name for name in ("bits_per_pixel", *varying(cells)) if name in cells]
    shown = cells.sort_values(order, kind="stable") if order else cells
    return shown[[name for name in names if name in shown] or [*shown]].reset_index(drop=True)
