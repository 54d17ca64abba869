"""Old cells trained once more under other code: which, and what the comparison says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from preamble import WriteRun
from typer.testing import CliRunner

from gsq.analysis import fit, load_results
from gsq.cli.main import app
from gsq.errors import UserError
from gsq.records.folder import RunFolder, runs_root
from gsq.runs.provenance import environment
from gsq.sweeps.planning.cells import Plan, make_plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.spec.sweep import load_spec
from gsq.sweeps.tables.gather import gathered

SWEEP = {
    "name": "small",
    "base": "cpu-tiny",
    "axes": {"groups": [1, 2, 4, 8], "codebook_size": [64, 256], "seed": [0, 1]},
}
OLD = {"source": "aa", "versions": {"torch": "2"}, "device": "a cpu"}
NEW = {**OLD, "source": "bb"}


def evaluation(rfid: float) -> dict[str, Any]:
    return {"protocol": "p1", "step": 350, "rfid": rfid, "images_seen": 5600, "features": "f@1", "num_images": 16}


def submit(**parts: Any) -> Plan:
    plan = make_plan(load_spec({**SWEEP, **parts}))
    SweepFolder(runs_root(), plan.name).write_plan(plan)
    return plan


def rfid(axes: dict[str, Any], noise: float) -> float:
    bits = axes["groups"] * math.log2(axes["codebook_size"])
    # Seeds alternate about the law.
    return float(100 / bits * math.exp(noise * (1 if axes["seed"] else -1)))


def train(plan: Plan, write_run: WriteRun, made: dict[str, Any], noise: float, factor: float = 1.0) -> None:
    for cell in plan.cells:
        value = factor * rfid(cell.axes, noise)
        write_run(cell, "done", 350, (evaluation(value),), environment=made)


REPEATS = [{"groups": g, "codebook_size": v, "seed": 0, "repeat": 1} for g, v in ((1, 64), (2, 256), (4, 64), (8, 256))]


@pytest.mark.parametrize(
    ("noise", "factor", "verdict"),
    [
        (0.01, 1.0, "identical to the last bit"),
        (0.01, 1.002, "within 5 %: they can be pooled"),
        (0.01, 1.12, "do not pool them"),
        (0.06, 1.03, "undecided"),
    ],
)
def test_repeated_cells_say_whether_old_and_new_may_be_pooled(
    folder: Path, write_run: WriteRun, noise: float, factor: float, verdict: str
) -> None:
    train(submit(), write_run, OLD, noise)
    repeats = submit(axes={}, cases=REPEATS)
    train(repeats, write_run, NEW, noise, factor)
    done = gathered("small")
    (sentence,) = done.comparisons
    assert sentence.startswith("4 cells repeated (source aa -> bb)") and verdict in sentence
    pooled = "identical" in verdict or "can be pooled" in verdict
    assert [p for p in done.problems if "mixes runs" in p] == ([] if pooled else list(done.problems))
    # Known from the note, too, where nothing has changed.
    assert gathered("small") == done
    frame = load_results(done.table)
    assert sorted(frame["repeat"]) == [0] * 16 + [1] * 4
    # The law is one of the originals.
    law = fit(frame, "power_law_bpp")
    assert law.excluded == "4 of 20 cells are left out: 4 repeated to compare codes"


def test_a_repeat_is_another_run_of_the_same_science(folder: Path) -> None:
    first, second = (make_plan(load_spec({**SWEEP, "set": {"repeat": n}})) for n in (0, 1))
    assert not {c.signature for c in first.cells} & {c.signature for c in second.cells}
    assert make_plan(load_spec(SWEEP)).cells[0].signature == first.cells[0].signature
    with pytest.raises(UserError, match="repeat"):
        make_plan(load_spec({**SWEEP, "set": {"repeat": -1}}))


def test_anchors_are_spread_over_the_axes_and_belong_to_the_sweep(folder: Path, write_run: WriteRun) -> None:
    source = folder / "small.yaml"
    source.write_text(yaml.safe_dump({**SWEEP, "set": {"data.image_size": 32}}))
    plan = submit(set={"data.image_size": 32})
    here = environment(plan.cells[0].config, "cpu")
    run = CliRunner()
    words = ["plan", str(source), "--anchors", "anchors.yaml"]

    def refused(*more: str) -> str:
        with pytest.raises(UserError) as error:
            run.invoke(app, [*words, *more], catch_exceptions=False)
        assert not (folder / "anchors.yaml").exists()
        return str(error.value)

    assert "no cell is done" in refused()
    train(plan, write_run, here, 0.01)
    assert "all 16 finished cells" in refused()
    # This makes it one of an earlier gsq.
    for cell in plan.cells:
        path = RunFolder.of(runs_root(), cell.signature).path / "attempts" / "1" / "env.json"
        path.write_text(json.dumps({**here, "source": "before"}))
    done = json.loads(run.invoke(app, [*words, "--json"], catch_exceptions=False).stdout)
    assert done["made_otherwise"] == 16 and len(done["anchors"]) == 4
    # One seed each, and both ends of both axes.
    assert {anchor["seed"] for anchor in done["anchors"]} == {0}
    assert {1, 8} <= {anchor["groups"] for anchor in done["anchors"]}
    assert {anchor["codebook_size"] for anchor in done["anchors"]} == {64, 256}
    repeats = make_plan(load_spec(folder / "anchors.yaml"))
    assert repeats.name == "small" and not {c.signature for c in repeats.cells} & {c.signature for c in plan.cells}
    assert [c.config.train.repeat for c in repeats.cells] == [1] * 4 and repeats.cells[0].config.data.image_size == 32
    (folder / "anchors.yaml").unlink()
    # A file that was edited since would make no repeats.
    written = source.read_text()
    source.write_text(written.replace("image_size: 32", "image_size: 64"))
    assert "base or set" in refused()
    source.write_text(written)
    shown = run.invoke(app, [*words, "--cells", "2"], catch_exceptions=False).stdout
    assert "16 cells of sweep 'small' " in shown and "gsq run anchors.yaml" in shown
    assert len(make_plan(load_spec(folder / "anchors.yaml")).cells) == 2


def test_anchors_of_axes_that_are_lists(folder: Path, write_run: WriteRun) -> None:
    axes = {"optimizer.betas": [[0.0, 0.9], [0.5, 0.9], [0.9, 0.99]], "seed": [0]}
    plan = submit(axes=axes)
    (folder / "small.yaml").write_text(yaml.safe_dump({**SWEEP, "axes": axes}))
    for cell in plan.cells:
        write_run(cell, "done", 350, (evaluation(2.0),), environment=OLD)
    words = ["plan", "small.yaml", "--anchors", "anchors.yaml", "--cells", "2", "--json"]
    done = json.loads(CliRunner().invoke(app, words, catch_exceptions=False).stdout)
    assert len(done["anchors"]) == 2
