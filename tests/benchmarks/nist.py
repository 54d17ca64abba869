"""NIST's certified nonlinear regressions (StRD): 27 problems from both published starts and from default starts.

    python tests/benchmarks/nist.py FOLDER [--output nist_cpu]

FOLDER holds the 27 files NAME.dat as NIST publishes them (Misra1a.dat ...). Each problem is fitted as
``gsq fit --residuals linear`` fits it (Nelson's, which is one in the logarithm, with log residuals), once with each
published start as the one start of every parameter (``--start b1=500 --start b2=0.0001``), and once without any start.
A problem is solved where every parameter agrees with its certified value to 6 digits: a relative error of at most 1e-6.
Writes results/OUTPUT.json and .md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import time
from dataclasses import dataclass
from itertools import chain, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gsq.analysis import fit
from gsq.analysis.errors import AnalysisError
from gsq.analysis.laws.named import Law

HERE = Path(__file__).parent
DIGITS = 6
_PEAKS = "b1*exp(-b2*x) + b3*exp(-(x - b4)^2/b5^2) + b6*exp(-(x - b7)^2/b8^2)"
_DECAYS = "b1*exp(-b2*x) + b3*exp(-b4*x) + b5*exp(-b6*x)"
_RATIO = "(b1 + b2*x + b3*x^2 + b4*x^3)/(1 + b5*x + b6*x^2 + b7*x^3)"
_BEND = "exp(-b1*x)/(b2 + b3*x)"
_WAVE = "2*3.141592653589793*x"
FORMULAS = {
    "Bennett5": "b1*(b2 + x)^(-1/b3)",
    "BoxBOD": "b1*(1 - exp(-b2*x))",
    "Chwirut1": _BEND,
    "Chwirut2": _BEND,
    "DanWood": "b1*x^b2",
    "ENSO": f"b1 + b2*cos({_WAVE}/12) + b3*sin({_WAVE}/12) + b5*cos({_WAVE}/b4) + b6*sin({_WAVE}/b4)"
    f" + b8*cos({_WAVE}/b7) + b9*sin({_WAVE}/b7)",
    "Eckerle4": "(b1/b2)*exp(-0.5*((x - b3)/b2)^2)",
    "Gauss1": _PEAKS,
    "Gauss2": _PEAKS,
    "Gauss3": _PEAKS,
    "Hahn1": _RATIO,
    "Kirby2": "(b1 + b2*x + b3*x^2)/(1 + b4*x + b5*x^2)",
    "Lanczos1": _DECAYS,
    "Lanczos2": _DECAYS,
    "Lanczos3": _DECAYS,
    "MGH09": "b1*(x^2 + x*b2)/(x^2 + x*b3 + b4)",
    "MGH10": "b1*exp(b2/(x + b3))",
    "MGH17": "b1 + b2*exp(-x*b4) + b3*exp(-x*b5)",
    "Misra1a": "b1*(1 - exp(-b2*x))",
    "Misra1b": "b1*(1 - (1 + b2*x/2)^(-2))",
    "Misra1c": "b1*(1 - (1 + 2*b2*x)^(-0.5))",
    "Misra1d": "b1*b2*x*((1 + b2*x)^(-1))",
    "Nelson": "exp(b1 - b2*x1*exp(-b3*x2))",
    "Rat42": "b1/(1 + exp(b2 - b3*x))",
    "Rat43": "b1/((1 + exp(b2 - b3*x))^(1/b4))",
    "Roszman1": "b1 - b2*x - arctan(b3/(x - b4))/3.141592653589793",
    "Thurber": _RATIO,
}


TERMS = {
    _PEAKS: ("b3 b4 b5", "b6 b7 b8"),
    _DECAYS: ("b1 b2", "b3 b4", "b5 b6"),
    FORMULAS["ENSO"]: ("b4 b5 b6", "b7 b8 b9"),
    FORMULAS["MGH17"]: ("b2 b4", "b3 b5"),
}
"""Terms of a sum that may change places: they are compared in the order that agrees best."""

SIGNLESS = {_PEAKS: ("b5", "b8"), FORMULAS["Eckerle4"]: ("b1", "b2")}
"""Parameters that count by their square, or by their quotient, alone."""


@dataclass(frozen=True)
class Certified:
    table: pd.DataFrame
    starts: tuple[dict[str, float], dict[str, float]]
    parameters: dict[str, float]
    squares: float
    """The residual sum of squares."""


def read(path: Path) -> Certified:
    """One of NIST's files."""
    text = path.read_text()
    number = r"([-+]?[\d.]+(?:[eE][-+]?\d+)?)"
    rows = re.findall(rf"^\s*(b\d+)\s*=\s*{number}\s+{number}\s+{number}\s+{number}\s*$", text, re.M)
    one, two, right = ({row[0]: float(row[i]) for row in rows} for i in (1, 2, 3))
    squares = re.search(rf"Residual Sum of Squares:\s*{number}", text)
    columns, _, lines = text[text.rindex("\nData:") + 6 :].partition("\n")
    values = np.array([[float(word) for word in line.split()] for line in lines.splitlines() if line.strip()])
    names = columns.split()
    assert rows and squares and values.shape[1] == len(names), path
    return Certified(pd.DataFrame(values, columns=names), (one, two), right, float(squares[1]))


def solve(name: str, problem: Certified, start: dict[str, float] | None) -> dict[str, object]:
    """Digits in which the worst parameter agrees with its certified value, and what it took."""
    starts = {key: (value, value) for key, value in (start or {}).items()}
    law = Law(name, f"y = {FORMULAS[name]}", starts=starts, known=tuple(problem.table.columns))
    law.form()  # compiled once, not counted
    begun = time.process_time()
    try:
        found = fit(
            problem.table, law, residuals="log" if name == "Nelson" else "linear", bootstrap=0, intervals="none"
        )
    except AnalysisError as error:
        return {"digits": 0.0, "error": str(error), "seconds": time.process_time() - begun}
    seconds = time.process_time() - begun
    terms = [term.split() for term in TERMS.get(FORMULAS[name], ())]
    apart = np.inf
    for order in permutations(terms):
        swap = dict(zip(chain(*terms), chain(*order), strict=True))
        values = {key: found.parameters[swap.get(key, key)] for key in problem.parameters}
        values |= {key: abs(values[key]) for key in SIGNLESS.get(FORMULAS[name], ())}
        apart = min(apart, max(abs(values[key] / value - 1) for key, value in problem.parameters.items()))
    return {
        "digits": float(min(11.0, -np.log10(max(apart, 1e-11)))),
        "cost": found.cost,
        "certified": problem.squares,
        "converged": found.converged,
        "seconds": seconds,
    }


def markdown(document: dict[str, Any]) -> str:
    problems, ways = document["problems"], ("start 1", "start 2", "default")
    solved = {way: sum(one[way]["digits"] >= DIGITS for one in problems.values()) for way in ways}
    lines = [
        "# NIST's certified nonlinear regressions: digits of the worst parameter",
        "",
        document["machine"] + ".",
        "",
        f"Solved to {DIGITS} digits, of {len(problems)}: "
        + ", ".join(f"{solved[way]} from {way if way != 'default' else 'default starts'}" for way in ways)
        + ". Digits are -log10 of the largest relative error, at most 11 (the certified ones).",
        "",
        "| problem | start 1 | start 2 | default | seconds, default | sum of squares over the certified one, - 1 |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in problems.items():
        cells = [f"{one[way]['digits']:.1f}" for way in ways]
        more = one["default"].get("cost", np.nan) / one["default"].get("certified", np.nan) - 1
        lines.append(f"| {name} | {' | '.join(cells)} | {one['default']['seconds']:.2f} | {more:+.1e} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--problems", nargs="*", default=list(FORMULAS))
    parser.add_argument("--output", default="nist_cpu")
    options = parser.parse_args()
    machine = (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread, numpy {np.__version__}, "
        f"load average {os.getloadavg()[0]:.1f}"
    )
    document: dict[str, Any] = {"machine": machine, "problems": {}}
    for name in options.problems:
        problem = read(options.folder / f"{name}.dat")
        ways = {"start 1": problem.starts[0], "start 2": problem.starts[1], "default": None}
        document["problems"][name] = {way: solve(name, problem, start) for way, start in ways.items()}
        print(name, {way: round(one["digits"], 1) for way, one in document["problems"][name].items()}, flush=True)
    out = HERE / "results" / options.output
    out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    out.with_suffix(".md").write_text(markdown(document))


if __name__ == "__main__":
    main()
