"""Estimates of a cell's time and memory before it runs.

They are arithmetic (gsq.config.flops) until runs have been measured, and are then fitted to the measurements.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

from gsq.config.flops import evaluation_macs, probe_flops
from gsq.config.overrides import from_dict
from gsq.config.program import ProgramConfig
from gsq.errors import UserError
from gsq.files import read_json
from gsq.records.attempt import DONE
from gsq.records.folder import RunFolder
from gsq.records.read import RunRecord, newest_file, read_probes, read_run
from gsq.sweeps.planning.cells import Cell
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.spec.gpus import DEFAULT_GPU, GPU_PEAKS
from gsq.words import counted

# Training speed assumed until a run has been measured: one thread of a 2-core AMD EPYC virtual machine on the cpu-tiny
# preset, and for a GPU a share of its peak, which was not measured.
ASSUMED_CPU_FLOPS = 4.0e10
ASSUMED_UTILISATION = 0.33
# Assumed start-up time (imports, weights, images, the first step).
STARTUP_SECONDS = {"cpu": 3.0, "gpu": 30.0}
# Memory of the interpreter with torch and the feature network, besides the model's own (CPU: 345 to 460 MiB measured).
FRAMEWORK_BYTES = {"cpu": 420 << 20, "gpu": 1 << 30}
# Steps and seconds after the first step that a run needs before its speed counts.
TIMED_STEPS, TIMED_SECONDS = 10, 1.0
# A sweep with fewer measured runs also uses those of other sweeps. Fitting a line needs as many.
ENOUGH_RUNS = 4
# Most measured runs in a fit, and most folders opened to find those of other sweeps.
FITTED_RUNS, OPENED_RUNS = 64, 400


class Estimate(NamedTuple):
    seconds: float
    """Device seconds of the whole cell: start-up, training, evaluation."""
    memory_bytes: int


@dataclass(frozen=True)
class Speed:
    """Cost of steps, evaluations and memory on one device. Device seconds count all processes of a run."""

    step: tuple[float, float, float]
    """Device seconds of a step: a constant, and per FLOP of the networks and of the look-up."""
    evaluation: tuple[float, float]
    """Device seconds of an evaluation: a constant, and per FLOP of its forward passes."""
    startup_seconds: float
    memory: tuple[float, float]
    """Bytes at the peak: a constant, and per byte of gsq.config.flops.Cost.memory_bytes."""
    basis: str
    """Source of the numbers, in words."""
    runs: int
    """Measured runs behind the numbers, 0 if they are assumed."""
    device: str
    """cpu, gpu, or the name of an assumed GPU (A100)."""
    probe: float | None = None
    """Device seconds of a generation probe per FLOP; None for those of an evaluation."""


class Measured(NamedTuple):
    """A run that has been timed."""

    cell: Cell
    record: RunRecord


def speed(
    cells: Iterable[Cell],
    records: Mapping[str, RunRecord],
    device: str,
    folder: SweepFolder | None = None,
    gpu: str = DEFAULT_GPU,
) -> Speed:
    """Fit the speed to the runs of these cells on a device (cpu or gpu), finished or not; without runs, assume it.

    folder: the sweep's, whose canaries count as its own runs. With fewer than ENOUGH_RUNS of its own, runs of other
    sweeps give the shape of the fit and its own runs the level. gpu: the assumed one of GPU_PEAKS.
    """
    cells = list(cells)
    own = [Measured(cell, r) for cell in cells if (r := records.get(cell.signature)) and _timed(r, device)]
    if folder is not None:
        own += [m for m in _canaries(folder) if _timed(m.record, device)]
    others: list[Measured] = []
    name = ""
    if folder is not None and len(own) < ENOUGH_RUNS:
        program = next((cell.config.program for cell in cells), "")
        others, name = _other_runs(folder, device, {m.cell.signature for m in own}, program)
    if not own and not others:
        rate, name = 1 / assumed_flops(device, gpu), gpu.upper() if device == "gpu" else device
        if cells and cells[0].config.program:
            return _declared(cells, rate, device, name)
        share = f"{ASSUMED_UTILISATION:.0%} of the {GPU_PEAKS[gpu] / 1e12:.0f} TFLOP/s of one {name}"
        basis = f"assumed, not measured: {share}" if device == "gpu" else f"assumed for a {device}"
        memory = (float(FRAMEWORK_BYTES[device]), 1.0)
        basis += "; runs will correct it"
        found = Speed((0.0, rate, rate), (0.0, rate), STARTUP_SECONDS[device], memory, basis, 0, name)
    else:
        counts = [(len(own), "this sweep"), (len(others), f"other sweeps on {name}")]
        basis = " and ".join(f"{counted(count, 'run')} of {whose}" for count, whose in counts if count)
        found = _fitted(own, others, device, f"measured on {basis}")
    return found if folder is None else replace(found, probe=_probe_rate(cells, others, device, folder))


def assumed_flops(device: str, gpu: str = DEFAULT_GPU) -> float:
    """Return the assumed FLOP/s of training on a device without measurements."""
    return ASSUMED_UTILISATION * GPU_PEAKS[gpu] if device == "gpu" else ASSUMED_CPU_FLOPS


def _declared(cells: Sequence[Cell], rate: float, device: str, name: str) -> Speed:
    """Return the speed of a program of a user's own before a run has been measured."""
    configs = [cell.config for cell in cells if isinstance(cell.config, ProgramConfig)]
    basis = "not measured, and neither seconds: nor flops: in the sweep file says; runs will tell"
    if any(config.seconds for config in configs):
        basis = "as seconds: in the sweep file declares"
    elif any(config.flops for config in configs):
        basis = f"from flops: in the sweep file, at an assumed {1 / rate:.2g} FLOP/s on a {name}; runs will correct it"
    memory = (float(FRAMEWORK_BYTES[device]), 1.0)
    return Speed((0.0, rate, rate), (0.0, 0.0), STARTUP_SECONDS[device], memory, basis, 0, name)


def _timed(record: RunRecord, device: str) -> bool:
    return (
        record.device == {"cpu": "cpu", "gpu": "cuda"}[device]
        and record.step_seconds is not None
        and record.timed_steps >= TIMED_STEPS
        and record.step_seconds * record.timed_steps >= TIMED_SECONDS
    )


def canary_folder(folder: SweepFolder) -> SweepFolder:
    """Return the sweep folder of a sweep's canaries (gsq.sweeps.running.canary)."""
    return SweepFolder(folder.runs, f"{folder.name}-canary")


def _canaries(folder: SweepFolder) -> Iterator[Measured]:
    there = canary_folder(folder)
    if there.plan_files():
        for cell in there.read_plan().cells:
            yield Measured(cell, read_run(RunFolder.of(folder.runs, cell.signature)))


def _other_runs(folder: SweepFolder, device: str, known: set[str], program: str) -> tuple[list[Measured], str]:
    """Return timed runs on the device that has most of them, and its name. Hashed signatures make the first random.

    program: only its runs count; empty for those of gsq's own training.
    """
    found: dict[str, list[Measured]] = {}
    prefixes = (path for path in sorted(folder.runs.glob("[0-9a-f][0-9a-f]")) if path.is_dir())
    paths = (path for prefix in prefixes for path in sorted(prefix.iterdir()))
    for path in islice(paths, OPENED_RUNS):
        run = RunFolder(path)
        if path.name in known or not _timed(record := read_run(run), device):
            continue
        environment = newest_file(run, "env.json")
        name = ((environment and read_json(environment)) or {}).get("device") or f"a {device}"
        try:
            values = run.read_config()
            if values.get("program", "") != program:
                continue
            label = values.pop("data_label", "")
            found.setdefault(name, []).append(Measured(Cell(path.name, {}, from_dict(values), label), record))
        except (UserError, TypeError, KeyError, AttributeError):
            continue  # Another version of gsq wrote the config.
        if sum(map(len, found.values())) >= FITTED_RUNS:
            break
    name = max(found, key=lambda n: len(found[n]), default="")
    return found.get(name, []), name


def _fitted(own: list[Measured], others: list[Measured], device: str, basis: str) -> Speed:
    # Thin out evenly over the plan, which is ordered by its axes.
    own = own[:: -(-len(own) // FITTED_RUNS)] if own else own
    runs = own + others

    def level(predicted: list[float], measured: list[float]) -> float:
        """Factor by which own runs correct the fit to other sweeps."""
        ratios = [m / p for m, p in zip(measured[: len(own)], predicted, strict=False)]
        return statistics.median(ratios) if own and others else 1.0

    rows = [(1.0, dense, lookup, dense + lookup) for dense, lookup in map(_step_flops, runs)]
    seconds = [m.record.step_seconds or 0.0 for m in runs]
    # A program of a user's own may not declare its FLOPs.
    shapes = ((3,), (0, 3), (1, 2), (0, 1, 2)) if all(row[3] for row in rows) else ((0,),)
    a, b, c, both = fit(rows, seconds, shapes)
    factor = level([a + b * row[1] + c * row[2] + both * row[3] for row in rows], seconds)
    step = (a * factor, (b + both) * factor, (c + both) * factor)
    # Until enough runs tell, assume a constant and the same speed per FLOP as in training.
    per_flop = step[1] or 1 / assumed_flops(device)
    evaluated = [(per_flop * evaluation_flops(m.cell), s) for m in runs if (s := m.record.evaluation_seconds)]
    constant, factor = _corrected(evaluated, 0.0)
    startups = [m.record.startup_seconds for m in own or others if m.record.startup_seconds is not None]
    return Speed(
        step,
        (constant, factor * per_flop),
        statistics.median(startups) if startups else STARTUP_SECONDS[device],
        _memory(runs, device),
        basis,
        len(runs),
        device,
    )


def _step_flops(run: Measured) -> tuple[float, float]:
    """FLOPs per step of the networks and of the look-up, over the steps that the run has made."""
    cost, config = run.cell.cost, run.cell.config
    steps, start = config.train.steps, config.loss.discriminator_start
    word = (run.record.started_from or "").rpartition(" ")[2]
    first = int(word) if word.isdigit() else 0
    last = max(run.record.step, first + 1)
    adversarial = max(0, last - max(first, start)) / max(1, steps - start) if steps > start else 0.0
    dense = (cost.generator_flops + cost.perceptual_flops) / steps
    return dense + cost.discriminator_flops * adversarial / (last - first), cost.lookup_flops / steps


def evaluation_flops(cell: Cell) -> float:
    """Return the FLOPs of one evaluation, without the originals' features, which all runs share."""
    return 2.0 * cell.config.evaluation.num_images * evaluation_macs(cell.config)


def probe_seconds(cell: Cell, rate: Speed) -> float:
    """Estimate the device seconds of a cell's generation probe; 0 without one."""
    per_flop = rate.evaluation[1] if rate.probe is None else rate.probe
    return per_flop * probe_flops(cell.config, cell.train_images)


def _probe_rate(cells: Sequence[Cell], others: Sequence[Measured], device: str, folder: SweepFolder) -> float | None:
    """Return the median device seconds per FLOP of measured probes, of the size that the cells ask for if there are."""
    wanted = {cell.config.evaluation.probe for cell in cells if not cell.config.program} - {"none"}
    same, every = [], []
    for signature in [cell.signature for cell in cells] + [m.cell.signature for m in others] if wanted else ():
        for one in read_probes(RunFolder.of(folder.runs, signature)):
            cost = one.get("cost") or {}
            if cost.get("device") == {"cpu": "cpu", "gpu": "cuda"}[device] and cost["flops"] > 0:
                every.append(cost["device_seconds"] / cost["flops"])
                same += every[-1:] if one["probe"] in wanted else []
        if len(same) >= FITTED_RUNS:
            break
    return statistics.median(same or every) if every else None


def evaluations(cell: Cell) -> int:
    """Return how many evaluations a whole run makes, including the one at its end."""
    every = cell.config.evaluation.every
    return 1 + ((cell.config.train.steps - 1) // every if every else 0)


def _memory(runs: list[Measured], device: str) -> tuple[float, float]:
    """Speed.memory from the measured peaks."""
    found = [
        (float(m.cell.cost.memory_bytes), float(max(1, m.record.peak_memory_bytes - _image_bytes(m.cell, device))))
        for m in runs
        # Before the discriminator starts, or the evaluation, memory has not peaked.
        if m.record.peak_memory_bytes
        and m.record.state == DONE
        and (m.cell.config.discriminator.kind == "none" or m.record.step > m.cell.config.loss.discriminator_start)
    ]
    return _corrected(found, float(FRAMEWORK_BYTES[device]))


def _corrected(pairs: list[tuple[float, float]], constant: float) -> tuple[float, float]:
    """Return constant and factor that turn the first of each pair, by arithmetic, into the measured second.

    This is a corrected constant or, if the arithmetic is too high, a factor on both; or a line through the pairs, if
    there are enough of them and it predicts better.
    """
    if not pairs:
        return constant, 1.0
    beside = statistics.median(measured - x for x, measured in pairs)
    ratio = statistics.median(measured / (x + constant) for x, measured in pairs)
    simple = (beside, 1.0) if beside >= 0 else (ratio * constant, ratio)
    # The first column is the simple answer, which the line has to beat.
    rows = [(simple[0] + simple[1] * x, 1.0, x) for x, _ in pairs]
    share, a, b = fit(rows, [measured for _, measured in pairs], ((0,), (1, 2)))
    return a + share * simple[0], b + share * simple[1]


def fit(
    rows: Sequence[Sequence[float]], measured: Sequence[float], shapes: Sequence[tuple[int, ...]]
) -> tuple[float, ...]:
    """Return non-negative coefficients with which the columns of ``rows`` add up to ``measured`` (positive).

    Minimises absolute relative errors, so that a few odd runs do little harm. shapes: sets of columns with a
    coefficient, the first of a single column. With at least ENOUGH_RUNS rows, a later shape wins if it predicts rows
    left out of the fit a tenth better.
    """
    (first,) = shapes[0]
    simple = [0.0] * len(rows[0])
    simple[first] = statistics.median(m / row[first] for m, row in zip(measured, rows, strict=True))
    if len(rows) < ENOUGH_RUNS:
        return tuple(simple)
    import numpy as np

    # Dividing by the target makes errors relative; scaling the columns keeps the equations well-conditioned.
    table = np.array(rows, float)
    scale = np.maximum(np.abs(table).max(0), 1e-300)
    table = table / scale / np.array(measured, float)[:, None]
    folds = np.arange(len(rows)) % min(len(rows), 12)

    def solve(columns: tuple[int, ...], part: Any) -> Any:
        """Least absolute deviations by reweighting; None if a coefficient is negative or undetermined."""
        found = np.zeros(len(scale))
        if len(columns) == 1:
            found[columns[0]] = np.median(1 / part[:, columns[0]])
            return found
        part = part[:, columns]
        if len(part) < ENOUGH_RUNS - 1 or np.linalg.cond(part) > 1e3:
            return None
        weights = np.ones(len(part))
        for _ in range(25):
            root = np.sqrt(weights)
            found[list(columns)] = np.linalg.lstsq(part * root[:, None], root, rcond=None)[0]
            weights = 1 / np.maximum(np.abs(part @ found[list(columns)] - 1), 1e-3)
        return None if (found < 0).any() else found

    best, least = np.array(simple) * scale, math.inf
    for columns in shapes:
        whole = solve(columns, table)
        if whole is None:
            continue
        errors = np.zeros(len(rows))
        for fold in np.unique(folds):
            left_out = folds == fold
            found = solve(columns, table[~left_out])
            if found is None:
                break
            errors[left_out] = np.minimum(np.abs(np.log(np.maximum(table[left_out] @ found, 1e-300))), 2.0)
        else:
            if errors.mean() < 0.9 * least:
                best, least = whole, float(errors.mean())
    return tuple(float(v) for v in best / scale)


def step_seconds(cell: Cell, rate: Speed) -> float:
    """Return the mean device seconds of a training step over the whole run."""
    constant, per_flop, per_lookup_flop = rate.step
    cost = cell.cost
    if isinstance(cell.config, ProgramConfig) and cell.config.seconds:
        return cell.config.seconds / cell.config.train.steps
    dense = cost.train_flops - cost.lookup_flops
    return constant + (per_flop * dense + per_lookup_flop * cost.lookup_flops) / cell.config.train.steps


def estimate(cell: Cell, rate: Speed, device: str, steps_done: int = 0) -> Estimate:
    """Estimate peak memory of one cell on a device (cpu or gpu), and its time after ``steps_done`` steps."""
    steps, every = cell.config.train.steps, cell.config.evaluation.every
    done = min(steps_done, steps)
    count = evaluations(cell) - (min(done, steps - 1) // every if every else 0)
    evaluation = rate.evaluation[0] + rate.evaluation[1] * evaluation_flops(cell)
    seconds = rate.startup_seconds + (steps - done) * step_seconds(cell, rate) + count * evaluation
    seconds += probe_seconds(cell, rate)
    memory = rate.memory[0] + rate.memory[1] * cell.cost.memory_bytes + _image_bytes(cell, device)
    return Estimate(seconds, round(memory))


def _image_bytes(cell: Cell, device: str) -> int:
    """Memory of decoded images, which count on a CPU but not towards a GPU's peak."""
    return cell.image_bytes if device == "cpu" else 0


# Safety margins for estimates that are too low.
MEMORY_MARGIN, TIME_MARGIN = 1.5, 2.0
