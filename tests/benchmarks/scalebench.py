"""ScaleBench (Li et al., arXiv 2604.22753): 65 published laws on 8 tasks, beside multi-start scipy.

    python tests/benchmarks/scalebench.py FOLDER [--tasks moe vocab] [--peers-from FILE] [--output scalebench_cpu]

FOLDER holds TASK-train.parquet and TASK-test.parquet as published (CC-BY-4.0). Every law is fitted to all training rows
of each group in its published box, as ``gsq fit --residuals linear --bootstrap 0 --intervals none`` fits it, with 64
starts; the peers are 64 starts of L-BFGS-B (2,000 iterations, the published tolerances) and 64 of least_squares (trf),
drawn uniformly in the box, or uniformly in the logarithm where it lies above 0 (``--starts``: fewer for all of them).
Peers and we evaluate the same compiled formula with exact derivatives; its compilation is not counted. R2 is that of
the target rows of all groups and outputs together, clipped to [-1, 1]. ``--peers-from`` takes the peers of an earlier
run on this machine, where law, box and rows are the same. Writes results/OUTPUT.json and .md beside this file, after
each law.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
from scalebench_laws import LAWS, Published, tables
from scipy.optimize import least_squares, minimize

from gsq.analysis import fit
from gsq.analysis.laws.named import Law

HERE = Path(__file__).parent
STARTS = 64
PAPER = {
    "parallel": 0.99, "moe": 0.81, "sparsity": 0.37, "data_constrained": 0.79, "farseer": 0.91, "vocab": 0.93,
    "domain_mixture": 0.81, "lr_bsz": 0.04,
}  # fmt: skip
"""Mean R2 of the paper's row "All Data": 64 starts of L-BFGS-B on the mean of squares."""
Pair = tuple[pd.DataFrame, pd.DataFrame]


def pieces(folder: Path, task: str, law: Published) -> list[Pair]:
    """Training and target table of each group and separate output."""
    train, test = (pd.read_parquet(folder / f"{task}-{part}.parquet") for part in ("train", "test"))
    found: list[Pair] = []
    for group in sorted(set(train["group"])):
        halves = [tables(task, law, part[part["group"] == group].reset_index(drop=True)) for part in (train, test)]
        found += list(zip(*halves, strict=True))
    return found


def r2(truth: np.ndarray, value: np.ndarray) -> float:
    if not np.isfinite(value).all():
        return -1.0
    return float(np.clip(1 - np.sum((truth - value) ** 2) / np.sum((truth - truth.mean()) ** 2), -1, 1))


class Plain:
    """A law in its published parameters, for one vector of them at a time."""

    def __init__(self, law: Law, table: pd.DataFrame) -> None:
        self.form, self.data = law.form(law.parameters), law.values(table)
        self.centre, self.target = self.form.centre(self.data), table["y"].to_numpy()

    def values(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value, slope = self.form.both(theta[None], self.data, self.centre)
        return value[0], slope[:, 0].T

    def squares(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = self.values(theta)
        with np.errstate(all="ignore"):
            return float(np.sum((value - self.target) ** 2)), 2 * slope.T @ (value - self.target)

    def residual(self, theta: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.nan_to_num(self.values(theta)[0] - self.target, nan=1e10, posinf=1e10, neginf=-1e10)

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        return np.nan_to_num(self.values(theta)[1], nan=0, posinf=0, neginf=0)


def lbfgsb(plain: Plain, low: np.ndarray, high: np.ndarray, start: np.ndarray) -> np.ndarray:
    options = {"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-10}
    box = list(zip(low, high, strict=True))
    return np.asarray(minimize(plain.squares, start, method="L-BFGS-B", jac=True, bounds=box, options=options).x)


def trf(plain: Plain, low: np.ndarray, high: np.ndarray, start: np.ndarray) -> np.ndarray:
    found = least_squares(
        plain.residual, start, plain.jacobian, (low, high), x_scale="jac", ftol=1e-12, xtol=1e-12, gtol=1e-12,
        max_nfev=2000,
    )  # fmt: skip
    return np.asarray(found.x)


def best_of(
    method: Callable[..., np.ndarray], law: Law, pair: Pair, seed: int, starts: int
) -> tuple[float, list[float], float]:
    """Sum of squares of the best start, its values at the target rows, and processor seconds."""
    rng = np.random.default_rng(seed)
    low, high = (np.array([law.bounds[name][side] for name in law.parameters], dtype=float) for side in (0, 1))
    plain, far = Plain(law, pair[0]), Plain(law, pair[1])
    begun, best, where = time.process_time(), np.inf, np.full(len(low), np.nan)
    for _ in range(starts):
        share = rng.random(len(low))
        with np.errstate(all="ignore"):
            start = np.where(low > 0, np.exp(np.log(low) + share * np.log(high / low)), low + share * (high - low))
            try:
                found = np.clip(method(plain, low, high, start), low, high)
            except (ValueError, np.linalg.LinAlgError):
                continue
            cost = plain.squares(found)[0]
        if cost < best:
            best, where = cost, found
    seconds = time.process_time() - begun
    return float(best), [float(one) for one in far.values(where)[0]], seconds


def peers(law: Law, pairs: list[Pair], starts: int) -> dict[str, dict[str, object]]:
    truth = np.concatenate([test["y"] for _, test in pairs])
    out: dict[str, dict[str, object]] = {}
    for name, method in (("L-BFGS-B", lbfgsb), ("least_squares", trf)):
        found = [best_of(method, law, pair, 42 + i, starts) for i, pair in enumerate(pairs)]
        value = np.concatenate([one[1] for one in found])
        out[name] = {
            "cost": [one[0] for one in found],
            "seconds": sum(one[2] for one in found),
            "r2": r2(truth, value),
            "values": value.tolist(),
        }
    return out


def ours(law: Law, pairs: list[Pair], starts: int) -> dict[str, object]:
    cost, values, converged, seconds = [], [], [], 0.0
    for train, test in pairs:
        begun = time.process_time()
        found = fit(train, law, residuals="linear", bootstrap=0, intervals="none", starts=starts)
        seconds += time.process_time() - begun
        cost.append(found.cost)
        converged.append(found.converged)
        values.append(found.predict(test)[0])
    truth = np.concatenate([test["y"] for _, test in pairs])
    return {
        "cost": cost, "seconds": seconds, "r2": r2(truth, np.concatenate(values)), "converged": bool(np.all(converged)),
    }  # fmt: skip


def measure(
    folder: Path, task: str, number: int, earlier: dict[str, dict[str, Any]], starts: int = STARTS
) -> dict[str, object]:
    published = LAWS[task][number]
    pairs = pieces(folder, task, published)
    names = tuple(str(name) for name in pairs[0][0].columns)
    law = Law(f"{task} {number + 1}", f"y = {published.formula}", bounds=published.box, known=names)
    law.form(), law.form(law.parameters)  # compiled once, by each
    rows = [len(train) for train, _ in pairs]
    key = hashlib.sha256(f"{published.formula} {published.box} {rows}".encode()).hexdigest()[:12]
    before = earlier.get(law.name, {})
    if before.get("key") == key:
        starts = before.get("starts", STARTS)
    result: dict[str, object] = {
        "formula": published.formula, "key": key, "parameters": len(published.box), "starts": starts,
    }  # fmt: skip
    result["peers"] = before["peers"] if before.get("key") == key else peers(law, pairs, starts)
    result["gsq"] = ours(law, pairs, starts)
    both = result["peers"]
    truth = np.concatenate([test["y"] for _, test in pairs])
    ends = np.cumsum([0, *(len(test) for _, test in pairs)])
    lowest, values, total = [], [], 0.0
    for i in range(len(pairs)):  # of each table the better peer
        name = min(both, key=lambda one: both[one]["cost"][i])  # type: ignore[attr-defined, index, arg-type, call-overload]
        lowest.append(both[name]["cost"][i])  # type: ignore[index]
        values.append(both[name]["values"][ends[i] : ends[i + 1]])  # type: ignore[index]
    total = sum(one["seconds"] for one in both.values())  # type: ignore[attr-defined]
    mine = result["gsq"]["cost"]  # type: ignore[index]
    scale = [1e-16 * float(np.sum(train["y"] ** 2)) for train, _ in pairs]
    result["peer"] = {"cost": lowest, "r2": r2(truth, np.concatenate(values)), "seconds": total}
    result["excess"] = max((a - b - s) / b for a, b, s in zip(mine, lowest, scale, strict=True))
    result["gain"] = max((b - a) / max(a, s) for a, b, s in zip(mine, lowest, scale, strict=True))
    result["time_ratio"] = result["gsq"]["seconds"] / total  # type: ignore[index]
    return result


def markdown(document: dict[str, Any]) -> str:
    laws = document["laws"]
    lines = [
        "# ScaleBench: 65 published laws on all training rows, and their R2 in the target region",
        "",
        document["machine"] + ".",
        "",
        "Peers: 64 starts (where the second table says so, fewer) of L-BFGS-B and of least_squares (trf), of each "
        "table the better one; -1: no start of theirs ended at a finite value on some table. Worse: laws whose "
        "sum of squares is more than 1e-6 (relative) above the best peer's on any table; better: more than 1e-6 below "
        "on some table and never worse. Time: our processor seconds over those of both peers.",
        "",
        "| task | laws | R2, paper's All Data | R2, L-BFGS-B | R2, best peer | R2, gsq | worse | better | time, s | "
        "peers, s | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for task in LAWS:
        here = [one for name, one in laws.items() if name.split()[0] == task]
        if len(here) < len(LAWS[task]):
            lines.append(f"| {task} | {len(here)} of {len(LAWS[task])} |" + " not measured |" * 9)
            continue
        values = [(one["peers"]["L-BFGS-B"]["r2"], one["peer"]["r2"], one["gsq"]["r2"]) for one in here]
        mean = np.mean(values, axis=0)
        worse = sum(one["excess"] > 1e-6 for one in here)
        better = sum(one["excess"] <= 1e-6 < one["gain"] for one in here)
        mine, theirs = (sum(one[who]["seconds"] for one in here) for who in ("gsq", "peer"))
        lines.append(
            f"| {task} | {len(here)} | {PAPER[task]:.2f} | {mean[0]:.3f} | {mean[1]:.3f} | {mean[2]:.3f} | {worse} | "
            f"{better} | {mine:.1f} | {theirs:.0f} | {mine / theirs:.3f} |"
        )
    lines += [
        "",
        "| law | parameters | starts of each | R2, best peer | R2, gsq | sum of squares over the best peer's, - 1 | "
        "time ratio | converged |",
        "|---|---|---|---|---|---|---|---|",
    ]
    order = {f"{task} {i + 1}": None for task in LAWS for i in range(len(LAWS[task]))}
    for name, one in ((name, laws[name]) for name in order if name in laws):
        gain = one["gain"]
        change = one["excess"] if one["excess"] > 1e-9 else -gain / (1 + gain) if np.isfinite(gain) else -1.0
        lines.append(
            f"| {name} | {one['parameters']} | {one.get('starts', STARTS)} | {one['peer']['r2']:.4f} | "
            f"{one['gsq']['r2']:.4f} | {change:+.1e} | "
            f"{one['time_ratio']:.3f} | {'yes' if one['gsq']['converged'] else 'no'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", nargs="*", default=list(LAWS))
    parser.add_argument("--laws", nargs="*", type=int, help="numbers of laws, 1 the first")
    parser.add_argument("--peers-from", type=Path)
    parser.add_argument("--starts", type=int, default=STARTS, help="of each peer and of ours, where a law is too dear")
    parser.add_argument("--update", action="store_true", help="put these laws into the table that is there")
    parser.add_argument("--output", default="scalebench_cpu")
    options = parser.parse_args()
    out = HERE / "results" / options.output
    earlier = json.loads(options.peers_from.read_text())["laws"] if options.peers_from else {}
    machine = (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread, numpy {np.__version__}, "
        f"scipy {scipy.__version__}, load average {os.getloadavg()[0]:.1f}"
    )
    document: dict[str, Any] = {"machine": machine, "laws": {}}
    if options.update and out.with_suffix(".json").is_file():
        document["laws"] = json.loads(out.with_suffix(".json").read_text())["laws"]
    for task in options.tasks:
        for number in range(len(LAWS[task])):
            if options.laws and number + 1 not in options.laws:
                continue
            found = measure(options.folder, task, number, earlier, options.starts)
            document["laws"][f"{task} {number + 1}"] = found
            print(
                f"{task} {number + 1}: R2 {found['gsq']['r2']:.4f} ({found['peer']['r2']:.4f}), excess "  # type: ignore[index]
                f"{found['excess']:+.1e}, gain {found['gain']:+.1e}, time {found['gsq']['seconds']:.2f} s "  # type: ignore[index]
                f"({found['peer']['seconds']:.0f})",  # type: ignore[index]
                flush=True,
            )
            out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
            out.with_suffix(".md").write_text(markdown(document))


if __name__ == "__main__":
    main()
