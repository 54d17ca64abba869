"""Several processes, or several parts of a batch, give the losses of one process with the whole batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import curve, status, tiny

from gsq import RunConfig, RunFolder, UserError, train
from gsq.config.overrides import to_dict
from gsq.config.run import check_processes
from gsq.data.batches import ImageSource
from gsq.records.folder import note_peer_error
from gsq.records.read import read_run
from gsq.runs.execute import _first_error
from gsq.runs.stop import PeerFailed
from gsq.training.distributed import TIMEOUT, Group, join
from gsq.training.trainer import Trainer

HERE = Path(__file__).parent
STEPS = 20
# Everything in which a mean over the batch is more than a sum of gradients.
GLOBAL_MEANS: dict[str, Any] = {
    "loss__perceptual": "none",
    "quantizer__codebook_update": "ema",
    "loss__adaptive_weight": True,
    "loss__lecam_weight": 0.1,
    "loss__gradient_penalty_weight": 0.1,
    "discriminator__augment": ["color", "translation", "cutout"],
    "batch_size": 4,
}
# What the authors' code does, where it is more than another number.
AUTHORS: dict[str, Any] = {
    **GLOBAL_MEANS,
    "loss__lecam_update": "before",
    "discriminator__image_range": "unit",
    "discriminator__batch": "new",
    "discriminator__init": "kaiming",
    "optimizer__ema_warmup": False,
}
# What rounding may do is kept small: a coarse codebook, whose choices rarely change, and a low learning rate, since
# AdamW makes a step of its full size of a gradient that is nothing but rounding.
COARSE = {"codebook_size": 4, "learning_rate": 1e-5}


def losses(config: RunConfig) -> list[dict[str, float]]:
    run = Trainer(config, ImageSource(config.data))
    return [run.step() for _ in range(STEPS)]


def start(program: str, processes: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """Processes as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    common["PYTHONPATH"] = f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def finish(running: list[subprocess.Popen[str]]) -> Iterator[tuple[int, str, str]]:
    for process in running:
        out, error = process.communicate(timeout=120)
        yield process.returncode, out, error


TWO = """
import json, sys, torch
from gsq.data.batches import ImageSource
from gsq.training.distributed import join, leave
from gsq.config.overrides import from_dict
from gsq.training.trainer import Trainer
torch.set_num_threads(1)
config = from_dict(json.loads(sys.argv[1]))
run = Trainer(config, ImageSource(config.data), join(config))
print(json.dumps([run.step() for _ in range(int(sys.argv[2]))]))
leave()
"""


def close(found: list[dict[str, float]], wanted: list[dict[str, float]]) -> None:
    for step, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert a.keys() == b.keys()
        for name in b:
            # The kinks of ReLU make more of a rounding in a gradient than in a loss.
            bound = 1e-3 if name.startswith("gradient_norm") or name == "adaptive_weight" else 1e-5
            assert a[name] == pytest.approx(b[name], rel=bound, abs=bound), f"{name} at step {step}"


@pytest.mark.parametrize(
    "changes", [{"loss__perceptual": "efficientnet_lite0", "batch_size": 4}, GLOBAL_MEANS, AUTHORS]
)
def test_two_processes_have_the_losses_of_one(changes: dict[str, Any]) -> None:
    config = tiny(**changes, **COARSE)
    whole = losses(config)
    for code, out, error in finish(start(TWO, 2, json.dumps(to_dict(config)), str(STEPS))):
        assert code == 0, error
        close(json.loads(out.splitlines()[-1]), whole)


@pytest.mark.parametrize("micro_batch", [1, 2])
@pytest.mark.parametrize("changes", [GLOBAL_MEANS, AUTHORS])
def test_accumulation_has_the_losses_of_the_whole_batch(changes: dict[str, Any], micro_batch: int) -> None:
    close(
        losses(tiny(**changes, **COARSE, execution__micro_batch=micro_batch)),
        losses(tiny(**changes, **COARSE)),
    )


RUN = """
import json, sys
from pathlib import Path
from gsq import train
from gsq.config.overrides import from_dict
print(train(from_dict(json.loads(sys.argv[1])), Path(sys.argv[2])).path)
"""


def test_a_run_of_two_processes_leaves_what_one_leaves(tmp_path: Path) -> None:
    config = tiny(**COARSE, evaluation__every=3)
    one = train(config, tmp_path / "one")
    paths = set()
    for code, out, error in finish(start(RUN, 2, json.dumps(to_dict(config)), str(tmp_path / "two"))):
        assert code == 0, error
        paths.add(out.strip())
    (path,) = paths
    two = RunFolder(Path(path))
    assert two.signature == one.signature and len(two.attempt_folders()) == 1
    assert status(two)["state"] == "done"
    for a, b in zip(curve(two), curve(one), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    environments = [json.loads((f.attempt_folders()[0] / "env.json").read_text()) for f in (one, two)]
    assert [e["world_size"] for e in environments] == [1, 2] and [e["micro_batch"] for e in environments] == [2, 1]
    assert environments[0]["execution_signature"] != environments[1]["execution_signature"]


BREAK = """
from gsq.quantizers import NonFiniteLatent
def broken(*arguments):
    raise NonFiniteLatent("x")
if run.group.rank == 1:
    run._generator_losses = broken
print("""
BROKEN = TWO.replace("\nprint(", BREAK)


def test_a_step_that_fails_in_one_process_is_left_out_by_all() -> None:
    """And the run diverges in both, where with gradients summed during the backward pass the other would hang."""
    config = tiny(loss__perceptual="none")
    for code, _, error in finish(start(BROKEN, 2, json.dumps(to_dict(config)), "9")):
        assert code == 1 and "Diverged: " in error and "5 steps" in error


def test_alone_every_sum_is_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    group = join(tiny())
    assert group == Group() and group.first
    values = torch.arange(3.0)
    group.sum_(values)
    assert values.tolist() == [0, 1, 2] and group.from_first("x") == "x" and group.agree(None) is None
    assert [list(Group(rank, 2).images(6)) for rank in (0, 1)] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 3}, ["train.batch_size: 3", "2 processes"]),
        ({"batch_size": 12, "execution__micro_batch": 4}, ["execution.micro_batch: 4", "6"]),
        ({"discriminator__norm": "batch"}, ["discriminator.norm: 'batch'", "use group"]),
    ],
)
def test_what_processes_cannot_share_is_refused(
    changes: dict[str, Any], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError) as raised:
        check_processes(tiny(**changes), 2)
    assert all(word in str(raised.value) for word in words)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as joined:
        join(tiny(**changes))
    assert str(joined.value) == str(raised.value)


def test_batch_norm_is_refused_with_accumulation() -> None:
    with pytest.raises(UserError, match="micro_batch 1"):
        tiny(discriminator__norm="batch", execution__micro_batch=1)
    assert tiny(discriminator__norm="batch").discriminator.norm == "batch"


# The second process waits for the file, and is then killed, or fails.
PEER = """
import json, os, signal, sys, time
from pathlib import Path
from gsq import train
from gsq.data.batches import ImageSource
from gsq.config.overrides import from_dict
plain = ImageSource.train_batch
def ends(self, seed, step, images):
    if step == 2 and os.environ["RANK"] == "1":
        if sys.argv[3] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise {"OSError": OSError, "MemoryError": MemoryError}[sys.argv[3]]("image 7 is unreadable")
    return plain(self, seed, step, images)
ImageSource.train_batch = ends
train(from_dict(json.loads(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("how", "failure", "words"),
    [
        ("killed", "lost", "another process"),
        ("OSError", "error", "process 1: OSError: image 7 is unreadable"),
        ("MemoryError", "out_of_memory", "process 1: MemoryError"),
    ],
)
def test_the_first_error_of_several_processes_is_told(how: str, failure: str, words: str, tmp_path: Path) -> None:
    config = tiny(loss__perceptual="none", batch_size=2)
    ended = list(finish(start(PEER, 2, json.dumps(to_dict(config)), str(tmp_path), how)))
    assert [code for code, _, _ in ended] == ([1, -9] if how == "killed" else [1, 1])
    (attempt,) = tmp_path.glob("*/*/attempts/1")
    found = json.loads((attempt / "status.json").read_text())
    assert (found["state"], found["failure"]) == ("failed", failure) and words in found["message"]
    assert (attempt / "traceback.txt").exists() == (how != "killed")


def test_an_error_of_a_peer_is_known_where_the_first_process_was_killed_too(tmp_path: Path) -> None:
    """A group like that of NCCL, whose first process hangs until somebody kills it."""
    folder = RunFolder.of(tmp_path, "ab" * 6)
    attempt = folder.new_attempt()
    attempt.write_status("running", 3, 9)
    for rank, message in ((2, "OSError: x"), (1, "ValueError: y")):
        note_peer_error(attempt.path, rank, "disk_full", message)
    record = read_run(folder)
    assert (record.state, record.failure, record.message) == ("failed", "disk_full", "process 2: OSError: x")
    assert [path.name for path in attempt.path.iterdir() if path.name.startswith(".")] == []


def test_the_error_of_a_peer_comes_before_what_follows_from_it(tmp_path: Path) -> None:
    """NCCL tells of a lost process by an error of CUDA, anywhere; an error of this process's own is its own."""
    attempt = RunFolder.of(tmp_path, "ab" * 6).new_attempt()
    unspecified, own = RuntimeError("CUDA error: unspecified launch failure"), MemoryError("no room")
    assert _first_error(unspecified, attempt.path) is unspecified
    note_peer_error(attempt.path, 1, "disk_full", "OSError: x")
    told = _first_error(unspecified, attempt.path)
    assert isinstance(told, PeerFailed) and (told.reason, str(told)) == ("disk_full", "process 1: OSError: x")
    assert _first_error(own, attempt.path) is own


def test_processes_wait_minutes_for_each_other_and_not_hours() -> None:
    assert timedelta(minutes=5) <= TIMEOUT <= timedelta(minutes=30)


WAIT = """
import os, time
from datetime import timedelta
import gsq.training.distributed
gsq.training.distributed.TIMEOUT = timedelta(seconds=2)
from tiny_run import tiny
group = gsq.training.distributed.join(tiny(batch_size=2))
ticks = []
meet = group.meeting()
if group.rank == 1:
    time.sleep(4)
meet(lambda: ticks.append(1))
print(len(ticks), group.all_to_all(group.rank))
gsq.training.distributed.leave()
"""


def test_staging_may_take_longer_than_the_processes_wait_for_each_other() -> None:
    (_, first, _), (code, second, error) = finish(start(WAIT, 2))
    assert code == 0, error
    assert int(first.split()[0]) > 20 and first.split(" ", 1)[1] == second.split(" ", 1)[1] == "[0, 1]\n"
