"""Batches of images. Image i of a step depends on (seed, step, i) alone, so a resumed run sees the same images in the
same order without a stored random state, and processes share a batch by taking slices of it.

Shapes: B images, S = image_size. Images are float32 in [-1, 1].
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gsq.config.run import DataConfig
from gsq.data.decoded import load_image as load_image
from gsq.data.kept import Kept
from gsq.data.manifest import KEPT_BYTES, PIXEL_BYTES, ImageFile, Manifest
from gsq.data.sources import manifest
from gsq.surroundings import cores

# Stream numbers of the counter-based generators.
TRAIN_STREAM, VALIDATION_STREAM, FIXED_TRAIN_STREAM = 0, 1, 2


def to_tensor(images: list[Image.Image]) -> Tensor:
    """RGB images of one size -> (B, 3, H, W) float32 in [-1, 1]."""
    width, height = images[0].size
    stacked = np.empty((len(images), 3, height, width), np.uint8)
    for plane, image in zip(stacked, images, strict=True):
        plane[:] = np.asarray(image).transpose(2, 0, 1)
    return torch.from_numpy(stacked).float().div_(127.5).sub_(1)


_decoded: Kept[Image.Image] = Kept(KEPT_BYTES, lambda image: PIXEL_BYTES * image.width * image.height)


def _load_kept(file: ImageFile) -> Image.Image:
    return _decoded(file, lambda: load_image(file))


def _crop(image: Image.Image, left: float, top: float, side: float, size: int, flip: bool) -> Image.Image:
    # Pillow's bicubic widens its kernel when it shrinks an image: antialiased.
    out = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    out = out if out.mode == "RGB" else out.convert("RGB")
    return out.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else out


class ImageSource:
    """Random training crops and fixed validation images of one data set."""

    def __init__(self, config: DataConfig, files: Manifest | None = None) -> None:
        self.config = config
        self.manifest = files or manifest(config)
        self.load = self.manifest.load or (_load_kept if self.manifest.fits else load_image)

    def _random_crop(self, files: tuple[ImageFile, ...], random: np.random.Generator) -> Image.Image:
        """A square at a random place, its side log-uniform between min_crop and max_crop image sizes."""
        config = self.config
        image = self.load(files[random.integers(len(files))])
        shortest = min(image.size)
        low = min(config.min_crop * config.image_size, shortest)
        high = min(config.max_crop * config.image_size, shortest)
        side = float(np.exp(random.uniform(np.log(low), np.log(high))))
        if low == high:
            # An exact side, so that images that keep their size are not resampled.
            side = low
        left, top = random.random() * (image.width - side), random.random() * (image.height - side)
        flip = bool(random.random() < 0.5) and config.flip
        return _crop(image, left, top, side, config.image_size, flip)

    def train_batch(self, seed: int, step: int, images: range) -> Tensor:
        """(B, 3, S, S): images of the global batch of a step, which counts from 0, by their numbers.

        Numbers from train.batch_size on are those of the discriminator's own batch (discriminator.batch: new).
        """

        def random(i: int) -> np.random.Generator:
            return np.random.Generator(np.random.Philox(key=[seed, TRAIN_STREAM], counter=[0, 0, i, step]))

        return to_tensor([self._random_crop(self.manifest.train, random(i)) for i in images])

    @cache  # noqa: B019 (one source lives as long as its process)
    def num_validation(self, wanted: int) -> int:
        """Number of validation images, at most ``wanted``."""
        return wanted if self.config.kind == "photos" else min(wanted, len(self.manifest.validation))

    def validation_batch(self, first: int, count: int) -> Tensor:
        """(count, 3, S, S): validation images first, first + 1, ...; the same ones for every run and seed.

        photos: image i is a fixed crop, drawn like a training crop from the held-out scenes, not flipped.
        Other data: the centre square of image i.
        """
        return self.fixed_batch("validation", first, count)

    def fixed_batch(self, part: str, first: int, count: int, flip: bool = False) -> Tensor:
        """``validation_batch`` of either part of the split, "train" or "validation"; ``flip`` mirrors every image."""
        make = self._fixed_crop if self.config.kind == "photos" else self._centre
        images = [make(part, i) for i in range(first, first + count)]
        return to_tensor([one.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for one in images] if flip else images)

    def _files(self, part: str) -> tuple[ImageFile, ...]:
        return self.manifest.validation if part == "validation" else self.manifest.train

    def _fixed_crop(self, part: str, i: int) -> Image.Image:
        size, files = self.config.image_size, self._files(part)
        stream = VALIDATION_STREAM if part == "validation" else FIXED_TRAIN_STREAM
        random = np.random.Generator(np.random.Philox(key=[0, stream], counter=[0, 0, 0, i]))
        image = self.load(files[i % len(files)])
        side = min(size * self.config.max_crop ** random.random(), *image.size)
        left, top = random.random() * (image.width - side), random.random() * (image.height - side)
        return _crop(image, left, top, side, size, False)

    def _centre(self, part: str, i: int) -> Image.Image:
        file, kept = self._files(part)[i], None
        if self.manifest.store is not None:
            kept = self.manifest.store.resized(file, self.config.image_size, self._centre_square)
        return kept or self._centre_square(file)

    def _centre_square(self, file: ImageFile) -> Image.Image:
        image = self.load(file)
        side = float(min(image.size))
        left, top = (image.width - side) / 2, (image.height - side) / 2
        return _crop(image, left, top, side, self.config.image_size, False)


class Batches:
    """A process's share of each step's batch, on its device. ``workers`` threads prepare batches ahead."""

    def __init__(
        self, source: ImageSource, seed: int, images: range, workers: int, device: torch.device | None = None
    ) -> None:
        self.source, self.seed, self.images = source, seed, images
        self.device = device or torch.device("cpu")
        if workers == 0 and self.device.type == "cuda":
            workers = min(16, cores())
        self.workers = min(workers, len(images))
        self.pool = ThreadPoolExecutor(self.workers) if self.workers else None
        self.ready: dict[int, list[Future[Tensor]]] = {}
        self.waited = 0.0
        """Total time [s] for which calls have waited for their images."""

    def __call__(self, step: int) -> Tensor:
        """This process's images of a step, (B / processes, 3, S, S); also starts the next two steps."""
        started = time.perf_counter()
        try:
            return self._batch(step)
        finally:
            self.waited += time.perf_counter() - started

    def _batch(self, step: int) -> Tensor:
        if self.pool is None:
            return self.source.train_batch(self.seed, step, self.images).to(self.device)
        for later in range(step, step + 3):
            if later not in self.ready:
                parts = [self.images[i :: self.workers] for i in range(self.workers)]
                self.ready[later] = [
                    self.pool.submit(self.source.train_batch, self.seed, later, part) for part in parts
                ]
        out = torch.empty(len(self.images), 3, *[self.source.config.image_size] * 2)
        if self.device.type == "cuda":
            out = out.pin_memory()
        for skipped in [other for other in self.ready if other < step]:
            del self.ready[skipped]
        for i, part in enumerate(self.ready.pop(step)):
            out[i :: self.workers] = part.result()
        return out.to(self.device, non_blocking=True)
