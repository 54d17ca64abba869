"""Registry of weights, and their part in a run's signature."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_run import tiny

import gsq.weights
from gsq import UserError
from gsq.config import PERCEPTUAL_LOSSES, PROJECTED
from gsq.identity import identity, require_weights, training_weights
from gsq.weights import PERCEPTUAL_WEIGHTS, REGISTRY, file_sha256, find_weights, verified_weights, weights_sha256

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
    assert {name for names in PERCEPTUAL_WEIGHTS.values() for name in names} | set(PROJECTED.values()) == set(REGISTRY)


def test_published_hashes_stand_without_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSQ_WEIGHTS", str(tmp_path))
    assert weights_sha256("resnet50") == "14fe96d1" and weights_sha256("vgg16") == "397923af"


def test_without_a_published_hash_the_files_counts(dino_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = hashlib.sha256(b"weights").hexdigest()
    assert weights_sha256(UNPINNED) == wanted and verified_weights(UNPINNED) == dino_file
    # Once in a process.
    monkeypatch.setattr(gsq.weights.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
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
    ):
        with pytest.raises(UserError) as caught:
            require_weights(config)
        for part in (f"'{name}'", str(tmp_path / REGISTRY[name].file), REGISTRY[name].get, "GSQ_WEIGHTS"):
            assert part in str(caught.value)
    require_weights(tiny(discriminator__kind="efficientnet_lite0", loss__perceptual="efficientnet_lite0_logits"))


def test_a_missing_reader_is_named(dino_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = dataclasses.replace(REGISTRY[UNPINNED], reader="no_such_package")
    monkeypatch.setitem(REGISTRY, UNPINNED, entry)
    with pytest.raises(UserError, match=r"no_such_package, which is not installed: pip install 'gsq\[dino\]'"):
        find_weights(UNPINNED)
