"""``gsq doctor`` on machines that lack one thing or another."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from gsq.cli.examination import Check, examine, healthy
from gsq.cli.main import app
from gsq.pretrained.weights import REGISTRY
from gsq.sweeps.schema.columns import write_table


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No SLURM, no ImageNet, weights in packages alone, and folders that can be written to."""
    (tmp_path / "bin").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("IMAGENET", raising=False)
    for name in ("RUNS", "CACHE", "WEIGHTS"):
        monkeypatch.setenv(f"GSQ_{name}", str(tmp_path / name.lower()))
    monkeypatch.setattr("gsq.cli.examination.LITTLE_SPACE", 0)
    return tmp_path


def found(area: str, name: str) -> Check:
    (check,) = (check for check in examine() if (check.area, check.name) == (area, name))
    return check


def command(machine: Path, name: str, script: str) -> None:
    path = machine / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_machine_with_what_is_needed_has_no_problem_and_nothing_is_left_behind(machine: Path) -> None:
    checks = examine()
    assert healthy(checks), [check for check in checks if check.state == "problem"]
    by_name = {check.name: check for check in checks}
    assert by_name["torch"].found.startswith(metadata.version("torch"))
    assert by_name["efficientnet_lite0"].state == "ok" and by_name["photos"].found.startswith("6 + 3 images")
    assert by_name["vgg16"].state == "optional" and by_name["vgg16"].advice == "gsq weights fetch vgg16"
    assert by_name["commands"].state == "optional" and by_name["ImageNet"].state == "optional"
    assert str(machine / "runs") in by_name["runs"].found and " GB free" in by_name["runs"].found
    assert [path.name for path in machine.iterdir()] == ["bin"]


def test_as_json_and_as_a_table(machine: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", "--json"])
    document = json.loads(done.stdout)
    assert done.exit_code == 0 and document["ok"] is True
    assert {check["area"] for check in document["checks"]} == {
        *("packages", "machine", "folders", "slurm", "weights", "data", "results")
    }
    (machine / "runs").write_text("in the way")
    done = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "500"})
    assert done.exit_code == 1 and "1 problem" in done.stdout and "export GSQ_RUNS=FOLDER" in done.stdout
    assert "is not a folder" in done.stdout


def test_packages_that_are_too_old_or_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    true = metadata.version

    def version(name: str) -> str:
        if name == "optuna":
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "pandas" else true(name)

    monkeypatch.setattr("gsq.cli.examination.metadata.version", version)
    assert found("packages", "pandas").found == "1.0, but gsq needs >=2.2.3"
    assert found("packages", "optuna").state == "problem" and "optuna>=4" in found("packages", "optuna").advice


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("gsq.cli.examination._gpus_installed", lambda: True)
    for version, words in ((None, "for CPUs only"), ("12.8", "torch cannot use it")):
        monkeypatch.setattr("torch.version.cuda", version)
        assert found("machine", "gpu").state == "problem" and words in found("machine", "gpu").found
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    h100 = SimpleNamespace(name="NVIDIA H100", total_memory=85_000_000_000)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: h100)
    assert found("machine", "gpu 1").found == "NVIDIA H100, 85.0 GB" and "CUDA 12.8" in found("machine", "torch").found


def test_a_disk_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsq.cli.examination.LITTLE_SPACE", 1e18)
    assert found("folders", "runs").state == "problem" and "gsq clean" in found("folders", "runs").advice


def test_slurm_that_answers_and_one_that_does_not(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, script in (
        ("sbatch", "echo slurm 22.05.8"),
        ("squeue", ""),
        ("scontrol", "echo 'Slurmctld(primary) at c1 is UP'"),
        ("sinfo", "echo 'gpu*  4 nodes  gpu:a100:4'"),
    ):
        command(machine, name, script)
    assert found("slurm", "commands").found == "without sacct"
    command(machine, "sacct", "exit 1")
    assert found("slurm", "accounting").state == "problem"
    command(machine, "sacct", "true")
    checks = {check.name: check for check in examine() if check.area == "slurm"}
    assert {check.state for check in checks.values()} == {"ok"}
    assert checks["commands"].found == "slurm 22.05.8" and checks["partitions"].found == "gpu* 4 nodes gpu:a100:4"
    command(machine, "scontrol", "exec /bin/sleep 5")
    monkeypatch.setattr("gsq.cli.examination.SLURM_SECONDS", 0.2)
    assert found("slurm", "controller").state == "problem"


def test_weights_of_another_size_are_damaged(machine: Path) -> None:
    path = machine / "weights" / REGISTRY["vgg16"].file
    path.parent.mkdir()
    path.write_bytes(b"an error page")
    check = found("weights", "vgg16")
    assert check.state == "problem" and "553.4 expected" in check.found


def test_imagenet_half_there(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGENET", str(machine / "imagenet"))
    (machine / "imagenet" / "train").mkdir(parents=True)
    assert found("data", "ImageNet").state == "problem" and "has no val" in found("data", "ImageNet").found
    (machine / "imagenet" / "val").mkdir()
    assert found("data", "ImageNet").state == "ok"


def test_tables_of_an_earlier_schema(machine: Path) -> None:
    results = machine / "results"
    results.mkdir()
    for name in ("old", "new"):
        write_table([{"sweep": name, "signature": "a"}], results / f"{name}.parquet")
    table = pq.read_table(results / "old.parquet").replace_schema_metadata({"gsq_schema_version": "1"})
    pq.write_table(table, results / "old.parquet")
    (results / "torn.parquet").write_bytes(b"PAR1")
    checks = {check.name: check for check in examine() if check.area == "results"}
    assert checks["old.parquet"].state == "problem" and checks["old.parquet"].advice == "gsq gather old"
    assert checks["torn.parquet"].found.startswith("cannot be read") and checks["tables"].found.startswith("1 in ")
