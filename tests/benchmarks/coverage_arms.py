"""Do intervals of arm factors and of breaks hold the truth in 95 % of studies, and do their tests hold their level?

    python tests/benchmarks/coverage_arms.py [--studies 200] [--resamples 200] [--tables 100] [NAME ...]

Arms: each study is a table of two or three arms with normal errors of the logarithm, fitted by ``analysis.fit`` and
compared by ``analysis.arms``; with seeds, configurations have errors of their own, and with studies, so have these.
Forms: as tests/benchmarks/coverage.py, for the laws that have a test here. Level: tables of a law without a break,
tested against the law with one. Differs from ``gsq fit``: 4 starts for arms (whose laws have one optimum). Writes
results/coverage_arms.json and results/coverage_arms.md beside this file, after each design.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from coverage import Study, measure

from gsq.analysis.checking.arms import arms
from gsq.analysis.checking.nested import nested_test
from gsq.analysis.fitting.fit import fit, interval_room
from gsq.analysis.fitting.noise import pure_error

HERE = Path(__file__).parent
ALPHA = 0.8
HEIGHTS = {"a": 0.3, "b": 0.2, "c": 0.13}


@dataclass(frozen=True)
class Comparison:
    """A design of two arms or three, and the standard deviations of what is drawn for it."""

    law: str
    arms: str
    rates: int
    run: float
    seeds: tuple[int, ...] = (1,)
    """Seeds of a configuration, in turn."""
    configuration: float = 0.0
    studies: int = 0
    study: float = 0.0
    nested: bool = False
    """Whether a study has one arm alone."""
    floor: float = 0.0
    random: str | None = None

    def table(self, rng: np.random.Generator) -> pd.DataFrame:
        """One study, drawn."""
        rows = []
        offsets = self.study * rng.standard_normal(max(1, self.studies))
        at = 0
        for number, arm in enumerate(self.arms):
            for rate in np.geomspace(0.1, 6, self.rates):
                study = at % max(1, self.studies)
                if self.nested:
                    study = (at % (self.studies // len(self.arms))) * len(self.arms) + number
                own = self.configuration * rng.standard_normal()
                for _ in range(self.seeds[at % len(self.seeds)]):
                    error = offsets[study] + own + self.run * rng.standard_normal()
                    value = (self.floor + HEIGHTS[arm] * rate**-ALPHA) * np.exp(error)
                    rows.append({"arm": arm, "bits_per_pixel": rate, "rfid": value, "study": f"s{study}"})
                at += 1
        return pd.DataFrame(rows)


PLAIN = "rfid = A[arm] * bits_per_pixel^(-alpha)"
ARMS = {
    "two arms, 10 rates": Comparison(PLAIN, "ab", 10, 0.05),
    "two arms, 5 rates, 20 %": Comparison(PLAIN, "ab", 5, 0.2),
    "three arms above a floor": Comparison("rfid = E + A[arm] * bits_per_pixel^(-alpha)", "abc", 10, 0.03, floor=0.05),
    "an exponent for each arm": Comparison("rfid = A[arm] * bits_per_pixel^(-alpha[arm])", "ab", 8, 0.05),
    "three seeds a configuration": Comparison(PLAIN, "ab", 8, 0.02, (3,), 0.05),
    "1 to 5 seeds a configuration": Comparison(PLAIN, "ab", 8, 0.05, (1, 5, 2, 3), 0.03),
    "1 to 5 seeds, random effects": Comparison(
        PLAIN, "ab", 8, 0.05, (1, 5, 2, 3), 0.03, studies=8, study=0.05, random="study"
    ),
    "8 studies of both arms, random effects": Comparison(PLAIN, "ab", 16, 0.03, studies=8, study=0.1, random="study"),
    "8 studies of one arm each, random effects": Comparison(
        PLAIN, "ab", 16, 0.03, studies=8, study=0.1, nested=True, random="study"
    ),
}

LEVELS = {f"power_law_bpp, {rows} rows against broken_power_law": rows for rows in (16, 30)}
OUTPUTS = {"two outputs, independent errors": 0.0, "two outputs, errors that correlate by 0.8": 0.8}
PARTS = ("arms", "outputs", "levels", "forms")


def forms() -> dict[str, Study]:
    """Designs of the laws of their own questions."""
    sizes, images = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e6, 1e9, 6), np.geomspace(1e6, 1e9, 6)))
    budgets = pd.DataFrame({"parameters": sizes, "images_seen": images})
    repeats = pd.DataFrame(
        [
            {"parameters": n, "images_seen": u * e, "unique_images": u}
            for n in (1e7, 1e8, 1e9)
            for u in (1e6, 1e7, 1e8)
            for e in (1.0, 4.0, 16.0, 64.0)
        ]
    )
    weights = pd.DataFrame(
        [
            {"parameters": n, "images_seen": d, "weight_bits": w}
            for n in (1e7, 1e8, 1e9)
            for d in (1e8, 1e9, 1e10)
            for w in (3.0, 4.0, 6.0, 16.0)
        ]
    )
    rates = pd.DataFrame({"bits_per_pixel": np.geomspace(0.01, 100, 24)})
    wide = pd.DataFrame({"bits_per_pixel": np.geomspace(1e-3, 1e3, 40)})
    chinchilla = {"E": 0.5, "A": 400.0, "a": 0.4, "B": 300.0, "b": 0.35}
    break_ = {"c": 1.0, "alpha": 0.2, "d": 1.0, "s": 0.3, "beta": 0.8}
    two = {"c": 1.0, "alpha": 0.2, "d": 0.1, "s": 0.3, "beta": 0.8, "k": 100.0, "gamma": -0.7}
    beyond = {"parameters": 1e10, "images_seen": 1e10}
    return {
        "broken_power_law": Study(rates, break_, 0.03, {"bits_per_pixel": 300.0}),
        "broken_power_law, 10 %": Study(rates, break_, 0.1, {"bits_per_pixel": 300.0}, "broken_power_law"),
        "broken_power_law_2": Study(wide, two, 0.03, {"bits_per_pixel": 3e3}),
        "data_constrained": Study(repeats, chinchilla | {"r": 15.0}, 0.01, beyond | {"unique_images": 1e9}),
        "kaplan": Study(budgets, {"N_c": 6.4e13, "a": 0.076, "b": 0.103, "D_c": 1.8e13}, 0.01, beyond),
        "precision": Study(weights, chinchilla | {"gamma": 2.7}, 0.01, beyond | {"weight_bits": 4.0}),
    }


def compare(design: Comparison, count: int, resamples: int) -> dict[str, object]:
    """Coverage of the factor between each arm and the first, and the level of the test of shared exponents."""
    begun, rng = time.perf_counter(), np.random.default_rng(0)
    held: dict[str, list[float]] = {"shown": [], "profile": [], "bootstrap": []}
    rejected = []
    for _ in range(count):
        # Without the profiles of all parameters, whose room alone the factor needs.
        found = fit(
            design.table(rng), design.law, bootstrap=resamples, starts=4, bootstrap_starts=1, intervals="bootstrap"
        )
        pure = pure_error(found.problem, found.weights, found.configurations)[0]
        room = interval_room(np.array([found.cost]), pure, found.freedom[0], found.rank, found.confidence)
        found = replace(found, room=float(room[0]), interval_kind="profile")
        result = arms(found, "arm", "a", random=design.random)
        for one in result.worths:
            truth = (HEIGHTS["a"] / HEIGHTS[one.arm]) ** (1 / ALPHA)
            pairs = {"shown": one.interval, "profile": one.profile, "bootstrap": one.bootstrap}
            for kind, (low, high) in pairs.items():
                held[kind].append(low <= truth <= high)
        rejected.append(np.nan if result.shared is None else result.shared.p < 0.05)
    coverage = {kind: float(np.mean(values)) for kind, values in held.items()}
    return {"coverage": coverage, "rejected": float(np.mean(rejected)), "seconds": time.perf_counter() - begun}


def outputs(together: float, count: int, resamples: int) -> dict[str, object]:
    """Coverage of what two outputs of 24 runs share and of what each has of its own; errors of 1 % and 5 %."""
    begun, rng = time.perf_counter(), np.random.default_rng(2)
    truth = {"E[one]": 0.5, "E[two]": 2.0, "A[one]": 30.0, "A[two]": 4000.0, "a": 0.4}
    size = np.geomspace(1e4, 1e8, 24)
    held: dict[str, list[list[bool]]] = {"profile": [], "bootstrap": []}
    for _ in range(count):
        first, other = rng.standard_normal((2, len(size)))
        other = together * first + np.sqrt(1 - together**2) * other
        frame = pd.DataFrame({"N": size})
        frame["one"] = (0.5 + 30 * size**-0.4) * np.exp(0.01 * first)
        frame["two"] = (2 + 4000 * size**-0.4) * np.exp(0.05 * other)
        law, options = "E[out] + A[out] * N^(-a)", {"starts": 4, "bootstrap_starts": 1, "bootstrap": resamples}
        found = fit(frame, law, target=["one", "two"], **options)
        for kind, all_ends in (("profile", found.profile_intervals), ("bootstrap", found.bootstrap_intervals)):
            held[kind].append([low <= truth[name] <= high for name, (low, high) in all_ends.items()])
    shares = {kind: np.mean(values, axis=0) for kind, values in held.items()}
    names = list(found.profile_intervals)
    coverage = {name: {kind: float(one[i]) for kind, one in shares.items()} for i, name in enumerate(names)}
    return {"coverage": coverage, "seconds": time.perf_counter() - begun}


def level(simpler: str, law: str, rows: int, noise: float, count: int, simulations: int) -> dict[str, object]:
    """Share of tables of the simpler law that :func:`analysis.nested_test` rejects at 5 %."""
    begun, rng = time.perf_counter(), np.random.default_rng(1)
    rates = np.geomspace(0.01, 100, rows)
    rejected = []
    for _ in range(count):
        table = pd.DataFrame(
            {"bits_per_pixel": rates, "rfid": 0.3 * rates**-0.6 * np.exp(noise * rng.standard_normal(rows))}
        )
        found = fit(table, law, bootstrap=0, starts=16, intervals="bootstrap")
        rejected.append(nested_test(found, simpler, simulations).p <= 0.05)
    return {"rejected": float(np.mean(rejected)), "tables": count, "seconds": time.perf_counter() - begun}


def percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f}"


def markdown(document: dict[str, object]) -> str:
    studies = int(document["studies"])  # type: ignore[call-overload]
    error = 100 * np.sqrt(0.95 * 0.05 / studies)
    lines = [
        "# Coverage of 95 % intervals: arm factors, breaks and forms of their own",
        "",
        f"{document['machine']}. {studies} simulated studies a design, {document['resamples']} resamples each, where a "
        f"table says nothing else; standard error of a coverage near 95 %: {error:.1f} points (three arms give two "
        "factors a study).",
        "",
        "## Arm factors",
        "",
        "Shown: what `gsq fit --arms` prints, the profile interval or, with `--random study`, that of random effects. "
        "Profile and bootstrap do not know of studies. Rejected: by the test of shared exponents at 5 %, which all "
        "arms share here.",
        "",
        "| design | shown | profile | bootstrap | rejected |",
        "|---|---|---|---|---|",
    ]
    for name, one in document["arms"].items():  # type: ignore[attr-defined]
        held = one["coverage"]
        shown = " | ".join(percent(held[kind]) for kind in ("shown", "profile", "bootstrap"))
        lines.append(f"| {name} | {shown} | {percent(one['rejected'])} |")
    lines += ["", "## Several outputs", "", "Profile intervals take the errors of the outputs to be independent."]
    lines += ["", "| design | of | profile | bootstrap |", "|---|---|---|---|"]
    for name, one in document["outputs"].items():  # type: ignore[attr-defined]
        lines += [
            f"| {name} | {of} | {percent(row['profile'])} | {percent(row['bootstrap'])} |"
            for of, row in one["coverage"].items()
        ]
    lines += ["", "## Level of the test for a break", "", "| tables of | tested against | tables | rejected at 5 % |"]
    lines.append("|---|---|---|---|")
    for name, one in document["levels"].items():  # type: ignore[attr-defined]
        simpler, law = name.split(" against ")
        lines.append(f"| {simpler} | {law} | {one['tables']} | {percent(one['rejected'])} |")
    lines += [
        "",
        "## Parameters and predictions",
        "",
        "| law | rows | noise | studies | resamples | of | truth | profile, delta | bootstrap |",
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for name, one in document["forms"].items():  # type: ignore[attr-defined]
        counts = f"{one.get('studies', studies)} | {one.get('resamples', document['resamples'])}"
        start = f"| {name} | {one['rows']} | {100 * one['noise']:g} % | {counts} |"
        for parameter, row in one["parameters"].items():
            both = f"{percent(row['profile'])} | {percent(row['bootstrap'])}"
            lines.append(f"{start} {parameter} | {row['truth']:g} | {both} |")
        band = one["prediction"]
        place = ", ".join(f"{key} {value:g}" for key, value in band["at"].items())
        both = f"{percent(band['profile'])} | {percent(band['bootstrap'])}"
        lines.append(f"{start} prediction at {place} | {band['truth']:.4g} | {both} |")
    missing = [
        name for name in (*ARMS, *OUTPUTS, *LEVELS, *forms()) if not any(name in document[part] for part in PARTS)
    ]  # type: ignore[operator]
    lines += ["", f"Not measured yet: {'; '.join(missing)}."] if missing else []
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--tables", type=int, default=100)
    parser.add_argument("names", nargs="*", help="designs to measure again; the others stay as they are in the file")
    options = parser.parse_args()
    out = HERE / "results"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, one thread, numpy {np.__version__}"
    document: dict[str, object] = {part: {} for part in PARTS}
    if options.names:
        document |= json.loads((out / "coverage_arms.json").read_text())
    counts = {"studies": options.studies, "resamples": options.resamples}
    document |= {"machine": machine} | ({} if options.names else counts)
    tasks: dict[str, tuple[str, Callable[[], dict[str, object]]]] = {
        name: ("arms", lambda one=one: compare(one, options.studies, options.resamples))  # type: ignore[misc]
        for name, one in ARMS.items()
    }
    for name, together in OUTPUTS.items():
        tasks[name] = (
            "outputs",
            lambda together=together: outputs(together, options.studies, options.resamples),  # type: ignore[misc]
        )
    for name, rows in LEVELS.items():
        tasks[name] = (
            "levels",
            lambda rows=rows: level("power_law_bpp", "broken_power_law", rows, 0.05, options.tables, 39),  # type: ignore[misc]
        )
    for name, study in forms().items():
        tasks[name] = (
            "forms",
            lambda name=name, study=study: measure(name, study, options.studies, options.resamples),  # type: ignore[misc]
        )
    for name, (section, task) in tasks.items():
        if options.names and name not in options.names:
            continue
        document[section][name] = counts | task()  # type: ignore[index]
        print(name, json.dumps(document[section][name]), flush=True)  # type: ignore[index]
        (out / "coverage_arms.json").write_text(json.dumps(document, indent=2) + "\n")
        (out / "coverage_arms.md").write_text(markdown(document))
