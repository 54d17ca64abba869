"""A search whose workers are the test: runs are made by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gsq.records.folder import RunFolder
from gsq.sweeps.planning.cells import Cell, Plan, make_plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running.search import Driver
from gsq.sweeps.spec.states import RESUMED
from gsq.sweeps.spec.sweep import load_spec
from gsq.sweeps.state.reconcile import reconcile

LEARNING_RATE = {"learning_rate": {"log_uniform": [1e-4, 1e-2]}}


PROTOCOL = "0" * 12


def plan_of(search: dict[str, Any] | None = None, name: str = "found", **more: Any) -> Plan:
    """A search of cpu-tiny, five trials over the learning rate but for what is given."""
    whole = {"trials": 5, "space": LEARNING_RATE, **(search or {})}
    return make_plan(load_spec({"name": name, "base": "cpu-tiny", "search": whole, **more}))


class Fake:
    """A driver whose workers are this test: passes over run folders made by hand."""

    def __init__(self, write_run: Callable[..., RunFolder], plan: Plan, parallel: int = 2, **options: Any) -> None:
        self.write_run = write_run
        self.folder = SweepFolder(Path("runs").absolute(), plan.name)
        self.driver = Driver(self.folder, plan, parallel, **options)
        self.study = self.driver.study

    def step(self) -> list[Cell]:
        """One pass; returns the cells that wait for a worker."""
        while True:
            signatures = list(self.driver.cells)
            records = self.folder.records(signatures)
            actions = reconcile(signatures, records, {}, time.time(), resumed=RESUMED, search=self.folder.search_id)
            if not self.driver.advance(actions, records) and list(self.driver.cells) == signatures:
                return [self.driver.cells[a.cell.signature] for a in actions if a.kind == "submit"]

    def end(self, cell: Cell, rfid: float = 1.0, protocol: str = PROTOCOL, **more: Any) -> None:
        """The run of a cell is done."""
        steps = cell.config.train.steps
        self.write_run(cell, "done", steps, evaluations=(evaluation(cell, steps, rfid, protocol=protocol),), **more)

    def run(self, value: Callable[[Cell], float] = lambda cell: cell.config.optimizer.learning_rate) -> None:
        """Passes until there is nothing more to do."""
        while cells := self.step():
            for cell in cells:
                self.end(cell, value(cell))

    def states(self) -> list[str]:
        return [trial.state.name for trial in self.study.trials]


def evaluation(cell: Cell, step: int, rfid: float, protocol: str = PROTOCOL) -> dict[str, Any]:
    return {
        "protocol": protocol,
        "step": step,
        "features": "efficientnet_lite0@57934424",
        "num_images": cell.config.evaluation.num_images,
        "rfid": rfid,
    }


Make = Callable[..., Fake]
