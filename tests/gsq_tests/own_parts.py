"""Parts of one's own for the tests: those of the templates, and broken ones."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gsq.quantizers.base import QuantizerOutput
from gsq.templates.quantizer import Mine


class OutOfRange(Mine):
    """Returns an index that no row has."""

    def _quantize(self, latent: Tensor) -> QuantizerOutput:
        found = super()._quantize(latent)
        return found._replace(indices=found.indices + self.codebook_size)


class NotFinite(Mine):
    """Returns NaN for a latent without."""

    def _quantize(self, latent: Tensor) -> QuantizerOutput:
        found = super()._quantize(latent)
        return found._replace(latent=found.latent * float("nan"))


class WrongType(Mine):
    """Returns indices as floats."""

    def _quantize(self, latent: Tensor) -> QuantizerOutput:
        found = super()._quantize(latent)
        return found._replace(indices=found.indices.float())


class NoGradient(Mine):
    """Keeps the gradient from the encoder."""

    def _quantize(self, latent: Tensor) -> QuantizerOutput:
        found = super()._quantize(latent)
        return found._replace(latent=found.latent.detach().requires_grad_())


class OtherDecoding(Mine):
    """Decodes indices to another latent than forward returned."""

    def _decode(self, indices: Tensor) -> Tensor:
        return super()._decode(indices) + 1e-3


class Undeclared(Mine):
    """Has more values for an index than the config counts."""

    def __init__(self, latent_dim: int, groups: int, codebook_size: int, temperature: float = 1.0) -> None:
        super().__init__(latent_dim, groups, 2 * codebook_size, temperature)


class Drawing(Mine):
    """Draws from the global random numbers, in evaluation too."""

    def _quantize(self, latent: Tensor) -> QuantizerOutput:
        torch.rand(1)
        return super()._quantize(latent)


class Chatty(Mine):
    """Prints with every call."""

    def _quantize(self, latent: Tensor) -> QuantizerOutput:
        print("x" * 5000)
        return super()._quantize(latent)


class OfTheBatch(Mine):
    """Looks at the whole batch."""

    def _quantize(self, latent: Tensor) -> QuantizerOutput:
        found = super()._quantize(latent - latent.mean(0))
        return found


class Summed(nn.Module):
    """A loss that is a sum over the images instead of a mean."""

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        return (images - targets).square().mean((1, 2, 3)).sum()


class Scalar:
    """A metric that returns one value for all images."""

    def __call__(self, images: Tensor, originals: Tensor) -> Tensor:
        return (images - originals).abs().mean()


@dataclass(frozen=True)
class Sizes:
    """Options of every type."""

    width: int = 8
    rate: float = 0.5
    name: str = "plain"
    sharp: bool = False
    levels: tuple[int, ...] = (1, 2)


class WithOptions:
    """An encoder and decoder with options of every type."""

    Options = Sizes

    @staticmethod
    def encoder(config: object, **options: object) -> nn.Module:
        raise NotImplementedError

    decoder = encoder


NOTE = os.environ.get("GSQ_OWN_PART_NOTE", "")
