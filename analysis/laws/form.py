"""A formula as functions of arrays: values, exact derivatives, centring."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from gsq.analysis.laws.compiled import Compiled, kept
from gsq.analysis.laws.formula import Formula, read_formula
from gsq.analysis.laws.syntax import index_of, names_of, numeric
from gsq.analysis.tables.columns import Array


@dataclass(frozen=True)
class Datum:
    """A part of a formula that depends on columns alone."""

    text: str
    columns: tuple[str, ...]
    compute: Callable[[Mapping[str, Array]], Any]
    """Columns, each (n,), to (n,)."""
    logarithm: bool
    """Whether the formula takes its logarithm, which must then exist."""
    power: bool
    """Whether it is the logarithm of what the formula raises to a power."""
    level: tuple[str, str] | None = None
    """Column and level, where it is 1 at the rows of that level and 0 at the others."""


class Form:
    """A formula compiled for ``centred`` amplitudes: values and derivatives for many parameter vectors at once.

    The *internal* parameters differ from the natural ones, those of the formula, in the centred amplitudes alone.
    Raises AnalysisError where the formula divides by zero or a parameter cancels out.
    """

    def __init__(
        self,
        formula: Formula,
        centred: Collection[str] | None = None,
        levels: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        levels = levels or {}
        tree, data = _over_data(formula, levels)
        names = formula.expanded(levels)

        def make() -> Compiled:
            from gsq.analysis.laws.symbolic import compiled  # imports sympy

            return compiled(formula.text, tree, names, columns, centred)

        columns = [datum.level[0] if datum.level else None for datum in data]
        found = kept([ast.dump(tree), names, columns, None if centred is None else sorted(centred)], make)
        self.data = tuple(data[i] for i in found.data)
        self.terms = found.terms
        """The formula, at one level of each column of levels: see :class:`gsq.analysis.laws.compiled.Compiled`."""
        self.amplitudes = found.amplitudes
        """Indices of the parameters in which the formula is linear, jointly."""
        self.exponents = found.exponents
        """Indices of the parameters inside an exponential, which powers of columns are."""
        self.kinked = found.kinked
        """Whether it holds min, max or abs, where its slopes jump."""
        self.constants = found.constants
        """Indices of additive constants: floors."""
        self.levels = dict(found.levels)
        """The datum that is 1 at the rows of a constant's level, for constants that have a value for each level."""
        self._powers = np.array([datum.power for datum in self.data], dtype=bool)
        self._both, self._basis, self._scale = found.functions
        # The slope of a minimum of three reduces a list of comparisons, which must have one shape.
        self._reduces = ".reduce(" in found.both
        self.count = len(names)

    def table(self, columns: Mapping[str, Array]) -> Array:
        """Columns, each (n,), to the data (q, n); infinite or NaN where a part cannot be computed."""
        n = len(next(iter(columns.values()))) if columns else 1
        with np.errstate(all="ignore"):
            rows = [np.broadcast_to(np.asarray(datum.compute(columns), dtype=np.float64), (n,)) for datum in self.data]
        return np.stack(rows) if rows else np.zeros((0, n))

    def centre(self, data: Array) -> Array:
        """Where the amplitudes are measured, (q,): at the mean of a logarithm, and at the least of other data (q, n).

        The term of a rate, exp(-k x), is never larger than there, so that no rate makes it overflow or vanish.
        """
        return np.where(self._powers, data.mean(axis=1), data.min(axis=1)) if data.size else data.sum(axis=1)

    def both(self, theta: Array, data: Array, centre: Array) -> tuple[Array, Array]:
        """Internal theta (m, k), data (q, n), or (q, m, n) where each theta has its own, and their centre (q,) to
        values (m, n) and derivatives (k, m, n)."""
        shape = (len(theta), data.shape[-1])
        parameters = theta.T[:, :, None]
        if self._reduces:
            parameters = np.broadcast_to(parameters, (self.count, *shape))
            data = np.broadcast_to(data if data.ndim == 3 else data[:, None], (len(data), *shape))
        with np.errstate(all="ignore"):
            value, *slopes = self._both(parameters, data, centre)
        out = np.empty((self.count, *shape))
        for i, slope in enumerate(slopes):
            out[i] = slope
        return np.broadcast_to(np.asarray(value, dtype=np.float64), shape), out

    def basis(self, theta: Array, data: Array, centre: Array) -> tuple[Array, Array]:
        """What the amplitudes multiply (amplitudes, m, n), and the formula without them (m, n)."""
        shape = (len(theta), data.shape[1])
        with np.errstate(all="ignore"):
            *parts, rest = self._basis(theta.T[:, :, None], data, centre)
        out = np.empty((len(parts), *shape))
        for i, part in enumerate(parts):
            out[i] = part
        return out, np.broadcast_to(np.asarray(rest, dtype=np.float64), shape)

    def natural(self, theta: Array, centre: Array) -> Array:
        """Internal (..., k) to natural parameters (..., k)."""
        with np.errstate(all="ignore"):
            return np.stack([theta[..., i] / scale for i, scale in enumerate(self._scales(theta, centre))], axis=-1)

    def internal(self, natural: Array, centre: Array) -> Array:
        """Natural (..., k) to internal parameters (..., k)."""
        with np.errstate(all="ignore"):
            return np.stack([natural[..., i] * scale for i, scale in enumerate(self._scales(natural, centre))], axis=-1)

    def _scales(self, theta: Array, centre: Array) -> list[Any]:
        return list(self._scale(np.moveaxis(theta, -1, 0), centre))


@lru_cache(maxsize=256)
def compile_form(
    text: str,
    columns: tuple[str, ...],
    parameters: tuple[str, ...],
    centred: tuple[str, ...] | None,
    levels: tuple[tuple[str, tuple[str, ...]], ...] = (),
) -> Form:
    """A cached :class:`Form`; ``centred`` names the amplitudes that may be centred, None for all. ``levels``: columns
    of levels, each with the levels that it has."""
    formula = read_formula(text, (*columns, *(name for name, _ in levels)), parameters)
    return Form(formula, centred, dict(levels))


def _over_data(formula: Formula, levels: Mapping[str, Sequence[str]]) -> tuple[ast.expr, tuple[Datum, ...]]:
    """The tree of a formula over its parameters and over the names of data, "#0" and so on: what depends on columns
    alone, each part as large as it can be. A parameter that has a value for each level is their sum, each times whether
    a row is of its level."""
    data: dict[str, Datum] = {}
    free = {*formula.expanded(levels), *formula.parameters}

    def named(key: str, datum: Datum) -> ast.expr:
        data.setdefault(key, datum)
        return ast.Name(f"#{list(data).index(key)}")

    def part(node: ast.expr, logarithm: bool = False) -> ast.expr:
        text, compute = ast.unparse(node), numeric(node)
        taken = (lambda columns: np.log(compute(columns))) if logarithm else compute
        names = tuple(names_of(node, formula.text))
        datum = Datum(text, names, taken, logarithm or _has_logarithm(node), logarithm)
        return named(f"log({text})" if logarithm else text, datum)

    def at_levels(base: str, column: str) -> ast.expr:
        total: ast.expr | None = None
        for level in levels[column]:
            is_level = partial(_is_level, column=column, level=level)
            datum = Datum(f"{column} = {level}", (), is_level, False, False, (column, level))
            one = ast.BinOp(ast.Name(f"{base}[{level}]"), ast.Mult(), named(f"[{column}] {level}", datum))
            total = one if total is None else ast.BinOp(total, ast.Add(), one)
        return total or ast.Constant(0)

    def depends(node: ast.expr) -> bool:
        return any(name in free for name in names_of(node, formula.text))

    def over(node: ast.expr) -> ast.expr:
        names = names_of(node, formula.text)
        if not names or (isinstance(node, ast.Name) and node.id in free):
            return node
        if not depends(node):
            minus = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
            return ast.UnaryOp(ast.USub(), part(node.operand)) if minus else part(node)  # type: ignore[attr-defined]
        if isinstance(node, ast.Subscript):
            return at_levels(*(index_of(names[0]) or ("", "")))
        if isinstance(node, ast.UnaryOp):
            return ast.UnaryOp(node.op, over(node.operand))
        if isinstance(node, ast.BinOp):
            if isinstance(node.op, ast.Pow) and names_of(node.left, formula.text) and not depends(node.left):
                # exp is several times as fast as a power, and its derivatives share it.
                exponent = ast.BinOp(over(node.right), ast.Mult(), part(node.left, logarithm=True))
                return ast.Call(ast.Name("exp"), [exponent], [])
            return ast.BinOp(over(node.left), node.op, over(node.right))
        assert isinstance(node, ast.Call)
        return ast.Call(node.func, [over(argument) for argument in node.args], [])

    return over(formula.tree), tuple(data.values())


def _is_level(columns: Mapping[str, Any], column: str, level: str) -> Any:
    return columns[f"[{column}]"] == level


def _has_logarithm(node: ast.expr) -> bool:
    return any(
        isinstance(one, ast.Call) and isinstance(one.func, ast.Name) and one.func.id.startswith(("log", "ln"))
        for one in ast.walk(node)
    )
