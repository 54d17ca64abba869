"""Which evaluations the cells of a plan ask for, and which of them finished runs lack.

The evaluation section of a config does not decide what a run is, so a run that is done stays done when it changes: it
is evaluated as the sweep file says now, from its final weights. A run of another sweep may be such a run, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from gsq.config.run import DataConfig, EvaluationConfig
from gsq.errors import UserError
from gsq.evaluation.protocol import protocol_of
from gsq.files import write_json
from gsq.records.attempt import DONE
from gsq.records.folder import RunFolder, evaluated
from gsq.records.read import RunRecord, newest_file
from gsq.sweeps.planning.cells import Cell, Lacking, Plan
from gsq.sweeps.planning.folder import ASKED_FILE, SweepFolder, read_asked


class Asked(NamedTuple):
    """One evaluation that a cell asks for."""

    size: int
    """Of the images, pixels."""
    protocol: str
    earlier: str
    """The protocol by which earlier versions of gsq made the same evaluation
    (gsq.evaluation.protocol.Protocol.earlier)."""


def asked(plan: Plan, cells: Iterable[Cell] | None = None) -> dict[str, tuple[Asked, ...]]:
    """What cells of a plan ask for, by signature; by default all of them.

    Left out are cells whose evaluation cannot be named here: their images are not on this machine, there are too few,
    or their own features cannot be built.
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


def _asked(evaluation: EvaluationConfig, data: DataConfig, label: str, plan: Plan) -> tuple[Asked, ...]:
    held_out = plan.images[label].validation
    sizes = evaluation.resolutions or (data.image_size,)
    try:
        rules = [protocol_of(evaluation, data, label, held_out, image_size=size) for size in sizes]
    except UserError:
        return ()
    return tuple(Asked(size, one.hash, one.earlier) for size, one in zip(sizes, rules, strict=True))


def lacking(plan: Plan, folder: SweepFolder, records: Mapping[str, RunRecord], coming: Collection[str]) -> Lacking:
    """Compare what the cells ask for with the run folders, by the names of files alone.

    coming: cells that are still to be trained, and are evaluated by that. A finished run that was evaluated alike by an
    earlier version of gsq lacks nothing, unless others of the sweep are evaluated by today's: one table holds one.
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
        missing = [one for one in ones if not _there(one, last, found, in_use)]
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
    """Whether a run has this evaluation at a step, or one that stands for it."""
    return (one.protocol, step) in found or (one.protocol not in in_use and (one.earlier, step) in found)


def _has_weights(folder: SweepFolder, signature: str) -> bool:
    return newest_file(RunFolder.of(folder.runs, signature), "model.safetensors") is not None


def _others_of_earlier_protocols(
    plan: Plan, folder: SweepFolder, in_use: Collection[str]
) -> Iterator[tuple[Cell, tuple[int, ...]]]:
    """Finished cells of the sweep that the plan does not have (it repeats a few of them, say) and that an earlier gsq
    evaluated as others are evaluated by today's protocol; and at which sizes."""
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
    """Keep in the sweep folder what the cells of a plan ask for, in place of what those of the last submission did:
    tables and fits then prefer it. A plan that was read from the folder (a retry) changes nothing."""
    found = {signature: tuple((one.protocol, one.earlier) for one in ones) for signature, ones in asked(plan).items()}
    if found and found != read_asked(folder):
        write_json(folder.path / ASKED_FILE, {"cells": found})
