"""Files that nothing reads any more."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest
from preamble import PlanOf, WriteRun
from verbs_at_work import gsq

from gsq import sweeps
from gsq.data.decoded_sizes import images_folder
from gsq.errors import UserError
from gsq.records.attempt import DONE, FAILED, RUNNING
from gsq.records.folder import RunFolder
from gsq.sweeps.planning.cells import Plan

pytestmark = pytest.mark.usefixtures("cpu")


# What can go


def files_of(result: Any, runs: Path) -> dict[str, list[str]]:
    return {kind: [p.relative_to(runs).as_posix() for p in paths] for kind, paths in result.files.items() if paths}


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"12345")


def test_clean_takes_what_no_reader_needs(four: Plan, folder: Path, write_run: WriteRun) -> None:
    runs = folder / "runs"
    done, failed, _, running = four.cells
    steps = done.config.train.steps
    last = f"checkpoint-{steps:08d}"
    kept = ("model.safetensors", "metrics.jsonl", "samples.png", "evaluations/p-00000009.json")
    run = write_run(done, FAILED, 3, failure="lost")
    run.write_config({"execution": {"keep_checkpoint": False}})
    first, second = run.attempt_folders()
    put(first, *kept, "checkpoint-00000004.pt", "checkpoint-00000004.json", f"{last}.pt", f"{last}.json")
    put(second, "model.safetensors", "samples.png", ".reserve", "checkpoint-00000005.partial")
    put(
        RunFolder.of(runs, failed.signature).path / "attempts" / "1", "checkpoint-00000003.pt", ".status.json.1.partial"
    )
    alive = write_run(running, RUNNING, 3).attempt_folders()[0]
    put(alive, "checkpoint-00000003.pt", "checkpoint-00000004.partial")
    put(runs / "sweeps" / four.name, ".plan-0002-0123456789ab.jsonl.1.partial")
    before = sorted(p for p in runs.rglob("*") if p.is_file())

    shown = sweeps.clean(dry_run=True)
    one = run.path.relative_to(runs).as_posix() + "/attempts/"
    other = RunFolder.of(runs, failed.signature).path.relative_to(runs).as_posix()
    assert files_of(shown, runs) == {
        "checkpoints": [f"{one}1/{name}.{e}" for name in ("checkpoint-00000004", last) for e in ("json", "pt")],
        "leftovers": [f"{one}2/.reserve"],
        "partial": sorted([f"{one}2/checkpoint-00000005.partial", f"{other}/attempts/1/.status.json.1.partial"]),
    }  # fmt: skip
    assert shown.bytes == {"checkpoints": 20, "leftovers": 5, "partial": 10} and not shown.removed
    assert sorted(p for p in runs.rglob("*") if p.is_file()) == before
    # A file outside an attempt may be in the making, until it is old.
    os.utime(runs / "sweeps" / four.name / ".plan-0002-0123456789ab.jsonl.1.partial", (1, 1))
    output = gsq("clean", four.name, "--dry-run").output
    assert (
        "20 B       4 files  checkpoints of finished runs" in output
        and "40 B       8 files  would be removed" in output
    )
    value = json.loads(gsq("clean", "--json").output)
    assert value["removed"] and value["bytes"] == 40 and value["kinds"]["partial"] == {"files": 3, "bytes": 15}
    after = sorted(p for p in runs.rglob("*") if p.is_file())
    assert len(after) == len(before) - 8
    assert all((first / name).is_file() for name in kept) and (alive / "checkpoint-00000004.partial").is_file()
    assert (RunFolder.of(runs, failed.signature).path / "attempts" / "1" / "checkpoint-00000003.pt").is_file()
    assert not any(files_of(sweeps.clean(), runs).values())


def test_clean_leaves_damaged_runs_alone(four: Plan, folder: Path, write_run: WriteRun) -> None:
    done, _, other, _ = four.cells
    steps = done.config.train.steps
    first, second = write_run(done, DONE, steps), write_run(other, RUNNING, 3)
    (first.path / "config.yaml").write_text("")
    (second.attempt_folders()[0] / "status.json").write_text('{"state": "running"}')
    put(first.attempt_folders()[0], f"checkpoint-{steps:08d}.pt")
    put(second.attempt_folders()[0], "checkpoint-00000004.partial")
    assert files_of(sweeps.clean(dry_run=True), folder / "runs") == {}


def test_clean_removes_decoded_images_that_no_process_uses(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GSQ_CACHE", str(tmp_path / "cache"))
    place = images_folder()
    put(place, "gsq-a.pixels", "gsq-b.pixels", ".gsq-c.pixels.0123.partial", ".gsq-d.pixels.0123.partial")
    os.utime(place / ".gsq-d.pixels.0123.partial", (1, 1))
    with (place / "gsq-b.pixels").open("rb") as used:
        fcntl.flock(used, fcntl.LOCK_SH)
        plain = sweeps.clean(dry_run=True)
        assert "images" not in plain.files and plain.files["partial"] == [place / ".gsq-d.pixels.0123.partial"]
        assert sweeps.clean(images=True, dry_run=True).files["images"] == [place / "gsq-a.pixels"]
        assert json.loads(gsq("clean", "--images", "--json").output)["kinds"]["images"] == {"files": 1, "bytes": 5}
    assert sorted(path.name for path in place.iterdir()) == [".gsq-c.pixels.0123.partial", "gsq-b.pixels"]
    with pytest.raises(UserError, match="--images looks at all sweeps"):
        sweeps.clean("any", images=True)


def test_clean_keeps_the_checkpoint_that_longer_runs_start_from(four: Plan, folder: Path) -> None:
    cell = four.cells[0]
    run = RunFolder.of(folder / "runs", cell.signature)
    (attempt,) = run.attempt_folders()
    last = f"checkpoint-{cell.config.train.steps:08d}.pt"
    put(attempt, "checkpoint-00000004.pt", last)
    # No config says anything; nor is the folder a run's that can be read: it stays.
    assert [p.name for p in sweeps.clean(dry_run=True).files["checkpoints"]] == ["checkpoint-00000004.pt"]
    run.write_config({"execution": {"keep_checkpoint": False}})
    assert len(sweeps.clean(dry_run=True).files["checkpoints"]) == 2
    put(folder / "runs" / "lineage" / "0123456789ab", f"{cell.config.train.steps}-{cell.signature}")
    assert [p.name for p in sweeps.clean().files["checkpoints"]] == ["checkpoint-00000004.pt"]
    assert (attempt / last).is_file()
    # An attempt of the same run that may be alive needs everything.
    put(attempt, "checkpoint-00000004.pt")
    run.new_attempt().write_status(RUNNING, 0, 9)
    assert not any(sweeps.clean().files.values())


def test_runs_that_no_sweep_mentions_go_when_asked_for(
    four: Plan, folder: Path, plan_of: PlanOf, write_run: WriteRun
) -> None:
    runs = folder / "runs"
    lone, alive = plan_of(name="never", axes={"groups": [4, 8]}).cells
    path = write_run(lone, DONE, 9).path
    write_run(alive, RUNNING, 1)
    assert "orphans" not in sweeps.clean(dry_run=True).files
    shown = gsq("clean", "--orphans", "--dry-run")
    assert "1 file   runs that no sweep mentions" in shown.output and path.is_dir()
    with pytest.raises(UserError, match="leave out 'small'"):
        sweeps.clean("small", orphans=True)
    with pytest.raises(UserError, match="no sweep 'smal'"):
        sweeps.clean("smal")
    assert sweeps.clean(orphans=True).runs == (lone.signature,)
    assert not path.exists() and RunFolder.of(runs, alive.signature).path.is_dir()
    assert all(RunFolder.of(runs, cell.signature).path.is_dir() for cell in four.cells[:3])
    (plan_file,) = (runs / "sweeps" / "small").glob("plan-*.jsonl")
    plan_file.write_text(plan_file.read_text()[:-1].rsplit("\n", 1)[0] + "\nno cell\n")
    with pytest.raises(UserError, match=r"plan .*line 5: "):
        sweeps.clean(orphans=True)


def test_indices_of_probes_go_when_asked_and_never_under_an_unfinished_probe(
    four: Plan, folder: Path, write_run: WriteRun
) -> None:
    done, failed = four.cells[:2]
    other = write_run(failed, DONE, 9)
    run = RunFolder.of(folder / "runs", done.signature)
    tokens, checkpoint = "probes/tokens-0123456789ab.pt", "probes/aaaaaaaaaaaa-bbbbbbbbbbbb-cccccccccccc.pt"
    put(run.path, tokens, checkpoint, "probes/.tokens-0123456789ab.pt.1.partial")
    os.utime(run.path / "probes/.tokens-0123456789ab.pt.1.partial", (0, 0))
    put(other.path, tokens)
    both = json.loads(gsq("clean", "--json").stdout)
    assert both["kept"] == {"tokens": {"files": 1, "bytes": 5}} and both["kinds"]["partial"]["files"] == 1
    assert (run.path / tokens).exists() and (other.path / tokens).exists()
    assert "--tokens" in gsq("clean").stdout
    # An unfinished probe goes on from its checkpoint and the indices.
    assert json.loads(gsq("clean", "--tokens", "--json").stdout)["kinds"]["tokens"] == {"files": 1, "bytes": 5}
    assert not (other.path / tokens).exists() and (run.path / tokens).exists() and (run.path / checkpoint).exists()
    # What it finished is kept, its checkpoint is not.
    put(run.path, "probes/aaaaaaaaaaaa-00000009-bbbbbbbbbbbb.json")
    gsq("clean", "--tokens")
    assert [path.name for path in run.probes.iterdir()] == ["aaaaaaaaaaaa-00000009-bbbbbbbbbbbb.json"]
