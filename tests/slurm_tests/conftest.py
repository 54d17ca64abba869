"""The `slurm` fixture: a SLURM cluster that tests can use, or a skip that says how to start one.

Tests run on the cluster that SLURM_CONF names, or that `sinfo` finds by itself. Where none answers, they
are skipped; with GSQ_REQUIRE_SLURM=1 the fixture starts a cluster of its own instead (see cluster.py), stops
it at the end, and fails where it cannot. All tests in this folder carry the marker `slurm`: `-m "not slurm"`
leaves them out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
T = TypeVar("T")


class Slurm:
    """What tests ask of SLURM. `conf` is the cluster's slurm.conf, None where SLURM finds it by itself."""

    def __init__(self, conf: str | None) -> None:
        self.conf = conf

    @property
    def ours(self) -> bool:
        """Whether this is a cluster that cluster.py started."""
        return "ClusterName             = gsq\n" in self.scontrol("show", "config")

    def run(self, *command: str) -> str:
        """What a command prints; an error with what it wrote to stderr where it fails."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def scontrol(self, *args: str) -> str:
        return self.run("scontrol", *args)

    def sacct(self, job_ids: str | int | Iterable[str | int]) -> dict[str, dict[str, str]]:
        """Accounting rows by job id ("7" or "7_0"; "7.batch" and "7.0" are steps), each with State, ExitCode,
        NodeList and more. A requeued job has its last run only; a job can take a second to appear."""
        ids = [job_ids] if isinstance(job_ids, str | int) else list(job_ids)
        fields = ["JobID", "JobName", "State", "ExitCode", "NodeList", "ElapsedRaw", "Submit", "Start", "End"]
        rows = self.run(
            "sacct",
            "--noheader",
            "--parsable2",
            "--jobs",
            ",".join(map(str, ids)),
            "--format",
            ",".join(fields),
        )
        return {line.split("|")[0]: dict(zip(fields, line.split("|"), strict=True)) for line in rows.splitlines()}

    def squeue(self) -> dict[str, dict[str, str]]:
        """Jobs that wait or run, by job id (each task of an array has its own row), with State, Reason,
        NodeList and Name."""
        fields = ["JobID", "State", "Reason", "NodeList", "Name"]
        rows = self.run("squeue", "--noheader", "--array", "--format", "%i|%T|%r|%N|%j")
        return {line.split("|")[0]: dict(zip(fields, line.split("|", 4), strict=True)) for line in rows.splitlines()}

    def job(self, job_id: str | int) -> dict[str, str]:
        """What `scontrol show job` says of one job: JobState, Restarts, BatchHost, and so on."""
        words = self.scontrol("--oneliner", "show", "job", str(job_id)).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, predicate: Callable[[], T], seconds: float, every: float = 0.25) -> T:
        """Ask until the answer is true, and return it; TimeoutError, with the queue, where it never is."""
        deadline = time.monotonic() + seconds
        while not (answer := predicate()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not so after {seconds} s; the queue: {self.squeue()}")
            time.sleep(every)
        return answer


def _why_not() -> str | None:
    """Why SLURM cannot be used here; None where it can."""
    if not shutil.which("sinfo"):
        return "sinfo is not installed (Debian: slurm-client)"
    conf = os.environ.get("SLURM_CONF")
    if conf and not Path(conf).exists():  # sinfo would look for it for a minute
        return f"SLURM_CONF={conf} does not exist"
    try:
        done = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=20, check=False)
        if done.returncode == 0 and done.stdout.strip():
            return None
    except subprocess.TimeoutExpired:
        pass
    return f"the cluster of SLURM_CONF={conf} does not answer" if conf else "SLURM_CONF is not set"


@pytest.fixture
def no_inherited_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("SLURM_") and n != "SLURM_CONF"]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    why = _why_not()
    if why is None:
        yield Slurm(os.environ.get("SLURM_CONF"))
        return
    script = os.path.relpath(HERE / "cluster.py")
    if os.environ.get("GSQ_REQUIRE_SLURM") != "1":
        pytest.skip(f'{why}; as root: python {script} start && eval "$(python {script} env)"')

    from cluster import Cluster, ClusterError

    # a folder of its own: under pytest-xdist every worker comes here
    folder = Path(tempfile.mkdtemp(prefix="gsq-slurm-"))
    cluster = Cluster(folder)
    with pytest.MonkeyPatch.context() as patch:
        try:
            cluster.start()
        except ClusterError as error:
            shutil.rmtree(folder, ignore_errors=True)
            pytest.fail(f"GSQ_REQUIRE_SLURM=1, but {why}, and a cluster cannot be started: {error}", pytrace=False)
        patch.setenv("SLURM_CONF", str(cluster.conf))
        try:
            yield Slurm(str(cluster.conf))
        finally:
            cluster.stop()
            shutil.rmtree(folder, ignore_errors=True)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slurm: runs jobs on a SLURM cluster (see tests/slurm_tests/cluster.py)")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("slurm")
            # Two nodes on one host share its cores.
            item.add_marker(pytest.mark.timeout(900))
