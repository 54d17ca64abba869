"""Several training lengths from one run: what the plan asks for, in which order, at which cost, and the same rows."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from controllers import SLURM, Controller
from preamble import WriteRun
from test_local_queue import TINY, has_checkpoint, science, wait_for

from gsq import override, train
from gsq.data.sources import manifest
from gsq.errors import UserError
from gsq.records.folder import RunFolder
from gsq.records.read import RunRecord, read_run
from gsq.runs.warm_start import add, trunk_digest
from gsq.sweeps.costing.forecast import checkpoint_bytes, forecast, weight_bytes
from gsq.sweeps.planning.cells import Plan, make_plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.planning.horizons import branches, families, waiting
from gsq.sweeps.running.canary import STEPS, shortened
from gsq.sweeps.running.clean import clean
from gsq.sweeps.running.submit import submit
from gsq.sweeps.spec.cluster import Cluster
from gsq.sweeps.spec.sweep import load_spec

WSD = {"optimizer.schedule": "wsd", "optimizer.decay_share": 0.2}


def horizons(*steps: int, axes: dict[str, Any] | None = None, **more: Any) -> Plan:
    parts = {"set": {**WSD, **more}, "axes": {"steps": [*steps], **(axes or {})}}
    return make_plan(load_spec({"name": "horizons", "base": "cpu-tiny", **parts}))


def keeps(plan: Plan) -> list[tuple[int, ...]]:
    return [cell.config.execution.keep_at for cell in plan.cells]


# The plan


def test_each_cell_keeps_a_checkpoint_where_others_begin_to_decay() -> None:
    plan = horizons(100, 200, 500)
    assert keeps(plan) == [(), (80,), (80, 160)]
    assert [cell.signature for cell in plan.cells] == [horizons(n).cells[0].signature for n in (100, 200, 500)]


def test_only_cells_with_the_same_trunk_share_it() -> None:
    plan = horizons(100, 200, axes={"seed": [0, 1], "optimizer.decay_shape": ["linear", "one_minus_sqrt"]})
    groups = families(plan.cells)
    assert sorted(len(group) for group in groups) == [4, 4]
    assert all(len({cell.config.train.seed for cell in group}) == 1 for group in groups)
    # The two shapes of a length decay from the same step.
    assert {cell.config.train.steps: cell.config.execution.keep_at for cell in plan.cells} == {
        100: (80,),
        200: (80, 160),
    }
    constant = make_plan(load_spec({"name": "c", "base": "cpu-tiny", "axes": {"steps": [100, 200]}}))
    assert keeps(constant) == [(), ()] and not families(constant.cells)


@pytest.mark.parametrize(
    ("steps", "more", "named"),
    [
        ((500, 100), {}, ("steps", "[500, 100]", "[100, 500]")),
        ((20, 500), {"optimizer.warmup_steps": 20}, ("steps=20", "step 16", "warmup_steps 20")),
        ((100, 500), {"optimizer.decay_share": 0}, ("decay_share: 0",)),
        ((100, 500), {"optimizer.decay_share": 1.0}, ("decay_share: 1",)),
        ((100, 500), {"loss.discriminator_start": 0.5}, ("loss.discriminator_start", "0.5")),
    ],
)
def test_what_makes_no_sense_is_one_error(steps: tuple[int, ...], more: dict[str, Any], named: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as refused:
        horizons(*steps, **more)
    assert all(word in str(refused.value) for word in named)


def test_a_start_after_a_share_of_the_steps_is_refused_where_horizons_share_a_trunk() -> None:
    derive = {"loss.discriminator_start": "steps / 2"}
    for schedule, steps in (("wsd", [100, 500]), ("wsd", [100]), ("constant", [100, 500])):
        optimizer = {"schedule": schedule, **({"decay_share": 0.2} if schedule == "wsd" else {})}
        spec = {"name": "h", "base": "cpu-tiny", "set": {"optimizer": optimizer}, "axes": {"steps": steps}}
        if schedule == "wsd" and len(steps) > 1:
            with pytest.raises(UserError, match=r"discriminator_start.*share no trunk.*set") as refused:
                load_spec({**spec, "derive": derive})
            assert "\n" not in str(refused.value)
        else:
            assert [
                cell.config.loss.discriminator_start for cell in make_plan(load_spec({**spec, "derive": derive})).cells
            ]


# The order


def order(plan: Plan, **steps: int) -> tuple[list[str], dict[str, RunRecord]]:
    """Signatures, and records with the steps of some cells (``c0=3``: the first is at its third step)."""
    signatures = [cell.signature for cell in plan.cells]
    return signatures, {s: RunRecord(s, step=steps.get(f"c{i}", 0)) for i, s in enumerate(signatures)}


def test_the_others_wait_for_the_longest_until_it_has_passed(folder: Path, write_run: WriteRun) -> None:
    plan, runs = horizons(100, 200, 500), folder / "runs"
    groups = families(plan.cells)
    (a, b, c), records = order(plan)

    def ask(coming: set[str], known: dict[str, RunRecord]) -> dict[str, str]:
        return waiting(groups, coming, known, runs=runs)

    assert ask({a, b, c}, records) == {a: c, b: c}
    # Once the longest has finished, failed or been cancelled, nothing waits for it; the next one takes its place.
    assert ask({a, b}, records) == {a: b} and ask({a}, records) == {}
    # It has passed without leaving a checkpoint.
    assert ask({a, b, c}, order(plan, c2=81)[1]) == {b: c}
    # A cell that has steps of its own continues them.
    assert ask({a, b, c}, order(plan, c0=5)[1]) == {b: c}
    attempt = write_run(plan.cells[2], "running", 80).attempt_folders()[0]
    (attempt / "checkpoint-00000080.json").write_text("{}")
    assert ask({a, b, c}, order(plan, c2=80)[1]) == {b: c}


# The cost


def test_five_horizons_cost_at_most_half_more_than_the_longest(folder: Path) -> None:
    plan = horizons(2000, 4000, 6000, 8000, 10000)
    steps = dict.fromkeys((cell.signature for cell in plan.cells), 0)
    found = branches(families(plan.cells), steps, ())
    assert sorted(branch.step for branch in found.values()) == [1600, 3200, 4800, 6400]
    trained = sum(c.config.train.steps - (found[c.signature].step if c.signature in found else 0) for c in plan.cells)
    assert trained == 10000 + 400 + 800 + 1200 + 1600 <= 1.5 * 10000


def test_the_forecast_knows_what_horizons_share(folder: Path, write_run: WriteRun) -> None:
    plan = horizons(1000, 2000, 10000)
    found, (a, b, c) = forecast(plan), (cell.signature for cell in plan.cells)
    whole, longest = found.estimates, found.estimates[c].seconds
    assert found.left[c] == longest and found.left[a] < 0.5 * whole[a].seconds
    assert longest < found.device_seconds < longest + 0.5 * (whole[a].seconds + whole[b].seconds)
    assert any("800" in note and "2,400 of 3,000" in note for note in found.notes)
    assert found.disk_bytes_after == sum(map(weight_bytes, plan.cells)) + 2 * checkpoint_bytes(plan.cells[2])
    # A longest run that is done without them trains nothing for the others: the next one does.
    write_run(plan.cells[2], "done", 10000)
    rest = forecast(plan)
    assert rest.left[b] == whole[b].seconds and rest.left[a] < 0.5 * whole[a].seconds


def test_clean_keeps_what_unfinished_horizons_start_from(folder: Path, write_run: WriteRun) -> None:
    plan, runs = horizons(100, 200, 500), folder / "runs"
    SweepFolder(runs, plan.name).write_plan(plan)
    a, b, c = plan.cells
    run = write_run(c, "done", 500)
    run.write_config({"execution": {"keep_at": list(c.config.execution.keep_at)}})
    add(run, c.config, manifest(c.config.data))
    for step in (80, 160, 500):
        for suffix in ("json", "pt"):
            (run.attempt_folders()[0] / f"checkpoint-{step:08d}.{suffix}").write_text("{}")

    def removable() -> set[str]:
        return {path.stem for path in clean(dry_run=True).files["checkpoints"]}

    assert removable() == {"checkpoint-00000500"}
    write_run(a, "failed", 90, failure="cancelled")
    assert removable() == {"checkpoint-00000500"}
    write_run(a, "done", 100)
    assert removable() == {"checkpoint-00000500", "checkpoint-00000080"}
    write_run(b, "done", 200)
    assert removable() == {"checkpoint-00000500", "checkpoint-00000080", "checkpoint-00000160"}
    # One that its user asked to keep stays.
    (run.path / "config.yaml").unlink()
    run.write_config({"execution": {"keep_checkpoint": True, "keep_at": [80, 160]}})
    assert removable() == set()


def test_a_canary_is_the_beginning_of_the_trunk() -> None:
    (cell,) = horizons(500, **{"optimizer.warmup_steps": 100, "loss.discriminator_start": 0}).cells
    canary, fingerprint = shortened(cell), cell.data_label.rpartition(":")[2]
    assert (canary.config.train.steps, canary.config.kept_steps) == (STEPS, (STEPS,))
    assert trunk_digest(canary.config, fingerprint) == trunk_digest(cell.config, fingerprint)


# SLURM


def test_on_slurm_the_others_depend_on_the_longest(controller: Controller) -> None:
    plan = horizons(100, 200, 500)
    a, b, c = (cell.signature for cell in plan.cells)
    arrays = submit(plan, replace(SLURM, dependency="afterok:7")).arrays
    assert sorted(sorted(members) for members in arrays.values()) == sorted([[c], sorted([a, b])])
    first, second = (next(job for job, members in arrays.items() if s in members) for s in (c, a))
    scripts = controller.scripts()
    assert "#SBATCH --dependency=afterok:7\n" in scripts[first]
    assert f"#SBATCH --dependency=afterok:7,afterany:{first}\n" in scripts[second]


def test_on_slurm_new_horizons_depend_on_one_that_was_submitted_before(controller: Controller) -> None:
    longest = horizons(500)
    ((job, _),) = submit(longest, SLURM).arrays.items()
    ((later, members),) = submit(horizons(100, 500), SLURM).arrays.items()
    assert members == [horizons(100).cells[0].signature]
    assert f"#SBATCH --dependency=afterany:{job}_0\n" in controller.scripts()[later]


# Runs


def test_rows_are_those_of_cells_that_were_trained_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once; then one without its trunk's checkpoint, and one that is killed in its cool-down."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    queue, runs, other = Cluster(workers=2), folder / "runs", folder / "alone"
    plan = horizons(12, 60, 80, **{**TINY, "optimizer.decay_share": 0.5, "optimizer.warmup_steps": 4})
    short, middle, longest = (cell.signature for cell in plan.cells)
    SweepFolder(other, plan.name).write_plan(plan)
    for cell in plan.cells:
        train(override(cell.config, {"execution.keep_at": ()}), other)
    expected = {s: science(other, plan.name, s, other) for s in (short, middle, longest)}
    assert not any(read_run(RunFolder.of(other, s)).started_from for s in expected)

    def check() -> None:
        for s, row in expected.items():
            assert len(row) == 1
            pd.testing.assert_frame_equal(science(runs, plan.name, s, folder), row, check_exact=True)

    submit(plan, queue, runs=runs)
    started = {s: read_run(RunFolder.of(runs, s)).started_from for s in expected}
    assert started == {short: f"{longest} at step 6", middle: f"{longest} at step 30", longest: None}
    check()

    for signature in (short, middle):
        shutil.rmtree(RunFolder.of(runs, signature).path)
    (gone,) = RunFolder.of(runs, longest).path.glob("attempts/*/checkpoint-00000006.pt")
    gone.unlink()
    run = RunFolder.of(runs, middle)

    def kill() -> None:
        wait_for(lambda: has_checkpoint(run))
        os.kill(read_run(run).pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    submit(plan, queue, runs=runs)
    killer.join()
    assert read_run(RunFolder.of(runs, short)).started_from is None
    again = read_run(run)
    assert (again.state, again.attempts, again.started_from) == ("done", 2, f"{longest} at step 30")
    check()
