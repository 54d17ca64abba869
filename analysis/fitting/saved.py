"""Load fits that ``gsq fit --output`` saved, by repeating them on their table, with the same numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.fit import fit_rows
from gsq.analysis.fitting.options import Options
from gsq.analysis.fitting.result import Fit
from gsq.analysis.laws.named import LAWS, get_law
from gsq.analysis.tables.selecting import select

_CHANGED = 1e-6  # relative, in the sum that was minimised


def read_saved(path: str | Path) -> tuple[str | list[str], list[dict[str, Any]]]:
    """Read a file of ``gsq fit --output``: the table as it was named (or a list of several), and the fits.

    Raises AnalysisError where the file is no such file, or was saved by a version that did not keep how it was fitted.
    """
    path = Path(path)
    again = f"fit it again: gsq fit TABLE --law LAW --output {path}"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AnalysisError(f"{path}: cannot be read as a saved fit ({error})") from error
    found = document.get("fits") if isinstance(document, dict) else None
    if not isinstance(found, list) or not found or not isinstance(document.get("table"), str | list):
        raise AnalysisError(f"{path}: holds no fit of a table, as gsq fit --output saves them; {again}")
    if document.get("by"):
        raise AnalysisError(f"{path}: fits of parts of a table (--by {document['by']}) cannot be made again; {again}")
    if any("options" not in one or "bounds" not in one for one in found):
        raise AnalysisError(f"{path}: was saved by an older gsq, which did not keep the options of a fit; {again}")
    return document["table"], found


def choose_saved(path: str | Path, fits: list[dict[str, Any]], law: str | None) -> dict[str, Any]:
    """Find the fit of ``law`` (its name or formula), or the only one. Raises AnalysisError naming the saved ones."""
    names = [one["law"] for one in fits]
    chosen = [one for one in fits if law in (None, one["law"], one["formula"])]
    if len(chosen) != 1:
        problem = f"no fit of {law!r}" if law else f"{len(fits)} fits"
        raise AnalysisError(f"{path}: holds {problem}; name one of them with --law: {', '.join(names)}")
    return chosen[0]


def fit_again(saved: Mapping[str, Any], frame: pd.DataFrame) -> Fit:
    """Repeat the fit whose ``to_dict`` is ``saved`` on its table. Raises AnalysisError if the result differs."""
    named, frame = LAWS.get(saved["law"]), select(frame, saved.get("where"))
    law = get_law(
        saved["formula"],
        [str(name) for name in frame.columns],
        {name: (_end(low, -np.inf), _end(high, np.inf)) for name, (low, high) in saved["bounds"].items()},
        {name: (float(low), float(high)) for name, (low, high) in saved["starts"].items()},
        list(saved["outputs"]) if saved.get("outputs") else None,
    )
    law = replace(law, name=saved["law"], source=saved["source"], holds_for=named.holds_for if named else {})
    known = {one.name for one in fields(Options)}
    options = Options(**{name: value for name, value in saved["options"].items() if name in known})
    rows, excluded = law.rows(frame)
    found = fit_rows(rows, excluded, law, options)
    if found.n_rows != saved["n_rows"] or abs(found.cost - saved["cost"]) > _CHANGED * abs(saved["cost"]) + 1e-20:
        raise AnalysisError(
            f"the table of {law.name} has changed since it was fitted ({saved['n_rows']} rows and a sum of "
            f"{saved['cost']:.6g} then, {found.n_rows} and {found.cost:.6g} now): fit it again"
        )
    return found


def _end(end: float | str | None, open_end: float) -> Any:
    return open_end if end is None else end
