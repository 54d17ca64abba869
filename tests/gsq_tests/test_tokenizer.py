"""gsq.Tokenizer: what it reads, saves and refuses."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fresh_tokenizer import fresh
from safetensors.torch import load_file, save_file
from tiny_run import files_below, tiny

from gsq import Tokenizer, UserError
from gsq.models.autoencoder import Autoencoder
from gsq.records.folder import RunFolder


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape or (2, 3, 32, 24), generator=torch.Generator().manual_seed(seed)) * 2 - 1


# Reading and writing


def test_a_run_gives_its_averaged_weights(run: RunFolder, tokenizer: Tokenizer) -> None:
    model = Autoencoder(tokenizer.config)
    model.load_state_dict(load_file(run.attempt_folders()[-1] / "model.safetensors"))
    images = pictures()
    assert torch.equal(tokenizer.encode(images), model.eval().encode(images))
    assert torch.equal(tokenizer.reconstruct(images), model.decode(model.encode(images)).clamp(-1, 1))
    assert tokenizer.downsample == 4 and tokenizer.index_sizes == (32, 32)
    assert repr(tokenizer) == "Tokenizer(gsq, f=4, D=4, 32^2 codes a position, 10 bits, on cpu)"


@pytest.mark.parametrize("where", ["signature", "relative", "weights file", "config file"])
def test_other_ways_to_name_a_run(
    run: RunFolder, tokenizer: Tokenizer, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GSQ_RUNS", str(run.path.parent.parent))
    monkeypatch.chdir(run.path.parent)
    name = {
        "signature": run.signature,
        "relative": f"./{run.signature}",
        "weights file": str(run.attempt_folders()[-1] / "model.safetensors"),
        "config file": str(run.path / "config.yaml"),
    }[where]
    assert Tokenizer.from_pretrained(name).fingerprint() == tokenizer.fingerprint()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quantizer": "vq", "groups": 1, "model__attention": True, "model__blocks": 2},
        {"quantizer": "rvq", "groups": 1, "quantizer__depth": 2},
        {"quantizer": "fsq", "groups": 4, "codebook_size": 8, "quantizer__levels": (8, 6, 5, 5)},
        {"quantizer": "lfq", "groups": 4, "codebook_size": 2, "model__upsample": "depth_to_space"},
        {"quantizer": "bsq", "groups": 4, "codebook_size": 2},
        {"groups": 4, "quantizer__decoder_input": "raw"},
    ],
)
def test_saved_and_read_again_it_is_the_same(changes: dict[str, Any], tmp_path: Path) -> None:
    first = fresh(tiny(**changes))
    state = torch.get_rng_state()
    second = Tokenizer.from_pretrained(first.save_pretrained(tmp_path / "a" / "saved"), device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert second.config.model == first.config.model and second.config.quantizer == first.config.quantizer
    assert second.fingerprint() == first.fingerprint() != fresh(tiny(**changes), seed=1).fingerprint()
    images = pictures()
    indices = first.encode(images)
    assert indices.shape == (2, len(first.index_sizes), 8, 6) and indices.dtype == torch.int64
    assert torch.equal(second.encode(images), indices) and torch.equal(second.decode(indices), first.decode(indices))
    assert files_below(tmp_path) == [f"a/saved/{name}" for name in ("README.md", "config.json", "model.safetensors")]


def test_config_json_says_what_it_is(tmp_path: Path) -> None:
    folder = fresh(tiny()).save_pretrained(tmp_path / "saved")
    value = json.loads((folder / "config.json").read_text())
    assert value["format"] == 1 and set(value["config"]) == {"model", "quantizer"} and len(value["sha256"]) == 64
    assert str(tmp_path) not in (folder / "config.json").read_text()


def test_saving_replaces_a_saved_tokenizer_and_nothing_else(tmp_path: Path) -> None:
    one, two = fresh(tiny()), fresh(tiny(groups=1))
    folder = one.save_pretrained(tmp_path / "saved")
    two.save_pretrained(folder)
    assert Tokenizer.from_pretrained(folder).fingerprint() == two.fingerprint()
    (folder / "notes.txt").write_text("mine")
    for path in (folder, folder / "notes.txt"):
        with pytest.raises(UserError, match="saved tokenizer; choose another folder"):
            one.save_pretrained(path)
    assert Tokenizer.from_pretrained(folder).fingerprint() == two.fingerprint()
    with pytest.raises(UserError, match="cannot be written"):
        one.save_pretrained(folder / "notes.txt" / "below")


def test_a_save_that_fails_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = fresh(tiny()), fresh(tiny(groups=1))
    folder = one.save_pretrained(tmp_path / "saved")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        two.save_pretrained(folder)
    assert Tokenizer.from_pretrained(folder).fingerprint() == one.fingerprint()
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


def break_saved(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    value = json.loads(config.read_text())
    if how == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "not json":
        config.write_text("{")
    elif how == "newer":
        value["format"] = 99
    elif how == "no config":
        del value["config"]
    elif how == "unknown key":
        value["config"]["model"]["surprise"] = 1
    elif how == "wrong type":
        value["config"]["model"]["channels"] = "many"
    elif how == "bad value":
        value["config"]["model"]["downsample"] = 7
    elif how == "other architecture":
        value["config"]["model"]["channels"] = 16
    elif how == "not finite":
        state = load_file(weights)
        state["encoder.0.bias"][0] = float("nan")
        save_file(state, weights)
    if how in ("other architecture", "not finite"):
        del value["sha256"]
    if how not in ("cut", "not json"):
        config.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", r"model\.safetensors: damaged; its sha256"),
        ("not json", r"config\.json: not JSON"),
        ("newer", r"config\.json: format 99, written by gsq .*; this one reads format 1"),
        ("no config", "has no config"),
        ("unknown key", r"unknown key 'model\.surprise'"),
        ("wrong type", r"model\.channels"),
        ("bad value", r"model\.downsample: 7 is not allowed"),
        ("other architecture", r"another architecture than the config: .* of another shape \(.* for .*, \.\.\.\)"),
        ("not finite", r"not finite numbers: encoder\.0\.bias"),
    ],
)
def test_a_saved_tokenizer_that_cannot_be_read_says_why(tmp_path: Path, how: str, message: str) -> None:
    folder = fresh(tiny()).save_pretrained(tmp_path / "saved")
    break_saved(folder, how)
    with pytest.raises(UserError, match=message) as error:
        Tokenizer.from_pretrained(folder)
    assert "\n" not in str(error.value)


def test_what_is_no_tokenizer_says_so(tmp_path: Path, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"saved tokenizer, a run folder, .*checkpoint"):
        Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"missing: .*\(a Hugging Face"):
        Tokenizer.from_pretrained("missing")
    monkeypatch.setenv("GSQ_RUNS", str(tmp_path))
    with pytest.raises(UserError, match="0123456789ab: no run "):
        Tokenizer.from_pretrained("0123456789ab")
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"holds 2 checkpoints \(a\.pt, b\.pt\); name one"):
        Tokenizer.from_pretrained(tmp_path)
    unfinished = shutil.copytree(run.path, tmp_path / "run")
    (RunFolder(unfinished).attempt_folders()[-1] / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has not finished training"):
        Tokenizer.from_pretrained(unfinished)


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "cuda:x", ""])
def test_a_device_that_is_not_there(run: RunFolder, device: str) -> None:
    with pytest.raises(UserError, match="device"):
        Tokenizer.from_pretrained(run.path, device=device)


class Hub(types.ModuleType):
    """Stands for the hub's client: a cache folder, and whether it reaches the hub."""

    def __init__(self, cache: Path | None, error: Exception | None = None) -> None:
        super().__init__("huggingface_hub")
        self.cache, self.error, self.calls = cache, error, 0

    def snapshot_download(self, name: str, local_files_only: bool = False, **options: object) -> str:
        self.calls += 1
        if self.error and not local_files_only:
            raise self.error
        if self.cache is None:
            raise FileNotFoundError("not in the cache")
        return str(self.cache)


class RepositoryNotFoundError(Exception):
    pass


def test_a_hub_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = fresh(tiny())
    folder = saved.save_pretrained(tmp_path / "cache")
    for hub in (Hub(folder), Hub(folder, ConnectionError("no route to host"))):
        monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
        assert Tokenizer.from_pretrained("owner/name").fingerprint() == saved.fingerprint()
        assert hub.calls == (2 if hub.error else 1)


@pytest.mark.parametrize(
    ("hub", "message"),
    [
        (None, "pip install huggingface_hub"),
        (Hub(None, ConnectionError("no route\nto host")), r"hub cannot be reached \(no route\); download it where"),
        (Hub(None, RepositoryNotFoundError("404")), "hub has no model"),
    ],
)
def test_a_hub_model_that_cannot_be_had(hub: Hub | None, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(UserError, match=message) as error:
        Tokenizer.from_pretrained("owner/name")
    assert str(error.value).startswith("owner/name: no such file or folder here") and "\n" not in str(error.value)


# Images and indices


def test_uint8_and_float_images_are_the_same(tokenizer: Tokenizer) -> None:
    images = torch.randint(0, 256, (2, 3, 32, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tokenizer.encode(images), tokenizer.encode(images.float() / 127.5 - 1))
    assert torch.equal(tokenizer.encode(images), tokenizer.encode(images.double() / 127.5 - 1))


@pytest.mark.parametrize("size", [(4, 4), (4, 40), (64, 32)])
def test_any_size_that_f_divides(tokenizer: Tokenizer, size: tuple[int, int]) -> None:
    images = pictures(1, 3, *size)
    out = tokenizer.reconstruct(images)
    assert out.shape == images.shape and out.isfinite().all() and out.abs().max() <= 1 and not out.requires_grad


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 3, 32, 32)), "a ndarray; a torch tensor"),
        (pictures(3, 32, 32), r"shape \(3, 32, 32\); \(B, 3, H, W\) is needed"),
        (pictures(1, 32, 32, 3), r"shape \(1, 32, 32, 3\)"),
        (pictures(1, 1, 32, 32), r"shape \(1, 1, 32, 32\)"),
        (torch.zeros(0, 3, 32, 32), "at least one image"),
        (pictures(1, 3, 30, 33), "30 x 33 pixels, .*multiples of f = 4, such as 28 x 32"),
        (pictures(1, 3, 2, 32), "such as 4 x 32"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.int64), "dtype torch.int64; floating point in"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.complex64), "dtype torch.complex64"),
        (pictures(1, 3, 32, 32) * 1.1, r"values from -1\.09.* to 1\.09.*; they must be in \[-1, 1\]"),
        (torch.full((1, 3, 32, 32), 255.0), "values from 255 to 255.*uint8 for 0 to 255"),
        (torch.full((1, 3, 32, 32), float("nan")), "nan"),
        (torch.full((1, 3, 32, 32), float("inf")), "inf"),
    ],
)
def test_bad_images_are_one_message(tokenizer: Tokenizer, images: Any, message: str) -> None:
    for verb in (tokenizer.encode, tokenizer.reconstruct):
        with pytest.raises(UserError, match=message):
            verb(images)


def test_a_hair_beyond_the_range_is_taken(tokenizer: Tokenizer) -> None:
    tokenizer.encode(pictures() * 1.0005)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([1], "a list; a torch tensor"),
        (torch.zeros(1, 2, 8, 8), "dtype torch.float32; whole numbers"),
        (torch.zeros(1, 2, 8, 8, dtype=torch.bool), "dtype torch.bool"),
        (torch.zeros(2, 8, 8, dtype=torch.int64), r"shape \(2, 8, 8\); \(B, 2, h, w\) is needed"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), r"shape \(1, 3, 8, 8\)"),
        (torch.zeros(1, 2, 0, 8, dtype=torch.int64), "not empty"),
        (torch.full((1, 2, 8, 8), 32), r"from 32 to 32 at \[:, 0\], but they must be in 0 to 31"),
        (torch.full((1, 2, 8, 8), -1), "from -1 to -1"),
    ],
)
def test_bad_indices_are_one_message(tokenizer: Tokenizer, indices: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tokenizer.decode(indices)


def test_indices_of_each_channel_have_their_own_range() -> None:
    fsq = fresh(tiny(quantizer="fsq", groups=4, codebook_size=8, quantizer__levels=(8, 6, 5, 5)))
    fsq.decode(torch.tensor([7, 5, 4, 4], dtype=torch.int32).view(1, 4, 1, 1))
    with pytest.raises(UserError, match=r"6 to 6 at \[:, 1\], .* 0 to 5"):
        fsq.decode(torch.tensor([7, 6, 4, 4]).view(1, 4, 1, 1))
