"""The quantizer against equations 3 to 5, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_run import tiny
from torch import Tensor

from gsq.quantizers import GroupedSphericalQuantizer, build_quantizer
from gsq.quantizers.lookup import nearest_rows, nearest_rows_expanded


def quantizer(dim: int = 6, groups: int = 2, size: int = 16, **more: Any) -> GroupedSphericalQuantizer:
    torch.manual_seed(0)
    return GroupedSphericalQuantizer(dim, groups, size, **more)


def latent(dim: int = 6, batch: int = 2, height: int = 3, width: int = 5) -> Tensor:
    return torch.randn(batch, dim, height, width, generator=torch.Generator().manual_seed(1)) * 3


def vectors_of(z: Tensor, groups: int) -> Tensor:
    """(positions, G, d), by loops over the definition: group g has channels g d to (g + 1) d."""
    b, channels, h, w = z.shape
    d = channels // groups
    return torch.stack(
        [
            torch.stack([z[i, g * d : (g + 1) * d, y, x] for g in range(groups)])
            for i in range(b)
            for y in range(h)
            for x in range(w)
        ]
    )


NORMS = [{}, {"decoder_input": "raw"}, {"lookup_norm": "none"}, {"lookup_norm": "none", "decoder_input": "raw"}]


@pytest.mark.parametrize(("dim", "groups", "norm"), [(6, 1, "l2"), (6, 2, "l2"), (6, 3, "none"), (6, 6, "none")])
def test_shapes_and_dtypes(dim: int, groups: int, norm: str) -> None:
    q = quantizer(dim, groups, lookup_norm=norm)
    out = q(latent(dim))
    assert out.latent.shape == (2, dim, 3, 5) and out.latent.dtype == torch.float32
    assert out.indices.shape == (2, groups, 3, 5) and out.indices.dtype == torch.int64
    assert out.loss.shape == () and out.loss > 0
    assert q.codebook.shape == (16, dim // groups)
    assert q.bits_per_token == groups * 4
    assert [name for name, _ in q.named_parameters()] == ["codebook"]


def test_each_position_and_group_takes_its_nearest_row_of_the_shared_codebook() -> None:
    q, z = quantizer(), latent()
    out = q(z)
    rows = q.codebook.detach()
    vectors = F.normalize(vectors_of(z, 2).double(), dim=-1)
    wanted = torch.cdist(vectors, F.normalize(rows.double(), dim=1)).argmin(-1)
    assert torch.equal(out.indices.permute(0, 2, 3, 1).reshape(-1, 2), wanted)
    assert torch.equal(vectors_of(out.latent.detach(), 2), F.normalize(rows, dim=1)[wanted])


def test_groups_share_one_codebook() -> None:
    q = quantizer()
    same = latent(3).repeat(1, 2, 1, 1)
    indices = q(same).indices
    assert torch.equal(indices[:, 0], indices[:, 1])


@pytest.mark.parametrize("lookup_norm", ["l2", "none"])
def test_lookup_precision(lookup_norm: str) -> None:
    """The inexact look-ups are those of the expanded distance; many rows on a circle tell the three apart."""
    found = {}
    for precision in ("exact", "float32", "bfloat16"):
        q = quantizer(2, 1, 4096, lookup_norm=lookup_norm, lookup_precision=precision)
        found[precision] = q(latent(2)).indices.flatten()
    vectors = vectors_of(latent(2), 1)[:, 0]
    normalise = lookup_norm == "l2"
    rows = quantizer(2, 1, 4096).codebook.detach()
    assert torch.equal(found["exact"], nearest_rows(vectors, rows, normalise=normalise))
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        assert torch.equal(found[name], nearest_rows_expanded(vectors, rows, dtype, normalise=normalise))
    assert (found["exact"] != found["bfloat16"]).float().mean() > 0.5


def test_without_normalisation_lengths_count() -> None:
    q = quantizer(4, 1, 2, lookup_norm="none")
    q.codebook.data = torch.tensor([[1.0, 0, 0, 0], [9.0, 9, 0, 0]])
    z = torch.tensor([0.6, 0.6, 0, 0]).view(1, 4, 1, 1)
    assert q(z).indices.item() == 0
    q.lookup_norm = "l2"
    assert q(z).indices.item() == 1


@pytest.mark.parametrize("more", NORMS)
def test_decoding_indices_gives_the_latent_bit_for_bit(more: dict[str, Any]) -> None:
    q = quantizer(**more)
    q.codebook.data *= 1.7
    out = q(latent())
    assert torch.equal(q.decode_indices(out.indices), out.latent)
    raw = F.embedding(out.indices[:, 1, 0, 0], q.codebook)
    is_raw = more.get("decoder_input") == "raw" or more.get("lookup_norm") == "none"
    assert torch.equal(out.latent[:, 3:, 0, 0], raw if is_raw else F.normalize(raw, dim=1))


@pytest.mark.parametrize("more", NORMS)
def test_straight_through_gradient(more: dict[str, Any]) -> None:
    """The gradient reaches the normalised latent unchanged, and the codebook not at all."""
    q, z = quantizer(**more), latent().requires_grad_()
    weight = torch.randn(2, 6, 3, 5)
    (found,) = torch.autograd.grad((q(z).latent * weight).sum(), z)
    normalised = z if more.get("lookup_norm") == "none" else F.normalize(z.unflatten(1, (2, 3)), dim=2).flatten(1, 2)
    (wanted,) = torch.autograd.grad((normalised * weight).sum(), z)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
    (q(z).latent * weight).sum().backward()
    assert q.codebook.grad is None


@pytest.mark.parametrize("loss_row", ["normalised", "raw"])
@pytest.mark.parametrize("lookup_norm", ["l2", "none"])
def test_loss_by_hand(loss_row: str, lookup_norm: str) -> None:
    """(1 + 0.25) times the mean square over batch, positions, groups and channels; each half to its own side."""
    q, z = quantizer(loss_row=loss_row, lookup_norm=lookup_norm), latent().requires_grad_()
    q.codebook.data *= 1.7
    out = q(z)
    l2 = lookup_norm == "l2"
    vectors = vectors_of(z, 2)
    vectors = F.normalize(vectors, dim=-1) if l2 else vectors
    rows = q.codebook if loss_row == "raw" or not l2 else F.normalize(q.codebook, dim=1)
    chosen = rows[out.indices.permute(0, 2, 3, 1).reshape(-1, 2)]
    square = ((vectors - chosen) ** 2).mean()
    torch.testing.assert_close(out.loss, 1.25 * square)
    out.loss.backward()
    to_latent, to_codebook = torch.autograd.grad(square, [z, q.codebook])
    assert z.grad is not None and q.codebook.grad is not None
    torch.testing.assert_close(z.grad, 0.25 * to_latent)
    torch.testing.assert_close(q.codebook.grad, to_codebook)


def test_commitment_weight() -> None:
    plain, heavy = quantizer()(latent()).loss, quantizer(commitment_weight=3.0)(latent()).loss
    torch.testing.assert_close(heavy / plain, torch.tensor(4 / 1.25))


def test_loss_does_not_grow_with_groups() -> None:
    """A mean, not a sum: the same vectors in twice as many groups give the same loss."""
    q2, q4 = quantizer(6, 2), quantizer(12, 4)
    q4.codebook.data = q2.codebook.data.clone()
    torch.testing.assert_close(q4(latent().repeat(1, 2, 1, 1)).loss, q2(latent()).loss)


@pytest.mark.parametrize("dim", [2, 3, 16])
def test_rows_start_on_the_sphere(dim: int) -> None:
    rows = quantizer(dim, 1, 4000).codebook.detach()
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4000))
    # Uniform on the sphere: mean 0 and covariance 1/d in every direction.
    assert rows.mean(0).abs().max() < 0.06
    assert (rows.T @ rows / 4000 - torch.eye(dim) / dim).abs().max() < 0.03


def test_rows_start_in_the_interval_at_one_dimension() -> None:
    rows = quantizer(2, 2, 4000, lookup_norm="none").codebook.detach()[:, 0]
    assert rows.min() > -1 and rows.max() < 1
    quantiles = torch.quantile(rows, torch.linspace(0.1, 0.9, 9))
    assert (quantiles - torch.linspace(-0.8, 0.8, 9)).abs().max() < 0.05


def test_uniform_start() -> None:
    rows = quantizer(4, 1, 100, init="uniform").codebook.detach()
    assert 0.009 < rows.abs().max() <= 0.01


def test_autocast_keeps_float32() -> None:
    q, z = quantizer(), latent()
    plain = q(z)
    with torch.autocast("cpu", torch.bfloat16):
        out = q(z)
        decoded = q.decode_indices(out.indices)
    assert out.latent.dtype == out.loss.dtype == decoded.dtype == torch.float32
    assert torch.equal(out.indices, plain.indices) and torch.equal(out.latent, plain.latent)
    assert torch.equal(decoded, plain.latent)
    assert q(z.bfloat16()).latent.dtype == torch.float32


def test_training_mode_and_repetition_change_nothing() -> None:
    q, z = quantizer(), latent()
    first, second, third = q(z), q(z), q.eval()(z)
    for again in (second, third):
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("shape", [(2, 5, 3, 3), (2, 6, 3), (6, 3, 3)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, 6, h, w\)"):
        quantizer()(torch.zeros(shape))


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="groups must divide latent_dim"):
        quantizer(6, 4)


def test_a_zero_vector_gives_no_nan() -> None:
    z = torch.zeros(1, 6, 1, 1, requires_grad=True)
    out = quantizer()(z)
    (out.latent.sum() + out.loss).backward()
    assert z.grad is not None and z.grad.isfinite().all() and out.loss.isfinite()


def test_built_from_the_config() -> None:
    config = tiny(
        latent_dim=8,
        groups=8,
        codebook_size=64,
        quantizer__decoder_input="raw",
        quantizer__loss_row="raw",
        quantizer__commitment_weight=0.5,
        quantizer__lookup_precision="float32",
    )
    q = build_quantizer(config)
    assert isinstance(q, GroupedSphericalQuantizer)
    assert (q.latent_dim, q.groups, q.codebook_size, q.lookup_norm) == (8, 8, 64, "none")
    assert (q.decoder_input, q.loss_row, q.commitment_weight) == ("raw", "raw", 0.5)
    assert q.lookup_precision == "float32"
    plain = build_quantizer(tiny(quantizer__codebook_update="ema", quantizer__codebook_decay=0.9))
    assert isinstance(plain, GroupedSphericalQuantizer) and plain.average is not None
    assert plain.lookup_norm == "l2" and plain.average.decay == 0.9


@pytest.mark.parametrize("norm", ["l2", "none"])
def test_the_entropy_loss_by_its_definition(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The case has 30 positions and 2 groups; some rows at a time give the same loss and gradients as all at once."""
    z, found = latent(), []
    for values in (1 << 24, 16 * 7):
        monkeypatch.setattr("gsq.quantizers.spherical.ENTROPY_VALUES", values)
        plain, with_entropy = (quantizer(lookup_norm=norm, entropy_weight=weight) for weight in (0.0, 0.3))
        given = (z / 10).clone().requires_grad_()
        extra = with_entropy(given).loss - plain(given).loss
        found.append((extra, *torch.autograd.grad(extra, [given, with_entropy.codebook])))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    vectors, rows = vectors_of(z / 10, 2).double().flatten(0, 1), plain.codebook.detach().double()
    if norm == "l2":
        vectors, rows = F.normalize(vectors, dim=1), F.normalize(rows, dim=1)
    p = torch.softmax(-(torch.cdist(vectors, rows) ** 2) / 0.01, 1)
    entropies = (
        torch.distributions.Categorical(p).entropy().mean(),
        torch.distributions.Categorical(p.mean(0)).entropy(),
    )
    assert found[0][0].item() == pytest.approx(0.3 * float(entropies[0] - entropies[1]), rel=1e-4)
    with_entropy.eval()
    assert with_entropy(z).loss == plain(z).loss


def test_gradients_reach_the_encoder_as_in_the_committed_runs() -> None:
    """The loss comes first, then what the decoder gets. Gradients that meet in another order lie differently in memory,
    so that convolutions add up in another order, and last digits of trained runs differ."""
    q = quantizer(dim=16, groups=1, size=1024)
    encoder, decoder = torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.Conv2d(16, 16, 3, padding=1)
    images = latent(16, 8, 16, 16)

    def gradients(loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, [*encoder.parameters(), q.codebook]))

    found = q(encoder(images))
    by_module = gradients(decoder(found.latent).square().mean() + found.loss)
    vectors = F.normalize(encoder(images).unflatten(1, (1, -1)).permute(0, 3, 4, 1, 2), dim=-1)
    target = F.embedding(found.indices.permute(0, 2, 3, 1), F.normalize(q.codebook, dim=-1))
    loss = F.mse_loss(target, vectors.detach()) + q.commitment_weight * F.mse_loss(vectors, target.detach())
    received = target.detach() + (vectors - vectors.detach())
    received = received.permute(0, 3, 4, 1, 2).flatten(1, 2).contiguous()
    by_hand = gradients(decoder(received).square().mean() + loss)
    assert all(torch.equal(mine, other) for mine, other in zip(by_module, by_hand, strict=True))
