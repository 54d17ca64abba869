"""A formula's tree to what it compiles to, by sympy: exact derivatives, and functions of numpy."""

from __future__ import annotations

import ast
import linecache
import math
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from typing import Any

import sympy as sp
from sympy.codegen.numpy_nodes import logaddexp

from gsq.analysis.errors import AnalysisError
from gsq.analysis.laws.compiled import Compiled, Term
from gsq.analysis.laws.syntax import OPERATORS, number_of


def compiled(
    text: str, tree: ast.expr, names: Sequence[str], columns: Sequence[str | None], centred: Collection[str] | None
) -> Compiled:
    """Compile the ``tree`` of the formula ``text`` over its parameters, ``names``, and "#0", "#1", ... for its data.

    ``columns``: for each datum, the column of which it tells one level, or None. ``centred``: the amplitudes that may
    be centred, None for all. Raises AnalysisError where the formula divides by zero or a parameter cancels out.
    """
    theta = [sp.Symbol(name, real=True) for name in names]
    every = [sp.Symbol(f"datum{i}", real=True) for i in range(len(columns))]
    symbol_of = {**dict(zip(names, theta, strict=True)), **{f"#{i}": one for i, one in enumerate(every)}}
    expression = sp.sympify(_built(tree, symbol_of, text))
    if expression.has(sp.zoo, sp.nan, sp.oo, -sp.oo):
        raise AnalysisError(f"formula {text!r} divides by zero")
    lost = [name for name, symbol in zip(names, theta, strict=True) if not expression.has(symbol)]
    if lost:
        raise AnalysisError(f"formula {text!r}: {lost[0]!r} cancels out; leave it out")
    kept = [i for i, symbol in enumerate(every) if expression.has(symbol)]
    symbols = [every[i] for i in kept]
    rivals: dict[str, list[sp.Symbol]] = {}
    for i in kept:
        column = columns[i]
        if column is not None:
            rivals.setdefault(column, []).append(every[i])
    indicators = list(rivals.values())
    rival = {one: others for others in indicators for one in others}
    amplitudes = _linear(expression, theta)
    constants = tuple(i for i in amplitudes if expression.diff(theta[i]) in {1, *rival})
    reference = [sp.Symbol(f"centre{i}", real=True) for i in range(len(symbols))]
    scale: list[Any] = [sp.Integer(1)] * len(theta)
    internal = expression.subs({theta[i]: 0 for i in amplitudes})
    for i in amplitudes:
        term = expression.diff(theta[i])
        if centred is None or names[i] in centred:
            term, scale[i] = _centred(_at_level(term, rival), set(theta), symbols, reference)
        internal += theta[i] * term
    rest = internal.subs({theta[i]: 0 for i in amplitudes})
    place = {
        **{one: ("parameter", i) for i, one in enumerate(theta)},
        **{one: ("datum", i) for i, one in enumerate(symbols)},
    }
    return Compiled(
        data=tuple(kept),
        amplitudes=amplitudes,
        exponents=tuple(i for i, t in enumerate(theta) if any(a.exp.has(t) for a in expression.atoms(sp.exp))),
        constants=constants,
        levels=tuple((i, symbols.index(one)) for i in constants if (one := expression.diff(theta[i])) in rival),
        kinked=bool(expression.has(sp.Min, sp.Max, sp.Abs)),
        terms=tuple(_term(one, place) for one in _one_level(expression, indicators)),
        both=_text((theta, symbols, reference), [internal, *(internal.diff(t) for t in theta)]),
        basis=_text((theta, symbols, reference), [*(internal.diff(theta[i]) for i in amplitudes), rest]),
        scale=_text((theta, reference), scale),
    )


def _text(arguments: Any, expressions: list[Any]) -> str:
    """Text of a numpy function ``_lambdifygenerated`` of ``arguments``."""
    function = sp.lambdify(arguments, expressions, modules=["numpy"], cse=True)
    return "".join(linecache.getlines(function.__code__.co_filename))


def _term(node: Any, place: Mapping[Any, tuple[str, int]]) -> Term:
    if node in place:
        kind, index = place[node]
        return Term(kind, index=index)
    if not node.free_symbols:
        return Term("number" if node.is_Number else "constant", value=float(node) if node.is_real else 1.0)
    kind = node.func.__name__
    args = node.args
    if kind == "exp" and args[0].is_Add:
        args = args[0].as_ordered_terms()
    return Term(kind, tuple(_term(one, place) for one in args))


def _one_level(expression: sp.Expr, indicators: Sequence[Sequence[sp.Symbol]]) -> list[sp.Expr]:
    count = max(map(len, indicators), default=1)
    return [
        expression.subs({one: int(j == i % len(rivals)) for rivals in indicators for j, one in enumerate(rivals)})
        for i in range(count)
    ]


def _built(node: ast.expr, symbol_of: Mapping[str, sp.Symbol], text: str) -> Any:
    def number(one: ast.expr) -> Any:
        value = number_of(one, text)
        return sp.Integer(int(value)) if value == int(value) and abs(value) < 1e6 else sp.Float(value)

    def build(one: ast.expr) -> Any:
        if not _has_names(one):
            return number(one)
        if isinstance(one, ast.Name):
            return symbol_of[one.id]
        if isinstance(one, ast.UnaryOp):
            inner = build(one.operand)
            return -inner if isinstance(one.op, ast.USub) else inner
        if isinstance(one, ast.BinOp):
            if isinstance(one.op, ast.Pow) and not _has_names(one.left):
                return sp.exp(build(one.right) * sp.log(number(one.left)))
            return OPERATORS[type(one.op)](build(one.left), build(one.right))
        assert isinstance(one, ast.Call) and isinstance(one.func, ast.Name)
        return _call(one.func.id, [build(argument) for argument in one.args])

    return build(node)


def _has_names(node: ast.expr) -> bool:
    functions = {one.func for one in ast.walk(node) if isinstance(one, ast.Call)}
    return any(isinstance(one, ast.Name) and one not in functions for one in ast.walk(node))


def _call(name: str, arguments: list[sp.Expr]) -> sp.Expr:
    """A function of formulas over expressions."""
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


def _centred(
    term: sp.Expr, theta: set[sp.Symbol], symbols: list[sp.Symbol], centre: list[sp.Symbol]
) -> tuple[sp.Expr, sp.Expr]:
    """``term`` over what it is at the ``centre``, and that: of its factors those that are powers or exp(-k x).

    Their exponents are linear in the data, so that they differ between rows by what the data differ. The others, such
    as peaks exp(-(x - x0)^2), may be 0 wherever they are looked at.
    """
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
