"""What was handed to SLURM: ``<sweep folder>/submissions/<n>/``, one folder for each job array.

Submitting is three steps that cannot be one: say what will be submitted, call sbatch, note the job's id. A driver may
die between any two of them, sleep for an hour, or run beside another one, and yet each cell must have one job. So:

- An entry appears whole, by the rename of a folder onto the next free number. Of two drivers that want the same
  number, one gets it; the other looks at what there is now and decides again.
- ``verdict.json`` says what became of it, and is written once, by whoever comes first: the driver with the job's id,
  the job itself when it starts, or a later driver that found no such job and takes the entry back. A job that starts
  after that ends at once. Neither clocks nor process ids decide anything; they only save waiting.

Beside it lie the job script, the pickle that submitit loads, and what the jobs print.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from gsq.errors import UserError
from gsq.files import write_json
from gsq.sweeps.planning.folder import SweepFolder

ENTRY, VERDICT, SCRIPT, PICKLE = "entry.json", "verdict.json", "script.sh", "job.pkl"


class Taken(Exception):
    """Another driver has submitted something in the meantime."""


@dataclass(frozen=True)
class Entry:
    """One job array."""

    path: Path
    name: str
    """The jobs' name, which no other entry has."""
    cluster: str
    source: str
    """The copy of the source that the jobs run."""
    minutes: int
    memory_gb: int
    time: float
    host: str
    pid: int
    signatures: tuple[str, ...] = field(repr=False)
    cells_per_job: int = 1
    clusters: str = ""
    """The cluster that sbatch named, or was told to choose from, where there are several (sbatch -M)."""
    job: str | None = None
    """SLURM's id of the array; None where it is not known."""
    revoked: bool = False

    @property
    def open(self) -> bool:
        """Whether it is not known yet what became of it."""
        return self.job is None and not self.revoked

    @property
    def jobs(self) -> dict[str, str]:
        """SLURM job by signature; empty where there is none, or none is known."""
        if self.job is None:
            return {}
        return {s: f"{self.job}_{index // self.cells_per_job}" for index, s in enumerate(self.signatures)}

    def members(self, task: int) -> tuple[str, ...]:
        """Signatures of the cells of one task of the array."""
        first = task * self.cells_per_job
        return self.signatures[first : first + self.cells_per_job]

    def decide(self, job: str | None, clusters: str = "") -> Entry:
        """Say that the entry has become a job, or with None that it is taken back; returns what holds, which is the
        first that was said. clusters: the cluster that has the job, where that is not the entry's."""
        mine = self.path / f".{VERDICT}.{os.uname().nodename}.{os.getpid()}.partial"
        try:
            write_json(mine, {"job": job, **({"clusters": clusters} if clusters else {})}, sync=True)
            # Unlike a rename, a link never replaces what is there.
            os.link(mine, self.path / VERDICT)
        except FileExistsError:
            pass
        finally:
            mine.unlink(missing_ok=True)
        return read_entry(self.path)


def read_entry(path: Path) -> Entry:
    """An entry by its folder. Raises OSError where there is none, and UserError where its files are damaged."""
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
    """Numbers of the entries, oldest first."""
    try:
        return sorted(int(name) for name in os.listdir(_folder(sweep)) if name.isdigit())
    except OSError:
        return []


def path_of(sweep: SweepFolder, number: int) -> Path:
    """Folder of an entry."""
    return _folder(sweep) / f"{number:06d}"


def entries(sweep: SweepFolder) -> Iterator[Entry]:
    """All entries, oldest first."""
    for number in numbers(sweep):
        yield read_entry(path_of(sweep, number))


def log_path(entry: Entry, job: str) -> Path:
    """Where a job of the entry prints; of the processes that share a run, the first. ``job``: ``12_3``."""
    return entry.path / f"{job}_0_log.out"


def add(entry: Entry, files: Mapping[str, bytes]) -> None:
    """Put an entry and its files where ``entry.path`` says. Raises Taken where another one is there already."""
    partial = entry.path.with_name(f".{entry.path.name}.{os.uname().nodename}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        values = {k: v for k, v in asdict(entry).items() if k not in ("path", "job", "revoked")}
        for name, content in files.items():
            (partial / name).write_bytes(content)
        write_json(partial / ENTRY, values, sync=True)
        partial.rename(entry.path)
    except OSError:
        if not entry.path.exists():
            raise
        raise Taken from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
