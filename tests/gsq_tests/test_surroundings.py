"""What a shell was left with by torchrun, a container or a job does not mislead a process that is started there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import tiny

from gsq import UserError
from gsq.surroundings import GROUP_VARIABLES, alone, forget_group, local_rank, visible_gpus, world_size
from gsq.training.distributed import join


@pytest.fixture(autouse=True)
def _no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*GROUP_VARIABLES, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def test_an_environment_without_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    left = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "x"}
    assert alone({**left, "HOME": "/root", "RANKING": "1"}) == {"HOME": "/root", "RANKING": "1"}
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    forget_group()
    assert not left.keys() & os.environ.keys() and world_size() == 1


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "2"}, ["WORLD_SIZE=2", "RANK, MASTER_ADDR, MASTER_PORT", "unset WORLD_SIZE", "torchrun"]),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a"}, ["MASTER_PORT is not set"]),
        ({"WORLD_SIZE": "two"}, ["WORLD_SIZE=two", "unset"]),
        ({"WORLD_SIZE": "0"}, ["WORLD_SIZE=0"]),
    ],
)
def test_a_group_that_is_described_in_part_is_refused(
    variables: dict[str, str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as raised:
        join(tiny())
    assert [word for word in words if word not in str(raised.value)] == []


def test_a_rank_without_a_group_chooses_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_rank() == 0
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert local_rank() == 3


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        (None, None),
        ("", []),
        ("0", ["0"]),
        ("2,0", ["2", "0"]),
        ("GPU-1a-2b, GPU-3c", ["GPU-1a-2b", "GPU-3c"]),
        ("MIG-GPU-1a/7/0", ["MIG-GPU-1a/7/0"]),
        # What SLURM and containers write where there is none; CUDA ends its list at what names no device.
        ("NoDevFiles", []),
        ("none", []),
        ("void", []),
        ("-1", []),
        ("0,-1,1", ["0"]),
        ("0,0", ["0"]),
        ("all", []),
    ],
)
def test_gpus_are_those_that_cuda_would_use(
    visible: str | None, gpus: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == gpus


ALONE = """
import sys
from pathlib import Path
from gsq.runs.execute import Stopped, StopRequest, execute
import gsq.training.distributed, signal
sys.path.insert(0, sys.argv[2])
from tiny_run import tiny
gsq.training.distributed.SILENT_SECONDS = 0.1
stop = StopRequest()
with stop.on_signals({signal.SIGINT: "cancelled"}):
    try:
        execute(tiny(), Path(sys.argv[1]), stop=stop)
    except Stopped as stopped:
        print(stopped.reason)
"""


def test_ctrl_c_is_heard_while_a_process_waits_for_peers(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with subprocess.Popen(
        [sys.executable, "-c", ALONE, str(tmp_path), str(Path(__file__).parent)],
        env={**os.environ, **group},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None and process.stdout is not None
        said = next(line for line in process.stderr if "WORLD_SIZE" in line)
        assert port in said and "unset WORLD_SIZE" in said
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stdout.read().strip() == "cancelled"
        assert time.monotonic() - begun < 10
