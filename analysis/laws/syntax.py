"""The names, numbers and functions that a formula may hold."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from gsq.analysis.errors import AnalysisError
from gsq.analysis.tables.columns import quoted

if TYPE_CHECKING:
    pass


SEVERAL = ("min", "max", "logaddexp")
"""Functions of two arguments or more."""
_GREEK = (
    "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lam|lambda_|mu|nu|xi|omicron|pi|rho|sigma|tau|upsilon|phi|"
    "chi|psi|omega"
)
PARAMETER = re.compile(rf"(?:[A-Za-z]|{_GREEK})_?\d*")
QUOTED = re.compile(r"`([^`]+)`")
_INDEXED = re.compile(r"(\w+)\[(.+)\]")
OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
NUMPY: dict[str, Callable[..., Any]] = {
    "log": np.log,
    "ln": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "exp": np.exp,
    "sqrt": np.sqrt,
    "min": np.minimum,
    "max": np.maximum,
    "abs": np.abs,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
    "arctan": np.arctan,
    "softplus": lambda x: np.logaddexp(0, x),
    "logaddexp": np.logaddexp,
}
FUNCTIONS = tuple(NUMPY)


def column_of(node: ast.expr) -> str:
    """The column that a name in a tree means."""
    text = node.id if isinstance(node, ast.Name) else ast.unparse(node)
    return text[1:-1] if text[0] == "`" else text


def index_of(name: str) -> tuple[str, str] | None:
    """Letter and index of an indexed name, ("A", "quantizer") of "A[quantizer]"; None of any other name."""
    found = _INDEXED.fullmatch(name)
    return (found[1], found[2].strip("`")) if found else None


def to_quote(text: str, columns: Collection[str]) -> str:
    """A hint where ``text`` holds the name of a column that needs backticks and has none."""
    bare = QUOTED.sub(" ", text)
    missing = [name for name in map(str, columns) if quoted(name) != name and re.search(whole(name), bare)]
    return f". Put backticks around a name such as `{max(missing, key=len)}`" if missing else ""


def whole(name: str) -> str:
    return rf"(?<!\w){re.escape(name)}(?!\w)"


def number_of(node: ast.expr, text: str) -> float:
    """The value of a tree without names."""
    try:
        with np.errstate(all="ignore"):
            value = float(numeric(node)({}))
    except (ArithmeticError, TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise AnalysisError(f"formula {text!r}: {ast.unparse(node)} is not a finite number")
    return value


def names_of(tree: ast.expr, text: str) -> list[str]:
    """The names of ``tree`` in order of appearance. Raises AnalysisError for what is not allowed in a formula."""
    found: dict[str, None] = {}

    def visit(node: ast.expr) -> None:
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            visit(node.left)
            visit(node.right)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
            visit(node.operand)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            name = node.func.id
            if name not in FUNCTIONS:
                raise AnalysisError(
                    f"formula {text!r}: function {name!r} is not allowed; functions: {', '.join(FUNCTIONS)}"
                    + (f". For a product write {name} * (...)" if PARAMETER.fullmatch(name) else "")
                )
            if len(node.args) < 2 if name in SEVERAL else len(node.args) != 1:
                wanted = "two arguments or more" if name in SEVERAL else "one argument"
                raise AnalysisError(f"formula {text!r}: {name} takes {wanted}, got {len(node.args)}")
            for argument in node.args:
                visit(argument)
        elif isinstance(node, ast.Name | ast.Attribute):
            dotted = ast.unparse(node)
            if isinstance(node, ast.Name) and dotted[0] == "`":
                found[column_of(node)] = None
                return
            if not re.fullmatch(r"[\w.]+", dotted):
                raise AnalysisError(f"formula {text!r}: {dotted!r} is not allowed; write names, numbers and functions")
            found[dotted] = None
        elif isinstance(node, ast.Subscript):
            if not (isinstance(node.value, ast.Name) and isinstance(node.slice, ast.Name | ast.Attribute)):
                raise AnalysisError(
                    f"formula {text!r}: {ast.unparse(node)!r} is not allowed; a parameter with a value for each level "
                    "of a column is written A[quantizer]"
                )
            found[ast.unparse(node)] = None
        elif not (isinstance(node, ast.Constant) and type(node.value) in (int, float)):
            raise AnalysisError(
                f"formula {text!r}: {ast.unparse(node)!r} is not allowed; write names, numbers, + - * / **, brackets "
                "and "
                f"{', '.join(FUNCTIONS)}"
            )

    visit(tree)
    return list(found)


def numeric(node: ast.expr) -> Callable[[Mapping[str, Any]], Any]:
    """Evaluates a tree of numbers and columns with numpy."""

    def evaluate(one: ast.expr, columns: Mapping[str, Any]) -> Any:
        if isinstance(one, ast.Constant):
            return float(one.value)  # type: ignore[arg-type]
        if isinstance(one, ast.BinOp):
            return OPERATORS[type(one.op)](evaluate(one.left, columns), evaluate(one.right, columns))
        if isinstance(one, ast.UnaryOp):
            inner = evaluate(one.operand, columns)
            return -inner if isinstance(one.op, ast.USub) else inner
        if isinstance(one, ast.Call):
            assert isinstance(one.func, ast.Name)
            arguments = [evaluate(argument, columns) for argument in one.args]
            if one.func.id in SEVERAL:
                return reduce(NUMPY[one.func.id], arguments)
            return NUMPY[one.func.id](*arguments)
        return columns[column_of(one)]

    return lambda columns: evaluate(node, columns)
