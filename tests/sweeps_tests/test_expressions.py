"""Expressions of a sweep file run no code, and text of any kind is answered with one error."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import pytest
import simpleeval  # noqa: F401  (imported here, so that evaluating an expression imports nothing)
from hypothesis import given, settings
from hypothesis import strategies as st

from gsq.config.overrides import SHORT_NAMES
from gsq.errors import UserError
from gsq.sweeps.spec.expressions import DERIVED_NAMES, Constraint

# Whatever a constraint says, it computes and does nothing else

VALUES: dict[str, Any] = {name: i + 1 for i, name in enumerate((*SHORT_NAMES, *DERIVED_NAMES))}


VALUES["quantizer"] = "gsq"


VALUES["bits_per_pixel"] = 0.625


watched: list[str] | None = None


def _audit(event: str, _: object) -> None:
    # Reading the text is a compile; running code would be an exec, and code that does harm opens or imports.
    if watched is not None and event.split(".")[0] in ("exec", "open", "import", "os", "subprocess", "shutil"):
        watched.append(event)


def check_is_harmless(text: str) -> None:
    global watched
    if not getattr(_audit, "installed", False):
        sys.addaudithook(_audit)
        _audit.installed = True  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        watched = []
        try:
            result = Constraint(text).holds(lambda name: VALUES[name])
        except UserError as error:
            result = str(error)
        finally:
            events, watched = watched, None
    assert isinstance(result, bool | str)
    assert events == []


NAMES = st.sampled_from([*SHORT_NAMES, "bits_per_pixel", "parameters"])


ATOMS = st.one_of(
    NAMES,
    st.integers(0, 99).map(str),
    st.sampled_from(["0", "1.5", "1e308", "-1", "2j", "'gsq'", "b'x'", "None", "True", "...", "''", "()", "[]", "{}"]),
    st.sampled_from(["nothing", "__import__", "print", "__builtins__", "self", "groups.__class__", "().__class__"]),
    st.sampled_from(["open('pwned', 'w')", "__import__('os').system('true')", "exec('x = 1')", "eval('1')", "dir()"]),
)


def _grow(part: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    binary = [*"+-*/%@&|^<>", "//", "**", "<<", "==", "!=", "<=", ">=", "in", "not in", "is", "and", "or", ":="]
    return st.one_of(
        st.tuples(part, st.sampled_from(binary), part).map(lambda p: f"({p[0]} {p[1]} {p[2]})"),
        st.tuples(st.sampled_from(["-", "+", "~", "not ", "await ", "*", "yield "]), part).map("".join),
        st.tuples(part, part, part).map(lambda p: f"({p[0]} if {p[1]} else {p[2]})"),
        st.tuples(part, part).map(lambda p: f"{p[0]}({p[1]})"),
        st.tuples(part, part).map(lambda p: f"{p[0]}[{p[1]}]"),
        st.tuples(part, NAMES).map(lambda p: f"({p[0]}).{p[1]}"),
        st.tuples(part, part).map(lambda p: f"[{p[0]}, {p[1]}]"),
        st.tuples(part, part).map(lambda p: f"({p[0]}, {p[1]})"),
        st.tuples(part, part).map(lambda p: f"{{{p[0]}: {p[1]}}}"),
        part.map(lambda p: f"[{p} for x in [1]]"),
        part.map(lambda p: f"(lambda: {p})()"),
        part.map(lambda p: "f'{" + p.replace("'", '"') + "}'"),
    )


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.recursive(ATOMS, _grow, max_leaves=8))
def test_no_expression_runs_code(text: str) -> None:
    check_is_harmless(text)


TOKENS = st.sampled_from(
    [*"()[]{}.,:;=<>+-*/%!@~^&|'\"\\ \n\t#", "**", "not", "in", "groups", "lambda", "for", "1", "if"]
)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.one_of(st.text(), st.text(st.characters(codec=None)), st.lists(TOKENS, max_size=12).map("".join)))
def test_no_text_raises_anything_but_a_user_error(text: str) -> None:
    check_is_harmless(text)


@pytest.mark.parametrize(
    "text",
    ["groups\0", "'\ud800' == 'a'", "-" * 5000 + "1", "(" * 300 + "1" + ")" * 300, "1" + "+1" * 5000, "not " * 900],
    ids=["null", "surrogate", "minuses", "parentheses", "long sum", "nots"],
)  # fmt: skip
def test_text_that_no_parser_takes_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="where"):
        Constraint(text).holds(lambda name: VALUES[name])


@pytest.mark.parametrize(
    "text",
    ["9**9**9", "'a' * 99999999", "[1] * 99999999", "quantizer * 99999999", "f(0x" + "f" * 5000 + ")", "1" * 5000],
    ids=["power", "text", "list", "text by name", "call of a large number", "large number"],
)
def test_text_that_would_eat_the_machine_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="where"):
        Constraint(text).holds(lambda name: VALUES[name])


def test_the_harm_that_is_looked_for_would_be_seen() -> None:
    global watched
    check_is_harmless("groups == 1")
    watched = []
    try:
        eval("open('seen', 'w').close()")
    finally:
        events, watched = watched, None
    assert {"exec", "open"} <= set(events)
