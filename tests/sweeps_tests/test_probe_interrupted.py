"""Probes that are interrupted in every way go on with the same command, to the same bits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from test_reevaluate import TINY
from verbs_at_work import gsq, start, wait_for

from gsq.records.folder import RunFolder, runs_root
from gsq.sweeps.planning.folder import SweepFolder

WORDS = ["evaluate", "small", "--probe", "tiny", "--probe-steps", "640"]


def probes(runs: Path) -> dict[str, dict[str, Any]]:
    """What the probes found, by signature, less their times."""
    found = {path.parts[-3]: json.loads(path.read_text()) for path in runs.glob("??/*/probes/*.json")}
    return {
        signature: {k: v for k, v in one.items() if k not in ("probe_seconds", "cost")}
        for signature, one in found.items()
    }


def checkpoints() -> dict[str, tuple[Path, int]]:
    """Checkpoint of each probe under way and when it was written, by signature."""
    found = {}
    for path in runs_root().glob("??/*/probes/*.pt"):
        with suppress(OSError):
            if not path.name.startswith("tokens-"):
                found[path.parts[-3]] = (path, path.stat().st_mtime_ns)
    return found


def workers(folder: Path) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.readlink(process / "cwd") == str(folder) and b"gsq.sweeps" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


@pytest.mark.filterwarnings("ignore:rfid over")
def test_interrupted_probes_go_on_bit_for_bit(folder: Path, cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "small.yaml").write_text(
        json.dumps({"name": "small", "base": "cpu-tiny", "set": TINY, "axes": {"groups": [1, 2]}})
    )
    assert gsq("submit", "small.yaml").exit_code == 0
    signatures = SweepFolder(runs_root(), "small").signatures()
    shutil.copytree(folder / "runs", folder / "aside")
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        before = checkpoints()
        running = start(*WORDS)

        def saved(running: subprocess.Popen[str] = running, seen: dict[str, Any] = before) -> bool:
            assert running.poll() is None, running.communicate()[0]
            now = checkpoints()
            return all(now.get(s, seen.get(s)) != seen.get(s) for s in signatures)

        wait_for(saved, 200)
        running.send_signal(number)
        out, _ = running.communicate(timeout=60)
        assert running.returncode == code, out
        assert "Traceback" not in out and (number == signal.SIGKILL or "resumes" in out), out
        wait_for(lambda: not workers(folder), 60)
        assert not probes(runs_root())
    # It goes on from what is there: a mark in one of the checkpoints is found in the result.
    marked = checkpoints()[signatures[1]][0]
    state = torch.load(marked, weights_only=True)
    assert 0 < state["step"] < 640
    state["result"]["held_out"][0] = 99.0
    torch.save(state, marked)
    resumed = start(*WORDS)
    out, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0 and "2 new evaluations of 2" in out, out
    found = probes(runs_root())
    assert found[signatures[1]]["probe_curve"][0] == 99.0 and not checkpoints()
    monkeypatch.setenv("GSQ_RUNS", str(folder / "aside"))
    whole = start(*WORDS)
    out, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, out
    alone = probes(folder / "aside")
    found[signatures[1]]["probe_curve"][0] = alone[signatures[1]]["probe_curve"][0]
    assert found == alone
    assert not [path for path in RunFolder.of(runs_root(), signatures[0]).probes.iterdir() if "partial" in path.name]
