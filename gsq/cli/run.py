"""``gsq run``."""

from __future__ import annotations

from pathlib import Path

from gsq.cli.options import (
    CanaryOption,
    CellsOption,
    ClusterOption,
    MicroBatchOption,
    OverBudgetOption,
    RetryOption,
    SweepArgument,
)


def run_command(
    sweep: SweepArgument,
    cluster: ClusterOption = "local",
    cells: CellsOption = None,
    retry: RetryOption = False,
    over_budget: OverBudgetOption = False,
    canary: CanaryOption = False,
    micro_batch: MicroBatchOption = None,
    output: Path | None = None,
) -> None:
    """Do the whole job: plan, submit, wait, gather, fit and plot.

    Ctrl-C stops cleanly, and the same command resumes. If the YAML's evaluation keys have changed, finished cells are
    evaluated again without training. Exit code 1: cells failed.

    Example: gsq run sweeps/configs/quickstart.yaml

    Options:
        --output FILE  Parquet file; default results/SWEEP.parquet.
    """
    from gsq.cli.compose import run_command_line

    run_command_line(sweep, cluster, cells, retry, output, over_budget, canary, micro_batch)
