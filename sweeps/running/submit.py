"""Submit a plan: to this machine's queue, to SLURM, or as a search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gsq.sweeps.costing.notes import check_images
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.running.notebook import progress_for
from gsq.sweeps.running.slurm_arrays import Submission, explained_disk, submit_cells
from gsq.sweeps.spec.cluster import Cluster, load_cluster
from gsq.sweeps.state.reconcile import OnUpdate


def submit(
    plan: Plan,
    cluster: Cluster | str = "local",
    *,
    runs: Path | None = None,
    retry: bool = False,
    over_budget: bool = False,
    on_update: OnUpdate | None = None,
    on_evaluation: Callable[[int, dict[str, Any]], None] = lambda number, result: None,
) -> Submission:
    """Run the missing cells of a plan, and nothing else.

    Finished cells are evaluated without training if they lack an evaluation of the sweep file
    (gsq.sweeps.running.reevaluate.evaluate_missing, which receives on_evaluation). local: blocks until every cell is
    finished or given up; on_update is called several times a second, and by default draws the progress in a notebook
    and nothing elsewhere. slurm: returns once the job arrays are submitted.
    retry: also retry failed cells that do not resume by themselves. over_budget: skip the check of the budget. Raises
    UserError before submitting anything: for missing weights, too few images for an evaluation, an unreachable cluster,
    an unusable runs folder, or an exceeded budget. Raises NotTaken if sbatch refused cells.
    """
    from gsq.sweeps.running.reevaluate import evaluate_missing

    cluster = load_cluster(cluster)
    on_update = on_update or progress_for(plan)
    check_images(plan, runs)
    if plan.search is not None:
        from gsq.sweeps.running.search import submit_search

        return submit_search(plan, cluster, runs=runs, retry=retry, over_budget=over_budget, on_update=on_update)
    done = submit_cells(plan, cluster, runs=runs, retry=retry, over_budget=over_budget, on_update=on_update)
    with explained_disk(done.folder):
        evaluations = evaluate_missing(plan, cluster, runs=done.folder.runs, on_result=on_evaluation)
    return replace(done, evaluations=evaluations)
