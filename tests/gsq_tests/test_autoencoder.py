"""Shapes, order of channels, and the arithmetic of gsq.config.flops against the modules that it counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_run import tiny
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gsq import Autoencoder, RunConfig
from gsq.config import flops as counted
from gsq.models.autoencoder import DepthToSpaceUpsample
from gsq.models.discriminators import PatchDiscriminator, build_discriminator


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def images(config: RunConfig, batch: int = 1) -> torch.Tensor:
    size = config.data.image_size
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("f", [2, 4, 8, 16, 32])
def test_shapes(f: int) -> None:
    config = tiny(downsample=f, data__image_size=64)
    model = Autoencoder(config)
    output = model(images(config, 2))
    assert output.images.shape == (2, 3, 64, 64)
    assert output.indices.shape == (2, 2, 64 // f, 64 // f)
    assert output.quantizer_loss.shape == ()
    assert model.encoder(images(config)).shape == (1, 4, 64 // f, 64 // f)


def test_images_need_not_be_square() -> None:
    output = Autoencoder(tiny())(torch.zeros(1, 3, 32, 48))
    assert output.images.shape == (1, 3, 32, 48) and output.indices.shape == (1, 2, 8, 12)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"model__attention": True, "model__blocks": 3},
    {"model__upsample": "depth_to_space"},
    {"model__adaptive_norm": False},
    {"model__channel_multipliers": (1, 3, 2), "model__encoder_blocks": (1, 2, 3, 2), "model__blocks": 2},
    {"downsample": 8, "model__attention": True, "model__upsample": "depth_to_space", "model__decoder_blocks": (1,) * 5},
    {"downsample": 16, "model__adaptive_norm": False, "model__upsample": "depth_to_space"},
    {"downsample": 2, "latent_dim": 8},
]


# Every quantizer's parameters and look-up.
QUANTIZERS: list[dict[str, Any]] = [
    {"groups": 4},
    {"quantizer": "vq", "groups": 1},
    {"quantizer": "rvq", "groups": 1, "quantizer__depth": 3},
    {"quantizer": "fsq", "groups": 4, "codebook_size": 5},
    {"quantizer": "fsq", "groups": 4, "codebook_size": 8, "quantizer__levels": (8, 6, 5, 5)},
    {"quantizer": "lfq", "groups": 4, "codebook_size": 2},
    {"quantizer": "bsq", "groups": 4, "codebook_size": 2},
]


@pytest.mark.parametrize("changes", [*VARIANTS, *QUANTIZERS])
def test_flops_counts_the_modules(changes: dict[str, Any]) -> None:
    config = tiny(**changes)
    model, size = Autoencoder(config), config.data.image_size
    encoder, decoder = counted.encoder(config.model, size), counted.decoder(config.model, size)
    assert encoder.parameters == parameters(model.encoder)
    assert decoder.parameters == parameters(model.decoder)
    assert counted.cost(config).parameters == parameters(model)
    # Norms and activations are left out on both sides: the counter sees convolutions and matrix products.
    with FlopCounterMode(display=False) as counter:
        latent = model.encoder(images(config))
    assert counter.get_total_flops() == 2 * encoder.macs
    with FlopCounterMode(display=False) as counter:
        model.decoder(latent)
    assert counter.get_total_flops() == 2 * decoder.macs


# Four layers leave no output at 32 pixels: the config refuses them.
@pytest.mark.parametrize(("layers", "size"), [(1, 32), (2, 32), (3, 32), (1, 64), (2, 64), (3, 64), (4, 64)])
def test_flops_counts_the_discriminator(layers: int, size: int) -> None:
    config = tiny(discriminator__layers=layers, data__image_size=size)
    model, count = PatchDiscriminator(config.discriminator), counted.discriminator(config)
    assert count.parameters == parameters(model)
    with FlopCounterMode(display=False) as counter:
        logits = model(images(config))
    assert counter.get_total_flops() == 2 * count.macs
    assert logits.shape[:2] == (1, 1) and logits.numel() > 0


@pytest.mark.parametrize(("layers", "size"), [(2, 12), (3, 24)])
def test_smallest_images_of_the_discriminator(layers: int, size: int) -> None:
    config = tiny(discriminator__layers=layers, data__image_size=size, downsample=4)
    assert PatchDiscriminator(config.discriminator)(images(config)).numel() == 1


def test_no_discriminator() -> None:
    config = tiny(discriminator__kind="none")
    assert build_discriminator(config.discriminator, 32) is None
    assert counted.discriminator(config).parameters == 0


def test_cost_of_a_run_is_linear_in_its_length() -> None:
    one, two = counted.cost(tiny(steps=10)), counted.cost(tiny(steps=20))
    assert two.train_flops == 2 * one.train_flops and two.images == 2 * one.images == 40
    late = counted.cost(tiny(steps=10, loss__discriminator_start=10))
    assert late.discriminator_flops == 0 and late.generator_flops == one.generator_flops
    # 8 x 8 positions, 2 groups, 32 rows of 2: two FLOPs a multiply-add.
    assert one.lookup_flops == 2 * 20 * 64 * 2 * 32 * 2
    assert counted.cost(tiny(groups=4)).lookup_flops == 0


@pytest.mark.parametrize("changes", QUANTIZERS)
def test_lookup_flops_by_quantizer(changes: dict[str, Any]) -> None:
    """Two FLOPs for each entry of each codebook that a position is compared with; rounding is free."""
    config = tiny(steps=10, **changes)
    quantizer = Autoencoder(config).quantizer
    entries = sum(p.numel() for p in quantizer.parameters())
    searches = 1 if config.group_dim > 1 else 0
    wanted = 2 * 10 * 2 * 64 * config.quantizer.groups * entries * searches
    assert counted.cost(config).lookup_flops == wanted
    assert (wanted > 0) == (config.quantizer.kind in ("vq", "rvq"))


def test_depth_to_space_has_the_block_index_outermost() -> None:
    """DCR: channel (2 i + j) C + c goes to channel c at row 2 y + i, column 2 x + j (PixelShuffle: 4 c + 2 i + j)."""
    layer = DepthToSpaceUpsample(2)
    # A convolution that writes its output channel's number everywhere.
    nn.init.zeros_(layer.conv.weight)
    assert layer.conv.bias is not None
    layer.conv.bias.data = torch.arange(8.0)
    out = layer(torch.zeros(1, 2, 1, 2))
    assert out.tolist() == [[[[0, 2, 0, 2], [4, 6, 4, 6]], [[1, 3, 1, 3], [5, 7, 5, 7]]]]


def test_depth_to_space_keeps_positions_apart() -> None:
    layer = DepthToSpaceUpsample(1)
    nn.init.zeros_(layer.conv.weight)
    assert layer.conv.bias is not None
    nn.init.zeros_(layer.conv.bias)
    layer.conv.weight.data[:, 0, 1, 1] = torch.tensor([1.0, 2, 3, 4])
    out = layer(torch.tensor([[[[1.0, 10], [100, 1000]]]]))
    assert out[0, 0].tolist() == [[1, 2, 10, 20], [3, 4, 30, 40], [100, 200, 1000, 2000], [300, 400, 3000, 4000]]


@pytest.mark.parametrize("decoder_input", ["normalised", "raw"])
@pytest.mark.parametrize("changes", VARIANTS[:3])
def test_encode_and_decode_are_the_forward_pass(changes: dict[str, Any], decoder_input: str) -> None:
    config = tiny(**changes, quantizer__decoder_input=decoder_input)
    model = Autoencoder(config).eval()
    output = model(images(config, 2))
    indices = model.encode(images(config, 2))
    assert torch.equal(indices, output.indices)
    assert torch.equal(model.decode(indices), output.images)
    assert not model.decode(indices).requires_grad


def test_adaptive_norm_starts_near_a_plain_norm_and_depends_on_the_latent() -> None:
    config = tiny()
    model = Autoencoder(config)
    names = [n for n, _ in model.decoder.named_parameters() if n.endswith("scale.weight")]
    assert len(names) == 3  # after the middle and after each of two upsamplings
    adaptive = next(m for m in model.decoder.modules() if type(m).__name__ == "AdaptiveGroupNorm")
    x = torch.randn(2, 16, 8, 8)
    flat = adaptive(x, torch.zeros(2, 4, 8, 8))
    other = adaptive(x, torch.randn(2, 4, 8, 8) * 3)
    assert not torch.allclose(flat, other)
    plain = nn.functional.group_norm(x, 4, eps=1e-6)
    difference = flat - plain * adaptive.scale.bias[:, None, None] - adaptive.shift.bias[:, None, None]
    assert difference.abs().max() < 0.02


def test_adaptive_norm_of_a_single_position() -> None:
    """An unbiased variance of one value is not a number; it has none."""
    output = Autoencoder(tiny(downsample=8))(torch.zeros(1, 3, 8, 8))
    output.images.sum().backward()
    assert output.images.isfinite().all()


def test_every_parameter_gets_a_gradient() -> None:
    config = tiny(model__attention=True, model__blocks=2)
    model = Autoencoder(config)
    output = model(images(config))
    (output.images.square().mean() + output.quantizer_loss).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
