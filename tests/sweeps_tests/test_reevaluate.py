"""Finished runs of a sweep evaluated again, without training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gsq.cli.main import app
from gsq.config.overrides import to_dict
from gsq.config.presets import preset
from gsq.errors import UserError
from gsq.records.folder import RunFolder, runs_root
from gsq.records.read import read_run
from gsq.runs.execute import execute
from gsq.sweeps import gather, plan, read_table
from gsq.sweeps.planning.folder import SweepFolder

TINY = {
    "model.channels": 8,
    "model.norm_groups": 4,
    "model.latent_dim": 4,
    "quantizer.codebook_size": 8,
    "loss.discriminator_start": 100,
    "loss.perceptual": "none",
    "data.image_size": 32,
    "train.steps": 1,
    "train.batch_size": 2,
    "evaluation.num_images": 8,
}


@pytest.mark.filterwarnings("ignore:rfid over")
def test_further_protocols_become_rows_and_are_made_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gsq.sweeps.spec.sweep import load_spec

    # An unchanged table is left as it is from the first.
    monkeypatch.setattr("gsq.sweeps.tables.gather.SETTLED_SECONDS", -1.0)
    cells = plan(load_spec({"name": "small", "base": "cpu-tiny", "set": TINY, "axes": {"groups": [1, 2, 4]}}))
    SweepFolder(runs_root(), "small").write_plan(cells)
    with pytest.raises(UserError, match="none of its 3 cells is done"):
        CliRunner().invoke(app, ["evaluate", "small"], catch_exceptions=False)
    for cell in cells.cells[:2]:
        execute(cell.config, runs_root())
    before = read_table(gather("small"))
    words = ["evaluate", "small", "--num-images", "12"]
    # Nothing new by the protocol of the training.
    assert CliRunner().invoke(app, ["evaluate", "small"]).stdout.startswith("0 new evaluations of 2 finished runs")
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and "2 new evaluations of 2 finished runs" in done.stdout
    frame = read_table(gather("small"))
    assert sorted(frame["num_images"].dropna()) == [8, 8, 12, 12] and len(frame) == 5
    assert list(frame["state"]) == ["done"] * 4 + ["planned"]
    new = frame[frame["num_images"] == 12]
    # Rows tell who trained a run apart from who evaluated it.
    assert new["evaluated_by"].notna().all() and before["evaluated_by"].isna().all()
    assert set(json.loads(new["evaluated_by"].iloc[0])) == {"source", "versions", "device"}
    assert set(new["source"]) == set(before["source"].dropna())
    assert new["protocol"].nunique() == 1 and not set(new["protocol"]) & set(before["protocol"])
    assert set(new["step"]) == {1} and new["rfid"].notna().all() and set(new["images_seen"]) == {2}
    for cell in cells.cells[:2]:
        run = RunFolder.of(runs_root(), cell.signature)
        record = read_run(run)
        # The attempt, and with it the cost and the provenance, is that of the training.
        assert (record.state, record.attempts) == ("done", 1)
        assert len(list((run.path / "evaluations").iterdir())) == 1
    old = frame[frame["num_images"] == 8].reset_index(drop=True)
    assert list(old["rfid"]) == list(before["rfid"].dropna())
    assert json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)["new"] == []
    # One that is damaged is named, and does not stop the others.
    (run.path / "attempts/1/model.safetensors").unlink()
    torn = CliRunner().invoke(app, ["evaluate", "small", "--num-images", "10"])
    assert torn.exit_code == 1 and "1 new evaluation of 2" in torn.stdout and "model.safetensors" in torn.stderr


@pytest.mark.filterwarnings("ignore:rfid over")
def test_one_run_without_a_sweep_is_trained_and_evaluated_by_another_protocol(folder: Path) -> None:
    def said(*words: str, exit_code: int = 0) -> str:
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == exit_code, done.output
        return done.stdout

    with pytest.raises(UserError, match="'groups' is not KEY=VALUE"):
        said("train", "cpu-tiny", "--set", "groups")
    settings = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    shown = said("train", "cpu-tiny", *settings, "--dry-run")
    assert "codebook_size: 8" in shown and not (folder / "runs").exists()
    first = said("train", "cpu-tiny", *settings)
    (line,) = [line for line in first.splitlines() if line.startswith("step 1: rFID")]
    run = Path(first.splitlines()[-1].removeprefix("done: "))
    assert read_run(RunFolder(run)).state == "done" and run.name in shown
    # The same command again trains nothing.
    assert line in said("train", "cpu-tiny", *settings) and read_run(RunFolder(run)).attempts == 1
    here, other = (json.loads(said("evaluate", str(run), *more, "--json")) for more in ([], ["--num-images", "12"]))
    assert (here["num_images"], other["num_images"]) == (8, 12) and here["protocol"] != other["protocol"]
    assert f"rFID {here['rfid']:.4g}" in line
    both = said("evaluate", str(run), "--resolution", "32", "--resolution", "64")
    assert [text.split()[1] for text in both.splitlines() if text.startswith("resolution")] == ["32", "64"]
    # Looked at, not kept.
    assert not (run / "evaluations").exists()


@pytest.mark.filterwarnings("ignore:rfid over")
def test_a_changed_sweep_file_is_evaluated_without_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gsq.analysis.tables.table import load_results, measured

    monkeypatch.setattr("gsq.sweeps.tables.gather.SETTLED_SECONDS", -1.0)

    def spec(groups: list[int], **evaluation: object) -> str:
        values = TINY | {f"evaluation.{name}": value for name, value in evaluation.items()}
        text = json.dumps({"name": "small", "base": "cpu-tiny", "set": values, "axes": {"groups": groups}})
        (folder / "small.yaml").write_text(text)
        return "small.yaml"

    def said(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == code, done.output
        return done.output

    def planned(file: str) -> tuple[int, int, float]:
        found = json.loads(said("plan", file, "--json"))["forecast"]
        return found["to_run"], found["to_evaluate"], found["device_seconds"]

    file = spec([1, 2])
    assert planned(file)[:2] == (2, 0)
    said("submit", file)
    assert planned(file) == (0, 0, 0)
    # Fewer images, at two sizes, and at earlier steps that are gone.
    file = spec([1, 2], num_images=12, resolutions=[32, 64], every=1)
    to_run, to_evaluate, seconds = planned(file)
    assert (to_run, to_evaluate) == (0, 2) and seconds > 0
    assert "2 finished cells to evaluate" in said("submit", file, "--dry-run")
    told = said("submit", file)
    assert told.count("evaluated ") == 4 and "over 12 images of 64 pixels" in told
    assert planned(file) == (0, 0, 0) and "evaluated " not in said("submit", file)
    frame = read_table(gather("small"))
    assert sorted(zip(frame["num_images"], frame["resolution"], frame["asked"], strict=True)) == [
        *[(8, 32, False)] * 2,
        *[(12, 32, True)] * 2,
        *[(12, 64, True)] * 2,
    ]
    # Back to the first protocol nothing is missing, and a new cell is trained; the table's laws are of the file's rows.
    file = spec([1, 2, 4])
    assert planned(file)[:2] == (1, 0)
    said("submit", file)
    rows, excluded = measured(load_results(gather("small")))
    assert list(rows["num_images"]) == [8, 8, 8] and rows["asked"].all() and excluded.counts == {}
    for signature in rows["signature"]:
        assert read_run(RunFolder.of(runs_root(), signature)).attempts == 1


@pytest.mark.parametrize("content", [b"", b"12345678 cut short"])
def test_damaged_weights_are_named(folder: Path, content: bytes) -> None:
    from gsq.runs.reevaluate import DamagedRun, load_finished

    run = RunFolder.of(folder / "runs", "abcdef123456")
    run.write_config(to_dict(preset("cpu-tiny")))
    (run.new_attempt().path / "model.safetensors").write_bytes(content)
    with pytest.raises(DamagedRun, match=r"attempts/1/model\.safetensors: cannot be read"):
        load_finished(run.path)


@pytest.mark.filterwarnings("ignore:rfid over")
def test_a_finished_cell_that_cannot_be_evaluated_is_named(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    def text(images: int) -> str:
        values = TINY | {"evaluation.num_images": images}
        return json.dumps({"name": "small", "base": "cpu-tiny", "set": values, "axes": {"groups": [1, 2]}})

    (folder / "small.yaml").write_text(text(8))
    assert CliRunner().invoke(app, ["submit", "small.yaml"]).exit_code == 0
    first, second = (RunFolder.of(runs_root(), s) for s in SweepFolder(runs_root(), "small").signatures())
    (first.path / "attempts/1/model.safetensors").unlink()
    weights = second.path / "attempts/1/model.safetensors"
    save_file({name: torch.full_like(value, torch.nan) for name, value in load_file(weights).items()}, weights)
    (folder / "small.yaml").write_text(text(12))
    done = CliRunner().invoke(app, ["submit", "small.yaml"])
    assert done.exit_code == 1
    assert "1 finished cell cannot be evaluated" in done.output and "model.safetensors" in done.output
    assert "not evaluated" in done.output and second.signature in done.output and "finite" in done.output
    # What was there stays.
    assert [len(list((run.path / "attempts/1/evaluations").iterdir())) for run in (first, second)] == [1, 1]


@pytest.mark.filterwarnings("ignore:rfid over")
def test_a_worker_that_is_killed_is_named_and_leaves_no_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gsq.sweeps.running.evaluators import Request, WorkerDied, evaluate_in_processes

    (folder / "deadly.py").write_text(
        "import os, torch\ndef build():\n    open(f'started-{os.getpid()}', 'w').close()\n    os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    values = {"name": "small", "base": "cpu-tiny", "set": TINY, "axes": {"groups": [1]}}
    (folder / "small.yaml").write_text(json.dumps(values))
    assert CliRunner().invoke(app, ["submit", "small.yaml"]).exit_code == 0
    (signature,) = SweepFolder(runs_root(), "small").signatures()
    run = RunFolder.of(runs_root(), signature)
    requests = {name: Request(run.path, {"features": "deadly:build"}, None) for name in ("a", "b", "c")}
    with pytest.raises(WorkerDied, match="killed"):
        list(evaluate_in_processes(requests, 2))
    started = [int(path.name.partition("-")[2]) for path in folder.glob("started-*")]
    assert started and not any(Path(f"/proc/{pid}").exists() for pid in started)
    # Another is refused in words, and what is printed beside the answers does no harm.
    (folder / "deadly.py").write_text("print('loud')\nbuild = 3\n")
    with pytest.raises(UserError, match="no class or function 'build'"):
        list(evaluate_in_processes(requests, 2))
    assert not (run.path / "evaluations").exists()
