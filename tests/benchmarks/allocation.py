"""Do the intervals of an allocation hold the truth, and what do parabolas through isoFLOP profiles say beside it?

    python tests/benchmarks/allocation.py [--studies 400] [--resamples 200]

Simulated isoFLOP studies of E + A/N^a + B/D^b with log-normal noise, fitted and measured as in coverage.py: both
intervals of the exponent b / (a + b) of N* against the budget, and of ln N* at ten times the largest budget, by the
closed form that ``gsq allocate`` finds numerically (tests/analysis_tests/test_allocation.py compares them). For each
design also the median exponent of parabolas through the slices, which has a bias. Writes results/allocation.json and
results/allocation.md beside this file, after each design.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from coverage import Study, measure

from gsq.analysis.allocating.parabolas import parabolas
from gsq.analysis.laws.named import LAWS

HERE = Path(__file__).parent
LLAMA = {"E": 1.69, "A": 406.4, "a": 0.34, "B": 410.7, "b": 0.28}
COMMA = {"E": 2.76, "A": 6.2e5, "a": 0.72, "B": 3500.0, "b": 0.396}


def best_size(truth: dict[str, float], budget: float) -> float:
    """N* of a budget 6 N D."""
    a, b = truth["a"], truth["b"]
    return (a * truth["A"] / (b * truth["B"])) ** (1 / (a + b)) * (budget / 6) ** (b / (a + b))


def slices(truth: dict[str, float], budgets: np.ndarray, sizes: int, width: float, drift: float) -> pd.DataFrame:
    """``sizes`` sizes of each budget, over a factor of ``width`` to both sides of ``drift`` times the best at the first
    budget, of the best over ``drift`` at the last."""
    rows = []
    for budget, off in zip(budgets, np.geomspace(drift, 1 / drift, len(budgets)), strict=True):
        middle = off * best_size(truth, budget)
        rows += [(n, budget / 6 / n, budget) for n in middle * np.geomspace(1 / width, width, sizes)]
    return pd.DataFrame(rows, columns=["parameters", "images_seen", "budget"])


def studies() -> dict[str, Study]:
    found = {}
    for name, truth, count, sizes, width, drift, noise in (
        ("5 slices of 9 sizes", LLAMA, 5, 9, 8.0, 1.0, 0.003),
        ("5 slices of 9 sizes, drifting", COMMA, 5, 9, 6.0, 2.5, 0.005),
        ("5 slices of 9 sizes, much noise", LLAMA, 5, 9, 8.0, 1.0, 0.02),
        ("3 slices of 6 sizes, drifting", COMMA, 3, 6, 6.0, 2.5, 0.005),
    ):
        budgets = np.geomspace(1e18, 1e21, count)
        design = slices(truth, budgets, sizes, width, drift)
        last = 10 * budgets[-1]
        size = f"(log(a * A / (b * B)) + b * {np.log(last / 6):.6f}) / (a + b)"
        place = {"parameters": best_size(truth, last), "images_seen": last / 6 / best_size(truth, last)}
        found[name] = Study(design, truth, noise, place, "chinchilla", derived=("b / (a + b)", size))
    return found


def by_parabolas(study: Study, count: int) -> float:
    """The median exponent that parabolas find in simulated studies."""
    law, rng = LAWS["chinchilla"], np.random.default_rng(0)
    natural = np.array([[study.truth[name] for name in law.parameters]])
    form, data = law.form(), law.values(study.design)
    centre = form.centre(data)
    exact = form.both(form.internal(natural, centre), data, centre)[0][0]
    size, cost = (study.design[name].to_numpy() for name in ("parameters", "budget"))
    found = []
    for _ in range(count):
        target = exact * np.exp(rng.normal(0, study.noise, len(exact)))
        one = parabolas("parameters", size, cost, target, exact)
        found.append(np.nan if one is None else one.exponent)
    return float(np.nanmedian(found))


def markdown(results: dict[str, dict[str, object]], count: int, resamples: int, machine: str) -> str:
    lines = [
        f"# Coverage of an allocation's 95 % intervals: {count} simulated studies a design, {resamples} resamples each",
        "",
        f"{machine}. Standard error of a coverage near 95 %: {100 * np.sqrt(0.95 * 0.05 / count):.1f} points. Open: "
        "share of profile intervals with an open end. The exponent is that of N* against the budget; parabolas: the "
        "median exponent of parabolas through the same slices.",
        "",
        "| design | noise | of | truth | median | profile | bootstrap | open, % | parabolas |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in results.items():
        for text, kind in zip(one["derived"], ("exponent", "ln N* at ten times the largest budget"), strict=True):  # type: ignore[call-overload]
            row = one["parameters"][text]  # type: ignore[index]
            other = f"{one['parabolas']:.3f}" if kind == "exponent" else ""
            lines.append(
                f"| {name} | {100 * one['noise']:g} % | {kind} | {row['truth']:.4g} | {row['median']:.4g} | "  # type: ignore[operator]
                f"{100 * row['profile']:.1f} | {100 * row['bootstrap']:.1f} | {100 * row['open']:.0f} | {other} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--resamples", type=int, default=200)
    options = parser.parse_args()
    machine = (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread, numpy {np.__version__}"
    )
    results = {}
    for name, study in studies().items():
        results[name] = measure(name, study, options.studies, options.resamples)
        results[name]["derived"] = list(study.derived)
        results[name]["parabolas"] = by_parabolas(replace(study), options.studies)
        print(name, json.dumps(results[name]), flush=True)
        document = {"studies": options.studies, "resamples": options.resamples, "machine": machine, "designs": results}
        (HERE / "results" / "allocation.json").write_text(json.dumps(document, indent=2) + "\n")
        (HERE / "results" / "allocation.md").write_text(markdown(results, options.studies, options.resamples, machine))
