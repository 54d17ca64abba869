"""``gsq run`` from a YAML file to table, law and figures, on real images, in seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image

from gsq.analysis.reporting.report import Picture
from gsq.cli.compose import write_report
from gsq.config.presets import preset
from gsq.data.sources import manifest
from gsq.records.folder import runs_root
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.schema.columns import SCIENCE_COLUMNS, read_table

TINY = {
    "model.channels": 8,
    "model.norm_groups": 4,
    "steps": 6,
    "batch_size": 2,
    "evaluation.num_images": 8,
    "data.max_crop": 2.0,
    "execution.checkpoint_every": 2,
}
Gsq = Callable[..., subprocess.CompletedProcess[str]]


def run_gsq(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "GSQ_RUNS": str(folder / "runs"),
        "GSQ_CACHE": str(folder / "cache"),
        "CUDA_VISIBLE_DEVICES": "",
        "COLUMNS": "200",
        "OMP_NUM_THREADS": "1",
    }
    program = str(Path(sys.executable).with_name("gsq"))
    return subprocess.run([program, *words], capture_output=True, text=True, cwd=folder, env=environment, timeout=280)


def write_sweep(folder: Path, name: str, **parts: object) -> None:
    text = yaml.safe_dump({"name": name, "base": "cpu-tiny", "set": TINY, **parts}, sort_keys=False)
    (folder / f"{name}.yaml").write_text(text)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder in which four cells were run, and what the command said."""
    folder = tmp_path_factory.mktemp("end-to-end")
    write_sweep(folder, "four", axes={"downsample": [4, 8], "groups": [1, 4]})
    return folder, run_gsq(folder, "run", "four.yaml")


def test_one_command_makes_table_law_and_figures(first: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = first
    assert done.returncode == 0, done.stdout + done.stderr
    results = folder / "results"
    frame = read_table(results / "four.parquet")
    assert len(frame) == 4 and set(frame["state"]) == {"done"} and set(frame["step"]) == {6}
    assert sorted(zip(frame["downsample"], frame["groups"], strict=True)) == [(4, 1), (4, 4), (8, 1), (8, 4)]
    assert (frame["rfid"] > 0).all() and frame["rfid"].nunique() == 4 and frame["protocol"].nunique() == 1
    assert (results / "four-scaling.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (results / "four-scaling.svg").read_text()
    with Image.open(results / "four-samples.png") as picture:
        assert min(picture.size) > 100
    # Nothing else appeared beside what was asked for and the cache.
    assert {p.name for p in folder.iterdir()} == {"four.yaml", "results", "runs", "cache"}
    assert {p.name for p in (folder / "cache").iterdir()} == {"laws"}


def test_it_says_what_it_measured_fitted_and_wrote(first: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = first
    frame = read_table(folder / "results" / "four.parquet")
    assert "4 cells, 0 already done, 4 to run" in done.stdout
    # rFID is never shown without its features, images and protocol.
    for value in ("features", "num_images", "protocol"):
        assert str(frame[value].iloc[0]) in done.stdout, value
    assert "efficientnet_lite0" in done.stdout
    assert "power_law_bpp" in done.stdout and "interval" in done.stdout
    assert "paper_eq14" in done.stdout
    for name in ("four.parquet", "four-scaling.png", "four-samples.png"):
        (line,) = (line for line in done.stdout.splitlines() if line.endswith(f"results/{name}"))
        assert (folder / line.split(": ")[1]).is_file()
    assert done.stderr == "" and "Traceback" not in done.stdout


def test_the_report_has_table_and_pictures_and_needs_no_run_folders(
    first: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = first
    done = run_gsq(folder, "report", "four", "--law", "inverse_bpp", "--output", str(tmp_path / "four.html"))
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert f"report: {tmp_path}/four.html" in done.stdout and "results table: results/four.parquet" in done.stdout
    text = (tmp_path / "four.html").read_text()
    for rfid in read_table(folder / "results" / "four.parquet")["rfid"]:
        assert f'data-v="{rfid!r}"' in text
    # The originals once, and what each of the four cells made of them.
    assert text.count("data:image/png;base64,") == 5
    # From a table alone, elsewhere.
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "four.parquet").write_bytes((folder / "results" / "four.parquet").read_bytes())
    monkeypatch.setattr("gsq.analysis.reporting.report._svg", lambda title, draw: Picture(title, "svg+xml", b"<svg/>"))
    monkeypatch.setenv("GSQ_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    page, table = write_report("four")
    assert (page, table) == (Path("results/four-report.html"), Path("results/four.parquet"))
    alone = page.read_text()
    assert "data:image/png" not in alone and alone.count('data-k="rfid"') == 1


def test_running_again_trains_nothing_and_gives_the_same_numbers(
    first: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = first
    table = folder / "results" / "four.parquet"
    before = read_table(table)
    attempts = sorted(folder.glob("runs/*/*/attempts/*"))
    assert len(attempts) == 4
    table.unlink()
    again = run_gsq(folder, "run", "four.yaml")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "4 cells, 4 already done, 0 to run" in again.stdout
    assert sorted(folder.glob("runs/*/*/attempts/*")) == attempts
    columns = list(SCIENCE_COLUMNS)
    pd.testing.assert_frame_equal(read_table(table)[columns], before[columns], check_exact=True)


def test_images_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops of photographs in a folder, one of them cut short."""
    images = tmp_path / "images" / "deep"
    images.mkdir(parents=True)
    for file in manifest(preset("cpu-tiny").data).train[:4]:
        with Image.open(file.path) as photo:
            for i in range(4):
                box = (60 * i, 60 * i, 60 * i + 64, 60 * i + 64)
                photo.convert("RGB").crop(box).save(images / f"{file.path.stem}-{i}.{'jpg' if i % 2 else 'png'}")
    whole = next(images.glob("*-0.png")).read_bytes()
    (images / "torn.png").write_bytes(whole[: len(whole) // 2])
    (images / "notes.txt").write_text("no image")
    data = {"kind": "image_folder", "path": "images", "validation_share": 0.4}
    write_sweep(tmp_path, "own", set={**TINY, "data": data}, axes={"groups": [4]})

    planned = run_gsq(tmp_path, "plan", "own.yaml")
    assert planned.returncode == 0, planned
    assert "left out: 1 broken: deep/torn.png: " in planned.stdout
    done = run_gsq(tmp_path, "run", "own.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left out of the images: 1 broken" in done.stdout
    (row,) = read_table(tmp_path / "results" / "own.parquet").to_dict("records")
    assert row["state"] == "done" and row["data"].startswith("image_folder:") and 2 <= row["num_images"] <= 8
    # The runs know their images by content: they may move, and nothing is trained again.
    monkeypatch.setenv("GSQ_RUNS", str(tmp_path / "runs"))
    (tmp_path / "images").rename(tmp_path / "pictures")
    write_sweep(tmp_path, "own", set={**TINY, "data": {**data, "path": "pictures"}}, axes={"groups": [4]})
    again = run_gsq(tmp_path, "submit", "own.yaml")
    assert again.returncode == 0, again
    (record,) = SweepFolder(runs_root(), "own").records([row["signature"]]).values()
    assert (record.state, record.attempts) == ("done", 1)


def test_cells_of_an_earlier_version_stay_visible_and_are_not_held_against_this_one(
    first: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """A sweep that once had more cells, never run: their rows stay in the table, and the run is a success."""
    folder, _ = first
    sweep = SweepFolder(folder / "runs", "four")
    ran = sweep.read_plan()
    never = replace(ran.cells[0], signature="0" * 12)
    sweep.write_plan(replace(ran, cells=(never,)))
    again = run_gsq(folder, "run", "four.yaml")
    assert again.returncode == 0, again.stdout + again.stderr
    states = read_table(folder / "results" / "four.parquet").set_index("signature")["state"]
    assert dict(states) == {**dict.fromkeys((cell.signature for cell in ran.cells), "done"), "0" * 12: "planned"}
