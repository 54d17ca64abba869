"""JSON schemas (draft 7) of sweep and cluster files, by which editors complete, explain and check them.

Everything in them comes from where gsq reads the files: types, choices, lower bounds and defaults from the dataclasses,
descriptions from their docstrings. A file that gsq loads fits its schema. The reverse does not hold: conditions over
several keys are checked by gsq alone.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable
from dataclasses import fields
from functools import cache
from typing import Any

from gsq.config.axes import AXES
from gsq.config.overrides import KEYS, SHORT_NAMES
from gsq.config.parts import PATH
from gsq.config.presets import PRESETS
from gsq.config.run import SECTIONS
from gsq.config.values import key_types
from gsq.errors import UserError
from gsq.sweeps.spec import search_space, sweep
from gsq.sweeps.spec.cluster import AUTO, MEMORY_PER, SBATCH_KEYS, WORDED, Cluster
from gsq.sweeps.spec.expressions import HELPERS
from gsq.sweeps.spec.gpus import GPU_PEAKS
from gsq.sweeps.spec.programs import PROGRAM_KEYS
from gsq.sweeps.spec.states import RESUME, WHO

Schema = dict[str, Any]
DRAFT = "http://json-schema.org/draft-07/schema#"
TYPES = {int: "integer", float: "number", bool: "boolean", str: "string", tuple: "array", dict: "object"}
OWN = {"type": "string", "pattern": r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"}
REFERENCE = {"type": "string", "pattern": r"\$\{"}  # ${section.key}: another value of the file
OPTIONS = r"^\w+\.options\.[A-Za-z_]\w*$"
NUMBER = {"type": "number"}


@cache
def docstrings(cls: type) -> dict[str, str]:
    """The docstring below each field of a dataclass, on one line, by the field's name."""
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for entry, after in zip(body.body, body.body[1:], strict=False):
        text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
        if isinstance(text, str) and isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
            found[entry.target.id] = " ".join(text.split())
    return found


def sweep_schema() -> Schema:
    """The schema of a sweep file. Raises nothing; imports no torch."""
    names = [*SHORT_NAMES, *KEYS]
    axis, value, written = (
        {name: {"$ref": f"#/definitions/{kind}{_key(name)}"} for name in names} for kind in ("axis of ", "", "set ")
    )
    axes: Schema = {"type": ["object", "null"], "properties": axis}
    known = axes | _options({})
    cell = {"type": "object", "properties": value, **_options({})}
    own = {
        name: {
            "type": "object",
            "description": " ".join((section.__doc__ or "").split()),
            "properties": {one.name: written[f"{name}.{one.name}"] for one in fields(section)},
            "additionalProperties": False,
        }
        for name, section in SECTIONS.items()
    }
    expressions = {"type": ["string", "null", "array"], "items": {"type": "string"}}
    limits = docstrings(sweep.Budget)
    budget = {
        one.name: {"type": "integer" if one.name == "cells" else "number", "exclusiveMinimum": 0}
        | ({"description": limits[one.name]} if one.name in limits else {})
        for one in fields(sweep.Budget)
    }
    properties: dict[str, Schema] = {
        "name": {"type": "string", "pattern": r"^(?!\.)[\w.-]+$"},
        "description": {"type": ["string", "null"]},
        "base": {"anyOf": [{"enum": list(PRESETS)}, {"type": "string", "pattern": r"\.ya?ml$"}]},
        "set": {"type": ["object", "null"], "properties": {**written, **own}, **_options({})},
        "axes": axes,
        "zip": {"anyOf": [axes, {"type": "array", "items": axes}]},
        "cases": {"type": ["array", "null"], "items": cell},
        "derive": {"type": ["object", "null"], "additionalProperties": {"type": ["string", "number"]}},
        "where": expressions,
        "budget": {"type": ["object", "null"], "properties": budget, "additionalProperties": False},
        "search": _search(names),
        "plan_for": {"type": ["string", "null"]},
    }
    definitions: dict[str, Schema] = {"domain": _domain()}
    for key in KEYS:
        value_of, about = _of_key(key), {"description": _description(key)}
        one = {"$ref": f"#/definitions/{key}"}
        alone = [] if key_types()[key][0] is tuple else [one]  # of a list, an axis has a list of such lists
        several = {"type": "array", "items": one, "minItems": 1}
        definitions[key] = value_of | about
        definitions[f"set {key}"] = about | {"anyOf": [one, REFERENCE]}
        definitions[f"axis of {key}"] = about | {"anyOf": [*alone, several, *_helpers(key)]}
    described = {key: properties[key] | {"description": text} for key, text in sweep.KEYS.items() if key in properties}
    return {
        "$schema": DRAFT,
        "title": "Sweep file of gsq",
        "type": "object",
        "if": {"required": ["program"]},
        "then": _of_program(described),
        "else": {
            "required": ["base"],
            "properties": described,
            "additionalProperties": False,
            # Formulas can name axes that are no config keys.
            "if": {"required": ["derive"]},
            "else": {"properties": {"axes": known, "zip": {"anyOf": [known, {"type": "array", "items": known}]}}},
        },
        "definitions": definitions,
    }


def _of_program(described: dict[str, Schema]) -> Schema:
    """What a sweep file of a program of a user's own holds, whose keys are free."""
    number = {"type": ["string", "number"]}
    free: Schema = {"type": ["object", "null"]}
    properties: dict[str, Schema] = {
        "program": {"type": "string", "pattern": r"^[\w.]+:\w+$"},
        "columns": free,
        "units": free | {"additionalProperties": {"type": "string"}},
        "flops": number,
        "seconds": number,
    }
    about = {key: properties[key] | {"description": text} for key, text in PROGRAM_KEYS.items()}
    shared = {key: described[key] for key in ("name", "description", "where", "budget", "plan_for")}
    several = {"anyOf": [free, {"type": "array", "items": free}]}
    base = {"type": ["object", "string", "null"]}
    keys = {"base": base, "set": free, "axes": free, "zip": several, "cases": {"type": ["array", "null"]}}
    return {"properties": {**shared, **keys, **about}, "additionalProperties": False}


def cluster_schema() -> Schema:
    """The schema of a cluster file. Raises nothing; imports no torch."""
    about, properties = docstrings(Cluster), {}
    chosen: dict[str, Iterable[str]] = {"kind": ("local", "slurm"), "gpu": GPU_PEAKS, "memory_per": MEMORY_PER}
    scalar = {"type": ["string", "number", "boolean", "null"]}
    several = {"anyOf": [scalar, {"type": "array", "items": scalar}]}
    names = {"pattern": "^[a-z][a-z0-9-]*$", "not": {"enum": list(SBATCH_KEYS)}}
    special: dict[str, Schema] = {
        "setup": {"type": ["string", "array"], "items": {"type": "string"}},
        "resume": {"properties": {name: {"enum": list(WHO)} for name in RESUME}, "additionalProperties": False},
        "environment": {"additionalProperties": scalar},
        "sbatch": {"propertyNames": names, "additionalProperties": several},
        "cells_in_turn": {"pattern": f"^{AUTO}$"},
    }
    for one in fields(Cluster):
        default = getattr(Cluster(), one.name)
        kind: Any = TYPES[type(default)]
        kind = [kind, "string"] if one.name in WORDED else ["object", "null"] if kind == "object" else kind
        found = {"type": kind, **special.get(one.name, {}), "description": about.get(one.name, one.name)}
        if one.name in chosen:
            found["enum"] = list(chosen[one.name])
        if isinstance(default, int):
            found["minimum"] = _least(Cluster, one.name)
        properties[one.name] = found | ({"default": default} if default not in ((), {}) else {})
    return {
        "$schema": DRAFT,
        "title": "Cluster file of gsq",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


SCHEMAS = {"sweep": sweep_schema, "cluster": cluster_schema}


def _key(name: str) -> str:
    return SHORT_NAMES.get(name, name)


def _options(values: Schema) -> Schema:
    """No further keys, but for the options that parts of a user's own declare."""
    return {"patternProperties": {OPTIONS: values}, "additionalProperties": False}


def _description(key: str) -> str:
    """The docstring of a config key, after what the axis is that it stands for."""
    section, name = key.split(".")
    axis = [one.description for one in AXES if one.key == key]
    return ". ".join([*axis, *filter(None, [docstrings(SECTIONS[section]).get(name, "")])]) or key


def _of_key(key: str) -> Schema:
    """Type, choices and lower bound of a config key's value."""
    wanted, entry = key_types()[key]
    found: Schema = {"type": TYPES[wanted]}
    if entry is not None:
        return found | {"items": {"type": TYPES[entry]}}
    section, name = key.split(".")
    if wanted is str and (words := _words(section, name)):
        own = PATH in words
        enum: Schema = {"enum": [word for word in words if word != PATH]}
        return {"anyOf": [enum, OWN]} if own else enum
    if wanted in (int, float) and (least := _least(SECTIONS[section], name)) is not None:
        found["minimum"] = least
    return found


def _refusal(cls: type, name: str, value: Any) -> str:
    """What a section says to a value that it refuses; "" if it takes it."""
    try:
        cls(**{name: value})
    except UserError as error:
        return str(error)
    return ""


def _words(section: str, name: str) -> list[str]:
    """The words that a key takes, from the section's own refusal of another one; empty if it takes any text."""
    found = re.search(r"choose one of (.*)$", _refusal(SECTIONS[section], name, "?"))
    return found[1].split(", ") if found else []


def _least(cls: type, name: str) -> float | None:
    found = re.search(rf"{name}: -1 .*must be at least ([\d.]+)", _refusal(cls, name, -1))
    return None if found is None else float(found[1]) if "." in found[1] else int(found[1])


def _helpers(key: str) -> list[Schema]:
    """{log2: [a, b]} and the like, for keys that hold one number."""
    kind = key_types()[key][0]
    if kind not in (int, float):
        return []
    found = []
    for name, text in HELPERS.items():
        ends = 3 if name == "logspace" else 2
        numbers = {"type": "array", "items": NUMBER if ends == 3 else {"type": "integer"}} | _length(ends)
        step = {} if ends == 3 else {"step": {"type": "integer", "minimum": 1}}
        found.append(_mapping({name: numbers | {"description": text}, **step}, [name]))
    return found


def _length(count: int) -> Schema:
    return {"minItems": count, "maxItems": count}


def _mapping(properties: Schema, required: list[str]) -> Schema:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _domain() -> Schema:
    """One domain of a search, or one for each entry of a key that holds several numbers."""
    pair = {"type": "array", "items": NUMBER, **_length(2)}
    domains = []
    for name, text in search_space.DOMAINS.items():
        taken = {"type": "array", "minItems": 1} if name == "choice" else pair
        more = {"step": {"type": "integer", "minimum": 1}, "log": {"type": "boolean"}} if name == "int" else {}
        domains.append(_mapping({name: taken | {"description": text}, **more}, [name]))
    return {"anyOf": [*domains, {"type": "array", "items": {"anyOf": [*domains, NUMBER]}, "minItems": 1}]}


def _search(names: list[str]) -> Schema:
    objective = {"enum": list(search_space.OBJECTIVES)}
    count = {"type": "integer", "minimum": 0}

    def choice(known: Iterable[str]) -> Schema:
        options = {name: {"type": ["object", "null"]} for name in known}
        one = {"type": "object", "properties": options, "additionalProperties": False, "maxProperties": 1}
        return {"anyOf": [{"enum": [*known, None]}, one]}

    properties: dict[str, Schema] = {
        "trials": {"type": "integer", "minimum": 1},
        "objectives": {"anyOf": [objective, {"type": "array", "items": objective, "minItems": 1, "uniqueItems": True}]},
        "sampler": choice(search_space.SAMPLERS),
        "pruner": choice(search_space.PRUNERS),
        "seed": count,
        "parallel": count,
        "storage": {"type": ["string", "null"]},
        "space": {
            "type": "object",
            "minProperties": 1,
            "properties": {name: {"$ref": "#/definitions/domain"} for name in names},
            "additionalProperties": False,
        },
    }
    described = {key: properties[key] | {"description": text} for key, text in search_space.KEYS.items()}
    return {**_mapping(described, ["trials", "space"]), "type": ["object", "null"]}
