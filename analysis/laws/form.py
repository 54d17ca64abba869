"""A formula as functions of arrays: values, exact derivatives, centring."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from gsq.analysis.errors import AnalysisError
from gsq.analysis.tables.columns import Array

if TYPE_CHECKING:
    import sympy as sp

from gsq.analysis.laws.formula import Formula, read_formula
from gsq.analysis.laws.syntax import OPERATORS, index_of, names_of, number_of, numeric


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
    """

    def __init__(
        self,
        formula: Formula,
        centred: Collection[str] | None = None,
        levels: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        import sympy as sp

        expression, self.data, symbols = _symbolic(formula, levels or {})
        names = formula.expanded(levels or {})
        theta = [sp.Symbol(name, real=True) for name in names]
        columns: dict[str, list[sp.Symbol]] = {}
        for datum, symbol in zip(self.data, symbols, strict=True):
            if datum.level is not None:
                columns.setdefault(datum.level[0], []).append(symbol)
        self._indicators = tuple(columns.values())
        rival = {one: others for others in self._indicators for one in others}
        self.expression, self.symbols, self.theta = expression, tuple(symbols), tuple(theta)
        """The formula over a symbol for each datum and each parameter."""
        self._powers = np.array([datum.power for datum in self.data], dtype=bool)
        self.amplitudes = _linear(expression, theta)
        """Indices of the parameters in which the formula is linear, jointly."""
        self.exponents = tuple(i for i, t in enumerate(theta) if any(a.exp.has(t) for a in expression.atoms(sp.exp)))
        """Indices of the parameters inside an exponential, which powers of columns are."""
        self.kinked = expression.has(sp.Min, sp.Max, sp.Abs)
        """Whether it holds min, max or abs, where its slopes jump."""
        self.constants = tuple(i for i in self.amplitudes if expression.diff(theta[i]) in {1, *rival})
        """Indices of additive constants: floors."""
        self.levels = {i: symbols.index(one) for i in self.constants if (one := expression.diff(theta[i])) in rival}
        """The datum that is 1 at the rows of a constant's level, for constants that have a value for each level."""
        reference = [sp.Symbol(f"centre{i}", real=True) for i in range(len(symbols))]
        scale: list[Any] = [sp.Integer(1)] * len(theta)
        internal = expression.subs({theta[i]: 0 for i in self.amplitudes})
        for i in self.amplitudes:
            term = expression.diff(theta[i])
            if centred is None or names[i] in centred:
                term, scale[i] = _centred(_at_level(term, rival), set(theta), symbols, reference)
            internal += theta[i] * term
        arguments = (theta, symbols, reference)
        both = [internal, *(internal.diff(t) for t in theta)]
        basis = [internal.diff(theta[i]) for i in self.amplitudes]
        rest = internal.subs({theta[i]: 0 for i in self.amplitudes})
        self._both = sp.lambdify(arguments, both, modules=_MODULES, cse=True)
        self._basis = sp.lambdify(arguments, [*basis, rest], modules=_MODULES, cse=True)
        self._scale = sp.lambdify((theta, reference), scale, modules=_MODULES, cse=True)
        self.count = len(theta)

    def table(self, columns: Mapping[str, Array]) -> Array:
        """Columns, each (n,), to the data (q, n); infinite or NaN where a part cannot be computed."""
        n = len(next(iter(columns.values()))) if columns else 1
        with np.errstate(all="ignore"):
            rows = [np.broadcast_to(np.asarray(datum.compute(columns), dtype=np.float64), (n,)) for datum in self.data]
        return np.stack(rows) if rows else np.zeros((0, n))

    def one_level(self) -> list[sp.Expr]:
        """The formula as it is at one level of each column of levels, often enough that each level has its turn."""
        count = max(map(len, self._indicators), default=1)
        return [
            self.expression.subs(
                {one: int(j == i % len(rivals)) for rivals in self._indicators for j, one in enumerate(rivals)}
            )
            for i in range(count)
        ]

    def centre(self, data: Array) -> Array:
        """Where the amplitudes are measured, (q,): at the mean of a logarithm, and at the least of other data (q, n).

        The term of a rate, exp(-k x), is never larger than there, so that no rate makes it overflow or vanish.
        """
        return np.where(self._powers, data.mean(axis=1), data.min(axis=1)) if data.size else data.sum(axis=1)

    def both(self, theta: Array, data: Array, centre: Array) -> tuple[Array, Array]:
        """Internal theta (m, k), data (q, n), or (q, m, n) where each theta has its own, and their centre (q,) to
        values (m, n) and derivatives (k, m, n)."""
        shape = (len(theta), data.shape[-1])
        with np.errstate(all="ignore"):
            value, *slopes = self._both(theta.T[:, :, None], data, centre)
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


_MODULES = ["numpy"]


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


def _centred(
    term: sp.Expr, theta: set[sp.Symbol], symbols: list[sp.Symbol], centre: list[sp.Symbol]
) -> tuple[sp.Expr, sp.Expr]:
    """``term`` over what it is at the ``centre``, and that: of its factors those that are powers or exp(-k x).

    Their exponents are linear in the data, so that they differ between rows by what the data differ. The others, such
    as peaks exp(-(x - x0)^2), may be 0 wherever they are looked at.
    """
    import sympy as sp

    scale: sp.Expr = sp.Integer(1)
    for factor in sp.Mul.make_args(term):
        if factor.func is not sp.exp or not factor.free_symbols & theta:
            continue
        exponent = sp.expand(factor.args[0])
        slopes = [exponent.diff(symbol) for symbol in symbols]
        if any(slope != 0 for slope in slopes) and not any(slope.free_symbols & set(symbols) for slope in slopes):
            still = exponent.subs(dict.fromkeys(symbols, 0))
            # Take one exponential of differences, since that of the data alone might overflow.
            moved = sum(
                slope * (one - at) for slope, one, at in zip(slopes, symbols, centre, strict=True) if slope != 0
            )
            term = term / factor * sp.exp(still) * sp.exp(moved)
            scale *= sp.exp(sum(slope * at for slope, at in zip(slopes, centre, strict=True)))
    return term, scale


def _at_level(term: sp.Expr, rival: Mapping[sp.Symbol, Sequence[sp.Symbol]]) -> sp.Expr:
    """``term``, which only the rows of one level have, with that level's parameters alone: the same values there."""
    import sympy as sp

    for one in sp.Mul.make_args(term):
        if one in rival:
            term = one * (term / one).subs({other: int(other == one) for other in rival[one]})
    return term


def _linear(expression: sp.Expr, theta: list[sp.Symbol]) -> tuple[int, ...]:
    """Indices of a set of parameters in which ``expression`` is linear, jointly."""
    found: list[int] = []
    for i, t in enumerate(theta):
        slope = expression.diff(t)
        if not any(slope.has(theta[j]) for j in [*found, i]):
            found.append(i)
    return tuple(found)


def _symbolic(
    formula: Formula, levels: Mapping[str, Sequence[str]]
) -> tuple[sp.Expr, tuple[Datum, ...], list[sp.Symbol]]:
    """The formula over its parameters and over one symbol for each datum."""
    import sympy as sp

    data: dict[str, tuple[Datum, sp.Symbol]] = {}
    parameters = {name: sp.Symbol(name, real=True) for name in formula.expanded(levels)}
    free = {*parameters, *formula.parameters}

    def datum(node: ast.expr, logarithm: bool = False) -> sp.Symbol:
        text = ast.unparse(node)
        key = f"log({text})" if logarithm else text
        if key not in data:
            names = tuple(names_of(node, formula.text))
            compute = numeric(node)
            taken = (lambda columns: np.log(compute(columns))) if logarithm else compute
            data[key] = (
                Datum(text, names, taken, logarithm or _has_logarithm(node), logarithm),
                sp.Symbol(f"datum{len(data)}", real=True),
            )
        return data[key][1]

    def at_levels(base: str, column: str) -> sp.Expr:
        """A parameter that has a value for each level: their sum, each times whether a row is of its level."""
        parts = []
        for level in levels[column]:
            key = f"[{column}] {level}"
            if key not in data:
                compute = partial(_is_level, column=column, level=level)
                data[key] = (
                    Datum(f"{column} = {level}", (), compute, False, False, (column, level)),
                    sp.Symbol(f"datum{len(data)}", real=True),
                )
            parts.append(parameters[f"{base}[{level}]"] * data[key][1])
        return sp.Add(*parts)

    def number(node: ast.expr) -> sp.Expr:
        value = number_of(node, formula.text)
        return sp.Integer(int(value)) if value == int(value) and abs(value) < 1e6 else sp.Float(value)

    def build(node: ast.expr) -> sp.Expr:
        names = names_of(node, formula.text)
        if not names:
            return number(node)
        if not any(name in free for name in names):
            minus = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
            return -datum(node.operand) if minus else datum(node)  # type: ignore[attr-defined]
        if isinstance(node, ast.Subscript):
            return at_levels(*(index_of(names[0]) or ("", "")))
        if isinstance(node, ast.Name):
            return parameters[node.id]
        if isinstance(node, ast.UnaryOp):
            inner = build(node.operand)
            return -inner if isinstance(node.op, ast.USub) else inner
        if isinstance(node, ast.BinOp):
            if isinstance(node.op, ast.Pow) and not any(name in free for name in names_of(node.left, formula.text)):
                # exp is several times as fast as a power, and its derivatives share it.
                if names_of(node.left, formula.text):
                    return sp.exp(build(node.right) * datum(node.left, logarithm=True))
                return sp.exp(build(node.right) * sp.log(number(node.left)))
            return OPERATORS[type(node.op)](build(node.left), build(node.right))
        assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        arguments = [build(argument) for argument in node.args]
        return _call(node.func.id, arguments)

    expression = sp.sympify(build(formula.tree))
    if expression.has(sp.zoo, sp.nan, sp.oo, -sp.oo):
        raise AnalysisError(f"formula {formula.text!r} divides by zero")
    lost = [name for name, symbol in parameters.items() if not expression.has(symbol)]
    if lost:
        raise AnalysisError(f"formula {formula.text!r}: {lost[0]!r} cancels out; leave it out")
    kept = [(one, symbol) for one, symbol in data.values() if expression.has(symbol)]
    return expression, tuple(one for one, _ in kept), [symbol for _, symbol in kept]


def _is_level(columns: Mapping[str, Any], column: str, level: str) -> Any:
    return columns[f"[{column}]"] == level


def _call(name: str, arguments: list[sp.Expr]) -> sp.Expr:
    """A function of formulas over expressions."""
    import sympy as sp
    from sympy.codegen.numpy_nodes import logaddexp

    one = arguments[0]
    match name:
        case "min":
            return sp.Min(*arguments)
        case "max":
            return sp.Max(*arguments)
        case "log" | "ln":
            return sp.log(one)
        case "log2" | "log10":
            return sp.log(one) / math.log(int(name[3:]))
        case "softplus":
            return logaddexp(0, one)
        case "logaddexp":
            return reduce(logaddexp, arguments)
        case "abs":
            return sp.Abs(one)
        case "arctan":
            return sp.atan(one)
        case _:
            return getattr(sp, name)(one)


def _has_logarithm(node: ast.expr) -> bool:
    return any(
        isinstance(one, ast.Call) and isinstance(one.func, ast.Name) and one.func.id.startswith(("log", "ln"))
        for one in ast.walk(node)
    )
