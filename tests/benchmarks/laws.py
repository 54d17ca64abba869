"""How fast laws are fitted: against PyPI chinchilla 0.2.0 and against a loop over scipy's least_squares.

    python tests/benchmarks/laws.py [--chinchilla PYTHON] [--repeats 5] [--output NAME]

The paper's law on the 20 points of its figure 4, absolute residuals: 64 starts, then 1,000 resamples with 8 starts
each. The loop does the same work, from the same starts, with an analytic Jacobian and the same tolerances; every one
of its starts is run. Checked: the smaller sum of squares of each resample agrees to 1e-8, its parameters to 1e-3.
``--chinchilla`` names the Python of an environment with chinchilla==0.2.0 (pip install chinchilla==0.2.0); it fits its
own form, E + A/N^a + B/D^b, to the same 20 points with its default of 3,125 starts, which is measured on a grid of a
few and scaled by their number. Beside it, what larger tables take: 240 simulated rows of Chinchilla's law by least
squares and by Huber's loss, and 200,000 rows with the default bootstrap, in a process of its own whose memory is read.
All times are processor seconds. Writes results/laws_cpu.json and .md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from gsq.analysis import LAWS, Options, fit, load_results
from gsq.analysis.fitting.intervals import resample
from gsq.analysis.fitting.searching import draw_starts, refit

HERE = Path(__file__).parent
REFERENCE = HERE.parents[1] / "results" / "reference" / "gsq_paper.parquet"
STARTS, RESAMPLES, EACH = 64, 1000, 8

PEER = """
import json, os, sys, time, tempfile, warnings
warnings.filterwarnings("ignore")
import numpy as np, pandas as pd
from chinchilla import Chinchilla
points, levels = json.load(open(sys.argv[1])), [int(x) for x in sys.argv[2].split(",")]
out = []
for level in levels:
    folder = tempfile.mkdtemp()
    frame = pd.DataFrame(points)
    frame["C"] = 6 * frame["N"] * frame["D"]
    frame.to_csv(os.path.join(folder, "df.csv"), index=False)
    grid = {
        "e": np.linspace(-3, 0, level), "a": np.linspace(0, 5, level), "b": np.linspace(0, 5, level),
        "alpha": np.linspace(0.1, 2, level), "beta": np.linspace(0.1, 2, level),
    }
    cc = Chinchilla(folder, param_grid=grid, seed_ranges={"C": (1, 2), "N_to_D": (1, 2)})
    cc.visualizer.optim = lambda *values, **options: None  # its time for a picture is not counted
    begun = time.process_time()
    cc.fit(parallel=False)
    out.append({"starts": level**5, "seconds": time.process_time() - begun})
print("RESULT " + json.dumps(out))
"""


def scipy_loop(fitted: object, times: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The same least squares by scipy, start by start: cost (m,), internal theta (m, k), seconds a start."""
    problem = fitted.problem  # type: ignore[attr-defined]
    bits, channels = problem.data
    at_bits, at_channels = problem.centre
    target = problem.target

    def value(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.exp(-theta[1] * (bits - at_bits)), np.exp(theta[3] * (channels - at_channels))

    begun = time.process_time()
    best, where = np.full(len(times), np.inf), np.zeros((len(times), 4))
    for i, weights in enumerate(times):
        root = np.sqrt(weights)

        def residual(theta: np.ndarray, root: np.ndarray = root) -> np.ndarray:
            one, two = value(theta)
            return root * (theta[0] * one + theta[2] * two - target)

        def jacobian(theta: np.ndarray, root: np.ndarray = root) -> np.ndarray:
            one, two = value(theta)
            columns = (one, -theta[0] * one * (bits - at_bits), two, theta[2] * two * (channels - at_channels))
            return root[:, None] * np.stack(columns, axis=1)

        for start in starts[i]:
            try:
                found = least_squares(residual, start, jacobian, method="lm", xtol=1e-10, ftol=1e-10, gtol=1e-10)
            except ValueError:
                continue
            # A start that left the bounds of the law (both amplitudes at least 0) has solved another problem.
            if 2 * found.cost < best[i] and found.x[0] >= 0 and found.x[2] >= 0:
                best[i], where[i] = 2 * found.cost, found.x
    return best, where, (time.process_time() - begun) / (len(times) * starts.shape[1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--chinchilla", metavar="PYTHON")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sample", type=int, default=100, help="resamples that the scipy loop does")
    parser.add_argument("--levels", default="2,3", help="grid points an axis of the two fits of chinchilla (^5 starts)")
    parser.add_argument("--output", default="laws_cpu")
    options = parser.parse_args()
    paper = load_results(REFERENCE)
    frame = paper[paper["sweep"] == "fig4"].reset_index(drop=True)
    law = LAWS["paper_eq14"]
    whole = Options(residuals="linear", starts=STARTS, bootstrap=RESAMPLES, bootstrap_starts=EACH)
    fit(frame, law, residuals="linear", bootstrap=0)  # formulas are compiled once
    seconds = []
    for _ in range(options.repeats):
        begun = time.process_time()
        fitted = fit(frame, law, residuals="linear", starts=STARTS, bootstrap=RESAMPLES, bootstrap_starts=EACH)
        seconds.append(time.process_time() - begun)
    ours = statistics.median(seconds)

    times = resample(fitted.configurations, np.random.default_rng(5), options.sample)
    times = times[(times > 0).sum(axis=1) >= 8]
    ranges, scales = list(fitted.ranges), fitted.scales
    found = refit(fitted.problem, fitted.theta, times, ranges, scales, EACH, [0, 7])
    drawn = draw_starts(fitted.problem, ranges, scales, times, EACH - 1, [0, 7]).reshape(len(times), EACH - 1, -1)
    first = np.broadcast_to(fitted.theta, (len(times), 1, len(fitted.theta)))
    cost, theta, each = scipy_loop(fitted, times, np.concatenate([first, drawn], axis=1))
    inside = np.isfinite(cost) & (found.theta > fitted.problem.low).all(axis=1)
    objective = float(np.max(np.abs(found.cost[inside] / cost[inside] - 1)))
    worse = float(np.max(found.cost[inside] / cost[inside] - 1))
    parameters = float(np.max(np.abs(found.theta[inside] / theta[inside] - 1)))
    starts = STARTS + RESAMPLES * EACH
    result: dict[str, object] = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread",
        "load": os.getloadavg()[0],
        "options": {"starts": whole.starts, "resamples": whole.bootstrap, "starts a resample": whole.bootstrap_starts},
        "gsq_seconds": ours,
        "gsq_seconds_all": seconds,
        "scipy_seconds_a_start": each,
        "scipy_seconds": each * starts,
        "scipy_ratio": each * starts / ours,
        "compared_resamples": int(inside.sum()),
        "objective_difference": objective,
        "objective_never_worse_by_more_than": worse,
        "parameter_difference": parameters,
    }
    result["tables"] = [table_of(240, "least_squares"), table_of(240, "huber"), table_of(200_000, "least_squares")]
    if options.chinchilla:
        result |= peer(options.chinchilla, options.levels, frame, starts, ours)
    out = HERE / "results" / options.output
    out.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    out.with_suffix(".md").write_text(markdown(result, starts))
    print(markdown(result, starts))


TABLE = """
import json, resource, sys, time
import numpy as np, pandas as pd
from gsq.analysis import fit
rows, loss = int(sys.argv[1]), sys.argv[2]
rng = np.random.default_rng(0)
N, D = (np.exp(rng.uniform(np.log(1e7), np.log(1e10), rows)) for _ in range(2))
y = (1.8 + 480 * N**-0.35 + 2100 * D**-0.37) * np.exp(0.01 * rng.standard_normal(rows))
frame = pd.DataFrame({"N": N, "D": D, "loss": y})
law = "loss = E + A / N^a + B / D^b"
fit(frame.head(50), law, bootstrap=0)  # the formula is compiled once
begun = time.process_time()
found = fit(frame, law, loss=loss)
seconds = time.process_time() - begun
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
kept = {"resamples": len(found.draws), "starts": found.options.starts, "a": found.parameters["a"]}
print("RESULT " + json.dumps({"rows": rows, "loss": loss, "seconds": seconds, "gib": memory, **kept}))
"""


def table_of(rows: int, loss: str) -> dict[str, object]:
    """Processor seconds and memory of a default fit of Chinchilla's law to so many simulated rows."""
    done = subprocess.run([sys.executable, "-c", TABLE, str(rows), loss], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT ")))


def peer(python: str, levels: str, frame: object, starts: int, ours: float) -> dict[str, object]:
    """PyPI chinchilla's seconds a start: what the larger grid takes beyond the smaller, so that start-up is left
    out."""
    points = {
        "N": np.log2(frame["codebook_size"].to_numpy(float)).tolist(),  # type: ignore[index]
        "D": frame["latent_dim"].to_numpy(float).tolist(),  # type: ignore[index]
        "loss": frame["rfid"].to_numpy(float).tolist(),  # type: ignore[index]
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump(points, file)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", PEER, file.name, levels], capture_output=True, text=True, check=True, env=environment
    )
    Path(file.name).unlink()
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    grids = json.loads(lines[-1].removeprefix("RESULT "))
    small, large = grids[0], grids[-1]
    each = (large["seconds"] - small["seconds"]) / (large["starts"] - small["starts"])
    return {"chinchilla": grids, "chinchilla_seconds_a_start": each, "chinchilla_ratio": each * starts / ours}


def markdown(result: dict[str, object], starts: int) -> str:
    r = result
    lines = [
        "# Fitting the paper's law: 64 starts, 1,000 resamples with 8 starts each",
        "",
        f"{r['machine']}; load average {r['load']:.1f} when it was measured. Processor seconds, medians.",
        "",
        "| | seconds | ratio |",
        "|---|---|---|",
        f"| gsq | {r['gsq_seconds']:.2f} | 1 |",
        f"| loop over scipy least_squares ({1e3 * r['scipy_seconds_a_start']:.2f} ms a start, scaled to {starts:,}) | "  # type: ignore[operator]
        f"{r['scipy_seconds']:.1f} | {r['scipy_ratio']:.1f} |",
    ]
    if "chinchilla_ratio" in r:
        each = float(r["chinchilla_seconds_a_start"])  # type: ignore[arg-type]
        lines.append(
            f"| PyPI chinchilla 0.2.0 ({1e3 * each:.1f} ms a start, of {r['chinchilla'][-1]['starts']}, scaled "  # type: ignore
            f"to {starts:,}) | {each * starts:.0f} | {r['chinchilla_ratio']:.0f} |"
        )
    lines += [
        "",
        f"Over {r['compared_resamples']} resamples, the sum of squares differs from scipy's best by "
        f"{r['objective_difference']:.1e} at most (relative; never worse by more than "
        f"{max(0, r['objective_never_worse_by_more_than']):.1e}), "  # type: ignore[call-overload]
        f"parameters by {r['parameter_difference']:.1e}. gsq's seconds hold all of `fit`: intervals of both kinds, "
        "tests and "
        "tables too. Chinchilla fits its own law; it has no option for another.",
    ]
    lines += [
        "",
        "Chinchilla's law, 64 starts and 1,000 resamples, as `gsq fit` makes them by default:",
        "",
        "| simulated rows | loss | seconds | memory of the process at most, GiB |",
        "|---|---|---|---|",
    ]
    for one in r["tables"]:  # type: ignore[attr-defined]
        lines.append(f"| {one['rows']:,} | {one['loss']} | {one['seconds']:.1f} | {one['gib']:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
