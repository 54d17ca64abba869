"""What a training program of a user's own must do, tried out with given keys: behind ``gsq check --as program``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gsq.config.parts import load, source_sha256
from gsq.config.program import ProgramConfig
from gsq.errors import UserError
from gsq.records.folder import RunFolder
from gsq.records.read import read_evaluations, read_metrics
from gsq.runs.identity import declared_data, program_identity
from gsq.runs.part_checks import Check
from gsq.runs.program import execute_program
from gsq.runs.stop import Stopped, StopRequest


def check_program(name: str, keys: Mapping[str, Any]) -> list[Check]:
    """Run a program in a temporary folder: to its end, again, and stopped half-way and resumed.

    keys: small ones, so that it takes seconds. Raises UserError for a program that cannot be imported.
    """
    load(name, "program")
    config = ProgramConfig.of(name, keys)
    found = [Check("its source is found, and identified", True, source_sha256(name)[:12])]
    with tempfile.TemporaryDirectory() as folder:
        try:
            signature = program_identity(config, declared_data(config))
            warnings: list[str] = []
            first = execute_program(config, Path(folder, "1"), signature, announce=warnings.append)
        except Exception as error:
            plain = isinstance(error, UserError)
            return [*found, Check("it ends", False, str(error) if plain else f"{type(error).__name__}: {error}")]
        steps = [int(line["step"]) for line in read_metrics(first)]
        found.append(Check(f"it ends, with {', '.join(_names(first))}", True, "; ".join(warnings)))
        again = execute_program(config, Path(folder, "2"), signature, announce=warnings.append)
        found.append(_equal("a second run gives the same", first, again))
        if len(steps) > 1:
            resumed = _interrupted(config, Path(folder, "3"), signature, steps[len(steps) // 2])
            found.append(_equal("a run that is stopped half-way and resumed gives the same", first, resumed))
    return found


def _interrupted(config: ProgramConfig, runs: Path, signature: str, middle: int) -> RunFolder:
    stop = StopRequest()

    def ask(step: int) -> None:
        if step >= middle:
            stop.reason = "preempted"

    try:
        return execute_program(config, runs, signature, stop=stop, on_step=ask, announce=lambda message: None)
    except Stopped:
        return execute_program(config, runs, signature, announce=lambda message: None)


def _evaluations(folder: RunFolder) -> list[dict[str, Any]]:
    return list(read_evaluations(folder))


def _names(folder: RunFolder) -> list[str]:
    return list(dict.fromkeys(name for one in _evaluations(folder) for name in one["metrics"]))


def _equal(title: str, one: RunFolder, other: RunFolder) -> Check:
    before, after = ({e["step"]: e["metrics"] for e in _evaluations(folder)} for folder in (one, other))
    if lost := sorted(before.keys() - after.keys()):
        return Check(title, False, f"the evaluation of step {lost[0]} is lost; call run.evaluate before run.save")
    step = next((step for step in before if json.dumps(before[step]) != json.dumps(after[step])), None)
    return Check(title, step is None, "" if step is None else f"step {step}: {before[step]} and {after[step]}")
