"""Which evaluations the cells of a plan ask for, and which of them finished runs lack.

The evaluation section of a config does not decide what a run is, so a run that is done stays done when it changes: it
is evaluated as the sweep file says now, from its final weights. A run of another sweep may be such a run, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from gsq.config import DataConfig, EvaluationConfig
from gsq.errors import UserError
from gsq.protocol import protocol_of
from gsq.record import DONE, RunFolder, RunRecord, evaluated, newest_file, write_json
from sweeps.folder import ASKED_FILE, SweepFolder, read_asked
from sweeps.planning import Cell, Lacking, Plan


class Asked(NamedTuple):
    """One evaluation that a cell asks for."""

    size: int
    """Of the images, pixels."""
    protocol: str
    earlier: str
    """The protocol by which earlier versions of gsq made the same evaluation (gsq.protocol.Protocol.earlier)."""


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
    earlier version of gsq lacks nothing, unless others of the plan are evaluated by today's: one table holds one.
    """
    done = [cell for cell in plan.cells if records[cell.signature].state == DONE]
    if not done:
        return Lacking()
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
    for cell in done:
        signature, found, last = cell.signature, there[cell.signature], final[cell.signature]
        missing = []
        for one in wanted.get(signature, ()):
            # A row of today's protocol, or one that stands for it.
            accepted = {one.protocol} if one.protocol in in_use else {one.protocol, one.earlier}
            if not any((name, last) in found for name in accepted):
                missing.append(one.size)
                if (one.earlier, last) in found:
                    again.add(signature)
            every = cell.config.evaluation.every
            steps = range(every, last, every) if every else ()
            if any(not any((name, step) in found for name in accepted) for step in steps):
                earlier_steps.add(signature)
        if not missing:
            continue
        if newest_file(RunFolder.of(folder.runs, signature), "model.safetensors") is not None:
            sizes[signature] = tuple(missing)
        elif found:
            weightless.add(signature)
    return Lacking(sizes, frozenset(again & sizes.keys()), frozenset(earlier_steps - weightless), frozenset(weightless))


def note_asked(plan: Plan, folder: SweepFolder) -> None:
    """Keep in the sweep folder what the cells of a plan ask for, in place of what those of the last submission did:
    tables and fits then prefer it. A plan that was read from the folder (a retry) changes nothing."""
    found = {signature: tuple((one.protocol, one.earlier) for one in ones) for signature, ones in asked(plan).items()}
    if found and found != read_asked(folder):
        write_json(folder.path / ASKED_FILE, {"cells": found})
