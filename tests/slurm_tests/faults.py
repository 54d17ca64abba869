"""Injects faults into sweeps on a real cluster, and checks that nothing is lost, doubled or changed by them.

    python tests/slurm_tests/faults.py --faults 300 --seed 1    # what `make faults` runs; see CONTRIBUTING.md

A round is a sweep of twelve cells on the cluster of cluster.py (root; started where it does not run), disturbed by some
60 faults at moments drawn from the seed. Jobs disturb themselves, by orders that inject/sitecustomize.py carries out in
them; what needs the cluster is done here and in disturbances.py. Meanwhile this program does what a user would:
`gsq submit` while cells have failed that it resumes, and in the end one `gsq retry`. Then it compares with the same
sweep on the local queue.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(HERE)]

from cluster import Cluster  # noqa: E402
from fault_plan import Fault, table  # noqa: E402
from fault_round import Round  # noqa: E402
from fault_verbs import undisturbed  # noqa: E402


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """The cluster of cluster.py that SLURM_CONF names, or one that is started for the while."""
    named = os.environ.get("SLURM_CONF")
    if named:
        yield Cluster(Path(named).parent.parent)
        return
    folder = tempfile.mkdtemp(prefix="gsq-slurm-")
    cluster = Cluster(folder)
    cluster.start()
    os.environ["SLURM_CONF"] = str(cluster.conf)
    try:
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=60, help="at least so many (default: 60)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dir", help="where to work, kept afterwards (default: a temporary folder, removed)")
    parser.add_argument("--no-driver", action="store_true", help="without the faults of the driver")
    parser.add_argument("--a-round", type=int, default=60, help="faults of a round (default: 60)")
    parser.add_argument("--in-turn", type=int, default=1, help="cells that a job trains one after the other")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # And unmount what is mounted.
    work = Path(args.dir or tempfile.mkdtemp(prefix="gsq-faults-")).resolve()
    faults: list[Fault] = []
    problems: list[str] = []
    began = time.monotonic()
    with running_cluster() as cluster:
        reference = work / "undisturbed"
        if not (reference / "results" / "faults.parquet").exists():
            undisturbed(reference)
        number = 0
        while len(faults) < args.faults:
            seed = args.seed + 1000 * number
            count = min(args.a_round, args.faults)
            this = Round(work / f"round-{number}", seed, count, cluster, reference, not args.no_driver, args.in_turn)
            this.run()
            faults += this.faults
            problems += [f"seed {seed}: {problem}" for problem in this.problems]
            print(
                f"round {number} (seed {seed}): {len(this.faults)} faults, {len(this.problems)} problems, "
                f"{time.monotonic() - began:.0f} s since the start",
                flush=True,
            )
            number += 1
            # Whoever stops this has the table so far.
            (work / "faults.md").write_text("\n".join([table(faults), *(f"problem: {p}" for p in problems), ""]))
    print((work / "faults.md").read_text())
    if not args.dir:
        shutil.rmtree(work, ignore_errors=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
