"""``gsq design``: its candidates, from sweeps and tables, and the sweep file that it writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gsq.errors import UserError
from gsq.files import whole
from gsq.records.folder import runs_root
from gsq.words import counted

if TYPE_CHECKING:
    import pandas as pd

    from gsq.analysis.designing.proposal import Design
    from gsq.config.run import RunConfig
    from gsq.sweeps.planning.cells import Plan

    _Case = tuple[dict[str, Any], int]
    """Axes of a cell as its sweep writes them, and its seed."""

from gsq.cli.power import cells_frame, with_seed


def _seed_signatures(plan: Plan, seeds: Sequence[int]) -> dict[RunConfig, list[str]]:
    """Signatures of each config of the plan, by the config with seed 0, for each of the seeds."""
    from gsq.config.signature import Signer
    from gsq.data.sources import manifest
    from gsq.runs.identity import identity

    sign, manifests = Signer(), {config: manifest(config) for config in {cell.config.data for cell in plan.cells}}
    return {
        first: [identity(with_seed(first, seed), manifests[first.data], sign) for seed in seeds]
        for first in dict.fromkeys(with_seed(cell.config, 0) for cell in plan.cells)
    }


def design_next(
    tables: list[str],
    candidates: str | None,
    laws: list[str] | None,
    target: str,
    budget: float,
    *,
    until: float | None,
    noise: float | None,
    seeds: int,
    cost: str | None,
    residuals: str,
    bounds: list[str] | None,
    protocol: str | None,
    cluster: str,
    base: str | None,
    output: Path | None,
    figure: Path | None,
    as_json: bool,
) -> None:
    """Run ``gsq design``: propose the next runs as text or JSON, a sweep YAML and a figure."""
    import json

    import pandas as pd

    from gsq.analysis.checking.compare import compare_laws
    from gsq.analysis.designing.choice import design
    from gsq.analysis.designing.target import read_target
    from gsq.analysis.fitting.options import Options
    from gsq.analysis.tables.table import is_results, load_table
    from gsq.cli.fit import named_laws
    from gsq.cli.table_options import require_outputs, table_path

    require_outputs({"--output": output}, {"--figure": figure})
    wanted = read_target(target)
    source = candidates
    paths = []
    for table in tables:
        if table.endswith((".yaml", ".yml")):
            from gsq.sweeps.spec.sweep import load_spec

            source = source or table
            table = load_spec(table).name
        elif source is None and table_path(table) != Path(table) and _is_sweep(table):
            source = table
        paths.append(table_path(table))
    if source is None:
        raise UserError(
            "--candidates: name a sweep YAML, a submitted sweep, or a table with a cost column, which has the cells to "
            "choose from"
        )
    from_sweep = source.endswith((".yaml", ".yml")) or not Path(source).suffix
    if output is not None:
        if output.suffix not in (".yaml", ".yml", ".csv", ".parquet"):
            raise UserError(f"--output: {output} must end in .yaml (a sweep to run), .csv or .parquet (a table)")
        if output.suffix in (".yaml", ".yml") and not from_sweep and base is None:
            raise UserError(
                f"--output: a sweep needs a base config, which the table {source} does not name; add --base with a "
                "preset or YAML file, or write a .csv"
            )
    frame = pd.concat([load_table(path, protocol) for path in paths], ignore_index=True)
    key = [name for name in ("signature", "step", "protocol") if name in frame]
    if len(paths) > 1 and is_results(frame):  # a run that two sweeps share
        frame = frame[frame["signature"].isna() | ~frame.duplicated(key)].reset_index(drop=True)
    if from_sweep:
        if cost not in (None, "device_hours"):
            raise UserError(f"--cost {cost}: the cells of a sweep cost what gsq plan estimates, in device hours")
        cost, unit = "device_hours", "device hours"
        cells, cases, frame = _candidates(source, cluster, frame)
    elif cost is None:
        shown = ", ".join(map(str, load_table(Path(source)).columns[:20]))
        raise UserError(f"--cost: name the column of {source} that says what a run costs; it has {shown}")
    else:
        cells, cases, unit = load_table(Path(source)), None, cost.replace("_", " ")
    discriminate = wanted.kind == "discriminate"
    rivals = named_laws(frame, laws or (None if discriminate else ["power_law_bpp"]), None, bounds, None)
    options = Options(residuals=residuals, bootstrap=0)  # type: ignore[arg-type]
    compared = compare_laws(frame, rivals, options)
    for name, reason in compared.not_fitted.items() if laws else ():
        typer.echo(f"Not fitted: {name}: {reason}.", err=True)
    found = design(compared, cells, budget, wanted, cost=cost, unit=unit, until=until, noise=noise, seeds=seeds)
    document = {"tables": [str(path) for path in paths], "candidates": source, **found.to_dict()}
    lines = [found.text()]
    proposed = cells.iloc[[one.row for one in found.proposals]].reset_index(drop=True)
    if cases is not None:
        chosen = _with_seeds(found, cells, cases, frame)
        document["cases"] = chosen
    else:
        chosen = [_case(row) for _, row in proposed.iterrows()]
    if output is not None and found.proposals:
        if output.suffix in (".yaml", ".yml"):
            title = f"What gsq design proposes for {found.target.text}, from {', '.join(path.name for path in paths)}."
            count = _write_sweep(output, source if cases is not None else None, base, chosen, title)
            lines.append(f"Wrote {output}, a sweep of {counted(count, 'run')}: gsq plan {output}")
        else:
            proposed["run"] = [one.runs_before + 1 for one in found.proposals]
            proposed["expected"] = [one.expected for one in found.proposals]
            _write_table(proposed, output)
            lines.append(f"Wrote {output}.")
    elif output is not None:
        lines.append(f"Nothing to run, so {output} is not written.")
    if figure is not None:
        from gsq.analysis.figures.designs import design_figure
        from gsq.analysis.figures.style import saved_files

        design_figure(found, figure)
        lines.append("Saved " + " and ".join(str(file) for file in saved_files(figure)) + ".")
    typer.echo(json.dumps(document, indent=1) if as_json else "\n".join(lines))


def _candidates(source: str, cluster: str, frame: pd.DataFrame) -> tuple[pd.DataFrame, list[_Case], pd.DataFrame]:
    """Return the cells of the sweep ``source``, with measured ones that its base config reproduces (for more seeds);
    the axes of each cell in a YAML; and ``frame`` with the ``configuration`` of each row.
    """
    from dataclasses import replace

    from gsq.config.overrides import SHORT_NAMES
    from gsq.sweeps.costing.forecast import forecast
    from gsq.sweeps.planning.cells import Cell, CellMaker, make_plan, value_of
    from gsq.sweeps.spec.sweep import load_spec

    spec = load_spec(_submitted(source) or source)
    plan = make_plan(spec)
    if plan.search is None and "signature" in frame:
        # A row's axes over the base config give the row's run only if the signature is the same.
        make, known = CellMaker(replace(spec, where=())), {cell.signature for cell in plan.cells}
        extra: dict[str, Cell] = {}
        rows = frame.drop_duplicates("signature")
        rows = rows[~(rows["repeat"] > 0).fillna(False)] if "repeat" in rows else rows
        for _, row in rows.iterrows():
            axes = {
                k: v for k, v in _case(row).items() if k not in SHORT_NAMES or v != value_of(spec.base, SHORT_NAMES[k])
            }
            try:
                cell = make(axes)
            except UserError:
                continue
            if isinstance(cell, Cell) and cell.signature == row["signature"] and cell.signature not in known:
                extra[cell.signature] = cell
        plan = replace(plan, cells=(*plan.cells, *extra.values()))
    found = forecast(replace(plan, search=None), cluster)
    hours = {signature: one.seconds / 3600 for signature, one in found.estimates.items()}
    cells = cells_frame(plan, hours)
    cases = [(dict(cell.axes), cell.config.train.seed) for cell in plan.cells]
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


def _is_sweep(name: str) -> bool:
    """Whether ``name`` is a submitted or shipped sweep."""
    from gsq.sweeps.planning.folder import SweepFolder
    from gsq.sweeps.spec.shipped import configs_folder, shipped_files

    return SweepFolder(runs_root(), name).exists or name in shipped_files(configs_folder())


def _submitted(name: str) -> dict[str, Any] | None:
    """A submitted sweep as a sweep file: cases over the preset nearest to the first cell; None if there is none."""
    from gsq.config.overrides import differences
    from gsq.config.presets import PRESETS, preset
    from gsq.sweeps.planning.folder import SweepFolder

    folder = SweepFolder(runs_root(), name)
    if not folder.exists:
        return None
    configs = [cell.config for cell in folder.read_plan().cells]
    nearest_preset = min(PRESETS, key=lambda one: len(differences(configs[0], preset(one))))
    return {
        "name": name,
        "base": nearest_preset,
        "set": differences(configs[0], preset(nearest_preset)),
        "cases": [differences(config, configs[0]) for config in configs],
    }


def _case(row: pd.Series[Any]) -> dict[str, Any]:
    """Axes of a results table's row, as in a sweep YAML."""
    import json

    import pandas as pd

    from gsq.analysis.designing.target import plain
    from gsq.config.overrides import SHORT_NAMES

    names = [name for name in SHORT_NAMES if name != "repeat" and name in row and not pd.isna(row[name])]
    axes = {name: plain(row[name]) for name in names}
    others = row.get("other_axes")
    return {**axes, **(json.loads(others) if isinstance(others, str) else {})}


def _with_seeds(found: Design, cells: pd.DataFrame, cases: list[_Case], frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Axes of each proposed run, with a new seed for its configuration."""
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
    """Write a sweep of these cases over the base config of ``source`` (or ``base``), if gsq can plan it. Returns the
    number of its runs."""
    import yaml

    from gsq.config.overrides import read_yaml
    from gsq.sweeps.planning.cells import make_plan
    from gsq.sweeps.spec.shipped import configs_folder, find_file
    from gsq.sweeps.spec.sweep import load_spec

    document: dict[str, Any] = {"name": output.stem, "description": description, "base": base}
    folder = Path()
    if source is not None:
        values = _submitted(source)
        if values is None:
            path = find_file(source, configs_folder(), "sweep")
            if output.resolve() == path.resolve():
                raise UserError(f"--output: {output} is the sweep of the candidates; write another file")
            values, folder = read_yaml(path), path.parent
        document["base"] = values["base"]
        if values.get("set"):
            document["set"] = values["set"]
    if document["base"].endswith((".yaml", ".yml")):
        beside = folder / document["base"]
        beside = beside if beside.is_file() else Path(document["base"])
        document["base"] = os.path.relpath(beside, output.parent)
    document["cases"] = cases
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole(output) as partial:
        partial.write_text(yaml.safe_dump(document, sort_keys=False, width=120), encoding="utf-8")
        return len(make_plan(load_spec(partial)).cells)


def _write_table(frame: pd.DataFrame, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole(output) as partial:
        frame.to_csv(partial, index=False) if output.suffix == ".csv" else frame.to_parquet(partial, index=False)
