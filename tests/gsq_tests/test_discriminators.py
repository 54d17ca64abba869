"""Discriminators against the authors' code at equal weights, their arithmetic, and the frozen networks of two of them.

fixtures/discriminators.npz: see fixtures/discriminators.md.
"""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extras import extra
from tiny_dino import dino_folder
from tiny_run import tiny
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gsq import UserError
from gsq.config import flops
from gsq.config.objective import DiscriminatorConfig
from gsq.models.discriminators import Head, PatchDiscriminator, ProjectedDiscriminator, build_discriminator
from gsq.pretrained.features import DINOv2
from gsq.training.losses import gradient_penalty

REFERENCE = Path(__file__).parent / "fixtures" / "discriminators.npz"
LITE = DiscriminatorConfig(kind="efficientnet_lite0", norm_groups=8)


def reference(*names: str) -> list[Tensor]:
    with np.load(REFERENCE) as file:
        return [torch.from_numpy(file[name]) for name in names]


def fill(module: nn.Module, seed: int) -> None:
    """The fixtures' weights, drawn in the order of the parameters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.1 if p.dim() == 1 else 1.5 / p[0].numel() ** 0.5))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def build(config: DiscriminatorConfig, size: int) -> nn.Module:
    module = build_discriminator(config, size)
    assert module is not None
    return module


pytestmark = pytest.mark.usefixtures("forget_verified")


@pytest.fixture
def dino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dino_folder(tmp_path, monkeypatch)


def noise(size: int, count: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_stylegan_as_the_authors_code() -> None:
    images, wanted = reference("images", "stylegan")
    model = build(DiscriminatorConfig(kind="stylegan", channels=8, channel_multipliers=(2, 4, 4)), 32)
    fill(model, 1)
    torch.testing.assert_close(model(images), wanted, rtol=0, atol=1e-6)


def test_patchgan_with_batch_norm_as_the_authors_code() -> None:
    images, wanted = reference("images", "patchgan")
    model = build(DiscriminatorConfig(channels=8, norm_groups=8, norm="batch"), 32)
    fill(model, 2)
    # Theirs has no bias in its last convolution.
    last = list(model.parameters())[-1]
    nn.init.zeros_(last)
    torch.testing.assert_close(model(images), wanted, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("dino")
def test_dino_as_the_authors_code() -> None:
    images, wanted = reference("small_images", "dino")
    model = build(DiscriminatorConfig(kind="dino", norm="batch"), 20)
    fill(model, 3)
    torch.testing.assert_close(model(images), wanted, rtol=0, atol=2e-5)


STYLEGAN: dict[str, Any] = {"discriminator__kind": "stylegan", "discriminator__channels": 16}


@pytest.mark.parametrize(
    "changes",
    [
        {"discriminator__norm": "batch"},
        STYLEGAN,
        {**STYLEGAN, "data__image_size": 72, "discriminator__channel_multipliers": (1, 2)},
        {"discriminator__kind": "efficientnet_lite0", "discriminator__norm_groups": 8},
        {"discriminator__kind": "efficientnet_lite0", "discriminator__norm": "batch", "data__image_size": 96},
    ],
)
def test_flops_counts_the_modules(changes: dict[str, Any]) -> None:
    config = tiny(**changes)
    size, count = config.data.image_size, flops.discriminator(config)
    model = build(config.discriminator, size)
    assert count.parameters == parameters(model)
    with FlopCounterMode(display=False) as counter:
        model(noise(size, 1))
    assert counter.get_total_flops() == 2 * (count.macs + count.frozen_macs) and count.activations > 0


def test_parameters_of_the_papers_sizes() -> None:
    stylegan = DiscriminatorConfig(kind="stylegan", channels=128)
    assert parameters(build(stylegan, 256)) == 22_163_201
    dino = flops.discriminator(tiny(discriminator__kind="dino"))
    heads = [Head(384, DiscriminatorConfig(kind="dino")) for _ in range(5)]
    assert sum(map(parameters, heads)) == dino.parameters == 7_386_245


def test_flops_of_dinov2() -> None:
    transformers = extra("transformers")
    with torch.device("meta"):
        network = transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**DINOv2.SIZES))
        heads = [Head(384, DiscriminatorConfig(kind="dino")) for _ in range(5)]
        with FlopCounterMode(display=False) as counter:
            tokens = network(torch.zeros(1, 3, 518, 518)).last_hidden_state
            for head in heads:
                head(tokens.transpose(1, 2))
    count = flops.discriminator(tiny(discriminator__kind="dino"))
    assert counter.get_total_flops() == 2 * (count.macs + count.frozen_macs)


@pytest.mark.parametrize(
    "config",
    [
        DiscriminatorConfig(),
        DiscriminatorConfig(kind="stylegan", channels=8, channel_multipliers=(2, 2)),
        LITE,
    ],
)
def test_an_images_logits_depend_on_it_alone(config: DiscriminatorConfig) -> None:
    model, images = build(config, 64), noise(64, 3)
    state = torch.get_rng_state()
    logits = model(images)
    assert len(logits) == 3
    torch.testing.assert_close(torch.cat([model(image[None]) for image in images]), logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), state)


def test_images_too_small_for_stylegan_are_refused() -> None:
    with pytest.raises(UserError, match=r"channel_multipliers: \[2, 4, 4, 4, 4\].*image_size 24.*at most 4"):
        build_discriminator(DiscriminatorConfig(kind="stylegan"), 24)


# The frozen networks of projected discriminators.


@pytest.fixture(params=["efficientnet_lite0", "dino"])
def projected(request: pytest.FixtureRequest) -> ProjectedDiscriminator:
    if request.param == "dino":
        request.getfixturevalue("dino")
    model = build_discriminator(DiscriminatorConfig(kind=request.param, norm_groups=4), 32)
    assert isinstance(model, ProjectedDiscriminator)
    return model


def test_frozen_weights_are_no_part_of_the_discriminator(projected: ProjectedDiscriminator) -> None:
    frozen = {id(p) for p in projected.backbone.parameters()}
    assert frozen and not frozen & {id(p) for p in projected.parameters()}
    assert all(name.startswith("heads.") for name in projected.state_dict())
    # The trainer does so around the generator's pass.
    projected.requires_grad_(False).requires_grad_(True).train()
    assert all(p.requires_grad for p in projected.parameters())
    assert not any(p.requires_grad for p in projected.backbone.parameters())
    assert not any(module.training for module in projected.backbone.modules())


def test_gradients_go_through_the_frozen_network(projected: ProjectedDiscriminator) -> None:
    images = noise(32).requires_grad_()
    projected.requires_grad_(False)
    projected(images).mean().backward()
    assert images.grad is not None and (images.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(p.grad is None for p in (*projected.parameters(), *projected.backbone.parameters()))


def test_a_state_dict_carries_the_heads_over(projected: ProjectedDiscriminator) -> None:
    images, other = noise(32), copy.deepcopy(projected)
    assert other.backbone is not projected.backbone
    fill(other, 5)
    assert not torch.allclose(other(images), projected(images))
    other.load_state_dict(projected.state_dict())
    assert torch.equal(other(images), projected(images))


def test_the_frozen_network_follows_the_heads(projected: ProjectedDiscriminator) -> None:
    logits = projected(noise(32))
    projected.double()
    assert {p.dtype for p in projected.backbone.parameters()} == {torch.float64}
    torch.testing.assert_close(projected(noise(32).double()).float(), logits, rtol=1e-3, atol=1e-4)
    projected.to("meta")
    assert all(p.is_meta for p in projected.backbone.parameters())


def test_gradient_penalty_of_projected_discriminators(projected: ProjectedDiscriminator) -> None:
    images = noise(32).requires_grad_()
    gradient_penalty(images, projected(images)).backward()
    first = projected.heads[0].first[0].weight
    assert first.grad.abs().max() > 0


@pytest.mark.parametrize("size", [8, 48, 64, 80])
def test_efficientnet_takes_any_size(size: int) -> None:
    assert build(LITE, size)(noise(size, 1)).isfinite().all()


def test_small_images_are_enlarged() -> None:
    """Below 64 pixels the last map would be smaller than 2 x 2; an enlarged image has the logits of its enlargement."""
    model, images = build(LITE, 32), noise(32)
    torch.testing.assert_close(model(images), model(images.repeat_interleave(2, 2).repeat_interleave(2, 3)))


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name))
    with pytest.raises(UserError, match=r"pip install 'gsq\[dino\]'"):
        build_discriminator(DiscriminatorConfig(kind="dino"), 32)


def test_kinds() -> None:
    assert isinstance(build_discriminator(DiscriminatorConfig(), 32), PatchDiscriminator)
    assert build_discriminator(DiscriminatorConfig(kind="none"), 32) is None
