"""One run from its config to its evaluations on disk: attempts, states, failure classes, clean stops."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsq.config.overrides import to_dict
from gsq.config.run import RunConfig
from gsq.data.manifest import Manifest
from gsq.data.sources import manifest
from gsq.errors import UserError
from gsq.files import write_json, write_text
from gsq.probe.protocol import probe_protocol
from gsq.records.attempt import DONE, PRUNED, RUNNING, Attempt
from gsq.records.claim import claim
from gsq.records.folder import RunFolder, note_peer_error, probed, read_peer_error
from gsq.records.read import read_run, smallest_micro_batch
from gsq.runs import warm_start as lineage
from gsq.runs.failures import classify, described, record_failure, smaller_micro_batch, with_micro_batch
from gsq.runs.identity import identity
from gsq.runs.progress import Progress
from gsq.runs.stop import Busy, PeerFailed, Pruned, Stopped, StopRequest
from gsq.surroundings import world_size
from gsq.training import checkpoint

if TYPE_CHECKING:
    from gsq.data.batches import ImageSource
    from gsq.models.autoencoder import Autoencoder
    from gsq.training.distributed import Group

# Space for the last status of an attempt whose disk fills up.
RESERVE, RESERVE_BYTES = ".reserve", 32 << 10
# Seconds for which the first process looks for the error of a lost one, since file systems show it with a delay.
PEER_SECONDS = 5.0


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
    """Train and evaluate one run below ``runs``. Resumes what earlier attempts left, and skips a run that is done.

    If torchrun or a SLURM job started several processes, all of them call this and share each batch; the first one
    writes. A run that equals another one up to a checkpoint that the other kept (gsq.runs.warm_start) starts from it,
    which gives the same result as training from the start.

    started: seconds since the epoch at which the process began, so that start-up counts as device time. announce
    receives messages for the user: the run folder, files left out of the images, the shorter run that this one starts
    from. prune receives each intermediate evaluation. If it returns a name, the run ends as pruned by it, with a
    checkpoint from which a later call can resume.

    Raises the exception that ended the run (Stopped on request), with its failure class in status.json. Before anything
    has begun, raises Busy if another process trains the run, and UserError for too few images to evaluate on.
    """
    stop = stop or StopRequest()
    files = manifest(config.data)
    folder = RunFolder.of(runs, identity(config, files))
    with _processes(config, stop) as group, ExitStack() as held:
        first = group is None or group.first
        free = not first or held.enter_context(claim(folder))
        done = first and read_run(folder).state == DONE
        smaller = smallest_micro_batch(folder) if first else None
        if group is not None:
            free, done, smaller = group.from_first((free, done, smaller))
        if done:
            return folder
        if not free:
            other = read_run(folder)
            raise Busy(f"run {folder.signature} is being trained by process {other.pid} on {other.node or other.host}")
        # Refuse too few images before anything has begun.
        config.evaluation.check_images(config.evaluation.images(config.data, len(files.validation)))
        probe_protocol(config.evaluation, config.data, files)
        if smaller:
            config = with_micro_batch(config, smaller)
        attempt: Attempt | None = None
        place: Path | None = None
        previous = folder.attempt_folders()
        if first:
            folder.write_config({**to_dict(config), "data_label": files.label})
            attempt = folder.new_attempt()
            if started is not None:
                attempt = Attempt(attempt.path, attempt.number, started=started)
            smaller = smaller_micro_batch(config, group.size if group else 1)
            attempt.write_status(RUNNING, 0, config.train.steps, next_micro_batch=smaller)
            (attempt.path / RESERVE).write_bytes(bytes(RESERVE_BYTES))
            announce(f"run folder: {folder.path}")
            for line in files.summary().remarks():
                announce(line)
        progress: Progress | None = None
        try:
            import torch

            from gsq.training.distributed import Group, pick_device

            group = group or Group()
            place = group.from_first(attempt.path if attempt is not None else None)
            torch.set_num_threads(config.execution.threads)
            device = (group.device or pick_device(config.execution.device)).type
            progress = Progress(attempt, config, stop, device, on_step, group)
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
            how = progress.write if progress else partial(attempt.write_status, step=0, steps=config.train.steps)
            record_failure(cause, attempt, progress.step if progress else 0, how)
            if cause is not error:
                raise cause from error
            raise
        if attempt is not None:
            (attempt.path / RESERVE).unlink(missing_ok=True)
            # The state before the clean-up: a run killed between the two wastes disk space, not a training.
            progress.write(DONE)
            for path in (*previous, attempt.path):
                checkpoint.remove_all(path, config.kept_steps)
        return folder


@contextmanager
def _processes(config: RunConfig, stop: StopRequest) -> Iterator[Group | None]:
    """Join the group of processes that share the run; yields None for a single one, without importing torch."""
    if world_size() == 1:
        yield None
        return
    from gsq.training.distributed import join, leave

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
    progress: Progress,
    group: Group,
    announce: Callable[[str], None],
    prune: Callable[[dict[str, Any]], str | None],
) -> None:
    import torch

    from gsq.data.batches import ImageSource
    from gsq.data.decoded import kept_on_disk
    from gsq.data.decoded_sizes import wanted_bytes
    from gsq.data.staging import stage
    from gsq.evaluation.evaluate import evaluate_all
    from gsq.evaluation.protocol import check
    from gsq.runs.provenance import environment
    from gsq.training.loop import train
    from gsq.training.trainer import Trainer

    start: Path | None = None
    if attempt is not None:
        device = torch.cuda.get_device_name() if progress.device == "cuda" else "cpu"
        write_json(attempt.path / "env.json", environment(config, device, group.size))
        start = checkpoint.hold(previous, attempt.path)
        if config.kept_steps:
            lineage.add(folder, config, files)
        if start is None and (other := lineage.start(folder, config, files)) is not None:
            start, progress.started_from = other.path, other.name
            announce(f"starts from the {other.description}")
            for result in other.evaluations(config.evaluation.every):
                _write_evaluation(attempt, config, result["step"], result)
    start = group.from_first(start)
    # A node can take longer than the processes wait for each other.
    meet = group.meeting() if config.execution.stage_data or wanted_bytes(files) else None
    files = kept_on_disk(files, config.execution, tick=progress.staging)
    source = ImageSource(config.data, stage(files, config.execution.stage_data, tick=progress.staging))
    if meet is not None:
        meet(progress.staging)
    trainer = Trainer(config, source, group)

    # An impossible evaluation should fail before the training.
    check(config.evaluation, config.data, files)
    probe_protocol(config.evaluation, config.data, files)

    def evaluate_now(trainer: Trainer) -> None:
        # An attempt that resumes here has not made a step of its own.
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
            results = [_write_evaluation(attempt, config, step, result) for result in results]
            progress.evaluated(time.monotonic() - begun, results[0]["rfid"])
            by = prune(results[0]) if step < config.train.steps else None
        if step == config.train.steps and config.evaluation.probe != "none":
            _probe(trainer.ema, source, config, files, results, folder, group, progress)
        if by := group.from_first(by):
            raise Pruned(by)

    train(trainer, attempt, start, tick=lambda t: progress(t.step_count), evaluate=evaluate_now)
    if attempt is not None:
        checkpoint.save_tensors(
            {name: value.contiguous() for name, value in trainer.ema.state_dict().items()},
            attempt.path / "model.safetensors",
        )
    evaluate_now(trainer)


def _probe(
    model: Autoencoder,
    source: ImageSource,
    config: RunConfig,
    files: Manifest,
    results: list[dict[str, Any]],
    folder: RunFolder,
    group: Group,
    progress: Progress,
) -> None:
    """Probe the final weights under the protocol of each evaluation; what an earlier attempt has finished stays."""
    from gsq.runs.probing import probe_run

    for i, size in enumerate(config.evaluation.resolutions or (config.data.image_size,)):
        rules = probe_protocol(config.evaluation, config.data, files, size)
        row = results[i] if group.first else {}
        done = group.first and rules and (row["protocol"], config.train.steps, rules.hash) in probed(folder)
        if group.from_first(done):
            continue
        probe_run(folder, config, model, source, row, size, group, tick=progress.evaluating)


def _write_evaluation(attempt: Attempt, config: RunConfig, step: int, result: dict[str, Any]) -> dict[str, Any]:
    """Write an evaluation with what was spent up to its step, and return that."""
    from gsq.config.flops import cost

    flops = cost(config).train_flops * step / config.train.steps
    row = {**result, "step": step, "images_seen": step * config.train.batch_size, "train_flops": flops}
    attempt.write_evaluation(result["protocol"], step, row)
    return row


def _tell_first(error: BaseException, place: Path, group: Group) -> None:
    """Record what failed in a process other than the first, which only notices that this one is gone."""
    from gsq.training.distributed import PeerLost

    if isinstance(error, PeerLost | PeerFailed | Stopped):
        return
    with suppress(OSError):
        note_peer_error(place, group.rank, classify(error), described(error))
        if not isinstance(error, UserError | KeyboardInterrupt):
            write_text(place / "traceback.txt", traceback.format_exc())


def _first_error(error: BaseException, place: Path) -> BaseException:
    """The cause of the end of a run. If this process has lost another one: the error that the other recorded, or
    PeerFailed as lost if it was killed. Any other error is its own cause, except one of CUDA, by which NCCL can tell of
    a lost process, if another process has recorded its error before."""
    from gsq.training.distributed import PeerLost

    if not isinstance(error, PeerLost):
        told = read_peer_error(place) if isinstance(error, RuntimeError) and classify(error) == "error" else None
        return error if told is None else PeerFailed(*told)
    deadline = time.monotonic() + PEER_SECONDS
    while (told := read_peer_error(place)) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    if told is not None:
        return PeerFailed(*told)
    return PeerFailed("lost", f"another process of the run was killed or is out of reach ({error})")


train = execute  # its public name
