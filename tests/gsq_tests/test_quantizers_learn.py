"""Every kind of quantizer learns, alone and in the autoencoder."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from quantizer_kinds import KINDS, build
from tiny_run import tiny
from torch import Tensor, nn

from gsq import Autoencoder
from gsq.metrics.codebook import CodebookUse, IndexHistogram
from gsq.quantizers import (
    Quantizer,
)


def smooth_images(count: int = 16) -> Tensor:
    """(count, 6, 8, 8): six channels that three smooth random fields determine."""
    generator = torch.Generator().manual_seed(0)
    fields = F.interpolate(torch.randn(count, 3, 3, 3, generator=generator), (8, 8), mode="bicubic")
    mix = torch.randn(6, 3, generator=generator)
    return torch.tanh(torch.einsum("oc,bchw->bohw", mix, fields))


def train(q: Quantizer, steps: int = 120) -> tuple[float, CodebookUse]:
    """Mean square over the data's variance, and codebook use, after training 1x1 convolutions around the quantizer."""
    torch.manual_seed(1)
    images = smooth_images()
    encoder = nn.Sequential(nn.Conv2d(6, 32, 1), nn.SiLU(), nn.Conv2d(32, 4, 1))
    decoder = nn.Sequential(nn.Conv2d(4, 32, 1), nn.SiLU(), nn.Conv2d(32, 6, 1))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters(), *q.parameters()], 5e-3)
    for _ in range(steps):
        out = q(encoder(images))
        loss = F.mse_loss(decoder(out.latent), images) + out.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        q.update_codebook()
    q.eval()
    with torch.no_grad():
        out = q(encoder(images))
        error = F.mse_loss(decoder(out.latent), images) / images.var()
    histogram = IndexHistogram(q.index_sizes, q.shared_codebook)
    histogram.update(out.indices)
    return float(error), histogram.result()


# Largest share of the variance left, by bits of a token: a constant leaves 1.
ERRORS = {4: 0.3, 5: 0.3}


# The largest product is only ever that of a row on the hull of the codebook, and two channels have few such rows.
NOT_LEARNING = ("gsq_float32", "gsq_bfloat16", "ibq_restart")


@pytest.mark.parametrize("name", [name for name in KINDS if name not in NOT_LEARNING])
def test_learns(name: str) -> None:
    q = build(name)
    error, use = train(q, 400 if name == "ibq" else 120)
    assert error < ERRORS.get(round(q.bits_per_token), 0.12)
    assert use.usage > 0.45 and use.effective_bits > q.bits_per_token / 2


@pytest.mark.parametrize("name", ["vq", "vq_ema", "rvq", "rvq_ema"])
def test_a_codebook_that_learns_beats_a_frozen_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = build(name).requires_grad_(False)
    monkeypatch.setattr(frozen, "update_codebook", frozen.discard_pending)
    assert train(build(name))[0] < train(frozen)[0] / 2


@pytest.mark.parametrize("name", KINDS)
def test_in_the_autoencoder(name: str) -> None:
    torch.manual_seed(0)
    config = tiny(**KINDS[name])
    model = Autoencoder(config)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    out = model(images)
    (F.mse_loss(out.images, images) + out.quantizer_loss).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.encoder.parameters())
    model.quantizer.update_codebook()
    model.eval()
    indices = model.encode(images)
    size = 32 // config.model.downsample
    assert indices.shape == (2, len(config.index_sizes), size, size)
    assert torch.equal(model.decode(indices), model(images).images)
