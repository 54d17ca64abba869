"""A probe that several processes share: the numbers of one process, and an end of all where one of them fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_distributed import RUN, finish, start
from tiny_run import status, tiny

from gsq import RunFolder, train
from gsq.config.overrides import to_dict

# Eleven evaluation images and batches of eight are odd shares of two processes.
PROBED: dict[str, Any] = {
    "loss__perceptual": "none",
    "loss__discriminator_start": 100,
    "train__steps": 2,
    "data__image_size": 32,
    # Rounding differs between one process and two, and moves a coarse codebook's indices rarely.
    "codebook_size": 4,
    "learning_rate": 1e-5,
    "evaluation__num_images": 11,
    "evaluation__probe": "tiny",
    "evaluation__probe_images": 101,
    "evaluation__probe_steps": 16,
}
FAILING = """
import os
from gsq.models.autoencoder import Autoencoder
from gsq.quantizers import NonFiniteLatent
real = Autoencoder.encode
def encode(self, images):
    if os.environ["RANK"] == "1":
        raise NonFiniteLatent("latent holds NaN")
    return real(self, images)
Autoencoder.encode = encode
"""


def probe_of(folder: RunFolder) -> dict[str, Any]:
    (path,) = folder.probes.glob("*.json")
    return dict(json.loads(path.read_text()))


@pytest.mark.filterwarnings("ignore:rfid over")
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    config = tiny(**PROBED)
    one = probe_of(train(config, tmp_path / "one"))
    for code, out, error in finish(start(RUN, 2, json.dumps(to_dict(config)), str(tmp_path / "two"))):
        assert code == 0, error
        folder = RunFolder(Path(out.strip()))
    two = probe_of(folder)
    assert status(folder)["state"] == "done" and len(folder.attempt_folders()) == 1
    timed = {"probe_seconds", "cost"}
    rounded = {name for name, value in one.items() if isinstance(value, float)} - timed
    assert rounded >= {"prior_bits_per_token", "prior_bits_per_pixel", "gfid", "probe_train_bits"}
    for name in one.keys() - rounded - timed - {"probe_curve"}:
        assert two[name] == one[name], name
    for name in rounded - {"gfid", "gfid_minus_rfid", "prior_gain_bits"}:
        assert two[name] == pytest.approx(one[name], rel=1e-3), name
    # A rounding moves a few samples to another code.
    assert two["gfid"] == pytest.approx(one["gfid"], rel=0.02)
    assert two["probe_curve"] == pytest.approx(one["probe_curve"], rel=1e-3)


@pytest.mark.filterwarnings("ignore:rfid over")
def test_a_process_that_cannot_tokenise_ends_all_of_them(tmp_path: Path) -> None:
    arguments = (json.dumps(to_dict(tiny(**PROBED))), str(tmp_path))
    ended = list(finish(start(FAILING + RUN, 2, *arguments)))
    assert [code for code, _, _ in ended] == [1, 1]
    (path,) = tmp_path.glob("??/*")
    found = status(RunFolder(path))
    assert (found["state"], found["failure"]) == ("failed", "diverged") and "NaN" in found["message"], found
    assert not list(RunFolder(path).probes.glob("*.json"))
