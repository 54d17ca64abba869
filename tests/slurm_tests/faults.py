"""Injects faults into sweeps on a real cluster, and checks that nothing is lost, doubled or changed by them.

    python tests/slurm_tests/faults.py --faults 300 --seed 1    # what `make faults` runs; see CONTRIBUTING.md

A round is a sweep of twelve cells on the cluster of cluster.py (root; started where it does not run), disturbed by some
60 faults at moments drawn from the seed. Jobs disturb themselves, by orders that inject/sitecustomize.py carries out in
them; what needs the cluster is done here and in disturbances.py. Meanwhile this program does what a user would:
`gsq submit` while cells have failed that it resumes, and in the end one `gsq retry`. Then it compares with the same
sweep on the local queue.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(HERE)]

from cluster import NODES, Cluster  # noqa: E402
from disturbances import Disturbances, submissions_of  # noqa: E402

STEPS = 60
SWEEP = f"""\
name: faults
base: cpu-tiny
set:
  steps: {STEPS}
  batch_size: 4
  model: {{channels: 8, norm_groups: 4}}
  loss: {{perceptual: none, discriminator_start: 10}}
  evaluation: {{num_images: 8, every: 20}}
  execution: {{checkpoint_every: 4, log_every: 1}}
axes:
  groups: [1, 2, 4]
  codebook_size: [64, 256]
  seed: [0, 1]
"""
CLUSTER = "kind: slurm\npartition: test\nparallel: 4\nminutes: 10\nmemory_gb: 1\n"
DISK = "400m"
# Cells that run out of memory, one that diverges, one that meets an error.
SHRINKING, DIVERGING, BROKEN = (0, 5), 3, 8


@dataclass(frozen=True)
class Kind:
    """A kind of fault: how often, when, and what may become of the attempt that it hits."""

    weight: int
    moments: tuple[str, ...]
    outcomes: tuple[str, ...]


ANYWHERE = ("start", "attempt", "step", "step", "step", "checkpoint", "checksum", "evaluation")
BETWEEN = ("start", "step", "step", "step", "evaluation")
STEP = ("step",)
KINDS = {
    "kill": Kind(8, ANYWHERE, ("lost",)),
    "scancel": Kind(4, BETWEEN, ("cancelled",)),
    # Lost, where neither squeue nor accounting could say yet why the attempt had ended.
    "requeue": Kind(3, BETWEEN, ("requeued", "lost")),
    "preempt": Kind(4, BETWEEN, ("preempted",)),
    "walltime": Kind(1, STEP, ("preempted", "timeout")),
    "walltime_hang": Kind(1, STEP, ("timeout",)),
    "node_failure": Kind(1, STEP, ("node_failure", "requeued")),
    "allocate": Kind(2, STEP, ("lost", "out_of_memory")),
    "truncate": Kind(4, STEP, ("lost",)),
    "torn_line": Kind(3, STEP, ("lost",)),
    "stale": Kind(3, STEP, ("lost",)),
    "full_disk": Kind(2, STEP, ("disk_full",)),
    "clock": Kind(3, BETWEEN, ("unharmed",)),
    "slurmd": Kind(2, STEP, ("unharmed",)),
    "controller": Kind(2, STEP, ("unharmed",)),
    "second_attempt": Kind(3, STEP, ("unharmed",)),
    "squeue_silent": Kind(3, BETWEEN, ("unharmed",)),
    # Only where the round says so, and on the cells named above.
    "memory_error": Kind(0, ("step", "evaluation"), ("out_of_memory",)),
    "nan": Kind(0, STEP, ("diverged",)),
    "error": Kind(0, STEP, ("error",)),
    # Of the driver.
    "two_drivers": Kind(0, (), ("one job each",)),
    "driver_killed": Kind(0, (), ("submitted by the next",)),
    "controller_away": Kind(0, (), ("submitted by the next",)),
    # Of the cluster, and of jobs before Python begins.
    "ids_reused": Kind(0, (), ("ours alone",)),
    "dies_before_python": Kind(0, (), ("error",)),
}
DRIVERS = ("two_drivers", "driver_killed", "controller_away")
# How long a slurmd is away for a node failure, unless SLURM gives the node up before.
DOWN_SECONDS = 90
# Jobs of a round that die before Python, and times that numbers of jobs are given again.
DOOMED, REUSES = 2, 2
# One more process than SLURM knows of may run a cell after these.
OVERLAPPING = ("second_attempt", "node_failure")
# A fault that hits several cells at once.
COLLATERAL = {"full_disk": ("disk_full",), "node_failure": ("requeued", "node_failure")}
SECOND = """\
import sys
from pathlib import Path
from gsq.config.overrides import load_config
from gsq.records.folder import RunFolder
from gsq.runs.execute import execute
runs = Path(sys.argv[1])
if sys.argv[3] == "unlocked":  # As on a file system without locks.
    from contextlib import nullcontext
    RunFolder.claim = lambda self: nullcontext(True)
values = RunFolder.of(runs, sys.argv[2]).read_config()
values.pop("data_label", None)
execute(load_config(values), runs)
"""


@dataclass
class Fault:
    """One that was carried out."""

    kind: str
    moment: str
    signature: str = ""
    attempt: int = 0
    outcome: str = ""


def gsq(*words: str, folder: Path, faults: Path | None = None) -> subprocess.Popen[str]:
    """Start a verb of this source, with its runs below ``folder``/runs."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k == "SLURM_CONF"}
    environment |= {"GSQ_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = f"{HERE / 'inject'}{os.pathsep}{ROOT}"
    if faults is not None:
        environment |= {"GSQ_FAULTS": str(faults), "PATH": f"{faults / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.Popen(
        [sys.executable, "-m", "gsq.cli", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def undisturbed(folder: Path) -> Path:
    """The sweep on the local queue, gathered: the folder of runs/ and results/ that a round is compared with."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.yaml").write_text(SWEEP)
    for words in (("submit", "sweep.yaml"), ("gather", "faults")):
        process = gsq(*words, folder=folder)
        output, _ = process.communicate(timeout=900)
        if process.returncode:
            raise RuntimeError(f"the undisturbed sweep failed: gsq {' '.join(words)}: {output}")
    return folder


def deal(seed: int, count: int) -> tuple[dict[int, list[dict[str, Any]]], list[str]]:
    """Orders by cell, and the driver's faults: ``count`` of both together, and some more in case cells end early."""
    draw = random.Random(seed)
    drivers = list(DRIVERS) * max(1, count // 30)
    names = [name for name, kind in KINDS.items() if kind.weight]
    extra = max(2, count // 8)
    special = 2 * len(SHRINKING) + 3 + DOOMED + REUSES
    room = count + extra - special - len(drivers)
    drawn = names[: max(0, room)]
    drawn += draw.choices(names, [KINDS[name].weight for name in names], k=max(0, room - len(drawn)))
    draw.shuffle(drawn)
    cells: dict[int, list[str]] = {cell: [] for cell in range(12)}
    for i, name in enumerate(drawn):
        cells[i % 12].append(name)
    for cell in SHRINKING:
        for _ in range(2):
            cells[cell].insert(draw.randrange(len(cells[cell]) + 1), "memory_error")
    # Early, while steps are left to diverge in; and once more when it is tried again.
    cells[DIVERGING + 1] += cells[DIVERGING][1:]
    cells[DIVERGING] = [*cells[DIVERGING][:1], "nan", "nan"]
    cells[BROKEN].append("error")
    draw.shuffle(drivers)
    if drivers[-1] == "controller_away":
        # The first submission makes the sweep.
        drivers.insert(0, drivers.pop())
    orders = {
        cell: [
            {"kind": name, "moment": draw.choice(KINDS[name].moments), "after": draw.randrange(0, 9)} for name in kinds
        ]
        for cell, kinds in cells.items()
    }
    for order in orders[DIVERGING][-2:]:
        order["after"] = draw.randrange(0, 3)
    return orders, drivers


@dataclass
class Round:
    """One sweep under faults. ``problems`` says in words what should not have been."""

    folder: Path
    seed: int
    count: int
    cluster: Cluster
    reference: Path
    disturb_driver: bool = True
    faults: list[Fault] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    second: list[subprocess.Popen[bytes]] = field(default_factory=list)
    doomed: dict[str, str] = field(default_factory=dict)
    """Jobs that are to die before Python, by signature."""
    retried: float = float("inf")
    """When all that had failed was tried again."""

    def run(self) -> None:
        self.draw = random.Random(self.seed + 1)
        self.disk, self.orders = self.folder / "disk", self.folder / "faults"
        self.disk.mkdir(parents=True)
        (self.orders / "requests").mkdir(parents=True)
        self.runs = self.disk / "runs"
        # Not every container may; then there is no disk to fill.
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(self.disk)]
        self.mounted = subprocess.run(mount, check=False).returncode == 0
        self.over, self.downed = threading.Event(), threading.Lock()
        self.disturbances = Disturbances(self.orders, self.cluster, random.Random(self.seed + 2))
        path = os.environ["PATH"]
        os.environ["PATH"] = f"{self.disturbances.path}{os.pathsep}{path}"
        watcher = threading.Thread(target=self._watch)
        try:
            (self.disk / "sweep.yaml").write_text(SWEEP)
            (self.disk / "mine.yaml").write_text(f"{CLUSTER}setup: {json.dumps([self.disturbances.setup])}\n")
            from gsq.sweeps.planning.cells import make_plan
            from gsq.sweeps.spec.sweep import load_spec

            self.cells = [cell.signature for cell in make_plan(load_spec(str(self.disk / "sweep.yaml"))).cells]
            dealt, drivers = deal(self.seed, self.count)
            self.drivers = drivers if self.disturb_driver else []
            for cell, orders in dealt.items():
                place = self.orders / "orders" / self.cells[cell]
                place.mkdir(parents=True)
                for i, order in enumerate(orders):
                    if order["kind"] == "full_disk" and not self.mounted:
                        print("no tmpfs can be mounted here: a kill takes the place of a full disk", flush=True)
                        order["kind"] = "kill"
                    (place / f"{i:02d}.json").write_text(json.dumps(order))
            self._numbers_of_strangers()
            watcher.start()
            self._drive()
            self._numbers_to_strangers()
            self._retry()
            self.over.set()
            watcher.join()
            self._outcomes()
            self._check()
        finally:
            self.over.set()
            os.environ["PATH"] = path
            if watcher.is_alive():
                watcher.join()
            for process in self.second:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for daemon in ("slurmctld", *NODES):
                if self.cluster.pid(daemon) is None:
                    self.cluster.bring_back(daemon)
            self._cancel_all()
            if self.mounted:
                shutil.copytree(self.disk, self.folder / "kept", ignore=shutil.ignore_patterns("ballast", "source"))
                subprocess.run(["umount", "-l", str(self.disk)], check=True)

    # What the user does.

    def _status(self) -> list[Any]:
        from gsq.sweeps.state.status import status

        return list(status("faults", self.runs).cells)

    def _drive(self) -> None:
        """Submit until nothing is left that a submission resumes, or nothing happens any more."""
        from gsq.records.folder import RunFolder
        from gsq.records.read import read_run
        from gsq.sweeps.spec.states import RESUMED_ON_SUBMIT

        self._submit(first=True)
        self._doom()
        quiet, before = time.monotonic(), None
        while True:
            cells = self._status()
            state = [(c.state, c.failure, c.attempts, c.step) for c in cells]
            if state != before:
                quiet, before = time.monotonic(), state
            if time.monotonic() - quiet > 240:
                self.problems.append(f"nothing happened for four minutes: {state}")
                return
            self._hand_on(cells)
            waiting = [c for c in cells if c.state in ("queued", "running")]
            failed = [c for c in cells if c.state in ("failed", "planned")]
            resumable = [
                c.signature
                for c in failed
                if c.state == "planned"
                or c.failure in RESUMED_ON_SUBMIT
                or (
                    c.failure == "out_of_memory"
                    and read_run(RunFolder.of(self.runs, c.signature)).next_micro_batch is not None
                )
            ]
            if len(resumable) >= 3 or (resumable and len(waiting) < 4):
                self._submit()
            elif not waiting and not resumable:
                # Those of the driver that are left meet a submission of nothing.
                for _ in list(self.drivers):
                    self._submit()
                return
            time.sleep(0.3)

    def _submit(self, first: bool = False) -> None:
        """`gsq submit`; sometimes two at once, sometimes one is killed and the next one has to do, and sometimes the
        controller is away."""
        words = ("submit", "sweep.yaml", "--cluster", "mine.yaml")
        kind = self.drivers.pop() if self.drivers and (first or self.draw.random() < 0.7) else ""
        before = self._live_jobs()

        def start() -> list[subprocess.Popen[str]]:
            count = 2 if kind == "two_drivers" else 1
            return [gsq(*words, folder=self.disk, faults=self.orders) for _ in range(count)]

        if kind == "controller_away":
            with self.downed:
                started = self.disturbances.without_controller(start)
        else:
            started = start()
        if kind == "driver_killed":
            try:
                started[0].wait(self.draw.uniform(0.2, 1.5))
                # It was quicker: the fault is still to come.
                self.drivers.append(kind)
                kind = ""
            except subprocess.TimeoutExpired:
                os.killpg(started[0].pid, signal.SIGKILL)
                started[0].communicate()
                started = [gsq(*words, folder=self.disk, faults=self.orders)]
        for process in started:
            output, _ = process.communicate(timeout=240)
            if "Traceback" in output:
                self.problems.append(f"gsq submit ended with a traceback: {output[-2000:]}")
            if process.returncode and not any(word in output for word in ("error:", "ballast")):
                # Cells that it leaves alone give exit code 1, too.
                assert process.returncode == 1, output
        if kind:
            new = len(self._live_jobs() - before)
            self.faults.append(Fault(kind, "submission", outcome=KINDS[kind].outcomes[0]))
            if new > 12:
                self.problems.append(f"{kind}: {new} jobs for 12 cells")

    def _doom(self) -> None:
        """Some jobs that wait will die before Python. They are errors, which no submission tries again."""
        special = {self.cells[i] for i in (*SHRINKING, DIVERGING, BROKEN)}
        deadline = time.monotonic() + 60
        while len(self.doomed) < DOOMED and time.monotonic() < deadline:
            waiting = [c for c in self._status() if c.state == "queued" and c.job and not c.attempts]
            for cell in waiting[-DOOMED:]:
                if cell.signature not in special and len(self.doomed) < DOOMED:
                    self.doomed[cell.signature] = cell.job
                    self.disturbances.doom(cell.job)
            time.sleep(0.3)

    def _died(self) -> set[str]:
        return {s for s, job in self.doomed.items() if self.disturbances.died(job)}

    def _check_doomed(self, cells: list[Any]) -> None:
        died = self._died()
        if len(died) < DOOMED:
            self.problems.append(f"the harness let {DOOMED - len(died)} jobs live that were to die before Python")
        for cell in cells:
            if cell.signature not in died:
                continue
            self.faults.append(Fault("dies_before_python", "setup", cell.signature, outcome=cell.failure or cell.state))
            words = ("exit code 3", "no module of that name", self.doomed[cell.signature])
            if cell.failure != "error" or not all(word in cell.message for word in words):
                self.problems.append(f"a job that died before Python is {cell.state}, {cell.failure}: {cell.message}")
            if submissions_of(self.runs, cell.signature)[-1]["job"] != self.doomed[cell.signature]:
                self.problems.append(f"{cell.signature} died before Python, and was submitted again unasked")

    def _numbers_of_strangers(self) -> None:
        """Our first jobs get numbers under which accounting knows other jobs."""
        job = self.disturbances.strangers_take(None, 12, 0)
        if not self._until(lambda: not self._live_jobs(), 60) or self.disturbances.harmed():
            raise RuntimeError("the jobs whose numbers were to be used again do not end")
        self.cluster.renumber(int(job))
        self.faults.append(Fault("ids_reused", "submission", outcome="ours alone"))

    def _numbers_to_strangers(self) -> None:
        """Other jobs get the number of a job of ours that is over: they are neither taken for it nor cancelled."""
        self._until(lambda: not self._live_jobs(), 120)
        before = {c.signature: (c.state, c.failure, c.message) for c in self._status()}
        signature = self.cells[BROKEN]
        first, task = submissions_of(self.runs, signature)[-1]["job"].split("_")
        with self.downed:
            job = self.disturbances.strangers_take(int(first), max(4, int(task) + 1), 6)
        if job != first:
            self.problems.append(f"the harness wanted the number {first} for a stranger, and got {job}")
        self._until(self._live_jobs, 30)
        after = {c.signature: (c.state, c.failure, c.message) for c in self._status()}
        if after != before:
            self.problems.append(f"a stranger's job was taken for ours: {before} became {after}")
        process = gsq("cancel", "faults", "--yes", folder=self.disk, faults=self.orders)
        output, _ = process.communicate(timeout=240)
        if process.returncode or "nothing to cancel" not in output:
            self.problems.append(f"gsq cancel, where a stranger has our number: {output}")
        self.faults.append(Fault("ids_reused", "cancel", outcome="ours alone"))

    def _retry(self) -> None:
        """One `gsq retry` of all that has failed, and the wait for it."""
        self._until(lambda: not self.disturbances.mode.exists(), 20)
        self._check_doomed(self._status())
        self.retried = time.time()
        failed = {c.signature for c in self._status() if c.state == "failed"}
        expected = {self.cells[DIVERGING], self.cells[BROKEN]} | {self.cells[i] for i in SHRINKING}
        expected |= set(self.doomed)
        if failed - expected:
            self.problems.append(f"failed before the retry, and nobody made them: {failed - expected}")
        # What was not met by now is not part of the round, but for the divergence that comes back.
        for path in self.orders.glob("orders/*/*.json"):
            if path.parent.name != self.cells[DIVERGING]:
                path.rename(path.with_suffix(".left"))
        process = gsq("retry", "faults", "--cluster", "mine.yaml", folder=self.disk, faults=self.orders)
        output, _ = process.communicate(timeout=240)
        if process.returncode:
            self.problems.append(f"gsq retry: exit code {process.returncode}: {output[-2000:]}")
        deadline = time.monotonic() + 300
        while any(c.state in ("queued", "running", "planned") for c in self._status()):
            if time.monotonic() > deadline:
                self.problems.append("the retried cells do not end")
                return
            time.sleep(0.5)

    def _hand_on(self, cells: list[Any]) -> None:
        """Orders of cells that are done go to those that are not."""
        special = {self.cells[i] for i in (*SHRINKING, DIVERGING, BROKEN)}
        takers = [c.signature for c in cells if c.state in ("queued", "running") and c.signature not in special]
        died = self._died()
        for cell in cells:
            if (cell.state != "done" and cell.signature not in died) or not takers:
                continue
            for path in sorted((self.orders / "orders" / cell.signature).glob("*.json")):
                if json.loads(path.read_text())["kind"] in ("memory_error", "nan", "error"):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    path.rename(self.orders / "orders" / self.draw.choice(takers) / f"9{len(self.faults)}{path.name}")

    def _live_jobs(self) -> set[str]:
        return set(self.cluster.output("squeue", "-h", "-r", "-o", "%i").split())

    def _cancel_all(self) -> None:
        if jobs := self._live_jobs():
            self.cluster.output("scancel", *jobs)

    # What the jobs ask for.

    def _watch(self) -> None:
        taken: set[Path] = set()
        threads = []
        while not self.over.is_set():
            for path in set(self.orders.glob("requests/*.json")) - taken:
                taken.add(path)
                threads.append(threading.Thread(target=self._answer, args=(path,)))
                threads[-1].start()
            if (self.runs / "ballast").exists():
                self._make_room()
            time.sleep(0.02)
        for thread in threads:
            thread.join()

    def _make_room(self) -> None:
        """Once the run that met the full disk has ended."""
        fired = [json.loads(p.read_text()) for p in self.orders.glob("orders/*/*.fired")]
        last = max((f for f in fired if f["kind"] == "full_disk"), key=lambda f: f["time"])
        self._until(lambda: not _alive(last["pid"]), 60)
        (self.runs / "ballast").unlink(missing_ok=True)

    def _until(self, condition: Callable[[], object], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline or self.over.is_set():
                return False
            time.sleep(0.05)
        return True

    def _answer(self, path: Path) -> None:
        request = json.loads(path.read_text())
        try:
            getattr(self, f"_do_{request['kind']}")(request["job"], request, path.with_suffix(".done").touch)
        except Exception as error:
            self.problems.append(f"the harness could not do {request['kind']}: {type(error).__name__}: {error}")
        finally:
            path.with_suffix(".done").touch()

    def _scontrol(self, *words: str) -> None:
        for _ in range(100):  # The controller may be down for another fault.
            done = subprocess.run(["scontrol", *words], capture_output=True, text=True, check=False)
            if done.returncode == 0 or "Invalid job" in done.stderr or "already" in done.stderr:
                return
            time.sleep(0.2)
        raise RuntimeError(f"scontrol {' '.join(words)}: {done.stderr}")

    def _scancel(self, *words: str) -> None:
        for _ in range(100):
            done = subprocess.run(["scancel", *words], capture_output=True, text=True, check=False)
            if done.returncode == 0 or "Invalid job" in done.stderr or "already" in done.stderr:
                return
            time.sleep(0.2)
        raise RuntimeError(f"scancel {' '.join(words)}: {done.stderr}")

    def _do_scancel(self, job: str, request: dict[str, Any], proceed: Callable[[], None]) -> None:
        self._scancel(job)

    def _do_requeue(self, job: str, request: dict[str, Any], proceed: Callable[[], None]) -> None:
        self._scontrol("requeue", job)

    def _do_preempt(self, job: str, request: dict[str, Any], proceed: Callable[[], None]) -> None:
        self._scancel("--signal=USR2", job)

    def _do_walltime(self, job: str, request: dict[str, Any], proceed: Callable[[], None]) -> None:
        """The limit comes within the 90 seconds of the warning; the next time the job has all its time again."""
        self._scontrol("update", f"JobId={job}", "TimeLimit=1")
        proceed()
        self._until(lambda: not _alive(request["pid"]), 100)
        self._scontrol("update", f"JobId={job}", "TimeLimit=10")

    def _do_walltime_hang(self, job: str, request: dict[str, Any], proceed: Callable[[], None]) -> None:
        self._scontrol("update", f"JobId={job}", "EndTime=now+1")

    def _do_slurmd(self, job: str, request: dict[str, Any], proceed: Callable[[], None]) -> None:
        with self.downed:
            self.cluster.kill(request["node"])
            proceed()
            time.sleep(self.draw.uniform(0, 2))
            self.cluster.bring_back(request["node"])

    def _do_controller(self, job: str, request: dict[str, Any], proceed: Callable[[], None]) -> None:
        with self.downed:
            self.cluster.end("slurmctld")
            proceed()
            time.sleep(self.draw.uniform(0, 2))
            self.cluster.bring_back("slurmctld")

    def _do_squeue_silent(self, job: str, request: dict[str, Any], proceed: Callable[[], None]) -> None:
        proceed()
        self.disturbances.silence()

    def _do_node_failure(self, job: str, request: dict[str, Any], proceed: Callable[[], None]) -> None:
        """Long enough for SLURM to give the node up, while its processes run on."""
        node = request["node"]
        with self.downed:
            self.cluster.kill(node)
            proceed()
            down = self._until(
                lambda: "down" in self.cluster.output("sinfo", "-h", "-n", node, "-o", "%T"), DOWN_SECONDS
            )
            self.cluster.bring_back(node)
        if not down:
            # Not understood yet: alone, SLURM gives it up after 36 s; among these faults often not at all.
            print(f"note: node {node} was not given up within {DOWN_SECONDS} s", flush=True)

    def _do_second_attempt(self, job: str, request: dict[str, Any], proceed: Callable[[], None]) -> None:
        """Another process runs the cell at the same time, or tries to where locks work; half of them are killed."""
        lock = "unlocked" if self.draw.random() < 0.7 else "locked"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        attempts = self.runs / request["signature"][:2] / request["signature"] / "attempts"
        there = set(attempts.iterdir())
        process = subprocess.Popen(
            [sys.executable, "-c", SECOND, str(self.runs), request["signature"], lock],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.second.append(process)
        self._until(lambda: set(attempts.iterdir()) - there or process.poll() is not None, 60)
        proceed()
        if self.draw.random() < 0.5:
            lines = self.draw.randrange(1, 20)
            new = attempts / str(max(int(path.name) for path in attempts.iterdir())) / "metrics.jsonl"
            self._until(lambda: process.poll() is not None or _lines(new) >= lines, 60)
            process.kill()

    # What must be true in the end.

    def _outcomes(self) -> None:
        """What became of the attempt that each fault hit, by its own word or else by SLURM's."""
        from gsq.files import read_json
        from gsq.sweeps.state.slurm import Known, states

        every = [json.loads(path.read_text()) for path in sorted(self.orders.glob("orders/*/*.fired"))]
        names = {}
        for fired in every:
            entries = submissions_of(self.runs, fired["signature"])
            mine = [e for e in entries if e["job"] == fired["job"] and e["time"] <= fired["time"]]
            names[fired["job"], fired["time"]] = Known(fired["job"], mine[-1]["name"])
        found = states(names.values())
        for fired in every:
            fault = Fault(fired["kind"], fired["moment"], fired["signature"], fired["attempt"])
            attempts = self.runs / fault.signature[:2] / fault.signature / "attempts"
            statuses = {int(path.name): read_json(path / "status.json") or {} for path in attempts.iterdir()}
            # A number that was given again.
            statuses = {number: s for number, s in statuses.items() if s.get("started", 0) < self.retried}
            status = statuses.get(fault.attempt, {})
            if "unharmed" in KINDS[fault.kind].outcomes:
                fault.outcome = "unharmed"
            elif status.get("state") in ("done", "failed"):
                fault.outcome = status.get("failure") or "done"
            elif any(s.get("job") == fired["job"] for number, s in statuses.items() if number > fault.attempt):
                fault.outcome = "requeued"
            else:
                fault.outcome = found[names[fired["job"], fired["time"]]].failure or "lost"
            self.faults.append(fault)
        struck = {outcome for f in self.faults for outcome in COLLATERAL.get(f.kind, ())}
        doubled = {f.signature for f in self.faults if f.kind in OVERLAPPING}
        for fault in self.faults:
            allowed = {*KINDS[fault.kind].outcomes, *struck}
            # A run that was done, or that another process did, before its fate reached it.
            allowed |= {"done"} if fault.moment == "done" or fault.kind in ("scancel", "requeue", "walltime") else set()
            if fault.signature not in doubled and fault.outcome not in allowed:
                self.problems.append(f"{fault} should have been one of {sorted(allowed)}")

    def _check(self) -> None:
        import pandas as pd

        from gsq.files import read_json
        from gsq.records.attempt import TIMINGS
        from gsq.records.folder import RunFolder
        from gsq.records.read import read_metrics, smallest_micro_batch
        from gsq.sweeps.schema.columns import SCIENCE_COLUMNS, read_table

        process = gsq("gather", "faults", folder=self.disk)
        output, _ = process.communicate(timeout=120)
        if process.returncode:
            self.problems.append(f"gsq gather: {output}")
            return
        found, expected = (read_table(f / "results" / "faults.parquet") for f in (self.disk, self.reference))
        diverging = self.cells[DIVERGING]
        for cell in self._status():
            if cell.signature == diverging:
                if (cell.state, cell.failure) != ("failed", "diverged"):
                    self.problems.append(f"the cell made to diverge is {cell.state}, {cell.failure}")
            elif cell.state != "done":
                self.problems.append(f"{cell.signature} is {cell.state}, {cell.failure}: {cell.message}")
        if set(found["signature"]) != set(self.cells):
            self.problems.append("the table has not all cells")
        if found.duplicated(["signature", "step", "protocol"]).any():
            self.problems.append("a step is in the table twice")
        shrunk = {s for s in self.cells if smallest_micro_batch(RunFolder.of(self.runs, s)) is not None}
        if not shrunk <= {self.cells[i] for i in SHRINKING}:
            self.problems.append(f"micro-batches halved without a reason: {shrunk}")
        columns = list(SCIENCE_COLUMNS)
        for signature in self.cells:
            if signature == diverging:
                continue
            mine, theirs = (
                t.loc[t["signature"] == signature].sort_values("step").reset_index(drop=True) for t in (found, expected)
            )
            runs = RunFolder.of(self.runs, signature), RunFolder.of(self.reference / "runs", signature)
            curves = [
                [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_metrics(run)] for run in runs
            ]
            if [line["step"] for line in curves[0]] != list(range(1, STEPS + 1)):
                self.problems.append(f"{signature}: the curve has steps {[line['step'] for line in curves[0]]}")
            if signature not in shrunk:
                try:
                    # As objects: a column that is null in a row of another cell has another type.
                    pd.testing.assert_frame_equal(
                        mine[columns].astype(object), theirs[columns].astype(object), check_exact=True
                    )
                except AssertionError as error:
                    self.problems.append(f"{signature}: science columns differ: {error}")
                if curves[0] != curves[1]:
                    self.problems.append(f"{signature}: the training curve differs")
                continue
            last = read_json(runs[0].attempt_folders()[-1] / "env.json")
            if last["micro_batch"] >= 4 or set(mine["execution_signature"]) & set(theirs["execution_signature"]):
                self.problems.append(f"{signature}: nothing says that its micro-batch was halved")
            for ours, whole in zip(curves[0][:20], curves[1][:20], strict=True):
                if abs(ours["loss"] - whole["loss"]) > 1e-3 * abs(whole["loss"]):
                    self.problems.append(f"{signature}: step {ours['step']}: {ours['loss']} is not {whole['loss']}")
        self._check_overlaps()
        if harmed := self.disturbances.harmed():
            self.problems.append(f"jobs of strangers did not end well: {harmed}")
        if left := self._live_jobs():
            self.problems.append(f"jobs are left in the queue: {left}")

    def _check_overlaps(self) -> None:
        """No cell was trained twice at the same time but where a fault made it: see the lock of RunFolder.claim."""
        for text in (self.orders / "attempts.jsonl").read_text().splitlines():
            line = json.loads(text)
            if line["others"]:
                self.problems.append(f"{line['signature']} was trained twice at the same time: {line}")


def _lines(path: Path) -> int:
    try:
        return path.read_text().count("\n")
    except OSError:
        return 0


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def table(faults: list[Fault]) -> str:
    """Faults by kind and outcome, as Markdown."""
    lines = ["| fault | number | moments | what became of the attempt |", "|---|---|---|---|"]
    for kind in KINDS:
        mine = [f for f in faults if f.kind == kind]
        if mine:
            counts = [
                ", ".join(f"{name} {n}" for name, n in sorted(Counter(words).items()))
                for words in ([f.moment for f in mine], [f.outcome for f in mine])
            ]
            lines.append(f"| {kind} | {len(mine)} | {counts[0]} | {counts[1]} |")
    lines.append(f"| all | {len(faults)} | | |")
    return "\n".join(lines)


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """The cluster of cluster.py that SLURM_CONF names, or one that is started for the while."""
    named = os.environ.get("SLURM_CONF")
    if named:
        yield Cluster(Path(named).parent.parent)
        return
    folder = tempfile.mkdtemp(prefix="gsq-slurm-")
    cluster = Cluster(folder)
    cluster.start()
    os.environ["SLURM_CONF"] = str(cluster.conf)
    try:
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=60, help="at least so many (default: 60)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dir", help="where to work, kept afterwards (default: a temporary folder, removed)")
    parser.add_argument("--no-driver", action="store_true", help="without the faults of the driver")
    parser.add_argument("--a-round", type=int, default=60, help="faults of a round (default: 60)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # And unmount what is mounted.
    work = Path(args.dir or tempfile.mkdtemp(prefix="gsq-faults-")).resolve()
    faults: list[Fault] = []
    problems: list[str] = []
    began = time.monotonic()
    with running_cluster() as cluster:
        reference = work / "undisturbed"
        if not (reference / "results" / "faults.parquet").exists():
            undisturbed(reference)
        number = 0
        while len(faults) < args.faults:
            seed = args.seed + 1000 * number
            count = min(args.a_round, args.faults)
            this = Round(work / f"round-{number}", seed, count, cluster, reference, not args.no_driver)
            this.run()
            faults += this.faults
            problems += [f"seed {seed}: {problem}" for problem in this.problems]
            print(
                f"round {number} (seed {seed}): {len(this.faults)} faults, {len(this.problems)} problems, "
                f"{time.monotonic() - began:.0f} s since the start",
                flush=True,
            )
            number += 1
            # Whoever stops this has the table so far.
            (work / "faults.md").write_text("\n".join([table(faults), *(f"problem: {p}" for p in problems), ""]))
    print((work / "faults.md").read_text())
    if not args.dir:
        shutil.rmtree(work, ignore_errors=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
