"""Large images in tiles, or refused before memory is taken."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from fresh_tokenizer import fresh
from PIL import Image
from test_tokenize import draw, invoke, refused, shards
from tiny_run import tiny
from torch import nn

from gsq import Tokenizer, UserError
from gsq.config.model import ModelConfig
from gsq.metrics.reconstruction import psnr_db, psnr_db_by_rows, to_uint8
from gsq.records.folder import RunFolder
from gsq.tokenizer import tiles as tiling
from gsq.tokenizer.files import tokenize_folder
from gsq.tokenizer.inputs import WHOLE_BYTES, tiles_for, working_bytes
from gsq.tokenizer.reconstructions import reconstruct_files
from gsq.tokenizer.tiles import Tiles, reach_of, tiles_of


class Local:
    """A backbone of which each position sees few pixels: no normalisation over the image, no attention."""

    @staticmethod
    def encoder(config: ModelConfig) -> nn.Module:
        width = config.channels
        return nn.Sequential(
            nn.Conv2d(3, width, 5, padding=2),
            nn.SiLU(),
            nn.Conv2d(width, width, 4, stride=4),
            nn.SiLU(),
            nn.Conv2d(width, config.latent_dim, 3, padding=1),
        )

    @staticmethod
    def decoder(config: ModelConfig) -> nn.Module:
        width = config.channels
        return nn.Sequential(
            nn.Conv2d(config.latent_dim, 16 * width, 3, padding=1),
            nn.PixelShuffle(4),
            nn.SiLU(),
            nn.Conv2d(width, 3, 3, padding=1),
        )


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean((2, 3), keepdim=True)


@pytest.fixture
def local() -> Tokenizer:
    made = fresh(tiny())
    torch.manual_seed(1)
    made.model.encoder, made.model.decoder = Local.encoder(made.config.model), Local.decoder(made.config.model)
    made.model.eval().requires_grad_(False)
    return made


def limit(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr("gsq.tokenizer.inputs.available_bytes", lambda device=None: free)


def test_how_far_a_model_sees_is_found_by_trying(local: Tokenizer, tokenizer: Tokenizer) -> None:
    assert reach_of(local) == 2
    # Group norm sees everything, and so does a mean over all positions, which only a trial tells.
    assert reach_of(tokenizer) is None
    other = fresh(tiny())
    other.model.encoder, other.model.decoder = nn.Sequential(local.model.encoder, Mean()), local.model.decoder
    assert reach_of(other) is None
    assert tiles_of(local, 64, any_result=False) == Tiles(12, 2, True)
    assert tiles_of(local, 20, any_result=False) is None
    assert tiles_of(tokenizer, 64, any_result=False) is None
    assert tiles_of(tokenizer, 64, any_result=True) == Tiles(12, 2, False)


@pytest.mark.parametrize("shape", [(21, 33), (12, 12), (5, 40)])
def test_tiles_give_the_result_of_the_whole_image_where_the_model_allows(
    local: Tokenizer, shape: tuple[int, int]
) -> None:
    image = torch.randint(0, 256, (3, 4 * shape[0], 4 * shape[1]), dtype=torch.uint8)
    told: list[tuple[int, int]] = []
    tiles = Tiles(7, 2, True)
    indices = tiling.encode(local, image, tiles, lambda *done: told.append(done))
    assert torch.equal(indices, local.encode(image[None])[0])
    count = tiles.count(*shape)
    assert told == [(i + 1, count) for i in range(count)]
    whole, parts = to_uint8(local.decode(indices[None]))[0], tiling.decode(local, indices, tiles)
    assert int((whole.int() - parts.int()).abs().max()) <= 1
    assert psnr_db_by_rows(parts, image, 7) == pytest.approx(float(psnr_db(parts[None], image[None])))
    assert psnr_db_by_rows(image, image) == float("inf")


def test_an_image_that_does_not_fit_is_cut_where_that_gives_the_same_result(
    local: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = draw(tmp_path / "photos" / "large.png", 401, 300)
    draw(tmp_path / "photos" / "small.png", 40, 40)
    whole = tokenize_folder(local, tmp_path / "photos", tmp_path / "whole")
    (made,) = reconstruct_files(local, [large], tmp_path / "one")
    assert made.tiles == 1 and made.as_a_whole
    encoded = 300 * 401
    limit(monkeypatch, WHOLE_BYTES * encoded + 2 * working_bytes(local, 100 * 100))
    told: list[str] = []
    parts = tokenize_folder(local, tmp_path / "photos", tmp_path / "parts", on_part=told.append)
    assert parts.images == whole.images == 2 and not parts.in_tiles
    assert told[0].startswith("large.png, tile 1 of ") and len(told) > 10
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "parts"), pd.read_parquet(tmp_path / "whole"))
    heard: list[tuple[int, str]] = []
    (cut,) = reconstruct_files(local, [large], tmp_path / "two", on_part=lambda *one: heard.append(one))
    assert cut.tiles == len(told) and cut.as_a_whole and cut.psnr_db == pytest.approx(made.psnr_db, abs=1e-3)
    assert (0, f"decoding large.png, tile 1 of {len(told)}") in heard
    # The rest of the process needs memory, too: without it the image is refused.
    limit(monkeypatch, WHOLE_BYTES * encoded)
    with pytest.raises(UserError, match=r"large.png: 300 x 401 pixels need about .*--tile N"):
        reconstruct_files(local, [large], tmp_path / "three")
    assert not (tmp_path / "three").exists()


def test_the_built_in_model_is_cut_only_if_asked_for(run: RunFolder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    large = draw(photos / "large.png", 120, 80)
    draw(photos / "small.png", 40, 40)
    assert tiles_for(tokenizer, large.read_bytes()) is None
    said = invoke("reconstruct", run.path, large, "--output", tmp_path / "out", "--tile", 48)
    assert "80 x 120" in said and "in 6 tiles (not " in said
    with Image.open(tmp_path / "out" / "large.reconstruction.png") as picture:
        assert picture.size == (120, 80)
    (row,) = json.loads(invoke("reconstruct", run.path, large, "--output", tmp_path / "out", "--tile", 48, "--json"))
    assert row["tiles"] == 6 and row["as_a_whole"] is False
    out = tmp_path / "tokens"
    command = ("tokenize", run.path, photos, "--output", out, "--tile", 48)
    assert json.loads(invoke(*command, "--json"))["in_tiles"] == ["large.png"]
    # A call that finds the shards says the same.
    assert json.loads(invoke(*command, "--json"))["in_tiles"] == ["large.png"]
    assert shards(out) and "--tile (48 there, None now)" in refused(*command[:-2])
    # The small one is encoded as ever.
    table = pd.read_parquet(out).set_index("path")
    plain = tokenize_folder(tokenizer, photos, tmp_path / "plain")
    wanted = pd.read_parquet(tmp_path / "plain").set_index("path")
    assert plain.images == 2 and list(table["indices"]["small.png"]) == list(wanted["indices"]["small.png"])
    for bad in (0, 3, -8):
        assert f"--tile: {bad} is below f = 4" in refused(*command[:-1], bad)


def test_a_batch_is_encoded_in_parts_where_memory_is_short(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(5):
        draw(tmp_path / "photos" / f"{i}.png", 64, 64, seed=i)
    whole = tokenize_folder(tokenizer, tmp_path / "photos", tmp_path / "whole", size=64)
    sizes: list[int] = []
    encode = tokenizer.encode

    def counting(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return encode(images)

    monkeypatch.setattr(tokenizer, "encode", counting)
    limit(monkeypatch, 2 * working_bytes(tokenizer, 64 * 64))
    parts = tokenize_folder(tokenizer, tmp_path / "photos", tmp_path / "parts", size=64)
    assert sizes == [2, 2, 1] and whole.images == parts.images == 5
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "parts"), pd.read_parquet(tmp_path / "whole"))


def test_a_picture_whose_decoding_does_not_fit_is_refused_with_tiles_too(
    local: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = draw(tmp_path / "large.png", 400, 300)
    limit(monkeypatch, 400 * 300)
    monkeypatch.setattr("gsq.tokenizer.reconstructions.decode", None)
    for tile in (None, 64):
        with pytest.raises(UserError, match=r"large\.png: 300 x 400 pixels need about"):
            reconstruct_files(local, [large], tmp_path / "out", tile=tile)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("tile", "fixes"), [(1, ["512"]), (9, ["8", "12"])])
def test_tiles_of_parts_of_positions_are_refused(local: Tokenizer, tmp_path: Path, tile: int, fixes: list[str]) -> None:
    large = draw(tmp_path / "large.png", 40, 30)
    f = local.downsample
    assert f == 4
    with pytest.raises(UserError, match=f"--tile: {tile} .*f = {f}") as refused:
        reconstruct_files(local, [large], tmp_path / "out", tile=tile)
    assert all(fix in str(refused.value) for fix in fixes) and not (tmp_path / "out").exists()
