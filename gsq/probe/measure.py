"""Measure what a tokenizer's indices are good for: exact bits of held-out images under a learned prior, and gfid.

Shapes: N images, P positions, C codes of a position, k features.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsq.config.probe import SAMPLE_BATCH, code_sizes
from gsq.config.run import EvaluationConfig
from gsq.data.batches import ImageSource
from gsq.evaluation.evaluate import full_precision, source_of
from gsq.evaluation.originals import Store
from gsq.metrics.frechet import FeatureStatistics, frechet_distance
from gsq.metrics.reconstruction import from_uint8, to_uint8
from gsq.models.autoencoder import Autoencoder
from gsq.pretrained.extractor import FeatureExtractor, feature_extractor
from gsq.probe.fitting import WATCHED, Fitted, bits_a_position, bits_each, fit, split
from gsq.probe.model import Prior
from gsq.probe.protocol import ProbeProtocol, probe_protocol, probe_size
from gsq.probe.tokens import fields, pack, unpack, weights_digest
from gsq.training.distributed import Group

Tick = Callable[[BaseException | None], None]


def _tick(error: BaseException | None) -> None:
    if error is not None:
        raise error


def probe(
    model: Autoencoder,
    source: ImageSource,
    evaluation: EvaluationConfig,
    row: dict[str, Any],
    *,
    runs: Path | None = None,
    kept: Path | None = None,
    group: Group | None = None,
    tick: Tick = _tick,
) -> dict[str, Any]:
    """Columns of the results table that the probe of ``evaluation`` adds to the evaluation ``row``.

    model: float32 weights in evaluation mode. row: what ``gsq.evaluation.evaluate.evaluate`` returned, with its
    protocol, resolution, rfid and effective_bits; needed on the first process only. runs: folder of runs that share the
    originals' features. kept: folder of tokens and of checkpoints, from which an interrupted probe goes
    on. group, tick: see ``evaluate``. Only the first process returns a result.

    Raises UserError for too few images, held-out images that are training images, and unequal numbers of indices;
    NonFiniteReconstruction for latents, and ProbeDiverged for a loss, that are not finite.
    """
    group = group or Group()
    protocol, size_of_images = group.from_first((row.get("protocol"), row.get("resolution")))
    source = source_of(source, evaluation, size_of_images)
    rules = probe_protocol(evaluation, source.config, source.manifest)
    assert rules is not None, "an evaluation without a probe"
    begun = time.monotonic()
    model.eval()
    device = next(model.parameters()).device
    sizes = model.quantizer.index_sizes
    with full_precision(), torch.random.fork_rng(devices=[]):
        found = fields(model, source, rules, kept=kept, group=group, tick=tick)
        train, mirrored, held_out = (pack(one, sizes) for one in (found.train, found.mirrored, found.held_out))
        every = torch.cat([train, held_out])
        # A code that never changes takes no bits and needs no model.
        varies = [c for c in range(every.shape[2]) if bool((every[:, :, c] != every[0, 0, c]).any())]
        constant = every[0, 0].clone()
        height, positions = found.train.shape[2], train.shape[1]
        prior, fitted = None, Fitted([0.0], [0.0])
        parameters, bits, train_bits = 0, 0.0, 0.0
        if varies:
            torch.manual_seed(evaluation.probe_seed)
            codes = code_sizes(sizes)
            prior = Prior(probe_size(evaluation), tuple(codes[c] for c in varies), positions)
            trained_on, selection = split(train[:, :, varies], mirrored[:, :, varies], evaluation.probe_seed)
            prior.start_from_counts(trained_on)
            prior.to(device)
            checkpoint = kept / f"{protocol}-{rules.hash}-{weights_digest(model)}.pt" if kept else None
            watched = held_out[:, :, varies]
            options: dict[str, Any] = {"checkpoint": checkpoint, "group": group, "tick": tick}
            fitted = fit(prior, trained_on, selection, watched, evaluation.probe_seed, **options)
            parameters = sum(parameter.numel() for parameter in prior.parameters())
            bits = _shared_bits(prior, watched, group)
            train_bits = bits_a_position(prior, trained_on[:WATCHED])

        def draw(first: int, count: int) -> Tensor:
            """Samples first, first + 1, ... as indices (count, K, h, w)."""
            codes = constant.expand(count, positions, -1).clone()
            if prior is not None:
                random = torch.Generator().manual_seed((evaluation.probe_seed << 32) + first)
                shape = (count, positions, len(varies))
                uniform = torch.rand(shape, generator=random, dtype=torch.float64)
                codes[:, :, varies] = prior.sample(uniform.to(device)).cpu()
            return unpack(codes, sizes, height)

        features = feature_extractor(evaluation.features, source.config.image_size)
        features.network.to(device)
        generated = _generated(model, draw, rules.samples, features, group, tick)
        if generated is None:
            return {}
        originals = _originals(source, rules, features, device, Store(runs, protocol) if runs else None)
        gfid = frechet_distance(originals, generated)
    if kept and prior is not None and checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return {
        "probe": rules.size,
        "probe_protocol": rules.hash,
        "prior_bits_per_token": bits,
        "prior_bits_per_pixel": bits * positions / source.config.image_size**2,
        "prior_gain_bits": row["effective_bits"] - bits,
        "gfid": gfid,
        "gfid_minus_rfid": gfid - row["rfid"],
        "gfid_samples": rules.samples,
        "probe_train_bits": train_bits,
        "probe_curve": fitted.held_out,
        "probe_converged": fitted.converged,
        "probe_overfits": fitted.overfits,
        "probe_parameters": parameters,
        "probe_seconds": time.monotonic() - begun,
    }


def _shared_bits(prior: Prior, codes: Tensor, group: Group) -> float:
    """Mean code length of a position [bits]; each process codes some of the images."""
    mine = codes[group.rank :: group.size]
    parts = group.all_to_all(bits_each(prior, mine).sum().item() if len(mine) else 0.0)
    return float(sum(parts)) / (len(codes) * codes.shape[1])


@torch.no_grad()
def _generated(
    model: Autoencoder,
    draw: Callable[[int, int], Tensor],
    count: int,
    features: FeatureExtractor,
    group: Group,
    tick: Tick,
) -> FeatureStatistics | None:
    """Features of decoded samples, rounded as image files are; on the first process."""
    device = next(model.parameters()).device
    found: list[tuple[int, FeatureStatistics]] = []
    starts = range(0, count, SAMPLE_BATCH)
    for i in range(0, len(starts), group.size):
        error: BaseException | None = None
        try:
            if i + group.rank < len(starts):
                first = starts[i + group.rank]
                indices = draw(first, min(SAMPLE_BATCH, count - first))
                statistics = FeatureStatistics(features.dim)
                for part in indices.split(16):
                    images = from_uint8(to_uint8(model.decode(part.to(device))))
                    statistics.update(features(images)[0])
                found.append((first, statistics))
        except Exception as caught:
            error = caught
        tick(error)
        if error is not None:
            raise error
    parts = group.to_first(found)
    if parts is None:
        return None
    total = FeatureStatistics(features.dim)
    # In the order of the samples, whatever process made them.
    for _, one in sorted((pair for part in parts for pair in part), key=lambda pair: pair[0]):
        total.merge(one)
    return total


@torch.no_grad()
def _originals(
    source: ImageSource, rules: ProbeProtocol, features: FeatureExtractor, device: torch.device, store: Store | None
) -> FeatureStatistics:
    """Features of the held-out images: those that the evaluation has kept, else computed here."""
    known = store.load() if store else None
    if known is not None:
        return known.statistics
    found = FeatureStatistics(features.dim)
    for first in range(0, rules.held_out_images, 16):
        images = source.validation_batch(first, min(16, rules.held_out_images - first)).to(device)
        found.update(features(from_uint8(to_uint8(images)))[0])
    return found
