"""Device hours that the cells of a results table have cost, including failed attempts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from gsq.analysis.tables.table import Array, is_results, states

HOUR = 3600.0


def cell_states(cells: pd.DataFrame) -> list[str]:
    """The state of each row, "stopped" for a cell that was cancelled; "done" where the table does not say."""
    known = states(cells)
    failures = cells["failure"] if "failure" in cells and is_results(cells) else [None] * len(cells)
    return ["stopped" if why == "cancelled" else state for state, why in zip(known, failures, strict=True)]


def spent_by_state(cells: pd.DataFrame) -> pd.DataFrame:
    """Sum device hours by state: ``state``, ``cells``, ``attempts``, ``device_hours`` and, among these,
    ``failed_hours`` in attempts that failed or were stopped (NaN where the table does not say).

    ``cells``: one row for each run. Returns an empty frame where the table has no device time.
    """
    spent = _spent(cells)
    return spent if spent.empty else spent.groupby("state", sort=True).sum(min_count=1).reset_index()


def spent_by_cell(cells: pd.DataFrame, settings: Sequence[str]) -> pd.DataFrame:
    """List device hours by cell, for cells that took any, the most expensive first: ``signature`` and ``setting`` (one
    of ``settings`` for each row), ``state``, ``attempts``, ``device_hours``, ``failed_hours``."""
    spent = _spent(cells)
    if spent.empty or "signature" not in cells:
        return pd.DataFrame()
    spent = spent.drop(columns="cells")
    spent.insert(0, "setting", list(settings))
    spent.insert(0, "signature", cells["signature"].to_numpy())
    spent = spent[spent["device_hours"] > 0]
    return spent.sort_values("device_hours", ascending=False, kind="stable").reset_index(drop=True)


def _spent(cells: pd.DataFrame) -> pd.DataFrame:
    if "device_seconds" not in cells or not cells["device_seconds"].notna().any():
        return pd.DataFrame()
    columns: dict[str, Any] = {"state": cell_states(cells), "cells": 1}
    if "attempts" in cells and cells["attempts"].notna().any():
        columns["attempts"] = np.nan_to_num(_floats(cells["attempts"])).astype(int)
    columns["device_hours"] = np.nan_to_num(_floats(cells["device_seconds"])) / HOUR
    if "failed_seconds" in cells and cells["failed_seconds"].notna().any():
        columns["failed_hours"] = _floats(cells["failed_seconds"]) / HOUR
    return pd.DataFrame(columns)


def _floats(values: pd.Series) -> Array:
    return np.asarray(pd.to_numeric(values).astype("Float64").to_numpy(float, na_value=np.nan))
