"""Tokenizers of somebody else: right ones, and ones with every mistake that is easily made."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Blur(nn.Module):
    """Images in [-1, 1], 4 x 4 pixels as one; indices of 64 grey levels."""

    codebook_size = 64

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def encode(self, images: Tensor) -> Tensor:
        return ((F.avg_pool2d(images.mean(1, keepdim=True), 4) + 1) * 31.5).round().clamp(0, 63).long()[:, 0]

    def decode(self, codes: Tensor) -> Tensor:
        grey = (codes / 31.5 - 1)[:, None] * self.scale
        return F.interpolate(grey, scale_factor=4.0).expand(-1, 3, -1, -1)


def blur() -> Blur:
    return Blur()


def brighter(by: float = 1.1) -> Blur:
    model = Blur()
    nn.init.constant_(model.scale, by)
    return model


class Coloured(nn.Module):
    """Keeps colours: 2 x 2 pixels as one, without indices."""

    def __init__(self, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        self.low, self.high = low, high

    def reconstruct(self, images: Tensor) -> Tensor:
        # A model that knows nothing outside its range.
        images = images.clamp(self.low, self.high)
        return F.interpolate(F.avg_pool2d(images, 2), scale_factor=2.0)


def coloured() -> Coloured:
    return Coloured()


def of_zero_to_one() -> Coloured:
    return Coloured(0.0, 1.0)


def of_bytes() -> Coloured:
    return Coloured(0.0, 255.0)


def declared_zero_to_one() -> Coloured:
    model: Any = Coloured(0.0, 1.0)
    model.range = (0, 1)
    return model


def returns_zero_to_one() -> Any:
    inner = Coloured()
    return SimpleNamespace(inner=inner, reconstruct=lambda x: (inner.reconstruct(x) + 1) / 2)


class TakesBlueFirst(nn.Module):
    """A model of BGR that treats channels differently: it drops most of what it takes for red's detail."""

    def reconstruct(self, images: Tensor) -> Tensor:
        blue, green, red = images.split(1, 1)
        return torch.cat([blue, green.clamp(-0.2, 1), red * 0.1], 1) if red.mean() > blue.mean() else images.flip(1)


def channels_returned_backwards() -> Any:
    return SimpleNamespace(reconstruct=lambda x: Coloured().reconstruct(x).flip(1))


def turned() -> Any:
    return SimpleNamespace(reconstruct=lambda x: Coloured().reconstruct(x).transpose(2, 3))


def channels_last() -> Any:
    return SimpleNamespace(reconstruct=lambda x: x.permute(0, 2, 3, 1))


def half_size() -> Any:
    return SimpleNamespace(reconstruct=lambda x: F.avg_pool2d(x, 2))


def encoder_only() -> Any:
    return SimpleNamespace(encode=lambda x: x)


def nothing() -> Any:
    return SimpleNamespace()


def only_48() -> Any:
    return SimpleNamespace(reconstruct=lambda x: x, image_size=48)


def reconstructs_alone() -> Any:
    """Declares a codebook, but has no way to return indices."""
    return SimpleNamespace(reconstruct=Coloured().reconstruct, codebook_size=64)


def leaves() -> Any:
    raise SystemExit("no weights")


def fails() -> Any:
    def reconstruct(images: Tensor) -> Tensor:
        raise RuntimeError("a shape that does not fit")

    return SimpleNamespace(reconstruct=reconstruct)


def not_finite() -> Any:
    return SimpleNamespace(reconstruct=lambda x: x / 0)


def too_few_rows() -> Blur:
    model = Blur()
    model.codebook_size = 8
    return model


def no_whole_numbers() -> Any:
    return SimpleNamespace(encode=lambda x: x, decode=lambda x: x, codebook_size=8)


class Grouped(nn.Module):
    """Two indices a position, of 4 and of 8, in codes of another form; random weights."""

    index_sizes = (4, 8)
    quantizer = "product"
    weights = "random"
    latent_dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        mean = F.avg_pool2d(images, 4).mean(1)
        return {"found": torch.stack([(mean > 0).long(), (mean > 0.5).long() * 7], 1), "images": images}

    def indices(self, codes: dict[str, Tensor]) -> Tensor:
        return codes["found"]

    def decode(self, codes: dict[str, Tensor]) -> Tensor:
        return self.layer(codes["images"])


def grouped() -> Grouped:
    return Grouped()
