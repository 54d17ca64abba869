"""Quantizers against the published implementations (fixtures/quantizers.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quantizer_kinds import close, set_rows
from torch import Tensor

from gsq.quantizers import (
    BinarySphericalQuantizer,
    FiniteScalarQuantizer,
    GroupedSphericalQuantizer,
    LookupFreeQuantizer,
    Quantizer,
    ResidualQuantizer,
)


@pytest.fixture(scope="module")
def published() -> Callable[[str], dict[str, Tensor]]:
    stored = np.load(Path(__file__).parent / "fixtures" / "quantizers.npz")

    def case(name: str) -> dict[str, Tensor]:
        found = {key.split("/")[1]: torch.from_numpy(stored[key]) for key in stored if key.split("/")[0] == name}
        assert found, name
        return {key: value.long() if value.dtype == torch.int16 else value for key, value in found.items()}

    return case


Published = Callable[[str], dict[str, Tensor]]


def gradients(q: Quantizer, z: Tensor, weight: Tensor) -> tuple[Any, Tensor, tuple[Tensor, ...]]:
    """Output, gradient of the weighted latent to the input, gradients of the loss to input and parameters."""
    z = z.clone().requires_grad_()
    out = q(z)
    (straight,) = torch.autograd.grad((out.latent * weight).sum(), z, retain_graph=True)
    return out, straight, torch.autograd.grad(out.loss, [z, *q.parameters()])


def test_vq_with_a_learned_codebook(published: Published) -> None:
    """The reference has one mean square for both sides, weight 1: half of ours at commitment weight 1."""
    want = published("vq")
    q = GroupedSphericalQuantizer(4, 1, 16, lookup_norm="none", commitment_weight=1.0)
    set_rows(q, want["codebook"])
    out, straight, (to_latent, to_codebook) = gradients(q, want["input"], want["weight"])
    assert torch.equal(out.indices, want["indices"])
    close(out.latent, want["latent"])
    close(out.loss, 2 * want["loss"])
    close(straight, want["latent_gradient"])
    close(to_latent, want["loss_gradient"])
    close(to_codebook, want["codebook_gradient"])


@pytest.mark.parametrize(
    ("name", "groups", "norm"), [("vq_ema", 1, "none"), ("cosine_ema", 1, "l2"), ("grouped_ema", 3, "l2")]
)
def test_codebooks_that_follow_their_latents(published: Published, name: str, groups: int, norm: str) -> None:
    """Four updates of VQ, of the cosine-similarity codebook, and of three heads that share one."""
    want = published(name)
    dim = want["input"].shape[2]
    q = GroupedSphericalQuantizer(
        dim, groups, 16, lookup_norm=norm, codebook_update="ema", codebook_decay=0.8, commitment_weight=0.25
    )
    set_rows(q, want["codebook"])
    for step in range(4):
        out, straight, (to_latent,) = gradients(q, want["input"][step], want["weight"])
        q.update_codebook()
        assert torch.equal(out.indices, want["indices"][step])
        close(out.latent, want["latent"][step])
        close(out.loss, want["loss"][step])
        close(straight, want["latent_gradient"][step])
        close(to_latent, want["loss_gradient"][step])
        close(q.codebook, want["codebooks"][step])
    assert q.average is not None
    close(q.average.counts, want["counts"])
    close(q.average.sums, want["sums"])


def test_residual_with_learned_codebooks(published: Published) -> None:
    want = published("rvq")
    q = ResidualQuantizer(4, 3, 8, commitment_weight=1.0)
    set_rows(q, want["codebook"])
    z = want["input"][0]
    out, straight, (to_latent, to_codebook) = gradients(q, z, torch.ones_like(z))
    assert torch.equal(out.indices, want["indices"][0])
    close(out.latent, want["latent"][0])
    close(out.loss, 2 * want["loss"][0].mean())
    close(to_latent, want["loss_gradient"][0])
    close(to_codebook, want["codebook_gradient"][0])
    # Once, whatever the depth.
    assert torch.equal(straight, torch.ones_like(z))


def test_residual_codebooks_that_follow_their_latents(published: Published) -> None:
    want = published("rvq_ema")
    q = ResidualQuantizer(4, 3, 8, codebook_update="ema", codebook_decay=0.8)
    set_rows(q, want["codebook"])
    for step, z in enumerate(want["input"]):
        out, _, (to_latent,) = gradients(q, z, torch.ones_like(z))
        q.update_codebook()
        assert torch.equal(out.indices, want["indices"][step])
        close(out.latent, want["latent"][step])
        close(out.loss, want["loss"][step].mean())
        close(to_latent, want["loss_gradient"][step])
        close(q.codebook, want["codebooks"][step])


@pytest.mark.parametrize("name", ["fsq", "fsq_large"])
def test_finite_scalar(published: Published, name: str) -> None:
    want = published(name)
    q = FiniteScalarQuantizer(tuple(want["levels"].tolist()))
    z = want["input"].requires_grad_()
    out = q(z)
    assert torch.equal(out.indices, want["indices"])
    close(out.latent, want["latent"])
    assert out.loss == 0
    (straight,) = torch.autograd.grad((out.latent * want["weight"]).sum(), z)
    close(straight, want["latent_gradient"])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lfq", LookupFreeQuantizer),
        ("lfq_soft", LookupFreeQuantizer),
        ("lfq_factorised_soft", LookupFreeQuantizer),
        ("bsq", BinarySphericalQuantizer),
        ("bsq_one_soft", LookupFreeQuantizer),
    ],
)
def test_signs(published: Published, name: str, kind: type[LookupFreeQuantizer]) -> None:
    want = published(name)
    dim = want["input"].shape[1]
    q = kind(dim, commitment_weight=1.0)
    out, straight, (to_latent,) = gradients(q, want["input"], want["weight"])
    assert torch.equal(out.indices, want["indices"])
    close(out.latent, want["latent"])
    close(straight, want["latent_gradient"])
    close(out.loss, want["commitment"])
    close(to_latent, want["commitment_gradient"])


def entropies(q: LookupFreeQuantizer, z: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy of an index and of the mean, by brute force over the 2^D codes' marginals, in float64."""
    u = q._projected(z.double()).permute(0, 2, 3, 1).flatten(0, 2)
    p = torch.sigmoid(400 * q.scale * u)

    def binary(share: Tensor) -> Tensor:
        return -(torch.special.xlogy(share, share) + torch.special.xlogy(1 - share, 1 - share)).sum(-1)

    return binary(p).mean(), binary(p.mean(0))


@pytest.mark.parametrize("name", ["lfq_factorised_soft", "bsq_one_soft"])
def test_entropy_term_is_the_reference_where_codebooks_have_one_bit(published: Published, name: str) -> None:
    """With D codebooks of two codes the reference averages over codebooks where we sum over channels."""
    want = published(name)
    dim = want["input"].shape[1]
    q = LookupFreeQuantizer(dim, commitment_weight=0.25, entropy_weight=0.1 / dim)
    out, _, (to_latent,) = gradients(q, want["input"], want["weight"])
    close(out.loss, want["loss"])
    close(to_latent, want["loss_gradient"])


@pytest.mark.parametrize("kind", [LookupFreeQuantizer, BinarySphericalQuantizer])
def test_the_entropy_term_is_of_training_alone(kind: type[LookupFreeQuantizer]) -> None:
    latent = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    plain, with_entropy = (kind(4, entropy_weight=weight) for weight in (0.0, 0.3))
    assert with_entropy(latent).loss != plain(latent).loss
    assert with_entropy.eval()(latent).loss == plain.eval()(latent).loss


@pytest.mark.parametrize(
    ("name", "kind"),
    [("lfq", LookupFreeQuantizer), ("lfq_soft", LookupFreeQuantizer), ("bsq", BinarySphericalQuantizer)],
)
def test_entropy_of_an_index_is_that_over_all_codes(
    published: Published, name: str, kind: type[LookupFreeQuantizer]
) -> None:
    """The reference's softmax over 2^5 codes factors, so the entropy is the same (it drops a little below
    probability 1e-5); the entropy of its mean is at most the sum over channels."""
    want = published(name)
    of_each, of_mean = entropies(kind(5), want["input"])
    assert float(of_each) == pytest.approx(float(want["per_sample_entropy"]), rel=2e-3, abs=1e-3)
    assert float(of_mean) >= float(want["batch_entropy"]) - 1e-3
    q = kind(5, commitment_weight=0.0, entropy_weight=1.0)
    assert float(q(want["input"]).loss.detach()) == pytest.approx(float(of_each - of_mean), abs=2e-3)


def test_binary_spherical_as_published(published: Published) -> None:
    """Signs, values and the entropy term with gradient, for groups of one channel."""
    want = published("bsq_published")
    q = BinarySphericalQuantizer(6, commitment_weight=0.0, entropy_weight=1.0)
    out, _, (to_latent,) = gradients(q, want["input"], torch.ones_like(want["input"]))
    assert torch.equal(out.indices, want["indices"])
    close(out.latent, want["latent"])
    assert out.loss.item() == pytest.approx(float(want["per_sample_entropy"] - want["batch_entropy"]), abs=1e-4)
    close(to_latent, want["entropy_gradient"], 2e-3)


@pytest.mark.parametrize(
    ("name", "groups", "norm"), [("authors_l2", 2, "l2"), ("authors_l1", 2, "l1"), ("authors_none", 3, "none")]
)
def test_grouped_spherical_as_its_authors_code(published: Published, name: str, groups: int, norm: str) -> None:
    """decoder_input and loss_row raw."""
    want = published(name)
    q = GroupedSphericalQuantizer(6, groups, 16, lookup_norm=norm, decoder_input="raw", loss_row="raw")
    set_rows(q, want["codebook"])
    out, straight, (to_latent, to_codebook) = gradients(q, want["input"], want["weight"])
    assert torch.equal(out.indices, want["indices"])
    close(out.latent, want["latent"])
    close(out.loss, want["loss"])
    close(straight, want["latent_gradient"])
    close(to_latent, want["loss_gradient"])
    close(to_codebook, want["codebook_gradient"])


@pytest.mark.parametrize("name", ["authors_clip", "authors_clip_outside"])
def test_clip_as_its_authors_code_inside_the_interval(published: Published, name: str) -> None:
    """Outside it the authors' latents have no gradient; ours are pulled back."""
    want = published(name)
    q = GroupedSphericalQuantizer(3, 3, 16, lookup_norm="clip", decoder_input="raw", loss_row="raw")
    set_rows(q, want["codebook"])
    z = want["input"]
    out, straight, (to_latent, to_codebook) = gradients(q, z, want["weight"])
    assert torch.equal(out.indices, want["indices"])
    close(out.latent, want["latent"])
    close(to_codebook, want["codebook_gradient"])
    outside = z.abs() > 1
    assert outside.any() == (name == "authors_clip_outside")
    close(straight[~outside], want["latent_gradient"][~outside])
    close(to_latent[~outside], want["loss_gradient"][~outside])
    assert not want["loss_gradient"][outside].any()
    # A step against the gradient leads back, and the decoder's gradient arrives.
    assert (to_latent[outside].sign() == z[outside].sign()).all()
    assert torch.equal(straight[outside], want["weight"][outside])
    if not outside.any():
        close(out.loss, want["loss"])
