"""Pretrained networks: EfficientNet-Lite0 against the published implementation; VGG16, LPIPS, ResNet50 and DINOv2,
whose weights are not here, with weights of our own.

efficientnet_lite0_reference.npz holds logits of efficientnet_lite_pytorch 0.1.0 (PyPI) with the published weights,
for two images of 64 x 64: a photo and noise. fixtures/resnet50.npz and discriminators.npz: see
fixtures/discriminators.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from seeded_weights import seeded_images, seeded_weights
from tiny_dino import dino_folder, dino_state
from tiny_run import tiny
from torch import Tensor

import gsq.pretrained.weights
from gsq import UserError
from gsq.data.batches import to_tensor
from gsq.data.sources import manifest
from gsq.pretrained.efficientnet import EfficientNetFeatures, EfficientNetLite0, ImageNetInput
from gsq.pretrained.extractor import feature_extractor
from gsq.pretrained.features import VGG16, AlexNetFeatures, DINOv2, ResNet50, VGG16Features
from gsq.pretrained.required import require_weights
from gsq.pretrained.weights import REGISTRY, file_sha256, find_weights, verified_weights
from gsq.training.losses import LPIPS, build_perceptual_loss

REFERENCE = Path(__file__).with_name("efficientnet_lite0_reference.npz")
FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return EfficientNetLite0.pretrained()


pytestmark = pytest.mark.usefixtures("forget_verified")


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


def test_lpips_of_images_in_0_1(our_vgg: Path) -> None:
    """Images as the GSQ authors' code feeds them: the same network, on half the contrast."""
    signed, unit = (build_perceptual_loss("lpips_vgg", r) for r in ("signed", "unit"))
    assert signed is not None and unit is not None
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(2))
    assert unit(a, b).item() == pytest.approx(signed((a + 1) / 2, (b + 1) / 2).item())
    assert unit(a, b).item() != pytest.approx(signed(a, b).item(), rel=0.01)


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_lpips_of_the_published_package(net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lpips 0.1.4, its own linear layers on seeded backbones (fixtures/make_inception_reference.py)."""
    with np.load(FIXTURES / "lpips.npz") as arrays:
        reference = dict(arrays)
    state = seeded_weights(json.loads(str(reference[f"{net}_shapes"])))
    own_weights({"vgg": "vgg16", "alex": "alexnet"}[net], state, tmp_path, monkeypatch)
    a, b = (seeded_images(*row).float() / 127.5 - 1 for row in reference["images"].tolist())
    metric = LPIPS(net)
    found = metric.distances(a, b)
    torch.testing.assert_close(found, torch.from_numpy(reference[net]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(metric(a, b), found.mean())
    assert found.min() > 0.01 and metric.distances(a, a).tolist() == [0, 0]


def test_another_alexnet_is_refused() -> None:
    with pytest.raises(UserError, match=r"AlexNet weights: features\.0\.weight should be \(64, 3, 11, 11\)"):
        AlexNetFeatures(vgg_state())


# Features by import path.


def test_features_by_import_path() -> None:
    found = feature_extractor("counting_features:means", 32)
    assert (found.name, found.dim, found.resize) == ("counting_features:means", 6, "by the module")
    images = noise(32, 1)
    features, logits, spatial = found(images)
    assert logits is None and spatial is None and features[0, 1] == images[0, 1].mean() and not found.network.training
    # Its weights stand in the protocol: equal ones alike, others not; or what it says of itself.
    assert len(found.sha256) == 64 and feature_extractor("counting_features:means", 16).sha256 == found.sha256
    assert feature_extractor("counting_features:twice", 32).sha256 != found.sha256
    assert feature_extractor("counting_features:named", 32).sha256 == "ab" * 32


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such.module:build", r"'no_such\.module:build' cannot be imported .*PYTHONPATH"),
        ("counting_features:nothing", "no class or function 'nothing'"),
        ("counting_features:number", "returned a int"),
        ("counting_features:maps", r"makes \(2, 3, 32, 32\) of two images"),
    ],
)
def test_what_makes_no_features_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"evaluation.features: .*{message}"):
        feature_extractor(name, 32)


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


# Classifiers, whose outputs the logit losses compare.


def classifier_state() -> dict[str, Tensor]:
    """A VGG16 whose classifier is narrow."""
    generator, state = torch.Generator().manual_seed(3), vgg_state()
    for index, shape in ((0, (8, 25088)), (3, (8, 8)), (6, (10, 8))):
        state[f"classifier.{index}.weight"] = torch.randn(shape, generator=generator) * (2 / shape[1]) ** 0.5
        state[f"classifier.{index}.bias"] = torch.randn(shape[0], generator=generator)
    return state


def noise(size: int, seed: int) -> Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def own_weights(name: str, state: dict[str, Tensor], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Registers a file of these weights as the published one."""
    path = folder / REGISTRY[name].file
    torch.save(state, path)
    monkeypatch.setenv("GSQ_WEIGHTS", str(folder))
    monkeypatch.setitem(
        REGISTRY,
        name,
        dataclasses.replace(REGISTRY[name], sha256=hashlib.sha256(path.read_bytes()).hexdigest()[:8]),
    )
    return path


def test_images_are_resized_by_area_and_normalised() -> None:
    images = noise(32, 0)
    found = ImageNetInput(16)(images)
    mean, deviation = (torch.tensor(x)[:, None, None] for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    wanted = F.avg_pool2d((images + 1) / 2, 2)
    torch.testing.assert_close(found * deviation + mean, wanted)


def test_vgg16_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = classifier_state()
    own_weights("vgg16", state, tmp_path, monkeypatch)
    loss = build_perceptual_loss("vgg16_logits")
    assert loss is not None
    images, target = noise(224, 1).requires_grad_(), noise(224, 2)
    found = loss(images, target)
    features, prepare, logits = VGG16Features(state), ImageNetInput(224), []
    with torch.no_grad():
        for x in (images, target):
            x = F.max_pool2d(features(prepare(x))[-1], 2).flatten(1)
            for index in (0, 3, 6):
                x = F.linear(x, state[f"classifier.{index}.weight"], state[f"classifier.{index}.bias"])
                x = x if index == 6 else F.relu(x)
            logits.append(x)
    torch.testing.assert_close(found.detach(), (logits[0] - logits[1]).square().mean(), rtol=1e-4, atol=1e-6)
    found.backward()
    assert images.grad is not None and images.grad.abs().max() > 0


def test_vgg16_without_its_classifier_is_refused() -> None:
    with pytest.raises(UserError, match=r"classifier\.0 is missing"):
        VGG16(vgg_state())


def resnet_state() -> dict[str, Tensor]:
    generator, state = torch.Generator().manual_seed(0), {}
    for name, value in ResNet50().state_dict().items():
        if not value.dtype.is_floating_point:
            state[name] = value
        elif value.dim() == 1:
            low = 0.5 if name.endswith(("weight", "var")) else 0
            state[name] = torch.rand(value.shape, generator=generator) * 0.5 + low
        else:
            state[name] = torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
    return state


def test_resnet50_as_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = resnet_state()
    path = own_weights("resnet50", state, tmp_path, monkeypatch)
    with np.load(FIXTURES / "resnet50.npz") as reference:
        images, wanted = torch.from_numpy(reference["images"]), torch.from_numpy(reference["logits"])
    network = ResNet50.pretrained()
    torch.testing.assert_close(network(images)[:, ::50], wanted, rtol=1e-4, atol=1e-3)
    loss = build_perceptual_loss("resnet50_logits")
    assert loss is not None
    a, b, prepare = noise(64, 1).requires_grad_(), noise(64, 2), ImageNetInput(224)
    found = loss(a, b)
    torch.testing.assert_close(found, (network(prepare(a)) - network(prepare(b))).square().mean(), rtol=1e-4, atol=0)
    (gradient,) = torch.autograd.grad(found, a)
    assert gradient.abs().max() > 0 and not any(m.training for m in loss.train().modules())

    del state["layer2.0.conv2.weight"]
    path.unlink()
    own_weights("resnet50", state, tmp_path, monkeypatch)
    verified_weights.cache_clear()
    file_sha256.cache_clear()
    with pytest.raises(UserError, match=r"resnet50 weights: .*another network's .*layer2\.0\.conv2\.weight"):
        ResNet50.pretrained()


def test_dinov2_class_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dino_folder(tmp_path, monkeypatch)
    with np.load(FIXTURES / "discriminators.npz") as reference:
        images, wanted = (torch.from_numpy(reference[name]) for name in ("small_images", "dino_class_token"))
    torch.testing.assert_close(DINOv2()(images), wanted, rtol=0, atol=1e-5)
    loss = build_perceptual_loss("dinov2_logits")
    assert loss is not None
    torch.testing.assert_close(loss(images[:1], images[1:]), (wanted[0] - wanted[1]).square().mean(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("damage", ["another shape", "missing", "no weights"])
def test_another_networks_dinov2_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    state = dino_state()
    if damage == "missing":
        del state["encoder.layer.3.mlp.fc1.weight"]
    else:
        state["layernorm.weight"] = torch.zeros(13)
    path = dino_folder(tmp_path, monkeypatch, state)
    if damage == "no weights":
        path.write_bytes(b"half a download")
    with pytest.raises(UserError, match=r"dinov2_vits14_reg weights: .*ViT-S/14 with registers.*get the file"):
        DINOv2()


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
    monkeypatch.setattr(gsq.pretrained.weights, "find_weights", lambda name: pytest.fail("looked for again"))
    verified_weights("efficientnet_lite0")
