"""The ``gsq`` console script as a user meets it: mistakes, JSON, help."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from gsq.cli.compose import run_command_line
from gsq.cli.main import app
from gsq.cli.options import Submitting
from gsq.records.folder import RunFolder, runs_root
from gsq.sweeps.planning.cells import make_plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.schema.columns import write_table
from gsq.sweeps.spec.sweep import load_spec

GSQ = Path(sys.executable).with_name("gsq")
Gsq = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def gsq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gsq:
    """Runs ``gsq WORDS`` in a new folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("GSQ_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("GSQ_CACHE", str(tmp_path / "cache"))

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run([str(GSQ), *words], capture_output=True, text=True, env=env, timeout=120)

    return run


def files(*folders: Path) -> list[tuple[Path, int]]:
    return sorted((p, p.stat().st_mtime_ns) for folder in folders for p in folder.rglob("*"))


SWEEP = "name: mine\nbase: cpu-tiny\n"
# What it is, the sweep, the command after "gsq", words of the message.
MISTAKES: list[tuple[str, str, list[str], list[str]]] = [
    ("unknown key", SWEEP + "axis: {groups: [1]}", ["plan", "s.yaml"], ["s.yaml", "'axis'", "did you mean 'axes'"]),
    ("wrong type", SWEEP + "axes: {groups: [two]}", ["plan", "s.yaml"], ["groups", "'two'", "int"]),
    (
        "groups that do not divide",
        SWEEP + "axes: {groups: [1, 3]}",
        ["run", "s.yaml"],
        ["sweep 'mine'", "groups=3", "does not divide", "1, 2, 4, 8, 16", "where: latent_dim % groups == 0"],
    ),
    (
        "image size that does not divide",
        SWEEP + "set: {image_size: 36}\naxes: {downsample: [8]}",
        ["submit", "s.yaml"],
        ["data.image_size", "36", "downsample 8", "32"],
    ),
    (
        "empty plan",
        SWEEP + "axes: {groups: [1, 2]}\nwhere: groups > 2",
        ["run", "s.yaml"],
        ["sweep 'mine'", "empty", "2 by 'groups > 2'"],
    ),
    (
        "unknown name in a constraint",
        SWEEP + "where: latent_dims > 2",
        ["plan", "s.yaml"],
        ["where", "'latent_dims'", "did you mean 'latent_dim'", "bits_per_pixel"],
    ),
    ("call in a constraint", SWEEP + "where: open('x') == 1", ["plan", "s.yaml"], ["open('x')", "call", "not allowed"]),
    (
        "codebook of one row",
        SWEEP + "axes: {codebook_size: [1]}",
        ["run", "s.yaml"],
        ["codebook_size", "1", "at least 2"],
    ),
    ("YAML syntax", SWEEP + "axes: {groups: [1, 2}", ["run", "s.yaml"], ["s.yaml", "line 3, column 21", "YAML"]),
    ("no such sweep", SWEEP, ["run", "quickstrt"], ["quickstrt", "did you mean 'quickstart'"]),
    (
        "no such cluster",
        SWEEP,
        ["run", "s.yaml", "--cluster", "c.yaml"],
        ["c.yaml", "no such cluster file", "example-gpu"],
    ),
    ("no such cluster to submit to", SWEEP, ["submit", "s.yaml", "--cluster", "c.yaml"], ["c.yaml", "example-gpu"]),
    ("SLURM without SLURM", SWEEP, ["run", "s.yaml", "--cluster", "slurm"], ["sbatch", "PATH", "--cluster local"]),
    ("submit to SLURM without SLURM", SWEEP, ["submit", "s.yaml", "--cluster", "slurm"], ["sbatch", "PATH"]),
    (
        "folder without images",
        SWEEP + "set: {data: {kind: image_folder, path: images}}",
        ["plan", "s.yaml"],
        ["data.path", "images", "no images", ".png"],
    ),
    (
        "no such folder of images",
        SWEEP + "set: {data: {kind: image_folder, path: pictures}}",
        ["run", "s.yaml"],
        ["data.path", "pictures", "not a folder"],
    ),
    (
        "weights that are missing",
        SWEEP + "set: {loss.perceptual: lpips_vgg}",
        ["run", "s.yaml"],
        ["vgg16", "GSQ_WEIGHTS"],
    ),
    ("old table to fit", SWEEP, ["fit", "old.parquet"], ["old.parquet", "version 0", "gsq gather"]),
    ("old table to plot", SWEEP, ["plot", "old.parquet"], ["old.parquet", "version 0", "gsq gather"]),
    ("no such table", SWEEP, ["fit", "nothing"], ["results/nothing.parquet", "no such results table"]),
    ("no such sweep to report", SWEEP, ["report", "other"], ["no sweep 'other'", "no table results/other.parquet"]),
    ("no such table to report", SWEEP, ["report", "o.parquet"], ["o.parquet", "no such results table"]),
    ("no such figure", SWEEP, ["plot", "nothing", "--kind", "pie"], ["'pie'", "scaling, contours, groups"]),
    ("unknown sweep in status", SWEEP, ["status", "other"], ["no sweep 'other'", "none yet"]),
    ("unknown sweep in gather", SWEEP, ["gather", "other"], ["no sweep 'other'", "none yet"]),
    ("setting without a value", SWEEP, ["train", "cpu-tiny", "-s", "groups"], ["'groups'", "KEY=VALUE"]),
    ("folder that is no run", SWEEP, ["evaluate", "images"], ["images", "not a run folder"]),
]


@pytest.mark.parametrize(("sweep", "words", "message"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_one_message_and_nothing_is_written(
    gsq: Gsq, tmp_path: Path, sweep: str, words: list[str], message: list[str]
) -> None:
    Path("s.yaml").write_text(sweep)
    Path("images").mkdir()
    (tmp_path / "bin").mkdir()
    if "old.parquet" in words:
        write_table([{"sweep": "s", "signature": "a"}], Path("old.parquet"))
        pq.write_table(pq.read_table("old.parquet").replace_schema_metadata({"gsq_schema_version": "0"}), "old.parquet")
    before = files(tmp_path)
    # No SLURM on this PATH, nor weights but those in packages.
    done = gsq(*words, PATH=str(tmp_path / "bin"), GSQ_WEIGHTS=str(tmp_path / "weights"))
    assert done.returncode == 2, done
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert [word for word in message if word not in lines[0]] == [], lines[0]
    assert "Traceback" not in done.stdout + done.stderr
    assert files(tmp_path) == before


def test_plan_as_json_says_what_the_table_says(gsq: Gsq, tmp_path: Path) -> None:
    text = "axes: {groups: [1, 2, 3, 4], seed: [0, 1]}\nwhere: latent_dim % groups == 0\ncases: [{groups: 4}]\n"
    Path("s.yaml").write_text(SWEEP + text)
    table, printed = gsq("plan", "s.yaml", "--all", COLUMNS="200"), gsq("plan", "s.yaml", "--json")
    assert table.returncode == printed.returncode == 0, (table, printed)
    found = json.loads(printed.stdout)
    assert found["sweep"] == "mine"
    assert (len(found["cells"]), len(found["dropped"]), len(found["merged"])) == (6, 2, 1)
    assert "6 cells" in table.stdout and "left out 2 by where: latent_dim % groups == 0" in table.stdout
    assert table.stdout.count("merged:") == 1
    cells = make_plan(load_spec("s.yaml")).cells
    assert [cell["signature"] for cell in found["cells"]] == [cell.signature for cell in cells]
    for cell in found["cells"]:
        assert cell["signature"] in table.stdout
        assert cell["seconds"] > 0 and cell["memory_bytes"] > 0 and cell["parameters"] > 0
        assert set(cell["axes"]) == {"groups", "seed"} and cell["resource_class"]["minutes"] > 0
    assert "assumed" in found["speed"]["basis"] and "assumed" in table.stdout
    cut = json.loads(gsq("plan", "s.yaml", "--json", "--cells", "2").stdout)
    assert cut["cells"] == found["cells"][:2]
    # Planning is not running.
    assert not (tmp_path / "runs").exists() and [p.name for p in Path().iterdir()] == ["s.yaml"]


def hand_made(name: str, message: str, **parts: Any) -> None:
    """A submitted sweep of three cells: one done, one failed with ``message``, one missing."""
    plan = make_plan(load_spec({"name": name, "base": "cpu-tiny", "axes": {"groups": [1, 2, 4]}}))
    SweepFolder(runs_root(), name).write_plan(plan)
    for cell, state in zip(plan.cells, ("done", "failed"), strict=False):
        attempt = RunFolder.of(runs_root(), cell.signature).new_attempt()
        more = {"failure": "error", "message": message} if state == "failed" else {}
        attempt.write_status(state, 5, cell.config.train.steps, **more)
        if state == "done":
            result = {"protocol": "p", "step": 5, "rfid": 3.0, "features": "f@1", "num_images": 8, "psnr_db": 20.0}
            attempt.write_evaluation("p", 5, result)


def test_status_as_json_says_what_the_table_says(gsq: Gsq) -> None:
    hand_made("half", "OSError: no file at [/data/x]")
    table, printed = gsq("status", "half", COLUMNS="200"), gsq("status", "half", "--json")
    assert table.returncode == printed.returncode == 0, (table, printed)
    found = json.loads(printed.stdout)
    assert found["sweep"] == "half" and found["failures"] == {"error": 1}
    assert {k: v for k, v in found["counts"].items() if v} == {"done": 1, "failed": 1, "planned": 1}
    assert [cell["state"] for cell in found["cells"]] == ["done", "failed", "planned"]
    assert "1 queued, 0 running, 1 done, 1 failed" in table.stdout
    assert "1 failed as error: OSError: no file at [/data/x]" in table.stdout
    assert all(cell["signature"] in table.stdout for cell in found["cells"])


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("/a/gsq/cli/__main__.py", "python -m gsq.cli"),
        ("/a/gsq/cli/main.py", "python -m gsq.cli"),
        ("bin/gsq", "bin/gsq"),
    ],
)
def test_the_command_that_resumes_is_the_one_that_was_typed(
    program: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []
    monkeypatch.setattr(sys, "argv", [program, "run", "a sweep.yaml"])
    monkeypatch.setattr("gsq.cli.compose.run_sweep", lambda *words: commands.append(words[3]) or 0)
    run_command_line("a sweep.yaml", Submitting(), None)
    assert commands == [f"{told} run 'a sweep.yaml'"]


@pytest.mark.parametrize("module", ["gsq.cli", "gsq.cli.main"])
def test_the_command_line_is_a_module_too(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("gsq ")


def test_a_sweep_is_named_by_its_file_too(gsq: Gsq) -> None:
    Path("s.yaml").write_text(SWEEP.replace("mine", "half"))
    hand_made("half", "m")
    assert json.loads(gsq("status", "s.yaml", "--json").stdout)["sweep"] == "half"
    done = gsq("gather", "s.yaml")
    assert done.returncode == 0 and done.stdout.startswith(
        "wrote results/half.parquet\n3 cells planned: 1 done, 1 failed"
    )
    assert Path("results/half.parquet").is_file()


def test_a_run_of_failed_cells_ends_with_their_messages_and_exit_code_1(gsq: Gsq) -> None:
    """Nothing is left to train: what failed is not tried again by itself."""
    message = "OSError: no file at [/data/x], one of [cpu, cuda]"
    Path("s.yaml").write_text("name: half\nbase: cpu-tiny\naxes: {groups: [1, 2]}\n")
    hand_made("half", message)
    done = gsq("run", "s.yaml", COLUMNS="200")
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr and done.stderr == ""
    assert done.stdout.count(message) >= 2 and "1 already done" in done.stdout
    assert "results/half.parquet" in done.stdout


COMMANDS = sorted(get_command(app).commands.items())  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_verb_has_help_with_an_example(name: str, command: Any) -> None:
    done = CliRunner().invoke(app, [name, "--help"], prog_name="gsq", env={"COLUMNS": "120"})
    assert done.exit_code == 0
    assert command.callback.__doc__, f"{name} has no docstring"
    assert f"Example: gsq {name} " in done.stdout
    assert "Usage: gsq" in done.stdout
    for parameter in command.params:
        assert not parameter.name or getattr(parameter, "help", None), f"{name}: {parameter.name} has no help"
    # Rich takes "[quantizer]" in a help text for markup and drops it, unless it is escaped.
    texts = [command.callback.__doc__, *(parameter.help or "" for parameter in command.params)]
    shown = re.sub(r"[\s│]", "", done.stdout)
    for words in re.findall(r"\w+\\?\[\w+\]", "\n".join(texts)):
        assert words.replace("\\", "") in shown, f"{name}: the help drops {words}"


def test_help_lists_every_verb(gsq: Gsq) -> None:
    done = gsq("--help", COLUMNS="120")
    assert done.returncode == 0
    assert {name for name, _ in COMMANDS} >= {
        "run",
        "plan",
        "submit",
        "status",
        "gather",
        "fit",
        "plot",
        "report",
        "train",
        "evaluate",
    }
    for name, command in COMMANDS:
        first = (command.callback.__doc__ or "").split(".")[0].split("\n")[0]
        assert name in done.stdout and first[:40] in done.stdout
