"""Images as codes: made once for all probes of a tokenizer, and turned back into indices.

Shapes: N images, K indices of a latent position in a field of h x w, C codes of a position (``gsq.config.probe``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gsq.config.probe import packs
from gsq.config.signature import digest
from gsq.data.batches import ImageSource
from gsq.errors import UserError
from gsq.evaluation.evaluate import NonFiniteReconstruction
from gsq.files import whole
from gsq.models.autoencoder import Autoencoder
from gsq.probe.protocol import ProbeProtocol
from gsq.quantizers import NonFiniteLatent
from gsq.training.distributed import Group

BATCH = 32
Tick = Callable[[BaseException | None], None]


@dataclass(frozen=True)
class Fields:
    """The indices of the images that a probe needs, (N, K, h, w) int32 each."""

    train: Tensor
    mirrored: Tensor
    """The training images mirrored; of length 0 without this augmentation."""
    held_out: Tensor


def pack(indices: Tensor, sizes: Sequence[int]) -> Tensor:
    """Indices (N, K, h, w) -> codes (N, h w, C) int64, in raster order. sizes: values of each index."""
    flat = indices.flatten(2).long()
    codes, k = [], 0
    for members in packs(sizes):
        code = torch.zeros_like(flat[:, 0])
        for size in members:
            code = code * size + flat[:, k]
            k += 1
        codes.append(code)
    return torch.stack(codes, 2)


def unpack(codes: Tensor, sizes: Sequence[int], height: int) -> Tensor:
    """The inverse of ``pack``."""
    found = []
    for c, members in enumerate(packs(sizes)):
        code, digits = codes[:, :, c], []
        for size in reversed(members):
            digits.append(code % size)
            code = code // size
        found += digits[::-1]
    return torch.stack(found, 1).unflatten(2, (height, -1))


def weights_digest(model: Autoencoder) -> str:
    """12 hex digits over the weights of a tokenizer."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def fields(
    model: Autoencoder,
    source: ImageSource,
    rules: ProbeProtocol,
    *,
    kept: Path | None = None,
    group: Group | None = None,
    tick: Tick = lambda error: None,
) -> Fields:
    """Encode training and held-out images, or read them from the folder ``kept``, where probes of every size share
    those of the same weights. The processes of ``group`` share the work; all of them get the result.

    Raises NonFiniteReconstruction where a latent is not finite, and UserError where images have different numbers of
    indices.
    """
    group = group or Group()
    about = [
        weights_digest(model),
        rules.data,
        rules.image_size,
        rules.train_images,
        rules.held_out_images,
        rules.augmentation,
    ]
    path = kept / f"tokens-{digest(about)}.pt" if kept else None
    known = group.from_first(_load(path) if path and group.first else None)
    if known is None:
        parts = [("train", rules.train_images, False), ("train", 0 if rules.augmentation == "none" else -1, True)]
        parts = [(part, rules.train_images if n < 0 else n, flip) for part, n, flip in parts]
        parts.append(("validation", rules.held_out_images, False))
        known = [_encode(model, source, part, count, flip, group, tick) for part, count, flip in parts]
        if path and group.first:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as partial:
                torch.save(known, partial)
    train, mirrored, held_out = known
    if train.shape[1:] != held_out.shape[1:]:
        raise UserError(_unequal(train.shape[1:], held_out.shape[1:]))
    return Fields(train, mirrored, held_out)


def _load(path: Path) -> list[Tensor] | None:
    try:
        found = torch.load(path, weights_only=True)
    except Exception:  # a missing or damaged file is made again
        return None
    return found if isinstance(found, list) and len(found) == 3 else None


def _encode(
    model: Autoencoder, source: ImageSource, part: str, count: int, flip: bool, group: Group, tick: Tick
) -> Tensor:
    device = next(model.parameters()).device
    start, end = (count * (group.rank + i) // group.size for i in (0, 1))
    found: list[Tensor] = []
    for offset in range(0, -(-count // group.size), BATCH):
        error: BaseException | None = None
        first, stop = start + offset, min(start + offset + BATCH, end)
        try:
            if first < stop:
                images = source.fixed_batch(part, first, stop - first, flip).to(device)
                found.append(_checked(model.encode(images), model.quantizer.index_sizes, found))
        except NonFiniteLatent as caught:
            error = NonFiniteReconstruction(f"{part} images {first} to {stop - 1} cannot be tokenised: {caught}")
        except Exception as caught:
            error = caught
        tick(error)
        if error is not None:
            raise error
    mine = torch.cat(found) if found else None
    every = [one for one in group.all_to_all(mine) if one is not None]
    for one in every:
        if one.shape[1:] != every[0].shape[1:]:
            raise UserError(_unequal(every[0].shape[1:], one.shape[1:]))
    return torch.cat(every) if every else torch.empty(0, len(model.quantizer.index_sizes), 1, 1, dtype=torch.int32)


def _checked(indices: Tensor, sizes: Sequence[int], earlier: list[Tensor]) -> Tensor:
    wanted = earlier[0].shape[1:] if earlier else indices.shape[1:]
    if indices.ndim != 4 or indices.shape[1] != len(sizes) or indices.shape[1:] != wanted:
        raise UserError(_unequal((len(sizes), *wanted[1:]), indices.shape[1:]))
    return indices.cpu().int()


def _unequal(one: Sequence[int], other: Sequence[int]) -> str:
    return (
        f"evaluation.probe: the tokenizer turns one image into {math.prod(one)} indices {tuple(one)} and another into "
        f"{math.prod(other)} {tuple(other)}; a probe needs equally many for each image. Use probe: none for it"
    )
