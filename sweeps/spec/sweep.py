"""The sweep YAML: a base config, overrides, axes, and constraints over them.

name: quickstart
base: cpu-tiny                     # a preset, or a YAML file of config sections
set: {steps: 300}                  # overrides: short names, dotted keys or sections
axes:                              # every combination
  groups: [1, 2, 4]
  codebook_size: {log2: [6, 10]}   # 64, 128, 256, 512, 1024; also {log2: [6, 10], step: 2}
  seed: {range: [0, 2]}            # 0, 1, 2; also {range: [8, 64], step: 8}, {logspace: [1e-4, 1e-2, 5]}
zip:                               # axes that move together
  downsample: [4, 8]
  latent_dim: [8, 16]
cases:                             # single cells, beside the combinations
  - {groups: 8, latent_dim: 16}
derive:                            # keys by formula, rounded to what they take (sweeps/spec/derive.py)
  learning_rate: "1e-3 * (batch_size / 8)^0.5"
where:                             # cells for which one of these is false are left out
  - latent_dim % groups == 0 and bits_per_pixel <= 1
budget: {device_hours: 40, hours: 12, disk_gb: 100, cells: 200}   # limits on what is still to run
plan_for: example-gpu              # the cluster file for the estimates of gsq plan without --cluster
search: {...}                      # instead of axes, zip and cases: an Optuna study (sweeps/spec/search_space.py)

program: my_train:train            # a training program of a user's own (gsq.runs.program); the keys are then free:
base: {width: 64, steps: 200}      # a mapping, or a YAML file of one; set, axes, zip and cases take any key
columns: {tokens: 16 * steps}      # columns of the table derived from keys by formula, for where and laws too
units: {tokens: tokens, loss: nats}  # of keys, columns and metrics
flops: 6 * width**2 * tokens       # expressions for the plan (seconds: too); without, it learns from finished runs
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from gsq.config.overrides import SHORT_NAMES, config_key, load_config, read_yaml
from gsq.config.parts import search_also
from gsq.config.presets import PRESETS, preset
from gsq.config.program import ProgramConfig
from gsq.config.quantizer import QuantizerConfig
from gsq.config.run import SECTIONS, RunConfig
from gsq.errors import UserError, nearest
from gsq.files import is_yaml
from gsq.sweeps.spec.derive import Derivation, check_recorded, read_derive, recorded_names, refuse_shares_of_horizons
from gsq.sweeps.spec.expressions import DERIVED_NAMES, HELPERS, Constraint
from gsq.sweeps.spec.programs import PROGRAM_KEYS, Program, check_cells, check_name, read_program
from gsq.sweeps.spec.search_space import Search, read_search
from gsq.sweeps.spec.shipped import configs_folder, find_file

KEYS = {
    "name": "Names the sweep's folder and its table; by default the name of the file.",
    "description": "A text for readers.",
    "base": "A preset, or a YAML file of config sections, from which every cell starts.",
    "set": "Overrides of the base for all cells: short names, dotted keys or sections.",
    "axes": "Every combination of these values is a cell: a list, one value, or a helper such as {log2: [6, 10]}.",
    "zip": "Axes that move together, each with as many values; one mapping, or a list of several.",
    "cases": "Single cells, beside the combinations: {groups: 8, latent_dim: 16}.",
    "derive": 'Keys by formula, from other keys, axes and costs: {steps: "flops_budget / flops_per_step"}.',
    "where": "Conditions over axes and derived axes; cells for which one is false are left out.",
    "budget": "Limits on what is still to run; above one of them gsq submit refuses.",
    "search": "An Optuna study in place of axes, zip and cases.",
    "plan_for": "The cluster file for the estimates of gsq plan without --cluster.",
    **PROGRAM_KEYS,
}

MOST_CELLS = 1_000_000
"""Combinations that a sweep may have before ``where``; gsq plan takes minutes for so many."""
LONGEST_NAME = 200
"""Bytes of a sweep's name, which file systems limit to 255 with what gsq adds to it."""


@dataclass(frozen=True)
class Budget:
    """Limits on what is still to run of a sweep, None for no limit. Finished cells count nothing."""

    device_hours: float | None = None
    hours: float | None = None
    """Wall time with the queue's parallelism."""
    disk_gb: float | None = None
    """Most 10^9 bytes of checkpoints and weights."""
    cells: int | None = None


@dataclass(frozen=True)
class Spec:
    """A validated sweep YAML."""

    name: str
    base: RunConfig
    axes: dict[str, list[Any]]
    zipped: tuple[dict[str, list[Any]], ...]
    cases: tuple[dict[str, Any], ...]
    where: tuple[Constraint, ...]
    description: str = ""
    budget: Budget = field(default_factory=Budget)
    search: Search | None = None
    preset: QuantizerConfig | None = None
    """The quantizer of the base preset; the default one if the base is a file."""
    plan_for: str = ""
    """The cluster file for the estimates of ``gsq plan`` without --cluster; nothing is ever submitted to it."""
    program: Program | None = None
    """A training program of a user's own, which makes the configs of the cells."""

    derive: tuple[Derivation, ...] = ()
    """Keys by formula, each after all that it needs."""
    recorded: tuple[str, ...] = ()
    """Axes that are no config keys, which ``derive`` computes with."""

    def candidates(self) -> Iterator[dict[str, Any]]:
        """Yield the axis values of every combination and every case, before constraints."""
        groups = [[dict(zip(z, values, strict=True)) for values in zip(*z.values(), strict=True)] for z in self.zipped]
        if self.axes or groups or not self.cases:
            for values in product(*self.axes.values(), *groups):
                cell = dict(zip(self.axes, values, strict=False))
                for part in values[len(self.axes) :]:
                    cell |= part
                yield cell
        yield from (dict(case) for case in self.cases)


def load_spec(source: str | Path | Mapping[str, Any]) -> Spec:
    """Read a sweep from a YAML file, a shipped sweep's name, or a mapping.

    Raises UserError for anything that differs from the module's docstring.
    """
    if isinstance(source, Mapping):
        return build_spec(dict(source), Path(), "sweep")
    path = find_file(str(source), configs_folder(), "sweep")
    values = read_yaml(path)
    values.setdefault("name", path.stem)
    search_also(path.parent)
    return build_spec(values, path.parent, str(path))


def build_spec(values: dict[str, Any], folder: Path, where: str) -> Spec:
    """Build a sweep from the content of its file. folder: that of a relative base. where: named in errors."""
    for key in values:
        if key not in KEYS:
            raise UserError(f"{where}: unknown key '{key}'{nearest(key, KEYS)}; a sweep has {', '.join(KEYS)}")
    name = values.get("name")
    if not isinstance(name, str) or not name or not all(c.isalnum() or c in "-_." for c in name) or name[0] == ".":
        raise UserError(
            f"{where}: name: {name!r} must be letters, digits, '-', '_' and '.'; it names folders and files"
        )
    if (length := len(name.encode())) > LONGEST_NAME:
        raise UserError(f"{where}: name: '{name[:20]}...' takes {length} bytes; file systems allow {LONGEST_NAME}")
    if values.get("program") is not None:
        return _of_program(values, folder, where, name)
    if strange := [key for key in PROGRAM_KEYS if key in values]:
        raise UserError(f"{where}: {strange[0]}: only a sweep with program: has it; name one, or remove it")
    begun = _base(values.get("base"), folder, where)
    # Quantizer keys in a base file count as written, as those in set do; a preset's keys fit every kind.
    chosen = begun.quantizer if values["base"] in PRESETS else QuantizerConfig()
    base = _overridden(begun, values.get("set") or {}, f"{where}: set", chosen)
    others = recorded_names(values.get("derive"))
    axes, groups, cases = _grid(values, where, partial(_axis_key, others=others))
    recorded = tuple(dict.fromkeys(key for part in (axes, *groups, *cases) for key in part if key in others))
    for part in (axes, *groups, *({key: [value] for key, value in case.items()} for case in cases)):
        for key in part:
            if key in recorded:
                check_recorded(key, part[key], f"{where}: axes")
    seen = {_axis_key(key, where, others) for part in (axes, *groups) for key in part}
    horizons = next((values for key, values in axes.items() if SHORT_NAMES.get(key, key) == "train.steps"), [])
    if base.optimizer.schedule == "wsd" and all(type(n) is int for n in horizons) and sorted(horizons) != horizons:
        raise UserError(
            f"{where}: axes: steps: {horizons} are the horizons of optimizer.schedule 'wsd', which must ascend; write "
            f"{sorted(set(horizons))}"
        )
    texts = _listed(values, "where", str, where, "expressions")
    search = None
    if values.get("search") is not None:
        if beside := [key for key in ("axes", "zip", "cases") if values.get(key)]:
            raise UserError(
                f"{where}: search: cannot be combined with {' and '.join(beside)}, whose cells do not compare in one "
                "study; move the keys to search.space, or give each cell a sweep of its own (set)"
            )
        search = read_search(values["search"], base, f"{where}: search")
    fixed = seen | {key for key, _ in _set_pairs(values.get("set") or {}, where)}
    fixed |= {config_key(name, where) for name in (search.space if search else ())}
    derived = read_derive(values.get("derive"), recorded, fixed, f"{where}: derive")
    if base.optimizer.schedule == "wsd" and len(set(horizons)) > 1:
        refuse_shares_of_horizons(derived, f"{where}: derive")
    return Spec(
        search=search,
        derive=derived,
        recorded=recorded,
        name=name,
        base=base,
        preset=chosen,
        axes=axes,
        zipped=groups,
        cases=cases,
        where=tuple(Constraint(text, (*SHORT_NAMES, *DERIVED_NAMES, *recorded)) for text in texts),
        description=str(values.get("description") or ""),
        budget=_budget(values.get("budget"), where),
        plan_for=_plan_for(values, where),
    )


def _of_program(values: dict[str, Any], folder: Path, where: str, name: str) -> Spec:
    """Build a sweep of a program of a user's own."""
    if values.get("derive"):
        raise UserError(f"{where}: derive: takes keys of gsq's own training; a program's columns have columns:")
    if values.get("search"):
        raise UserError(f"{where}: search: takes gsq's own training; with program: use axes, zip and cases")
    axes, zipped, cases = _grid(values, where, check_name)
    groups = (axes, *zipped, *({key: [value] for key, value in case.items()} for case in cases))
    program = read_program(values, folder, where, groups)
    names = list(dict.fromkeys((*program.keys, *(key for group in groups for key in group), *program.formulas)))
    found = Spec(
        name=name,
        base=ProgramConfig.of(program.path, program.keys),
        axes=axes,
        zipped=zipped,
        cases=cases,
        where=tuple(Constraint(text, tuple(names)) for text in _listed(values, "where", str, where, "expressions")),
        description=str(values.get("description") or ""),
        budget=_budget(values.get("budget"), where),
        plan_for=_plan_for(values, where),
        program=program,
    )
    check_cells(program, found.candidates(), where)
    return found


def _plan_for(values: Mapping[str, Any], where: str) -> str:
    found = values.get("plan_for") or ""
    if not isinstance(found, str):
        raise UserError(f"{where}: plan_for: {found!r} is not the name of a cluster file")
    return found


Axes = dict[str, list[Any]]


def _grid(
    values: Mapping[str, Any], where: str, key_of: Callable[[str, str], str]
) -> tuple[Axes, tuple[Axes, ...], tuple[dict[str, Any], ...]]:
    """Return axes, zip and cases. key_of: the full key of a name, or UserError for one that is no key."""
    axes = _axes(values.get("axes") or {}, f"{where}: axes", key_of)
    listed = _listed(values, "zip", Mapping, where, "mappings of axes")
    groups = [_axes(group, f"{where}: zip", key_of) for group in listed if group]
    for group in groups:
        lengths = {name: len(v) for name, v in group.items()}
        if len(set(lengths.values())) > 1:
            raise UserError(f"{where}: zip: axes that move together need equally many values, got {lengths}")
    cases = _listed(values, "cases", Mapping, where, "mappings such as {groups: 8, latent_dim: 16}")
    for case in cases:
        _refuse_twice(map(str, case), key_of, f"{where}: cases")
    _refuse_twice((key for part in (axes, *groups) for key in part), key_of, f"{where}: axes and zip")
    counts = [*(len(v) for v in axes.values()), *(len(next(iter(group.values()))) for group in groups)]
    if (count := prod(counts)) > MOST_CELLS:
        raise UserError(
            f"{where}: axes and zip: {' x '.join(map(str, counts))} values are {count:,} combinations; a sweep takes "
            f"at most {MOST_CELLS:,}, so take fewer values (step: n), or search: in place of axes"
        )
    return axes, tuple(groups), tuple({str(k): v for k, v in case.items()} for case in cases)


def _listed(values: Mapping[str, Any], key: str, kind: type[Any], where: str, what: str) -> list[Any]:
    """Return the list under ``key``, where one entry may stand alone, but for cases. Raises UserError for others."""
    found = values.get(key) or []
    listed = [found] if isinstance(found, kind) and key != "cases" else found
    if not isinstance(listed, list) or not all(isinstance(one, kind) for one in listed):
        raise UserError(f"{where}: {key}: must be a list of {what}, got {found!r}")
    return listed


def _budget(value: Any, where: str) -> Budget:
    valid = [f.name for f in fields(Budget)]
    if value is None:
        return Budget()
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: budget: {value!r} is not a mapping of limits; limits are {', '.join(valid)}")
    if unknown := [str(key) for key in value if key not in valid]:
        named = ", ".join(f"'{key}'{nearest(key, valid)}" for key in unknown)
        raise UserError(f"{where}: budget: unknown {named}; limits are {', '.join(valid)}")
    for key, limit in value.items():
        number = isinstance(limit, int if key == "cells" else int | float) and not isinstance(limit, bool)
        if not number or not 0 < limit < float("inf"):
            kind = "a whole number" if key == "cells" else "a number"
            raise UserError(f"{where}: budget: {key}: {limit!r} is not {kind} above 0")
    return Budget(**value)


def _base(value: Any, folder: Path, where: str) -> RunConfig:
    if value is None:
        raise UserError(
            f"{where}: base: missing; name a preset ({', '.join(PRESETS)}) or a YAML file of config sections"
        )
    if not isinstance(value, str):
        raise UserError(f"{where}: base: {value!r} is not the name of a preset or a file")
    if is_yaml(value):
        path = folder / value if (folder / value).is_file() else Path(value)
        return load_config(read_yaml(path), where=str(path))
    return preset(value)


def _overridden(base: RunConfig, values: Any, where: str, chosen: QuantizerConfig) -> RunConfig:
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: {values!r} is not a mapping of keys to values")
    nested: dict[str, dict[str, Any]] = {}
    given = list(_set_pairs(values, where))
    _refuse_twice((key for key, _ in given), lambda key, _: key, where)
    for key, value in given:
        section, name = key.split(".", 1)
        part = nested.setdefault(section, {})
        if name.startswith("options."):
            part, name = part.setdefault("options", {}), name.split(".", 1)[1]
        part[name] = value
    return load_config(nested, base, where, preset=chosen)


def _set_pairs(values: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    """The config keys that ``set`` gives, with their values; options one by one."""
    for name, value in values.items():
        if name in SECTIONS and isinstance(value, Mapping):
            pairs = [(f"{name}.{key}", inner) for key, inner in value.items()]
        else:
            pairs = [(config_key(str(name), where), value)]
        for key, inner in pairs:
            options = inner if key.endswith(".options") and isinstance(inner, Mapping) else None
            yield from [(key, inner)] if options is None else ((f"{key}.{option}", v) for option, v in options.items())


def _refuse_twice(given: Iterable[str], key_of: Callable[[str, str], str], where: str) -> None:
    """Raise UserError where two names are one config key, of which one value would be lost."""
    seen: dict[str, str] = {}
    for name in given:
        if (full := key_of(name, where)) in seen:
            names = " and ".join(f"'{one}'" for one in dict.fromkeys((seen[full], name)))
            raise UserError(f"{where}: {full} is given twice, as {names}; leave one of them out")
        seen[full] = name


def _axis_key(name: str, where: str, others: Collection[str]) -> str:
    """The config key of an axis, or its name where it is one of ``others``."""
    if name in others:
        return name
    try:
        return config_key(name, where)
    except UserError as error:
        hint = f"; derive computes with {', '.join(sorted(others))}{nearest(name, others)}" if others else ""
        hint = hint or "; an axis of another name needs a formula in derive that uses it"
        raise UserError(f"{error}{hint}") from None


def _axes(values: Any, where: str, key_of: Callable[[str, str], str]) -> Axes:
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: {values!r} is not a mapping of axes to lists of values")
    axes = {}
    for name, given in values.items():
        key_of(str(name), where)
        expanded = _expand(given, f"{where}: {name}") if isinstance(given, Mapping) else given
        expanded = expanded if isinstance(expanded, list) else [expanded]
        if not expanded:
            raise UserError(f"{where}: {name}: the list is empty")
        axes[str(name)] = expanded
    return axes


def _expand(helper: Mapping[Any, Any], where: str) -> list[Any]:
    kind = next((str(k) for k in helper if k in HELPERS), None)
    extra = set(helper) - ({kind} if kind == "logspace" else {kind, "step"})
    if kind is None or extra:
        raise UserError(f"{where}: {dict(helper)} is not one of the helpers: {'; '.join(HELPERS.values())}")
    arguments, step = helper[kind], helper.get("step", 1)
    wanted = 3 if kind == "logspace" else 2
    numbers = isinstance(arguments, list) and all(
        isinstance(a, int if kind != "logspace" else (int, float)) and not isinstance(a, bool) for a in arguments
    )
    if not numbers or len(arguments) != wanted or not isinstance(step, int) or step < 1:
        raise UserError(f"{where}: {dict(helper)}: {HELPERS[kind]}")
    if kind == "logspace":
        first, last, count = arguments
        if not (first > 0 and last > 0 and isinstance(count, int) and count >= 2):
            raise UserError(f"{where}: {dict(helper)}: logspace needs positive ends and at least 2 values")
        if count > MOST_CELLS:
            raise UserError(f"{where}: {dict(helper)}: a sweep takes at most {MOST_CELLS:,} values")
        return [float(first * (last / first) ** (i / (count - 1))) for i in range(count)]
    first, last = arguments
    if kind == "log2" and last >= 63:
        raise UserError(f"{where}: {dict(helper)}: 2^{last} does not fit the results table; the largest exponent is 62")
    if first > last or (kind == "log2" and first < 0):
        raise UserError(
            f"{where}: {dict(helper)}: the first number must not be above the second, nor an exponent negative"
        )
    values = range(first, last + 1, step)
    if len(values) > MOST_CELLS:
        raise UserError(f"{where}: {dict(helper)}: {len(values):,} values; a sweep takes at most {MOST_CELLS:,}")
    return [2**e for e in values] if kind == "log2" else list(values)
