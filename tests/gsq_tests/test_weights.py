"""Registry of weights, their part in a run's signature, and fetching them."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import safetensors.numpy
from tiny_run import tiny
from typer.testing import CliRunner

import gsq.pretrained.fetching
import gsq.pretrained.weights
from gsq import UserError
from gsq.cli.main import app
from gsq.config.objective import PERCEPTUAL_LOSSES, PROJECTED
from gsq.config.run import DISTANCES, FEATURE_DIMS
from gsq.pretrained.fetching import check, describe, fetch
from gsq.pretrained.required import require_weights, training_weights
from gsq.pretrained.weights import (
    DISTANCE_WEIGHTS,
    FEATURE_WEIGHTS,
    LPIPS_WEIGHTS,
    PERCEPTUAL_WEIGHTS,
    REGISTRY,
    file_sha256,
    find_weights,
    verified_weights,
    weights_sha256,
)
from gsq.runs.identity import identity

UNPINNED = "dinov2_vits14_reg"


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """What is remembered for the process of files that a test put in place."""
    yield
    verified_weights.cache_clear()
    file_sha256.cache_clear()


@pytest.fixture
def dino_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the place of DINOv2's weights, its reader taken as installed."""
    monkeypatch.setitem(REGISTRY, UNPINNED, dataclasses.replace(REGISTRY[UNPINNED], reader=""))
    monkeypatch.setenv("GSQ_WEIGHTS", str(tmp_path))
    path = tmp_path / REGISTRY[UNPINNED].file
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return path


def test_every_choice_names_registered_weights() -> None:
    assert set(PERCEPTUAL_WEIGHTS) == set(PERCEPTUAL_LOSSES)
    assert set(FEATURE_WEIGHTS) == set(FEATURE_DIMS)
    assert set(DISTANCE_WEIGHTS) == set(DISTANCES)
    groups = (
        *(*PERCEPTUAL_WEIGHTS.values(), *LPIPS_WEIGHTS.values(), FEATURE_WEIGHTS.values(), PROJECTED.values()),
        *DISTANCE_WEIGHTS.values(),
    )
    assert {name for names in groups for name in names} == set(REGISTRY)


def test_published_hashes_stand_without_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSQ_WEIGHTS", str(tmp_path))
    assert weights_sha256("resnet50") == "14fe96d1" and weights_sha256("vgg16") == "397923af"


def test_without_a_published_hash_the_files_counts(dino_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = hashlib.sha256(b"weights").hexdigest()
    assert weights_sha256(UNPINNED) == wanted and verified_weights(UNPINNED) == dino_file
    # Once in a process.
    monkeypatch.setattr(gsq.pretrained.weights, "sha256_of", lambda *_: pytest.fail("read again"))
    assert weights_sha256(UNPINNED) == wanted


def test_weights_trained_with() -> None:
    assert training_weights(tiny(loss__perceptual="none")) == ()
    lite = tiny(loss__perceptual="efficientnet_lite0_logits", discriminator__kind="efficientnet_lite0")
    assert training_weights(lite) == ("efficientnet_lite0",)
    both = tiny(loss__perceptual="lpips_vgg", discriminator__kind="dino")
    assert training_weights(both) == ("vgg16", "lpips_vgg", UNPINNED)


def test_other_weights_are_another_run(dino_file: Path) -> None:
    config = tiny(discriminator__kind="dino")
    first = identity(config)
    assert first == identity(config)
    dino_file.write_bytes(b"other weights")
    file_sha256.cache_clear()
    assert identity(config) != first


def test_missing_weights_are_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSQ_WEIGHTS", str(tmp_path))
    monkeypatch.setitem(REGISTRY, UNPINNED, dataclasses.replace(REGISTRY[UNPINNED], reader=""))
    for config, name in (
        (tiny(loss__perceptual="resnet50_logits"), "resnet50"),
        (tiny(loss__perceptual="vgg16_logits"), "vgg16"),
        (tiny(discriminator__kind="dino"), UNPINNED),
        (tiny(evaluation__features="inception_clean_fid", evaluation__allow_small=True), "inception"),
        (tiny(evaluation__lpips="alex"), "alexnet"),
    ):
        with pytest.raises(UserError) as caught:
            require_weights(config)
        for part in (f"'{name}'", str(tmp_path / REGISTRY[name].file), REGISTRY[name].get, "GSQ_WEIGHTS"):
            assert part in str(caught.value)
    require_weights(tiny(discriminator__kind="efficientnet_lite0", loss__perceptual="efficientnet_lite0_logits"))


def test_a_missing_reader_is_named(dino_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = dataclasses.replace(REGISTRY[UNPINNED], reader="no_such_package")
    monkeypatch.setitem(REGISTRY, UNPINNED, entry)
    with pytest.raises(UserError, match=r"no_such_package, .*: pip install 'gsq\[dino\]'"):
        find_weights(UNPINNED)


# Fetching, from a server on the loopback that misbehaves in every way.

GOOD = bytes(range(256)) * 1600
GOOD_SHA256 = hashlib.sha256(GOOD).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the first part of the path; what a proxy is asked for comes with a whole URL."""

    def log_message(self, *_: object) -> None: ...

    def answer(self, body: bytes, length: int | None = None, kind: str = "application/octet-stream") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if length != -1:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        server = cast("Server", self.server)
        server.seen.append((self.path, self.headers.get("Range") or ""))
        how = "proxied" if self.path.startswith("http://") else self.path.split("/")[1]
        if how in ("good", "proxied"):
            self.answer(GOOD)
        elif how == "truncated":
            self.answer(GOOD[:1000], len(GOOD))
        elif how == "unannounced":
            self.answer(GOOD[:1000], -1)
        elif how == "wrong":
            self.answer(b"another file" * 100)
        elif how == "page":
            self.answer(b"<!DOCTYPE html><html>please log in</html>", kind="text/html")
        elif how == "breaks":
            # Knows ranges, and breaks off after 300,000 bytes of each answer.
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(GOOD) - start))
            self.end_headers()
            self.wfile.write(GOOD[start : start + 300000])
        else:
            self.send_error(404 if how == "absent" else 503)


class Server(http.server.ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "GSQ_WEIGHTS_MIRROR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(gsq.pretrained.fetching.time, "sleep", lambda seconds: None)
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of weights, and `vgg16` pinned to the server's good file."""
    monkeypatch.setitem(REGISTRY, "vgg16", dataclasses.replace(REGISTRY["vgg16"], sha256=GOOD_SHA256))
    monkeypatch.setenv("GSQ_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


def left(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_fetch_from_a_mirror(server: Server, folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = fetch("vgg16", mirror=f"{server.url}/good", progress=lambda *sizes: seen.append(sizes))
    assert found.state == "fetched" and found.path == folder / "vgg16-397923af.pth" and found.sha256 == GOOD_SHA256
    assert found.path.read_bytes() == GOOD and left(folder) == ["vgg16-397923af.pth"]
    assert server.seen == [("/good/vgg16-397923af.pth", "")] and seen[-1] == (len(GOOD), len(GOOD))
    assert verified_weights("vgg16") == found.path and check("vgg16").state == "verified"
    # What is there and good is not fetched again, and damage is mended.
    assert fetch("vgg16", mirror=f"{server.url}/good").state == "verified" and len(server.seen) == 1
    found.path.write_bytes(GOOD[:-1])
    assert check("vgg16").state == "damaged"
    assert fetch("vgg16", mirror=f"{server.url}/good").state == "fetched" and found.path.read_bytes() == GOOD


def test_fetch_from_where_it_is_published_or_the_mirror_of_the_environment(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = dataclasses.replace(REGISTRY["vgg16"], url=f"{server.url}/good/published")
    monkeypatch.setitem(REGISTRY, "vgg16", entry)
    fetch("vgg16")
    monkeypatch.setenv("GSQ_WEIGHTS_MIRROR", f"{server.url}/good/mirror/")
    (folder / entry.file).unlink()
    fetch("vgg16")
    assert [path for path, _ in server.seen] == ["/good/published", f"/good/mirror/{entry.file}"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", r"http.* broke off .* \d+ bytes received"),
        ("unannounced", r"has sha256 [0-9a-f]{64} \(1000 bytes\), expected [0-9a-f]{64}: it was cut short"),
        ("wrong", r"has sha256 [0-9a-f]{64} \(1200 bytes\), expected"),
        ("page", "is a web page"),
        ("absent", "answers 404 .*Not Found"),
        ("down", "answers 503"),
    ],
)
def test_a_download_that_fails_is_one_sentence_and_leaves_what_was_there(
    server: Server, folder: Path, how: str, message: str
) -> None:
    for before in ([], ["vgg16-397923af.pth"]):
        with pytest.raises(UserError, match=message) as caught:
            fetch("vgg16", mirror=f"{server.url}/{how}")
        assert "\n" not in str(caught.value)
        for part in ("weights 'vgg16'", f"copy it to {folder / 'vgg16-397923af.pth'}", "fetch vgg16 --from FILE"):
            assert part in str(caught.value)
        assert left(folder) == before
        (folder / "vgg16-397923af.pth").write_bytes(b"old")
    assert (folder / "vgg16-397923af.pth").read_bytes() == b"old"


def test_a_broken_connection_is_taken_up_where_it_broke(server: Server, folder: Path) -> None:
    found = fetch("vgg16", mirror=f"{server.url}/breaks")
    assert found.path is not None and found.path.read_bytes() == GOOD
    assert [asked for _, asked in server.seen] == ["", "bytes=262144-"]


def test_unreachable_hosts_and_bad_mirrors(server: Server, folder: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match=r"cannot reach http://127.*; download https://download\.pytorch\.org"):
            fetch("vgg16", mirror=f"http://127.0.0.1:{unused.getsockname()[1]}")
    with pytest.raises(UserError, match=r"cannot reach http://no-such-host\.invalid/"):
        fetch("vgg16", mirror="http://no-such-host.invalid")
    with pytest.raises(UserError, match=r"'ftp://x' .*https:// .* --from FOLDER"):
        fetch("vgg16", mirror="ftp://x")
    assert left(folder) == []


def test_proxies_of_the_environment_are_used(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url)
    fetch("vgg16", mirror="http://weights.invalid/a")
    assert [path for path, _ in server.seen] == ["http://weights.invalid/a/vgg16-397923af.pth"]
    monkeypatch.setenv("NO_PROXY", "weights.invalid")
    (folder / "vgg16-397923af.pth").unlink()
    with pytest.raises(UserError, match="cannot reach"):
        fetch("vgg16", mirror="http://weights.invalid/a")


def test_fetch_from_a_file_or_a_folder(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "usb" / "anything.bin"
    copy.parent.mkdir()
    copy.write_bytes(GOOD)
    with pytest.raises(UserError, match=r"no file .*usb/vgg16-397923af\.pth"):
        fetch("vgg16", source=copy.parent)
    assert fetch("vgg16", source=copy).path == folder / "vgg16-397923af.pth"
    (folder / "vgg16-397923af.pth").unlink()
    copy.rename(copy.with_name("vgg16-397923af.pth"))
    assert fetch("vgg16", source=copy.parent).state == "fetched"
    copy.write_bytes(GOOD[:5000])
    with pytest.raises(UserError, match=r"anything\.bin has sha256 .* choose another file"):
        fetch("vgg16", source=copy)
    assert (folder / "vgg16-397923af.pth").read_bytes() == GOOD
    with pytest.raises(UserError, match=r"--from: no file .*nowhere"):
        fetch("vgg16", source=tmp_path / "nowhere")


def test_a_folder_that_cannot_be_written(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, small_disk: Callable[[int], Path]
) -> None:
    folder.write_bytes(b"a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot write .*weights.* let \$GSQ_WEIGHTS name a folder"):
        fetch("vgg16", mirror=f"{server.url}/good")
    disk = small_disk(64)
    monkeypatch.setenv("GSQ_WEIGHTS", str(disk))
    with pytest.raises(UserError, match=r"No space left on device\); make room"):
        fetch("vgg16", mirror=f"{server.url}/good")
    assert left(disk) == []
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(UserError, match="Read-only file system"):
        fetch("vgg16", mirror=f"{server.url}/good")


def test_a_killed_fetch_leaves_nothing_under_the_final_name(server: Server, folder: Path) -> None:
    folder.mkdir()
    old, young = folder / ".vgg16-397923af.pth.1.partial", folder / ".vgg16-397923af.pth.2.partial"
    for partial in (old, young):
        partial.write_bytes(GOOD[:10])
    os.utime(old, (0, 0))
    fetch("vgg16", mirror=f"{server.url}/good")
    # Another process may be at work on the young one.
    assert left(folder) == [young.name, "vgg16-397923af.pth"]


def test_without_a_published_hash_that_of_first_use_counts(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for how, message in (("page", "is a web page"), ("wrong", "whole safetensors file")):
        with pytest.raises(UserError, match=message):
            fetch(UNPINNED, mirror=f"{server.url}/{how}")
    assert left(folder) == []
    whole = folder.with_name("whole.safetensors")
    safetensors.numpy.save_file({"weight": np.ones(3)}, whole)
    found = fetch(UNPINNED, source=whole)
    assert found.path is not None
    record = found.path.with_name("model.safetensors.sha256")
    assert record.read_text() == f"{hashlib.sha256(whole.read_bytes()).hexdigest()}  model.safetensors\n"
    assert check(UNPINNED).state == "verified"
    record.unlink()
    assert check(UNPINNED).state == "recorded" and check(UNPINNED).state == "verified"
    found.path.write_bytes(b"changed")
    assert check(UNPINNED).state == "damaged"


def test_the_table_is_complete() -> None:
    for name, entry in REGISTRY.items():
        shown = describe(name)
        assert shown["licence"] and shown["purpose"] and shown["megabytes"] > 0 and shown["looked_for"]
        assert entry.url.startswith("https://") or entry.package
        assert not entry.sha256 or len(entry.sha256) in (8, 64)
        assert entry.sha256.startswith(entry.signed)


def test_missing_weights_name_the_command_that_gets_them(folder: Path) -> None:
    with pytest.raises(UserError, match="gsq weights fetch vgg16"):
        require_weights(tiny(loss__perceptual="lpips_vgg"))


def gsq_weights(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["weights", *map(str, words)])
    assert done.exit_code == code, done.output
    return done.stdout


def test_the_weights_verbs(server: Server, folder: Path) -> None:
    rows = {row["name"]: row for row in json.loads(gsq_weights("list", "--json"))}
    assert set(rows) == set(REGISTRY) and rows["vgg16"]["found"] is None and rows["efficientnet_lite0"]["found"]
    assert "vgg16: missing, 553.4 MB" in gsq_weights("list") and "unknown; that of the file" in gsq_weights("list")
    assert "vgg16: missing" in gsq_weights("verify") and gsq_weights("verify", "vgg16", code=1) == "vgg16: missing\n"
    (row,) = json.loads(gsq_weights("fetch", "vgg16", "--mirror", f"{server.url}/good", "--json"))
    assert row == {
        "name": "vgg16",
        "state": "fetched",
        "path": str(folder / REGISTRY["vgg16"].file),
        "sha256": GOOD_SHA256,
    }
    (folder / REGISTRY["vgg16"].file).write_bytes(b"damaged")
    assert "vgg16: damaged" in gsq_weights("verify", code=1) and "efficientnet_lite0: verified" in gsq_weights(
        "verify", code=1
    )
    for words, message in (
        (["fetch"], "--all"),
        (["fetch", "vgg16", "--all"], "not both"),
        (["fetch", "vgg"], r"'vgg' is not known \(did you mean 'vgg16'\?\)"),
        (["fetch", "--all", "--from", server.url], "--from: .*is one file"),
        (["verify", "nothing"], "'nothing' is not known"),
    ):
        done = CliRunner().invoke(app, ["weights", *words])
        assert isinstance(done.exception, UserError) and re.search(message, str(done.exception))
