"""What every kind of quantizer must keep."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizer_kinds import FOLLOWING, KINDS, build, close, latent, set_rows
from tiny_run import tiny
from torch import Tensor

from gsq import UserError
from gsq.quantizers import (
    FiniteScalarQuantizer,
    GroupedSphericalQuantizer,
    NonFiniteLatent,
    build_quantizer,
)

EMA = [name for name in KINDS if name.endswith("ema")]
# Kinds without a loss of their own.
NO_LOSS = ("fsq", "diveq")


# What every kind must keep.


@pytest.mark.parametrize("name", KINDS)
def test_agrees_with_the_config(name: str) -> None:
    config = tiny(**KINDS[name])
    q = build_quantizer(config)
    assert q.index_sizes == config.index_sizes and q.latent_dim == 4 and q.groups == config.quantizer.groups
    assert q.bits_per_token == config.bits_per_token and q.codebook_size == config.quantizer.codebook_size
    several = config.quantizer.codebooks == "per_group"
    assert q.shared_codebook == (config.quantizer.kind in ("gsq", "vq", "simvq", "ibq", "diveq") and not several)
    codebook = getattr(q, "map", getattr(q, "codebook", torch.zeros(0)))
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
    if not name.startswith(NO_LOSS):
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


@pytest.mark.parametrize("name", FOLLOWING)
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


@pytest.mark.parametrize("name", FOLLOWING)
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


@pytest.mark.parametrize("name", FOLLOWING)
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
