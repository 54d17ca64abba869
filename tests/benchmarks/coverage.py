"""Do 95 % intervals hold the truth in 95 % of studies? Simulated studies of every named law.

    python tests/benchmarks/coverage.py [--studies 400] [--resamples 400] [LAW ...]

Each study is one table of a law's design with log-normal noise; it is fitted as ``gsq fit`` fits it (log residuals),
and the profile-likelihood interval and the bootstrap interval of each parameter are compared with the truth, and so
are both bands of a prediction beyond the design. All studies of a design are one batch of the solver. Laws with a floor
have designs that reach it as well, with outliers too: one row in each study is off by eight standard deviations.
Differs from ``gsq fit``: 8 starts, one start a resample, and cauchy's delta follows from the true noise. Writes
results/coverage.json and results/coverage.md beside this file, after each design.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from gsq.analysis.fitting.derived import parameter_expression, region_ends
from gsq.analysis.fitting.fit import interval_room
from gsq.analysis.fitting.identify import opened
from gsq.analysis.fitting.intervals import delta_band, percentile_interval, profile, resample
from gsq.analysis.fitting.options import LOSSES, Loss
from gsq.analysis.fitting.searching import refit
from gsq.analysis.fitting.solver import Problem, solve
from gsq.analysis.laws.named import LAWS
from gsq.analysis.tables.table import load_results, with_derived

HERE = Path(__file__).parent
REFERENCE = HERE.parents[1] / "results" / "reference" / "gsq_paper.parquet"
Truth = dict[str, float]


@dataclass(frozen=True)
class Study:
    design: pd.DataFrame
    truth: Truth
    noise: float
    target: dict[str, float]
    """Where a prediction is asked for, beyond the design."""
    law: str = ""
    """Name of the law, where it is not that of the design."""
    loss: Loss = "least_squares"
    outlier: bool = False
    derived: tuple[str, ...] = ()
    """Expressions over the parameters, whose intervals are looked at as well."""


def studies() -> dict[str, Study]:
    """A design and true parameters for each named law: those of the paper where it has them."""
    paper = with_derived(load_results(REFERENCE))
    axes = ["downsample", "latent_dim", "groups", "codebook_size", "group_dim", "bits_per_pixel"]
    fig4 = paper[paper["sweep"] == "fig4"][axes].astype(float)
    joint = paper[paper["sweep"].isin(["fig4", "table13", "fig1b"]) & paper["other_axes"].isna()]
    joint = joint.drop_duplicates(axes[:4])[axes].astype(float)
    rates = pd.DataFrame({"bits_per_pixel": np.geomspace(0.05, 6, 16)})
    sizes, images = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e6, 1e9, 6), np.geomspace(1e6, 1e9, 6)))
    budgets = pd.DataFrame({"parameters": sizes, "images_seen": images})
    curve = pd.DataFrame({"step": 1000.0 * np.arange(1, 21)})
    best = {"codebook_size": 2.0**20, "latent_dim": 16.0}
    return {
        "power_law_bpp": Study(rates, {"c": 0.13, "alpha": 0.9}, 0.1, {"bits_per_pixel": 12.0}),
        "paper_eq14": Study(fig4, {"B": 412.6, "alpha": 2.8387, "C": 0.1599, "beta": 0.1962}, 0.03, best),
        "inverse_bpp": Study(joint, {"c": 0.14}, 0.4, {"bits_per_pixel": 12.0}),
        "multiplicative": Study(fig4, {"A": 5.6, "a": 1.04, "b": 0.124}, 0.03, best),
        "channel_limit": Study(fig4, {"c": 8.61, "kappa": 2.89}, 0.03, best),
        "saturating": Study(
            joint,
            {"c": 0.119, "s": 3.2},
            0.125,
            {"downsample": 16.0, "groups": 8.0, "codebook_size": 2.0**20, "group_dim": 4.0},
        ),
        "power_law_floor": Study(rates, {"E": 0.05, "c": 0.13, "alpha": 0.9}, 0.03, {"bits_per_pixel": 12.0}),
        "chinchilla": Study(
            budgets,
            {"E": 0.5, "A": 400.0, "a": 0.4, "B": 300.0, "b": 0.35},
            0.01,
            {"parameters": 1e10, "images_seen": 1e10},
        ),
        "step_approach": Study(curve, {"E": 0.5, "A": 2.0, "tau": 5000.0}, 0.02, {"step": 40_000.0}),
        "step_power": Study(curve, {"E": 0.4, "A": 30.0, "a": 0.5}, 0.02, {"step": 40_000.0}),
    }


def plateaus() -> dict[str, Study]:
    """Designs whose last rows lie on the floor, so that noise puts some of them below it."""
    found = {}
    for rows, grid in ((12, (4, 3)), (40, (8, 5))):
        rates = pd.DataFrame({"bits_per_pixel": np.geomspace(0.1, 30, rows)})
        curve = pd.DataFrame({"step": np.linspace(500, 40_000, rows)})
        power = pd.DataFrame({"step": np.geomspace(100, 1e6, rows)})
        sizes, images = (
            one.ravel() for one in np.meshgrid(np.geomspace(1e6, 1e12, grid[0]), np.geomspace(1e6, 1e12, grid[1]))
        )
        budgets = pd.DataFrame({"parameters": sizes, "images_seen": images})
        designs: dict[str, tuple[pd.DataFrame, Truth, dict[str, float]]] = {
            "power_law_floor": (rates, {"E": 3.0, "c": 1.0, "alpha": 1.2}, {"bits_per_pixel": 60.0}),
            "step_approach": (curve, {"E": 3.0, "A": 9.0, "tau": 4000.0}, {"step": 80_000.0}),
            "step_power": (power, {"E": 3.0, "A": 900.0, "a": 0.9}, {"step": 2e6}),
            "chinchilla": (
                budgets,
                {"E": 3.0, "A": 2000.0, "a": 0.5, "B": 1000.0, "b": 0.5},
                {"parameters": 1e13, "images_seen": 1e13},
            ),
        }
        for law, (design, truth, where) in designs.items():
            for noise in (0.01, 0.05):
                found[f"{law}, floor reached, {rows} rows, {noise:.0%}"] = Study(design, truth, noise, where, law)
        for loss in LOSSES:
            for noise in (0.01, 0.05):
                design, truth, where = designs["power_law_floor"]
                name = f"power_law_floor, an outlier, {loss}, {rows} rows, {noise:.0%}"
                found[name] = Study(design, truth, noise, where, "power_law_floor", loss, True)
    return found


def measure(name: str, study: Study, count: int, resamples: int) -> dict[str, object]:
    """Coverage of both kinds of interval for each parameter, and of both bands of the prediction."""
    begun = time.perf_counter()
    law, rng = LAWS[study.law or name], np.random.default_rng(0)
    data = law.values(study.design)
    n = data.shape[1]
    natural = np.array([study.truth[parameter] for parameter in law.parameters])
    form = law.form()
    plain = Problem(form, data, np.ones(n), "log", *law.limits(np.array([np.inf])))
    centre = plain.centre
    truth = form.internal(natural, centre)
    exact = plain.predict(truth[None])[0]
    targets = exact * np.exp(rng.normal(0, study.noise, (count, n)))
    if study.outlier:
        signs = rng.choice([-1.0, 1.0], count)
        targets[np.arange(count), rng.integers(n, size=count)] *= np.exp(8 * study.noise * signs)
    low, high = plain.low, plain.high
    problem = replace(plain, target=targets)
    if study.loss != "least_squares":
        problem = replace(problem, loss=study.loss, delta=1e-3 if study.loss == "huber" else 2.385 * study.noise)
    ranges = [law.starts.get(parameter) for parameter in law.parameters]
    scales = np.unique([1.0, *np.abs(np.median(study.design[list(law.columns)], axis=0))])
    weights = np.ones((count, n))
    found = refit(problem, np.clip(truth * 1.1, low, high), weights, ranges, scales, 8, [0, 0])
    k = len(natural)
    room = interval_room(found.cost, 0.0, n, k, 0.95)
    estimates = form.natural(found.theta, centre)

    times = resample(np.arange(n), rng, count * resamples)
    wide = replace(problem, target=np.repeat(targets, resamples, axis=0))
    drawn = solve(wide, np.repeat(found.theta, resamples, axis=0), times)
    drawn_theta = np.where(drawn.converged[:, None], drawn.theta, np.nan).reshape(count, resamples, k)
    sampled = form.natural(drawn_theta, centre)
    rows = {}
    for i, parameter in enumerate(law.parameters):
        if study.loss == "least_squares":
            raw = profile(law, problem, found, weights, room, parameter)
        else:
            raw = np.full(count, np.nan), np.full(count, np.nan)
        ends = _opened(raw, low[i], high[i])
        boot = np.array([_percentiles(sampled[j, :, i], n, k, study.loss) for j in range(count)]).T
        rows[parameter] = {
            "truth": natural[i],
            "median": float(np.median(estimates[:, i])),
            "profile": _covers(ends, natural[i]),
            "bootstrap": _covers(_opened((boot[0], boot[1]), low[i], high[i]), natural[i]),
            "open": float(np.mean(np.isinf(ends[0]) | np.isinf(ends[1]))),
        }
    for text in study.derived:
        quantity = parameter_expression(text, law)
        right = float(quantity(natural[None])[0])
        pairs = np.array(
            [
                region_ends(
                    replace(problem, target=targets[j]), found.theta[j], weights[j], room[j], quantity, drawn_theta[j]
                )
                for j in range(count)
            ]
        ).T
        boot = np.array([_percentiles(quantity(sampled[j]), n, k) for j in range(count)]).T
        rows[text] = {
            "truth": right,
            "median": float(np.median(quantity(estimates))),
            "profile": _covers((pairs[0], pairs[1]), right),
            "bootstrap": _covers((boot[0], boot[1]), right),
            "open": float(np.mean(np.isinf(pairs).any(axis=0))),
        }
    where = with_derived(pd.DataFrame([study.target]))
    target = law.values(where)
    right = plain.predict(truth[None], target)[0][0]
    bands = np.array(
        [
            delta_band(replace(problem, target=targets[j]), found.theta[j], weights[j], room[j], target)
            for j in range(count)
        ]
    )[:, :, 0].T
    predicted = plain.predict(drawn_theta.reshape(-1, k), target)[:, 0].reshape(count, resamples)
    boot = np.array([_percentiles(one, n, k, study.loss) for one in predicted]).T
    return {
        "rows": n,
        "loss": study.loss,
        "noise": study.noise,
        "converged": float(found.converged.mean()),
        "parameters": rows,
        "prediction": {
            "at": study.target,
            "truth": float(right),
            "profile": _covers((bands[0], bands[1]), right) if study.loss == "least_squares" else float("nan"),
            "bootstrap": _covers((boot[0], boot[1]), right),
        },
        "seconds": time.perf_counter() - begun,
    }


def _opened(ends: tuple[np.ndarray, np.ndarray], low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    pairs = [opened((float(a), float(b)), low, high) for a, b in zip(*ends, strict=True)]
    return np.array([one for one, _ in pairs]), np.array([one for _, one in pairs])


def _percentiles(values: np.ndarray, n: int, k: int, loss: Loss) -> tuple[float, float]:
    low, high = percentile_interval(values[np.isfinite(values)], 0.95, (n, n - k), loss)
    return float(low), float(high)


def _covers(ends: tuple[np.ndarray, np.ndarray], truth: float) -> float:
    """Share of intervals that hold the truth; a bound that is reached counts as inside."""
    slack = 1e-9 * abs(truth)
    if np.isnan(ends[0]).all():
        return float("nan")
    return float(np.mean((ends[0] - slack <= truth) & (truth <= ends[1] + slack)))


def _percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{100 * share:.1f}"


def markdown(results: dict[str, dict[str, object]], count: int, resamples: int, machine: str) -> str:
    lines = [
        f"# Coverage of 95 % intervals: {count} simulated studies a design, {resamples} resamples each",
        "",
        f"{machine}. Standard error of a coverage near 95 %: {100 * np.sqrt(0.95 * 0.05 / count):.1f} points. Shown by "
        "default: profile likelihood and bands by the delta method for least squares, else bootstrap. Open: share of "
        "profile intervals with an open end, % of them.",
        "",
        "| law | rows | noise | of | truth | profile, delta | bootstrap | open |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, one in results.items():
        for parameter, row in one["parameters"].items():  # type: ignore[attr-defined]
            lines.append(
                f"| {name} | {one['rows']} | {100 * one['noise']:g} % | {parameter} | {row['truth']:g} | "  # type: ignore[operator]
                f"{_percent(row['profile'])} | {100 * row['bootstrap']:.1f} | {100 * row['open']:.0f} |"
            )
        band = one["prediction"]
        place = ", ".join(f"{key} {value:g}" for key, value in band["at"].items())  # type: ignore[index]
        lines.append(
            f"| {name} | {one['rows']} | {100 * one['noise']:g} % | prediction at {place} | {band['truth']:.4g} | "  # type: ignore[index, operator]
            f"{_percent(band['profile'])} | {100 * band['bootstrap']:.1f} | |"  # type: ignore[index]
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--resamples", type=int, default=400)
    parser.add_argument(
        "--update", action="store_true", help="put the rows of the LAWs named into the table that is there"
    )
    parser.add_argument("laws", nargs="*")
    options = parser.parse_args()
    chosen = studies() | plateaus()
    machine = (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread, numpy {np.__version__}, "
        f"load average {os.getloadavg()[0]:.0f}"
    )
    out = HERE / "results"
    results = json.loads((out / "coverage.json").read_text())["laws"] if options.update else {}
    for name in options.laws or chosen:
        results[name] = measure(name, chosen[name], options.studies, options.resamples)
        print(name, json.dumps(results[name]), flush=True)
        if not options.laws or options.update:
            document = {"studies": options.studies, "resamples": options.resamples, "machine": machine, "laws": results}
            (out / "coverage.json").write_text(json.dumps(document, indent=2) + "\n")
            (out / "coverage.md").write_text(markdown(results, options.studies, options.resamples, machine))
