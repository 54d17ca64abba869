"""The sweep folder, ``$GSQ_RUNS/sweeps/<name>/``: the plan as submitted, logs, and what other modules keep there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gsq.errors import UserError, nearest
from gsq.loading import from_dict, to_dict
from gsq.record import RunFolder, RunRecord, read_json, read_run, runs_root, write_json
from sweeps.planning import Cell, Plan


@dataclass(frozen=True)
class SweepFolder:
    """Paths of one sweep below a runs folder, and what they hold."""

    runs: Path
    name: str

    @property
    def path(self) -> Path:
        return self.runs / "sweeps" / self.name

    def log(self, signature: str) -> Path:
        """Standard output and error of the local workers of a cell, all attempts."""
        return self.path / "logs" / f"{signature}.log"

    def write_plan(self, plan: Plan) -> None:
        """Add a plan's cells to those submitted before: editing the YAML never removes rows."""
        known = read_json(self.path / "plan.json") or {"cells": []}
        cells = {cell["signature"]: cell for cell in known["cells"]}
        cells |= {cell.signature: cell_values(cell) for cell in plan.cells}
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "plan.json", {"name": self.name, "cells": list(cells.values())}, sync=True)
        if plan.estimates:
            recorded = (read_json(self.path / "estimates.json") or {"cells": {}})["cells"]
            write_json(self.path / "estimates.json", {"cells": {**recorded, **plan.estimates}})

    def read_plan(self) -> Plan:
        """Every cell ever submitted. Raises UserError, naming the sweeps there are, for an unknown one."""
        values = read_json(self.path / "plan.json")
        if values is None:
            there = sweep_names(self.runs)
            raise UserError(
                f"no sweep '{self.name}' below {self.runs}{nearest(self.name, there)}; there are: "
                f"{', '.join(there) or 'none yet'} (gsq run or gsq submit makes one; $GSQ_RUNS names the folder)"
            )
        return Plan(self.name, tuple(map(read_values, values["cells"])))

    def read_cell(self, signature: str) -> Cell:
        return next(cell for cell in self.read_plan().cells if cell.signature == signature)

    def records(self, signatures: list[str]) -> dict[str, RunRecord]:
        """What each run folder says."""
        return {s: read_run(RunFolder.of(self.runs, s)) for s in signatures}


def cell_values(cell: Cell) -> dict[str, Any]:
    """A cell as it is written to files."""
    config = to_dict(cell.config)
    if config["data"]["path"]:
        # Jobs start in another folder.
        config["data"]["path"] = str(Path(config["data"]["path"]).expanduser().absolute())
    return {"signature": cell.signature, "axes": cell.axes, "config": config, "data_label": cell.data_label}


def read_values(values: dict[str, Any]) -> Cell:
    """What cell_values made."""
    return Cell(values["signature"], values["axes"], from_dict(values["config"]), values["data_label"])


def sweep_names(runs: Path) -> list[str]:
    return sorted(p.parent.name for p in (runs / "sweeps").glob("*/plan.json"))


def sweep_folder(name: str, runs: Path | None = None) -> SweepFolder:
    """A sweep by its name, or by the path of its YAML file."""
    if name.endswith((".yaml", ".yml")):
        from sweeps.spec import load_spec

        name = load_spec(name).name
    return SweepFolder(runs or runs_root(), name)
