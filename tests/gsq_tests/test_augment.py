"""Differentiable augmentation: against the authors' code, and what a resumable, divided batch needs.

fixtures/diffaugment.npz: see fixtures/discriminators.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gsq.config.objective import AUGMENTATIONS
from gsq.training.augment import augment, draw

REFERENCE = Path(__file__).parent / "fixtures" / "diffaugment.npz"
ALL = ("color", "translation", "cutout")


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 24, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_as_the_authors_code() -> None:
    with np.load(REFERENCE) as reference:
        images, numbers, wanted = (torch.from_numpy(reference[k]) for k in ("images", "numbers", "augmented"))
    torch.testing.assert_close(augment(images, ALL, numbers), wanted, rtol=0, atol=1e-6)


def test_numbers_depend_on_seed_step_stream_and_row_alone() -> None:
    numbers = draw(ALL, 3, 10, 0, 8)
    assert numbers.shape == (8, 7) and numbers.dtype == torch.float32
    assert (numbers >= 0).all() and (numbers < 1).all()
    assert torch.equal(numbers, draw(ALL, 3, 10, 0, 8))
    assert torch.equal(numbers[:3], draw(ALL, 3, 10, 0, 3))
    for other in (draw(ALL, 4, 10, 0, 8), draw(ALL, 3, 11, 0, 8), draw(ALL, 3, 10, 1, 8)):
        assert not torch.isclose(numbers, other).all(1).any()


@pytest.mark.parametrize("policy", [ALL, *((name,) for name in AUGMENTATIONS), ("cutout", "color"), ()])
def test_a_part_of_a_batch_is_augmented_alike(images: Tensor, policy: tuple[str, ...]) -> None:
    numbers = draw(policy, 0, 0, 0, 4)
    whole = augment(images, policy, numbers)
    assert whole.shape == images.shape and whole.dtype == images.dtype
    torch.testing.assert_close(torch.cat([augment(images[i:][:2], policy, numbers[i:][:2]) for i in (0, 2)]), whole)
    assert bool(policy) != torch.equal(whole, images)


def test_centre_of_the_ranges_changes_nothing(images: Tensor) -> None:
    torch.testing.assert_close(augment(images, ("color", "translation"), torch.full((4, 5), 0.5)), images)


def test_color_ranges(images: Tensor) -> None:
    for low, high in ((0.0, -0.5), (1 - 2**-24, 0.5)):
        torch.testing.assert_close(augment(images, ("color",), torch.tensor([[low, 0.5, 0.5]] * 4)), images + high)
    grey = augment(images, ("color",), torch.tensor([[0.5, 0.0, 0.5]] * 4))
    torch.testing.assert_close(grey, images.mean(1, keepdim=True).expand_as(images))
    halved = augment(images, ("color",), torch.tensor([[0.5, 0.5, 0.0]] * 4))
    torch.testing.assert_close(halved.std((1, 2, 3)), images.std((1, 2, 3)) / 2)
    torch.testing.assert_close(halved.mean((1, 2, 3)), images.mean((1, 2, 3)))


def test_translation_covers_an_eighth_each_way() -> None:
    """A row mark is found again at every distance up to 12.5 % of the side, about equally often."""
    count = 4000
    image = torch.zeros(1, 1, 16, 16)
    image[:, :, 8, 8] = 1
    moved = augment(image.expand(count, -1, -1, -1), ("translation",), draw(("translation",), 0, 0, 0, count))
    position = moved.flatten(1).argmax(1)
    assert moved.sum() == count
    for found in (position // 16, position % 16):
        assert sorted(set(found.tolist())) == [6, 7, 8, 9, 10]
        assert (found.bincount(minlength=16)[6:11] - count / 5).abs().max() < 5 * (count * 0.16) ** 0.5


def test_cutout_cuts_a_fifth() -> None:
    cut = augment(torch.ones(500, 3, 20, 30), ("cutout",), draw(("cutout",), 0, 0, 0, 500)) == 0
    assert torch.equal(cut[:, :1].expand_as(cut), cut)
    rows, columns = cut[:, 0].any(2).sum(1), cut[:, 0].any(1).sum(1)
    # Centres lie anywhere in the image, so that a border may halve the rectangle.
    assert torch.equal(cut[:, 0].sum((1, 2)), rows * columns)
    assert rows.max() == 4 and columns.max() == 6 and rows.min() == 2 and columns.min() == 3
    assert cut[:, 0].any(0).all()


def test_gradients_reach_the_images(images: Tensor) -> None:
    images = images[:1, :, :8, :8].double().requires_grad_()
    numbers = draw(ALL, 1, 2, 0, 1)
    assert torch.autograd.gradcheck(lambda x: augment(x, ALL, numbers), images)


def test_numbers_of_another_policy_are_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"numbers \(4, 7\), not \(4, 3\)"):
        augment(images, ("color",), draw(ALL, 0, 0, 0, 4))
