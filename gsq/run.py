"""One run from its config to its evaluations on disk: attempts, states, failure classes, clean stops."""

from __future__ import annotations

import errno
import json
import math
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from gsq import checkpoint, lineage
from gsq.config import DataConfig, RunConfig
from gsq.datasets import Manifest, manifest
from gsq.errors import UserError
from gsq.identity import identity
from gsq.loading import load_config, to_dict
from gsq.record import (
    DONE,
    FAILED,
    PRUNED,
    RUNNING,
    Attempt,
    RunFolder,
    newest_file,
    note_peer_error,
    read_evaluations,
    read_peer_error,
    read_run,
    smallest_micro_batch,
    write_text,
)
from gsq.surroundings import world_size

if TYPE_CHECKING:
    from gsq.autoencoder import Autoencoder
    from gsq.data import ImageSource
    from gsq.distributed import Group

# Kept free for the last status of an attempt whose disk fills up.
RESERVE, RESERVE_BYTES = ".reserve", 32 << 10
# How long the first process looks for the error of another one that it has lost: file systems show it with a delay.
PEER_SECONDS = 5.0


class Stopped(Exception):
    """Training stopped at the end of a step because it was asked to; a checkpoint of that step is on disk."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Busy(UserError):
    """Another process trains the same run."""


class Pruned(Exception):
    """Training was given up at an intermediate evaluation; a checkpoint of that step is on disk."""

    def __init__(self, by: str) -> None:
        super().__init__(by)
        self.by = by


class PeerFailed(Exception):
    """Another process of the run failed, or was killed; ``reason`` is the failure class of that."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class StopRequest:
    """Set from a signal handler, read between steps. ``reason`` is the failure class to record."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.signal: int | None = None

    @contextmanager
    def on_signals(self, reasons: dict[int, str], told: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Turn these signals into requests while the block runs; a second one acts as it did before, but for USR2.

        told: called at once, before the step has ended.
        """

        def handle(number: int, frame: FrameType | None) -> None:
            self.reason, self.signal = reasons[number], number
            told()
            # A scheduler may say USR2 more than once.
            if number != signal.SIGUSR2:
                signal.signal(number, previous[number])

        previous = {number: signal.signal(number, handle) for number in reasons}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def classify(error: BaseException) -> str:
    """Failure class of an exception that ended a run."""
    from gsq.evaluation import NonFiniteReconstruction
    from gsq.quantizers import NonFiniteLatent
    from gsq.training import Diverged

    text = str(error)
    if isinstance(error, Stopped | PeerFailed):
        return error.reason
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return "out_of_memory"
    if isinstance(error, Diverged | NonFiniteLatent | NonFiniteReconstruction):
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
        attempt: Attempt | None,
        config: RunConfig,
        stop: StopRequest,
        device: str,
        on_step: Callable[[int], None],
        group: Group,
    ) -> None:
        self.attempt, self.config, self.stop, self.device = attempt, config, stop, device
        self.on_step, self.group = on_step, group
        self.started_from: str | None = None
        self.smaller = _smaller_micro_batch(config, group.size)
        self.step, self.written = 0, 0.0
        self.first_step: int | None = None
        self.first_time = 0.0
        self.timings: dict[str, float] = {}
        self.first_step_ended = 0.0
        self.evaluation_seconds, self.evaluations, self.rfid = 0.0, 0, math.nan

    def __call__(self, step: int) -> None:
        """After a step, which every process of the run has made: they stop after the same one."""
        self._time_step()
        self.alive(step)
        if reason := self.group.agree(self.stop.reason):
            raise Stopped(reason)

    def _time_step(self) -> None:
        """Start-up, with the first step, apart from the steps after it; neither with an evaluation."""
        now = time.monotonic() - self.evaluation_seconds
        if self.attempt is not None and not self.timings:
            self.first_step_ended = now
            started = max(0.0, time.time() - self.attempt.started - self.evaluation_seconds)
            self.timings = {"startup_seconds": started, "training_seconds": 0.0, "trained_steps": 0}
        elif self.timings:
            self.timings["training_seconds"] = now - self.first_step_ended
            self.timings["trained_steps"] += 1

    def evaluated(self, seconds: float, rfid: float) -> None:
        """An evaluation has ended, which is no training time."""
        self.evaluation_seconds += seconds
        self.evaluations += 1
        self.rfid = rfid

    def alive(self, step: int) -> None:
        self.step = step
        self.on_step(step)
        now = time.monotonic()
        if self.first_step is None:
            self.first_step, self.first_time = step, now
        if now - self.written >= 1:
            self.written = now
            self.write(RUNNING)

    def staging(self) -> None:
        """While images are copied, by each process on its own."""
        now = time.monotonic()
        if now - self.written >= 1:
            self.written = now
            self.write(RUNNING)
        if self.stop.reason:
            raise Stopped(self.stop.reason)

    def evaluating(self, error: BaseException | None = None) -> None:
        """After each batch of an evaluation, which every process of the run has come to; error: what went wrong in it.

        Raises that, or PeerFailed where it was another process's batch, or Stopped, in all of them at once.
        """
        self.alive(self.step)
        if reason := self.group.agree(classify(error) if error else self.stop.reason):
            failed = self.group.all_to_all(None if error is None else f"{type(error).__name__}: {error}")
            if error:
                raise error
            if message := next(filter(None, failed), None):
                raise PeerFailed(reason, message)
            raise Stopped(reason)

    def write(self, state: str, **more: object) -> None:
        if self.attempt is None:
            return
        elapsed = time.monotonic() - self.first_time
        if self.first_step is not None and self.step > self.first_step and elapsed > 0:
            more["images_per_second"] = (self.step - self.first_step) * self.config.train.batch_size / elapsed
        more["peak_memory_bytes"] = peak_memory_bytes(self.device)
        more["processes"] = self.group.size
        # In every status, since an attempt that is killed for its memory cannot say it then.
        more["next_micro_batch"] = self.smaller
        more["device"] = self.device
        more |= self.timings
        if self.evaluations:
            more |= {"evaluation_seconds": self.evaluation_seconds, "evaluations": self.evaluations, "rfid": self.rfid}
        if self.started_from is not None:
            more["started_from"] = self.started_from
        self.attempt.write_status(state, self.step, self.config.train.steps, **more)


def execute(
    config: RunConfig,
    runs: Path,
    *,
    stop: StopRequest | None = None,
    started: float | None = None,
    announce: Callable[[str], None] = lambda message: None,
    on_step: Callable[[int], None] = lambda step: None,
    prune: Callable[[dict[str, Any]], str | None] = lambda evaluation: None,
) -> RunFolder:
    """Train and evaluate one run below ``runs``, resuming what earlier attempts left; a run that is done is left alone.

    Where torchrun or a SLURM job started several processes, all of them call this and share each batch; the first
    one writes. A run that differs from a finished one only by more steps starts from the checkpoint that this one
    kept (execution.keep_checkpoint), which gives the same result as training from the start.

    started: seconds since the epoch at which the process began, so that start-up counts as device time.
    announce is given what a user should know: the run folder, files left out of the images, and a shorter run that this
    one starts from.
    prune is given each intermediate evaluation and may return the name of who gives the run up there: it ends as
    pruned, with a checkpoint, from which a later call without that opinion goes on.
    Raises what ended the run (Stopped after a request to stop), its failure class recorded in status.json; and, with
    nothing begun, Busy where another process trains it and UserError where it would be evaluated on too few images.
    """
    stop = stop or StopRequest()
    files = manifest(config.data)
    folder = RunFolder.of(runs, identity(config, files))
    with _processes(config, stop) as group, ExitStack() as held:
        first = group is None or group.first
        free = not first or held.enter_context(folder.claim())
        done = first and read_run(folder).state == DONE
        smaller = smallest_micro_batch(folder) if first else None
        if group is not None:
            free, done, smaller = group.from_first((free, done, smaller))
        if done:
            return folder
        if not free:
            other = read_run(folder)
            raise Busy(f"run {folder.signature} is being trained by process {other.pid} on {other.node or other.host}")
        # Known before anything is begun.
        config.evaluation.check_images(config.evaluation.images(config.data, len(files.validation)))
        if smaller:
            config = _with_micro_batch(config, smaller)
        attempt: Attempt | None = None
        place: Path | None = None
        previous = folder.attempt_folders()
        if first:
            folder.write_config({**to_dict(config), "data_label": files.label})
            attempt = folder.new_attempt()
            if started is not None:
                attempt = Attempt(attempt.path, attempt.number, started=started)
            smaller = _smaller_micro_batch(config, group.size if group else 1)
            attempt.write_status(RUNNING, 0, config.train.steps, next_micro_batch=smaller)
            (attempt.path / RESERVE).write_bytes(bytes(RESERVE_BYTES))
            announce(f"run folder: {folder.path}")
            for line in files.summary().remarks():
                announce(line)
        progress: _Progress | None = None
        try:
            import torch

            from gsq.distributed import Group, pick_device

            group = group or Group()
            place = group.from_first(attempt.path if attempt is not None else None)
            torch.set_num_threads(config.execution.threads)
            device = (group.device or pick_device(config.execution.device)).type
            progress = _Progress(attempt, config, stop, device, on_step, group)
            _train_and_evaluate(config, files, folder, attempt, previous, progress, group, announce, prune)
        except Pruned as pruned:
            if attempt is not None and progress is not None:
                (attempt.path / RESERVE).unlink(missing_ok=True)
                progress.write(PRUNED, pruned_by=pruned.by, message=f"pruned after step {progress.step}")
            return folder
        except BaseException as error:
            if attempt is None:
                if place is not None and group is not None:
                    _tell_first(error, place, group)
                raise
            (attempt.path / RESERVE).unlink(missing_ok=True)
            cause = _first_error(error, attempt.path)
            _record_failure(cause, attempt, progress, config)
            if cause is not error:
                raise cause from error
            raise
        if attempt is not None:
            (attempt.path / RESERVE).unlink(missing_ok=True)
            # First the state, then the clean-up: killed between the two, a run costs disk space, not another training.
            progress.write(DONE)
            keep = config.execution.keep_checkpoint
            if keep:
                lineage.add(folder, config, files)
            for path in (*previous, attempt.path):
                checkpoint.remove_all(path, keep=config.train.steps if keep and path == attempt.path else None)
        return folder


@contextmanager
def _processes(config: RunConfig, stop: StopRequest) -> Iterator[Group | None]:
    """The group of the processes that share the run; None where there is one, which is not worth importing torch."""
    if world_size() == 1:
        yield None
        return
    from gsq.distributed import join, leave

    def heard() -> None:
        if stop.reason:
            raise Stopped(stop.reason)

    group = join(config, heard)
    try:
        yield group
    except BaseException:
        leave(together=False)
        raise
    leave()


def _train_and_evaluate(
    config: RunConfig,
    files: Manifest,
    folder: RunFolder,
    attempt: Attempt | None,
    previous: list[Path],
    progress: _Progress,
    group: Group,
    announce: Callable[[str], None],
    prune: Callable[[dict[str, Any]], str | None],
) -> None:
    import torch

    from gsq.data import ImageSource
    from gsq.evaluation import evaluate_all
    from gsq.execution import environment
    from gsq.files import save_tensors
    from gsq.flops import cost
    from gsq.loop import train
    from gsq.protocol import check
    from gsq.record import write_json
    from gsq.staging import stage
    from gsq.training import Trainer

    start: Path | None = None
    if attempt is not None:
        device = torch.cuda.get_device_name() if progress.device == "cuda" else "cpu"
        write_json(attempt.path / "env.json", environment(config, device, group.size))
        start = checkpoint.hold(previous, attempt.path)
        if start is None and (shorter := lineage.shorter(folder, config, files)) is not None:
            start, progress.started_from = shorter
            announce(f"starts from the finished run {progress.started_from}, which differs only by fewer steps")
    start = group.from_first(start)
    # Some node may take longer than the processes wait for each other.
    meet = group.meeting() if config.execution.stage_data else None
    source = ImageSource(config.data, stage(files, config.execution.stage_data, tick=progress.staging))
    if meet is not None:
        meet(progress.staging)
    trainer = Trainer(config, source, group)

    # An evaluation that cannot be made should not fail after the training.
    check(config.evaluation, config.data, files)

    def evaluate_now(trainer: Trainer) -> None:
        # An attempt that resumes here has made no step of its own.
        progress.step = trainer.step_count
        step, begun = trainer.step_count, time.monotonic()
        results = evaluate_all(
            trainer.ema,
            source,
            config.evaluation,
            runs=folder.path.parent.parent,
            samples=attempt.path / "samples.png" if attempt is not None else None,
            histogram=attempt.path / "index_histogram.npz" if attempt is not None else None,
            step=step,
            group=group,
            tick=progress.evaluating,
        )
        by: str | None = None
        if attempt is not None:
            for result in results:
                result["step"] = step
                result["images_seen"] = step * config.train.batch_size
                result["train_flops"] = cost(config).train_flops * step / config.train.steps
                attempt.write_evaluation(result["protocol"], step, result)
            progress.evaluated(time.monotonic() - begun, results[0]["rfid"])
            by = prune(results[0]) if step < config.train.steps else None
        if by := group.from_first(by):
            raise Pruned(by)

    train(trainer, attempt, start, tick=lambda t: progress(t.step_count), evaluate=evaluate_now)
    if attempt is not None:
        save_tensors(
            {name: value.contiguous() for name, value in trainer.ema.state_dict().items()},
            attempt.path / "model.safetensors",
        )
    evaluate_now(trainer)


class DamagedRun(UserError):
    """A run folder whose config or weights are not there."""


def read_finished(path: Path) -> tuple[RunConfig, Path]:
    """Config of a finished run, and the file of its averaged weights.

    Raises DamagedRun where the folder is not a run's, or the run is not finished.
    """
    folder = RunFolder(path)
    try:
        values = folder.read_config()
    except UserError as error:
        raise DamagedRun(str(error)) from None
    values.pop("data_label", None)
    weights = newest_file(folder, "model.safetensors")
    if weights is None:
        raise DamagedRun(f"{path}: has no model.safetensors; the run has not finished training")
    return load_config(values, where=str(path / "config.yaml")), weights


def load_finished(path: Path, data: DataConfig | None = None) -> tuple[RunConfig, ImageSource, Autoencoder]:
    """Config, images and averaged weights (in evaluation mode, float32) of a finished run.

    data: where the images lie now, by default where they were trained on. Raises UserError as read_finished does.
    """
    import safetensors.torch

    from gsq.autoencoder import Autoencoder
    from gsq.data import ImageSource

    config, weights = read_finished(path)
    model = Autoencoder(config)
    model.load_state_dict(safetensors.torch.load_file(weights))
    return config, ImageSource(data or config.data), model.eval().requires_grad_(False)


def unevaluated(path: Path, changes: dict[str, Any], data: DataConfig | None = None) -> tuple[int, ...]:
    """Sizes of the images, pixels, at which ``evaluate_finished`` would have to evaluate the run.

    Raises UserError as ``read_finished`` and ``gsq.protocol.check`` do.
    """
    return _evaluation(path, changes, data)[1]


def _evaluation(path: Path, changes: dict[str, Any], data: DataConfig | None) -> tuple[RunConfig, tuple[int, ...]]:
    from gsq.protocol import check, protocol

    config, _ = read_finished(path)
    # The whole config refuses a resolution that the model's downsampling does not divide.
    config = replace(config, evaluation=replace(config.evaluation, **changes), data=data or config.data)
    files, step = manifest(config.data), config.train.steps
    check(config.evaluation, config.data, files)
    known = {(found.get("protocol"), found.get("step")) for found in read_evaluations(RunFolder(path))}
    sizes = config.evaluation.resolutions or (config.data.image_size,)
    return config, tuple(
        size
        for size in sizes
        if (protocol(config.evaluation, replace(config.data, image_size=size), files).hash, step) not in known
    )


def evaluate_finished(path: Path, changes: dict[str, Any], data: DataConfig | None = None) -> list[dict[str, Any]]:
    """Evaluate the final weights of a finished run by further protocols; they are kept in its folder.

    changes: fields of EvaluationConfig, instead of those that the run was trained with. data: where the same images lie
    now, by default where they were trained on. Protocols by which its final weights were evaluated before are left out.
    Returns what is new, by the results table's column names; each is in ``evaluations/`` of the run folder as soon as
    all are made, and attempts are left as they are. It runs on a GPU where there is one; the features of the originals
    are shared with other runs (gsq.originals).

    Raises UserError as ``read_finished`` and ``gsq.protocol.check`` do, and NonFiniteReconstruction.
    """
    import torch

    from gsq.distributed import pick_device
    from gsq.evaluation import evaluate_all
    from gsq.execution import environment
    from gsq.flops import cost

    config, sizes = _evaluation(path, changes, data)
    if not sizes:
        return []
    _, source, model = load_finished(path, data)
    device, step = pick_device("auto"), config.train.steps
    results = evaluate_all(
        model.to(device),
        source,
        replace(config.evaluation, resolutions=sizes),
        runs=path.absolute().parent.parent,
        step=step,
    )
    made = environment(config, torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu")
    for result in results:
        result["step"] = step
        result["images_seen"] = step * config.train.batch_size
        result["train_flops"] = cost(config).train_flops
        # The run's own code, versions and device are those of its training.
        result["evaluated_by"] = json.dumps({k: made[k] for k in ("source", "versions", "device")}, sort_keys=True)
        RunFolder(path).write_evaluation(result["protocol"], step, result)
    return results


def _with_micro_batch(config: RunConfig, micro_batch: int) -> RunConfig:
    return replace(config, execution=replace(config.execution, micro_batch=micro_batch))


def _smaller_micro_batch(config: RunConfig, processes: int) -> int | None:
    """Half of the images of a pass, or as near below as divides a process's share; None where there is no less."""
    share = config.train.batch_size // processes
    now = config.execution.micro_batch or share
    smaller = next((n for n in range(now // 2, 0, -1) if share % n == 0), None)
    if smaller is None:
        return None
    try:
        _with_micro_batch(config, smaller)
    except UserError:
        # A batch that must stay whole.
        return None
    return smaller


def _tell_first(error: BaseException, place: Path, group: Group) -> None:
    """Of a process that writes nothing else: what went wrong in it, for the first one, which only sees it go."""
    from gsq.distributed import PeerLost

    if isinstance(error, PeerLost | PeerFailed | Stopped):
        return
    with suppress(OSError):
        note_peer_error(place, group.rank, classify(error), _described(error))
        if not isinstance(error, UserError | KeyboardInterrupt):
            write_text(place / "traceback.txt", traceback.format_exc())


def _first_error(error: BaseException, place: Path) -> BaseException:
    """What ended a run of which this process has lost another one: the error of that, where it has told it, or
    PeerFailed as lost where it was killed. Any other error as it is."""
    from gsq.distributed import PeerLost

    if not isinstance(error, PeerLost):
        return error
    deadline = time.monotonic() + PEER_SECONDS
    while (told := read_peer_error(place)) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    if told is not None:
        return PeerFailed(*told)
    return PeerFailed("lost", f"another process of the run was killed or is out of reach ({error})")


def _described(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    if isinstance(error, PeerFailed) and lines:
        return lines[-1]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def _record_failure(error: BaseException, attempt: Attempt, progress: _Progress | None, config: RunConfig) -> None:
    failure = classify(error)
    message = _described(error)
    if isinstance(error, Stopped):
        message = f"stopped as asked after step {progress.step if progress else 0}"
    try:
        if not isinstance(error, Stopped | PeerFailed | UserError | KeyboardInterrupt):
            (attempt.path / "traceback.txt").write_text(traceback.format_exc())
        if progress is None:
            attempt.write_status(FAILED, 0, config.train.steps, failure=failure, message=message)
        else:
            progress.write(FAILED, failure=failure, message=message)
    except OSError as second:
        # A disk so full that not even this fits: the stale heartbeat says it later.
        print(f"could not record the failure ({failure}: {message}): {second}", file=sys.stderr)
