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
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gsq.analysis.errors import AnalysisError
from gsq.analysis.tables.columns import near_names, quoted
from gsq.analysis.tables.outputs import OUT

if TYPE_CHECKING:
    pass

from gsq.analysis.laws.syntax import PARAMETER, QUOTED, column_of, index_of, names_of, number_of, to_quote
from gsq.config.axes import DERIVED

_LONGEST = 1000  # characters
_OUTPUTS = "; [out] needs several targets, which it stands for (--target loss --target rfid)"


@dataclass(frozen=True)
class Formula:
    """A formula that was read: its tree, and which of its names are columns and which parameters."""

    text: str
    """The right side as the user wrote it."""
    target: str | None
    """The name left of "=", or None."""
    columns: tuple[str, ...]
    parameters: tuple[str, ...]
    """Both in order of appearance; a parameter with a value for each level of a column as A[quantizer]."""
    tree: ast.expr
    factors: tuple[str, ...] = ()
    """Columns of levels, by which parameters are indexed."""

    def expanded(self, levels: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        """The parameters, each indexed one once for each of the ``levels`` of its column: A[gsq], A[simvq]."""
        found: list[str] = []
        for name in self.parameters:
            index = index_of(name)
            found += [name] if index is None else [f"{index[0]}[{level}]" for level in levels.get(index[1], ())]
        return tuple(found)


def read_formula(text: str, columns: Collection[str] = (), parameters: Collection[str] = ()) -> Formula:
    """Read ``text``, with or without a "target =" before it.

    A name in ``parameters`` is a parameter, else one in ``columns`` is a column; any other is a parameter where it
    looks like one: a letter or the name of a Greek letter, with an index or without (E, alpha, b2, beta_1). In
    backticks stands the name of a column, whatever its letters. A[quantizer] is a parameter with a value for each level
    of the column quantizer, whose cells may be text; ``parameters`` has it as A, or as A[gsq] for one level.

    Raises AnalysisError for what is no formula, an unknown name (with the nearest columns), a function that is not
    allowed, or names that can only be meant as columns.
    """
    target, right = split_target(text)
    right, tree, names, names_in_quotes = _parsed(text, right, columns)
    used, free = [], []
    declared = {base for name in parameters for base in (name, *(index_of(name) or ())[:1])}
    factors = _factors(names, text, columns, declared)
    for name in names:
        if name in factors:
            free.append(name)
        elif name in names_in_quotes:
            if name not in columns:
                raise AnalysisError(f"formula {text!r}: the table has no column `{name}`{_near(name, columns)}")
            used.append(name)
        elif name in parameters:
            free.append(name)
        elif name in columns:
            used.append(name)
        elif PARAMETER.fullmatch(name):
            free.append(name)
        else:
            raise AnalysisError(_unknown(name, text, columns))
    bases = {(index_of(name) or (name,))[0] for name in free}
    missing = [name for name in parameters if name not in free and (index_of(name) or (name,))[0] not in bases]
    if missing:
        raise AnalysisError(f"{missing[0]!r} was given bounds or a start, but is not a parameter of {text!r}")
    if not free:
        raise AnalysisError(f"formula {text!r} has no parameter to fit; parameters are names such as A, alpha, b2")
    inside = list(dict.fromkeys(factors.values()))
    _refuse_lost_columns(tree, text, [*used, *inside], [name for name in free if name not in parameters], columns)
    return Formula(right, target, tuple(used), tuple(free), tree, tuple(inside))


def read_expression(text: str, names: Collection[str], what: str) -> ast.expr:
    """The tree of an expression over ``names`` alone, for :func:`gsq.analysis.laws.syntax.numeric`; ``what`` says in
    errors what it is, such as "the cost".

    Raises AnalysisError for what is no expression, an unknown name (with those that there are), or none at all.
    """
    if split_target(text)[0] is not None:
        raise AnalysisError(f"{what} {text!r} is an expression without '='; write its right side alone")
    try:
        _, tree, found, _ = _parsed(text, text, names)
    except AnalysisError as error:
        if isinstance(error.__cause__, SyntaxError):
            raise AnalysisError(
                f"{what} {text!r} cannot be read; write * for products and ^ for powers{to_quote(text, names)}"
            ) from None
        raise AnalysisError(f"{what}: {error}{to_quote(text, names)}") from None
    unknown = [name for name in found if name not in names]
    if unknown or not found:
        wrong = f"has no {unknown[0]!r}{_near(unknown[0], names)}" if unknown else "has no name in it"
        raise AnalysisError(f"{what} {text!r} {wrong}; it can use {', '.join(map(quoted, names))}")
    return tree


def _parsed(text: str, right: str, columns: Collection[str]) -> tuple[str, ast.expr, list[str], list[str]]:
    """The right side with ** for ^, its tree, its names, and those of them that stand in backticks."""
    if len(text) > _LONGEST:
        raise AnalysisError(f"the formula has {len(text)} characters; at most {_LONGEST} are read")
    names_in_quotes = [found[1] for found in QUOTED.finditer(right)]
    # Python reads names alone: those in quotes have one of their own until the tree is made.
    stand_in = "quoted_"
    while stand_in in right:
        stand_in += "_"
    held = iter(range(len(names_in_quotes)))
    readable = QUOTED.sub(lambda _: f" {stand_in}{next(held)} ", right).replace("^", "**").strip()
    right = QUOTED.sub(lambda found: found[0].replace("^", "\0"), right).replace("^", "**").replace("\0", "^")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a literal that Python would read otherwise one day
            tree = _with_quotes(ast.parse(readable, mode="eval").body, stand_in, names_in_quotes)
        names = names_of(tree, right)
        _check_constants(tree, right)
    except AnalysisError:
        raise
    except SyntaxError as error:
        where = f" near {readable[max(0, error.offset - 1) :][:12]!r}" if error.offset else ""
        raise AnalysisError(
            f"formula {text!r} cannot be read{where}; write for instance B / log2(codebook_size)**alpha + C * "
            f"latent_dim**beta{to_quote(text, columns)}"
        ) from error
    except (RecursionError, MemoryError, ValueError) as error:
        raise AnalysisError(
            f"formula {text[:40]!r}... is nested too deeply or holds a character that is not text"
        ) from error
    return right, tree, names, names_in_quotes


def _factors(names: Sequence[str], text: str, columns: Collection[str], declared: Collection[str]) -> dict[str, str]:
    """The indexed ones of ``names``, each with the column of its levels. Raises AnalysisError where the index is no
    column, what is indexed is no parameter, or a parameter has two indices, or an index here and none there."""
    found = {name: index for name in names if (index := index_of(name))}
    for name, (base, column) in found.items():
        if column not in columns:
            raise AnalysisError(
                f"formula {text!r}: the index of {name} names a column, whose values are the levels, but the table "
                f"has no column {column!r}{_near(column, columns)}{_OUTPUTS if column == OUT else ''}"
            )
        if base not in declared and (base in columns or not PARAMETER.fullmatch(base)):
            raise AnalysisError(
                f"formula {text!r}: {base!r} in {name} is not a parameter; only a parameter, such as A, alpha or b2, "
                "has a value for each level of a column"
            )
        others = [one for one in names if one != name and (index_of(one) or (one,))[0] == base]
        if others:
            raise AnalysisError(
                f"formula {text!r} has both {name} and {others[0]}; give one of them another letter, because a "
                "parameter has one index or none"
            )
    return {name: column for name, (_, column) in found.items()}


def split_target(text: str) -> tuple[str | None, str]:
    """Target and right side of "target = right"; None where there is no "=" outside of backticks.

    Raises AnalysisError where left of it is no name, or where there is another one.
    """
    bare = QUOTED.sub(lambda found: "_" * len(found[0]), text)
    if "=" not in bare:
        return None, text.strip()
    at = bare.index("=")
    left, right = text[:at].strip(), text[at + 1 :].strip()
    in_quotes = QUOTED.fullmatch(left)
    if not (in_quotes or re.fullmatch(r"[A-Za-z_][\w.]*", left)) or "=" in bare[at + 1 :]:
        hint = f"; a name with other letters needs backticks: `{left}`" if left and "=" not in bare[at + 1 :] else ""
        raise AnalysisError(
            f"formula {text!r} must have one '=', and the name of a column on its left, such as rfid{hint}"
        )
    return in_quotes[1] if in_quotes else left, right


def with_target(text: str, target: str) -> str:
    """The formula with this column as its target, in backticks where it needs them."""
    return f"{quoted(target)} = {split_target(text)[1]}"


def with_numbers(text: str, numbers: Mapping[str, str]) -> str:
    """The formula with these texts for parameters."""
    for name, number in numbers.items():
        if index := index_of(name):
            column = rf"`?{re.escape(index[1])}`?"
            pattern = rf"(?<![\w.]){re.escape(index[0])}\s*\[\s*{column}\s*\]"
            text = re.sub(pattern, number.replace("\\", r"\\"), text)
            continue
        parts = re.split(r"(`[^`]*`)", text)
        parts[::2] = [re.sub(rf"(?<![\w.]){re.escape(name)}(?![\w.])", number, part) for part in parts[::2]]
        text = "".join(parts)
    return text


def _with_quotes(tree: ast.expr, stand_in: str, names: Sequence[str]) -> ast.expr:
    """``tree`` with the names that stood in backticks, in them: so no expression has the same text."""
    given = {f"{stand_in}{i}": f"`{name}`" for i, name in enumerate(names)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            node.id = given.get(node.id, node.id)
    return tree


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
        bases = [column_of(one.left) for one in ast.walk(part) if isinstance(one, ast.BinOp) and _is_power_of_name(one)]
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
    if not any(column_of(node) in columns for node in inside):
        return [tree]
    parts = [one for one in ast.iter_child_nodes(tree) if isinstance(one, ast.expr)]
    return [part for one in parts for part in _without_columns(one, columns)]


def _check_constants(tree: ast.expr, text: str) -> None:
    """Raise AnalysisError where a part without names is not a finite number."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.expr):
            _check_constants(node, text)
    if isinstance(tree, ast.BinOp | ast.UnaryOp | ast.Call) and not names_of(tree, text):
        number_of(tree, text)


def _unknown(name: str, text: str, columns: Collection[str]) -> str:
    near = near_names(name, columns)
    known = f"did you mean {' or '.join(map(quoted, near))}? " if near else ""
    return (
        f"formula {text!r}: unknown name {name!r}; {known}It is not a column of the table, and a parameter is a letter "
        "or a "
        "Greek letter's name, with an index or without (A, alpha, b2), or a name with bounds or a start of its own"
        f"{to_quote(text, columns)}"
    )
