"""What must be true after a round of faults."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection
from datetime import datetime
from typing import TYPE_CHECKING

from cluster import Cluster
from disturbances import submissions_of
from fault_plan import COLLATERAL, DIVERGING, KINDS, OVERLAPPING, SHRINKING, STEPS, Fault
from fault_verbs import gsq

if TYPE_CHECKING:
    from fault_round import Round

# Words of accounting for an end that was not SLURM's own doing are "lost": nobody but the attempt could say more.
ENDS = {
    "CANCELLED": "cancelled",
    "TIMEOUT": "timeout",
    "NODE_FAIL": "node_failure",
    "PREEMPTED": "preempted",
    "OUT_OF_MEMORY": "out_of_memory",
}
# SLURM may take the end of a requeued job's last start for that of its next, whose step then trains on without a job.
OUTLIVED = "outlived its job"
# What SLURM itself does to a job, whatever the attempt comes to in its last seconds.
REQUEUING = ("requeue", "node_failure")


def find_outcomes(this: Round) -> None:
    """What became of the attempt that each fault hit, by its own word or else by SLURM's."""
    from gsq.files import read_json
    from gsq.records.attempt import KILLED

    every = [json.loads(path.read_text()) for path in sorted(this.orders.glob("orders/*/*.fired"))]
    told = _accounting(this.cluster, {fired["job"] for fired in every})
    for fired in every:
        fault = Fault(fired["kind"], fired["moment"], fired["signature"], fired["attempt"])
        attempt = this.runs / fault.signature[:2] / fault.signature / "attempts" / str(fault.attempt)
        status = read_json(attempt / "status.json") or {}
        if fired["time"] < this.retried <= status.get("started", 0):
            status = {}  # A number that was given again.
        entries = submissions_of(this.runs, fault.signature)
        names = [e["name"] for e in entries if e["job"] == fired["job"] and e["time"] <= fired["time"]]
        end = _end_of_start(told[fired["job"], names[-1]], fired["time"])
        if "unharmed" in KINDS[fault.kind].outcomes:
            fault.outcome = "unharmed"
        elif (attempt / KILLED).exists():
            # The job of several cells goes on, and says so of one that was killed.
            fault.outcome = (attempt / KILLED).read_text().strip()
        elif status.get("state") in ("done", "failed") and (fault.kind not in REQUEUING or end != "requeued"):
            fault.outcome = status.get("failure") or "done"
        else:
            fault.outcome = end
        this.faults.append(fault)
    struck = {outcome for f in this.faults for outcome in COLLATERAL.get(f.kind, ())}
    doubled = {f.signature for f in this.faults if f.kind in OVERLAPPING}
    for fault in this.faults:
        allowed = {*KINDS[fault.kind].outcomes, *struck, OUTLIVED}
        # A run that was done, or that another process did, before its fate (or SLURM's signal) reached it.
        allowed |= {"done"} if fault.moment == "done" or fault.kind in ("scancel", "walltime") else set()
        # One that is preempted as it starts has time to stop.
        allowed |= {"done"} if fault.kind == "preempt" and fault.moment != "start" else set()
        # Two processes of a cell may end each other's attempts, but not hide what SLURM did to the node.
        exempt = fault.signature in doubled and fault.kind != "node_failure"
        if not exempt and fault.outcome not in allowed:
            this.problems.append(f"{fault} should have been one of {sorted(allowed)}")


def _accounting(cluster: Cluster, jobs: Collection[str]) -> dict[tuple[str, str], list[tuple[float, str]]]:
    """When each start of a job ended, in order, and how, by the job's number and name."""
    found: dict[tuple[str, str], list[tuple[float, str]]] = defaultdict(list)
    options = ("-D", "-X", "-n", "-P", "-o", "JobID,JobName,State,End", "-j", ",".join(sorted(jobs)))
    for line in cluster.output("sacct", *options).splitlines():
        job, name, state, end = line.split("|")
        ended = float("inf") if end == "Unknown" else datetime.fromisoformat(end).timestamp()
        found[job, name].append((ended, state.split()[0]))
    return {key: sorted(starts) for key, starts in found.items()}


def _end_of_start(starts: list[tuple[float, str]], when: float) -> str:
    """How accounting says that the start of a job ended that was running at a moment.

    Whether its next start left a word of its own does not matter: a fault may have killed it as it began.
    """
    # Accounting counts in seconds.
    states = [state for ended, state in starts if ended >= int(when)]
    if len(starts) > 1 and not states:
        return OUTLIVED
    state, *later = states
    return "requeued" if later or state == "REQUEUED" else ENDS.get(state, "lost")


def check(this: Round) -> None:
    import pandas as pd

    from gsq.files import read_json
    from gsq.records.attempt import TIMINGS
    from gsq.records.folder import RunFolder
    from gsq.records.read import read_metrics, smallest_micro_batch
    from gsq.sweeps.schema.columns import SCIENCE_COLUMNS, read_table

    process = gsq("gather", "faults", folder=this.disk)
    output, _ = process.communicate(timeout=120)
    if process.returncode:
        this.problems.append(f"gsq gather: {output}")
        return
    found, expected = (read_table(f / "results" / "faults.parquet") for f in (this.disk, this.reference))
    diverging = this.cells[DIVERGING]
    for cell in this.status():
        if cell.signature == diverging:
            if (cell.state, cell.failure) != ("failed", "diverged"):
                this.problems.append(f"the cell made to diverge is {cell.state}, {cell.failure}")
        elif cell.state != "done":
            this.problems.append(f"{cell.signature} is {cell.state}, {cell.failure}: {cell.message}")
    if set(found["signature"]) != set(this.cells):
        this.problems.append("the table has not all cells")
    if found.duplicated(["signature", "step", "protocol"]).any():
        this.problems.append("a step is in the table twice")
    shrunk = {s for s in this.cells if smallest_micro_batch(RunFolder.of(this.runs, s)) is not None}
    if not shrunk <= {this.cells[i] for i in SHRINKING}:
        this.problems.append(f"micro-batches halved without a reason: {shrunk}")
    columns = list(SCIENCE_COLUMNS)
    for signature in this.cells:
        if signature == diverging:
            continue
        mine, theirs = (
            t.loc[t["signature"] == signature].sort_values("step").reset_index(drop=True) for t in (found, expected)
        )
        runs = RunFolder.of(this.runs, signature), RunFolder.of(this.reference / "runs", signature)
        curves = [[{k: v for k, v in line.items() if k not in TIMINGS} for line in read_metrics(run)] for run in runs]
        if [line["step"] for line in curves[0]] != list(range(1, STEPS + 1)):
            this.problems.append(f"{signature}: the curve has steps {[line['step'] for line in curves[0]]}")
        if signature not in shrunk:
            try:
                # They are objects, since a column that is null in a row of another cell has another type.
                pd.testing.assert_frame_equal(
                    mine[columns].astype(object), theirs[columns].astype(object), check_exact=True
                )
            except AssertionError as error:
                this.problems.append(f"{signature}: science columns differ: {error}")
            if curves[0] != curves[1]:
                this.problems.append(f"{signature}: the training curve differs")
            continue
        last = read_json(runs[0].attempt_folders()[-1] / "env.json")
        if last["micro_batch"] >= 4 or set(mine["execution_signature"]) & set(theirs["execution_signature"]):
            this.problems.append(f"{signature}: nothing says that its micro-batch was halved")
        for ours, whole in zip(curves[0][:20], curves[1][:20], strict=True):
            if abs(ours["loss"] - whole["loss"]) > 1e-3 * abs(whole["loss"]):
                this.problems.append(f"{signature}: step {ours['step']}: {ours['loss']} is not {whole['loss']}")
    _check_overlaps(this)
    if harmed := this.disturbances.harmed():
        this.problems.append(f"jobs of strangers did not end well: {harmed}")
    if left := this.live_jobs():
        this.problems.append(f"jobs are left in the queue: {left}")


def _check_overlaps(this: Round) -> None:
    """No cell was trained twice at the same time but where a fault made it: see the lock of RunFolder.claim."""
    for text in (this.orders / "attempts.jsonl").read_text().splitlines():
        line = json.loads(text)
        if line["others"]:
            this.problems.append(f"{line['signature']} was trained twice at the same time: {line}")
