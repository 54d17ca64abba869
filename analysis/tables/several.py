"""Several tables as one, in which a run that they share counts once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from gsq.analysis.errors import AnalysisError
from gsq.analysis.tables.table import as_asked, is_results, load_table, protocol_counts, select_protocol


def load_tables(paths: Sequence[str | Path], protocol: str | None = None) -> pd.DataFrame:
    """The rows of all tables, read by :func:`~gsq.analysis.tables.table.load_table`.

    An evaluation (signature, step, protocol) that several of gsq's own tables hold counts once, with the ``sweep`` of
    the first one; a row without an evaluation is dropped if another table has an evaluation of that run. All rows of
    other tables count, and the column ``table`` (unless there is one already) has the name of each row's file.
    ``protocol``: keep only its evaluations, in the tables that have it.

    Raises AnalysisError where a file is given twice, gsq's own tables are mixed with others or measured by different
    protocols, or two other tables have no column in common.
    """
    files = [Path(path) for path in paths]
    if len(files) == 1:
        return load_table(files[0], protocol)
    for number, path in enumerate(files):
        if any(path.resolve() == other.resolve() for other in files[:number]):
            raise AnalysisError(f"{path}: is given twice; leave one out")
    frames = [load_table(path) for path in files]
    own = [is_results(frame) for frame in frames]
    if len(set(own)) > 1:
        kinds = [f"{path} is {'a results table' if mine else 'not'}" for path, mine in zip(files, own, strict=True)]
        raise AnalysisError(
            f"gsq's results tables cannot be combined with other tables: {', '.join(kinds)}. Name tables of one kind"
        )
    if not own[0]:
        for path, frame in zip(files[1:], frames[1:], strict=True):
            if not {*frame.columns} & {*frames[0].columns}:
                raise AnalysisError(
                    f"{path} ({', '.join(map(str, frame.columns[:8]))}) has no column of {files[0]} "
                    f"({', '.join(map(str, frames[0].columns[:8]))}); rename its columns"
                )
        frames = [f if "table" in f else f.assign(table=path.stem) for path, f in zip(files, frames, strict=True)]
    if own[0] and protocol is None:
        _refuse_protocols(files, frames)
    together = _stacked(frames)
    if own[0]:
        key = [name for name in ("signature", "step", "protocol", "probe_protocol") if name in together]
        again = together.duplicated(key)
        if "step" in together:  # a run that one table knows as failed or planned, and another one as evaluated
            again |= together["step"].isna() & together["signature"].isin(
                together["signature"][together["step"].notna()]
            )
        together = together[together["signature"].isna() | ~again].reset_index(drop=True)
    return together if protocol is None else select_protocol(together, protocol)


def _refuse_protocols(files: Sequence[Path], frames: Sequence[pd.DataFrame]) -> None:
    """Raise AnalysisError where no protocol is among those that every measured table asks for."""
    counts = {path: protocol_counts(as_asked(frame)) for path, frame in zip(files, frames, strict=True)}
    asked = {path: {*found} for path, found in counts.items() if found}
    if asked and not set.intersection(*asked.values()):
        listed = "; ".join(f"{path}: {', '.join(found)}" for path, found in asked.items())
        raise AnalysisError(
            f"the tables were measured by different protocols, whose rfid values cannot be compared: {listed}. "
            "Evaluate one sweep as the other was (gsq evaluate) and gather it again, or select a protocol that both "
            "have with --protocol"
        )


def _stacked(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """All rows. A column without a value in one table takes the type that it has in another."""
    names = list(dict.fromkeys(name for frame in frames for name in frame))
    known = {name for frame in frames for name in frame if frame[name].notna().any()}
    full = [f[[name for name in f if name not in known or f[name].notna().any()]] for f in frames]
    return pd.concat(full, ignore_index=True)[names]
