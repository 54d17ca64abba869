"""Test whether one fit can use runs made by different code, package versions or devices.

A few old cells are repeated under the present ones (``repeat: 1`` in the YAML makes another run of the same science;
``gsq plan --anchors`` proposes which), and the pairs are compared.
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
from gsq.config.program import ProgramConfig
from gsq.config.run import RunConfig
from gsq.config.signature import SCIENCE_SECTIONS
from gsq.errors import UserError
from gsq.files import is_yaml
from gsq.records.attempt import DONE
from gsq.records.folder import RunFolder
from gsq.records.read import read_results
from gsq.runs.provenance import environment
from gsq.sweeps.planning.cells import Cell, make_plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.spec.sweep import build_spec
from gsq.sweeps.state.status import survey
from gsq.words import counted

# The columns that say how a run was made, and the plural of their values.
MADE_BY = {"source": "versions of gsq's source", "versions": "sets of package versions", "device": "devices"}
# A shift of rFID small enough not to move a law by more than its error, and the level of the intervals.
MARGIN, LEVEL = 0.05, 0.95
ANCHORS = 4

Verdict = Literal["identical", "poolable", "different", "undecided"]
Made = tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Comparison of runs under one code, device or version with repeats of the same cells under another."""

    old: Mapping[str, str]
    """The columns of MADE_BY for the first runs."""
    new: Mapping[str, str]
    pairs: int
    shift: float
    """Mean of ln(rfid of the repeat / rfid of the first run)."""
    low: float
    high: float
    """95 % interval of the shift (Student's t); infinite if nothing shows how far two runs differ by chance."""
    verdict: Verdict
    """identical: equal to the last bit. poolable: the interval is within 5 %. different: it excludes 0."""
    needed: int | None = None
    """If undecided: about how many pairs would decide."""

    @property
    def sentence(self) -> str:
        names = ", ".join(
            f"{column} {_short(self.old[column])} -> {_short(self.new[column])}"
            for column in MADE_BY
            if self.old[column] != self.new[column]
        )
        cells = f"{counted(self.pairs, 'cell')} repeated ({names})"
        if self.verdict == "identical":
            return f"{cells}: identical to the last bit, so they can be pooled"
        low, high = (100 * math.expm1(x) if x < 1 else math.inf for x in (self.low, self.high))
        text = f"{cells}: rfid differs by {100 * math.expm1(self.shift):+.1f} % [{low:+.1f}, {high:+.1f}]"
        if self.verdict == "poolable":
            return f"{text}, within {100 * MARGIN:g} %: they can be pooled"
        if self.verdict == "different":
            return f"{text}: do not pool them; fit them separately, or train the old cells again"
        more = f"; about {self.needed} repeated cells would decide it" if self.needed else "; repeat more cells"
        return f"{text}: it is undecided whether they can be pooled{more}"


def _short(value: str) -> str:
    """Shorten versions, which are long JSON."""
    return value if len(value) <= 40 else f"{value[:37]}..."


@dataclass(frozen=True)
class Run:
    """The part of a finished run that is compared."""

    cell: Cell
    made: Made
    """Values of MADE_BY."""
    values: Mapping[tuple[str, int], float]
    """rfid by protocol and step."""

    @property
    def science(self) -> tuple[Any, ...]:
        """Return the key that a repeat shares with its original."""
        return _science(self.cell.config)


def _science(config: RunConfig, seed: int | None = None) -> tuple[Any, ...]:
    if isinstance(config, ProgramConfig):
        return config.science(seed)
    train = replace(config.train, repeat=0, seed=config.train.seed if seed is None else seed)
    return tuple(train if name == "train" else getattr(config, name) for name in SCIENCE_SECTIONS)


def made_by(values: Mapping[str, Any]) -> Made:
    return tuple(str(values.get(column) or "") for column in MADE_BY)


def compare(runs: Sequence[Run]) -> list[Comparison]:
    """Compare each way of making a run with each that repeated some of its cells, by rfid at equal protocol and step.

    Pairs and seeds of one configuration both show how far two runs differ by chance.
    """
    originals = {run.science: run for run in runs if not run.cell.config.train.repeat}
    pairs: dict[tuple[Made, Made], list[float]] = defaultdict(list)
    exact: Counter[tuple[Made, Made]] = Counter()
    for run in runs:
        first = originals.get(run.science)
        if not run.cell.config.train.repeat or first is None or first.made == run.made:
            continue
        # Each pair gives one number, at the last common step.
        shared = sorted(first.values.keys() & run.values.keys(), key=lambda key: (key[1], key[0]))
        if not shared:
            continue
        old, new = first.values[shared[-1]], run.values[shared[-1]]
        pairs[first.made, run.made].append(math.log(new / old))
        exact[first.made, run.made] += all(first.values[key] == run.values[key] for key in shared)
    noise, freedom = seed_noise(runs)
    return [_compared(*key, found, exact[key] == len(found), noise, freedom) for key, found in pairs.items()]


def seed_noise(runs: Iterable[Run]) -> tuple[float, int]:
    """Return the variance of ln rfid between seeds that are otherwise alike, and its degrees of freedom."""
    groups: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for run in runs:
        if run.values and not run.cell.config.train.repeat:
            protocol, step = last = max(run.values, key=lambda key: (key[1], key[0]))
            groups[_science(run.cell.config, 0), run.made, protocol, step].append(math.log(run.values[last]))
    freedom = sum(len(group) - 1 for group in groups.values())
    squares = sum((len(group) - 1) * variance(group) for group in groups.values() if len(group) > 1)
    return (squares / freedom if freedom else 0.0), freedom


def _compared(old: Made, new: Made, logs: list[float], exact: bool, noise: float, freedom: int) -> Comparison:
    from scipy.special import stdtrit

    said = (dict(zip(MADE_BY, old, strict=True)), dict(zip(MADE_BY, new, strict=True)))
    count, shift = len(logs), fmean(logs)
    if exact:
        return Comparison(*said, count, 0.0, 0.0, 0.0, "identical")
    degrees = count - 1 + freedom
    half, needed = math.inf, None
    if degrees:
        spread = math.sqrt(((count - 1) * (variance(logs) if count > 1 else 0.0) + 2 * noise * freedom) / degrees)
        t = float(stdtrit(degrees, (1 + LEVEL) / 2))
        half = t * spread / math.sqrt(count)
        room = MARGIN - abs(shift)
        needed = max(count + 1, math.ceil((t * spread / room) ** 2)) if room > 0 else None
    low, high = shift - half, shift + half
    verdict: Verdict = "different" if low > 0 or high < 0 else "undecided"
    if max(abs(low), abs(high)) <= MARGIN:
        verdict = "poolable"
    return Comparison(*said, count, shift, low, high, verdict, needed if verdict == "undecided" else None)


def connected(made: Iterable[Made], comparisons: Iterable[Comparison]) -> bool:
    """Return whether comparisons connect all of these ways of making a run as poolable."""
    groups = [{one} for one in dict.fromkeys(made)]
    for comparison in comparisons:
        if comparison.verdict in ("identical", "poolable"):
            ends = {made_by(comparison.old), made_by(comparison.new)}
            touched = [group for group in groups if group & ends]
            groups = [group for group in groups if not group & ends]
            groups += [set[Made]().union(*touched)] if touched else []
    return len(groups) <= 1


def mixture(sweep: str, made: Iterable[Made], comparisons: Sequence[Comparison] = ()) -> list[str]:
    """Return a sentence with counts if runs were made in several ways that comparisons did not find poolable."""
    runs = list(made)
    if comparisons and connected(runs, comparisons):
        return []
    parts = []
    for i, (column, words) in enumerate(MADE_BY.items()):
        counts = Counter(run[i] for run in runs if run[i])
        if len(counts) > 1:
            # Versions are long, so count them only.
            named = [f"{value}: {n}" if column != "versions" else str(n) for value, n in counts.most_common()]
            parts.append(f"{len(counts)} {words} ({', '.join(named)} runs)")
    if not parts:
        return []
    hint = (
        ""
        if comparisons
        else f"; gsq plan {sweep}.yaml --anchors FILE proposes cells to repeat, to see whether rows can be pooled"
    )
    columns = ", ".join(MADE_BY)
    return [f"sweep '{sweep}' mixes runs of {' and of '.join(parts)}; the columns {columns} tell them apart{hint}"]


def _finished(folder: SweepFolder) -> list[Run]:
    """Finished runs without their values."""
    found = survey(folder)
    runs = []
    for cell in found.plan.cells:
        if found.states[cell.signature].state == DONE:
            made = read_results(RunFolder.of(folder.runs, cell.signature)).environment
            versions = made.get("versions")
            runs.append(Run(cell, made_by({**made, "versions": versions_text(versions)}), {}))
    return runs


def versions_text(versions: Mapping[str, str] | None) -> str | None:
    """Return versions as the results table has them."""
    return json.dumps(versions, sort_keys=True) if versions else None


def propose(folder: SweepFolder, device: str | None, count: int = ANCHORS) -> tuple[list[Run], int]:
    """Propose cells to repeat under the present code and versions. Also returns how many were made otherwise.

    Picks ``count`` finished cells without such a repeat, spread over the axes that vary; if two are equally far
    from the chosen ones, the cheaper. device: where they would be trained, None if unknown. Raises UserError if nothing
    is finished, or everything was made in the present way.
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
    # One seed of a configuration is as good as another.
    seen: dict[tuple[Any, ...], Run] = {}
    for run in others:
        if not run.cell.config.train.repeat and run.science not in repeated:
            seen.setdefault(_science(run.cell.config, 0), run)
    left = sorted(seen.values(), key=lambda run: run.cell.cost.train_flops)
    places = _places(left)
    # Start with the median cost; then always add the run farthest from all chosen ones.
    chosen = [len(left) // 2] if left else []
    while chosen and len(chosen) < min(count, len(left)):
        distance = [min(math.dist(places[i], places[j]) for j in chosen) for i in range(len(left))]
        chosen.append(max((i for i in range(len(left)) if i not in chosen), key=lambda i: (distance[i], -i)))
    return [left[i] for i in sorted(chosen)], len(others)


def _places(runs: Sequence[Run]) -> list[tuple[float, ...]]:
    """Rank of each run along each varying axis, from 0 to 1."""
    names = dict.fromkeys(name for run in runs for name in run.cell.axes if name not in ("seed", "repeat"))
    columns = []
    for name in names:
        values: list[Any] = [run.cell.axes.get(name) for run in runs]
        if not all(isinstance(value, int | float) for value in values):
            # Lists, such as betas, and names are sorted by their text.
            values = [str(value) for value in values]
        levels = sorted(set(values))
        columns.append([levels.index(value) / max(1, len(levels) - 1) for value in values])
    return list(zip(*columns, strict=True)) if columns else [() for _ in runs]


def anchors_yaml(source: Path, sweep: str, anchors: Sequence[Run], repeat: int, folder: Path) -> str:
    """Return a sweep file for ``folder`` that adds these repeats to the sweep.

    source: the sweep's own file. Raises UserError if it no longer gives these cells, or is a search.
    """
    import yaml

    written = read_yaml(source)
    if "search" in written:
        raise UserError(f"{source}: a search draws its own cells; anchors are for a grid")
    base = written["base"]
    values = {"name": sweep, "base": base, "set": written.get("set") or {}}
    if written.get("derive"):  # for axes that are no config keys; what a case gives itself goes before a formula
        values["derive"] = written["derive"]
    values["cases"] = [{**run.cell.axes, "repeat": repeat} for run in anchors]
    changed = [
        run.cell.signature
        for run, cell in zip(anchors, make_plan(build_spec(values, source.parent, str(source))).cells, strict=True)
        if _science(cell.config) != run.science
    ]
    if changed:
        raise UserError(
            f"{source}: base or set have changed since {', '.join(changed)} was trained, so its cells would not be "
            "repeats; name the file as it was then"
        )
    if is_yaml(str(base)) and (source.parent / base).is_file():
        values["base"] = os.path.relpath(source.parent / base, folder)
    head = f"# Repeats finished cells of sweep '{sweep}', to see whether old and new runs can be pooled.\n"
    return head + yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=110)
