"""Remove files from the runs folder that nothing reads any more."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from gsq.data.decoded import SUFFIX, is_unused, remove_unused
from gsq.data.decoded_sizes import images_folder
from gsq.errors import UserError
from gsq.files import read_json
from gsq.records.attempt import DONE, RUNNING
from gsq.records.folder import RunFolder, probe_files, probed, runs_root
from gsq.records.read import is_status, newest_file, read_run
from gsq.runs.warm_start import planned_start
from gsq.sweeps.planning.folder import SweepFolder, sweep_folder, sweep_names
from gsq.sweeps.state.local import alive

# Kinds of removable files, with their descriptions.
KINDS = {
    "checkpoints": "checkpoints of finished runs",
    "leftovers": "files of earlier attempts of finished runs that a later one has too",
    "partial": "half-written files of processes that have died",
    "orphans": "runs that no sweep mentions",
    "images": "decoded images that no process uses now; they are made again when needed",
    "tokens": "indices of finished runs that probes share; they are made again when needed",
}
CHECKPOINT = re.compile(r"checkpoint-(\d{8})\.(?:pt|json)")
SIGNATURE = re.compile(r"[0-9a-f]{12}")
# Silence after which an attempt on another machine counts as dead [s].
DEAD_SECONDS = 86400.0
# Age at which a half-written file outside an attempt counts as abandoned [s].
PARTIAL_SECONDS = 3600.0


@dataclass(frozen=True)
class Cleaning:
    """Removable or removed files by kind, with their bytes."""

    files: dict[str, list[Path]]
    bytes: dict[str, int]
    runs: tuple[str, ...]
    """Signatures of whole runs among them."""
    removed: bool
    kept_tokens: tuple[int, int] = (0, 0)
    """Files and bytes of indices that further probes would read, and that ``tokens`` would remove."""

    def to_dict(self) -> dict[str, Any]:
        kinds = {kind: {"files": len(paths), "bytes": self.bytes[kind]} for kind, paths in self.files.items()}
        kept = {"tokens": dict(zip(("files", "bytes"), self.kept_tokens, strict=True))}
        found = {"removed": self.removed, "bytes": sum(self.bytes.values()), "runs": self.runs, "kinds": kinds}
        return {**found, "kept": kept}


def clean(
    sweep: str | None = None,
    *,
    orphans: bool = False,
    images: bool = False,
    tokens: bool = False,
    dry_run: bool = False,
    runs: Path | None = None,
) -> Cleaning:
    """Remove unneeded files from the runs of a sweep, or from all runs.

    These are checkpoints of finished runs, except the last one with execution.keep_checkpoint, and those from which an
    unfinished horizon of any sweep would start; weights and samples of earlier attempts that a later one has too; and
    half-written files of dead processes. Weights, curves, evaluations,
    configs, samples and whatever an unfinished run resumes from are kept, and so is every run with an attempt that may
    be alive. orphans: also remove whole runs that no plan mentions (of gsq train, or of removed sweeps). images:
    also remove decoded images that no process of this machine uses ($GSQ_CACHE/images, gsq.data.decoded). tokens: also
    remove the indices that probes of finished runs share, except where an unfinished probe would read them. dry_run:
    remove nothing. Raises UserError for an unknown sweep, for a sweep with orphans or images, and for an unreadable
    plan.
    """
    root = runs or runs_root()
    for option, given in (("--orphans", orphans), ("--images", images)):
        if sweep is not None and given:
            raise UserError(f"{option} looks at all sweeps: leave out '{sweep}' or {option}")
    if sweep is not None:
        folder = sweep_folder(sweep, root)
        run_folders, sweep_folders = [RunFolder.of(root, s) for s in folder.signatures()], [folder.path]
    else:
        run_folders = list(_run_folders(root))
        sweep_folders = [
            path for path in (*(root / "sweeps").glob("*"), root / "originals", images_folder()) if path.is_dir()
        ]
    found: dict[str, list[Path]] = defaultdict(list)
    needed = cache(partial(_needed, root))
    kept: dict[str, set[int]] = defaultdict(set)
    for entry in (root / "lineage").glob("*/*-*"):
        number, _, signature = entry.name.partition("-")
        if number.isdigit():
            kept[signature].add(int(number))
    lone = _orphans(root, run_folders) if orphans else set()
    for run in run_folders:
        if run.signature in lone:
            found["orphans"] += [path for path in run.path.rglob("*") if path.is_file()]
        else:
            for kind, path in _of_run(run, kept[run.signature], needed):
                found[kind].append(path)
    for path in (p for folder in sweep_folders for p in folder.glob(".*.partial")):
        if _age(path) > PARTIAL_SECONDS:
            found["partial"].append(path)
    found["images"] = [path for path in images_folder().glob(f"*{SUFFIX}") if images and is_unused(path)]
    wanted = {"orphans": orphans, "images": images, "tokens": tokens}
    files = {kind: sorted(set(found[kind])) for kind in KINDS if wanted.get(kind, True)}
    sizes = {kind: sum(_bytes(path) for path in paths) for kind, paths in files.items()}
    if not dry_run:
        for kind in ("checkpoints", "leftovers", "partial", "tokens"):
            for path in files.get(kind, ()):
                path.unlink(missing_ok=True)
        for path in files.get("images", ()):
            remove_unused(path)
        for signature in lone:
            # The run may have started since.
            if not _may_be_alive(run := RunFolder.of(root, signature)):
                shutil.rmtree(run.path, ignore_errors=True)
    kept_tokens = [] if tokens else found["tokens"]
    return Cleaning(files, sizes, tuple(sorted(lone)), not dry_run, (len(kept_tokens), sum(map(_bytes, kept_tokens))))


def _run_folders(root: Path) -> Iterator[RunFolder]:
    for path in sorted(root.glob("[0-9a-f][0-9a-f]/*")):
        if SIGNATURE.fullmatch(path.name) and path.is_dir():
            yield RunFolder(path)


def _orphans(root: Path, run_folders: list[RunFolder]) -> set[str]:
    """Runs that no plan mentions and that have no attempt that may be alive."""
    mentioned: set[str] = set()
    for name in sweep_names(root):
        try:
            mentioned.update(SweepFolder(root, name).signatures())
        except UserError as error:
            raise UserError(f"sweep '{name}': its plan cannot be read, so its runs are not known: {error}") from None
    return {run.signature for run in run_folders if run.signature not in mentioned and not _may_be_alive(run)}


def _needed(root: Path) -> set[tuple[str, int]] | None:
    """Return signature and step of each checkpoint from which an unfinished horizon would start; None if a plan cannot
    be read."""
    found = set()
    try:
        for name in sweep_names(root):
            folder = SweepFolder(root, name)
            cells = [cell for cell in folder.read_plan().cells if cell.config.optimizer.schedule == "wsd"]
            records = folder.records(cell.signature for cell in cells)
            for cell in cells:
                run, fingerprint = RunFolder.of(root, cell.signature), cell.data_label.rpartition(":")[2]
                if records[cell.signature].state != DONE and (start := planned_start(run, cell.config, fingerprint)):
                    found.add((start[1], start[0]))
    except UserError:
        return None
    return found


def _of_run(
    run: RunFolder, kept: set[int], needed: Callable[[], set[tuple[str, int]] | None]
) -> Iterator[tuple[str, Path]]:
    """Yield kind and path of the removable files of a run.

    kept: steps of its checkpoints from which other runs may start. needed: returns what ``_needed`` does; this decides
    about checkpoints that only the plan asked for.
    """
    attempts = run.attempt_folders()
    ended = [path for path in attempts if not _attempt_may_be_alive(path)]
    for path in (p for attempt in ended for p in attempt.rglob("*.partial")):
        yield "partial", path
    for path in (p for where in ("", "evaluations/", "probes/") for p in run.path.glob(f"{where}.*.partial")):
        if _age(path) > PARTIAL_SECONDS:
            yield "partial", path
    record = read_run(run)
    if record.state != DONE or len(ended) < len(attempts):
        return
    always, branches = _keeps(run)
    keep = kept | {record.steps} if always else kept
    if not always and branches and (of_others := needed()) is not None:
        keep = {step for step in keep if step not in branches or (run.signature, step) in of_others}
    for attempt in attempts:
        for path in attempt.glob("checkpoint-*"):
            match = CHECKPOINT.fullmatch(path.name)
            if match and int(match[1]) not in keep:
                yield "checkpoints", path
    shared, unfinished = probe_files(run)
    over = {(protocol, probe) for protocol, _, probe in probed(run)}
    finished = [path for path in unfinished if tuple(path.name.split("-")[:2]) in over]
    yield from (("leftovers", path) for path in finished)
    if len(finished) == len(unfinished):
        yield from (("tokens", path) for path in shared)
    newest = {name: newest_file(run, name) for name in ("model.safetensors", "samples.png", "index_histogram.npz")}
    for attempt in attempts:
        if (attempt / ".reserve").exists():
            yield "leftovers", attempt / ".reserve"
        if (read_json(attempt / "status.json") or {}).get("state") == DONE:
            continue
        for name, last in newest.items():
            if (attempt / name).is_file() and attempt / name != last:
                yield "leftovers", attempt / name


def _keeps(run: RunFolder) -> tuple[bool, list[int]]:
    """Return execution.keep_checkpoint and execution.keep_at of a run."""
    try:
        execution = run.read_config().get("execution", {})
        return bool(execution.get("keep_checkpoint")), execution.get("keep_at", [])
    except UserError:
        return True, []  # Unknown, so keep all.


def _may_be_alive(run: RunFolder) -> bool:
    return any(map(_attempt_may_be_alive, run.attempt_folders()))


def _attempt_may_be_alive(attempt: Path) -> bool:
    status = read_json(attempt / "status.json")
    if not is_status(status):
        return _age(attempt) < DEAD_SECONDS
    if status["state"] != RUNNING:
        return False
    here = status["host"] == os.uname().nodename and not status.get("node") and Path("/proc/self").exists()
    if here:
        return alive(status["pid"], status["heartbeat"], status.get("pid_start", ""))
    return time.time() - float(status["heartbeat"]) < DEAD_SECONDS


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
