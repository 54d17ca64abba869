from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import AnalysisError
from analysis.formula import Form, read_formula

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
        ("A * sin(latent_dim)", "function 'sin' is not allowed; functions: log, ln, log2"),
        ("A (latent_dim)", r"function 'A' is not allowed.*For a product write A \* "),
        ("A * log(latent_dim, 2)", "log takes one argument, got 2"),
        ("A * min(latent_dim)", "min takes two arguments or more, got 1"),
        ("A * latent_dim +", "cannot be read"),
        ("A * latent_dim if A else 1", "is not allowed"),
        ("[A for A in latent_dim]", "is not allowed"),
        ("A * 'x'", "is not allowed"),
        ("A * True", "is not allowed"),
        ("a = b = latent_dim", "left of the one '='"),
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
