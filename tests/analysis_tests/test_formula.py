from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsq.analysis import AnalysisError
from gsq.analysis.laws.form import Form
from gsq.analysis.laws.formula import read_expression, read_formula

COLUMNS = ("codebook_size", "latent_dim", "N", "D", "model.width")


@pytest.mark.parametrize(
    ("text", "columns", "parameters"),
    [
        ("B / log2(codebook_size)**alpha + C * latent_dim**beta", ("codebook_size", "latent_dim"), "B alpha C beta"),
        ("rfid = E + A / N^a + B / D^b", ("N", "D"), "E A a B b"),
        ("c / (log2(codebook_size) * (1 + kappa / latent_dim))", ("codebook_size", "latent_dim"), "c kappa"),
        ("-c2 * model.width + x_1", ("model.width",), "c2 x_1"),
    ],
)
def test_names_are_columns_or_parameters(text: str, columns: tuple[str, ...], parameters: str) -> None:
    found = read_formula(text, COLUMNS)
    assert (found.columns, found.parameters) == (columns, tuple(parameters.split()))
    assert found.target == ("rfid" if text.startswith("rfid") else None)


def test_a_declared_parameter_may_have_any_name_even_that_of_a_column() -> None:
    found = read_formula("floor + N * latent_dim", COLUMNS, ("floor", "N"))
    assert (found.columns, found.parameters) == (("latent_dim",), ("floor", "N"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A / codebok_size^a", "unknown name 'codebok_size'; did you mean codebook_size"),
        ("A * __import__('os').system('x')", "is not allowed"),
        ("A * latent_dim.__class__", r"unknown name 'latent_dim.__class__'"),
        ("A * erf(latent_dim)", "function 'erf' is not allowed; functions: log, ln, log2"),
        ("A (latent_dim)", r"function 'A' is not allowed.*For a product write A \* "),
        ("A * log(latent_dim, 2)", "log takes one argument, got 2"),
        ("A * min(latent_dim)", "min takes two arguments or more, got 1"),
        ("A * latent_dim +", "cannot be read"),
        ("A * latent_dim if A else 1", "is not allowed"),
        ("[A for A in latent_dim]", "is not allowed"),
        ("A * 'x'", "is not allowed"),
        ("A * True", "is not allowed"),
        ("a = b = latent_dim", "must have one '='"),
        ("latent_dim ** 2", "no parameter to fit"),
        ("A - A + latent_dim * B", "'A' cancels out"),
        ("A * latent_dim ** (9**9**9**9)", "is not a finite number"),
        ("A * latent_dim / (1 - 1)", "divides by zero"),
        ("A" + "+A" * 600, "at most 1000"),
        ("(" * 300 + "A" + ")" * 300, "cannot be read|nested too deeply"),
    ],
)
def test_what_is_no_formula_is_one_clear_error(text: str, message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        Form(read_formula(text, COLUMNS))


@given(st.text(alphabet="AaEN D+-*/^()0129.,_=\"'[]{}\n\t\\lambdaog2minlatent_d", max_size=40))
@settings(max_examples=200, deadline=None)
def test_no_text_leads_to_another_error(text: str) -> None:
    with contextlib.suppress(AnalysisError):
        Form(read_formula(text, COLUMNS))


FORMULAS = (
    "B / log2(codebook_size)**alpha + C * latent_dim**beta",
    "E + A / N^a + B / D^b",
    "c / (log2(codebook_size) * (1 + kappa / latent_dim))",
    "c * exp(-N / tau) + sqrt(abs(s) * D) - log(1 + k * N)",
    "c * max(log2(N), s * D)**1.5 + d * 2**(-e * N / 50)",
)


@pytest.mark.parametrize("text", FORMULAS)
def test_values_are_pythons_and_derivatives_are_exact(text: str) -> None:
    rng = np.random.default_rng(0)
    columns = {name: rng.uniform(2, 60, 7) for name in COLUMNS}
    formula = read_formula(text, COLUMNS)
    natural = rng.uniform(0.2, 1.5, (3, len(formula.parameters)))
    functions = {name: getattr(np, name) for name in ("log", "log2", "exp", "sqrt", "abs")}
    functions |= {"min": np.minimum, "max": np.maximum}
    for form in (Form(formula), Form(formula, centred=())):
        data = form.table(columns)
        centre = data.mean(axis=1)
        theta = form.internal(natural, centre)
        np.testing.assert_allclose(form.natural(theta, centre), natural)
        value, slope = form.both(theta, data, centre)
        assert value.shape == (3, 7) and slope.shape == (len(formula.parameters), 3, 7)
        for i in range(3):
            names = {**columns, **dict(zip(formula.parameters, natural[i], strict=True)), **functions}
            names["model"] = type("model", (), {"width": columns["model.width"]})
            expected = eval(formula.text, {"__builtins__": {}}, names)  # the test's own text
            np.testing.assert_allclose(value[i], expected)
        for j in range(theta.shape[1]):
            step = np.zeros_like(theta)
            step[:, j] = 1e-6 * np.maximum(1, np.abs(theta[:, j]))
            up, down = form.both(theta + step, data, centre)[0], form.both(theta - step, data, centre)[0]
            numeric = (up - down) / (2 * step[:, j : j + 1])
            np.testing.assert_allclose(slope[j], numeric, rtol=2e-5, atol=1e-7 * np.abs(value).max())


def test_amplitudes_are_found_and_centred_where_their_term_bends() -> None:
    form = Form(read_formula(FORMULAS[1], COLUMNS))
    names = read_formula(FORMULAS[1], COLUMNS).parameters
    assert [names[i] for i in form.amplitudes] == ["E", "A", "B"]
    assert [names[i] for i in form.exponents] == ["a", "b"] and [names[i] for i in form.constants] == ["E"]
    data = form.table({"N": np.array([1e6, 1e9]), "D": np.array([1e6, 1e9])})
    theta = form.internal(np.array([1.0, 400.0, 0.34, 400.0, 0.28]), data.mean(axis=1))
    assert theta[0] == 1 and theta[1] == pytest.approx(400 / 10 ** (7.5 * 0.34))


@pytest.mark.parametrize(
    ("text", "columns", "parameters", "target"),
    [
        ("`val/loss` = E + A / N^a", ("N",), "E A a", "val/loss"),
        ("A * `tokens (B)`^-a", ("tokens (B)",), "A a", None),
        ("`a = b` = A / `N`^a + `x^2` * c", ("N", "x^2"), "A a c", "a = b"),
        ("A * `lambda` + `val a` * b", ("lambda", "val a"), "A b", None),
    ],
)
def test_any_column_can_be_named_in_backticks(
    text: str, columns: tuple[str, ...], parameters: str, target: str | None
) -> None:
    known = ("N", "val/loss", "tokens (B)", "x^2", "a = b", "lambda", "val a")
    found = read_formula(text, known)
    assert (found.columns, found.parameters, found.target) == (columns, tuple(parameters.split()), target)
    form = Form(found)
    values = {name: np.array([2.0, 3.0]) for name in known}
    assert np.isfinite(form.table(values)).all() and len(form.data) >= 1


def test_a_column_named_like_an_expression_is_another_datum() -> None:
    form = Form(read_formula("A * `N / D` + B * (N / D)", (*COLUMNS, "N / D")))
    data = form.table({"N": np.array([6.0]), "D": np.array([2.0]), "N / D": np.array([50.0])})
    assert sorted(data[:, 0]) == [3, 50]


@pytest.mark.parametrize(
    ("text", "columns", "words"),
    [
        (
            "loss = E + A / N^a + B / D^b",
            ("N", "loss", "D tokens"),
            ("'B / D^b'", "D: did you mean `D tokens`?", "N, loss"),
        ),
        ("loss = E + A / N^a + B / D^b", ("N", "loss", "d"), ("D: did you mean d?",)),
        ("loss = a + b * D", ("N", "loss"), ("reads no column", "D is meant", "N, loss")),
        ("loss = A / N^a * exp(-k * t)", ("N", "loss", "time"), ("k and t", "t: did you mean time")),
        ("A / `d`^a", ("N", "depth_d"), ("no column `d`", "did you mean depth_d")),
        ("val/loss = A / N^a", ("N", "val/loss"), ("`val/loss`",)),
        ("A * val/loss + B", ("N", "val/loss"), ("unknown name 'val'", "`val/loss`")),
        ("A * learning rate", ("learning rate",), ("`learning rate`",)),
        ("A / N_tokens^a", ("n-tokens", "loss"), ("unknown name 'N_tokens'", "did you mean `n-tokens`")),
        ("A * `N + B", ("N",), ("cannot be read",)),
    ],
)
def test_a_name_that_must_be_a_column_is_no_parameter(
    text: str, columns: tuple[str, ...], words: tuple[str, ...]
) -> None:
    with pytest.raises(AnalysisError) as found:
        read_formula(text, columns)
    assert all(word in str(found.value) for word in words), found.value


@pytest.mark.parametrize(
    "text",
    [
        "E + A / N^a",
        "exp(e) + exp(a) / N^alpha",
        "E * (1 + k / N^a)",
        "a + b * N + a * b",
        "N^(a + b) * D^a",
        "L / (1 + exp(-k * (N - x0)))",
        "c * r^N + s^2",
    ],
)
def test_parameters_that_data_can_tell_apart_are_parameters(text: str) -> None:
    assert read_formula(text, ("N", "D")).columns[0] == "N"


def test_a_parameter_with_bounds_is_taken_as_meant() -> None:
    assert read_formula("E + A / N^a + B / D^b", ("N",), ("D", "b")).parameters == ("E", "A", "a", "B", "D", "b")


def test_a_name_that_python_reads_otherwise_needs_backticks() -> None:
    with pytest.raises(AnalysisError, match=r"did you mean `\u00b5m`\?"):
        read_formula("A * \u00b5m^a", ["\u00b5m"])
    assert read_formula("A * `\u00b5m`^a", ["\u00b5m"]).columns == ("\u00b5m",)


@pytest.mark.parametrize("text", ["A[a, b] / 2", "A[a b] / 2"])
def test_a_level_without_backticks_is_told_to_have_them(text: str) -> None:
    with pytest.raises(AnalysisError, match=r"Put backticks around a name such as `A\[a"):
        read_expression(text, ["A[a, b]", "A[a b]"], "the derived quantity")


def test_names_in_backticks_are_no_other_column() -> None:
    columns = ("val/loss", "quoted_0", "quoted__0")
    read = read_formula("A * `val/loss`^b + c * quoted_0 + d * quoted__0", columns)
    assert read.columns == columns and read.parameters == ("A", "b", "c", "d")
