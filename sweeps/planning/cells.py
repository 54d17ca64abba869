"""Turn a spec into a plan: the cells to run, those left out with the reason, and their cost."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from random import Random
from typing import Any

from gsq.config.axes import DERIVED, derive, levels_text
from gsq.config.flops import Cost, cost
from gsq.config.overrides import SHORT_NAMES, Overrides, config_key
from gsq.config.program import ProgramConfig, column_value
from gsq.config.run import RunConfig
from gsq.config.signature import SCIENCE_SECTIONS, Signer
from gsq.data.listing import shown
from gsq.data.manifest import Manifest, Summary
from gsq.data.sources import manifest
from gsq.errors import Missing, UserError
from gsq.html import html_table
from gsq.pretrained.required import required_weights
from gsq.pretrained.weights import find_weights
from gsq.runs.identity import declared_data, identity, program_identity
from gsq.sweeps.planning.horizons import with_branches
from gsq.sweeps.planning.names import CellNames, value_of
from gsq.sweeps.schema.columns import BY_NAME, LARGEST_INT
from gsq.sweeps.spec.derive import Derivation
from gsq.sweeps.spec.expressions import COST_NAMES
from gsq.sweeps.spec.sweep import Budget, Spec
from gsq.words import counted


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the cyclic garbage collector, which costs about 20 % here and frees nothing."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def derived(config: RunConfig) -> dict[str, Any]:
    """Return the derived axes by column name, or the derived columns of a program's run."""
    if isinstance(config, ProgramConfig):
        return dict(config.columns)
    known = {**_set_axes(config), "levels": config.index_sizes}
    values = {name: derive(name, known.__getitem__) for name in _STORED}
    return {name: int(value) if BY_NAME[name].type == "int64" else value for name, value in values.items()}


def axis_columns(config: RunConfig, data_label: str) -> dict[str, Any]:
    """Return the axes and derived axes of a run by the results table's column names; of a program's run its keys and
    derived columns."""
    if isinstance(config, ProgramConfig):
        return {**{name: column_value(value) for name, value in config.values.items()}, "data": data_label}
    q, sizes = config.quantizer, config.index_sizes
    # The other columns suggest that all indices have one size; ``levels`` says so where they do not.
    uneven = "levels" in q.declared.options or sizes != (q.codebook_size,) * (q.groups * q.depth)
    levels = levels_text(sizes) if uneven else None
    return {**_set_axes(config), "levels": levels, **derived(config), "data": data_label}


def _set_axes(config: RunConfig) -> dict[str, Any]:
    return {name: _get(config, name) for name in SHORT_NAMES}


def key_of(config: RunConfig, name: str, where: str) -> str:
    """Return the key of a short or dotted name in a config. Raises UserError if it has none of this name."""
    if isinstance(config, ProgramConfig):
        config.value(name, where)
        return name
    return config_key(name, where)


def _get(config: RunConfig, name: str) -> Any:
    return value_of(config, SHORT_NAMES[name])


_STORED = tuple(axis.name for axis in DERIVED.values() if axis.stored)
_WHOLE = {name: key for name, key in SHORT_NAMES.items() if BY_NAME[name].type == "int64"}


def refuse_too_large(config: RunConfig) -> None:
    """Raise UserError for a whole number that the results table cannot hold."""
    found = {key: _get(config, name) for name, key in _WHOLE.items()}
    found["train.steps * train.batch_size"] = config.train.steps * config.train.batch_size
    for key, value in found.items():
        if value > LARGEST_INT:
            raise UserError(f"{key}: {value} does not fit the results table; the largest whole number is {LARGEST_INT}")


def _recorded(key: str) -> bool:
    """Whether an axis decides the result, or names it without being a config key, and has no column."""
    return key not in SHORT_NAMES.values() and ("." not in key or key.split(".")[0] in SCIENCE_SECTIONS)


def other_axes(axes: dict[str, Any]) -> str:
    """Return, as JSON, the axes that decide the result but have no column in the results table."""
    keys = {SHORT_NAMES.get(name, name): value for name, value in axes.items()}
    shown = {k: v for k, v in keys.items() if _recorded(k)}
    return json.dumps(shown, sort_keys=True)


@dataclass(frozen=True)
class Cell:
    """One run of a plan."""

    signature: str
    axes: dict[str, Any]
    """Values that the sweep sets, by their names in the YAML."""
    config: RunConfig
    data_label: str
    image_bytes: int = 0
    """Most memory of its decoded images; 0 if unknown."""
    train_images: int = 0
    """Training images of its data set, kept where a generation probe needs them; 0 if unknown."""

    @cached_property
    def cost(self) -> Cost:
        return cost(self.config)

    @property
    def title(self) -> str:
        return title(self.axes)


def title(axes: dict[str, Any]) -> str:
    """``latent_dim=8 groups=2``."""
    return " ".join(f"{name}={_short(value)}" for name, value in axes.items()) or "base"


def _short(value: Any) -> str:
    """Format a value as in the YAML, but with six digits."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_short, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


LeftOut = tuple[dict[str, Any], str]


@dataclass(frozen=True)
class Plan:
    """What a sweep will run."""

    name: str
    cells: tuple[Cell, ...]
    dropped: tuple[LeftOut, ...] = ()
    """Axes of each cell left out, with the constraint that excluded it."""
    merged: tuple[LeftOut, ...] = ()
    """Axes of each duplicate, with the signature of the cell that it repeats."""
    data: tuple[Summary, ...] = ()
    """Images of each data set, with the files left out; empty for a plan that was read back."""
    missing: tuple[str, ...] = ()
    """Images and weights that this machine lacks and a submission needs."""
    provisional: bool = False
    """Signatures will change once the images (and weights without a known hash) are present."""
    cluster: str = ""
    """The cluster file of the estimates, if none is named."""
    budget: Budget = field(default_factory=Budget)
    estimates: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Estimates to record when the plan is written, by signature (gsq.sweeps.costing.forecast.admit)."""
    derive: tuple[Derivation, ...] = ()
    """Keys of the cells that follow by formula."""
    recorded: tuple[str, ...] = ()
    """Axes of the cells that are no config keys."""
    search: Spec | None = None
    """A search, which draws its cells as it runs; the plan's cells are examples, the first from the middle."""

    def _repr_html_(self) -> str:
        """The cells as a table, for notebooks."""
        axes = list(dict.fromkeys(name for cell in self.cells for name in cell.axes))
        rows = (
            (
                c.signature,
                *(c.axes.get(name, "") for name in axes),
                f"{c.cost.parameters:,}",
                f"{c.cost.train_flops:.3g}",
            )
            for c in self.cells
        )
        notes = (
            *(f"missing: {text}" for text in self.missing),
            *([f"{len(self.dropped)} left out by where"] * bool(self.dropped)),
        )
        columns = ("signature", *axes, "parameters", "training FLOPs")
        return html_table(f"{self.name}: {counted(len(self.cells), 'cell')}", columns, rows, notes)

    @property
    def images(self) -> dict[str, Summary]:
        """``data`` by label (Cell.data_label)."""
        return {one.label: one for one in self.data}

    @property
    def broken_images(self) -> tuple[str, ...]:
        """Names of the broken images, which are left out."""
        return tuple(shown(one.name) for data in self.data for one in data.left_out if one.kind == "broken")

    def cut(self, cells: int) -> Plan:
        """Return a plan with only the first ``cells`` cells, or that many trials of a search."""
        if self.search is not None and self.search.search is not None:
            shorter = replace(self.search.search, trials=min(cells, self.search.search.trials))
            return replace(self, search=replace(self.search, search=shorter))
        return replace(self, cells=self.cells[:cells])


@dataclass(frozen=True)
class Lacking:
    """Evaluations that the cells of a plan ask for and finished runs lack."""

    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Image sizes at which the final weights are still to be evaluated, by signature."""
    cells: tuple[Cell, ...] = ()
    """The cells of ``sizes``."""
    again: frozenset[str] = frozenset()
    """Cells that an earlier gsq evaluated, so that their rows have another protocol than the others."""
    earlier_steps: frozenset[str] = frozenset()
    """Runs that lack evaluations at earlier steps (evaluation.every), whose weights are gone."""
    weightless: frozenset[str] = frozenset()
    """Runs whose final weights are gone, so that they keep only evaluations by other protocols."""


class CellMaker:
    """Make the cells of a sweep from their axis values, reading each data set's manifest once."""

    def __init__(self, spec: Spec, *, lenient: bool = False) -> None:
        self.override, self.sign, self.program = Overrides(spec.base, spec.preset), Signer(), spec.program
        self.manifests: dict[Any, Manifest] = {}
        self._decoded: dict[Any, int] = {}
        self.lenient = lenient
        self.missing: dict[str, None] = {}
        """Why images could not be read, if lenient; otherwise that is an error."""
        self.absent: list[str] = []
        """Absent weights without a known hash, if lenient."""
        self.derivations = {one.key: one for one in spec.derive}
        self.recorded = spec.recorded
        # Cost needs a valid config, and so may a formula: constraints that may drop an impossible cell come first.
        late = {*COST_NAMES} - {"images"} | {name for one in spec.derive for name in (one.name, one.key)}
        self.where = sorted(spec.where, key=lambda c: not late.isdisjoint(c.expression.used))

    def __call__(self, axes: dict[str, Any]) -> Cell | str:
        """Return the cell, or the constraint that leaves it out. Raises UserError for an invalid cell."""
        if self.program is not None:
            return self._of_program(self.program.config(axes), axes)
        names = CellNames(self.override, axes, self.derivations, self.recorded)
        broken = next((c.text for c in self.where if not c.holds(names)), None)
        if broken is not None:
            return broken
        found = {one.name: names.derived(one) for one in self.derivations.values() if one.key not in names.keys}
        try:
            config = self.override({**names.keys, **found}, "axes")
        except UserError as error:
            raise UserError(f"{error}{_by_formula(found, self.derivations.values())}") from None
        axes = {**axes, **found}
        if config.data not in self.manifests:
            self.manifests[config.data] = self._manifest(config)
        refuse_too_large(config)
        files = self.manifests[config.data]
        signature = identity(config, files, self.sign, self.absent if self.lenient else None)
        probed = len(files.train) if config.evaluation.probe != "none" else 0
        return Cell(signature, axes, config, files.label, self._decoded_bytes(config, files), probed)

    def _of_program(self, config: ProgramConfig, axes: dict[str, Any]) -> Cell | str:
        broken = next((c.text for c in self.where if not c.holds(config.values.__getitem__)), None)
        if broken is not None:
            return broken
        data = declared_data(config)
        return Cell(program_identity(config, data), axes, config, f"data:{data[:12]}" if data else "none")

    def _decoded_bytes(self, config: RunConfig, files: Manifest) -> int:
        """Cell.image_bytes."""
        from gsq.data.decoded_sizes import memory_bytes

        key = config.data, config.execution.data_workers, config.execution.image_cache_gb
        if key not in self._decoded:
            self._decoded[key] = memory_bytes(files, config.execution)
        return self._decoded[key]

    def _manifest(self, config: RunConfig) -> Manifest:
        try:
            return manifest(config.data)
        except Missing as error:
            if not self.lenient:
                raise
            self.missing[str(error)] = None
            return Manifest(config.data.kind, "absent", (), ())


def _by_formula(found: Mapping[str, Any], derivations: Iterable[Derivation]) -> str:
    """What was derived at a cell, for an error."""
    words = [f"{one.text} is {found[one.name]!r}" for one in derivations if one.name in found]
    return f" (derive: {'; '.join(words)})" if words else ""


@collector_paused()
def make_plan(spec: Spec, *, lenient: bool = False) -> Plan:
    """Enumerate the cells of a sweep. Signatures need the data set's manifest.

    lenient: if this machine lacks images or weights, make a provisional plan to look at. Raises UserError for an
    invalid cell that no constraint drops, and for an empty plan.
    """
    if spec.search is not None:
        return _search_plan(spec, lenient)
    cells: dict[str, Cell] = {}
    dropped: list[LeftOut] = []
    merged: list[LeftOut] = []
    make = CellMaker(spec, lenient=lenient)
    for axes in spec.candidates():
        try:
            cell = make(axes)
        except UserError as error:
            raise UserError(f"sweep '{spec.name}', cell {title(axes)}: {error}") from None
        if isinstance(cell, str):
            dropped.append((axes, cell))
        elif cell.signature in cells:
            merged.append((axes, cell.signature))
        else:
            cells[cell.signature] = cell
    for signature, config in with_branches(cells.values()):
        cells[signature] = replace(cells[signature], config=config)
    if not cells:
        why = _reasons(dropped) or "it has no axes and no cases"
        raise UserError(f"sweep '{spec.name}': the plan is empty: all {len(dropped)} cells were left out, {why}")
    return _plan(spec, make, cells, dropped, merged)


def _reasons(dropped: list[LeftOut], most: int | None = None) -> str:
    counts = Counter(constraint for _, constraint in dropped)
    return "; ".join(f"{count} by '{text}'" for text, count in counts.most_common(most))


def _plan(
    spec: Spec, make: CellMaker, cells: dict[str, Cell], dropped: list[LeftOut], merged: list[LeftOut] | None = None
) -> Plan:
    found = tuple(cells.values())
    missing = list(make.missing)
    for name in required_weights(*(cell.config for cell in found)) if make.lenient else ():
        try:
            find_weights(name)
        except Missing as error:
            missing.append(str(error))
    return Plan(
        spec.name,
        found,
        tuple(dropped),
        tuple(merged or ()),
        tuple(dict.fromkeys(files.summary() for files in make.manifests.values() if files.train)),
        tuple(missing),
        provisional=bool(make.missing or make.absent),
        cluster=spec.plan_for,
        budget=spec.budget,
        derive=spec.derive,
        recorded=spec.recorded,
        search=spec if spec.search is not None else None,
    )


# Example cells of a search, and the most draws made to find allowed ones.
EXAMPLES, DRAWS = 32, 2000


def _search_plan(spec: Spec, lenient: bool) -> Plan:
    """Plan a search by examples: the middle of its space, if allowed, and random draws."""
    assert spec.search is not None
    make = CellMaker(spec, lenient=lenient)
    cells: dict[str, Cell] = {}
    dropped: list[LeftOut] = []
    random = Random(spec.search.seed)
    for draw in range(DRAWS):
        axes = spec.search.draw(random) if draw else spec.search.middle()
        try:
            cell = make(axes)
        except UserError as error:
            cell = str(error)
        if isinstance(cell, str):
            dropped.append((axes, cell))
        else:
            cells.setdefault(cell.signature, cell)
        if len(cells) == EXAMPLES or (draw >= 4 * EXAMPLES and cells):
            break
    if not cells:
        why = _reasons(dropped, 3)
        raise UserError(f"sweep '{spec.name}': search: nothing in the space is allowed: {DRAWS} draws broke {why}")
    return _plan(spec, make, cells, dropped)


plan = make_plan  # its public name
