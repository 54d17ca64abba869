"""Pretrained networks: EfficientNet-Lite0 against the published implementation, VGG16 and LPIPS with weights of our
own.

efficientnet_lite0_reference.npz holds logits of efficientnet_lite_pytorch 0.1.0 (PyPI) with the published weights,
for two images of 64 x 64: a photo and noise.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import tiny
from torch import Tensor

import gsq.weights
from gsq import UserError
from gsq.data import to_tensor
from gsq.datasets import manifest
from gsq.features import EfficientNetFeatures, EfficientNetLite0, VGG16Features
from gsq.identity import require_weights
from gsq.losses import LPIPS, build_perceptual_loss
from gsq.weights import REGISTRY, find_weights, verified_weights

REFERENCE = Path(__file__).with_name("efficientnet_lite0_reference.npz")


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return EfficientNetLite0.pretrained()


@pytest.fixture(autouse=True)
def _forget_verified() -> Iterator[None]:
    """Verified files are remembered for the process; what a test patched must not be."""
    verified_weights.cache_clear()
    yield
    verified_weights.cache_clear()


def test_logits_of_the_published_implementation(network: EfficientNetLite0) -> None:
    with np.load(REFERENCE) as reference:
        images, wanted = torch.from_numpy(reference["images"]), torch.from_numpy(reference["logits"])
    with torch.no_grad():
        found = network(images.permute(0, 3, 1, 2).float() / 127.5 - 1)
    assert wanted.shape == (2, 1000) and wanted.abs().max() > 10
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_coffee_is_espresso(network: EfficientNetLite0) -> None:
    coffee = next(f for f in manifest(tiny().data).validation if f.name == "coffee.png")
    image = Image.open(coffee.path).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    image = image.resize((224, 224), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    logits = network(to_tensor([image]))
    assert logits.argmax().item() == 967
    assert logits.softmax(1).max() > 0.8


def test_features_stay_in_evaluation_mode_and_frozen() -> None:
    features = EfficientNetFeatures()
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    before, state = features(x), {k: v.clone() for k, v in features.state_dict().items()}
    features.train()
    features.network.train()
    assert not any(module.training for module in features.network.modules())
    assert torch.equal(features(x), before) and before.shape == (2, 320)
    assert all(torch.equal(v, state[k]) for k, v in features.state_dict().items())
    assert not any(p.requires_grad for p in features.parameters())


def test_stages_end_where_they_are_asked_to(network: EfficientNetLite0) -> None:
    x = torch.zeros(1, 3, 64, 64)
    maps = network.stages(x)
    assert [m.shape[1] for m in maps] == [16, 24, 40, 80, 112, 192, 320]
    assert [m.shape[2] for m in maps] == [32, 16, 8, 4, 4, 2, 2]
    assert all(torch.equal(a, b) for a, b in zip(network.stages(x, 3), maps, strict=False))
    assert len(network.stages(x, 3)) == 3


def test_odd_sizes_are_padded_as_tensorflow_does(network: EfficientNetLite0) -> None:
    assert network.stages(torch.zeros(1, 3, 33, 47), 2)[1].shape == (1, 24, 9, 12)


# VGG16 and LPIPS.


def vgg_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state, index, inputs = {}, 0, 3
    for level in VGG16Features.LAYERS:
        for outputs in level:
            scale = (2 / (9 * inputs)) ** 0.5
            state[f"features.{index}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=generator) * scale
            state[f"features.{index}.bias"] = torch.randn(outputs, generator=generator) * 0.01
            index, inputs = index + 2, outputs
        index += 1
    return state


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / REGISTRY["vgg16"].file
    torch.save(vgg_state(), path)
    return path


@pytest.fixture
def our_vgg(vgg_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GSQ_WEIGHTS", str(vgg_file.parent))
    sha256 = hashlib.sha256(vgg_file.read_bytes()).hexdigest()
    monkeypatch.setitem(REGISTRY, "vgg16", dataclasses.replace(REGISTRY["vgg16"], sha256=sha256[:8]))
    return vgg_file


def test_lpips(our_vgg: Path) -> None:
    loss = build_perceptual_loss("lpips_vgg")
    assert isinstance(loss, LPIPS)
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(2))
    assert loss(x, x).item() == 0
    far, near = loss(x, y).item(), loss(x, x + 0.1 * (y - x)).item()
    assert 0 < near < far
    torch.testing.assert_close(loss(x, y), loss(y, x))
    # The mean over the batch.
    torch.testing.assert_close(loss(x, y), (loss(x[:1], y[:1]) + loss(x[1:], y[1:])) / 2)
    image, target = x.clone().requires_grad_(), y.clone().requires_grad_()
    loss(image, target).backward()
    assert image.grad is not None and image.grad.abs().max() > 0 and target.grad is None
    assert not any(p.requires_grad for p in loss.parameters())


def test_vgg_maps_are_the_five_last_relus(our_vgg: Path) -> None:
    state = torch.load(our_vgg, weights_only=True)
    maps = VGG16Features(state)(torch.randn(1, 3, 32, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)]
    assert all((m >= 0).all() for m in maps)


@pytest.mark.parametrize("damage", ["another shape", "missing"])
def test_another_networks_weights_are_refused(our_vgg: Path, damage: str) -> None:
    state = torch.load(our_vgg, weights_only=True)
    if damage == "missing":
        del state["features.10.weight"]
    else:
        state["features.10.weight"] = torch.zeros(256, 128, 1, 1)
    with pytest.raises(UserError, match=r"VGG16 weights: features\.10\.weight should be \(256, 128, 3, 3\)"):
        VGG16Features(state)


def test_another_lpips_is_refused(our_vgg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = REGISTRY["lpips_vgg"]
    # A checkpoint of another network, by the right name.
    other = our_vgg.parent / entry.file
    torch.save({"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, other)
    sha256 = hashlib.sha256(other.read_bytes()).hexdigest()
    monkeypatch.setitem(REGISTRY, "lpips_vgg", dataclasses.replace(entry, sha256=sha256))
    try:
        with pytest.raises(UserError, match=r"lpips_vgg weights: lin1\.model\.1\.weight"):
            LPIPS()
    finally:
        other.unlink()


def test_missing_weights_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSQ_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError) as caught:
        LPIPS()
    message = str(caught.value)
    for part in ("'vgg16'", str(tmp_path / "vgg16-397923af.pth"), "torchvision", "GSQ_WEIGHTS"):
        assert part in message
    with pytest.raises(UserError, match="vgg16"):
        require_weights(tiny(loss__perceptual="lpips_vgg"))
    require_weights(tiny())


def test_other_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSQ_WEIGHTS", str(tmp_path))
    path = tmp_path / REGISTRY["efficientnet_lite0"].file
    path.write_bytes(b"half a download")
    assert find_weights("efficientnet_lite0") == path
    with pytest.raises(UserError, match=r"expected 579344.*get it again"):
        EfficientNetLite0.pretrained()


def test_content_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    verified_weights("efficientnet_lite0")
    monkeypatch.setattr(gsq.weights, "find_weights", lambda name: pytest.fail("looked for again"))
    verified_weights("efficientnet_lite0")
