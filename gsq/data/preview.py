"""A look at a data set before anything is trained on it: sizes, formats, near-duplicates across the split, and a sheet
of crops as the model will see them. Imports no torch, but for the sheet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from gsq.config.run import DataConfig
from gsq.data.images import BrokenImageError, miniature
from gsq.data.listing import shown, suffix_of
from gsq.data.manifest import ImageFile, Manifest, Summary
from gsq.data.progress import shown_after_a_second
from gsq.data.shards import read_checked
from gsq.data.sources import manifest
from gsq.errors import UserError
from gsq.files import whole
from gsq.words import counted, span

# Side of the grey miniature that images are compared by; its hash has SIDE^2 bits.
SIDE = 16
# Two images are alike if at most this share of their hashes differs, and their miniatures differ by at most this many
# of 255 grey levels on average. A copy that was resized or compressed anew stays below both.
MOST_BITS, MOST_GREY = 0.06, 6.0
NAMED = 5
# The sheet: rows of training crops, rows of validation images, images a row, and least pixels of an image.
ROWS, COLUMNS, LEAST_PIXELS, GAP = (4, 2), 8, 96, 4


@dataclass(frozen=True)
class Duplicate:
    """A validation image that looks like a training image."""

    validation: str
    train: str
    """The training image that it is most like; both by their names below the data set's root."""
    identical: bool
    """Whether both files are the same, byte for byte."""


@dataclass(frozen=True)
class Preview:
    """The images that a run would train on."""

    summary: Summary
    sizes: tuple[tuple[int, int], ...]
    """Width and height [pixels] of every image that was opened, as it is displayed."""
    formats: dict[str, int]
    """Images by the suffix of their names, the most frequent first."""
    duplicates: tuple[Duplicate, ...]
    compared: tuple[int, int]
    """Training and validation images that were opened and compared: all, unless there are more than ``most``."""
    image_size: int

    def lines(self) -> list[str]:
        """The preview as text, a line for each fact."""
        sides = np.array(self.sizes)
        short = sides.min(1)
        smallest, largest = (self.sizes[int(i)] for i in (np.argmin(sides.prod(1)), np.argmax(sides.prod(1))))
        below = f"{int((short < self.image_size).sum()):,} of {len(short):,}"
        counts, *remarks = self.summary.lines()
        lines = [
            counts,
            f"sizes: {span(_pixels(smallest), _pixels(largest))}; the median shorter side has {np.median(short):.0f}, "
            f"and fewer than a training image ({self.image_size}) in {below}",
            f"formats: {', '.join(f'{count:,} {name}' for name, count in self.formats.items())}",
            *remarks,
        ]
        train, validation = self.compared
        whole_set = (train, validation) == (self.summary.train, self.summary.validation)
        of = "" if whole_set else f" (of these, {train:,} and {validation:,} were compared; --most N compares more)"
        if not self.duplicates:
            return [*lines, f"near-duplicates across the split: none{of}"]
        are = "looks" if len(self.duplicates) == 1 else "look"
        lines.append(
            f"near-duplicates across the split: {counted(len(self.duplicates), 'validation image')} {are} like a "
            f"training image, which flatters every metric; remove one of each pair, or put both on one side{of}:"
        )
        named = [
            f"  {shown(d.validation)} ~ {shown(d.train)}{' (the same file)' * d.identical}" for d in self.duplicates
        ]
        return [*lines, *named[:NAMED], *["  ..."] * (len(named) > NAMED)]

    def to_dict(self) -> dict[str, Any]:
        """The preview for JSON."""
        short = np.array(self.sizes).min(1)
        return {
            **self.summary.to_dict(),
            "formats": self.formats,
            "shorter_side": {"least": int(short.min()), "median": float(np.median(short)), "most": int(short.max())},
            "enlarged": int((short < self.image_size).sum()),
            "compared": {"train": self.compared[0], "validation": self.compared[1]},
            "near_duplicates": [
                {"validation": shown(d.validation), "train": shown(d.train), "identical": d.identical}
                for d in self.duplicates
            ],
        }


def preview(config: DataConfig, most: int = 20_000) -> Preview:
    """Look at the images of ``config``. most: images that are opened and compared, evenly drawn from larger sets.

    Two images look alike if their difference hashes (the sign of each step from pixel to pixel of a grey miniature)
    and the miniatures themselves nearly agree. Raises UserError as ``gsq.data.sources.manifest`` does.
    """
    if most < 2:
        raise UserError(f"--most: {most} must be at least 2")
    files = manifest(config)
    share = min(1.0, most / (len(files.train) + len(files.validation)))
    train, validation = (_drawn(part, share) for part in (files.train, files.validation))
    every = [*train, *validation]
    looked = [_miniature(files, one) for one in shown_after_a_second(every, "comparing images", len(every))]
    small = np.stack([grey for grey, _ in looked])
    suffixes = Counter(suffix_of(one.name)[1:] or "no suffix" for one in (*files.train, *files.validation))
    return Preview(
        files.summary(),
        tuple(size for _, size in looked),
        dict(suffixes.most_common()),
        _alike(train, validation, small[: len(train)], small[len(train) :]),
        (len(train), len(validation)),
        config.image_size,
    )


def contact_sheet(config: DataConfig, path: Path, seed: int = 0) -> Path:
    """Write a PNG of the crops that the model will see: rows of the first training crops of ``seed``, then rows of
    validation images. Each is image_size pixels wide, enlarged by a whole factor where that is small."""
    from gsq.data.batches import ImageSource

    source = ImageSource(config)
    shown_at = [
        source.train_batch(seed, 0, range(ROWS[0] * COLUMNS)),
        source.validation_batch(0, source.num_validation(ROWS[1] * COLUMNS)),
    ]
    side = config.image_size * max(1, -(-LEAST_PIXELS // config.image_size))
    step = side + GAP
    size = (COLUMNS * step - GAP, sum(ROWS) * step + GAP)
    sheet = Image.new("RGB", size, "white")
    for first, images in zip((0, ROWS[0]), shown_at, strict=True):
        pixels = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        for i, one in enumerate(pixels):
            tile = Image.fromarray(one).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(tile, (i % COLUMNS * step, (first + i // COLUMNS) * step + (2 * GAP if first else 0)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        sheet.save(partial, format="PNG")
    return path


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]:,} x {size[1]:,} pixels"


def _drawn(files: Sequence[ImageFile], share: float) -> list[ImageFile]:
    """Every 1 / share-th file, at least one."""
    count = max(1, int(len(files) * share))
    return [files[i * len(files) // count] for i in range(count)]


def _miniature(files: Manifest, one: ImageFile) -> tuple[npt.NDArray[np.float32], tuple[int, int]]:
    """(SIDE, SIDE + 1) grey levels, and the size of the image."""
    try:
        small, size = miniature(files.load(one) if files.load else read_checked(one), (SIDE + 1, SIDE))
    except BrokenImageError as error:
        raise UserError(f"{shown(str(one.path))}: {shown(one.name)} cannot be read ({error})") from None
    return np.asarray(small, np.float32), size


def _alike(
    train: Sequence[ImageFile],
    validation: Sequence[ImageFile],
    small: npt.NDArray[np.float32],
    held: npt.NDArray[np.float32],
) -> tuple[Duplicate, ...]:
    """Find the most similar training image of each validation image, if the two look alike."""
    # The product of two sign vectors of n bits is n - 2 * (bits that differ).
    signs, others = (np.where(np.diff(one, axis=2) > 0, 1, -1).astype(np.float32) for one in (small, held))
    signs, others = signs.reshape(len(small), -1), others.reshape(len(held), -1)
    found = []
    for first in range(0, len(held), 256):
        differ = (SIDE * SIDE - others[first : first + 256] @ signs.T) / 2
        for i, row in enumerate(differ, first):
            near = np.flatnonzero(row <= MOST_BITS * SIDE * SIDE)
            if not len(near):
                continue
            grey = np.abs(small[near] - held[i]).mean((1, 2))
            if grey.min() <= MOST_GREY:
                twin = train[int(near[grey.argmin()])]
                found.append(Duplicate(validation[i].name, twin.name, twin.sha256 == validation[i].sha256))
    return tuple(found)
