"""What a submission would cost, the budget that refuses it, and how far past estimates were off."""

from __future__ import annotations

import json
import time
from collections import namedtuple
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from preamble import PlanOf, WriteRun
from rich.console import Console
from typer.testing import CliRunner

from gsq.cli.main import app
from gsq.cli.show_plan import print_forecast
from gsq.errors import UserError
from gsq.files import read_json
from gsq.records.folder import runs_root
from gsq.sweeps.costing import forecast as forecasting
from gsq.sweeps.costing.cost import estimate
from gsq.sweeps.costing.forecast import admit, check_budget, checkpoint_bytes, forecast, wall_seconds, weight_bytes
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.spec.cluster import Cluster


def shown(plan: Plan, **more: Any) -> str:
    console = Console(file=StringIO(), width=100)
    print_forecast(console, forecast(plan, **more))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def gsq(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


pytestmark = pytest.mark.usefixtures("cpu")


def test_finished_cells_are_free_and_partly_done_ones_cost_what_is_left(plan_of: PlanOf, write_run: WriteRun) -> None:
    plan = plan_of(axes={"seed": [0, 1, 2, 3, 4]}, set={"steps": 100})
    whole = forecast(plan)
    assert (whole.cells, whole.finished, len(whole.left)) == (5, 0, 5)
    assert whole.device_seconds == pytest.approx(sum(e.seconds for e in whole.estimates.values()))
    done, half, failed, cancelled, _ = plan.cells
    write_run(done, "done", 100)
    write_run(half, "running", 60)
    write_run(failed, "failed", 10, failure="diverged")
    write_run(cancelled, "failed", 90, failure="cancelled")
    found = forecast(plan)
    assert found.finished == 1 and set(found.left) == {c.signature for c in plan.cells} - {
        done.signature,
        failed.signature,
    }
    rate = found.speed
    assert found.left[half.signature] == estimate(half, rate, "cpu", 60).seconds
    assert found.left[cancelled.signature] < found.left[half.signature] < found.estimates[half.signature].seconds
    # A cell that failed for good counts only where it is tried again.
    assert failed.signature in forecast(plan, retry=True).left


def test_wall_time_is_that_of_the_queue() -> None:
    assert wall_seconds([], 4) == 0
    assert wall_seconds([3, 3, 2, 2, 2], 2) == 7
    assert wall_seconds([10, 1, 1, 1], 4) == 10
    assert wall_seconds([1.0] * 1000, 1) == 1000
    assert wall_seconds([1.0, 2.0], 1000) == 2


def test_parallelism_and_shared_runs_shorten_the_wall_time_not_the_device_time(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"seed": {"range": [0, 7]}})
    one, four = (forecast(plan, Cluster(kind="slurm", parallel=n)) for n in (1, 4))
    assert one.device_seconds == four.device_seconds
    assert one.wall_seconds == pytest.approx(4 * four.wall_seconds) and (one.parallel, four.parallel) == (1, 4)
    shared = forecast(plan, Cluster(kind="slurm", parallel=1, nodes=2, processes=4))
    assert shared.wall_seconds == pytest.approx(one.wall_seconds / 8)
    assert abs(one.end - time.time() - one.wall_seconds) < 60
    assert forecast(plan, Cluster(kind="slurm", parallel=999)).parallel == 8


def test_cells_in_turn_wait_for_each_other(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"seed": {"range": [0, 7]}})
    each = forecast(plan, Cluster(kind="slurm", parallel=8))
    turns = forecast(plan, Cluster(kind="slurm", parallel=8, cells_in_turn=4))
    assert (each.parallel, turns.parallel, turns.cells_in_turn) == (8, 2, 4)
    assert turns.wall_seconds == pytest.approx(4 * each.wall_seconds) and turns.device_seconds == each.device_seconds
    both = forecast(plan, Cluster(kind="slurm", parallel=8, cells_in_turn=4, cells_per_job=2, cpus=2))
    assert both.parallel == 2
    screen = Console(file=StringIO(), width=200)
    print_forecast(screen, turns)
    assert "4 cells in turn" in screen.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("quantizer", ["gsq", "rvq", "fsq"])
@pytest.mark.parametrize("discriminator", ["patchgan", "stylegan", "efficientnet_lite0", "none"])
def test_disk_is_what_checkpoints_and_weights_take(
    plan_of: PlanOf, folder: Path, quantizer: str, discriminator: str
) -> None:
    import safetensors.torch
    import torch

    from gsq.data.batches import ImageSource
    from gsq.training.trainer import Trainer

    values = {"quantizer": quantizer, "discriminator.kind": discriminator, "batch_size": 2, "steps": 1}
    values |= {"groups": 16} if quantizer == "fsq" else {}
    (cell,) = plan_of(axes={"seed": [0]}, set={**values, "codebook_size": 8, "loss.discriminator_start": 0}).cells
    trainer = Trainer(cell.config, ImageSource(cell.config.data))
    trainer.step()
    torch.save(trainer.state(), folder / "checkpoint.pt")
    safetensors.torch.save_file(trainer.ema.state_dict(), folder / "model.safetensors")
    # Names, buffers and the file formats' own bytes are little beside.
    assert (folder / "checkpoint.pt").stat().st_size == pytest.approx(checkpoint_bytes(cell), rel=0.1, abs=3e5)
    assert (folder / "model.safetensors").stat().st_size == pytest.approx(weight_bytes(cell), rel=0.1)


def test_disk_while_running_and_after(plan_of: PlanOf, write_run: WriteRun) -> None:
    plan = plan_of(axes={"seed": {"range": [0, 9]}})
    one = plan.cells[0]
    found = forecast(plan, Cluster(kind="slurm", parallel=3))
    assert found.disk_bytes_after == 10 * weight_bytes(one)
    assert found.disk_bytes == found.disk_bytes_after + 3 * 3 * checkpoint_bytes(one)
    kept = forecast(plan_of(axes={"seed": {"range": [0, 9]}}, set={"execution.keep_checkpoint": True}))
    assert kept.disk_bytes_after == 10 * (weight_bytes(one) + checkpoint_bytes(one))
    write_run(one, "done", 1)
    assert forecast(plan).disk_bytes_after == 9 * weight_bytes(one)


def test_a_disk_that_is_too_small_is_said(plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(axes={"seed": [0, 1]})
    assert "gsq clean" not in shown(plan)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(forecasting.shutil, "disk_usage", lambda path: usage(2, 1, 1000))
    text = shown(plan)
    assert "has 1 kB free" in text and "gsq clean --dry-run" in " ".join(text.split())


LIMITS = {"device_hours": 1e-6, "hours": 1e-6, "disk_gb": 1e-6, "cells": 2}


def test_over_the_budget_each_limit_is_named_and_nothing_is_written(plan_of: PlanOf, folder: Path) -> None:
    plan = plan_of(axes={"groups": [1, 2, 4]}, budget=LIMITS)
    with pytest.raises(UserError) as caught:
        admit(plan)
    message = str(caught.value)
    for name, (needed, limit) in forecast(plan).spent.items():
        assert f"{name} {needed:.4g} (limit {limit:g})" in message
    assert set(forecast(plan).over()) == set(LIMITS)
    for word in ("sweep 'small'", "--over-budget", "budget:", "--cells", "assumed"):
        assert word in message
    assert not (folder / "runs").exists()
    # Each limit alone; and below it nothing happens.
    for name in LIMITS:
        one = plan_of(axes={"groups": [1, 2, 4]}, budget={name: LIMITS[name]})
        with pytest.raises(UserError, match=name):
            admit(one)
        admit(plan_of(axes={"groups": [1, 2, 4]}, budget={name: 1000}))
        check_budget(one.name, forecast(one), [other for other in LIMITS if other != name])
    assert len(admit(plan, over_budget=True).estimates) == 3


def test_a_smaller_part_of_the_plan_may_fit_and_finished_cells_count_nothing(
    plan_of: PlanOf, write_run: WriteRun
) -> None:
    plan = plan_of(axes={"groups": [1, 2, 4]}, budget={"cells": 2})
    admit(plan.cut(2))
    with pytest.raises(UserError, match=r"cells 3 \(limit 2\)"):
        admit(plan)
    write_run(plan.cells[0], "done", 300)
    admit(plan)


@pytest.mark.parametrize("verb", ["submit", "run"])
def test_a_sweep_over_its_budget_ends_with_exit_code_2(folder: Path, verb: str) -> None:
    values = {"base": "cpu-tiny", "axes": {"groups": [1, 2, 4]}, "budget": {"cells": 2, "hours": 100}}
    Path("s.yaml").write_text(yaml.safe_dump(values))
    for more in ([], ["--canary"]):
        done = gsq(verb, "s.yaml", *more)
        assert isinstance(done.exception, UserError) and done.exception.exit_code == 2
        assert "cells 3 (limit 2)" in str(done.exception) and "hours" not in str(done.exception).split(";")[0]
    assert not (folder / "runs").exists() and not (folder / "results").exists()
    plan = gsq("plan", "s.yaml")
    assert plan.exit_code == 0 and "cells 3 of 2" in plan.stdout
    found = json.loads(gsq("plan", "s.yaml", "--json").stdout)["forecast"]
    assert found["budget"]["cells"] == {"estimate": 3, "limit": 2} and found["over_budget"] == ["cells"]
    assert found["to_run"] == 3 and found["disk_bytes"] > found["disk_bytes_after"] > 0 and found["free_bytes"] > 0
    assert found["past_estimates"] is None


def recorded(plan: Plan) -> dict[str, Any]:
    return dict(read_json(SweepFolder(runs_root(), plan.name).path / "estimates.json")["cells"])


def test_the_error_is_that_of_estimates_made_before_the_cells_ran(plan_of: PlanOf, write_run: WriteRun) -> None:
    plan = plan_of(axes={"seed": [0, 1, 2, 3]}, set={"steps": 100})
    assert forecast(plan).accuracy is None and "past estimates" not in shown(plan)
    folder = SweepFolder(runs_root(), plan.name)
    folder.write_plan(admit(plan))
    first = recorded(plan)
    assert first == {s: e._asdict() for s, e in forecast(plan).estimates.items()}
    expected = first[plan.cells[0].signature]["seconds"]
    now = time.time()
    timing = {"device": "cpu", "startup_seconds": 1.0, "training_seconds": 90.0, "trained_steps": 99}
    for cell, factor in zip(plan.cells[:3], (1.1, 1 / 1.2, 2.0), strict=True):
        run = write_run(cell, "done", 100, heartbeat=now, **timing)
        path = run.path / "attempts" / "1" / "status.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": factor * expected}))
    found = forecast(plan)
    assert found.accuracy is not None
    assert found.accuracy.median_factor == pytest.approx(1.2) and found.accuracy.cells == 3
    assert found.accuracy.ninety_percent_factor == pytest.approx(2.0)
    assert "past estimates: median error x1.20, 90 % within x2.00 over 3 finished cells" in shown(plan)
    # Better estimates, made when the cells had ended, do not replace those that they were submitted with.
    folder.write_plan(admit(plan))
    later = recorded(plan)
    assert {s: later[s] for s in first if s != plan.cells[3].signature} == {
        s: first[s] for s in first if s != plan.cells[3].signature
    }
    assert later[plan.cells[3].signature] != first[plan.cells[3].signature]


def test_a_plan_is_short_to_read(plan_of: PlanOf, write_run: WriteRun) -> None:
    plan = plan_of(axes={"seed": [0, 1, 2, 3]}, budget={"device_hours": 40, "hours": 12, "disk_gb": 100, "cells": 200})
    write_run(plan.cells[0], "done", 300)
    text = shown(plan)
    assert len(text.splitlines()) <= 7 and all(len(line) <= 100 for line in text.splitlines()), text
    for words in (
        "4 cells, 1 already done, 3 to run",
        "until about",
        "disk: ",
        "budget: device_hours",
        "cells 3 of 200",
    ):
        assert words in text
