"""The benchmark kit of `make gpu`, at toy sizes on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu  # type: ignore[import-not-found]

    return gpu


def test_every_row_runs_at_toy_sizes(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "gpu.py", "--toy", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "gpu_toy.json").read_text())
    committed = json.loads((BENCHMARKS / "results/gpu.json").read_text())
    assert [row["title"] for row in result["rows"]] == [row["title"] for row in committed["rows"]]
    states = {row["name"]: (row["state"], row.get("reason")) for row in result["rows"]}
    probe = states.pop("probe")
    assert set(states.values()) == {("measured", None)}
    assert probe in (("measured", None), ("not measured", "there is no probe in this version"))
    lines = {row["name"]: row["lines"] for row in result["rows"] if row["state"] == "measured"}
    assert lines["exact"][0]["ours"] == "1.0000 exact" and lines["exact"][0]["other"] == "1.0000 as on the CPU"
    assert [line["what"].partition(",")[0] for line in lines["paper-f8"]][1] == "peak memory"
    assert all(line["ratio"] > 0 for name in ("lookup", "paper-f8", "paper-f16-compiled-last") for line in lines[name])
    assert (tmp_path / "gpu_toy.md").read_text().count("images/s") >= 2 * 8 + 2


def test_a_row_that_fails_leaves_the_others(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def memory(toy: bool) -> list[dict[str, str]]:
        raise MemoryError

    def wrong(toy: bool) -> list[dict[str, str]]:
        raise ValueError("no such thing\nmore")

    def killed(toy: bool) -> list[dict[str, str]]:
        os._exit(9)

    def slow(toy: bool) -> list[dict[str, str]]:
        time.sleep(60)
        return []

    def right(toy: bool) -> list[dict[str, str]]:
        # What came before is on the disk already.
        states = [row["state"] for row in json.loads((tmp_path / "gpu_toy.json").read_text())["rows"]]
        return [{"what": ",".join(states), "ours": "1 ms"}]

    measures = {"memory": memory, "wrong": wrong, "killed": killed, "slow": slow, "right": right, "late": right}
    rows = [gpu.gpu_rows.Row(name, f"the {name}", measure) for name, measure in measures.items()]
    monkeypatch.setattr(gpu.gpu_rows, "rows", lambda: rows)
    monkeypatch.setattr(gpu, "ROW_SECONDS", 6.0)
    run = gpu.run
    monkeypatch.setattr(gpu, "run", lambda row, toy, seconds: run(row, toy, 1.0 if row.name == "late" else seconds))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--toy", "--out", str(tmp_path)])
    gpu.main()
    found = json.loads((tmp_path / "gpu_toy.json").read_text())["rows"]
    assert [(row["state"], row.get("reason")) for row in found] == [
        ("failed", "out of memory"),
        ("failed", "ValueError: no such thing"),
        ("failed", "its process ended with code 9"),
        ("failed", "stopped after 6 s"),
        ("measured", None),
        ("not measured", "no time left"),
    ]
    assert found[4]["lines"][0]["what"] == "failed,failed,failed,failed,not measured,not measured"
    assert "| the memory | failed (out of memory) |" in (tmp_path / "gpu_toy.md").read_text()


def test_without_a_gpu_the_table_says_not_measured(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "gpu.py", "--out", tmp_path]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 1 and "needs a CUDA GPU" in done.stderr and "Traceback" not in done.stderr
    text = (tmp_path / "gpu.md").read_text()
    assert "Device: not measured" in text
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert text.count("| not measured |") == len(rows) > 10
    # A table that has been measured stays.
    (tmp_path / "gpu.md").write_text("measured")
    subprocess.run(command, capture_output=True, env=environment, timeout=120)
    assert (tmp_path / "gpu.md").read_text() == "measured"
