"""The files of a run. Other rooms know a run only through this wing, which imports no torch.

``<runs>/<ab>/<signature>/``: config.yaml and ``attempts/<n>/`` with status.json, env.json, metrics.jsonl,
evaluations/, checkpoints, samples.png, model.safetensors and log.txt. An attempt writes nowhere else, so two
attempts of one run can overlap without harm; readers take the highest attempt for each step. Evaluations made later,
without training, are in ``evaluations/`` beside the attempts, and generation probes with their tokens in ``probes/``,
whose files appear whole and are named after all that decides their content.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from gsq.errors import UserError
from gsq.files import read_json, write_json, write_text
from gsq.records.attempt import Attempt, write_evaluation

# Holds the first error of a process other than the first of those that share a run.
PEER_ERROR = "peer-error.json"


def runs_root() -> Path:
    """``$GSQ_RUNS``, by default results/runs below the current folder."""
    return Path(os.environ.get("GSQ_RUNS") or "results/runs").absolute()


def sweep_path(runs: Path, name: str) -> Path:
    """The folder of a sweep, ``<runs>/sweeps/<name>``."""
    return runs / "sweeps" / name


def attempt_numbers(run: str) -> list[int]:
    """Numbers of the attempts of a run folder, sorted; empty if there is no such folder."""
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

    @property
    def runs(self) -> Path:
        """The folder of runs that this one is in."""
        return self.path.absolute().parent.parent

    def attempt_folders(self) -> list[Path]:
        """Attempt folders, oldest first."""
        return [self.path / "attempts" / str(n) for n in attempt_numbers(str(self.path))]

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
        """Save an evaluation made after the run, in ``evaluations/`` beside its attempts."""
        return write_evaluation(self.path, protocol, step, result)

    @property
    def probes(self) -> Path:
        """Folder of generation probes, their tokens and checkpoints."""
        return self.path / "probes"

    def write_probe(self, protocol: str, step: int, result: dict[str, Any]) -> Path:
        """Save what a probe adds to an evaluation, by the evaluation's protocol and step and its own protocol."""
        path = self.probes / f"{protocol}-{step:08d}-{result['probe_protocol']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result)
        return path

    def write_config(self, values: dict[str, Any]) -> None:
        """Write config.yaml once: its content is what the signature names."""
        import yaml

        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / "config.yaml").exists():
            write_text(self.path / "config.yaml", yaml.safe_dump(values, sort_keys=False))

    def read_config(self) -> dict[str, Any]:
        """The content of config.yaml. Raises UserError if this is not a run folder, or the file is damaged."""
        import yaml

        file = self.path / "config.yaml"
        try:
            values = yaml.safe_load(file.read_text())
        except OSError:
            raise UserError(f"{self.path}: not a run folder, it has no config.yaml") from None
        except (ValueError, yaml.YAMLError):
            values = None
        if not isinstance(values, dict):
            raise UserError(f"{file}: holds no config, so it was damaged or is not gsq's; copy the run folder again")
        return values


def device_seconds(status: dict[str, Any]) -> float:
    return float(status["seconds"] * status.get("processes", 1))


def note_peer_error(attempt: Path, rank: int, failure: str, message: str) -> None:
    """Record the error of a process other than the first of an attempt; only the first error is kept.

    attempt: its folder. Raises OSError if it cannot be written.
    """
    mine = attempt / f".{PEER_ERROR}.{rank}"
    write_json(mine, {"rank": rank, "failure": failure, "message": f"process {rank}: {message}"})
    try:
        os.link(mine, attempt / PEER_ERROR)
    except FileExistsError:
        pass
    finally:
        mine.unlink()


def read_peer_error(attempt: Path) -> tuple[str, str] | None:
    """Failure class and message of the first error that ``note_peer_error`` recorded for an attempt."""
    told = read_json(attempt / PEER_ERROR)
    return (told["failure"], told["message"]) if told is not None else None


def evaluated(folder: RunFolder) -> frozenset[tuple[str, int]]:
    """Protocol and step of every evaluation in a run folder, from the names of its files alone."""
    path = str(folder.path)
    found = set()
    for where in [*(f"attempts/{number}/evaluations" for number in attempt_numbers(path)), "evaluations"]:
        try:
            names = os.listdir(f"{path}/{where}")
        except OSError:
            continue
        for name in names:
            protocol, dash, step = name.removesuffix(".json").rpartition("-")
            if dash and step.isdigit() and name.endswith(".json") and name[0] != ".":
                found.add((protocol, int(step)))
    return frozenset(found)


def probed(folder: RunFolder) -> frozenset[tuple[str, int, str]]:
    """Protocol and step of the evaluation, and the probe's protocol, of every probe in a run folder."""
    found = set()
    for name in _names(folder.probes):
        parts = name.removesuffix(".json").split("-")
        if name.endswith(".json") and name[0] != "." and len(parts) == 3 and parts[1].isdigit():
            found.add((parts[0], int(parts[1]), parts[2]))
    return frozenset(found)


def probe_files(folder: RunFolder) -> tuple[list[Path], list[Path]]:
    """Tokens that the probes of a run share, and checkpoints of unfinished probes."""
    paths = [folder.probes / name for name in _names(folder.probes) if name.endswith(".pt") and name[0] != "."]
    tokens = [path for path in paths if path.name.startswith("tokens-")]
    return tokens, [path for path in paths if path not in tokens]


def probe_progress(folder: RunFolder) -> int:
    """A number that grows whenever a probe of the run saves its progress: the time of that [ns], or 0."""
    times = [0]
    for path in (path for paths in probe_files(folder) for path in paths):
        with suppress(OSError):
            times.append(path.stat().st_mtime_ns)
    return max(times)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
