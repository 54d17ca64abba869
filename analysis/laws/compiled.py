"""What a formula compiles to, as plain data that a file can hold.

Importing sympy and differentiating takes longer than most fits, so that what it found is kept in ``$GSQ_CACHE/laws``,
named by the formula and everything that it was compiled with.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from gsq.files import cache_folder, whole

_MOST = 1000  # files that the folder keeps


@dataclass(frozen=True)
class Term:
    """A part of a formula, as sizes of starts are read from it."""

    kind: str
    """"parameter", "datum", "number", "constant" (written as more than a number: log(2)), or sympy's name: "Add",
    "Mul", "Pow", "exp", "Min", ..."""
    args: tuple[Term, ...] = ()
    """Those of "exp" are the terms of its argument."""
    value: float = 0.0
    """Of a number or constant."""
    index: int = -1
    """Of a parameter or datum, its place among them."""

    @cached_property
    def parameters(self) -> frozenset[int]:
        """Indices of the parameters that it holds."""
        own = {self.index} if self.kind == "parameter" else set()
        return frozenset(own.union(*(one.parameters for one in self.args)))

    @cached_property
    def data(self) -> frozenset[int]:
        """Indices of the data that it holds."""
        own = {self.index} if self.kind == "datum" else set()
        return frozenset(own.union(*(one.data for one in self.args)))

    @property
    def coefficient(self) -> tuple[float, Term | None]:
        """Its number and what that multiplies; None for a product of several."""
        if self.kind != "Mul" or self.args[0].kind != "number":
            return 1.0, self
        return self.args[0].value, self.args[1] if len(self.args) == 2 else None

    def to_json(self) -> list[Any]:
        match self.kind:
            case "parameter" | "datum":
                return [self.kind, self.index]
            case "number" | "constant":
                return [self.kind, self.value]
            case _:
                return [self.kind, *(one.to_json() for one in self.args)]

    @staticmethod
    def from_json(content: list[Any]) -> Term:
        kind, *rest = content
        match kind:
            case "parameter" | "datum":
                return Term(kind, index=rest[0])
            case "number" | "constant":
                return Term(kind, value=rest[0])
            case _:
                return Term(kind, tuple(map(Term.from_json, rest)))


@dataclass(frozen=True)
class Compiled:
    """A formula over its parameters and data, for centred amplitudes (:class:`gsq.analysis.laws.form.Form`)."""

    data: tuple[int, ...]
    """Which of the formula's data it depends on."""
    amplitudes: tuple[int, ...]
    """Indices of the parameters in which it is linear, jointly."""
    exponents: tuple[int, ...]
    """Indices of the parameters inside an exponential, which powers of columns are."""
    constants: tuple[int, ...]
    """Indices of additive constants: floors."""
    levels: tuple[tuple[int, int], ...]
    """Constants that have a value for each level, each with the datum that is 1 at the rows of its level."""
    kinked: bool
    """Whether it holds min, max or abs, where its slopes jump."""
    terms: tuple[Term, ...]
    """The formula; where it has columns of levels, at one level of each, often enough that each level has its turn."""
    both: str
    """Text of a numpy function of parameters, data and centres: the value and all derivatives."""
    basis: str
    """The same for what each amplitude multiplies, and the value without amplitudes."""
    scale: str
    """The same, without data, for what takes each parameter from natural to internal."""

    @property
    def functions(self) -> tuple[Callable[..., Any], ...]:
        """``both``, ``basis`` and ``scale``."""
        return _function(self.both), _function(self.basis), _function(self.scale)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "terms": [one.to_json() for one in self.terms]}

    @staticmethod
    def from_json(content: dict[str, Any]) -> Compiled:
        lists = {name: tuple(content[name]) for name in ("data", "amplitudes", "exponents", "constants")}
        levels = tuple((constant, datum) for constant, datum in content["levels"])
        terms = tuple(map(Term.from_json, content["terms"]))
        return Compiled(**{**content, **lists, "levels": levels, "terms": terms})


def _function(text: str) -> Callable[..., Any]:
    """The function that sympy's text defines, with numpy's names."""
    names = {name: getattr(np, name) for name in set(re.findall(r"[a-z_]\w*", text)) if hasattr(np, name)}
    space: dict[str, Any] = {**names, "reduce": functools.reduce}
    exec(compile(text, "<compiled formula>", "exec"), space)
    found: Callable[..., Any] = space["_lambdifygenerated"]
    return found


def kept(key: object, make: Callable[[], Compiled]) -> Compiled:
    """What ``make`` returns, from the cache where that has it; ``key``: all that it depends on, as JSON."""
    text = json.dumps([key, _sources(), metadata.version("sympy")])
    path = cache_folder() / "laws" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError), path.open() as file:
        if _is_ours(file.fileno()):
            return Compiled.from_json(json.load(file))
    found = make()
    with contextlib.suppress(OSError):  # without it, only time is lost
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path, sync=False) as partial:
            partial.touch(0o600)
            partial.write_text(json.dumps(found.to_json()))
        _forget(path.parent)
    return found


def _is_ours(file: int) -> bool:
    """Whether nobody else can have written an open file: what it holds is run."""
    state = os.fstat(file)
    return state.st_uid == os.getuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _forget(folder: Path) -> None:
    """Remove the older half of too many files."""
    files = list(folder.glob("*.json"))
    if len(files) > _MOST:
        for path in sorted(files, key=lambda one: one.stat().st_mtime)[: len(files) // 2]:
            path.unlink(missing_ok=True)


@functools.cache
def _sources() -> str:
    """Digest of the code that compiles."""
    texts = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return hashlib.sha256(b"".join(texts)).hexdigest()
