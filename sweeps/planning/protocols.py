"""Which evaluations the cells of a plan ask for, and which of them finished runs lack.

A config's evaluation section is not part of a run's identity, so a finished run stays finished when it changes. Its
final weights are then evaluated as the sweep file says now, also if another sweep trained it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from gsq.config.run import DataConfig, EvaluationConfig
from gsq.data.manifest import Summary
from gsq.data.sources import manifest
from gsq.errors import UserError
from gsq.evaluation.protocol import protocol_of
from gsq.files import write_json
from gsq.probe.protocol import probe_protocol_of
from gsq.records.attempt import DONE
from gsq.records.folder import RunFolder, evaluated, probed
from gsq.records.read import RunRecord, newest_file
from gsq.sweeps.planning.cells import Cell, Lacking, Plan
from gsq.sweeps.planning.folder import ASKED_FILE, SweepFolder, read_asked


class Asked(NamedTuple):
    """One evaluation that a cell asks for."""

    size: int
    """Height and width of the images [pixels]."""
    protocol: str
    earlier: str
    """Protocol of the same evaluation in earlier versions of gsq (gsq.evaluation.protocol.Protocol.earlier)."""
    probe: str = ""
    """Protocol of the generation probe; empty for none."""


def asked(plan: Plan, cells: Iterable[Cell] | None = None) -> dict[str, tuple[Asked, ...]]:
    """Return what the cells of a plan, by default all, ask for, by signature.

    This skips cells whose protocol is unknown here: their images are absent or too few, or their own features cannot be
    built.
    """
    known: dict[tuple[EvaluationConfig, DataConfig, str], tuple[Asked, ...]] = {}
    found = {}
    for cell in plan.cells if cells is None else cells:
        key = (cell.config.evaluation, cell.config.data, cell.data_label)
        if key not in known:
            known[key] = _asked(*key, plan) if cell.data_label in plan.images else ()
        if known[key]:
            found[cell.signature] = known[key]
    return found


@lru_cache(8)
def compared_with(evaluation: EvaluationConfig, data: DataConfig, images: Summary) -> Summary:
    """``images``, the whole data set, or as many of them as evaluation.folder leaves. Raises UserError if it leaves
    none."""
    return manifest(data).below(evaluation.folder).summary() if evaluation.folder else images


def _asked(evaluation: EvaluationConfig, data: DataConfig, label: str, plan: Plan) -> tuple[Asked, ...]:
    sizes = evaluation.resolutions or (data.image_size,)
    try:
        images = compared_with(evaluation, data, plan.images[label])
        rules = [protocol_of(evaluation, data, label, images.validation, image_size=size) for size in sizes]
        probes = [probe_protocol_of(evaluation, data, images, size) for size in sizes]
    except UserError:
        return ()
    found = zip(sizes, rules, probes, strict=True)
    return tuple(Asked(size, one.hash, one.earlier, probe.hash if probe else "") for size, one, probe in found)


def lacking(plan: Plan, folder: SweepFolder, records: Mapping[str, RunRecord], coming: Collection[str]) -> Lacking:
    """Compare what the cells ask for with the file names in the run folders.

    coming: signatures still to be trained, which includes their evaluation. A finished run that an earlier gsq
    evaluated lacks nothing, unless other cells of the sweep use today's protocol, since a table should hold only one.
    """
    done = [cell for cell in plan.cells if records[cell.signature].state == DONE]
    there = {cell.signature: evaluated(RunFolder.of(folder.runs, cell.signature)) for cell in done}
    wanted = asked(plan, done)
    others = asked(plan, [cell for cell in plan.cells if cell.signature in coming])
    in_use = {one.protocol for ones in others.values() for one in ones}
    final = {cell.signature: cell.config.train.steps for cell in done}
    for signature, ones in wanted.items():
        for one in ones:
            found, last = there[signature], final[signature]
            if (one.protocol, last) in found or (one.earlier, last) not in found:
                in_use.add(one.protocol)
    sizes: dict[str, tuple[int, ...]] = {}
    again, earlier_steps, weightless = set(), set(), set()
    cells = []
    for cell in done:
        signature, found, last = cell.signature, there[cell.signature], final[cell.signature]
        ones = wanted.get(signature, ())
        probes = probed(RunFolder.of(folder.runs, signature)) if any(one.probe for one in ones) else ()
        missing = [
            one
            for one in ones
            if not _there(one, last, found, in_use) or (one.probe and (one.protocol, last, one.probe) not in probes)
        ]
        every = cell.config.evaluation.every
        steps = range(every, last, every) if every else ()
        if missing and not _has_weights(folder, signature):
            if found:
                weightless.add(signature)
            continue
        if any(not _there(one, step, found, in_use) for one in ones for step in steps):
            earlier_steps.add(signature)
        if missing:
            cells.append(cell)
            sizes[signature] = tuple(one.size for one in missing)
        if any((one.earlier, last) in found for one in missing):
            again.add(signature)
    for cell, missing_sizes in _others_of_earlier_protocols(plan, folder, in_use):
        cells.append(cell)
        sizes[cell.signature] = missing_sizes
        again.add(cell.signature)
    return Lacking(sizes, tuple(cells), frozenset(again), frozenset(earlier_steps), frozenset(weightless))


def _there(one: Asked, step: int, found: Collection[tuple[str, int]], in_use: Collection[str]) -> bool:
    """Return whether a run has this evaluation at a step, or its earlier form."""
    return (one.protocol, step) in found or (one.protocol not in in_use and (one.earlier, step) in found)


def _has_weights(folder: SweepFolder, signature: str) -> bool:
    return newest_file(RunFolder.of(folder.runs, signature), "model.safetensors") is not None


def _others_of_earlier_protocols(
    plan: Plan, folder: SweepFolder, in_use: Collection[str]
) -> Iterator[tuple[Cell, tuple[int, ...]]]:
    """Yield finished cells of the sweep that the plan lacks (it may repeat only a few) and that have an earlier form of
    a protocol in use, with the image sizes to evaluate."""
    if not in_use or not folder.exists or set(folder.signatures()) <= {cell.signature for cell in plan.cells}:
        return
    mine = {cell.signature for cell in plan.cells}
    others = [cell for cell in folder.read_plan().cells if cell.signature not in mine]
    records, wanted = folder.records([cell.signature for cell in others]), asked(plan, others)
    for cell in others:
        if records[cell.signature].state != DONE or not _has_weights(folder, cell.signature):
            continue
        found, last = evaluated(RunFolder.of(folder.runs, cell.signature)), cell.config.train.steps
        missing = tuple(
            one.size
            for one in wanted.get(cell.signature, ())
            if one.protocol in in_use and (one.earlier, last) in found and (one.protocol, last) not in found
        )
        if missing:
            yield cell, missing


def note_asked(plan: Plan, folder: SweepFolder) -> None:
    """Record in the sweep folder what the cells of a plan ask for, which tables and fits then prefer.

    A plan read from the folder (a retry) changes nothing.
    """
    found = {signature: tuple((one.protocol, one.earlier) for one in ones) for signature, ones in asked(plan).items()}
    if found and found != read_asked(folder):
        write_json(folder.path / ASKED_FILE, {"cells": found})
