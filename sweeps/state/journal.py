"""The journal of submissions to SLURM: ``<sweep folder>/submissions/<n>/``, one folder for each job array.

A submission takes three steps: write down what will be submitted, call sbatch, note the job's id. A driver may die or
sleep between any two of them, or run beside another one, and still each cell must have exactly one job. Therefore:

- An entry appears whole, by renaming a folder to the next free number. If two drivers want the same number, one gets
  it; the other reads the journal and decides again.
- ``verdict.json`` says what became of the entry. It is written once, by whoever comes first: the driver with the job's
  id, the job itself when it starts, or a later driver that found no such job and revokes the entry. A job that starts
  after that ends at once. Clocks and process ids decide nothing; they only save waiting.

The folder also holds the job script, the pickle that submitit loads, and the output of the jobs.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from gsq.errors import UserError
from gsq.files import temporary, write_json
from gsq.sweeps.planning.folder import SweepFolder

ENTRY, VERDICT, SCRIPT, PICKLE = "entry.json", "verdict.json", "script.sh", "job.pkl"


class Taken(Exception):
    """Another driver has submitted something in the meantime."""


@dataclass(frozen=True)
class Entry:
    """One job array."""

    path: Path
    name: str
    """Unique name of the jobs."""
    cluster: str
    source: str
    """Path of the source copy that the jobs run."""
    minutes: int
    memory_gb: int
    time: float
    host: str
    pid: int
    signatures: tuple[str, ...] = field(repr=False)
    cells_per_job: int = 1
    cells_in_turn: int = 1
    clusters: str = ""
    """The cluster that sbatch named, or the clusters that it could choose from (sbatch -M)."""
    job: str | None = None
    """SLURM's id of the array; None if unknown."""
    revoked: bool = False

    @property
    def open(self) -> bool:
        """True as long as nobody has decided what became of the entry."""
        return self.job is None and not self.revoked

    @property
    def share(self) -> int:
        """Cells of a job, at the same time and in turn."""
        return self.cells_per_job * self.cells_in_turn

    @property
    def jobs(self) -> dict[str, str]:
        """SLURM job by signature; empty if none is known."""
        if self.job is None:
            return {}
        return {s: f"{self.job}_{index // self.share}" for index, s in enumerate(self.signatures)}

    def members(self, task: int) -> tuple[str, ...]:
        """Return the signatures of one task of the array."""
        return self.signatures[task * self.share :][: self.share]

    def decide(self, job: str | None, clusters: str = "") -> Entry:
        """Record the entry's job, or None to revoke the entry. Returns the entry with the first such decision.

        clusters: the cluster that has the job, if it is not the entry's.
        """
        mine = temporary(self.path / VERDICT)
        try:
            write_json(mine, {"job": job, **({"clusters": clusters} if clusters else {})})
            # Unlike a rename, a link never replaces an existing file.
            os.link(mine, self.path / VERDICT)
        except FileExistsError:
            pass
        finally:
            mine.unlink(missing_ok=True)
        return read_entry(self.path)


def read_entry(path: Path) -> Entry:
    """Read an entry from its folder. Raises OSError if there is none, and UserError if its files are damaged."""
    try:
        values = json.loads((path / ENTRY).read_text())
        entry = Entry(path, **{**values, "signatures": tuple(values["signatures"])})
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"{path / ENTRY}: is empty or damaged, so the cells of this submission are not known. Cancel what squeue "
            f"--me lists as gsq-{path.parents[1].name}-{path.name.lstrip('0')}-..., then remove the folder {path}"
        ) from None
    try:
        verdict = json.loads((path / VERDICT).read_text())
        job = verdict["job"]
        if job is not None and not (isinstance(job, str) and job):
            raise ValueError
    except FileNotFoundError:
        return entry
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"{path / VERDICT}: is empty or damaged, so it is not known whether the submission became a job. Remove "
            f"the file; the next gsq submit then looks for a job of the name {entry.name}"
        ) from None
    return replace(entry, job=job, revoked=job is None, clusters=verdict.get("clusters", entry.clusters))


def _folder(sweep: SweepFolder) -> Path:
    return sweep.path / "submissions"


def numbers(sweep: SweepFolder) -> list[int]:
    """Return the numbers of the entries, oldest first."""
    try:
        return sorted(int(name) for name in os.listdir(_folder(sweep)) if name.isdigit())
    except OSError:
        return []


def path_of(sweep: SweepFolder, number: int) -> Path:
    """Return the folder of an entry."""
    return _folder(sweep) / f"{number:06d}"


def entries(sweep: SweepFolder) -> Iterator[Entry]:
    """Yield all entries, oldest first."""
    for number in numbers(sweep):
        yield read_entry(path_of(sweep, number))


def log_path(entry: Entry, job: str) -> Path:
    """Return the output file of a job (``12_3``), or of the first of several processes that share a run."""
    return entry.path / f"{job}_0_log.out"


def add(entry: Entry, files: Mapping[str, bytes]) -> None:
    """Write an entry and its files to ``entry.path``. Raises Taken if another entry is there already."""
    partial = temporary(entry.path)
    partial.mkdir(parents=True)
    try:
        values = {k: v for k, v in asdict(entry).items() if k not in ("path", "job", "revoked")}
        for name, content in files.items():
            (partial / name).write_bytes(content)
        write_json(partial / ENTRY, values)
        partial.rename(entry.path)
    except OSError:
        if not entry.path.exists():
            raise
        raise Taken from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
