"""Adversarial losses by hand, and the perceptual loss."""

from __future__ import annotations

import math

import pytest
import torch

from gsq.losses import EfficientNetPerceptualLoss, build_perceptual_loss, discriminator_loss, generator_loss

REAL = torch.tensor([[2.0, -0.5], [0.3, 4.0]]).view(2, 1, 1, 2)
FAKE = torch.tensor([[-3.0, 0.2], [1.5, -0.7]]).view(2, 1, 1, 2)
KINDS = ("vanilla", "hinge", "non_saturating")


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_generator_losses() -> None:
    fake = FAKE.flatten().tolist()
    assert generator_loss("vanilla", FAKE).item() == pytest.approx(mean([softplus(-x) for x in fake]))
    assert generator_loss("hinge", FAKE).item() == pytest.approx(-mean(fake))
    # Logistic on the mean logit of each image, -1.4 and 0.4.
    wanted = (softplus(1.4) + softplus(-0.4)) / 2
    assert generator_loss("non_saturating", FAKE).item() == pytest.approx(wanted)


def test_discriminator_losses() -> None:
    real, fake = REAL.flatten().tolist(), FAKE.flatten().tolist()
    vanilla = (mean([softplus(-x) for x in real]) + mean([softplus(x) for x in fake])) / 2
    assert discriminator_loss("vanilla", REAL, FAKE).item() == pytest.approx(vanilla)
    hinge = (mean([max(0, 1 - x) for x in real]) + mean([max(0, 1 + x) for x in fake])) / 2
    assert discriminator_loss("hinge", REAL, FAKE).item() == pytest.approx(hinge)
    # Mean logits 0.75 and 2.15 of the real images, -1.4 and 0.4 of the others.
    wanted = (softplus(-0.75) + softplus(-2.15)) / 4 + (softplus(-1.4) + softplus(0.4)) / 4
    assert discriminator_loss("non_saturating", REAL, FAKE).item() == pytest.approx(wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pull_the_right_way(kind: str) -> None:
    """Descent: the generator raises the logits of its images, the discriminator lowers them and raises real ones'."""
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    generator_loss(kind, fake).backward()
    assert fake.grad is not None and (fake.grad < 0).all()
    fake.grad = None
    discriminator_loss(kind, real, fake).backward()
    assert real.grad is not None and (real.grad <= 0).all() and (real.grad < 0).any()
    assert fake.grad is not None and (fake.grad >= 0).all() and (fake.grad > 0).any()


def test_hinge_ignores_what_is_right_by_a_margin() -> None:
    assert discriminator_loss("hinge", torch.full((1, 1, 2, 2), 1.5), torch.full((1, 1, 2, 2), -1.5)).item() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_stay_finite(kind: str) -> None:
    high, low = torch.full((1, 1, 2, 2), 1e4), torch.full((1, 1, 2, 2), -1e4)
    assert generator_loss(kind, low).isfinite() and discriminator_loss(kind, low, high).isfinite()


def test_perceptual_loss() -> None:
    loss = EfficientNetPerceptualLoss()
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(2))
    assert loss(x, x).item() == 0
    assert 0 < loss(x + 0.05 * (y - x), x).item() < loss(y, x).item()
    torch.testing.assert_close(loss(x, y), loss(y, x))
    image, target = x.clone().requires_grad_(), y.clone().requires_grad_()
    loss(image, target).backward()
    assert image.grad is not None and image.grad.abs().max() > 0 and target.grad is None
    assert not any(p.requires_grad for p in loss.parameters())


def test_a_step_along_the_gradient_comes_closer() -> None:
    loss = build_perceptual_loss("efficientnet_lite0")
    assert loss is not None
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.rand(1, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(2))
    x.requires_grad_()
    before = loss(x, y)
    before.backward()
    assert x.grad is not None
    assert loss(x.detach() - 0.1 * x.grad / x.grad.norm(), y) < before


def test_no_perceptual_loss() -> None:
    assert build_perceptual_loss("none") is None
