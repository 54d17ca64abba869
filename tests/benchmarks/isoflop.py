"""The allocation exponents of public isoFLOP sets, beside variable projection and parabolas in the same run.

    python tests/benchmarks/isoflop.py isoflops.csv

The file is data/isoflops/transform/isoflops.csv of the repository Open-Athena/scaling-law-analysis (columns experiment,
tokens, params, budget, loss, outlier); it is read, not copied. Rows marked as outliers are left out, and
E + A/N^a + B/D^b is fitted to the losses with absolute residuals and E, A, B >= 0, as there. Variable projection: for
exponents by scipy's Nelder-Mead from a grid, the amplitudes by non-negative least squares. Parabolas: through the
slices of each budget, in ln N. Writes results/isoflop.json and results/isoflop.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
from scipy.optimize import minimize, nnls

from gsq import analysis

HERE = Path(__file__).parent
LAW = "loss = E + A / params^a + B / tokens^b"
BOUNDS = dict.fromkeys(("E", "A", "B"), (0.0, np.inf))
STARTS = {"a": (0.0, 2.0), "b": (0.0, 2.0)}


def projected(frame: pd.DataFrame) -> tuple[float, float]:
    """Exponent b / (a + b) and sum of squares by variable projection."""
    size, data, loss = (frame[name].to_numpy(float) for name in ("params", "tokens", "loss"))
    x, y = np.log(size / np.exp(np.mean(np.log(size)))), np.log(data / np.exp(np.mean(np.log(data))))

    def squares(exponents: np.ndarray) -> float:
        basis = np.stack([np.ones(len(x)), np.exp(-exponents[0] * x), np.exp(-exponents[1] * y)], axis=1)
        return float(nnls(basis, loss)[1] ** 2)

    starts = sorted(product(np.linspace(0.1, 1.2, 12), repeat=2), key=lambda pair: squares(np.array(pair)))[:3]
    limits = {"xatol": 1e-10, "fatol": 1e-15, "maxiter": 4000}
    found = min((minimize(squares, one, method="Nelder-Mead", options=limits) for one in starts), key=lambda f: f.fun)
    return float(found.x[1] / found.x.sum()), float(found.fun)


def measure(frame: pd.DataFrame) -> dict[str, object]:
    begun = time.process_time()
    fit = analysis.fit(frame, LAW, residuals="linear", bounds=BOUNDS, start_ranges=STARTS)
    exponent = fit.derive("b / (a + b)")
    spent = time.process_time() - begun
    budget = 10 * float(frame["budget"].max())
    found = analysis.allocate(fit, budget, cost="6 * params * tokens", slices="budget")
    other, squares = projected(frame)
    curve = {one.column: one for one in found.parabolas}["params"]
    return {
        "rows": fit.n_rows,
        "exponent": exponent.to_dict(),
        "allocate": found.points[0].exponents["params"].value,
        "cost": fit.cost,
        "undetermined": list(fit.undetermined),
        "projection": {"exponent": other, "cost": squares},
        "parabolas": {"exponent": curve.exponent, "of_the_law": curve.of_law},
        "seconds": spent,
    }


def markdown(results: dict[str, dict], machine: str) -> str:
    lines = [
        "# Allocation exponents of public isoFLOP sets: N* ~ budget^x",
        "",
        f"{machine}. gsq: `fit.derive('b / (a + b)')`, with 95 % intervals; allocate: as `gsq allocate` finds it "
        "numerically; projection: variable projection by scipy; sum: the sum of squares of gsq over that of the "
        "projection, less 1; parabolas: through the slices of each budget, and through the fitted law's own values at "
        "the same points, which have no noise. Time: processor time of fit, intervals (1,000 resamples) and exponent.",
        "",
        "| set | rows | gsq | profile | bootstrap | allocate | projection | sum | parabolas | through the law | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in results.items():
        both = [one["exponent"][kind] for kind in ("profile", "bootstrap")]
        ends = " | ".join(f"{pair['low']:.3f} to {pair['high']:.3f}" for pair in both)
        ratio = one["cost"] / one["projection"]["cost"] - 1
        lines.append(
            f"| {name} | {one['rows']} | {one['exponent']['value']:.3f} | {ends} | {one['allocate']:.3f} | "
            f"{one['projection']['exponent']:.3f} | {ratio:.0e} | {one['parabolas']['exponent']:.3f} | "
            f"{one['parabolas']['of_the_law']:.3f} | {one['seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("csv", type=Path, help="isoflops.csv")
    table = pd.read_csv(parser.parse_args().csv)
    table = table[~table["outlier"].astype(bool)]
    versions = f"numpy {np.__version__}, scipy {scipy.__version__}"
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread, {versions}"
    results = {}
    for name, part in table.groupby("experiment"):
        results[str(name)] = measure(part)
        print(name, json.dumps(results[str(name)]), flush=True)
    (HERE / "results" / "isoflop.json").write_text(json.dumps({"machine": machine, "sets": results}, indent=2) + "\n")
    (HERE / "results" / "isoflop.md").write_text(markdown(results, machine))
