"""Formulas as people write them, read without eval and differentiated exactly.

``B / log2(codebook_size)**alpha + C * latent_dim**beta``: Python's grammar gives the tree, of which only numbers,
names, + - * / ** (also written ^) and a few functions are accepted, and a column of any other name in backticks
(`val/loss`); sympy differentiates; numpy evaluates many
parameter vectors at once. What depends on columns alone is computed once for a table: those are the *data* of a
formula.

Amplitudes, the parameters that enter linearly, are measured at the centre of the data where their term is a power or
an exponential of a column: B / L^alpha becomes b (L / L0)^-alpha. Without that the parameters of the paper's law are
nearly collinear. Shapes: m parameter vectors, n rows, k parameters, q data.
"""

from __future__ import annotations

import ast
import math
import operator
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.columns import DERIVED, Array, near_names, quoted
from analysis.errors import AnalysisError

if TYPE_CHECKING:
    import sympy as sp

FUNCTIONS = ("log", "ln", "log2", "log10", "exp", "sqrt", "min", "max", "abs")
_GREEK = (
    "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lam|lambda_|mu|nu|xi|omicron|pi|rho|sigma|tau|upsilon|phi|"
    "chi|psi|omega"
)
_PARAMETER = re.compile(rf"(?:[A-Za-z]|{_GREEK})_?\d*")
_QUOTED = re.compile(r"`([^`]+)`")
_LONGEST = 1000  # characters
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_NUMPY: dict[str, Callable[..., Any]] = {
    "log": np.log,
    "ln": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "exp": np.exp,
    "sqrt": np.sqrt,
    "abs": np.abs,
}


@dataclass(frozen=True)
class Formula:
    """A formula that was read: its tree, and which of its names are columns and which parameters."""

    text: str
    """As it was written, without the target."""
    target: str | None
    """The name left of "=", or None."""
    columns: tuple[str, ...]
    parameters: tuple[str, ...]
    """Both in order of appearance."""
    tree: ast.expr


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


def read_formula(text: str, columns: Collection[str] = (), parameters: Collection[str] = ()) -> Formula:
    """Read ``text``, with or without a "target =" before it.

    A name in ``parameters`` is a parameter, else one in ``columns`` is a column; any other is a parameter where it
    looks like one: a letter or the name of a Greek letter, with an index or without (E, alpha, b2, beta_1). In
    backticks stands the name of a column, whatever its letters. Raises AnalysisError for what is no formula, an unknown
    name (with the nearest columns), a function that is not allowed, or names that can only be meant as columns.
    """
    if len(text) > _LONGEST:
        raise AnalysisError(f"the formula has {len(text)} characters; at most {_LONGEST} are read")
    target, right = split_target(text)
    names_in_quotes = [found[1] for found in _QUOTED.finditer(right)]
    # Python reads names alone: those in quotes have one of their own until the tree is made.
    held = iter(range(len(names_in_quotes)))
    readable = _QUOTED.sub(lambda _: f" quoted_{next(held)}_ ", right).replace("^", "**").strip()
    right = _QUOTED.sub(lambda found: found[0].replace("^", "\0"), right).replace("^", "**").replace("\0", "^")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a literal that Python would read otherwise one day
            tree = _with_quotes(ast.parse(readable, mode="eval").body, names_in_quotes)
        names = _names(tree, right)
        _check_constants(tree, right)
    except AnalysisError:
        raise
    except SyntaxError as error:
        where = f" near {readable[max(0, error.offset - 1) :][:12]!r}" if error.offset else ""
        raise AnalysisError(
            f"formula {text!r} cannot be read{where}; write for instance B / log2(codebook_size)**alpha + C * "
            f"latent_dim**beta{_to_quote(text, columns)}"
        ) from error
    except (RecursionError, MemoryError, ValueError) as error:
        raise AnalysisError(
            f"formula {text[:40]!r}... is nested too deeply or holds a character that is not text"
        ) from error
    used, free = [], []
    for name in names:
        if name in names_in_quotes:
            if name not in columns:
                raise AnalysisError(f"formula {text!r}: the table has no column `{name}`{_near(name, columns)}")
            used.append(name)
        elif name in parameters:
            free.append(name)
        elif name in columns:
            used.append(name)
        elif _PARAMETER.fullmatch(name):
            free.append(name)
        else:
            raise AnalysisError(_unknown(name, text, columns))
    missing = [name for name in parameters if name not in free]
    if missing:
        raise AnalysisError(f"{missing[0]!r} was given bounds or a start, but is no parameter of {text!r}")
    if not free:
        raise AnalysisError(f"formula {text!r} has no parameter to fit; parameters are names such as A, alpha, b2")
    _refuse_lost_columns(tree, text, used, [name for name in free if name not in parameters], columns)
    return Formula(right, target, tuple(used), tuple(free), tree)


def split_target(text: str) -> tuple[str | None, str]:
    """Target and right side of "target = right"; None where there is no "=" outside of backticks.

    Raises AnalysisError where left of it is no name, or where there is another one.
    """
    bare = _QUOTED.sub(lambda found: "_" * len(found[0]), text)
    if "=" not in bare:
        return None, text.strip()
    at = bare.index("=")
    left, right = text[:at].strip(), text[at + 1 :].strip()
    in_quotes = _QUOTED.fullmatch(left)
    if not (in_quotes or re.fullmatch(r"[A-Za-z_][\w.]*", left)) or "=" in bare[at + 1 :]:
        hint = f"; a name with other letters needs backticks: `{left}`" if left and "=" not in bare[at + 1 :] else ""
        raise AnalysisError(
            f"formula {text!r}: left of the one '=' must stand the name of a column, such as rfid{hint}"
        )
    return in_quotes[1] if in_quotes else left, right


def with_target(text: str, target: str) -> str:
    """The formula with this column as its target, in backticks where it needs them."""
    return f"{quoted(target)} = {split_target(text)[1]}"


def with_numbers(text: str, numbers: Mapping[str, str]) -> str:
    """The formula with these texts for parameters."""
    for name, number in numbers.items():
        parts = re.split(r"(`[^`]*`)", text)
        parts[::2] = [re.sub(rf"(?<![\w.]){re.escape(name)}(?![\w.])", number, part) for part in parts[::2]]
        text = "".join(parts)
    return text


def _with_quotes(tree: ast.expr, names: Sequence[str]) -> ast.expr:
    """``tree`` with the names that stood in backticks, in them: so no expression has the same text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and (found := re.fullmatch(r"quoted_(\d+)_", node.id)):
            node.id = f"`{names[int(found[1])]}`" if int(found[1]) < len(names) else node.id
    return tree


def _column(node: ast.expr) -> str:
    """The column that a name in a tree means."""
    text = ast.unparse(node)
    return text[1:-1] if text[0] == "`" else text


def _to_quote(text: str, columns: Collection[str]) -> str:
    """A hint where ``text`` holds the name of a column that needs backticks and has none."""
    bare = _QUOTED.sub(" ", text)
    missing = [name for name in map(str, columns) if quoted(name) != name and re.search(_whole(name), bare)]
    return f". Put backticks around a name such as `{max(missing, key=len)}`" if missing else ""


def _whole(name: str) -> str:
    return rf"(?<!\w){re.escape(name)}(?!\w)"


def _near(name: str, columns: Collection[str]) -> str:
    near = near_names(name, columns)
    return f"; did you mean {' or '.join(map(quoted, near))}?" if near else ""


def _refuse_lost_columns(
    tree: ast.expr, text: str, used: Sequence[str], free: Sequence[str], columns: Collection[str]
) -> None:
    """Raise AnalysisError where two parameters or more stand in a part without a column and nowhere else.

    No data could tell them apart; most often one of them is a column that the table does not have, as D in
    E + A / N^a + B / D^b. Parameters with bounds or a start of their own are taken as meant and do not count.
    """
    names = _counts(tree)
    for part in _without_columns(tree, {*used}):
        here = _counts(part)
        alone = [name for name in free if here[name] and here[name] == names[name]]
        if len(alone) < 2:
            continue
        bases = [_column(one.left) for one in ast.walk(part) if isinstance(one, ast.BinOp) and _is_power_of_name(one)]
        likely = [name for name in alone if name in bases] or [name for name in alone if name.isupper()] or alone
        near = {name: near_names(name, columns) for name in likely}
        hints = [f"{name}: did you mean {' or '.join(map(quoted, found))}?" for name, found in near.items() if found]
        where = "reads no column" if part is tree else f"has no column in {ast.unparse(part).replace(' ** ', '^')!r}"
        known = [name for name in map(str, columns) if name not in DERIVED] or list(map(str, columns))
        shown = ", ".join(map(quoted, known[:8])) + (", ..." if len(known) > 8 else "")
        raise AnalysisError(
            f"formula {text!r} {where}, so "
            f"{', '.join(alone[:-1])} and {alone[-1]} cannot be told apart. If {' or '.join(likely)} is meant as a "
            f"column, the table has none of that name: {shown}" + (f". {' '.join(hints)}" if hints else "")
        )


def _is_power_of_name(node: ast.BinOp) -> bool:
    return isinstance(node.op, ast.Pow) and isinstance(node.left, ast.Name)


def _counts(tree: ast.expr) -> Counter[str]:
    return Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))


def _without_columns(tree: ast.expr, columns: Collection[str]) -> list[ast.expr]:
    """The largest parts of ``tree`` that hold no column."""
    inside = [node for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute)]
    if not any(_column(node) in columns for node in inside):
        return [tree]
    parts = [one for one in ast.iter_child_nodes(tree) if isinstance(one, ast.expr)]
    return [part for one in parts for part in _without_columns(one, columns)]


def _check_constants(tree: ast.expr, text: str) -> None:
    """Raise AnalysisError where a part without names is not a finite number."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.expr):
            _check_constants(node, text)
    if isinstance(tree, ast.BinOp | ast.UnaryOp | ast.Call) and not _names(tree, text):
        _number(tree, text)


def _number(node: ast.expr, text: str) -> float:
    """The value of a tree without names."""
    try:
        with np.errstate(all="ignore"):
            value = float(_numeric(node)({}))
    except (ArithmeticError, TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise AnalysisError(f"formula {text!r}: {ast.unparse(node)} is not a finite number")
    return value


def _unknown(name: str, text: str, columns: Collection[str]) -> str:
    near = near_names(name, columns)
    known = f"did you mean {' or '.join(map(quoted, near))}? " if near else ""
    return (
        f"formula {text!r}: unknown name {name!r}; {known}It is no column of the table, and a parameter is a letter "
        "or a "
        "Greek letter's name, with an index or without (A, alpha, b2), or a name with bounds or a start of its own"
        f"{_to_quote(text, columns)}"
    )


def _names(tree: ast.expr, text: str) -> list[str]:
    """The names of ``tree`` in order of appearance. Raises AnalysisError for what is not allowed in a formula."""
    found: dict[str, None] = {}

    def visit(node: ast.expr) -> None:
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            visit(node.left)
            visit(node.right)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
            visit(node.operand)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            name = node.func.id
            if name not in FUNCTIONS:
                raise AnalysisError(
                    f"formula {text!r}: function {name!r} is not allowed; functions: {', '.join(FUNCTIONS)}"
                    + (f". For a product write {name} * (...)" if _PARAMETER.fullmatch(name) else "")
                )
            if (name in ("min", "max") and len(node.args) < 2) or (name not in ("min", "max") and len(node.args) != 1):
                wanted = "two arguments or more" if name in ("min", "max") else "one argument"
                raise AnalysisError(f"formula {text!r}: {name} takes {wanted}, got {len(node.args)}")
            for argument in node.args:
                visit(argument)
        elif isinstance(node, ast.Name | ast.Attribute):
            dotted = ast.unparse(node)
            if isinstance(node, ast.Name) and dotted[0] == "`":
                found[_column(node)] = None
                return
            if not re.fullmatch(r"[\w.]+", dotted):
                raise AnalysisError(f"formula {text!r}: {dotted!r} is not allowed; write names, numbers and functions")
            found[dotted] = None
        elif not (isinstance(node, ast.Constant) and type(node.value) in (int, float)):
            raise AnalysisError(
                f"formula {text!r}: {ast.unparse(node)!r} is not allowed; write names, numbers, + - * / **, brackets "
                "and "
                f"{', '.join(FUNCTIONS)}"
            )

    visit(tree)
    return list(found)


class Form:
    """A formula compiled for ``centred`` amplitudes: values and derivatives for many parameter vectors at once.

    The *internal* parameters differ from the natural ones, those of the formula, in the centred amplitudes alone.
    """

    def __init__(self, formula: Formula, centred: Collection[str] | None = None) -> None:
        import sympy as sp

        expression, self.data, symbols = _symbolic(formula)
        theta = [sp.Symbol(name, real=True) for name in formula.parameters]
        self.expression, self.symbols, self.theta = expression, tuple(symbols), tuple(theta)
        """The formula over a symbol for each datum and each parameter."""
        self._powers = np.array([datum.power for datum in self.data], dtype=bool)
        self.amplitudes = _linear(expression, theta)
        """Indices of the parameters in which the formula is linear, jointly."""
        self.exponents = tuple(i for i, t in enumerate(theta) if any(a.exp.has(t) for a in expression.atoms(sp.exp)))
        """Indices of the parameters inside an exponential, which powers of columns are."""
        self.constants = tuple(i for i in self.amplitudes if expression.diff(theta[i]) == 1)
        """Indices of additive constants: floors."""
        reference = [sp.Symbol(f"centre{i}", real=True) for i in range(len(symbols))]
        scale: list[Any] = [sp.Integer(1)] * len(theta)
        internal = expression.subs({theta[i]: 0 for i in self.amplitudes})
        for i in self.amplitudes:
            term = expression.diff(theta[i])
            if centred is None or formula.parameters[i] in centred:
                term, scale[i] = _centred(term, set(theta), symbols, reference)
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

    def centre(self, data: Array) -> Array:
        """Where the amplitudes are measured, (q,): at the mean of a logarithm, and at the least of other data (q, n).

        The term of a rate, exp(-k x), is never larger than there, so that no rate makes it overflow or vanish.
        """
        return np.where(self._powers, data.mean(axis=1), data.min(axis=1)) if data.size else data.sum(axis=1)

    def both(self, theta: Array, data: Array, centre: Array) -> tuple[Array, Array]:
        """Internal theta (m, k), data (q, n) and their centre (q,) to values (m, n) and derivatives (k, m, n)."""
        shape = (len(theta), data.shape[1])
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
    text: str, columns: tuple[str, ...], parameters: tuple[str, ...], centred: tuple[str, ...] | None
) -> Form:
    """A cached :class:`Form`; ``centred`` names the amplitudes that may be centred, None for all."""
    formula = read_formula(text, columns, parameters)
    return Form(formula, centred)


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
            # One exponential of differences: of the data alone it might overflow.
            moved = sum(
                slope * (one - at) for slope, one, at in zip(slopes, symbols, centre, strict=True) if slope != 0
            )
            term = term / factor * sp.exp(still) * sp.exp(moved)
            scale *= sp.exp(sum(slope * at for slope, at in zip(slopes, centre, strict=True)))
    return term, scale


def _linear(expression: sp.Expr, theta: list[sp.Symbol]) -> tuple[int, ...]:
    """Indices of a set of parameters in which ``expression`` is linear, jointly."""
    found: list[int] = []
    for i, t in enumerate(theta):
        slope = expression.diff(t)
        if not any(slope.has(theta[j]) for j in [*found, i]):
            found.append(i)
    return tuple(found)


def _symbolic(formula: Formula) -> tuple[sp.Expr, tuple[Datum, ...], list[sp.Symbol]]:
    """The formula over its parameters and over one symbol for each datum."""
    import sympy as sp

    data: dict[str, tuple[Datum, sp.Symbol]] = {}
    parameters = {name: sp.Symbol(name, real=True) for name in formula.parameters}

    def datum(node: ast.expr, logarithm: bool = False) -> sp.Symbol:
        text = ast.unparse(node)
        key = f"log({text})" if logarithm else text
        if key not in data:
            names = tuple(_names(node, formula.text))
            compute = _numeric(node)
            taken = (lambda columns: np.log(compute(columns))) if logarithm else compute
            data[key] = (
                Datum(text, names, taken, logarithm or _has_logarithm(node), logarithm),
                sp.Symbol(f"datum{len(data)}", real=True),
            )
        return data[key][1]

    def number(node: ast.expr) -> sp.Expr:
        value = _number(node, formula.text)
        return sp.Integer(int(value)) if value == int(value) and abs(value) < 1e6 else sp.Float(value)

    def build(node: ast.expr) -> sp.Expr:
        names = _names(node, formula.text)
        if not names:
            return number(node)
        if not any(name in parameters for name in names):
            return datum(node)
        if isinstance(node, ast.Name):
            return parameters[node.id]
        if isinstance(node, ast.UnaryOp):
            inner = build(node.operand)
            return -inner if isinstance(node.op, ast.USub) else inner
        if isinstance(node, ast.BinOp):
            if isinstance(node.op, ast.Pow) and not any(name in parameters for name in _names(node.left, formula.text)):
                # exp is several times as fast as a power, and its derivatives share it.
                if _names(node.left, formula.text):
                    return sp.exp(build(node.right) * datum(node.left, logarithm=True))
                return sp.exp(build(node.right) * sp.log(number(node.left)))
            return _OPERATORS[type(node.op)](build(node.left), build(node.right))
        assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        arguments = [build(argument) for argument in node.args]
        match node.func.id:
            case "min":
                return sp.Min(*arguments)
            case "max":
                return sp.Max(*arguments)
            case "log2":
                return sp.log(arguments[0]) / math.log(2)
            case "log10":
                return sp.log(arguments[0]) / math.log(10)
            case "log" | "ln":
                return sp.log(arguments[0])
            case "exp":
                return sp.exp(arguments[0])
            case "sqrt":
                return sp.sqrt(arguments[0])
            case _:
                return sp.Abs(arguments[0])

    expression = sp.sympify(build(formula.tree))
    if expression.has(sp.zoo, sp.nan, sp.oo, -sp.oo):
        raise AnalysisError(f"formula {formula.text!r} divides by zero")
    lost = [name for name, symbol in parameters.items() if not expression.has(symbol)]
    if lost:
        raise AnalysisError(f"formula {formula.text!r}: {lost[0]!r} cancels out; leave it away")
    kept = [(one, symbol) for one, symbol in data.values() if expression.has(symbol)]
    return expression, tuple(one for one, _ in kept), [symbol for _, symbol in kept]


def _numeric(node: ast.expr) -> Callable[[Mapping[str, Any]], Any]:
    """Evaluates a tree of numbers and columns with numpy."""

    def evaluate(one: ast.expr, columns: Mapping[str, Any]) -> Any:
        if isinstance(one, ast.Constant):
            return float(one.value)  # type: ignore[arg-type]
        if isinstance(one, ast.BinOp):
            return _OPERATORS[type(one.op)](evaluate(one.left, columns), evaluate(one.right, columns))
        if isinstance(one, ast.UnaryOp):
            inner = evaluate(one.operand, columns)
            return -inner if isinstance(one.op, ast.USub) else inner
        if isinstance(one, ast.Call):
            assert isinstance(one.func, ast.Name)
            arguments = [evaluate(argument, columns) for argument in one.args]
            if one.func.id in ("min", "max"):
                choose = np.minimum if one.func.id == "min" else np.maximum
                result = arguments[0]
                for other in arguments[1:]:
                    result = choose(result, other)
                return result
            return _NUMPY[one.func.id](*arguments)
        return columns[_column(one)]

    return lambda columns: evaluate(node, columns)


def _has_logarithm(node: ast.expr) -> bool:
    return any(
        isinstance(one, ast.Call) and isinstance(one.func, ast.Name) and one.func.id.startswith(("log", "ln"))
        for one in ast.walk(node)
    )
