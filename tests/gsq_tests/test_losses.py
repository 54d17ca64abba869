"""Adversarial losses by hand, and the perceptual loss."""

from __future__ import annotations

import math

import pytest
import torch

from gsq.pretrained.efficientnet import EfficientNetLite0
from gsq.training.losses import (
    EfficientNetPerceptualLoss,
    LeCAM,
    adaptive_weight,
    build_perceptual_loss,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)

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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 2), (2, 1, 2, 1), (2, 1, 1, 2)])
def test_logits_of_any_shape(kind: str, shape: tuple[int, ...]) -> None:
    """Projected discriminators give (B, n), PatchGAN maps."""
    assert generator_loss(kind, FAKE.reshape(shape)) == generator_loss(kind, FAKE)
    assert discriminator_loss(kind, REAL.reshape(shape), FAKE.reshape(shape)) == discriminator_loss(kind, REAL, FAKE)


# Regularisers of the discriminator.


def test_lecam() -> None:
    lecam = LeCAM()
    # Averages start at 0: real logits above and generated ones below it count.
    real, fake = REAL.flatten().tolist(), FAKE.flatten().tolist()
    start = mean([max(0, x) ** 2 for x in real]) + mean([max(0, -x) ** 2 for x in fake])
    assert lecam(REAL, FAKE).item() == pytest.approx(start)
    for _ in range(3):
        lecam.update(REAL.mean(), FAKE.mean())
    averages = {name: (1 - 0.999**3) * mean(values) for name, values in (("real", real), ("fake", fake))}
    found = {name: float(value) for name, value in lecam.state_dict().items()}
    assert found == pytest.approx(averages, rel=1e-6)
    wanted = mean([max(0, x - averages["fake"]) ** 2 for x in real])
    wanted += mean([max(0, averages["real"] - x) ** 2 for x in fake])
    assert lecam(REAL, FAKE).item() == pytest.approx(wanted)


def test_lecam_goes_on_from_its_state_bit_for_bit() -> None:
    whole, first, second = LeCAM(), LeCAM(), LeCAM()
    for lecam in (whole, first):
        lecam.update(REAL.mean(), FAKE.mean())
    second.load_state_dict(first.state_dict())
    for lecam in (whole, second):
        lecam.update(REAL.max(), FAKE.min())
    assert torch.equal(second.real, whole.real) and torch.equal(second.fake, whole.fake)
    assert not any(True for _ in whole.parameters())


def test_lecam_holds_logits_apart_no_further() -> None:
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    LeCAM()(real, fake).backward()
    assert real.grad is not None and (real.grad >= 0).all() and fake.grad is not None and (fake.grad <= 0).all()


def test_gradient_penalty() -> None:
    """Logits x.w and 2 x.w of each image: the gradient of their sum is 3 w, whatever the batch."""
    w = torch.arange(12.0, requires_grad=True)
    for count in (1, 5):
        images = torch.randn(count, 3, 2, 2, requires_grad=True)
        product = images.flatten(1) @ w
        penalty = gradient_penalty(images, torch.stack([product, 2 * product], 1))
        assert penalty.item() == pytest.approx(9 * float(w.detach().square().sum()))
        (gradient,) = torch.autograd.grad(penalty, w)
        torch.testing.assert_close(gradient, 18 * w.detach())


def test_gradient_penalty_of_a_flat_discriminator_has_a_gradient() -> None:
    """A norm's derivative at 0 would be NaN."""
    images, scale = torch.randn(2, 3, 2, 2, requires_grad=True), torch.zeros((), requires_grad=True)
    gradient_penalty(images, (scale * images).sum((1, 2, 3))[:, None]).backward()
    assert scale.grad is not None and scale.grad.item() == 0


def test_adaptive_weight() -> None:
    a, b = torch.tensor([3.0, 4.0], requires_grad=True), torch.tensor([[0.0, 2.0]])
    weight = adaptive_weight(a, b)
    assert weight.item() == pytest.approx(5 / 2.0001) and not weight.requires_grad
    assert adaptive_weight(a, 0 * b).item() == 1e4
    assert adaptive_weight(0 * a, b).item() == 0
    assert adaptive_weight(a, b * math.nan).isnan()


# Perceptual losses.


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


def test_logit_loss() -> None:
    loss, network = build_perceptual_loss("efficientnet_lite0_logits"), EfficientNetLite0.pretrained()
    assert loss is not None
    x, y = (torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in range(2))
    image, target = x.clone().requires_grad_(), y.clone().requires_grad_()
    found = loss(image, target)
    # The networks see 224 pixels: here each pixel four times.
    large = [z.repeat_interleave(2, 2).repeat_interleave(2, 3) for z in (x, y)]
    torch.testing.assert_close(found.detach(), (network(large[0]) - network(large[1])).square().mean())
    found.backward()
    assert image.grad is not None and image.grad.abs().max() > 0 and target.grad is None
    assert loss(x, x).item() == 0
    loss.train()
    assert not any(p.requires_grad for p in loss.parameters()) and not any(m.training for m in loss.modules())
