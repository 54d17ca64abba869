"""Kills `submit` at every step of a submission, one step after the other, and lets the next one do the rest.

    python tests/slurm_tests/killed_drivers.py --dir DIR    # on the cluster that SLURM_CONF names; prints JSON

A step is a call that changes something outside the process: a file or folder written, renamed or removed, a program
started. A profiler counts their returns, and sends the process SIGKILL at the n-th. Python and submitit are imported
once, then each driver is a fork. The partition is down meanwhile, so that jobs wait; in the end some of them run,
without training, and say which cells they are. Of the files of the source copy, which are alike, some stand for all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SWEEP = {
    "name": "killed",
    "base": "cpu-tiny",
    "set": {"steps": 1, "evaluation": {"num_images": 8}, "loss": {"perceptual": "none"}},
    "axes": {"groups": [1, 4]},
}
CALLS = {"open", "write", "close", "__exit__", "flush", "rename", "replace", "mkdir", "unlink", "remove", "rmdir"}
CALLS |= {"link", "symlink", "fsync", "truncate", "ftruncate", "sendfile", "copy_file_range", "fork_exec", "flock"}
COPYING = ("copyfile", "copytree", "_fastcopy_sendfile")
# Kills whose jobs run in the end.
RUN_IN_THE_END = 8


class Steps:
    """Counts steps in the thread that made it, and calls ``at`` at each with its number and a name."""

    def __init__(self, at: Callable[[int, str], None]) -> None:
        self.count, self.at, self.opened = 0, at, False
        sys.addaudithook(self._audit)
        sys.setprofile(self._profile)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            _, mode, flags = arguments
            self.opened = any(c in mode for c in "wax+") if isinstance(mode, str) else bool(flags & 0o1103)

    def _profile(self, frame: FrameType, event: str, function: Any) -> None:
        if event != "c_return" or function.__name__ not in CALLS:
            return
        name, owner = function.__name__, getattr(function, "__self__", None)
        if name == "open" and not self.opened:
            return
        if name in ("replace", "remove") and function.__module__ != "posix":
            return  # A string's or a list's.
        if name in ("close", "__exit__", "write", "flush"):
            # Calls on files that are written; os.close closes pipes, too, and os.write is not used for files.
            mode = getattr(owner, "mode", "")
            if not (isinstance(mode, str) and any(c in mode for c in "wax+")):
                return
        where, copying, caller = "", False, frame
        while caller is not None and not where:
            code = caller.f_code
            copying = copying or code.co_name in COPYING
            file = Path(code.co_filename)
            if file.is_relative_to(ROOT / "gsq"):
                where = f"{file.stem}.{code.co_name}"
            caller = caller.f_back  # type: ignore[assignment]
        self.count += 1
        self.at(self.count, f"{name} in {where}{' (copy)' if copying or where.startswith('snapshot') else ''}")


def forked(work: Callable[[], None]) -> Callable[[], int]:
    """Run it in a fork; the answer waits for its end and gives its exit code, minus the signal where there was one."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def tasks() -> set[str]:
    """Jobs that wait or run, each task of an array for itself."""
    done = subprocess.run(["squeue", "-h", "-r", "-o", "%i"], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


class Trial:
    """Submissions of a sweep of two cells to a runs folder of its own."""

    def __init__(self, work: Path, name: str, sweep: str) -> None:
        from gsq.sweeps.planning.cells import make_plan
        from gsq.sweeps.spec.cluster import load_cluster
        from gsq.sweeps.spec.sweep import load_spec

        self.runs, self.name = work / name / "runs", name
        self.plan = dataclasses.replace(make_plan(load_spec({**SWEEP, "name": sweep})))
        self.cluster = load_cluster(str(work / "waiting.yaml"))
        self.before = tasks()

    def submit(self) -> None:
        from gsq.sweeps.running.submit import submit

        submit(self.plan, self.cluster, runs=self.runs)

    def killed(self, number: int) -> int:
        def at(count: int, name: str) -> None:
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

        def work() -> None:
            Steps(at)
            self.submit()

        return forked(work)()

    def jobs(self) -> set[str]:
        return tasks() - self.before

    def problems(self, said: str) -> list[str]:
        """After a driver that died: the next one submits what is missing, the one after that nothing."""
        found = []
        for turn in ("next", "one after"):
            if code := forked(self.submit)():
                found.append(f"{said}: the {turn} driver ended with {code}")
            if (count := len(self.jobs())) != len(self.plan.cells):
                found.append(f"{said}: {count} jobs for {len(self.plan.cells)} cells after the {turn} driver")
                break
        return found


def chosen(names: list[str], everything: bool) -> list[int]:
    """Numbers of the steps to die at: all, but of the copied files the first, some in the middle and the last."""
    copies = [n for n, name in enumerate(names, 1) if name.endswith("(copy)")]
    middle = len(copies) // 2
    kept = {*copies[:8], *copies[middle : middle + 4], *copies[-8:]}
    return [n for n in range(1, len(names) + 1) if everything or n in kept or n not in copies]


def run(work: Path, everything: bool, log: Callable[[str], None]) -> dict[str, Any]:
    work.mkdir(parents=True, exist_ok=True)
    dry = work / "ran.jsonl"
    os.environ |= {"GSQ_FAULTS_DRY": str(dry), "PYTHONPATH": f"{HERE / 'inject'}{os.pathsep}{ROOT}"}
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    (work / "waiting.yaml").write_text("kind: slurm\npartition: test\nminutes: 5\nmemory_gb: 1\n")
    subprocess.run(["scontrol", "update", "PartitionName=test", "State=DOWN"], check=True)
    problems: list[str] = []
    trials: list[Trial] = []
    try:
        Trial(work, "first", "first").submit()  # Everything is imported by now.
        names: list[str] = []
        counting = Trial(work, "counting", "counting")
        place = work / "steps"

        def count() -> None:
            Steps(lambda number, name: names.append(name))
            counting.submit()
            sys.setprofile(None)
            place.write_text(json.dumps(names))

        if forked(count)():
            return {"problems": ["an undisturbed submission failed"], "steps": 0, "killed": 0}
        names = json.loads(place.read_text())
        numbers = chosen(names, everything)
        log(f"{len(names)} steps, to be killed at {len(numbers)} of them")
        for number in numbers:
            trial = Trial(work, f"kill-{number}", f"kill{number}")
            trials.append(trial)
            what = f"killed at step {number} of {len(names)} ({names[number - 1]})"
            if trial.killed(number) != -signal.SIGKILL:
                problems.append(f"not {what}")
            problems += trial.problems(what)
        for number in range(5):
            trial = Trial(work, f"both-{number}", f"both{number}")
            for wait in [forked(trial.submit) for _ in range(2)]:
                if code := wait():
                    problems.append(f"two drivers at once: one ended with {code}")
            problems += trial.problems("two drivers at once")
            trials.append(trial)
        # Two people, or two folders of one, give their sweeps the same name.
        for number in range(2):
            trials.append(Trial(work, f"same-name-{number}", "same"))
            problems += trials[-1].problems("two sweeps of the same name in two runs folders")
        few = trials[:: max(1, len(trials) // RUN_IN_THE_END)]
        problems += _let_run(few, dry)
        return {"problems": problems, "steps": len(names), "killed": len(numbers)}
    finally:
        subprocess.run(["scancel", "-u", "root", "--state=PENDING"], check=False)
        subprocess.run(["scontrol", "update", "PartitionName=test", "State=UP"], check=True)


def _let_run(trials: list[Trial], dry: Path) -> list[str]:
    """Let the jobs of some trials start and say which cell each is."""
    wanted = {task for trial in trials for task in trial.jobs()}
    keep = {task for trial in trials for task in trial.jobs() if task in wanted}
    # What came later than a trial is not its own: keep the jobs whose folder it is.
    folders = {str(trial.runs) for trial in trials}
    mine = {task for task in keep if any(folder in _folder_of(task) for folder in folders)}
    others = sorted(tasks() - mine)
    for first in range(0, len(others), 200):
        subprocess.run(["scancel", *others[first : first + 200]], check=False)
    subprocess.run(["scontrol", "update", "PartitionName=test", "State=UP"], check=True)
    deadline = time.monotonic() + 240
    while tasks():
        if time.monotonic() > deadline:
            return ["the jobs did not end"]
        time.sleep(0.2)
    ran = Counter(
        (line["runs"], line["signature"])
        for line in map(json.loads, dry.read_text().splitlines() if dry.exists() else [])
    )
    expected = Counter((str(trial.runs), cell.signature) for trial in trials for cell in trial.plan.cells)
    return [] if ran == expected else [f"cells that ran: {ran}, but should: {expected}"]


def _folder_of(task: str) -> str:
    done = subprocess.run(["scontrol", "show", "job", task], capture_output=True, text=True, check=False)
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", required=True, help="an empty folder to work in")
    parser.add_argument("--all", action="store_true", help="die at each copied file, too")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    found = run(Path(args.dir).resolve(), args.all, lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps(found))
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
