"""Encode and decode large images in overlapping tiles, each in the memory of one tile.

Shapes: an image has H x W pixels and h x w latent positions, h = H / f, w = W / f, of K indices each.
The result is that of the whole image, up to rounding, where each latent position depends on few pixels around it and
each pixel on few positions. Normalisation and attention over all positions, which the built-in autoencoder has, see
only a tile then, and give another result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from gsq.metrics.reconstruction import to_uint8
from gsq.tokenizer.tokenizer import Tokenizer

# Positions on a side of the probe: what reaches its border is taken to reach any distance.
PROBE = 33
# Tiles whose results differ from the whole image's anyway overlap by this share of their side.
OVERLAP_SHARE = 8
# Largest side [pixels] of a tile that gsq chooses.
SIDE = 1024
Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Tiles:
    """A way to cut an image into tiles."""

    core: int
    """Side of what is kept of a tile, latent positions."""
    overlap: int
    """Positions around it that are computed and dropped."""
    exact: bool
    """Whether the result is that of the whole image, up to rounding."""

    def parts(self, height: int, width: int) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
        """Yield the rows and columns that are computed, and those that are kept, of each tile of h x w positions."""
        for top in range(0, height, self.core):
            for left in range(0, width, self.core):
                kept = (slice(top, min(top + self.core, height)), slice(left, min(left + self.core, width)))
                seen = tuple(
                    slice(max(0, one.start - self.overlap), min(one.stop + self.overlap, side))
                    for one, side in zip(kept, (height, width), strict=True)
                )
                yield (seen[0], seen[1]), kept

    def count(self, height: int, width: int) -> int:
        return math.ceil(height / self.core) * math.ceil(width / self.core)


def tiles_of(tokenizer: Tokenizer, side: int, any_result: bool) -> Tiles | None:
    """Tiles of at most ``side`` pixels, overlap included; None if there are none with the whole image's result.

    any_result: accept another result where the model sees further than a tile.
    """
    positions, reach = side // tokenizer.downsample, reach_of(tokenizer)
    if reach is not None and positions - 2 * reach >= max(1, reach):
        return Tiles(positions - 2 * reach, reach, True)
    overlap = positions // OVERLAP_SHARE
    return Tiles(positions - 2 * overlap, overlap, False) if any_result and positions >= 1 else None


@cache
def reach_of(tokenizer: Tokenizer) -> int | None:
    """How many latent positions away a pixel changes an index's latent, or a position changes a pixel; None if that has
    no bound within PROBE, or if tiles turn out to differ from the whole.

    Found by trying: one position of noise is changed, and the differences are looked at. Group norm needs no trial.
    """
    if any(isinstance(layer, torch.nn.GroupNorm) for layer in tokenizer.model.modules()):
        return None
    f = tokenizer.downsample
    random = torch.Generator().manual_seed(0)
    image = torch.rand((1, 3, PROBE * f, PROBE * f), generator=random).mul_(2).sub_(1).to(tokenizer.device)
    with torch.no_grad():
        latent = tokenizer.model.encoder(image)
        noise = torch.randn(latent.shape, generator=random).to(tokenizer.device)
        found = max(
            _spread(tokenizer.model.encoder, image, f, 1),
            _spread(tokenizer.model.decoder, noise, 1, f),
        )
        if 2 * found + 1 >= PROBE:
            return None
        tiles = Tiles(max(1, PROBE // 3), found, True)
        indices = tokenizer.encode(image)[0]
        same = torch.equal(encode(tokenizer, image[0], tiles), indices.cpu())
        whole, parts = to_uint8(tokenizer.decode(indices[None]))[0].cpu(), decode(tokenizer, indices, tiles)
        same = same and int((whole.int() - parts.int()).abs().max()) <= 1
    return found if same else None


def _spread(network: torch.nn.Module, inputs: Tensor, before: int, after: int) -> int:
    """Positions from the middle one, whose inputs are changed, to the furthest changed output."""
    middle = PROBE // 2
    place = slice(middle * before, (middle + 1) * before)
    changed = inputs.clone()
    changed[:, :, place, place] = -changed[:, :, place, place] + 0.5
    differs = (network(changed) != network(inputs)).any(1)[0]
    rows, columns = (differs.any(axis).nonzero().flatten() // after for axis in (1, 0))
    if not len(rows):
        return 0
    return int(max((one - middle).abs().max() for one in (rows, columns)))


def encode(tokenizer: Tokenizer, image: Tensor, tiles: Tiles, tick: Tick = lambda done, total: None) -> Tensor:
    """(3, H, W), uint8 or float in [-1, 1] -> indices (K, h, w), int64, on the CPU. tick receives the number of tiles
    done, and of all."""
    f = tokenizer.downsample
    height, width = (side // f for side in image.shape[1:])
    indices: Tensor | None = None
    for number, (seen, kept) in enumerate(tiles.parts(height, width), 1):
        rows, columns = (slice(one.start * f, one.stop * f) for one in seen)
        found = tokenizer.encode(image[None, :, rows, columns])[0].cpu()
        if indices is None:
            indices = torch.empty((len(found), height, width), dtype=torch.int64)
        indices[:, kept[0], kept[1]] = found[:, *_inside(seen, kept, 1)]
        tick(number, tiles.count(height, width))
    assert indices is not None
    return indices


def decode(tokenizer: Tokenizer, indices: Tensor, tiles: Tiles, tick: Tick = lambda done, total: None) -> Tensor:
    """Indices (K, h, w) -> (3, H, W), uint8, on the CPU."""
    f = tokenizer.downsample
    height, width = indices.shape[1:]
    image = torch.empty((3, height * f, width * f), dtype=torch.uint8)
    for number, (seen, kept) in enumerate(tiles.parts(height, width), 1):
        made = to_uint8(tokenizer.decode(indices[None, :, seen[0], seen[1]]))[0].cpu()
        rows, columns = (slice(one.start * f, one.stop * f) for one in kept)
        image[:, rows, columns] = made[:, *_inside(seen, kept, f)]
        tick(number, tiles.count(height, width))
    return image


def _inside(seen: tuple[slice, slice], kept: tuple[slice, slice], scale: int) -> tuple[slice, slice]:
    """What is kept, counted from the start of what was computed."""
    rows, columns = (
        slice((one.start - whole.start) * scale, (one.stop - whole.start) * scale)
        for whole, one in zip(seen, kept, strict=True)
    )
    return rows, columns
