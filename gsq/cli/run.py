"""``gsq run``."""

from __future__ import annotations

from pathlib import Path

from gsq.cli.options import Submitting, SweepArgument
from gsq.cli.taking import takes


@takes(Submitting)
def run_command(sweep: SweepArgument, *, how: Submitting, output: Path | None = None) -> None:
    """Do the whole job: plan, submit, wait, gather, fit and plot.

    Ctrl-C stops cleanly, and the same command resumes. If the YAML's evaluation keys have changed, finished cells are
    evaluated again without training. Exit code 1: cells failed.

    Example: gsq run quickstart

    Example: gsq run groups.yaml --cluster my-cluster.yaml

    Options:
        --output FILE  Parquet file; default results/SWEEP.parquet.
    """
    from gsq.cli.compose import run_command_line

    run_command_line(sweep, how, output)
