"""Whether runs made by different code, package versions or devices may stand in one fit.

A few old cells are trained once more under what is there now (``repeat: 1`` in the YAML makes another run of the same
science; ``gsq plan --anchors`` proposes which), and the pairs are compared.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, variance
from typing import Any, Literal

from gsq.config.overrides import read_yaml
from gsq.config.run import RunConfig
from gsq.config.signature import SCIENCE_SECTIONS
from gsq.errors import UserError
from gsq.records.attempt import DONE
from gsq.records.folder import RunFolder
from gsq.records.read import read_results
from gsq.runs.provenance import environment
from gsq.sweeps.planning.cells import Cell, make_plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.spec.sweep import build_spec
from gsq.sweeps.state.status import survey

# What tells how a run was made, by column of the results table, and what its values are called.
MADE_BY = {"source": "versions of gsq's source", "versions": "sets of package versions", "device": "devices"}
# A shift of rFID that moves no law by more than its own error; and the level of the intervals.
MARGIN, LEVEL = 0.05, 0.95
ANCHORS = 4

Verdict = Literal["identical", "poolable", "different", "undecided"]
Made = tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs of one code (or device, or versions) against repeats of the same cells under another."""

    old: Mapping[str, str]
    """How the first runs were made: the columns of MADE_BY."""
    new: Mapping[str, str]
    pairs: int
    shift: float
    """Mean of ln(rfid of the repeat / rfid of the first run)."""
    low: float
    high: float
    """Its 95 % interval, Student's t; infinite where there is nothing to say how far two runs are apart by chance."""
    verdict: Verdict
    """identical: the same to the last bit. poolable: the interval lies within 5 %. different: it does not hold 0."""
    needed: int | None = None
    """Where undecided: about how many pairs would decide it."""

    @property
    def sentence(self) -> str:
        names = ", ".join(
            f"{column} {_short(self.old[column])} -> {_short(self.new[column])}"
            for column in MADE_BY
            if self.old[column] != self.new[column]
        )
        cells = f"{self.pairs} cell{'s' * (self.pairs != 1)} repeated ({names})"
        if self.verdict == "identical":
            return f"{cells}: the same to the last bit, so that they may be pooled"
        low, high = (100 * math.expm1(x) if x < 1 else math.inf for x in (self.low, self.high))
        text = f"{cells}: rfid differs by {100 * math.expm1(self.shift):+.1f} % [{low:+.1f}, {high:+.1f}]"
        if self.verdict == "poolable":
            return f"{text}, within {100 * MARGIN:g} %: they may be pooled"
        if self.verdict == "different":
            return f"{text}: they may not be pooled; fit them apart, or train the old cells again"
        more = f"; about {self.needed} repeated cells would decide it" if self.needed else "; repeat more cells"
        return f"{text}: whether they may be pooled is not decided{more}"


def _short(value: str) -> str:
    """Versions are long JSON."""
    return value if len(value) <= 40 else f"{value[:37]}..."


@dataclass(frozen=True)
class Run:
    """What of one finished run is compared."""

    cell: Cell
    made: Made
    """Values of MADE_BY."""
    values: Mapping[tuple[str, int], float]
    """rfid by protocol and step."""

    @property
    def science(self) -> tuple[Any, ...]:
        """What a repeat has in common with its original, and, but for the seed, with other seeds."""
        return _science(self.cell.config)


def _science(config: RunConfig, seed: int | None = None) -> tuple[Any, ...]:
    train = replace(config.train, repeat=0, seed=config.train.seed if seed is None else seed)
    return tuple(train if name == "train" else getattr(config, name) for name in SCIENCE_SECTIONS)


def made_by(values: Mapping[str, Any]) -> Made:
    return tuple(str(values.get(column) or "") for column in MADE_BY)


def compare(runs: Sequence[Run]) -> list[Comparison]:
    """Each way of making a run against each other one that repeated some of its cells, by rfid at equal protocol and
    step. How far two runs are apart by chance is learnt from the pairs and from seeds of one configuration alike."""
    originals = {run.science: run for run in runs if not run.cell.config.train.repeat}
    pairs: dict[tuple[Made, Made], list[float]] = defaultdict(list)
    exact: Counter[tuple[Made, Made]] = Counter()
    for run in runs:
        first = originals.get(run.science)
        if not run.cell.config.train.repeat or first is None or first.made == run.made:
            continue
        # One number a pair: the last step, which both have.
        shared = sorted(first.values.keys() & run.values.keys(), key=lambda key: (key[1], key[0]))
        if not shared:
            continue
        old, new = first.values[shared[-1]], run.values[shared[-1]]
        pairs[first.made, run.made].append(math.log(new / old))
        exact[first.made, run.made] += all(first.values[key] == run.values[key] for key in shared)
    noise, freedom = seed_noise(runs)
    return [_compared(*key, found, exact[key] == len(found), noise, freedom) for key, found in pairs.items()]


def seed_noise(runs: Iterable[Run]) -> tuple[float, int]:
    """Variance of ln rfid between seeds of one configuration, made alike, and its degrees of freedom."""
    groups: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for run in runs:
        if run.values and not run.cell.config.train.repeat:
            protocol, step = last = max(run.values, key=lambda key: (key[1], key[0]))
            groups[_science(run.cell.config, 0), run.made, protocol, step].append(math.log(run.values[last]))
    freedom = sum(len(group) - 1 for group in groups.values())
    squares = sum((len(group) - 1) * variance(group) for group in groups.values() if len(group) > 1)
    return (squares / freedom if freedom else 0.0), freedom


def _compared(old: Made, new: Made, logs: list[float], exact: bool, noise: float, freedom: int) -> Comparison:
    from scipy import stats

    said = tuple(dict(zip(MADE_BY, made, strict=True)) for made in (old, new))
    count, shift = len(logs), fmean(logs)
    if exact:
        return Comparison(said[0], said[1], count, 0.0, 0.0, 0.0, "identical")
    degrees = count - 1 + freedom
    half, needed = math.inf, None
    if degrees:
        spread = math.sqrt(((count - 1) * (variance(logs) if count > 1 else 0.0) + 2 * noise * freedom) / degrees)
        t = float(stats.t.ppf((1 + LEVEL) / 2, degrees))
        half = t * spread / math.sqrt(count)
        room = MARGIN - abs(shift)
        needed = max(count + 1, math.ceil((t * spread / room) ** 2)) if room > 0 else None
    low, high = shift - half, shift + half
    if max(abs(low), abs(high)) <= MARGIN:
        return Comparison(said[0], said[1], count, shift, low, high, "poolable")
    if low > 0 or high < 0:
        return Comparison(said[0], said[1], count, shift, low, high, "different")
    return Comparison(said[0], said[1], count, shift, low, high, "undecided", needed)


def connected(made: Iterable[Made], comparisons: Iterable[Comparison]) -> bool:
    """Whether all of these ways of making a run may be pooled, by a chain of comparisons that found so."""
    groups = [{one} for one in dict.fromkeys(made)]
    for comparison in comparisons:
        if comparison.verdict in ("identical", "poolable"):
            ends = {made_by(comparison.old), made_by(comparison.new)}
            touched = [group for group in groups if group & ends]
            groups = [group for group in groups if not group & ends]
            groups += [set[Made]().union(*touched)] if touched else []
    return len(groups) <= 1


def mixture(sweep: str, made: Iterable[Made], comparisons: Sequence[Comparison] = ()) -> list[str]:
    """A sentence that says so where runs were made in several ways, with how many of each, unless comparisons found
    that all of them may be pooled."""
    runs = list(made)
    if comparisons and connected(runs, comparisons):
        return []
    parts = []
    for i, (column, words) in enumerate(MADE_BY.items()):
        counted = Counter(run[i] for run in runs if run[i])
        if len(counted) > 1:
            # Versions are long, and their number says enough.
            named = [f"{value}: {n}" if column != "versions" else str(n) for value, n in counted.most_common()]
            parts.append(f"{len(counted)} {words} ({', '.join(named)} runs)")
    if not parts:
        return []
    hint = "" if comparisons else f"; gsq plan {sweep}.yaml --anchors FILE proposes cells to repeat, which tells"
    columns = ", ".join(MADE_BY)
    return [f"sweep '{sweep}' mixes runs of {' and of '.join(parts)}; the columns {columns} tell them apart{hint}"]


def _finished(folder: SweepFolder) -> list[Run]:
    """With their values left out."""
    found = survey(folder)
    runs = []
    for cell in found.plan.cells:
        if found.states[cell.signature].state == DONE:
            made = read_results(RunFolder.of(folder.runs, cell.signature)).environment
            versions = made.get("versions")
            runs.append(Run(cell, made_by({**made, "versions": versions_text(versions)}), {}))
    return runs


def versions_text(versions: Mapping[str, str] | None) -> str | None:
    """As the results table has them."""
    return json.dumps(versions, sort_keys=True) if versions else None


def propose(folder: SweepFolder, device: str | None, count: int = ANCHORS) -> tuple[list[Run], int]:
    """Cells to train once more under the code and versions of now, and how many were made otherwise.

    ``count`` finished cells that nothing of now has repeated, spread over the axes that vary: the cheaper one of two
    that are as far from those chosen before. device: the one they would be trained on, None where that is not known.
    Raises UserError where nothing is finished, or all was made as it would be now.
    """
    runs = _finished(folder)
    if not runs:
        raise UserError(f"sweep '{folder.name}': no cell is done, so there is nothing to repeat")
    here = environment(runs[0].cell.config, device or "")
    now = made_by({**here, "versions": versions_text(here["versions"])})

    def old(run: Run) -> bool:
        return run.made[:2] != now[:2] or (device is not None and run.made[2] != now[2])

    repeated = {run.science for run in runs if run.cell.config.train.repeat and not old(run)}
    others = [run for run in runs if old(run)]
    if not others:
        raise UserError(
            f"sweep '{folder.name}': all {len(runs)} finished cells were made by this code and these package "
            "versions; there is nothing to compare"
        )
    # One seed of a configuration says as much as another.
    seen: dict[tuple[Any, ...], Run] = {}
    for run in others:
        if not run.cell.config.train.repeat and run.science not in repeated:
            seen.setdefault(_science(run.cell.config, 0), run)
    left = sorted(seen.values(), key=lambda run: run.cell.cost.train_flops)
    places = _places(left)
    # The first in the middle of what it costs; then always the one farthest from all chosen.
    chosen = [len(left) // 2] if left else []
    while chosen and len(chosen) < min(count, len(left)):
        distance = [min(math.dist(places[i], places[j]) for j in chosen) for i in range(len(left))]
        chosen.append(max((i for i in range(len(left)) if i not in chosen), key=lambda i: (distance[i], -i)))
    return [left[i] for i in sorted(chosen)], len(others)


def _places(runs: Sequence[Run]) -> list[tuple[float, ...]]:
    """Of each run its rank along each axis that varies, from 0 to 1."""
    names = dict.fromkeys(name for run in runs for name in run.cell.axes if name not in ("seed", "repeat"))
    columns = []
    for name in names:
        values: list[Any] = [run.cell.axes.get(name) for run in runs]
        if not all(isinstance(value, int | float) for value in values):
            # Lists, such as betas, and names have the order of their text.
            values = [str(value) for value in values]
        levels = sorted(set(values))
        columns.append([levels.index(value) / max(1, len(levels) - 1) for value in values])
    return list(zip(*columns, strict=True)) if columns else [() for _ in runs]


def anchors_yaml(source: Path, sweep: str, anchors: Sequence[Run], repeat: int, folder: Path) -> str:
    """A sweep file that adds these repeats to the sweep, to lie in ``folder``.

    source: the sweep's own file. Raises UserError where that no longer gives these cells, or is a search's.
    """
    import yaml

    written = read_yaml(source)
    if "search" in written:
        raise UserError(f"{source}: a search draws its own cells; anchors are for a grid")
    base = written["base"]
    values = {"name": sweep, "base": base, "set": written.get("set") or {}}
    values["cases"] = [{**run.cell.axes, "repeat": repeat} for run in anchors]
    changed = [
        run.cell.signature
        for run, cell in zip(anchors, make_plan(build_spec(values, source.parent, str(source))).cells, strict=True)
        if _science(cell.config) != run.science
    ]
    if changed:
        raise UserError(
            f"{source}: gives other cells than when {', '.join(changed)} was trained (base or set have changed since), "
            "and those would be no repeats; name the file as it was"
        )
    if str(base).endswith((".yaml", ".yml")) and (source.parent / base).is_file():
        values["base"] = os.path.relpath(source.parent / base, folder)
    head = (
        f"# Finished cells of sweep '{sweep}' to be trained once more, to see whether old and new runs may be pooled.\n"
    )
    return head + yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=110)
