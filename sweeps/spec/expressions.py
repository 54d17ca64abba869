"""The grammar of expressions in sweep and cluster files, and constraints written in it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
DERIVED_NAMES = (*(axis.name for axis in DERIVED.values() if axis.stored), "parameters", "train_flops", "images")
_ALLOWED_NODES = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.BinOp, ast.Add, ast.Sub,
    ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt,
    ast.GtE, ast.In, ast.NotIn, ast.Name, ast.Load, ast.Constant, ast.List, ast.Tuple, ast.IfExp,
)  # fmt: skip


def check_expression(text: str, where: str, names: Sequence[str], functions: Sequence[str] = ()) -> None:
    """Raise UserError unless ``text`` consists of these names and functions, numbers and operators."""
    text = text.strip()
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        raise UserError(f"{where}: '{text}': {error.msg} (column {error.offset})") from None
    except (ValueError, RecursionError, MemoryError):
        raise UserError(f"{where}: {text[:60]!r}: too deep, or not text that Python can read") from None
    called: set[ast.AST] = set()
    for node in ast.walk(tree):
        # An operator has no position in the source, so it goes by its class name (BitXor).
        source = ast.get_source_segment(text, node) or type(node).__name__
        if isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name) or node.func.id not in functions or node.keywords:
                hint = f"; functions are {', '.join(functions)}" if functions else ""
                raise UserError(f"{where}: '{text}': '{source}' is a call, which is not allowed{hint}")
            called.add(node.func)
        elif not isinstance(node, _ALLOWED_NODES):
            raise UserError(
                f"{where}: '{text}': '{source}' is not allowed; "
                "use names, numbers, arithmetic, comparisons, in, and, or, not"
            )
        if isinstance(node, ast.Name) and node.id not in names and node not in called:
            raise UserError(
                f"{where}: '{text}': unknown name '{node.id}'{nearest(node.id, names)}; names are {', '.join(names)}"
            )


@dataclass(frozen=True)
class Constraint:
    """An expression of ``where``, checked when it is read and evaluated by simpleeval, never by eval."""

    text: str
    names: tuple[str, ...] = (*SHORT_NAMES, *DERIVED_NAMES)
    """What it may use."""

    def __post_init__(self) -> None:
        check_expression(self.text, "where", self.names)

    @cached_property
    def _tree(self) -> ast.stmt:
        return ast.parse(self.text.strip()).body[0]

    @cached_property
    def _evaluator(self) -> EvalWithCompoundTypes:
        from simpleeval import EvalWithCompoundTypes

        # This class knows lists, which "in" needs; check_expression has refused calls, attributes and comprehensions.
        return EvalWithCompoundTypes(functions={})

    def holds(self, value_of: Callable[[str], Any]) -> bool:
        """Evaluate with ``value_of``, which maps names to values. Raises UserError if that is not possible."""
        from simpleeval import InvalidExpression

        self._evaluator.names = lambda node: value_of(node.id)
        try:
            return bool(self._evaluator.eval(self.text, self._tree))
        except (InvalidExpression, ArithmeticError, TypeError, ValueError, RecursionError, MemoryError) as error:
            raise UserError(f"where: '{self.text}': {str(error) or type(error).__name__}") from None
