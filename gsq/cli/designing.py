"""``gsq design``: candidates from sweeps and tables, and the sweep file that it writes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsq import analysis, sweeps
from gsq.cli.table_options import table_path
from gsq.errors import UserError
from gsq.files import is_yaml, whole
from gsq.records.folder import runs_root
from gsq.sweeps.spec.shipped import configs_folder, find_file, shipped_files
from gsq.words import counted

if TYPE_CHECKING:
    import pandas as pd

    from gsq.analysis.fitting.options import Residuals
    from gsq.config.run import RunConfig

    _Case = tuple[dict[str, Any], int]
    """Axes of a cell as its sweep writes them, and its seed."""

from gsq.cli.power import cells_frame, with_seed


def _seed_signatures(plan: sweeps.Plan, seeds: Sequence[int]) -> dict[RunConfig, list[str]]:
    """The signatures that each config of the plan, with seed 0, would have with each of the seeds."""
    from gsq.config.signature import Signer
    from gsq.data.sources import manifest
    from gsq.runs.identity import identity

    data = {cell.config.data for cell in plan.cells if not cell.config.program}
    sign, manifests = Signer(), {config: manifest(config) for config in data}
    return {
        first: [identity(with_seed(first, seed), manifests.get(first.data), sign) for seed in seeds]
        for first in dict.fromkeys(with_seed(cell.config, 0) for cell in plan.cells)
    }


def tables_and_sweep(tables: list[str], sweep: str | None = None) -> tuple[list[Path], str | None]:
    """The tables of what is measured, and a sweep: the one given, else the first one among ``tables``."""
    paths = []
    for table in tables:
        if is_yaml(table):
            sweep = sweep or table
            table = sweeps.load_spec(table).name
        elif sweep is None and table_path(table) != Path(table) and is_sweep(table):
            sweep = table
        paths.append(table_path(table))
    return paths, sweep


def sources(tables: list[str], candidates: str | None) -> tuple[list[Path], str]:
    """``tables_and_sweep`` of the candidates. Raises UserError where nothing names them."""
    paths, candidates = tables_and_sweep(tables, candidates)
    if candidates is None:
        raise UserError(
            "--candidates: name a sweep YAML, a submitted sweep, or a table with a cost column, whose cells may be run "
            "next"
        )
    return paths, candidates


def _names_sweep(source: str) -> bool:
    return is_yaml(source) or not Path(source).suffix


def require_kind(output: Path, source: str, base: str | None) -> None:
    """Raise UserError where the runs chosen from ``source`` cannot be written as a file like ``output``."""
    if output.suffix not in (".yaml", ".yml", ".csv", ".parquet"):
        raise UserError(f"--output: {output} must end in .yaml (a sweep to run), .csv or .parquet (a table)")
    if is_yaml(output) and not _names_sweep(source) and base is None:
        raise UserError(
            f"--output: a sweep needs a base config, which the table {source} does not name; add --base with a "
            "preset or YAML file, or write a .csv"
        )


def candidate_cells(
    source: str, frame: pd.DataFrame, options: analysis.DesignOptions, cluster: str
) -> tuple[pd.DataFrame, list[_Case] | None, pd.DataFrame, analysis.DesignOptions]:
    """The cells that may be run, what a YAML has for each (None for a table), and ``frame`` and ``options`` with the
    configuration of each row and the column of costs."""
    if not _names_sweep(source):
        cells = analysis.load_table(Path(source))
        if options.cost is None:
            shown = ", ".join(map(str, cells.columns[:20]))
            raise UserError(f"--cost: name the column of {source} that says what a run costs; it has {shown}")
        return cells, None, frame, options
    if options.cost not in (None, "device_hours"):
        raise UserError(f"--cost {options.cost}: the cells of a sweep cost what gsq plan estimates, in device hours")
    cells, cases, frame = _cells_of_sweep(source, cluster, frame)
    return cells, cases, frame, replace(options, cost="device_hours")


def replayed(
    pool: pd.DataFrame,
    laws: Sequence[analysis.Law],
    held_out: pd.DataFrame,
    budgets: Sequence[float],
    by: str | None,
    options: analysis.DesignOptions,
    residuals: Residuals,
) -> analysis.BudgetReplay:
    """:func:`analysis.replay_budgets` of a finished study, which begins with its cheapest runs."""
    from gsq.analysis.tables.columns import require_columns

    cost = options.cost or ""
    require_columns(pool, cost, *([by] if by else []))
    start = analysis.cheapest_runs(pool, laws[0], cost, by)
    how = {name: getattr(options, name) for name in ("cost_exponent", "optima")}
    return analysis.replay_budgets(pool, laws, cost, held_out, budgets, start, by=by, residuals=residuals, **how)


def axes_of(
    found: analysis.Design, cells: pd.DataFrame, cases: list[_Case] | None, frame: pd.DataFrame
) -> list[dict[str, Any]]:
    """The axes of each proposed run, as a sweep file has them."""
    if cases is not None:
        return _with_seeds(found, cells, cases, frame)
    return [_case(cells.iloc[one.row]) for one in found.proposals]


def write_runs(
    output: Path,
    found: analysis.Design,
    cells: pd.DataFrame,
    chosen: list[dict[str, Any]],
    sweep: str | None,
    base: str | None,
    title: str,
) -> str:
    """Write the proposed runs as a sweep or a table; returns a line about it."""
    if not found.proposals:
        return f"Nothing to run, so {output} is not written."
    if is_yaml(output):
        return write_cases(output, chosen, sweep, base, title)
    proposed = cells.iloc[[one.row for one in found.proposals]].reset_index(drop=True)
    proposed["run"] = [one.runs_before + 1 for one in found.proposals]
    proposed["expected"] = [one.expected for one in found.proposals]
    _write_table(proposed, output)
    return f"Wrote {output}."


def write_cases(output: Path, cases: list[dict[str, Any]], sweep: str | None, base: str | None, title: str) -> str:
    """Write runs by their columns, as a sweep over the config of ``sweep`` (or ``base``) or a table; returns a line
    about it."""
    if is_yaml(output):
        count = _write_sweep(output, sweep, base, cases, title)
        return f"Wrote {output}, a sweep of {counted(count, 'run')}: gsq plan {output}"
    import pandas as pd

    _write_table(pd.DataFrame(cases), output)
    return f"Wrote {output}."


def _cells_of_sweep(source: str, cluster: str, frame: pd.DataFrame) -> tuple[pd.DataFrame, list[_Case], pd.DataFrame]:
    """Cells of the sweep ``source``, and measured ones that its base config gives again, for further seeds; the axes
    that a YAML has for each; and ``frame`` with the ``configuration`` of each row.
    """
    from gsq.config.overrides import SHORT_NAMES
    from gsq.sweeps.planning.cells import CellMaker, make_plan

    spec = sweeps.load_spec(_submitted(source) or source)
    plan = make_plan(spec)
    if plan.search is None and spec.program is None and "signature" in frame:
        # What a row says of its config, laid over the base, is the row's run only if it has the same signature.
        make, known = CellMaker(replace(spec, where=())), {cell.signature for cell in plan.cells}
        extra: dict[str, sweeps.Cell] = {}
        rows = frame.drop_duplicates("signature")
        rows = rows[~(rows["repeat"] > 0).fillna(False)] if "repeat" in rows else rows
        for _, row in rows.iterrows():
            axes = _case(row)
            if spec.program is None:  # an axis of another sweep that is no config key says nothing of the run
                axes = {k: v for k, v in axes.items() if "." in k or k in (*SHORT_NAMES, *spec.recorded)}
            axes = {k: v for k, v in axes.items() if k not in SHORT_NAMES or v != _value(spec.base, k)}
            try:
                cell = make(axes)
            except UserError:
                continue
            if isinstance(cell, sweeps.Cell) and cell.signature == row["signature"] and cell.signature not in known:
                extra[cell.signature] = cell
        plan = replace(plan, cells=(*plan.cells, *extra.values()))
    found = sweeps.forecast(replace(plan, search=None), cluster)
    hours = {signature: one.seconds / 3600 for signature, one in found.estimates.items()}
    cells = cells_frame(plan, hours)
    cases = [(dict(cell.axes), _seed(cell.config)) for cell in plan.cells]
    if "signature" in frame:
        seeds = sorted({int(s) for s in frame["seed"].dropna()}) if "seed" in frame else [0]
        signatures = _seed_signatures(plan, seeds)
        same = {
            signature: name
            for cell, name in zip(plan.cells, cells["configuration"], strict=True)
            for signature in signatures[with_seed(cell.config, 0)]
        }
        frame = frame.assign(configuration=[same.get(s, f"measured {s}") for s in frame["signature"]])
    return cells, cases, frame


def _seed(config: RunConfig) -> int:
    from gsq.sweeps.planning.names import value_of

    return int(value_of(config, "seed" if config.program else "train.seed") or 0)


def is_sweep(name: str) -> bool:
    """Whether ``name`` is a sweep that was submitted, or one that ships with gsq."""
    from gsq.sweeps.planning.folder import SweepFolder

    return SweepFolder(runs_root(), name).exists or name in shipped_files(configs_folder())


def _submitted(name: str) -> dict[str, Any] | None:
    """The cells of a submitted sweep as a sweep file would have them: over the preset nearest to the first cell, each
    by the keys in which it differs from that one. None where no sweep of that name was submitted."""
    from gsq.config.overrides import differences
    from gsq.config.presets import PRESETS, preset
    from gsq.sweeps.planning.folder import SweepFolder

    folder = SweepFolder(runs_root(), name)
    if not folder.exists:
        return None
    configs = [cell.config for cell in folder.read_plan().cells]
    if configs[0].program:
        raise UserError(
            f"sweep '{name}' runs {configs[0].program}; name its YAML file, which has the formulas of columns"
        )
    nearest_preset = min(PRESETS, key=lambda one: len(differences(configs[0], preset(one))))
    return {
        "name": name,
        "base": nearest_preset,
        "set": differences(configs[0], preset(nearest_preset)),
        "cases": [differences(config, configs[0]) for config in configs],
    }


def _value(config: RunConfig, name: str) -> object:
    from gsq.config.overrides import SHORT_NAMES

    section, key = SHORT_NAMES[name].split(".")
    return getattr(getattr(config, section), key)


def _case(row: pd.Series[Any]) -> dict[str, Any]:
    """The axes of a row of a results table, as a sweep writes them."""
    import pandas as pd

    from gsq.analysis.designing.target import plain
    from gsq.config.overrides import SHORT_NAMES

    names = [name for name in SHORT_NAMES if name != "repeat" and name in row and not pd.isna(row[name])]
    axes = {name: plain(row[name]) for name in names}
    others = row.get("other_axes")
    return {**axes, **(json.loads(others) if isinstance(others, str) else {})}


def _with_seeds(
    found: analysis.Design, cells: pd.DataFrame, cases: list[_Case], frame: pd.DataFrame
) -> list[dict[str, Any]]:
    """The axes of each proposed run, with a seed that its configuration has not had."""
    used: dict[str, set[int]] = {}
    if "configuration" in frame and "seed" in frame:
        for name, seed in zip(frame["configuration"], frame["seed"], strict=True):
            if seed == seed and seed is not None:
                used.setdefault(name, set()).add(int(seed))
    planned: dict[str, list[int]] = {}
    for row, name in enumerate(cells["configuration"]):
        planned.setdefault(name, []).append(row)
    chosen = []
    for one in found.proposals:
        name = cells["configuration"][one.row]
        had = used.setdefault(name, set())
        new = [row for row in planned[name] if cases[row][1] not in had]
        axes, seed = cases[new[0] if new else one.row]
        if not new:
            seed = next(number for number in range(len(had) + 1) if number not in had)
            axes = {**{key: value for key, value in axes.items() if key not in ("seed", "train.seed")}, "seed": seed}
        had.add(seed)
        chosen.append(axes)
    return chosen


def _write_sweep(
    output: Path, source: str | None, base: str | None, cases: list[dict[str, Any]], description: str
) -> int:
    """Write a sweep of these cases over the base config of ``source`` (or ``base``), once gsq has planned it; returns
    how many runs it has."""
    import yaml

    from gsq.config.overrides import read_yaml
    from gsq.sweeps.planning.cells import make_plan
    from gsq.sweeps.spec.programs import PROGRAM_KEYS

    document: dict[str, Any] = {"name": output.stem, "description": description, "base": base}
    folder = Path()
    if source is not None:
        values = _submitted(source)
        if values is None:
            path = find_file(source, configs_folder(), "sweep")
            if output.resolve() == path.resolve():
                raise UserError(f"--output: {output} is the sweep of the candidates; write another file")
            values, folder = read_yaml(path), path.parent
        document["base"] = values.get("base")
        document |= {key: values[key] for key in ("set", "derive", *PROGRAM_KEYS) if values.get(key)}
    if is_yaml(document["base"]):
        beside = folder / document["base"]
        beside = beside if beside.is_file() else Path(document["base"])
        document["base"] = os.path.relpath(beside, output.parent)
    document["cases"] = cases
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole(output) as partial:
        partial.write_text(yaml.safe_dump(document, sort_keys=False, width=120), encoding="utf-8")
        plan = make_plan(sweeps.load_spec(partial))
    return len(plan.cells)


def _write_table(frame: pd.DataFrame, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole(output) as partial:
        write = frame.to_csv if output.suffix == ".csv" else frame.to_parquet
        write(partial, index=False)
