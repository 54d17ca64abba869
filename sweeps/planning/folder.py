"""The sweep folder, ``$GSQ_RUNS/sweeps/<name>/``: the plan as submitted, logs, and files of other modules.

Each submission that adds or changes cells writes one file, ``plan-<n>-<digest>.jsonl``, which never changes. Two
processes that write at once make two files (or the same one), so that neither loses the other's cells, even on shared
file systems and without a lock. The first line is a header with a base config; each other line is a cell, as its
differences from the base. If several files have a cell, the last one counts.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gsq.config.overrides import Overrides, differences, from_dict, to_dict
from gsq.config.parts import named_parts, search_also, source_sha256
from gsq.config.run import RunConfig
from gsq.config.signature import digest
from gsq.errors import UserError, nearest
from gsq.files import is_yaml, read_json, write_json, write_text
from gsq.records.folder import runs_root, sweep_path
from gsq.records.read import RunRecord, read_runs
from gsq.sweeps.planning.cells import Cell, Plan, collector_paused

PLAN_VERSION = 1
# The protocols that the cells ask for, as last submitted (gsq.sweeps.planning.protocols.note_asked).
ASKED_FILE = "protocols.json"
PARTS_FILE = "parts.json"
_PLAN_FILE = re.compile(r"plan-(\d+)-[0-9a-f]{12}\.jsonl")


@dataclass(frozen=True)
class SweepFolder:
    """Paths of one sweep below a runs folder, and their content."""

    runs: Path
    name: str

    @property
    def path(self) -> Path:
        return sweep_path(self.runs, self.name)

    @property
    def exists(self) -> bool:
        """True once the sweep has been submitted."""
        return self.name in sweep_names(self.runs)

    @property
    def search(self) -> Path:
        """Path of the search settings; absent for grids."""
        return self.path / "search.json"

    @property
    def search_id(self) -> str | None:
        """Id of this search; None for a grid."""
        return (read_json(self.search) or {}).get("id")

    def log(self, signature: str) -> Path:
        """Path of the output of a cell's local workers, over all attempts."""
        return self.path / "logs" / f"{signature}.log"

    def plan_files(self) -> list[Path]:
        """Return the files of the plan, oldest first."""
        found = ((_PLAN_FILE.fullmatch(path.name), path) for path in self.path.glob("plan-*.jsonl"))
        return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]

    def write_plan(self, plan: Plan) -> None:
        """Add a plan's cells to the earlier ones; editing the YAML never removes rows."""
        self.path.mkdir(parents=True, exist_ok=True)
        if plan.estimates:
            recorded = (read_json(self.path / "estimates.json") or {"cells": {}})["cells"]
            write_json(self.path / "estimates.json", {"cells": {**recorded, **plan.estimates}})
        if own := {name for cell in plan.cells for names in named_parts(cell.config).values() for name in names}:
            write_json(self.path / PARTS_FILE, self.parts() | {name: source_sha256(name) for name in sorted(own)})
        files = self.plan_files()
        known = {signature: line for file in files for signature, line in _lines(file)}
        # All files keep the first base, so that lines can be compared.
        bases = [_header(file)["base"] for file in files[:1]] or [to_dict(absolute(plan.cells[0].config))]
        base = from_dict(bases[0])
        lines = [(cell.signature, _line(cell, base)) for cell in plan.cells]
        new = [line for signature, line in lines if known.get(signature) != line.encode()]
        if not new:
            return
        header = json.dumps({"name": self.name, "version": PLAN_VERSION, "base": bases[0]}) + "\n"
        number = int(_PLAN_FILE.fullmatch(files[-1].name)[1]) + 1 if files else 1  # type: ignore[index]
        write_text(self.path / f"plan-{number:04d}-{digest([header, *new])}.jsonl", header + "".join(new), sync=True)

    def parts(self) -> dict[str, str]:
        """Parts of users' own that its cells have named, package.module:Name, with the hash of the source that each
        was last submitted with."""
        return dict(read_json(self.path / PARTS_FILE) or {})

    @collector_paused()
    def read_plan(self) -> Plan:
        """Return every cell ever submitted. Raises UserError for an unknown sweep or an unreadable file."""
        cells: dict[str, Cell] = {}
        for file in self._known_files():
            restore = _base(file).restore
            for signature, line in _lines(file):
                cells[signature] = _cell(file, line, restore)
        return Plan(self.name, tuple(cells.values()))

    def read_cell(self, signature: str) -> Cell:
        """Return one cell without reading the others. Raises UserError like ``read_plan``, and if it is not there."""
        for file in reversed(self._known_files()):
            if line := next(_lines(file, signature), None):
                return _cell(file, line[1], _base(file).restore)
        raise UserError(f"no cell {signature} in the plan of sweep '{self.name}', {self.path}")

    def signatures(self) -> list[str]:
        """Return the signature of every cell ever submitted. Raises UserError like ``read_plan``."""
        return list(dict.fromkeys(signature for file in self._known_files() for signature, _ in _lines(file)))

    def _known_files(self) -> list[Path]:
        files = self.plan_files()
        if not files:
            there = sweep_names(self.runs)
            raise UserError(
                f"no sweep '{self.name}' below {self.runs}{nearest(self.name, there)}; there are: "
                f"{', '.join(there) or 'none yet'} (gsq run or gsq submit makes one; $GSQ_RUNS names the folder)"
            )
        if self.parts():
            # Where they cannot be imported from where they were written, the copies that jobs run are.
            for copy in sorted((self.path / "source").glob("*/"), key=lambda path: path.stat().st_mtime, reverse=True):
                search_also(copy)
        return files

    @collector_paused()
    def records(self, signatures: Iterable[str]) -> dict[str, RunRecord]:
        """Return the record of each run folder."""
        return read_runs(self.runs, signatures)


def absolute(config: RunConfig) -> RunConfig:
    """Make the data path absolute, because jobs start in another folder."""
    if not config.data.path:
        return config
    path = str(Path(os.path.expandvars(config.data.path)).expanduser().absolute())
    return config if path == config.data.path else replace(config, data=replace(config.data, path=path))


# The beginning of a cell's line, before the signature.
_START = b'{"signature": "'


def _line(cell: Cell, base: RunConfig) -> str:
    values: dict[str, Any] = {
        "signature": cell.signature,
        "axes": cell.axes,
        "config": differences(absolute(cell.config), base),
        "data_label": cell.data_label,
    }
    if cell.image_bytes:
        values["image_bytes"] = cell.image_bytes
    if cell.train_images:
        values["train_images"] = cell.train_images
    return json.dumps(values) + "\n"


def _lines(file: Path, signature: str = "") -> Iterator[tuple[str, bytes]]:
    """Yield signature and line of each cell in a plan file, or of one cell. Raises UserError for any other line."""
    start = _START + signature.encode()
    first, last = len(_START), len(_START) + 12
    try:
        with file.open("rb") as opened:
            next(opened, None)
            for number, line in enumerate(opened, 2):
                if line.startswith(start):
                    yield line[first:last].decode(), line
                elif not line.startswith(_START):
                    raise UserError(f"{file}, line {number}: not a cell of a plan; the file was changed or damaged")
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None


def _header(file: Path) -> dict[str, Any]:
    """Read the first line. Raises UserError if it is not a header of this version."""
    try:
        with file.open("rb") as opened:
            header = json.loads(opened.readline())
        if header["version"] != PLAN_VERSION:
            raise UserError(f"{file}: a plan of version {header['version']}; this gsq reads version {PLAN_VERSION}")
        return {"name": header["name"], "base": header["base"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: its first line is not the head of a plan ({type(error).__name__})") from None


def _base(file: Path) -> Overrides:
    try:
        return Overrides(from_dict(_header(file)["base"]))
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file}: its base config does not fit this version of gsq: {error}") from None


def _cell(file: Path, line: bytes, restore: Callable[[Mapping[str, Any]], RunConfig]) -> Cell:
    try:
        values = json.loads(line)
        config, image_bytes = restore(values["config"]), int(values.get("image_bytes", 0))
        images = int(values.get("train_images", 0))
        return Cell(values["signature"], values["axes"], config, values["data_label"], image_bytes, images)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        found = line[:60].decode(errors="replace")
        raise UserError(f"{file}: cell {found}... cannot be read: {type(error).__name__}: {error}") from None


def sweep_names(runs: Path) -> list[str]:
    found = (runs / "sweeps").glob("*/plan-*.jsonl")
    return sorted({path.parent.name for path in found if _PLAN_FILE.fullmatch(path.name)})


def names_file(sweep: str) -> bool:
    """Return whether ``sweep`` is a YAML file or a shipped sweep in a folder (paper/fig4)."""
    return is_yaml(sweep) or "/" in sweep


def sweep_folder(sweep: str | SweepFolder, runs: Path | None = None) -> SweepFolder:
    """Return the folder of a sweep, given by its name, its YAML file, or its folder."""
    if isinstance(sweep, SweepFolder):
        return sweep
    if names_file(sweep):
        from gsq.sweeps.spec.sweep import load_spec

        sweep = load_spec(sweep).name
    return SweepFolder(runs or runs_root(), sweep)


def read_asked(folder: SweepFolder) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return today's and the earlier protocol of each evaluation that a cell asked for when last submitted, by
    signature; empty if an earlier gsq submitted it."""
    known = read_json(folder.path / ASKED_FILE)
    try:
        return {s: tuple((str(now), str(before)) for now, before in ones) for s, ones in known["cells"].items()}
    except (TypeError, KeyError, ValueError, AttributeError):
        return {}
