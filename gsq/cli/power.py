"""``gsq plan --power``: the intervals to expect, before the first run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from gsq import analysis, sweeps
from gsq.analysis.errors import AnalysisError
from gsq.cli.options import named_numbers
from gsq.errors import UserError
from gsq.words import counted

if TYPE_CHECKING:
    import pandas as pd

    from gsq.config.run import RunConfig


def expected_power(
    plan: sweeps.Plan, laws: list[str] | None, noise: float | None, coefficients: list[str] | None, as_json: bool
) -> None:
    """Run ``gsq plan SWEEP --power``: print the interval to expect for each parameter."""
    from gsq.analysis.designing.power import SEED_NOISE

    frame = cells_frame(plan)
    given = named_numbers(coefficients, "--coefficient", "alpha=0.8")
    found, reasons = [], {}
    chosen = [analysis.get_law(law, [str(name) for name in frame]) for law in laws or analysis.DEFAULT_LAWS]
    for name in given:
        if not any(name in law.parameters for law in chosen):
            known = ", ".join(dict.fromkeys(p for law in chosen for p in law.parameters))
            raise UserError(f"--coefficient {name}: no law has a parameter of this name; parameters are {known}")
    for law in chosen:
        own = {name: value for name, value in given.items() if name in law.parameters}
        try:
            found.append(analysis.power(frame, law, coefficients=own, noise=SEED_NOISE if noise is None else noise))
        except AnalysisError as error:
            reasons[law.name] = str(error)
    if not found:
        raise AnalysisError("; ".join(reasons.values()))
    if as_json:
        document = {"sweep": plan.name, "power": [one.to_dict() for one in found], "not_possible": reasons}
        typer.echo(json.dumps(document, indent=1))
        return
    typer.echo(
        f"sweep {plan.name}: {counted(len(frame), 'run')} of "
        f"{counted(frame['configuration'].nunique(), 'configuration')}\n"
    )
    for one in found:
        typer.echo(one.text() + "\n")
    for name, reason in reasons.items():
        typer.echo(f"Not possible for {name}: {reason}.")
    typer.echo("This assumes that the law is right and seeds are the only noise; otherwise expect wider intervals.")


def cells_frame(plan: sweeps.Plan, hours: Mapping[str, float] | None = None) -> pd.DataFrame:
    """Return a row for each cell of a plan, with the columns of a results table that are known before a run.

    ``configuration`` is the same for cells that differ only in the seed; ``device_hours`` is the estimated cost.
    """
    import pandas as pd

    from gsq.config.overrides import SHORT_NAMES
    from gsq.sweeps.planning.cells import axis_columns

    if plan.search is not None:
        raise UserError(f"sweep '{plan.name}' is a search, which draws its cells as it runs; name a sweep with axes")
    rows = []
    numbers: dict[RunConfig, str] = {}
    for cell in plan.cells:
        axes = {} if cell.config.program else cell.axes
        keys = {SHORT_NAMES.get(name, name): value for name, value in axes.items()}
        others = {key: value for key, value in keys.items() if key not in SHORT_NAMES.values()}
        rows.append(
            {
                **others,
                **axis_columns(cell.config, cell.data_label),
                "signature": cell.signature,
                "configuration": numbers.setdefault(with_seed(cell.config, 0), f"cell {len(numbers)}"),
                "step": cell.config.train.steps,
                "images_seen": cell.cost.images,
                **({"parameters": cell.cost.parameters} if cell.cost.parameters else {}),
                "train_flops": cell.cost.train_flops,
                **({"device_hours": hours[cell.signature]} if hours is not None else {}),
            }
        )
    return pd.DataFrame(rows)


def with_seed(config: RunConfig, seed: int) -> RunConfig:
    """A config with another seed; a program's config takes it under the key ``seed``, if it has one."""
    from gsq.config.parts import Options
    from gsq.config.program import ProgramConfig

    if isinstance(config, ProgramConfig):
        return replace(config, keys=Options(config.keys, seed=seed)) if "seed" in config.keys else config
    return replace(config, train=replace(config.train, seed=seed))
