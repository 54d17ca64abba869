"""A run of a training program of a user's own, in a run folder as every run has.

The program is a function ``train(config: dict, run: gsq.Run) -> dict``. It returns its final metrics, columns of the
results table. It may declare its data: a function ``data(config)`` in its module returns ``gsq.fingerprint(path)``.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from gsq.config.parts import load
from gsq.config.program import ProgramConfig, plain
from gsq.config.signature import digest
from gsq.errors import UserError
from gsq.files import write_json
from gsq.records.attempt import DONE, FAILED, RUNNING, Attempt
from gsq.records.claim import claim
from gsq.records.folder import RunFolder
from gsq.records.read import read_run
from gsq.runs.execute import RESERVE, RESERVE_BYTES
from gsq.runs.failures import peak_memory_bytes, record_failure
from gsq.runs.provenance import environment
from gsq.runs.stop import Busy, Stopped, StopRequest

# Seconds between signs of life, which a program gives even while it logs nothing.
BEAT_SECONDS = 1.0
# Seconds after a request to stop in which a program that reads ``stop_requested`` may save; after the second, a program
# that does not even log is ended from outside of it.
STOP_SECONDS, END_SECONDS = 20.0, 45.0
# Exit code of a worker that was stopped (gsq.sweeps.running.worker.STOPPED).
STOPPED_CODE = 3


class Run:
    """What a program is given: where it logs, evaluates, saves and resumes, and whether it is to stop."""

    def __init__(
        self,
        attempt: Attempt,
        config: ProgramConfig,
        stop: StopRequest,
        previous: list[Path],
        on_step: Callable[[int], None] = lambda step: None,
    ) -> None:
        self._on_step = on_step
        self._attempt, self._config, self._stop, self._previous = attempt, config, stop, previous
        self._lock = threading.Lock()
        self._state_name = RUNNING
        self._timings: dict[str, float] = {}
        self._first = 0.0
        self._asked: float | None = None
        self._listens = self._checked = False
        self.logged = self.saved = False
        self.step = 0
        """The last step that it logged, or that of the checkpoint from which it resumes."""

    @property
    def folder(self) -> Path:
        """A folder for files of the program's own, kept with the run: that of this attempt."""
        return self._attempt.path

    @cached_property
    def state(self) -> Any:
        """What ``save`` saved last, in any attempt, with tensors on the CPU; None in a new run."""
        from torch import device

        from gsq.training import checkpoint

        found = checkpoint.hold(self._previous, self._attempt.path)
        if found is None:
            return None
        loaded = checkpoint.load(found, device("cpu"))
        self.step = int(loaded["step"])
        return loaded["state"]

    @property
    def stop_requested(self) -> bool:
        """Whether the run is to stop (Ctrl-C, gsq cancel, the end of a job's time): save, which ends the program."""
        self._listens = True
        return self._stop.reason is not None

    def log(self, step: int, **values: float) -> None:
        """Append a line to the run's curve, and show ``step`` in gsq status.

        step: at most ``config["steps"]`` where that key exists; it never decreases. values: numbers.

        Raises UserError for a text or a step that is too large or falls, and FloatingPointError, by which the run
        counts as diverged, for NaN or infinity.
        """
        self._reach(step, "run.log")
        numbers = {name: _number(name, value, "run.log") for name, value in values.items()}
        for name, number in numbers.items():
            if not math.isfinite(number):
                raise FloatingPointError(f"{self._config.program} logged {name}={number} at step {step}")
        self._time_step(step)
        self.step, self.logged = step, True
        self._attempt.log_metrics(step, numbers)
        self._on_step(step)
        if self._stop.reason is not None:
            # A program that looks at stop_requested has time to save.
            self._asked = self._asked or time.monotonic()
            if not self._listens or time.monotonic() - self._asked > STOP_SECONDS:
                raise Stopped(self._stop.reason)

    def save(self, state: dict[str, Any]) -> None:
        """Save what the program needs to resume, whole or not at all; the last two are kept.

        state: tensors, numbers, texts, and lists and dicts of these. If the run is to stop, this ends the program.

        Raises UserError for a state that cannot be read back, OSError on a full disk.
        """
        from torch import device

        from gsq.training import checkpoint

        path = checkpoint.save(self._attempt.path, self.step, {"step": self.step, "state": state})
        if not self._checked:
            try:
                checkpoint.load(path, device("cpu"))
            except Exception as error:
                path.with_suffix(".json").unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                raise UserError(
                    f"run.save of {self._config.program}: the state cannot be read back; it may hold tensors, numbers, "
                    f"texts, and lists and dicts of these (torch.from_numpy makes an array a tensor): "
                    f"{next(iter(str(error).splitlines()), '')}"
                ) from error
            self._checked = True
        self.saved = True
        if self._stop.reason is not None:
            raise Stopped(self._stop.reason)

    def evaluate(self, step: int, **metrics: float) -> None:
        """Record metrics at a step: a row of the results table, with a column for each. Evaluate before you save, or a
        run that is stopped between the two lacks the evaluation.

        Raises UserError like ``log``, and for a metric with the name of a key or column of the sweep.
        """
        self._reach(step, "run.evaluate")
        self.step = step
        self.record(step, metrics, "run.evaluate")

    def record(self, step: int, metrics: Mapping[str, Any], where: str) -> None:
        """Write an evaluation file, with the metrics that it has already for this step."""
        for name in metrics:
            if name in self._config.values:
                raise UserError(f"{where}: '{name}' is a key or column of the sweep; give the metric another name")
            if not str(name).isidentifier():
                raise UserError(f"{where}: {name!r} is not a name for a column: letters, digits and '_'")
        protocol = digest({"program": self._config.program})
        file = self._attempt.path / "evaluations" / f"{protocol}-{step:08d}.json"
        before = json.loads(file.read_text())["metrics"] if file.exists() else {}
        numbers = {str(name): _number(str(name), value, where) for name, value in metrics.items()}
        result: dict[str, Any] = {"protocol": protocol, "step": step, "metrics": {**before, **numbers}}
        if self._config.flops:
            result["train_flops"] = self._config.flops * min(1.0, step / self._config.train.steps)
        self._attempt.write_evaluation(protocol, step, result)

    def _reach(self, step: int, where: str) -> None:
        steps = self._config.values.get("steps")
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise UserError(f"{where}: step {step!r} is not a whole number of at least 0")
        if step < self.step:
            raise UserError(f"{where}: step {step} after step {self.step}: steps never decrease; begin at run.state")
        if isinstance(steps, int) and step > steps:
            raise UserError(f"{where}: step {step} is beyond the key steps, which is {steps}; end the program there")

    def _time_step(self, step: int) -> None:
        now = time.monotonic()
        with self._lock:
            if not self._timings:
                started = max(0.0, time.time() - self._attempt.started)
                self._timings = {"startup_seconds": started, "training_seconds": 0.0, "trained_steps": 0}
                self._first = now
            elif step > self.step:
                self._timings["training_seconds"] = now - self._first
                self._timings["trained_steps"] += step - self.step

    def status(self, state: str = RUNNING, **more: Any) -> None:
        """Write the attempt's status; RUNNING is not written any more once another state has been."""
        torch = sys.modules.get("torch")
        device = "cuda" if torch is not None and torch.cuda.is_initialized() else "cpu"
        with self._lock:
            if self._state_name != RUNNING:
                return
            self._state_name = state
            seconds, steps = (self._timings.get(name, 0) for name in ("training_seconds", "trained_steps"))
            if seconds > 0 and steps > 0:
                # Steps a second, since a program's batch counts as one image.
                more["images_per_second"] = steps / seconds
            more |= {"peak_memory_bytes": peak_memory_bytes(device), "processes": 1, "device": device, **self._timings}
            self._attempt.write_status(state, self.step, max(self._config.train.steps, self.step), **more)

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Give signs of life while the block runs, and end a process that hears no request to stop."""
        over = threading.Event()

        def beat() -> None:
            asked: float | None = None
            while not over.wait(BEAT_SECONDS):
                try:
                    self.status()
                except OSError:
                    continue  # A full disk; the program itself will run into it.
                if self._stop.reason is not None:
                    asked = asked or time.monotonic()
                    if time.monotonic() - asked > END_SECONDS:
                        self.status(FAILED, failure=self._stop.reason, message=f"{DEAF} (after step {self.step})")
                        os._exit(STOPPED_CODE)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


DEAF = "the program neither logged nor saved after it was asked to stop, so it was ended"


def _number(name: str, value: Any, where: str) -> float:
    """A metric as a number: Python's, numpy's, or a tensor of one value. Raises UserError for anything else."""
    if not isinstance(value, str | bytes | bool) and value is not None:
        try:
            return value if isinstance(value, int) else float(value)
        except (TypeError, ValueError, RuntimeError):
            pass
    raise UserError(f"{where}: {name}: {value!r} is a {type(value).__name__}; metrics are numbers")


def execute_program(
    config: ProgramConfig,
    runs: Path,
    signature: str,
    *,
    stop: StopRequest | None = None,
    started: float | None = None,
    announce: Callable[[str], None] = lambda message: print(message, file=sys.stderr, flush=True),
    on_step: Callable[[int], None] = lambda step: None,
) -> RunFolder:
    """Run a program below ``runs``. Resumes from what earlier attempts saved, and skips a run that is done.

    started: seconds since the epoch at which the process began. announce receives warnings about the program.
    on_step is called with each step that it logs.

    Raises the exception that ended it, with its failure class in status.json: Stopped on request, UserError for a
    program that does not return a dict of numbers. Before anything has begun, raises Busy if another process runs it.
    """
    stop = stop or StopRequest()
    folder = RunFolder.of(runs, signature)
    with claim(folder) as free:
        record = read_run(folder)
        if record.state == DONE:
            return folder
        if not free:
            raise Busy(f"run {signature} is being trained by process {record.pid} on {record.node or record.host}")
        previous = folder.attempt_folders()
        folder.write_config(config.to_dict())
        attempt = folder.new_attempt()
        if started is not None:
            attempt = Attempt(attempt.path, attempt.number, started=started)
        run = Run(attempt, config, stop, previous, on_step)
        run.status()
        reserve = attempt.path / RESERVE
        reserve.write_bytes(bytes(RESERVE_BYTES))
        try:
            with run.alive():
                _call(config, run, attempt)
        except BaseException as error:
            reserve.unlink(missing_ok=True)
            record_failure(error, attempt, run.step, run.status)
            raise
        reserve.unlink(missing_ok=True)
        for warning in _warnings(run, config.program):
            announce(f"warning: {warning}")
        run.status(DONE)
        _clean([*previous, attempt.path])
    return folder


def _call(config: ProgramConfig, run: Run, attempt: Attempt) -> None:
    train = load(config.program, "program")
    device = "cpu"
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(config.execution.threads)
        if torch.cuda.is_available():
            device = torch.cuda.get_device_name()
    write_json(attempt.path / "env.json", environment(config, device))
    found = train(plain(config.keys), run)
    if not isinstance(found, dict):
        raise UserError(
            f"{config.program} returned {found!r} ({type(found).__name__}); it must return a dict of final metrics, "
            'such as {"loss": 1.2}'
        )
    if not found and not any((attempt.path / "evaluations").glob("*.json")):
        raise UserError(f"{config.program} returned no metric and never called run.evaluate; there is no result")
    steps = config.values.get("steps")
    step = steps if isinstance(steps, int) and not run.logged else run.step
    run.record(step, found, f"the dict that {config.program} returned")
    run.step = step


def _warnings(run: Run, program: str) -> Iterator[str]:
    if not run.logged:
        yield f"{program} never called run.log: gsq status shows no steps, and a request to stop has to kill it"
    if not run.saved:
        yield f"{program} never called run.save: a run that is interrupted starts from its beginning"


def _clean(folders: list[Path]) -> None:
    from gsq.training import checkpoint

    for path in folders:
        checkpoint.remove_all(path)
