"""``gsq design``."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated

import typer

from gsq import analysis
from gsq.analysis.designing.options import DesignOptions
from gsq.analysis.fitting.options import Options
from gsq.cli.options import ClusterOption, JsonOption
from gsq.cli.table_options import BoundOption, ProtocolOption, drawn, load, require_outputs
from gsq.cli.taking import takes
from gsq.cli.tuning import print_next_values, require_budget
from gsq.errors import UserError


@takes(Options, "residuals")
@takes(DesignOptions, "until", "noise", "seeds", "cost", "criterion", "cost_exponent", "optima", "enough")
def design_command(
    tables: Annotated[
        list[str],
        typer.Argument(
            metavar="TABLE_OR_SWEEP...",
            help="The measured rows: a table (.parquet, .csv), or a sweep's name (results/NAME.parquet) or YAML, whose "
            "cells are then the candidates too. Several count as one table.",
        ),
    ],
    target: str | None = None,
    optimum: str | None = None,
    by: str | None = None,
    target_rows: Path | None = None,
    candidates: str | None = None,
    law: list[str] | None = None,
    *,
    budget: list[float] | None = None,
    options: DesignOptions,
    fitting: Options,
    bound: BoundOption = None,
    protocol: ProtocolOption = None,
    cluster: ClusterOption = "local",
    base: str | None = None,
    replay_budgets: bool = False,
    output: Path | None = None,
    figure: Path | None = None,
    as_json: JsonOption = False,
) -> None:
    """Choose what to run next: the cells, or further seeds of cells, that tell the most about a target for their cost.

    Fits the law to the measured rows, linearises it at the fit, and adds one run after the other, each time the one
    that narrows the target most for its cost, until the budget is spent, the target is met (--until), or the rest of
    the budget would hardly help (--enough). Prints the interval now and as expected after each run. Nothing is
    run or submitted.

    To extrapolate, put the cells that matter into a table and narrow their average variance (--target-rows --criterion
    average), prefer fewer and more expensive runs (--cost-exponent 0.5), and include rival minima (--optima 4).

    A further seed averages out the noise between seeds (from the table, or --noise), but not the deviation of its
    configuration from the law.

    Example: gsq design groups --law saturating --candidates next.yaml --budget 40 --target parameter=s --until 0.2

    Example: gsq design groups.yaml --law saturating --budget 12 --output more.yaml --figure more.png
    --target "predict latent_dim=16,groups=8,codebook_size=2**18,downsample=16"

    Example: gsq design runs.csv --law "loss = E + A / N^a" --candidates cells.csv --cost flops --budget 1e20
    --target parameter=a

    Example: gsq design runs.csv --law "loss = E + A / N^a + B / D^b" --residuals linear --candidates cells.csv
    --cost flops --budget 1e19 --budget 1e20 --target-rows large.csv --criterion average --cost-exponent 0.5 --optima 4

    Example: gsq design runs.csv --law "loss = E + A / N^a + B / D^b" --cost flops --target-rows large.csv
    --replay-budgets --budget 0.05 --budget 0.1

    Example: gsq design rates.yaml --optimum learning_rate --by width batch_size --output more.yaml

    Options:
        --target TARGET  What to narrow. parameter=NAME: its interval. 'predict latent_dim=16,codebook_size=2**18': the
            prediction there; only predict: the predictions everywhere. discriminate: which law is right. noise: the
            noise between seeds. With --optimum: the column that should be best (default rfid).
        --optimum COLUMN  Instead of cells, propose the next values of a tuned column (learning_rate) at the sizes --by
            COLUMN ...: where its best value is not bracketed yet, or known worst.
        --by COLUMN  With --optimum: the columns that make a size. With --replay-budgets: each value is a study of its
            own.
        --target-rows FILE  In place of --target: predict every row of this table, which has the columns that the law
            reads.
        --candidates SWEEP|TABLE  Cells to choose from: a sweep by YAML file or name, which costs what gsq plan
            estimates, or a table with a --cost column.
        --law LAW  A named law or a formula over columns; repeatable: rivals are weighted by AICc. Default:
            power_law_bpp; for discriminate, every named law whose columns the table has.
        --budget COST  Device hours, or units of the --cost column. If repeated, gsq prints what to expect at each. With
            --optimum: how many runs.
        --base BASE  Preset or YAML file for --output, where candidates are a table.
        --replay-budgets  Test the design on a finished study: TABLE has all runs and their outcomes, --budget is a
            share of its cost, and the outcomes of --target-rows score the predictions at each.
        --output FILE  Write the runs as a sweep (.yaml) or a table (.csv, .parquet).
        --figure FILE  Draw what is expected against the cost.
    """
    from gsq.cli import designing
    from gsq.cli.fit import named_laws

    also = [one for one in (candidates, target_rows) if one is not None]
    require_outputs({"--output": output}, {"--figure": figure}, [*tables, *also])
    if replay_budgets:
        unused: dict[str, object] = {"--target": target, "--optimum": optimum, "--candidates": candidates}
        unused |= {"--output": output, "--figure": figure}
        named = [option for option, value in unused.items() if value is not None]
        if named or target_rows is None or options.cost is None or not law:
            problem = f"leave out {' and '.join(named)}" if named else "it needs --law, --cost COLUMN and --target-rows"
            raise UserError(f"--replay-budgets: {problem}")
        frame, far = load(tables, protocol), analysis.load_table(target_rows)
        pool_laws = named_laws(frame, law, (), bound, None) or []
        replayed = designing.replayed(frame, pool_laws, far, require_budget(budget), by, options, fitting.residuals)
        typer.echo(json.dumps(replayed.to_dict(), indent=1) if as_json else replayed.text())
        return
    if optimum is not None:
        others: dict[str, object] = {"--target-rows": target_rows, "--candidates": candidates, "--law": law}
        others |= {"--bound": bound, "--figure": figure, "--cluster": cluster != "local"}
        plain = DesignOptions(noise=options.noise)
        others |= {
            f"--{one.name.replace('_', '-')}": getattr(options, one.name) != getattr(plain, one.name)
            for one in fields(options)
        }
        print_next_values(
            tables, optimum, by, replace(fitting, noise=options.noise),
            target=target, runs=budget, protocol=protocol, base=base, output=output, as_json=as_json, others=others,
        )  # fmt: skip
        return
    if by is not None:
        raise UserError(
            "--by: names the sizes of --optimum, or the studies of --replay-budgets; add one of them, or leave it out"
        )
    budgets = require_budget(budget)
    if target is not None and target_rows is None:
        wanted = analysis.read_target(target)
    elif target_rows is not None and target is None:
        wanted = analysis.target_rows(analysis.load_table(target_rows))
    else:
        raise UserError("name what to narrow with one of --target TARGET and --target-rows FILE")
    paths, source = designing.sources(tables, candidates)
    if output is not None:
        designing.require_kind(output, source, base)
    frame = load(paths, protocol)
    cells, cases, frame, options = designing.candidate_cells(source, frame, options, cluster)
    rivals = named_laws(frame, law or (None if wanted.kind == "discriminate" else ["power_law_bpp"]), (), bound, None)
    compared = analysis.compare_laws(frame, rivals, replace(fitting, bootstrap=0))
    for name, reason in compared.not_fitted.items() if law else ():
        typer.echo(f"Not fitted: {name}: {reason}.", err=True)
    found = analysis.design(compared, cells, budgets, wanted, options=options)
    chosen = designing.axes_of(found, cells, cases, frame)
    lines = [found.text()]
    if output is not None:
        title = f"What gsq design proposes for {found.target.text}, from {', '.join(path.name for path in paths)}."
        sweep = source if cases is not None else None
        lines.append(designing.write_runs(output, found, cells, chosen, sweep, base, title))
    lines += drawn(lambda path: analysis.design_figure(found, path), figure)
    if as_json:
        document = {"tables": [str(path) for path in paths], "candidates": source, **found.to_dict()}
        typer.echo(json.dumps(document | ({"cases": chosen} if cases is not None else {}), indent=1))
    else:
        typer.echo("\n".join(lines))
