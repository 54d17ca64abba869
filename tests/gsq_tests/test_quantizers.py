"""Every kind of quantizer: against the published implementations (fixtures/quantizers.md), and what all must keep."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import tiny
from torch import Tensor, nn

from gsq import Autoencoder, UserError
from gsq.metrics.codebook import CodebookUse, IndexHistogram
from gsq.quantizers import (
    BinarySphericalQuantizer,
    FiniteScalarQuantizer,
    GroupedSphericalQuantizer,
    LookupFreeQuantizer,
    NonFiniteLatent,
    Quantizer,
    ResidualQuantizer,
    build_quantizer,
)

# Overrides of the tiny run (D = 4, G = 2, V = 32), by name of the case.
KINDS: dict[str, dict[str, Any]] = {
    "gsq": {},
    "gsq_one_dimension": {"groups": 4},
    "gsq_raw": {"quantizer.decoder_input": "raw", "quantizer.loss_row": "raw"},
    "gsq_l1": {"quantizer.lookup_norm": "l1"},
    "gsq_none": {"quantizer.lookup_norm": "none", "quantizer.init": "uniform"},
    "gsq_clip": {"quantizer.lookup_norm": "clip"},
    "gsq_clip_raw": {"groups": 4, "quantizer.lookup_norm": "clip", "quantizer.decoder_input": "raw"},
    "gsq_float32": {"quantizer.lookup_precision": "float32"},
    "gsq_bfloat16": {"quantizer.lookup_precision": "bfloat16"},
    "gsq_ema": {"quantizer.codebook_update": "ema"},
    "gsq_clip_ema": {"quantizer.codebook_update": "ema", "quantizer.lookup_norm": "clip"},
    "vq": {"quantizer.kind": "vq", "groups": 1},
    "vq_ema": {"quantizer.kind": "vq", "groups": 1, "quantizer.codebook_update": "ema"},
    "rvq": {"quantizer.kind": "rvq", "groups": 1, "quantizer.depth": 3, "codebook_size": 8},
    "rvq_ema": {
        "quantizer.kind": "rvq",
        "groups": 1,
        "quantizer.depth": 3,
        "codebook_size": 8,
        "quantizer.codebook_update": "ema",
    },
    "fsq": {"quantizer.kind": "fsq", "groups": 4, "codebook_size": 7},
    "fsq_levels": {"quantizer.kind": "fsq", "groups": 4, "codebook_size": 8, "quantizer.levels": (8, 5, 3, 6)},
    "lfq": {"quantizer.kind": "lfq", "groups": 4, "codebook_size": 2},
    "lfq_entropy": {"quantizer.kind": "lfq", "groups": 4, "codebook_size": 2, "quantizer.entropy_weight": 0.1},
    "bsq": {"quantizer.kind": "bsq", "groups": 4, "codebook_size": 2},
    "bsq_entropy": {"quantizer.kind": "bsq", "groups": 4, "codebook_size": 2, "quantizer.entropy_weight": 0.1},
}
EMA = [name for name in KINDS if name.endswith("ema")]


def build(name: str, **changes: Any) -> Quantizer:
    torch.manual_seed(0)
    return build_quantizer(tiny(**KINDS[name], **changes))


def latent(seed: int = 1, batch: int = 2, scale: float = 1.0) -> Tensor:
    return torch.randn(batch, 4, 3, 5, generator=torch.Generator().manual_seed(seed)) * scale


# Against the published implementations.


@pytest.fixture(scope="module")
def published() -> Callable[[str], dict[str, Tensor]]:
    stored = np.load(Path(__file__).parent / "fixtures" / "quantizers.npz")

    def case(name: str) -> dict[str, Tensor]:
        found = {key.split("/")[1]: torch.from_numpy(stored[key]) for key in stored if key.split("/")[0] == name}
        assert found, name
        return {key: value.long() if value.dtype == torch.int16 else value for key, value in found.items()}

    return case


Published = Callable[[str], dict[str, Tensor]]


def set_rows(q: Any, rows: Tensor) -> None:
    with torch.no_grad():
        q.codebook.copy_(rows)
        if q.average is not None:
            q.average.sums.copy_(rows)


def gradients(q: Quantizer, z: Tensor, weight: Tensor) -> tuple[Any, Tensor, tuple[Tensor, ...]]:
    """Output, gradient of the weighted latent to the input, gradients of the loss to input and parameters."""
    z = z.clone().requires_grad_()
    out = q(z)
    (straight,) = torch.autograd.grad((out.latent * weight).sum(), z, retain_graph=True)
    return out, straight, torch.autograd.grad(out.loss, [z, *q.parameters()])


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


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


# What every kind must keep.


@pytest.mark.parametrize("name", KINDS)
def test_agrees_with_the_config(name: str) -> None:
    config = tiny(**KINDS[name])
    q = build_quantizer(config)
    assert q.index_sizes == config.index_sizes and q.latent_dim == 4 and q.groups == config.quantizer.groups
    assert q.bits_per_token == config.bits_per_token and q.codebook_size == config.quantizer.codebook_size
    assert q.shared_codebook == (config.quantizer.kind in ("gsq", "vq"))
    codebook = getattr(q, "codebook", torch.zeros(0))
    assert codebook.numel() == config.codebook_parameters
    learned = 0 if name in EMA else codebook.numel()
    assert sum(p.numel() for p in q.parameters()) == learned


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 2**16),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    log_scale=st.floats(-6, 6),
    training=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_indices_are_in_range_and_decode_to_the_latent(
    name: str,
    seed: int,
    shape: tuple[int, int, int],
    log_scale: float,
    training: bool,
    dtype: torch.dtype,
) -> None:
    q = build(name).train(training)
    b, h, w = shape
    z = (torch.randn(b, 4, h, w, generator=torch.Generator().manual_seed(seed)) * math.exp(log_scale)).to(dtype)
    out = q(z)
    assert out.latent.shape == (b, 4, h, w) and out.latent.dtype == torch.float32 and out.latent.is_contiguous()
    assert out.indices.shape == (b, len(q.index_sizes), h, w) and out.indices.dtype == torch.int64
    assert out.loss.shape == () and out.loss.dtype == torch.float32 and out.loss.isfinite()
    for values, size in zip(out.indices.unbind(1), q.index_sizes, strict=True):
        assert values.min() >= 0 and values.max() < size
    decoded = q.decode_indices(out.indices)
    assert torch.equal(decoded, out.latent) and decoded.dtype == torch.float32
    assert torch.equal(q.decode_indices(out.indices.int()), decoded)


@pytest.mark.parametrize("name", KINDS)
def test_autocast_changes_nothing(name: str) -> None:
    q, z = build(name).eval(), latent()
    plain = q(z)
    with torch.autocast("cpu", torch.bfloat16):
        out = q(z)
        decoded = q.decode_indices(out.indices)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(out, plain, strict=True))
    assert torch.equal(decoded, plain.latent)


@pytest.mark.parametrize("name", KINDS)
def test_every_channel_of_the_latent_gets_a_gradient(name: str) -> None:
    q, z = build(name), latent(scale=0.5).requires_grad_()
    out = q(z)
    (straight,) = torch.autograd.grad((out.latent * latent(9)).sum(), z, retain_graph=True)
    assert straight.isfinite().all() and (straight != 0).all()
    if not name.startswith("fsq"):
        (to_latent,) = torch.autograd.grad(out.loss, z)
        assert to_latent.isfinite().all() and (to_latent != 0).float().mean() > 0.9


@pytest.mark.parametrize("name", KINDS)
def test_extreme_latents_give_finite_gradients(name: str) -> None:
    z = torch.tensor([0.0, 1e-30, 1e4, -1e4]).view(1, 1, 2, 2).repeat(1, 4, 1, 1).requires_grad_()
    out = build(name)(z)
    (out.latent.sum() + out.loss).backward()
    assert z.grad is not None and z.grad.isfinite().all() and out.loss.isfinite()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_latent_that_is_not_finite_is_named(name: str, value: float) -> None:
    z = latent()
    z[1, 2, 0, 0] = value
    q = build(name)
    before = copy.deepcopy(q.state_dict())
    with pytest.raises(NonFiniteLatent, match="NaN or infinity"):
        q(z)
    q.update_codebook()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), q.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ["gsq", "rvq", "fsq", "lfq", "bsq"])
def test_wrong_shapes_are_refused(name: str) -> None:
    q = build(name)
    with pytest.raises(ValueError, match=r"latent must be \(B, 4, h, w\), got \(2, 5, 3, 3\)"):
        q(torch.zeros(2, 5, 3, 3))
    with pytest.raises(ValueError, match=r"latent must be \(B, 4, h, w\), got \(4, 3, 3\)"):
        q(torch.zeros(4, 3, 3))
    count = len(q.index_sizes)
    with pytest.raises(ValueError, match=rf"indices must be \(B, {count}, h, w\), got \(1, 9, 2, 2\)"):
        q.decode_indices(torch.zeros(1, 9, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"whole numbers.* got torch\.float32"):
        q.decode_indices(torch.zeros(1, count, 2, 2))


def test_an_index_out_of_range_is_named() -> None:
    q = build("fsq_levels")
    indices = torch.zeros(2, 4, 3, 3, dtype=torch.int64)
    indices[1, 2, 0, 1] = 3
    with pytest.raises(ValueError, match=r"index 3 of group 2 .* \[0, 3\)"):
        q.decode_indices(indices)
    indices[1, 2, 0, 1] = -1
    with pytest.raises(ValueError, match=r"index -1 of group 2 .* \[0, 3\)"):
        q.decode_indices(indices)
    with pytest.raises(ValueError, match=r"index 32 of group 1 .* \[0, 32\)"):
        build("gsq").decode_indices(torch.tensor([0, 32]).view(1, 2, 1, 1))


def test_two_levels_are_refused_for_finite_scalars() -> None:
    with pytest.raises(UserError, match=r"quantizer\.levels: 2 .*at least 3; kind lfq"):
        FiniteScalarQuantizer((3, 2))


def test_many_levels_stay_in_range() -> None:
    """Above 1000 levels the reference's margin reaches past the last."""
    q = FiniteScalarQuantizer((1024, 5001))
    z = torch.tensor([-1e3, 1e3]).view(2, 1, 1, 1).expand(2, 2, 1, 1)
    assert q(z).indices.flatten(1).tolist() == [[0, 0], [1023, 5000]]


def test_clip_clamps_both_sides_only_to_compare() -> None:
    q = GroupedSphericalQuantizer(1, 1, 3, lookup_norm="clip")
    set_rows(q, torch.tensor([[-0.5], [0.5], [7.0]]))
    z = torch.tensor([5.0]).view(1, 1, 1, 1).requires_grad_()
    out = q(z)
    assert out.indices.item() == 2 and out.latent.item() == 1
    # Codebook: the clamped row is at the clamped latent. Commitment: the latent itself is 4 away.
    assert out.loss.item() == pytest.approx(0.25 * 16)
    far = q(torch.tensor([0.7]).view(1, 1, 1, 1))
    # 0.7 is nearer to 0.5 than to the clamped 1; unclamped it would be the same row.
    assert far.indices.item() == 1


def test_a_row_outside_the_interval_is_moved_by_the_latents_that_choose_it() -> None:
    q = GroupedSphericalQuantizer(1, 1, 2, lookup_norm="clip")
    set_rows(q, torch.tensor([[-1.0], [1.2]]))
    q(torch.full((1, 1, 1, 1), 0.6)).loss.backward()
    assert q.codebook.grad is not None and q.codebook.grad[1].item() == pytest.approx(2 * (1 - 0.6))


def test_l1_compares_vectors_of_unit_l1_norm() -> None:
    q = GroupedSphericalQuantizer(2, 1, 3, lookup_norm="l1")
    set_rows(q, torch.tensor([[2.0, 0.0], [3.0, 3.0], [0.0, 9.0]]))
    out = q(torch.tensor([8.0, 4.0]).view(1, 2, 1, 1))
    # (2/3, 1/3) against (1, 0), (1/2, 1/2), (0, 1).
    assert out.indices.item() == 1 and out.latent.flatten().tolist() == [0.5, 0.5]
    assert out.loss.item() == pytest.approx(1.25 * (1 / 6) ** 2)


@pytest.mark.parametrize("init", ["spherical", "uniform"])
def test_rows_of_one_dimension_start_in_the_interval(init: str) -> None:
    torch.manual_seed(0)
    rows = GroupedSphericalQuantizer(2, 2, 4000, init=init, lookup_norm="none").codebook.detach()[:, 0]
    quantiles = torch.quantile(rows, torch.linspace(0.1, 0.9, 9))
    assert (quantiles - torch.linspace(-0.8, 0.8, 9)).abs().max() < 0.05


def test_residual_levels_take_what_is_left() -> None:
    q, z = build("rvq"), latent()
    out = q(z)
    residual = z.permute(0, 2, 3, 1).double()
    for level, rows in enumerate(q.codebook.detach().double()):
        nearest = torch.cdist(residual.reshape(-1, 4), rows).argmin(1).view(residual.shape[:-1])
        assert torch.equal(out.indices[:, level], nearest)
        residual = residual - rows[nearest]
    close(out.latent, z - residual.permute(0, 3, 1, 2).float())


# Codebooks that follow their latents.


@pytest.mark.parametrize("name", EMA)
def test_micro_batches_change_nothing(name: str) -> None:
    whole, parts = build(name), build(name)
    for step in range(3):
        z = latent(step, batch=6)
        whole(z)
        for part in z.split([1, 3, 2]):
            parts(part)
        whole.update_codebook()
        parts.update_codebook()
        for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", EMA)
def test_processes_change_nothing(name: str) -> None:
    """Two halves, whose pending sums are added as all_reduce would."""
    whole, halves = build(name), [build(name), build(name)]
    z = latent(batch=6)
    whole(z)
    whole.update_codebook()
    for half, part in zip(halves, z.split([2, 4]), strict=True):
        half(part)
    pending: list[list[Tensor]] = [[], []]
    for half, found in zip(halves, pending, strict=True):
        copy.deepcopy(half).update_codebook(lambda t, found=found: found.append(t.clone()))  # type: ignore[misc]
    for half in halves:
        sums = [a + b for a, b in zip(*pending, strict=True)]

        def all_reduce(t: Tensor, sums: list[Tensor] = sums) -> None:
            t.copy_(sums.pop(0))

        half.update_codebook(all_reduce)
        for a, b in zip(whole.state_dict().values(), half.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", EMA)
def test_what_is_pending(name: str) -> None:
    q, z = build(name), latent()
    start = copy.deepcopy(q.state_dict())

    def unchanged() -> bool:
        return all(torch.equal(a, b) for a, b in zip(start.values(), q.state_dict().values(), strict=True))

    assert not any("pending" in key for key in start)
    q.update_codebook()
    assert unchanged()
    q.eval()(z)
    q.update_codebook()
    assert unchanged()
    q.train()(z)
    q.discard_pending()
    q.update_codebook()
    assert unchanged()
    q(z)
    assert unchanged()
    q.update_codebook()
    assert not unchanged()
    # A checkpoint holds all of it.
    other = build(name)
    other.load_state_dict(q.state_dict())
    for each in (q, other):
        each(latent(2))
        each.update_codebook()
    assert all(torch.equal(a, b) for a, b in zip(q.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ["gsq", "vq", "rvq", "fsq", "lfq", "bsq"])
def test_nothing_to_update_elsewhere(name: str) -> None:
    q = build(name)
    before = copy.deepcopy(q.state_dict())
    q(latent())
    q.update_codebook(lambda t: pytest.fail("nothing to sum"))
    q.discard_pending()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), q.state_dict().values(), strict=True))


def test_rows_stay_on_the_sphere_however_long_nothing_chooses_them() -> None:
    """Their decayed average underflows; the row keeps its place."""
    q = build("gsq_ema", quantizer__codebook_decay=0.5)
    z = torch.ones(1, 4, 1, 1)
    for _ in range(300):
        q(z)
        q.update_codebook()
    norms = q.codebook.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(32), rtol=1e-5, atol=1e-5)
    assert torch.equal(q(z).latent, q.decode_indices(q(z).indices))
    close(q(z).latent.flatten(), torch.full((4,), 0.5**0.5))


# Training.


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


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("gsq_float32", "gsq_bfloat16")])
def test_learns(name: str) -> None:
    q = build(name)
    error, use = train(q)
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
