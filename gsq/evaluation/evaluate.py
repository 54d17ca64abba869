"""Evaluation of one tokenizer under named protocols: rFID, KID, inception score, LPIPS, PSNR, SSIM, codebook use.

``rfid`` is the Frechet distance between reconstructions and originals in the features that the protocol names. One pass
over the validation images measures everything, in memory that does not grow with their number.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gsq.config.run import EvaluationConfig
from gsq.data.batches import ImageSource
from gsq.evaluation.foreign import Model
from gsq.evaluation.lpips_maps import KeptMaps
from gsq.evaluation.originals import Originals, Store
from gsq.evaluation.own_metrics import OwnMetric, own_metrics
from gsq.evaluation.protocol import Protocol, protocol
from gsq.evaluation.tally import Tally, result_row, write_histogram
from gsq.files import whole
from gsq.metrics.inception_score import InceptionScore
from gsq.metrics.reconstruction import from_uint8, psnr_ceiling_db, psnr_db, ssim, to_uint8
from gsq.pretrained.distances import Extractors
from gsq.pretrained.extractor import feature_extractor
from gsq.quantizers import NonFiniteLatent
from gsq.training.distributed import Group
from gsq.training.losses import LPIPS

SAMPLES = 8
# Seconds between looks at the work of another run.
PATIENCE = 0.5


class NonFiniteReconstruction(Exception):
    """A reconstruction or its latent is NaN or infinite; the message names step and image."""


def _tick(error: BaseException | None) -> None:
    if error is not None:
        raise error


@torch.no_grad()
def evaluate(
    model: Model,
    source: ImageSource,
    evaluation: EvaluationConfig,
    *,
    image_size: int | None = None,
    runs: Path | None = None,
    samples: Path | None = None,
    step: int | None = None,
    group: Group | None = None,
    tick: Callable[[BaseException | None], None] = _tick,
    histograms: dict[str, NDArray[np.int64]] | None = None,
) -> dict[str, Any]:
    """Metrics and protocol at one size (default: data.image_size), by the results table's column names.

    model: float32 weights, on any device. runs: folder of runs that share the features of the originals
    (gsq.evaluation.originals); without it they are computed here. samples: path for a picture of some reconstructions.
    step: step of the weights, named in errors. group: the processes that share the work, with equal models; only the
    first returns a result. tick is called after each batch, equally often on every process, with the error of the batch
    if there is one; it raises that error, or to stop. histograms receives the counts of indices, (sum of index_sizes,),
    by protocol.

    Raises NonFiniteReconstruction, and UserError like ``protocol`` and the weights.
    """
    group = group or Group()
    model.eval()
    device = next(model.parameters()).device
    source = source_of(source, evaluation, image_size)
    features = feature_extractor(evaluation.features, source.config.image_size)
    extractors = Extractors(features, evaluation.distances, device)
    rules = protocol(evaluation, source.config, source.manifest, features=features)
    lpips = LPIPS(evaluation.lpips).to(device) if evaluation.lpips != "none" else None
    metrics = own_metrics(evaluation.metrics, device)
    store = Store(runs, rules.hash) if runs and group.first else None
    known = store.load() if store else None
    maps = _kept_maps(store, lpips, rules, group, device)
    claimed = store is not None and (known is None or (maps is not None and not maps.known)) and store.claim()
    # While another run computes the originals, this one evaluates its reconstructions.
    with_originals = group.from_first(known is None and (store is None or claimed))
    work = _Work(model, source, evaluation, rules, extractors, lpips, metrics, step, group, tick, maps)
    try:
        with full_precision():
            if maps and claimed and not maps.known:
                maps.begin()
            total = work.run(reconstructions=True, originals=with_originals, store=store, samples=samples)
            if not with_originals:
                known = _originals_of_others(work, store, known)
        if total is None:
            return {}
        if maps:
            maps.end(True)
        if with_originals:
            known = total.originals()
            if store:
                store.save(known)
    finally:
        if maps:
            maps.end(False)
        if claimed and store:
            store.release()
    assert known is not None
    if histograms is not None and total.histogram:
        histograms[rules.hash] = total.histogram.counts.numpy()
    row = result_row(rules, total, known)
    if metrics:
        row["metrics"] = {metric.column: total.sums[metric.column] / total.count for metric in metrics}
    return row


def _kept_maps(
    store: Store | None, lpips: LPIPS | None, rules: Protocol, group: Group, device: torch.device
) -> KeptMaps | None:
    """The originals' maps for LPIPS below the runs folder, where they save time and are not too many."""
    if store is None or lpips is None or group.size > 1 or device.type != "cpu":
        return None
    maps = KeptMaps(store.path.with_suffix(".lpips"), lpips, rules.num_images, rules.image_size)
    return maps if maps.small else None


def evaluate_all(
    model: Model,
    source: ImageSource,
    evaluation: EvaluationConfig,
    *,
    samples: Path | None = None,
    histogram: Path | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """``evaluate`` at each of evaluation.resolutions, with samples of the first.

    histogram: path for the counts of indices, see ``read_histogram``. The other options are those of ``evaluate``.
    """
    counts: dict[str, NDArray[np.int64]] = {}
    sizes = evaluation.resolutions or (source.config.image_size,)
    results = [
        evaluate(
            model,
            source,
            evaluation,
            image_size=size,
            samples=samples if size == sizes[0] else None,
            histograms=counts,
            **options,
        )
        for size in sizes
    ]
    if histogram is not None:
        quantizer = model.quantizer
        write_histogram(histogram, counts, quantizer.index_sizes, quantizer.shared_codebook, options.get("step"))
    return results


def source_of(source: ImageSource, evaluation: EvaluationConfig, image_size: int | None) -> ImageSource:
    """The images that an evaluation compares: at its size (None: their own) and of its folder alone."""
    if image_size is not None and image_size != source.config.image_size:
        source = ImageSource(dataclasses.replace(source.config, image_size=image_size), source.manifest)
    return ImageSource(source.config, source.manifest.below(evaluation.folder)) if evaluation.folder else source


@contextmanager
def full_precision() -> Iterator[None]:
    """Turn off TF32, which a GPU would otherwise use for float32 convolutions."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class _Work:
    """One evaluation's passes over the images, shared by the processes of a group."""

    model: Model
    source: ImageSource
    evaluation: EvaluationConfig
    rules: Protocol
    extractors: Extractors
    lpips: LPIPS | None
    metrics: tuple[OwnMetric, ...]
    step: int | None
    group: Group
    tick: Callable[[BaseException | None], None]
    maps: KeptMaps | None = None

    def run(
        self, *, reconstructions: bool, originals: bool, store: Store | None, samples: Path | None = None
    ) -> Tally | None:
        """The tally of all images on the first process, None on the others."""
        size, count = self.group.size, self.rules.num_images
        # Consecutive images, so that the first process has the first ones; every process makes equally many rounds.
        start, end = (count * (self.group.rank + i) // size for i in (0, 1))
        batch = self.evaluation.batch_size
        tally = Tally(self.rules, self.model, self.evaluation.distances)
        for offset in range(0, -(-count // size), batch):
            error: BaseException | None = None
            first, stop = start + offset, min(start + offset + batch, end)
            try:
                if first < stop:
                    self.batch(tally, first, stop, reconstructions, originals, samples if first == 0 else None)
                if store:
                    store.refresh()
            except Exception as caught:
                error = caught
            self.tick(error)
        tallies = self.group.to_first(tally)
        if tallies is None:
            return None
        for other in tallies[1:]:
            tally.merge(other)
        return tally

    def batch(
        self, tally: Tally, first: int, stop: int, reconstructions: bool, originals: bool, samples: Path | None
    ) -> None:
        device = next(self.model.parameters()).device
        images = self.source.validation_batch(first, stop - first).to(device)
        # Compare both sides as uint8 images, as if read from files.
        truth = to_uint8(images)
        true_images = from_uint8(truth)
        tally.count += len(images)
        if originals:
            features, _, more = self.extractors(true_images)
            tally.add_features("originals", features, first)
            tally.add_distances("originals", more)
        if not reconstructions:
            return
        output_images, indices = self.reconstruct(images, first)
        found = to_uint8(output_images)
        found_images = from_uint8(found)
        features, logits, more = self.extractors(found_images)
        tally.add_features("reconstructions", features, first)
        tally.add_distances("reconstructions", more)
        if self.rules.inception_score != "none" and logits is not None:
            tally.score = tally.score or InceptionScore(self.rules.num_images, logits.shape[1])
            tally.score.update(logits, first)
        if tally.histogram:
            tally.histogram.update(indices)
        tally.add("psnr_db", psnr_db(found, truth).clamp_(max=psnr_ceiling_db(truth[0].numel())))
        tally.add("ssim", ssim(found, truth))
        tally.add("mse", (found_images.double() - true_images.double()).square().flatten(1).mean(1))
        if self.lpips:
            tally.add("lpips", self.lpips.distances(found_images, self.true_maps(self.lpips, true_images, first)))
        for metric in self.metrics:
            tally.add(metric.column, metric(found_images, true_images))
        if samples:
            save_samples(truth[:SAMPLES], found[:SAMPLES], samples)

    def true_maps(self, lpips: LPIPS, images: Tensor, first: int) -> list[Tensor]:
        """LPIPS's maps of the originals first, first + 1, ..."""
        found = self.maps.load(first, first + len(images)) if self.maps and self.maps.known else None
        if found is None:
            found = lpips.maps(images)
            if self.maps:
                self.maps.add(found)
        return found

    def reconstruct(self, images: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Images and indices. Raises NonFiniteReconstruction."""
        low = self.rules.reconstruction_dtype == "bfloat16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=low):
            try:
                output = self.model(images)
                finite = output.images.isfinite().flatten(1).all(1)
            except NonFiniteLatent:
                finite = torch.tensor([self._encodes(image[None]) for image in images])
        if finite.all():
            return output.images, output.indices
        index = first + int((~finite).nonzero()[0])
        files = self.source.manifest.validation
        step = "" if self.step is None else f"at step {self.step} "
        raise NonFiniteReconstruction(
            f"{step}the reconstruction of validation image {index} ({files[index % len(files)].name}) is not finite; "
            f"{int((~finite).sum())} of the {len(images)} images of its batch are"
        )

    def _encodes(self, image: Tensor) -> bool:
        try:
            return bool(self.model(image).images.isfinite().all())
        except NonFiniteLatent:
            return False


def _originals_of_others(work: _Work, store: Store | None, known: Originals | None) -> Originals | None:
    """The originals that exist or that another run computes; computed here if that run has died."""
    while True:
        state = "found"
        if work.group.first and store and known is None:
            # Load after looking at the lock: its holder may have saved just before it let go.
            held = store.waiting()
            known = store.load()
            state = "found" if known else "wait" if held else "compute" if store.claim() else "wait"
        state = work.group.from_first(state)
        if state == "found":
            return known
        if state == "compute":
            try:
                total = work.run(reconstructions=False, originals=True, store=store)
                if total and store:
                    store.save(total.originals())
                return total.originals() if total else None
            finally:
                if store:
                    store.release()
        time.sleep(PATIENCE)
        work.tick(None)


def save_samples(originals: Tensor, reconstructions: Tensor, path: Path) -> None:
    """Originals above reconstructions, (B, 3, H, W) uint8 each, as one PNG with a margin between the images."""
    count, _, height, width = originals.shape
    scale = max(1, 96 // width)
    gap = 4
    sheet = Image.new("RGB", (count * (width * scale + gap) - gap, 2 * height * scale + gap), "white")
    for row, images in enumerate((originals, reconstructions)):
        for column, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
            tile = Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.NEAREST)
            sheet.paste(tile, (column * (width * scale + gap), row * (height * scale + gap)))
    with whole(path) as partial:
        sheet.save(partial, format="PNG")
