"""What jobs under faults ask of the harness, since they cannot do it to themselves: see inject/sitecustomize.py."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import Cluster
from disturbances import Disturbances

ROOT = Path(__file__).resolve().parent.parent.parent
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


# How long a slurmd may be away until SLURM gives its node up, which takes half a minute.
DOWN_SECONDS = 120


class Requests:
    """Carries requests out, each in a thread of its own, until the round is ``over``.

    orders: what the jobs see as $GSQ_FAULTS. runs: the round's runs folder. problems: takes words about what could not
    be done.
    """

    def __init__(
        self,
        orders: Path,
        runs: Path,
        cluster: Cluster,
        disturbances: Disturbances,
        draw: random.Random,
        problems: list[str],
    ) -> None:
        self.orders, self.runs, self.cluster, self.problems = orders, runs, cluster, problems
        self.disturbances, self.draw = disturbances, draw
        # downed: held while a daemon is away, so that one of them is away at a time.
        self.over, self.downed = threading.Event(), threading.Lock()
        self.second: list[subprocess.Popen[bytes]] = []
        self.watcher = threading.Thread(target=self._watch)

    def __enter__(self) -> Requests:
        self.watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        for process in self.second:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def stop(self) -> None:
        """Take no more requests, and wait for those that were taken."""
        self.over.set()
        self.watcher.join()

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
        self.until(lambda: not alive(last["pid"]), 60)
        (self.runs / "ballast").unlink(missing_ok=True)

    def until(self, condition: Callable[[], object], seconds: float) -> bool:
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

    def _say(self, *command: str) -> None:
        """Run a command of SLURM, again where the controller is down for another fault."""
        for _ in range(100):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0 or "Invalid job" in done.stderr or "already" in done.stderr:
                return
            time.sleep(0.2)
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")

    def _do_scancel(self, job: str, request: dict[str, Any], proceed: Callable[[], None]) -> None:
        self._say("scancel", job)

    def _do_requeue(self, job: str, request: dict[str, Any], proceed: Callable[[], None]) -> None:
        self._say("scontrol", "requeue", job)

    def _do_preempt(self, job: str, request: dict[str, Any], proceed: Callable[[], None]) -> None:
        self._say("scancel", "--signal=USR2", job)

    def _do_walltime(self, job: str, request: dict[str, Any], proceed: Callable[[], None]) -> None:
        """The limit comes within the 90 seconds of the warning; the next time the job has all its time again."""
        self._say("scontrol", "update", f"JobId={job}", "TimeLimit=1")
        proceed()
        self.until(lambda: not alive(request["pid"]), 100)
        self._say("scontrol", "update", f"JobId={job}", "TimeLimit=10")

    def _do_walltime_hang(self, job: str, request: dict[str, Any], proceed: Callable[[], None]) -> None:
        self._say("scontrol", "update", f"JobId={job}", "EndTime=now+1")

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
            down = self.until(lambda: self.cluster.node_state(node).startswith("down"), DOWN_SECONDS)
            self.cluster.bring_back(node)
        if not down:
            self.problems.append(f"SLURM did not give node {node} up within {DOWN_SECONDS} s")

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
        self.until(lambda: set(attempts.iterdir()) - there or process.poll() is not None, 60)
        proceed()
        if self.draw.random() < 0.5:
            lines = self.draw.randrange(1, 20)
            new = attempts / str(max(int(path.name) for path in attempts.iterdir())) / "metrics.jsonl"
            self.until(lambda: process.poll() is not None or lines_of(new) >= lines, 60)
            process.kill()


def lines_of(path: Path) -> int:
    try:
        return path.read_text().count("\n")
    except OSError:
        return 0


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
