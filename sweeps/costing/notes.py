"""What is to be known of a plan before it is submitted, a sentence each; and what is refused for its images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from gsq.config.parts import named_parts, source_sha256
from gsq.config.run import FEATURE_DIMS
from gsq.data.manifest import Summary
from gsq.errors import UserError
from gsq.records.attempt import DONE
from gsq.records.folder import runs_root
from gsq.sweeps.planning.cells import Cell, Lacking, Plan
from gsq.sweeps.planning.folder import SweepFolder


def check_images(plan: Plan, runs: Path | None = None) -> None:
    """Raise UserError where a cell that is still to be run would be evaluated on too few images for an rfid."""
    folder = SweepFolder(runs or runs_root(), plan.name)
    data = plan.images
    few = [cell for cell in plan.cells if (found := data.get(cell.data_label)) and _too_few(cell, found)]
    for signature, record in folder.records([cell.signature for cell in few]).items():
        if record.state != DONE:
            cell = next(cell for cell in few if cell.signature == signature)
            raise UserError(f"sweep '{plan.name}': {_too_few(cell, data[cell.data_label])}")


def _too_few(cell: Cell, images: Summary) -> str | None:
    """Why a cell's evaluation has too few images; None where it has enough, or they are allowed."""
    evaluation = cell.config.evaluation
    try:
        evaluation.check_images(evaluation.images(cell.config.data, images.validation))
    except UserError as error:
        return str(error)
    return None


def image_notes(plan: Plan) -> tuple[str, ...]:
    """How many images each data set gives to train and to evaluate on, and what these allow."""
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
        if reason := _too_few(cell, images):
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
    """Cells that go on from another run. starts: from which step, by signature."""
    first = next((cell for cell in todo if cell.signature in starts), None)
    if first is None:
        return ()
    what = "1 cell goes" if len(starts) == 1 else f"{len(starts)} cells go"
    example = f"{first.title}: from step {starts[first.signature]:,} of {first.config.train.steps:,}"
    return (f"{what} on from the checkpoint of a finished run with fewer steps ({example})",)


def evaluation_notes(lack: Lacking, seconds: Mapping[str, float], device: str) -> tuple[str, ...]:
    """What finished cells lack of the evaluations that are asked for, and what it takes.

    seconds: device seconds of the evaluations that are to be made, by signature.
    """
    found = []
    if seconds:
        plural = "s" * (len(seconds) != 1)
        why = "as the sweep file now says"
        if lack.again:
            why += (
                f" ({len(lack.again)} of them because an earlier gsq measured PSNR and SSIM less exactly; their rows "
                "stay)"
            )
        found.append(
            f"{len(seconds)} finished cell{plural} to evaluate {why}, without training: about "
            f"{sum(seconds.values()):,.0f} s of {device} time"
        )
    if lack.weightless:
        count = len(lack.weightless)
        found.append(
            f"{count} finished cell{'s' * (count != 1)} cannot be evaluated as the sweep file now says: the weights "
            "(model.safetensors) are gone; the earlier evaluations stay"
        )
    if lack.earlier_steps:
        count = len(lack.earlier_steps)
        found.append(
            f"evaluation.every: {count} finished cell{'s were' if count != 1 else ' was'} not evaluated as asked at "
            "earlier steps, whose weights are gone; the final step alone is evaluated"
        )
    return tuple(found)
