"""The grammar of expressions in sweep and cluster files, and constraints written in it."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gsq.config.axes import DERIVED
from gsq.config.overrides import SHORT_NAMES
from gsq.errors import UserError, nearest

if TYPE_CHECKING:
    from simpleeval import EvalWithCompoundTypes

HELPERS = {
    "log2": "{log2: [a, b]} is 2^a ... 2^b (step: n for every n-th power)",
    "range": "{range: [a, b]} is a ... b with both ends (step: n)",
    "logspace": "{logspace: [a, b, n]} is n values from a to b at equal ratios",
}
# Names that a constraint may use beside config keys: derived axes, and the counts of gsq.config.flops.
COST_NAMES = ("parameters", "train_flops", "flops_per_step", "images")
DERIVED_NAMES = (*(axis.name for axis in DERIVED.values() if axis.stored), *COST_NAMES)
_ALLOWED_NODES = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.BinOp, ast.Add, ast.Sub,
    ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt,
    ast.GtE, ast.In, ast.NotIn, ast.Name, ast.Load, ast.Constant, ast.List, ast.Tuple, ast.IfExp,
)  # fmt: skip


class _DottedNames(ast.NodeTransformer):
    """``train.seed`` as one name, where it is one of ``names``."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        dotted = f"{node.value.id}.{node.attr}" if isinstance(node.value, ast.Name) else ""
        return ast.copy_location(ast.Name(dotted, ast.Load()), node) if dotted in self.names else node


def check_expression(text: str, where: str, names: Sequence[str], functions: Sequence[str] = ()) -> ast.expr:
    """The tree of ``text``, in which ^ is a power. Raises UserError unless it consists of these names (dotted
    ones, too) and functions, numbers and operators."""
    written, text = text, text.strip().replace("^", "**")
    try:
        tree = _DottedNames(names).visit(ast.parse(text, mode="eval"))
    except SyntaxError as error:
        raise UserError(f"{where}: '{written}': {error.msg} (column {error.offset})") from None
    except (ValueError, RecursionError, MemoryError):
        raise UserError(f"{where}: {written[:60]!r}: too deep, or not text that Python can read") from None
    called: set[ast.AST] = set()
    for node in ast.walk(tree):
        # An operator has no position in the source, so it goes by its class name (BitXor).
        source = ast.get_source_segment(text, node) or type(node).__name__
        if isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name) or node.func.id not in functions or node.keywords:
                hint = f"; functions are {', '.join(functions)}" if functions else ""
                raise UserError(f"{where}: '{written}': '{source}' is a call, which is not allowed{hint}")
            called.add(node.func)
        elif not isinstance(node, _ALLOWED_NODES):
            raise UserError(
                f"{where}: '{written}': '{source}' is not allowed; "
                "use names, numbers, arithmetic, comparisons, in, and, or, not"
            )
        if isinstance(node, ast.Name) and node.id not in names and node not in called:
            listed = ", ".join(name for name in names if "." not in name)
            raise UserError(
                f"{where}: '{written}': unknown name '{node.id}'{nearest(node.id, names)}; names are {listed}"
            )
    assert isinstance(tree, ast.Expression)
    return tree.body


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "min": min, "max": max, "ceil": math.ceil, "floor": math.floor, "round": round,
    "sqrt": math.sqrt, "log2": math.log2, "log": math.log, "exp": math.exp,
}  # fmt: skip


def _power(base: Any, exponent: Any) -> Any:
    from simpleeval import safe_power

    if isinstance(base, int) and isinstance(exponent, int):
        return safe_power(base, exponent)
    return math.pow(base, exponent)


@dataclass(frozen=True)
class Expression:
    """An expression, checked when it is made and evaluated by simpleeval, never by eval."""

    text: str
    where: str
    """What errors name."""
    names: Sequence[str] = field(repr=False)
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        _ = self.tree

    @cached_property
    def tree(self) -> ast.expr:
        return check_expression(self.text, self.where, self.names, tuple(self.functions))

    @cached_property
    def used(self) -> frozenset[str]:
        """The names in it, without functions."""
        return frozenset(node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)) - {*self.functions}

    @cached_property
    def _evaluator(self) -> EvalWithCompoundTypes:
        from simpleeval import DEFAULT_OPERATORS, EvalWithCompoundTypes

        # This class knows lists, which "in" needs; check_expression has refused attributes and comprehensions.
        return EvalWithCompoundTypes(operators={**DEFAULT_OPERATORS, ast.Pow: _power}, functions=dict(self.functions))

    def value(self, value_of: Callable[[str], Any]) -> Any:
        """Evaluate with ``value_of``, which maps names to values. Raises UserError if that is not possible."""
        from simpleeval import InvalidExpression

        evaluator = self._evaluator
        # The value of a name may take other expressions, and through them this one for other values.
        before, evaluator.names = evaluator.names, lambda node: value_of(node.id)
        try:
            return evaluator.eval(self.text, self.tree)
        except (InvalidExpression, ArithmeticError, TypeError, ValueError, RecursionError, MemoryError) as error:
            raise UserError(f"{self.where}: '{self.text}': {str(error) or type(error).__name__}") from None
        finally:
            evaluator.names = before


@dataclass(frozen=True)
class Constraint:
    """An expression of ``where``."""

    text: str
    names: tuple[str, ...] = (*SHORT_NAMES, *DERIVED_NAMES)
    """What it may use."""

    def __post_init__(self) -> None:
        _ = self.expression

    @cached_property
    def expression(self) -> Expression:
        return Expression(self.text, "where", self.names)

    def holds(self, value_of: Callable[[str], Any]) -> bool:
        """Evaluate with ``value_of``, which maps names to values. Raises UserError if that is not possible."""
        return bool(self.expression.value(value_of))
