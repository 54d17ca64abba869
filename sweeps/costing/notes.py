"""Sentences about a plan to know before its submission, and the check of its images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from gsq.config.parts import named_parts, source_sha256
from gsq.config.run import FEATURE_DIMS
from gsq.data.manifest import Summary
from gsq.errors import UserError
from gsq.probe.protocol import probe_protocol_of
from gsq.records.attempt import DONE
from gsq.records.folder import runs_root
from gsq.sweeps.planning.cells import Cell, Lacking, Plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.planning.protocols import compared_with
from gsq.words import counted


def check_images(plan: Plan, runs: Path | None = None) -> None:
    """Raise UserError if a cell that is still to run has too few images for an rfid or its probe, or none apart from
    the training images for its probe."""
    folder = SweepFolder(runs or runs_root(), plan.name)
    data = plan.images
    few = {
        c.signature: why for c in plan.cells if (found := data.get(c.data_label)) and (why := _insufficient(c, found))
    }
    for signature, record in folder.records(few).items():
        if record.state != DONE:
            raise UserError(f"sweep '{plan.name}': {few[signature]}")


def _insufficient(cell: Cell, images: Summary) -> str | None:
    """Return why the images do not do for a cell's evaluation; None if they do, or if it allows few."""
    evaluation = cell.config.evaluation
    try:
        images = compared_with(evaluation, cell.config.data, images)
        evaluation.check_images(evaluation.images(cell.config.data, images.validation))
        probe_protocol_of(evaluation, cell.config.data, images)
    except UserError as error:
        return str(error)
    return None


def image_notes(plan: Plan) -> tuple[str, ...]:
    """Return how many images each data set has for training and evaluation, and what these allow."""
    found: dict[str, None] = {}
    summaries = plan.images
    for cell in plan.cells:
        images = summaries.get(cell.data_label)
        if images is None:
            continue
        evaluation, data = cell.config.evaluation, cell.config.data
        count = evaluation.images(data, images.validation)
        of = f" of {cell.data_label}" if len(summaries) > 1 else ""
        text = f"images{of}: {images.train:,} to train on, {images.validation:,} held out to evaluate on"
        if count != images.validation:
            text += f", which compares {count:,} {'crops of these' if data.kind == 'photos' else 'of them'}"
        elif count < evaluation.num_images:
            text += f", which asks for {evaluation.num_images:,}"
        if images.decoded_bytes:
            from gsq.data.decoded_sizes import disk_note

            note = disk_note(images.decoded_bytes, cell.config.execution)
            text += f"; {note}" if note else ""
        if reason := _insufficient(cell, images):
            found[f"{text}; gsq run will refuse: {reason}"] = None
            continue
        dim = FEATURE_DIMS.get(evaluation.features)
        if dim is not None and count < dim + 1:
            text += (
                f"; warning: {evaluation.features} has {dim:,} features, so fewer than {dim + 1:,} images leave their "
                "covariance singular and rfid biased upwards (kid is not)"
            )
        found[text] = None
    return tuple(found)


def part_notes(plan: Plan, submitted: Mapping[str, str]) -> tuple[str, ...]:
    """Which parts of a user's own have changed since the sweep was last submitted, and what follows from that.

    submitted: ``SweepFolder.parts`` of its folder.
    """
    named: dict[str, set[str]] = {}
    for cell in plan.cells:
        for key, names in named_parts(cell.config).items():
            for name in names:
                named.setdefault(name, set()).add(key)
    changed = [
        (name, submitted[name][:12], now[:12], any(not key.startswith("evaluation.") for key in keys))
        for name, keys in named.items()
        if name in submitted and (now := source_sha256(name)) != submitted[name]
    ]
    return tuple(
        f"the source of {name} has changed since this sweep was submitted ({before} -> {now}): "
        + ("cells with it are new runs" if trains else "finished cells are to be evaluated again, by a new protocol")
        for name, before, now, trains in changed
    )


def start_notes(todo: Iterable[Cell], starts: Mapping[str, int]) -> tuple[str, ...]:
    """Return a sentence about cells that start from another run. starts: their first steps, by signature."""
    first = next((cell for cell in todo if cell.signature in starts), None)
    if first is None:
        return ()
    what = f"{counted(len(starts), 'cell')} {'starts' if len(starts) == 1 else 'start'}"
    example = f"{first.title}: from step {starts[first.signature]:,} of {first.config.train.steps:,}"
    return (f"{what} from the checkpoint of another run, which is the same up to there ({example})",)


def branch_notes(todo: Iterable[Cell], branched: Mapping[str, int]) -> tuple[str, ...]:
    """Return a sentence about horizons that start from a longer one of the plan. branched: their first steps, by
    signature."""
    found = [cell for cell in todo if cell.signature in branched]
    if not found:
        return ()
    saved, steps = sum(branched.values()), sum(cell.config.train.steps for cell in found)
    verb = "trains only its" if len(found) == 1 else "train only their"
    return (
        f"{counted(len(found), 'horizon')} {verb} decay, and the longest what comes before: {saved:,} of {steps:,} "
        f"steps saved ({found[0].title}: from step {branched[found[0].signature]:,})",
    )


def evaluation_notes(lack: Lacking, seconds: Mapping[str, float], device: str) -> tuple[str, ...]:
    """Return what finished cells lack of the evaluations that are asked for, and its cost.

    seconds: device seconds of the missing evaluations, by signature.
    """
    found = []
    if seconds:
        again = len(lack.again)
        why = f" ({again} of them because an earlier gsq measured PSNR and SSIM less exactly; their rows stay)"
        found.append(
            f"{counted(len(seconds), 'finished cell')} to evaluate as the sweep file now says{why if again else ''}, "
            f"without training: about {sum(seconds.values()):,.0f} s of {device} time"
        )
    if lack.weightless:
        found.append(
            f"{counted(len(lack.weightless), 'finished cell')} cannot be evaluated as the sweep file now says: the "
            "weights (model.safetensors) are gone; the earlier evaluations stay"
        )
    if lack.earlier_steps:
        cells = counted(len(lack.earlier_steps), "finished cell")
        found.append(
            f"evaluation.every: {cells} {'was' if len(lack.earlier_steps) == 1 else 'were'} not evaluated as asked at "
            "earlier steps, whose weights are gone; only the final step is evaluated"
        )
    return tuple(found)
