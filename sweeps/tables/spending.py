"""Device time of a sweep's cells, including failed attempts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gsq.records.attempt import FAILED
from gsq.records.read import RunRecord
from gsq.sweeps.state.reconcile import CellState
from gsq.words import counted, span

HOUR = 3600.0
UNITS = ((HOUR, "hours"), (60.0, "minutes"), (1.0, "seconds"))


@dataclass(frozen=True)
class Spent:
    """Device seconds of the tried cells, by signature. A run that two sweeps share counts in both."""

    seconds: Mapping[str, float]
    """Training, evaluation and start-up of all attempts and processes."""
    failed: Mapping[str, float]
    """The part in attempts that failed or were stopped."""

    @property
    def line(self) -> str:
        """Total, range per cell, and time in unfinished attempts, in words; empty if nothing was tried."""
        if not self.seconds:
            return ""
        each = list(self.seconds.values())
        text = f"spent: {_device_time(sum(each))} on {counted(len(each), 'cell')}"
        if len(each) > 1:
            low, middle, high = (_time(value) for value in (min(each), statistics.median(each), max(each)))
            text += f" ({span(low, high)} a cell, median {middle})"
        lost = sum(self.failed.values())
        return text + (f", {_device_time(lost)} of it in attempts that failed or were stopped" if lost else "")

    def to_dict(self) -> dict[str, Any]:
        """Return device hours in total, in failed attempts, and of each cell."""
        return {
            "device_hours": sum(self.seconds.values()) / HOUR,
            "failed_hours": sum(self.failed.values()) / HOUR,
            "cells": {
                signature: {"device_hours": seconds / HOUR, "failed_hours": self.failed[signature] / HOUR}
                for signature, seconds in self.seconds.items()
            },
        }


def spent(records: Mapping[str, RunRecord], states: Mapping[str, CellState]) -> Spent:
    """Return the device time of records. ``states`` of the same signatures show attempts that ended silently."""
    tried = {signature: record for signature, record in records.items() if record.attempts}
    return Spent(
        {signature: record.seconds for signature, record in tried.items()},
        {signature: failed_seconds(record, states[signature]) for signature, record in tried.items()},
    )


def failed_seconds(record: RunRecord, state: CellState) -> float:
    """Return the device seconds of a run's attempts that failed or were stopped."""
    return record.failed_seconds + (record.running_seconds if state.state == FAILED else 0.0)


def _device_time(seconds: float) -> str:
    """Format a time: 3.25 device hours, 12 device minutes, 40 device seconds."""
    return " device ".join(_time(seconds).split(" "))


def _time(seconds: float) -> str:
    value, unit = next((seconds / one, name) for one, name in UNITS if seconds >= one or one == 1)
    number = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{number} {unit.removesuffix('s') if number == '1' else unit}"
