"""What a run leaves on disk. Later rooms know a run only through this module; it imports no torch.

``<runs>/<ab>/<signature>/``: config.yaml and ``attempts/<n>/`` with status.json, env.json, metrics.jsonl,
evaluations/, checkpoints, samples.png, model.safetensors and log.txt. An attempt writes nowhere else, so that two
attempts of one run may overlap without harm; readers take the highest attempt for each step. Evaluations made later,
without training, are in ``evaluations/`` beside the attempts.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gsq.errors import UserError

RUNNING, DONE, FAILED, PRUNED = "running", "done", "failed", "pruned"
FAILURES = (
    "out_of_memory",
    "diverged",
    "timeout",
    "preempted",
    "node_failure",
    "disk_full",
    "cancelled",
    "lost",
    "error",
)
# What a driver says of an attempt that was ended from outside and could not say it: its failure class.
KILLED = "killed.txt"
# What a process that shares a run, and is not the first one, says of its own error.
PEER_ERROR = "peer-error.json"
# Of a line of metrics.jsonl: what differs from one execution of the same run to another.
TIMINGS = ("images_per_second", "loader_wait_seconds")
# Seconds without a heartbeat after which a running attempt that no scheduler knows is taken for lost.
STALE_SECONDS = 60.0


def runs_root() -> Path:
    """``$GSQ_RUNS``, by default results/runs below the current folder."""
    return Path(os.environ.get("GSQ_RUNS") or "results/runs").absolute()


def slurm_job() -> str:
    """Id of the SLURM job that this process is part of, ``12_3`` or ``12``; empty outside of SLURM."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "")


def write_text(path: Path, text: str, sync: bool = False) -> None:
    """Replace a file atomically; with ``sync`` it is on the disk when this returns."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w") as file:
            file.write(text)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any, sync: bool = False) -> None:
    write_text(path, json.dumps(value, indent=1, allow_nan=True) + "\n", sync)


def read_json(path: Path) -> Any:
    """The content, or None where the file is missing or not (yet) whole."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def process_start(pid: int) -> str:
    """When a process was started, so that no later one of the same number passes for it, nor a clock that is set back
    confuses the two: the boot's id and the kernel's ticks since. Empty where there is none, or not on Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Fields 3 and 22 of proc(5), behind a name that may hold anything.
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else f"{boot}/{rest[18]}"


@dataclass(frozen=True)
class Attempt:
    """One try at a run: its folder, and the only place that it writes to."""

    path: Path
    number: int
    clock: Callable[[], float] = time.time
    started: float = field(default_factory=time.time)

    def write_status(self, state: str, step: int, steps: int, **more: Any) -> None:
        """Replace status.json. ``more``: failure, message, images_per_second, peak_memory_bytes, processes, ..."""
        now = self.clock()
        value = {
            "state": state,
            "step": step,
            "steps": steps,
            "started": self.started,
            "heartbeat": now,
            "seconds": max(0.0, now - self.started),
            "host": socket.gethostname(),
            "node": os.environ.get("SLURMD_NODENAME", ""),
            "job": slurm_job(),
            "pid": os.getpid(),
            "pid_start": process_start(os.getpid()),
            **more,
        }
        write_json(self.path / "status.json", value, sync=state != RUNNING)

    def log_metrics(self, step: int, values: dict[str, float]) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def write_evaluation(self, protocol: str, step: int, result: dict[str, Any]) -> Path:
        return _write_evaluation(self.path, protocol, step, result)


def _write_evaluation(folder: Path, protocol: str, step: int, result: dict[str, Any]) -> Path:
    path = folder / "evaluations" / f"{protocol}-{step:08d}.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, result, sync=True)
    return path


def _attempt_numbers(run: str) -> list[int]:
    """Of the attempts of a run folder, in order; none where there is no such folder."""
    try:
        return sorted(int(name) for name in os.listdir(f"{run}/attempts") if name.isdigit())
    except OSError:
        return []


class RunFolder:
    """``<runs>/<ab>/<signature>/``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, runs: Path, signature: str) -> RunFolder:
        return cls(runs / signature[:2] / signature)

    @property
    def signature(self) -> str:
        return self.path.name

    def attempt_folders(self) -> list[Path]:
        """Attempt folders, oldest first."""
        return [self.path / "attempts" / str(n) for n in _attempt_numbers(str(self.path))]

    def new_attempt(self) -> Attempt:
        """Make the next attempt folder; mkdir is atomic, so two processes never share one."""
        (self.path / "attempts").mkdir(parents=True, exist_ok=True)
        number = len(self.attempt_folders()) + 1
        while True:
            path = self.path / "attempts" / str(number)
            try:
                path.mkdir()
            except FileExistsError:
                number += 1
                continue
            return Attempt(path, number)

    def write_evaluation(self, protocol: str, step: int, result: dict[str, Any]) -> Path:
        """Keep an evaluation made after the run, in ``evaluations/`` beside its attempts, which stay as they are."""
        return _write_evaluation(self.path, protocol, step, result)

    @contextmanager
    def claim(self, patience: float = STALE_SECONDS) -> Iterator[bool]:
        """Whether the caller may train this run: False where another process does, and shows signs of life.

        Nothing rests on it but work saved, for two attempts do each other no harm: where the file system has no
        locks, or a dead node's outlives it, the caller goes on after ``patience`` seconds without such a sign.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a") as file:
            before, deadline = read_run(self).heartbeat, time.monotonic() + patience
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if read_run(self).heartbeat != before:
                        yield False
                        return
                    if time.monotonic() < deadline:
                        time.sleep(0.2)
                        continue
                except OSError:
                    pass  # No locks here.
                yield True
                return

    def write_config(self, values: dict[str, Any]) -> None:
        """config.yaml, written once: its content is what the signature names."""
        import yaml

        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / "config.yaml").exists():
            write_text(self.path / "config.yaml", yaml.safe_dump(values, sort_keys=False), sync=True)

    def read_config(self) -> dict[str, Any]:
        """What write_config wrote. Raises UserError where this is not a run folder."""
        import yaml

        try:
            values = yaml.safe_load((self.path / "config.yaml").read_text())
        except OSError:
            raise UserError(f"{self.path}: not a run folder, it has no config.yaml") from None
        assert isinstance(values, dict)
        return values


@dataclass(frozen=True)
class RunRecord:
    """What is known of one run from its folder."""

    signature: str
    state: str | None = None
    """running, done, failed or pruned; None before the first attempt."""
    failure: str | None = None
    message: str | None = None
    step: int = 0
    steps: int = 0
    attempts: int = 0
    heartbeat: float = 0.0
    seconds: float = 0.0
    """Device seconds of all attempts: their time by their processes."""
    failed_seconds: float = 0.0
    """Device seconds of the attempts that failed or were stopped, also of those that ended without saying so."""
    running_seconds: float = 0.0
    """Device seconds of the newest attempt while it says that it runs."""
    images_per_second: float | None = None
    peak_memory_bytes: int | None = None
    host: str = ""
    pid: int = 0
    pid_start: str = ""
    """What process_start says of it; empty for a run of an earlier gsq, or not on Linux."""
    node: str = ""
    job: str = ""
    """SLURM job of the newest attempt."""
    device: str = ""
    """cpu or cuda."""
    startup_seconds: float | None = None
    """Device seconds up to the end of an attempt's first step: imports, weights, images, compilation."""
    step_seconds: float | None = None
    """Device seconds of a training step, over the ``timed_steps`` of all attempts; without evaluations."""
    timed_steps: int = 0
    evaluation_seconds: float | None = None
    """Device seconds of one evaluation, the mean."""
    rfid: float | None = None
    """Of the newest evaluation."""
    started_from: str | None = None
    """A shorter run whose checkpoint this one started from."""
    next_micro_batch: int | None = None
    """The smaller micro-batch with which the next attempt can try where this one runs out of memory."""
    unreadable: tuple[str, ...] = ()
    """Status files, below the run folder, that are there but hold no status; all else is said without them."""
    pruned_by: str | None = None
    """Who gave a pruned run up; to anyone else it is unfinished."""

    def stale(self, now: float) -> bool:
        """Running by its own account, but without a sign of life for STALE_SECONDS."""
        return self.state == RUNNING and now - self.heartbeat > STALE_SECONDS


def read_run(folder: RunFolder) -> RunRecord:
    """Read the status files of a run; done wins over everything, else the newest attempt speaks."""
    return _read_run(str(folder.path), folder.signature)


def read_runs(runs: Path, signatures: Iterable[str]) -> dict[str, RunRecord]:
    """As read_run, of many runs below a runs folder."""
    root = str(runs)
    return {signature: _read_run(f"{root}/{signature[:2]}/{signature}", signature) for signature in signatures}


def _read_run(path: str, signature: str) -> RunRecord:
    attempts, known, unreadable = _statuses(path)
    if not known:
        return RunRecord(signature, attempts=attempts, unreadable=tuple(unreadable))
    last = next((s for s in known if s["state"] == DONE), known[-1])
    return RunRecord(
        signature=signature,
        state=last["state"],
        failure=last.get("failure"),
        message=last.get("message"),
        step=max(s["step"] for s in known),
        steps=last["steps"],
        attempts=attempts,
        heartbeat=last["heartbeat"],
        seconds=sum(map(_device_seconds, known)),
        failed_seconds=sum(_device_seconds(s) for s in known if s["state"] == FAILED)
        + sum(_device_seconds(s) for s in known[:-1] if s["state"] == RUNNING),
        running_seconds=_device_seconds(known[-1]) if last["state"] == RUNNING else 0.0,
        images_per_second=last.get("images_per_second"),
        peak_memory_bytes=max((s.get("peak_memory_bytes") or 0 for s in known), default=0) or None,
        **_timings(known),
        host=last["host"],
        pid=last["pid"],
        pid_start=last.get("pid_start", ""),
        node=last.get("node", ""),
        job=last.get("job", ""),
        next_micro_batch=last.get("next_micro_batch"),
        pruned_by=last.get("pruned_by"),
        started_from=next((s["started_from"] for s in known if s.get("started_from")), None),
        unreadable=tuple(unreadable),
    )


def _device_seconds(status: dict[str, Any]) -> float:
    return float(status["seconds"] * status.get("processes", 1))


def _statuses(path: str) -> tuple[int, list[dict[str, Any]], list[str]]:
    """How many attempts a run has; what status.json says of each, or what a driver found out about one that was
    killed; and the files that say nothing. With paths as text: pathlib takes longer than the file system."""
    numbers = _attempt_numbers(path)
    known: list[dict[str, Any]] = []
    unreadable: list[str] = []
    for number in numbers:
        name = f"attempts/{number}/status.json"
        try:
            with open(f"{path}/{name}", "rb", buffering=0) as file:
                status = json.loads(file.read().decode())
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            status = None
        if not _is_status(status):
            unreadable.append(name)
            continue
        if status["state"] == RUNNING and os.path.exists(f"{path}/attempts/{number}/{KILLED}"):
            failure = Path(f"{path}/attempts/{number}/{KILLED}").read_text().strip()
            message = f"killed from outside after step {status['step']}"
            status |= {"state": FAILED, "failure": failure, "message": message}
        elif status["state"] == RUNNING and (told := read_peer_error(Path(f"{path}/attempts/{number}"))):
            # Its first process was killed before it could say so.
            status |= {"state": FAILED, "failure": told[0], "message": told[1]}
        known.append(status)
    return len(numbers), known, unreadable


_STATES = frozenset({RUNNING, DONE, FAILED, PRUNED})


def _is_status(value: Any) -> bool:
    """Whether the content of a status.json has what every attempt writes."""
    try:
        return (
            value["state"] in _STATES
            and isinstance(value["step"], int)
            and isinstance(value["steps"], int)
            and isinstance(value["heartbeat"], int | float)
            and isinstance(value["seconds"], int | float)
            and isinstance(value["host"], str)
            and isinstance(value["pid"], int)
        )
    except (KeyError, TypeError):
        return False


def note_killed(folder: RunFolder, failure: str) -> None:
    """Say why the newest attempt, which still says that it runs, has ended."""
    write_text(folder.attempt_folders()[-1] / KILLED, failure + "\n", sync=True)


def note_peer_error(attempt: Path, rank: int, failure: str, message: str) -> None:
    """Say what went wrong in another process of an attempt than the first; the first that was said stays.

    attempt: its folder. Raises OSError where it cannot be written.
    """
    mine = attempt / f".{PEER_ERROR}.{rank}"
    write_json(mine, {"rank": rank, "failure": failure, "message": f"process {rank}: {message}"}, sync=True)
    try:
        os.link(mine, attempt / PEER_ERROR)
    except FileExistsError:
        pass
    finally:
        mine.unlink()


def read_peer_error(attempt: Path) -> tuple[str, str] | None:
    """Failure class and message of the process of an attempt that said first what went wrong in it."""
    told = read_json(attempt / PEER_ERROR)
    return (told["failure"], told["message"]) if told is not None else None


def _timings(statuses: list[dict[str, Any]]) -> dict[str, Any]:
    """Fields of RunRecord that say where the time of the attempts went, and how good the result is so far."""

    def total(key: str) -> float:
        return sum(s[key] * s.get("processes", 1) for s in statuses if key in s)

    steps, evaluations = (sum(s.get(key, 0) for s in statuses) for key in ("trained_steps", "evaluations"))
    startups = [s["startup_seconds"] * s.get("processes", 1) for s in statuses if "startup_seconds" in s]
    return {
        "device": statuses[-1].get("device", ""),
        "startup_seconds": startups[-1] if startups else None,
        "step_seconds": total("training_seconds") / steps if steps else None,
        "timed_steps": steps,
        "evaluation_seconds": total("evaluation_seconds") / evaluations if evaluations else None,
        "rfid": next((s["rfid"] for s in reversed(statuses) if "rfid" in s), None),
    }


def smallest_micro_batch(folder: RunFolder) -> int | None:
    """The micro-batch to which attempts that ran out of memory have come down; None where none did."""
    short = [s for s in _statuses(str(folder.path))[1] if s.get("failure") == "out_of_memory"]
    return min((s["next_micro_batch"] for s in short if s.get("next_micro_batch")), default=None)


def read_metrics(folder: RunFolder) -> list[dict[str, float]]:
    """The training curve: for each step the line of the highest attempt; torn or damaged lines are left out."""
    by_step: dict[int, dict[str, float]] = {}
    for path in folder.attempt_folders():
        try:
            lines = (path / "metrics.jsonl").read_bytes().splitlines()
        except OSError:
            continue
        for line in lines:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict) and isinstance(value.get("step"), int):
                by_step[value["step"]] = value
    return [by_step[step] for step in sorted(by_step)]


@dataclass(frozen=True)
class RunResults:
    """What a run folder holds beside its status: the newest of each file over the attempts."""

    environment: dict[str, Any]
    """env.json; empty where there is none."""
    evaluations: dict[str, dict[str, Any]]
    """By the file, below the run folder, in the order of protocol and step."""
    unreadable: tuple[str, ...]
    """Files, below the run folder, that are there but hold no JSON object."""


def read_results(folder: RunFolder) -> RunResults:
    """Environment and evaluations of a run, each of the highest attempt that has it; later evaluations come last."""
    path = str(folder.path)
    environments: list[str] = []
    evaluations: dict[str, str] = {}
    unreadable: list[str] = []
    attempts = [f"attempts/{number}" for number in _attempt_numbers(path)]
    for attempt in attempts:
        if os.path.isfile(f"{path}/{attempt}/env.json"):
            environments.append(f"{attempt}/env.json")
    for where in [*(f"{attempt}/evaluations" for attempt in attempts), *(["evaluations"] if attempts else [])]:
        try:
            names = os.listdir(f"{path}/{where}")
        except FileNotFoundError:
            continue
        except OSError:
            unreadable.append(where)
            continue
        evaluations |= {name: f"{where}/{name}" for name in names if name.endswith(".json") and name[0] != "."}
    environment: Any = {}
    if environments:
        environment = _read_object(f"{path}/{environments[-1]}")
        if environment is None:
            unreadable.append(environments[-1])
    found = {}
    for name in sorted(evaluations):
        value = _read_object(f"{path}/{evaluations[name]}")
        if value is None:
            unreadable.append(evaluations[name])
        else:
            found[evaluations[name]] = value
    return RunResults(environment or {}, found, tuple(unreadable))


def evaluated(folder: RunFolder) -> frozenset[tuple[str, int]]:
    """Protocol and step of every evaluation in a run folder, from the names of the files: none is read."""
    path = str(folder.path)
    found = set()
    for where in [*(f"attempts/{number}/evaluations" for number in _attempt_numbers(path)), "evaluations"]:
        try:
            names = os.listdir(f"{path}/{where}")
        except OSError:
            continue
        for name in names:
            protocol, dash, step = name.removesuffix(".json").rpartition("-")
            if dash and step.isdigit() and name.endswith(".json") and name[0] != ".":
                found.add((protocol, int(step)))
    return frozenset(found)


def results_changed(folder: RunFolder) -> tuple[int, ...]:
    """Times at which what read_results reads was changed, in ns, 0 for what is not there: equal as long as that is.

    Files are replaced by renaming, which changes the time of their folder; an edit in place is not seen.
    """
    path, times = str(folder.path), []
    names = [f"attempts/{number}/{name}" for number in _attempt_numbers(path) for name in ("env.json", "evaluations")]
    for name in [*names, *(["evaluations"] if names else [])]:
        try:
            times.append(os.stat(f"{path}/{name}").st_mtime_ns)
        except OSError:
            times.append(0)
    return tuple(times)


def _read_object(path: str) -> dict[str, Any] | None:
    try:
        with open(path, "rb", buffering=0) as file:
            value = json.loads(file.read().decode())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_evaluations(folder: RunFolder) -> Iterator[dict[str, Any]]:
    """Evaluations by (protocol, step), of the highest attempt that has each."""
    yield from read_results(folder).evaluations.values()


def newest_file(folder: RunFolder, name: str) -> Path | None:
    """``name`` in the highest attempt that has it."""
    return next((p / name for p in reversed(folder.attempt_folders()) if (p / name).is_file()), None)
