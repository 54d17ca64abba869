"""One sweep under faults: what its user does until all is done, and what happens to it meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import NODES, Cluster
from disturbances import Disturbances, submissions_of
from fault_checks import check, find_outcomes
from fault_plan import BROKEN, CLUSTER, DISK, DIVERGING, DOOMED, IN_TURN, KINDS, SHRINKING, SWEEP, Fault, deal
from fault_requests import Requests
from fault_verbs import gsq


@dataclass
class Round:
    """One sweep under faults. ``problems`` says in words what should not have been."""

    folder: Path
    seed: int
    count: int
    cluster: Cluster
    reference: Path
    disturb_driver: bool = True
    in_turn: int = 1
    """Cells that a job trains one after the other. With several no job is doomed, since all its cells would be."""
    faults: list[Fault] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
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
        self.disturbances = Disturbances(self.orders, self.cluster, random.Random(self.seed + 2))
        path = os.environ["PATH"]
        os.environ["PATH"] = f"{self.disturbances.path}{os.pathsep}{path}"
        self.requests = Requests(self.orders, self.runs, self.cluster, self.disturbances, self.draw, self.problems)
        try:
            cluster = CLUSTER if self.in_turn == 1 else IN_TURN.format(self.in_turn)
            self.doom_count = DOOMED if self.in_turn == 1 else 0
            (self.disk / "sweep.yaml").write_text(SWEEP)
            (self.disk / "mine.yaml").write_text(f"{cluster}setup: {json.dumps([self.disturbances.setup])}\n")
            from gsq.sweeps.planning.cells import make_plan
            from gsq.sweeps.spec.sweep import load_spec

            self.cells = [cell.signature for cell in make_plan(load_spec(str(self.disk / "sweep.yaml"))).cells]
            dealt, drivers = deal(self.seed, self.count + DOOMED - self.doom_count)
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
            with self.requests:
                self._drive()
                self._numbers_to_strangers()
                self._retry()
                self.requests.stop()
                find_outcomes(self)
                check(self)
        finally:
            os.environ["PATH"] = path
            for daemon in ("slurmctld", *NODES):
                if self.cluster.pid(daemon) is None:
                    self.cluster.bring_back(daemon)
            self._cancel_all()
            if self.mounted:
                shutil.copytree(self.disk, self.folder / "kept", ignore=shutil.ignore_patterns("ballast", "source"))
                subprocess.run(["umount", "-l", str(self.disk)], check=True)

    # What the user does.

    def status(self) -> list[Any]:
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
            cells = self.status()
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
        before = self.live_jobs()

        def start() -> list[subprocess.Popen[str]]:
            count = 2 if kind == "two_drivers" else 1
            return [gsq(*words, folder=self.disk, faults=self.orders) for _ in range(count)]

        if kind == "controller_away":
            with self.requests.downed:
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
            new = len(self.live_jobs() - before)
            self.faults.append(Fault(kind, "submission", outcome=KINDS[kind].outcomes[0]))
            if new > 12:
                self.problems.append(f"{kind}: {new} jobs for 12 cells")

    def _doom(self) -> None:
        """Some jobs that wait will die before Python. They are errors, which no submission tries again."""
        special = {self.cells[i] for i in (*SHRINKING, DIVERGING, BROKEN)}
        deadline = time.monotonic() + 60
        while len(self.doomed) < self.doom_count and time.monotonic() < deadline:
            waiting = [c for c in self.status() if c.state == "queued" and c.job and not c.attempts]
            for cell in waiting[-DOOMED:]:
                if cell.signature not in special and len(self.doomed) < self.doom_count:
                    self.doomed[cell.signature] = cell.job
                    self.disturbances.doom(cell.job)
            time.sleep(0.3)

    def _died(self) -> set[str]:
        return {s for s, job in self.doomed.items() if self.disturbances.died(job)}

    def _check_doomed(self, cells: list[Any]) -> None:
        died = self._died()
        if len(died) < self.doom_count:
            self.problems.append(
                f"the harness let {self.doom_count - len(died)} jobs live that were to die before Python"
            )
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
        if not self.requests.until(lambda: not self.live_jobs(), 60) or self.disturbances.harmed():
            raise RuntimeError("the jobs whose numbers were to be used again do not end")
        self.cluster.renumber(int(job))
        self.faults.append(Fault("ids_reused", "submission", outcome="ours alone"))

    def _numbers_to_strangers(self) -> None:
        """Other jobs get the number of a job of ours that is over: they are neither taken for it nor cancelled."""
        self.requests.until(lambda: not self.live_jobs(), 120)
        before = {c.signature: (c.state, c.failure, c.message) for c in self.status()}
        signature = self.cells[BROKEN]
        first, task = submissions_of(self.runs, signature)[-1]["job"].split("_")
        with self.requests.downed:
            job = self.disturbances.strangers_take(int(first), max(4, int(task) + 1), 6)
        if job != first:
            self.problems.append(f"the harness wanted the number {first} for a stranger, and got {job}")
        self.requests.until(self.live_jobs, 30)
        after = {c.signature: (c.state, c.failure, c.message) for c in self.status()}
        if after != before:
            self.problems.append(f"a stranger's job was taken for ours: {before} became {after}")
        process = gsq("cancel", "faults", "--yes", folder=self.disk, faults=self.orders)
        output, _ = process.communicate(timeout=240)
        if process.returncode or "nothing to cancel" not in output:
            self.problems.append(f"gsq cancel, where a stranger has our number: {output}")
        self.faults.append(Fault("ids_reused", "cancel", outcome="ours alone"))

    def _retry(self) -> None:
        """One `gsq retry` of all that has failed, and the wait for it."""
        self.requests.until(lambda: not self.disturbances.mode.exists(), 20)
        self._check_doomed(self.status())
        self.retried = time.time()
        failed = {c.signature for c in self.status() if c.state == "failed"}
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
        while any(c.state in ("queued", "running", "planned") for c in self.status()):
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

    def live_jobs(self) -> set[str]:
        return set(self.cluster.output("squeue", "-h", "-r", "-o", "%i").split())

    def _cancel_all(self) -> None:
        if jobs := self.live_jobs():
            self.cluster.output("scancel", *jobs)
