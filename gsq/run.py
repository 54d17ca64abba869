"""One run from its config to its evaluations on disk: attempts, states, failure classes, clean stops."""

from __future__ import annotations

import errno
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from gsq import checkpoint
from gsq.config import RunConfig
from gsq.datasets import Manifest, manifest
from gsq.errors import UserError
from gsq.identity import identity
from gsq.loading import load_config, to_dict
from gsq.record import DONE, FAILED, RUNNING, Attempt, RunFolder, newest_file, read_run

if TYPE_CHECKING:
    from gsq.autoencoder import Autoencoder
    from gsq.data import ImageSource

# Kept free for the last status of an attempt whose disk fills up.
RESERVE_BYTES = 32 << 10


class Stopped(Exception):
    """Training stopped at the end of a step because it was asked to; a checkpoint of that step is on disk."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StopRequest:
    """Set from a signal handler, read between steps. ``reason`` is the failure class to record."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.signal: int | None = None

    @contextmanager
    def on_signals(self, reasons: dict[int, str]) -> Iterator[None]:
        """Turn these signals into requests while the block runs; a second one of a kind acts as it did before."""

        def handle(number: int, frame: FrameType | None) -> None:
            self.reason, self.signal = reasons[number], number
            signal.signal(number, previous[number])

        previous = {number: signal.signal(number, handle) for number in reasons}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def classify(error: BaseException) -> str:
    """Failure class of an exception that ended a run."""
    from gsq.training import Diverged

    text = str(error)
    if isinstance(error, Stopped):
        return error.reason
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return "out_of_memory"
    if isinstance(error, Diverged):
        return "diverged"
    # safetensors wraps the system's error in one of its own.
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or (type(error).__name__ == "SafetensorError" and f"os error {errno.ENOSPC})" in text):
        return "disk_full"
    if isinstance(error, KeyboardInterrupt):
        return "cancelled"
    return "error"


def peak_memory_bytes(device: str) -> int:
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _Progress:
    """Writes the attempt's heartbeat about once a second, and passes on a request to stop."""

    def __init__(
        self,
        attempt: Attempt,
        config: RunConfig,
        stop: StopRequest,
        device: str,
        on_step: Callable[[int], None],
    ) -> None:
        self.attempt, self.config, self.stop, self.device = attempt, config, stop, device
        self.on_step = on_step
        self.step, self.written = 0, 0.0
        self.first_step: int | None = None
        self.first_time = 0.0

    def __call__(self, step: int) -> None:
        self.step = step
        self.on_step(step)
        now = time.monotonic()
        if self.first_step is None:
            self.first_step, self.first_time = step, now
        if now - self.written >= 1:
            self.written = now
            self.write(RUNNING)
        if self.stop.reason:
            raise Stopped(self.stop.reason)

    def write(self, state: str, **more: object) -> None:
        elapsed = time.monotonic() - self.first_time
        if self.first_step is not None and self.step > self.first_step and elapsed > 0:
            more["images_per_second"] = (self.step - self.first_step) * self.config.train.batch_size / elapsed
        more["peak_memory_bytes"] = peak_memory_bytes(self.device)
        self.attempt.write_status(state, self.step, self.config.train.steps, **more)


def execute(
    config: RunConfig,
    runs: Path,
    *,
    stop: StopRequest | None = None,
    started: float | None = None,
    announce: Callable[[Attempt], None] = lambda attempt: None,
    on_step: Callable[[int], None] = lambda step: None,
) -> RunFolder:
    """Train and evaluate one run below ``runs``, resuming what earlier attempts left; a run that is done is left alone.

    started: seconds since the epoch at which the process began, so that start-up counts as device time.
    Raises what ended the run (Stopped after a request to stop), its failure class recorded in status.json.
    """
    stop = stop or StopRequest()
    files = manifest(config.data)
    folder = RunFolder.of(runs, identity(config, files))
    folder.write_config({**to_dict(config), "data_label": files.label})
    if read_run(folder).state == DONE:
        return folder
    previous = folder.attempt_folders()
    attempt = folder.new_attempt()
    if started is not None:
        attempt = Attempt(attempt.path, attempt.number, started=started)
    attempt.write_status(RUNNING, 0, config.train.steps)
    reserve = attempt.path / ".reserve"
    reserve.write_bytes(bytes(RESERVE_BYTES))
    announce(attempt)
    progress: _Progress | None = None
    try:
        import torch

        from gsq.training import pick_device

        torch.set_num_threads(config.execution.threads)
        progress = _Progress(attempt, config, stop, pick_device(config.execution.device).type, on_step)
        _train_and_evaluate(config, files, attempt, previous, progress)
    except BaseException as error:
        reserve.unlink(missing_ok=True)
        _record_failure(error, attempt, progress, config)
        raise
    reserve.unlink(missing_ok=True)
    # First the state, then the clean-up: killed between the two, a run costs disk space, not another training.
    progress.write(DONE)
    for path in (*previous, attempt.path):
        checkpoint.remove_all(path)
    return folder


def _train_and_evaluate(
    config: RunConfig, files: Manifest, attempt: Attempt, previous: list[Path], progress: _Progress
) -> None:
    import safetensors.torch

    from gsq.data import ImageSource
    from gsq.evaluation import evaluate
    from gsq.execution import environment
    from gsq.flops import cost
    from gsq.record import write_json
    from gsq.training import Trainer, train

    write_json(attempt.path / "env.json", environment(config, progress.device))
    source = ImageSource(config.data, files)
    trainer = Trainer(config, source)

    def evaluate_now(trainer: Trainer) -> None:
        step = trainer.step_count
        result = evaluate(
            trainer.ema,
            source,
            config.evaluation,
            samples=attempt.path / "samples.png",
            tick=lambda: progress(step),
        )
        result["step"] = step
        result["images_seen"] = step * config.train.batch_size
        result["train_flops"] = cost(config).train_flops * step / config.train.steps
        attempt.write_evaluation(result["protocol"], step, result)

    train(trainer, attempt, previous, tick=lambda t: progress(t.step_count), evaluate=evaluate_now)
    safetensors.torch.save_file(
        {name: value.contiguous() for name, value in trainer.ema.state_dict().items()},
        attempt.path / "model.safetensors",
    )
    evaluate_now(trainer)


def load_finished(path: Path) -> tuple[RunConfig, ImageSource, Autoencoder]:
    """Config, images and averaged weights (in evaluation mode, float32) of a finished run.

    Raises UserError where the folder is not a run's, or the run is not finished.
    """
    import safetensors.torch

    from gsq.autoencoder import Autoencoder
    from gsq.data import ImageSource

    folder = RunFolder(path)
    values = folder.read_config()
    values.pop("data_label", None)
    config = load_config(values, where=str(path / "config.yaml"))
    weights = newest_file(folder, "model.safetensors")
    if weights is None:
        raise UserError(f"{path}: has no model.safetensors; the run has not finished training")
    model = Autoencoder(config)
    model.load_state_dict(safetensors.torch.load_file(weights))
    return config, ImageSource(config.data), model.eval().requires_grad_(False)


def _record_failure(error: BaseException, attempt: Attempt, progress: _Progress | None, config: RunConfig) -> None:
    failure = classify(error)
    lines = str(error).strip().splitlines()
    message = f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
    if isinstance(error, Stopped):
        message = f"stopped as asked after step {progress.step if progress else 0}"
    try:
        if not isinstance(error, Stopped | UserError | KeyboardInterrupt):
            (attempt.path / "traceback.txt").write_text(traceback.format_exc())
        if progress is None:
            attempt.write_status(FAILED, 0, config.train.steps, failure=failure, message=message)
        else:
            progress.write(FAILED, failure=failure, message=message)
    except OSError as second:
        # A disk so full that not even this fits: the stale heartbeat says it later.
        print(f"could not record the failure ({failure}: {message}): {second}", file=sys.stderr)
