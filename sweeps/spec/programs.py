"""The keys of a sweep YAML with ``program:``, a training program of a user's own, whose keys are free."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from gsq.config.overrides import read_yaml
from gsq.config.parts import PATH, is_path, load
from gsq.config.program import ProgramConfig, column_value, plain
from gsq.errors import UserError
from gsq.sweeps.schema.columns import BY_NAME, LARGEST_INT, Column, fits
from gsq.sweeps.spec.expressions import FUNCTIONS, Expression, check_expression

# Keys of a sweep YAML that only a sweep with ``program`` has.
PROGRAM_KEYS = {
    "program": "A training program of your own, package.module:function; base, set and axes then have keys of its own.",
    "columns": "Columns of the table by formula over the program's keys: {tokens: batch * length * steps}.",
    "units": "Units of keys, columns and metrics, for the table.",
    "flops": "FLOPs of a run, an expression over its keys, for the plan.",
    "seconds": "Seconds of a run, an expression over its keys, for the plan.",
}
# Roles of the columns of every table that keys, columns and metrics may fill.
FREE_ROLES = ("axis", "derived", "metric")
FREE = (*(c.name for c in BY_NAME.values() if c.role in FREE_ROLES), "parameters", "images_seen")
TAKEN_ANYWAY = ("data", "levels", "other_axes", "repeat")


def check_name(name: str, where: str) -> str:
    """Return a free key. Raises UserError for one that is no name, or that the results table needs for itself."""
    if not name.isidentifier() or name.startswith("_"):
        raise UserError(f"{where}: {name!r} is not a name: letters, digits and '_', beginning with a letter")
    if (name in BY_NAME and name not in FREE) or name in TAKEN_ANYWAY:
        raise UserError(f"{where}: '{name}' is a column that gsq fills in every results table; take another name")
    return name


def _check_value(name: str, value: Any, where: str) -> None:
    for one in value if isinstance(value, list | tuple) else [value]:
        if not (one is None or isinstance(one, bool | int | float | str)):
            raise UserError(
                f"{where}: {name}: {one!r} is a {type(one).__name__}; a free key is a number, a text, true, false or "
                "null, or a list of these"
            )
        if isinstance(one, float) and not math.isfinite(one):
            raise UserError(f"{where}: {name}: {one!r} is not a finite number")
        if isinstance(one, int) and abs(one) > LARGEST_INT:
            raise UserError(f"{where}: {name}: {one} does not fit the results table; at most {LARGEST_INT}, or a float")


def kind_of(value: Any) -> str:
    """Return the type of a key's column; empty for null."""
    value = column_value(tuple(value) if isinstance(value, list) else value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, list):
        return "list<float64>"
    return {int: "int64", float: "float64"}.get(type(value), "string")


def one_kind(name: str, values: Iterable[Any], where: str) -> str:
    """Return the type that a key has in all cells: int64 and float64 together are float64. Raises UserError for a
    mixture."""
    examples = {kind: value for value in values if (kind := kind_of(value))}
    if examples.keys() == {"int64", "float64"}:
        return "float64"
    if len(examples) > 1:
        shown = " and ".join(f"{value!r} ({kind})" for kind, value in examples.items())
        raise UserError(f"{where}: '{name}' has values of different types, {shown}; a column of the table has one type")
    return next(iter(examples), "string")


@dataclass(frozen=True)
class Program:
    """The program of a sweep: makes the config of a cell."""

    path: str
    keys: Mapping[str, Any]
    """Values from ``base`` and ``set``."""
    formulas: Mapping[str, str]
    """Formulas under ``columns``, in order; each may use the keys and the columns before it."""
    units: Mapping[str, str]
    floats: frozenset[str] = frozenset()
    """Keys that have a float in some cell, so that they are floats in all."""
    estimates: Mapping[str, str] = field(default_factory=dict)
    """Expressions of ``flops`` and ``seconds``."""

    def config(self, axes: Mapping[str, Any]) -> ProgramConfig:
        """Return the config of a cell. Raises UserError for a formula that cannot be evaluated."""
        keys = {name: self._typed(name, value) for name, value in {**self.keys, **axes}.items()}
        columns: dict[str, Any] = {}
        for name, text in self.formulas.items():
            columns[name] = self._typed(name, _number(text, {**keys, **columns}, f"columns: {name}"))
            _check_value(name, columns[name], "columns")
        counts = {name: float(_number(text, {**keys, **columns}, name)) for name, text in self.estimates.items()}
        for name, value in {**keys, **columns}.items():
            stored = column_value(tuple(value) if isinstance(value, list) else value)
            if name in BY_NAME and not fits(BY_NAME[name], stored):
                kind = BY_NAME[name].type
                raise UserError(f"{name}: {value!r} does not fit the column '{name}' of every results table ({kind})")
        for name, number in counts.items():
            if number <= 0:
                raise UserError(f"{name}: '{self.estimates[name]}' is {number:g}, not above 0")
        return ProgramConfig.of(self.path, keys, columns=columns, units=self.units, **counts)

    def _typed(self, name: str, value: Any) -> Any:
        """Return a number in the type of its column: 8 or 8.0."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        if name in BY_NAME and BY_NAME[name].type == "int64":
            return int(value) if value == int(value) else value
        return float(value) if name in self.floats else value


@lru_cache(1024)
def _expression(text: str, where: str, names: tuple[str, ...]) -> Expression:
    return Expression(text, where, names, FUNCTIONS)


def _number(text: str, names: Mapping[str, Any], where: str) -> int | float:
    """Evaluate a formula. Raises UserError if its value is no finite number."""
    found = _expression(text, where, tuple(names)).value(names.__getitem__)
    if isinstance(found, bool) or not isinstance(found, int | float) or not abs(found) <= sys.float_info.max:
        shown = "larger than any float" if type(found) is int else f"{found!r}, not a finite number"
        raise UserError(f"{where}: '{text}' is {shown}")
    return found


def read_program(
    values: Mapping[str, Any], folder: Path, where: str, groups: Iterable[Mapping[str, list[Any]]]
) -> Program:
    """Read the program of a sweep's YAML. groups: the values of its keys in axes, zip and cases.

    Raises UserError for a program that cannot be imported, a value that no key can have, keys of mixed types, a key
    that only some cells have, or a wrong formula.
    """
    path = values["program"]
    if not isinstance(path, str) or not is_path(path):
        raise UserError(f"{where}: program: {path!r} is not an import path; write {PATH.replace('Name', 'train')}")
    load(path, f"{where}: program")
    base = values.get("base") or {}
    if isinstance(base, str):
        file = folder / base if (folder / base).is_file() else Path(base)
        base = read_yaml(file)
    keys = {**_mapping(base, f"{where}: base"), **_mapping(values.get("set") or {}, f"{where}: set")}
    found: dict[str, list[Any]] = {name: [value] for name, value in keys.items()}
    for group in groups:
        for name, several in group.items():
            check_name(name, where)
            found.setdefault(name, []).extend(several)
    floats = set()
    for name, several in found.items():
        for value in several:
            _check_value(name, value, where)
        if one_kind(name, several, where) == "float64":
            floats.add(name)
    formulas, units = _formulas(values.get("columns") or {}, values.get("units") or {}, list(found), where)
    names = [*found, *formulas]
    estimates = {name: str(values[name]) for name in ("flops", "seconds") if values.get(name) is not None}
    for name, text in estimates.items():
        check_expression(text, f"{where}: {name}", names, tuple(FUNCTIONS))
    return Program(path, keys, formulas, units, frozenset(floats), estimates)


def _mapping(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: {values!r} is not a mapping of free keys to values, nor a YAML file of them")
    return {check_name(str(name), where): value for name, value in values.items()}


def _formulas(columns: Any, units: Any, keys: list[str], where: str) -> tuple[dict[str, str], dict[str, str]]:
    for name, given in (("columns", columns), ("units", units)):
        if not isinstance(given, Mapping):
            raise UserError(f"{where}: {name}: {given!r} is not a mapping of names to texts")
    formulas: dict[str, str] = {}
    for name, text in columns.items():
        check_name(str(name), f"{where}: columns")
        if name in keys:
            raise UserError(f"{where}: columns: '{name}' is a key already; take another name")
        check_expression(str(text), f"{where}: columns: {name}", [*keys, *formulas], tuple(FUNCTIONS))
        formulas[str(name)] = str(text)
    return formulas, {str(name): str(unit) for name, unit in units.items()}


def check_cells(program: Program, cells: Iterable[Mapping[str, Any]], where: str) -> None:
    """Raise UserError for a key that only some cells have."""
    names = [{**program.keys, **cell}.keys() for cell in cells]
    every = set().union(*names)
    for one in names:
        if lacking := sorted(every - one):
            raise UserError(f"{where}: '{lacking[0]}' has a value in some cells only; give it one in set")


def own_keys(config: Any) -> str:
    """Return, as JSON, the keys of a program's run that no other table has, which tell configurations apart; empty for
    a RunConfig."""
    if not isinstance(config, ProgramConfig):
        return ""
    return json.dumps({n: value for n, value in plain(config.keys).items() if n not in BY_NAME}, sort_keys=True)


def own_columns(configs: Iterable[Any]) -> dict[str, Column]:
    """Return the columns of a table for keys and derived columns of programs, beside those of every table or in their
    place, with their type.

    configs: those of all cells. Raises UserError for a key that had another type when it was submitted.
    """
    found: dict[str, list[Any]] = {}
    about: dict[str, tuple[str, str]] = {}
    for config in configs:
        if isinstance(config, ProgramConfig):
            for name, value in config.values.items():
                found.setdefault(name, []).append(value)
                role = "axis" if name in config.keys else "derived"
                about[name] = role, config.units.get(name, "")
    return {
        name: Column(
            name,
            BY_NAME[name].type if name in BY_NAME else one_kind(name, values, "cells of earlier submissions"),  # type: ignore[arg-type]
            about[name][1],
            about[name][0],  # type: ignore[arg-type]
            "free key of the program" if about[name][0] == "axis" else "derived from the free keys by formula",
        )
        for name, values in found.items()
    }
