"""Status, results and training curves of runs, read from their folders."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gsq.files import write_text
from gsq.records.attempt import AHEAD_SECONDS, DONE, FAILED, KILLED, PRUNED, RUNNING, STALE_SECONDS
from gsq.records.folder import RunFolder, attempt_numbers, device_seconds, probed, read_peer_error


@dataclass(frozen=True)
class RunRecord:
    """The state of one run, from its folder."""

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
    """Device seconds of the attempts that failed, were stopped, or ended without recording why."""
    running_seconds: float = 0.0
    """Device seconds of the newest attempt while its status says running."""
    images_per_second: float | None = None
    peak_memory_bytes: int | None = None
    host: str = ""
    pid: int = 0
    pid_start: str = ""
    """``process_start`` of that process; empty for a run of an earlier gsq, or not on Linux."""
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
    """rFID of the newest evaluation."""
    started_from: str | None = None
    """The run whose checkpoint this one started from, and its step."""
    next_micro_batch: int | None = None
    """The smaller micro-batch for the next attempt, should this one run out of memory."""
    unreadable: tuple[str, ...] = ()
    """Status files (relative to the run folder) that hold no status; the other fields ignore them."""
    pruned_by: str | None = None
    """Who pruned the run; to anyone else it is unfinished."""

    def stale(self, now: float) -> bool:
        """True if the status says running, but the heartbeat is older than STALE_SECONDS, or AHEAD_SECONDS in the
        future: a folder of another machine, or of a clock that was set back."""
        return self.state == RUNNING and not -AHEAD_SECONDS <= now - self.heartbeat <= STALE_SECONDS


def read_run(folder: RunFolder) -> RunRecord:
    """Read the status files of a run: done wins over everything, else the newest attempt counts."""
    return _read_run(str(folder.path), folder.signature)


def read_runs(runs: Path, signatures: Iterable[str]) -> dict[str, RunRecord]:
    """Like ``read_run``, for many runs below a runs folder."""
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
        seconds=sum(map(device_seconds, known)),
        failed_seconds=sum(device_seconds(s) for s in known if s["state"] == FAILED)
        + sum(device_seconds(s) for s in known[:-1] if s["state"] == RUNNING),
        running_seconds=device_seconds(known[-1]) if last["state"] == RUNNING else 0.0,
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


def _statuses(path: str) -> tuple[int, list[dict[str, Any]], list[str]]:
    """Number of attempts of a run, the status of each (its own, or a driver's note that it was killed), and the files
    that hold none. Paths are text, since pathlib takes longer than the file system."""
    numbers = attempt_numbers(path)
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
        if not is_status(status):
            unreadable.append(name)
            continue
        if status["state"] == RUNNING and os.path.exists(f"{path}/attempts/{number}/{KILLED}"):
            failure = Path(f"{path}/attempts/{number}/{KILLED}").read_text().strip()
            message = f"killed from outside after step {status['step']}"
            status |= {"state": FAILED, "failure": failure, "message": message}
        elif status["state"] == RUNNING and (told := read_peer_error(Path(f"{path}/attempts/{number}"))):
            # Its first process was killed before it could record this.
            status |= {"state": FAILED, "failure": told[0], "message": told[1]}
        known.append(status)
    return len(numbers), known, unreadable


_STATES = frozenset({RUNNING, DONE, FAILED, PRUNED})
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("state", "host"), str),
    **dict.fromkeys(("step", "steps", "pid"), int),
    **dict.fromkeys(("heartbeat", "seconds"), int | float),
}


def is_status(value: Any) -> bool:
    """Whether the content of a status.json has the keys that every attempt writes."""
    if not isinstance(value, dict) or not all(isinstance(value.get(key), type_) for key, type_ in _TYPES.items()):
        return False
    return value["state"] in _STATES


def note_killed(folder: RunFolder, failure: str) -> None:
    """Record why the newest attempt, whose status still says running, has ended."""
    write_text(folder.attempt_folders()[-1] / KILLED, failure + "\n")


def _timings(statuses: list[dict[str, Any]]) -> dict[str, Any]:
    """The fields of RunRecord for the time that the attempts took, and the newest rFID."""

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
    """The smallest micro-batch that attempts proposed when they ran out of memory; None if none did."""
    short = [s for s in _statuses(str(folder.path))[1] if s.get("failure") == "out_of_memory"]
    return min((s["next_micro_batch"] for s in short if s.get("next_micro_batch")), default=None)


def read_metrics(folder: RunFolder) -> list[dict[str, float]]:
    """The training curve: for each step the line of the highest attempt, without damaged lines."""
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
    """Environment and evaluations of a run: the newest of each file over the attempts."""

    environment: dict[str, Any]
    """env.json; empty if there is none."""
    evaluations: dict[str, dict[str, Any]]
    """Evaluations by file (relative to the run folder), sorted by protocol and step."""
    unreadable: tuple[str, ...]
    """Files (relative to the run folder) that hold no JSON object."""
    probes: dict[tuple[str, int], list[dict[str, Any]]] = field(default_factory=dict)
    """Generation probes by protocol and step of their evaluation, sorted by their own protocol."""


def read_results(folder: RunFolder) -> RunResults:
    """Read each file from the highest attempt that has it; evaluations made after the run win."""
    path = str(folder.path)
    environments: list[str] = []
    evaluations: dict[str, str] = {}
    unreadable: list[str] = []
    attempts = [f"attempts/{number}" for number in attempt_numbers(path)]
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
    probes: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for protocol, step, probe in sorted(probed(folder)):
        file = f"probes/{protocol}-{step:08d}-{probe}.json"
        if (value := _read_object(f"{path}/{file}")) is None or value.get("probe_protocol") != probe:
            unreadable.append(file)
        else:
            probes.setdefault((protocol, step), []).append(value)
    return RunResults(environment or {}, found, tuple(unreadable), probes)


def read_probes(folder: RunFolder) -> list[dict[str, Any]]:
    """The readable generation probes of a run."""
    files = (f"{folder.probes}/{protocol}-{step:08d}-{probe}.json" for protocol, step, probe in sorted(probed(folder)))
    return [value for file in files if (value := _read_object(file)) is not None]


def results_changed(folder: RunFolder) -> tuple[int, ...]:
    """Times [ns] at which the inputs of ``read_results`` last changed (0: absent). Equal times mean equal inputs.

    Renaming a file into place changes the time of its folder; an edit in place goes unnoticed.
    """
    path, times = str(folder.path), []
    names = [f"attempts/{number}/{name}" for number in attempt_numbers(path) for name in ("env.json", "evaluations")]
    for name in [*names, *(["evaluations", "probes"] if names else [])]:
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
    """Yield the evaluations, sorted by protocol and step, each from the highest attempt that has it."""
    yield from read_results(folder).evaluations.values()


def newest_file(folder: RunFolder, name: str) -> Path | None:
    """The file ``name`` of the highest attempt that has it."""
    return next((p / name for p in reversed(folder.attempt_folders()) if (p / name).is_file()), None)
