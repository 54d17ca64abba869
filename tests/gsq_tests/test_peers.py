"""Other people's tokenizers: their published layouts, with random weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import gsq.peers.checkpoints
from gsq import UserError
from gsq.peers import cosmos, magvit2, titok, vqgan

Shapes = dict[str, tuple[int, ...]]
SMALL: dict[str, dict[str, Any]] = {
    "llamagen": {"channels": 32, "codebook_size": 64},
    "ibq": {"channels": 32, "codebook_size": 64},
    "vqgan": {"channels": 32, "codebook_size": 64},
    "kl_vae": {"channels": 32},
    "open_magvit2": {"channels": 32},
    "titok": {"channels": 32, "model": "s128", "image_size": 32},
}
MAKERS: dict[str, Callable[..., Any]] = {
    **{name: getattr(vqgan, name) for name in ("llamagen", "ibq", "vqgan", "kl_vae")},
    "open_magvit2": magvit2.open_magvit2,
    "titok": titok.titok,
}


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        # What papers and repositories print: exactly, or in millions.
        ("kl_vae", {}, 83_653_863),
        ("llamagen", {}, 72e6),
        ("titok", {"model": "l32"}, 641e6),
        ("titok", {"model": "s128"}, 83.7e6),
    ],
)
def test_published_numbers_of_parameters(
    name: str, options: dict[str, Any], parameters: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (vqgan, magvit2, titok):
        monkeypatch.setattr(module, "filled", lambda peer, *more: peer)
    with torch.device("meta"):
        count = sum(p.numel() for p in MAKERS[name](**options).parameters())
    assert count == parameters if isinstance(parameters, int) else count == pytest.approx(parameters, rel=2e-3)


@pytest.mark.parametrize("name", MAKERS)
def test_images_to_codes_and_back(name: str) -> None:
    model = MAKERS[name](**SMALL[name])
    low, high = getattr(model, "range", (-1, 1))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * (high - low) + low
    with torch.no_grad():
        codes = model.encode(images)
        assert model.decode(codes).shape == images.shape and torch.equal(codes, model.encode(images))
    if name != "kl_vae":
        assert codes.dtype == torch.int64 and codes.min() >= 0 and codes.max() < model.codebook_size
    shapes = {"kl_vae": (2, 4, 4, 4), "titok": (2, 128)}
    assert tuple(codes.shape) == shapes.get(name, (2, 2, 2))
    assert model.weights == "random"
    again, other = MAKERS[name](**SMALL[name]), MAKERS[name](**SMALL[name], seed=1)
    same = [torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)]
    assert all(same) and any(not torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def residual(name: str, inputs: int, outputs: int, bias: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
    for i, width in ((1, inputs), (2, outputs)):
        yield from ((f"{name}.norm{i}.{kind}", (width,)) for kind in ("weight", "bias"))
        yield f"{name}.conv{i}.weight", (outputs, width, 3, 3)
        if bias:
            yield f"{name}.conv{i}.bias", (outputs,)
    if inputs != outputs:
        yield f"{name}.nin_shortcut.weight", (outputs, inputs, 1, 1)
        if bias:
            yield f"{name}.nin_shortcut.bias", (outputs,)


def layer(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def attention(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from ((f"{name}.norm.{kind}", (width,)) for kind in ("weight", "bias"))
    for one in ("q", "k", "v", "proj_out"):
        yield from layer(f"{name}.{one}", width, width, 1, 1)


def llamagen_layout(widths: tuple[int, ...], rows: int) -> Shapes:
    """The state dict of LlamaGen's VQ model, level by level as its decoder counts them."""
    top, last = widths[-1], len(widths) - 1
    found = [*layer("encoder.conv_in", widths[0], 3, 3, 3), *layer("decoder.conv_in", top, 256, 3, 3)]
    for side in ("encoder", "decoder"):
        found += [*residual(f"{side}.mid.0", top, top), *attention(f"{side}.mid.1", top)]
        found += residual(f"{side}.mid.2", top, top)
    width = widths[0]
    for i, outputs in enumerate(widths):
        for j in range(2):
            found += residual(f"encoder.conv_blocks.{i}.res.{j}", width, outputs)
            width = outputs
            found += attention(f"encoder.conv_blocks.{i}.attn.{j}", width) if i == last else ()
        found += layer(f"encoder.conv_blocks.{i}.downsample.conv", width, width, 3, 3) if i < last else ()
    for i, outputs in enumerate(reversed(widths)):
        for j in range(3):
            found += residual(f"decoder.conv_blocks.{i}.res.{j}", width, outputs)
            width = outputs
            found += attention(f"decoder.conv_blocks.{i}.attn.{j}", width) if i == 0 else ()
        found += layer(f"decoder.conv_blocks.{i}.upsample.conv", width, width, 3, 3) if i < last else ()
    found += [*layer("encoder.norm_out", top), *layer("encoder.conv_out", 256, top, 3, 3)]
    found += [*layer("decoder.norm_out", width), *layer("decoder.conv_out", 3, width, 3, 3)]
    found += [*layer("quant_conv", 8, 256, 1, 1), *layer("post_quant_conv", 256, 8, 1, 1)]
    return {**dict(found), "quantize.embedding.weight": (rows, 8), "quantize.codebook_used": (65536,)}


def magvit2_layout(widths: tuple[int, ...], blocks: int, bits: int) -> Shapes:
    top = widths[-1]
    found: list[tuple[str, tuple[int, ...]]] = [("encoder.conv_in.weight", (widths[0], 3, 3, 3))]
    found += layer("decoder.conv_in", top, bits, 3, 3)
    for i, outputs in enumerate(widths):
        for j in range(blocks):
            found += residual(f"encoder.down.{i}.block.{j}", outputs if j else widths[max(i - 1, 0)], outputs, False)
            above = widths[min(i + 1, len(widths) - 1)]
            found += residual(f"decoder.up.{i}.block.{j}", outputs if j else above, outputs, False)
        found += layer(f"encoder.down.{i}.downsample", outputs, outputs, 3, 3) if i < len(widths) - 1 else ()
        found += layer(f"decoder.up.{i}.upsample.conv1", 4 * outputs, outputs, 3, 3) if i else ()
        for part in ("gamma", "beta"):
            found += layer(f"decoder.adaptive.{i}.{part}", above, bits)
    for side in ("encoder", "decoder"):
        found += [one for j in range(blocks) for one in residual(f"{side}.mid_block.{j}", top, top, False)]
    found += [*layer("encoder.norm_out", top), *layer("encoder.conv_out", bits, top, 1, 1)]
    found += [*layer("decoder.norm_out", widths[0]), *layer("decoder.conv_out", 3, widths[0], 3, 3)]
    return dict(found)


def titok_layout(width: int, layers: int, tokens: int, grid: int, channels: int) -> Shapes:
    found: list[tuple[str, tuple[int, ...]]] = [("latent_tokens", (tokens, width))]
    for side in ("encoder", "decoder"):
        found += [(f"{side}.class_embedding", (1, width)), (f"{side}.positional_embedding", (grid**2 + 1, width))]
        found += [(f"{side}.latent_token_positional_embedding", (tokens, width))]
        found += [*layer(f"{side}.ln_pre", width), *layer(f"{side}.ln_post", width)]
        for i in range(layers):
            name = f"{side}.transformer.{i}"
            found += [(f"{name}.attn.in_proj_weight", (3 * width, width)), (f"{name}.attn.in_proj_bias", (3 * width,))]
            found += [*layer(f"{name}.attn.out_proj", width, width), *layer(f"{name}.mlp.c_fc", 4 * width, width)]
            found += [*layer(f"{name}.mlp.c_proj", width, 4 * width), *layer(f"{name}.ln_1", width)]
            found += layer(f"{name}.ln_2", width)
    found += [*layer("encoder.patch_embed", width, 3, 16, 16), *layer("encoder.conv_out", 12, width, 1, 1)]
    found += [*layer("decoder.decoder_embed", width, 12), ("decoder.mask_token", (1, 1, width))]
    found += [*layer("decoder.ffn.0", 2 * width, width, 1, 1), *layer("decoder.ffn.2", 1024, 2 * width, 1, 1)]
    found += [("quantize.embedding.weight", (4096, 12)), ("pixel_quantize.embedding.weight", (1024, 256))]
    widths = [channels * m for m in (1, 1, 2, 2, 4)]
    pixels = "pixel_decoder"
    found += layer(f"{pixels}.conv_in", widths[-1], 256, 3, 3)
    shortcut = re.compile(r"nin_shortcut\.weight")
    for i in range(2):
        found += residual(f"{pixels}.mid.{i}", widths[-1], widths[-1], False)
    for i, outputs in enumerate(widths):
        inputs = widths[min(i + 1, 4)]
        for j in range(2):
            block = list(residual(f"{pixels}.up.{i}.block.{j}", outputs if j else inputs, outputs, False))
            # MaskGIT's shortcut takes what the block made.
            found += [(n, (outputs, outputs, 1, 1) if shortcut.search(n) else s) for n, s in block]
        found += layer(f"{pixels}.up.{i}.upsample_conv", outputs, outputs, 3, 3) if i else ()
    found += [*layer(f"{pixels}.norm_out", widths[0]), *layer(f"{pixels}.conv_out", 3, widths[0], 3, 3)]
    return dict(found)


WIDTHS = (32, 32, 64, 64, 128)
LAYOUTS: dict[str, Callable[[], Shapes]] = {
    "llamagen": lambda: llamagen_layout(WIDTHS, 64),
    "open_magvit2": lambda: magvit2_layout(WIDTHS, 4, 18),
    "titok": lambda: titok_layout(512, 8, 128, 2, 32),
}


def published(name: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {n: torch.randn(shape, generator=generator) * 0.05 for n, shape in LAYOUTS[name]().items()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_checkpoint_in_the_published_layout_is_read_whole(name: str, tmp_path: Path) -> None:
    state = published(name)
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(state, path)
    model = MAKERS[name](str(path), **SMALL[name])
    ours = model.state_dict()
    assert len(ours) == len([n for n in state if "codebook_used" not in n])
    assert sorted(float(v.sum()) for v in ours.values()) == pytest.approx(
        sorted(float(v.sum()) for n, v in state.items() if "codebook_used" not in n), abs=1e-4
    )
    assert model.weights == "file model.safetensors"
    if name == "llamagen":
        # Its decoder's first level is that of the smallest map.
        assert torch.equal(ours["decoder.up.4.block.0.conv1.weight"], state["decoder.conv_blocks.0.res.0.conv1.weight"])
        assert torch.equal(ours["encoder.mid.attn_1.q.bias"], state["encoder.mid.1.q.bias"])


def test_a_trainers_file_gives_its_averaged_weights(tmp_path: Path) -> None:
    state = published("open_magvit2")
    averaged = {f"model_ema.{n.replace('.', '')}": value + 1 for n, value in state.items()}
    others = {"loss.logits_laplace.weight": torch.zeros(1), "model_ema.decay": torch.tensor(0.99)}
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {**state, **averaged, **others}, "epoch": 3}, path)
    model = magvit2.open_magvit2(str(path), channels=32)
    torch.testing.assert_close(model.encoder.conv_in.weight, state["encoder.conv_in.weight"] + 1)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_checkpoint_that_lacks_keys_is_one_error_that_names_them(name: str, tmp_path: Path) -> None:
    state = published(name)
    gone = next(n for n in state if n.startswith("decoder.") and n.endswith("bias"))
    del state[gone]
    path = tmp_path / "some.safetensors"
    safetensors.torch.save_file(state, path)
    with pytest.raises(UserError, match=r"some\.safetensors.*1 missing \(decoder\."):
        MAKERS[name](str(path), **SMALL[name])
    safetensors.torch.save_file({"other": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"none of its 1 entries.*other"):
        MAKERS[name](str(path), **SMALL[name])


def test_rows_are_those_of_each_look_up() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 5.0], [-1.0, -1.0]])
    latent = torch.tensor([[0.9, 0.3], [-0.2, -0.5]]).T[None, :, :, None]
    assert gsq.peers.checkpoints.nearest(latent, rows)[0, :, 0].tolist() == [0, 2]
    assert gsq.peers.checkpoints.nearest(latent, rows, inner=True)[0, :, 0].tolist() == [1, 2]


class _Encoder(nn.Module):
    """The interface of Cosmos' encoder.jit: indices, codes, and a loss."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes = nn.functional.avg_pool2d(x, 8).round()
        return (codes[:, 0] > 0).int() * 63999, codes, x.mean()


class _Decoder(nn.Module):
    def forward(self, indices: Tensor) -> Tensor:
        return nn.functional.interpolate(indices[:, None].float() / 32000 - 1, scale_factor=8.0).repeat(1, 3, 1, 1)


def test_cosmos_is_read_from_its_two_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no encoder\.jit"):
        cosmos.cosmos(str(tmp_path))
    for name, module in (("encoder", _Encoder()), ("decoder", _Decoder())):
        torch.jit.script(module).save(str(tmp_path / f"{name}.jit"))
    from gsq.evaluation.foreign import Convention, Foreign

    model = Foreign(cosmos.cosmos(str(tmp_path)), "cosmos", Convention())
    output = model(torch.rand(2, 3, 32, 32))
    assert output.images.shape == (2, 3, 32, 32) and output.indices.shape == (2, 1, 16)
    (tmp_path / "decoder.jit").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"decoder\.jit.*TorchScript"):
        cosmos.cosmos(str(tmp_path))
