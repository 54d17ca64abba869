"""A tokenizer over image files: gsq reconstruct and gsq tokenize."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from fresh_tokenizer import fresh
from PIL import Image
from tiny_run import files_below, tiny
from typer.testing import CliRunner

from gsq import Tokenizer, UserError
from gsq.cli.main import app
from gsq.config.run import DataConfig
from gsq.data.images import decode
from gsq.data.listing import shown
from gsq.data.sources import manifest
from gsq.metrics.reconstruction import psnr_db, to_uint8
from gsq.records.folder import RunFolder
from gsq.tokenizer.files import list_images, tokenize_folder
from gsq.tokenizer.inputs import crop_to_multiple, working_bytes


def invoke(*arguments: object) -> str:
    """Standard output of a gsq command that succeeds."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    """The UserError of a gsq command."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert isinstance(result.exception, UserError), result.exception
    assert "\n" not in str(result.exception)
    return str(result.exception)


def draw(path: Path, width: int, height: int, seed: int = 0) -> Path:
    """A smooth random picture."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).resize((width, height)).save(path)
    return path


def test_reconstruct_writes_pictures_and_their_psnr(run: RunFolder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    one, two = draw(tmp_path / "a" / "one.png", 50, 34), draw(tmp_path / "b" / "one.png", 40, 32, seed=1)
    out = tmp_path / "out" / "deep"
    found = json.loads(invoke("reconstruct", run.path, one, two, "--output", out, "--json"))
    assert files_below(out) == [f"one{n}.{k}.png" for n in ("-2", "") for k in ("reconstruction", "side-by-side")]
    assert [(r["height"], r["width"], r["cropped"]) for r in found] == [(32, 48, [2, 2]), (32, 40, [0, 0])]
    made, both = (np.asarray(Image.open(found[0][key])) for key in ("reconstruction", "side_by_side"))
    original = np.asarray(Image.open(one))[1:33, 1:49]
    assert np.array_equal(both[:, :48], original) and np.array_equal(both[:, -48:], made)
    wanted = to_uint8(tokenizer.reconstruct(torch.from_numpy(original.copy()).permute(2, 0, 1)[None]))
    assert np.array_equal(made, wanted[0].permute(1, 2, 0))
    assert found[0]["psnr_db"] == float(psnr_db(wanted, torch.from_numpy(original.copy()).permute(2, 0, 1)[None]))
    text = invoke("reconstruct", run.path, one, "--output", out)
    assert f"{one}: 32 x 48, PSNR {found[0]['psnr_db']:.2f} dB, 2 rows and 2 columns cropped off -> " in text


def test_reconstruct_writes_nothing_where_an_image_is_bad(run: RunFolder, tmp_path: Path) -> None:
    good, out = draw(tmp_path / "good.png", 32, 32), tmp_path / "out"
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:60])
    (tmp_path / "text.jpg").write_text("hello")
    draw(tmp_path / "thin.png", 40, 3)
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "deep.tiff")
    for name, message in {
        "cut.png": "cut.png: not an image",
        "text.jpg": "of no known image format",
        "thin.png": "3 x 40 pixels are fewer than f = 4 on a side",
        "deep.tiff": "pixels of mode F, whose range is not known",
        "missing.png": "No such file",
        ".": "name image files",
    }.items():
        assert message in refused("reconstruct", run.path, good, tmp_path / name, "--output", out)
    assert not out.exists()
    assert "cannot be made a folder" in refused("reconstruct", run.path, good, "--output", good)


def test_crops_are_centred_and_images_upright(tmp_path: Path) -> None:
    image = crop_to_multiple(Image.new("RGB", (37, 35)), 16)
    assert image.size == (32, 32)
    picture = Image.new("RGB", (20, 10))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert decode((tmp_path / "turned.jpg").read_bytes()).size == (10, 20)
    Image.new("LA", (8, 8)).save(tmp_path / "grey.png")
    assert decode((tmp_path / "grey.png").read_bytes()).mode == "RGB"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven pictures of two sizes, two broken files, and what is no image."""
    folder = tmp_path / "photos"
    for i in range(7):
        draw(folder / ("sub" if i % 2 else "") / f"{i}.png", 32 if i < 4 else 40, 32 if i != 5 else 30, seed=i)
    (folder / "3-cut.png").write_bytes((folder / "0.png").read_bytes()[:60])
    (folder / "text.jpg").write_text("hello")
    (folder / "notes.txt").write_text("no image")
    return folder


def shards(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("*.parquet"))


def test_tokenize_a_folder(run: RunFolder, tokenizer: Tokenizer, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    command = ("tokenize", run.path, photos, "--output", out, "--shard-size", 4, "--batch-size", 2)
    summary = json.loads(invoke(*command, "--json"))
    assert shards(out) == [f"indices-0000{i}.parquet" for i in range(3)]
    assert (summary["images"], summary["shards"], summary["shards_before"]) == (7, 3, 0)
    assert [b["path"] for b in summary["broken"]] == ["3-cut.png", "text.jpg"] and summary["bits_per_token"] == 10
    # The help says so.
    table = pd.read_parquet(out)
    assert list(table["path"]) == [n for n in list_images(photos) if n not in ("3-cut.png", "text.jpg")]
    for _, row in table.iterrows():
        image = crop_to_multiple(decode((photos / row["path"]).read_bytes()), 4)
        assert (row["height"], row["width"]) == (image.height, image.width)
        indices = row["indices"].reshape(row.latent_height, row.latent_width, row.indices_per_position)
        wanted = tokenizer.encode(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])[0]
        assert np.array_equal(indices.transpose(2, 0, 1), wanted)
    assert summary["positions"] == sum(table["latent_height"] * table["latent_width"])
    metadata = json.loads(pq.read_schema(out / "indices-00001.parquet").metadata[b"gsq"])
    assert metadata["tokenizer"] == tokenizer.fingerprint() and metadata["index_sizes"] == [32, 32]
    assert metadata["downsample"] == 4 and metadata["source"] == run.signature and metadata["shard"] == 1
    # Again: nothing to do, and the same count.
    before = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    again = json.loads(invoke(*command, "--json"))
    assert again["shards_before"] == 3 and {p: p.stat().st_mtime_ns for p in out.iterdir()} == before
    assert {k: v for k, v in again.items() if k not in ("seconds", "shards_before")} == {
        k: v for k, v in summary.items() if k not in ("seconds", "shards_before")
    }
    text = invoke(*command)
    assert "left out: 3-cut.png: " in text and "7 images, " in text and "3 shards (3 there before)" in text


def test_tokenize_takes_the_images_that_training_takes(
    tokenizer: Tokenizer, photos: Path, tmp_path: Path, run: RunFolder
) -> None:
    (tmp_path / "store").mkdir()
    draw(tmp_path / "store" / "7.png", 32, 32, seed=7)
    (photos / "linked").symlink_to(tmp_path / "store")
    (photos / "._0.png").write_bytes(b"x")
    (photos / "drawing.svg").write_text("<svg/>")
    draw(photos / "8.gif", 32, 32, seed=8)
    draw(photos / "pixel.png", 1, 1)
    (photos / os.fsdecode(b"caf\xe9.png")).write_bytes((photos / "0.png").read_bytes())
    out = tmp_path / "tokens"
    summary = json.loads(invoke("tokenize", run.path, photos, "--output", out, "--size", 16, "--json"))
    found = manifest(DataConfig(kind="image_folder", path=str(photos), max_broken=0.5, validation_share=0.5))
    table = pd.read_parquet(out)
    assert {*table["path"]} == {shown(file.name) for file in (*found.train, *found.validation)}
    assert {"linked/7.png", "8.gif", r"caf\xe9.png"} <= {*table["path"]} and summary["images"] == 10
    assert {b["path"] for b in summary["broken"]} == {"3-cut.png", "text.jpg", "pixel.png"}
    assert {(one["name"], one["kind"]) for one in summary["left_out"]} == {
        ("._0.png", "hidden"),
        ("drawing.svg", "format"),
    }
    text = invoke("tokenize", run.path, photos, "--output", out, "--size", 16)
    assert "(1 svg)" in text and "left out: pixel.png: 1 x 1 pixels" in text


def test_what_does_not_fit_into_memory_is_refused_before_it_is_taken(
    tokenizer: Tokenizer, photos: Path, tmp_path: Path, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = draw(photos / "large.png", 400, 300)
    needed = working_bytes(tokenizer, 400 * 300)
    assert working_bytes(tokenizer, 2 * 400 * 300) == 2 * needed
    monkeypatch.setattr("gsq.tokenizer.inputs.available_bytes", lambda device=None: needed // 4)
    out = tmp_path / "out"
    said = refused("reconstruct", run.path, photos / "0.png", large, "--output", out)
    assert f"{large}: " in said and "300 x 400 pixels need about " in said and "about 173 x 173 pixels fit" in said
    assert not out.exists()
    summary = tokenize_folder(tokenizer, photos, tmp_path / "tokens")
    assert "large.png" in dict(summary.broken) and "pixels fit" in dict(summary.broken)["large.png"]
    assert summary.images == 7
    # The centre square that is asked for fits.
    assert tokenize_folder(tokenizer, photos, tmp_path / "small", size=16).images == 8


def test_a_large_image_takes_no_more_memory_than_is_said(run: RunFolder, tmp_path: Path) -> None:
    draw(tmp_path / "large.png", 1500, 1000)
    draw(tmp_path / "small.png", 32, 32)
    code = (
        "import re, sys; from pathlib import Path; from gsq import Tokenizer\n"
        "from gsq.tokenizer.reconstructions import reconstruct_files; from gsq.tokenizer.inputs import working_bytes\n"
        "tokenizer = Tokenizer.from_pretrained(sys.argv[1], 'cpu')\n"
        "def peak(name):\n"
        "    reconstruct_files(tokenizer, [Path(name)], Path('out'))\n"
        # Not ru_maxrss, which begins at the size of the process that started this one.
        "    return 1024 * int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "before = peak('small.png')\n"
        "print(peak('large.png') - before, working_bytes(tokenizer, 1500 * 1000))"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    taken, said = map(int, ran.stdout.split())
    assert 0.6 * said < taken < said


def test_tokenize_at_one_size(run: RunFolder, photos: Path, tmp_path: Path) -> None:
    invoke("tokenize", run.path, photos, "--output", tmp_path / "out", "--size", 16)
    table = pd.read_parquet(tmp_path / "out")
    assert set(table["height"]) == set(table["width"]) == {16} and set(map(len, table["indices"])) == {4 * 4 * 2}


def test_many_sizes_do_not_pile_up_in_memory(
    tokenizer: Tokenizer, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tokenize_folder(tokenizer, photos, tmp_path / "one", batch_size=100)
    monkeypatch.setattr("gsq.tokenizer.files.WAITING_PIXELS", 1500)
    monkeypatch.setattr("gsq.tokenizer.files.BATCH_PIXELS", 2000)
    parts = tokenize_folder(tokenizer, photos, tmp_path / "two", batch_size=100)
    assert parts.images == whole.images == 7
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "one"), pd.read_parquet(tmp_path / "two"))


@pytest.mark.parametrize("how", ["deleted", "damaged", "of another call"])
def test_a_shard_that_is_not_there_is_made_again(tokenizer: Tokenizer, photos: Path, tmp_path: Path, how: str) -> None:
    out = tmp_path / "out"
    tokenize_folder(tokenizer, photos, out, shard_size=4)
    wanted = pd.read_parquet(out)
    shard = out / "indices-00001.parquet"
    if how == "deleted":
        shard.unlink()
    elif how == "damaged":
        shard.write_bytes(shard.read_bytes()[:-10])
    else:
        pq.write_table(pq.read_table(shard).replace_schema_metadata({"gsq": "{}"}), shard)
    (out / ".indices-00001.parquet.99.partial").write_bytes(b"left by a killed process")
    assert tokenize_folder(tokenizer, photos, out, shard_size=4).shards_before == 2
    pd.testing.assert_frame_equal(pd.read_parquet(out), wanted)
    assert not list(out.glob(".*"))


def test_tokenize_does_not_mix_what_differs(run: RunFolder, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("tokenize", run.path, photos, "--output", out)
    invoke(*command)
    before = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    assert "differ in --size (None there, 16 now)" in refused(*command, "--size", 16)
    assert "--shard-size (1000 there, 5 now)" in refused(*command, "--shard-size", 5)
    other = fresh(tiny()).save_pretrained(tmp_path / "other")
    assert "differ in tokenizer (" in refused("tokenize", other, photos, "--output", out)
    draw(photos / "new.png", 32, 32)
    assert "(9 there, 10 now)" in refused(*command)
    (photos / "new.png").unlink()
    draw(photos / "0.png", 32, 36)
    assert all(one in refused(*command) for one in ("names and sizes", "another folder"))
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == before
    (out / "_manifest.json").unlink()
    assert "_manifest.json" in refused(*command)
    (out / "_manifest.json").write_text("[]")
    assert "not a manifest" in refused(*command)


def test_tokenize_bad_input_is_one_message_and_leaves_nothing(run: RunFolder, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    file = draw(tmp_path / "file.png", 8, 8)
    for arguments, message in (
        ((tmp_path / "missing",), "no such folder"),
        ((file,), "is a file; a folder of images is needed"),
        ((tmp_path / "empty",), "holds no images"),
        ((photos, "--size", 30), "--size: 30 is not a multiple of f = 4; 28 "),
        ((photos, "--size", 0), "--size: 0 is not a multiple"),
        ((photos, "--size", -4), "--size: -4 is not a multiple"),
        ((photos, "--shard-size", 0), "--shard-size: 0 is too small"),
        ((photos, "--batch-size", 0), "--batch-size: 0 is too small"),
        ((photos, "--device", "tpu"), "device: 'tpu' is not allowed"),
    ):
        assert message in refused("tokenize", run.path, *arguments, "--output", out)
        assert not out.exists()
    assert "cannot be made a folder" in refused("tokenize", run.path, photos, "--output", file)
    assert "no such file or folder" in refused("tokenize", "missing", photos, "--output", out)


def test_a_folder_of_broken_images_alone(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_text("no")
    with pytest.raises(UserError, match=r"none of 1 images .*a\.png: .*format"):
        tokenize_folder(tokenizer, tmp_path / "in", tmp_path / "out")


def test_a_full_disk_is_one_message(
    tokenizer: Tokenizer, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(table: object, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pq, "write_table", full)
        with pytest.raises(UserError, match=r"indices-00000\.parquet: No space left on device"):
            tokenize_folder(tokenizer, photos, tmp_path / "out")
    assert files_below(tmp_path / "out") == ["_manifest.json"]
    assert tokenize_folder(tokenizer, photos, tmp_path / "out").images == 7


def test_too_little_memory_is_one_message(
    tokenizer: Tokenizer, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(tokenizer, "encode", fail)
    with pytest.raises(UserError, match=r"out of memory; .*--batch-size, .*--size"):
        tokenize_folder(tokenizer, photos, tmp_path / "out")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_it_goes_on_where_it_was(run: RunFolder, tmp_path: Path, number: signal.Signals) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    draw(photos / "000.png", 256, 256, seed=0)
    for i in range(1, 180):
        shutil.copy(photos / "000.png", photos / f"{i:03d}.png")
    command = [sys.executable, "-m", "gsq.cli", "tokenize", str(run.path), str(photos), "--output", str(out)]
    command += ["--shard-size", "3", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 60
    while len(shards(out)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    before = shards(out)
    assert 2 <= len(before) < 60
    if number == signal.SIGINT:
        assert process.returncode == 130 and output == ""
        assert "the same command resumes" in errors.splitlines()[-1]
        assert files_below(out) == sorted(["_manifest.json", *before])
    summary = json.loads(invoke(*command[3:], "--json"))
    assert summary["shards_before"] == len(before) and summary["images"] == 180
    assert files_below(out) == sorted(["_manifest.json", *shards(out)]) and len(shards(out)) == 60
    assert list(pd.read_parquet(out)["path"]) == list_images(photos)


@pytest.mark.parametrize("verb", ["reconstruct", "tokenize"])
def test_help_teaches(verb: str) -> None:
    text = invoke(verb, "--help")
    assert f"Example: gsq {verb} " in text and "cropped" in text
