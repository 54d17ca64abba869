"""Generation probes as a job array: requeued in the middle, and equal to those made on this machine."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from test_verbs_on_slurm import CLUSTER, STEPS, SWEEP, gsq

from gsq.sweeps.schema.columns import read_table

pytestmark = pytest.mark.usefixtures("no_inherited_job")
PROBE = ["evaluate", "verbs", "--probe", "tiny", "--probe-steps", "400"]


def probes(folder: Path) -> dict[str, dict[str, Any]]:
    found = {path.parts[-3]: json.loads(path.read_text()) for path in folder.glob("runs/??/*/probes/*.json")}
    return {
        signature: {k: v for k, v in one.items() if k not in ("probe_seconds", "cost")}
        for signature, one in found.items()
    }


def saved(folder: Path) -> set[str]:
    """Runs whose probe has a checkpoint."""
    with suppress(OSError):
        paths = folder.glob("runs/??/*/probes/*.pt")
        return {path.parts[-3] for path in paths if not path.name.startswith("tokens-")}
    return set()


@pytest.mark.filterwarnings("ignore:rfid over")
def test_an_array_of_probes_is_requeued_and_equals_local_ones(slurm: Any, tmp_path: Path) -> None:
    there, here = tmp_path / "slurm", tmp_path / "local"
    there.mkdir()
    (there / "verbs.yaml").write_text(SWEEP.replace(f"steps: {STEPS}", "steps: 2"))
    (there / "mine.yaml").write_text(CLUSTER.replace("parallel: 1", "parallel: 2"))
    gsq("submit", "verbs.yaml", folder=there)
    shutil.copytree(there, here)

    words = [*PROBE, "--cluster", "mine.yaml", "--json"]
    first = json.loads(gsq(*words, folder=there))
    ((array, signatures),) = first["arrays"].items()
    assert len(signatures) == 2 and first["finished"] == 2 and first["new"] == []
    # What waits or runs is not submitted twice.
    assert json.loads(gsq(*words, folder=there))["arrays"] == {}
    requeued = slurm.wait(lambda: saved(there), 120, every=0.05).pop()
    slurm.scontrol("requeue", f"{array}_{signatures.index(requeued)}")
    slurm.wait(lambda: not slurm.squeue(), 240, every=0.5)
    assert set(probes(there)) == set(signatures) and not saved(there)
    rows = slurm.sacct(array)
    assert [rows[f"{array}_{task}"]["State"] for task in (0, 1)] == ["COMPLETED"] * 2, rows
    assert json.loads(gsq(*words, folder=there))["arrays"] == {}
    table = read_table(Path(there / gsq("gather", "verbs", folder=there).split()[1]))
    assert len(table) == 2 and table["gfid"].notna().all() and table["probe_protocol"].nunique() == 1
    assert set(table["attempts"]) == {1}

    assert len(json.loads(gsq(*PROBE, "--json", folder=here))["new"]) == 2
    assert probes(here) == probes(there)
