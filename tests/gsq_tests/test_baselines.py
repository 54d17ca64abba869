"""SimVQ, IBQ, DiVeQ and the options of codebooks: use of rows, gradients, and equal results however a step is split."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from quantizer_kinds import KINDS, build, close, latent, set_rows
from torch import Tensor

from gsq.config.overrides import override
from gsq.config.presets import preset
from gsq.config.signature import signature
from gsq.errors import UserError
from gsq.quantizers import DirectionalQuantizer, GroupedSphericalQuantizer, IndexBackpropagationQuantizer
from gsq.runs.part_checks import BATCH, _quantizer
from gsq.runs.part_training import training_checks
from gsq.sweeps.planning.cells import make_plan
from gsq.sweeps.spec.sweep import load_spec

NEW = list(KINDS)[list(KINDS).index("gsq_rotation") :]
TINY: dict[str, Any] = {
    "downsample": 4, "latent_dim": 4, "groups": 2, "codebook_size": 16, "batch_size": BATCH, "steps": 3,
    "data.image_size": 32, "loss.perceptual": "none", "loss.discriminator_start": 1, "evaluation.num_images": 8,
    "evaluation.allow_small": True,
}  # fmt: skip


def failed(checks: Any) -> list[str]:
    found = []
    for title, check in checks:
        try:
            check()
        except AssertionError as error:
            found.append(f"{title}: {error}")
    return found


@pytest.mark.parametrize("name", NEW)
def test_the_checks_of_a_part(name: str) -> None:
    assert failed(_quantizer(override(preset("cpu-tiny"), {**TINY, **KINDS[name]}))) == []


# Between them: every kind, restarts, k-means, noise and a temperature, each of which has a state.
TRAINED: dict[str, dict[str, Any]] = {
    "simvq": {"quantizer": "simvq", "quantizer.gradient": "soft", "quantizer.soft_decay": 0.5},
    "ibq": {"quantizer": "ibq", "quantizer.kmeans_steps": 2, "quantizer.restart_below": 0.5},
    "diveq": {"quantizer": "diveq", "quantizer.direction_noise": 0.05, "quantizer.restart_below": 0.5},
    "ema": {
        "quantizer": "vq", "groups": 1, "quantizer.codebook_update": "ema", "quantizer.restart_below": 0.99,
        "quantizer.kmeans_steps": 1, "quantizer.gradient": "rotation",
    },
    "per_group": {
        "quantizer.codebooks": "per_group", "quantizer.codebook_update": "ema", "quantizer.restart_below": 1.0,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINED)
def test_training_in_parts_resumed_and_by_two_processes(name: str) -> None:
    assert failed(training_checks(override(preset("cpu-tiny"), {**TINY, **TRAINED[name]}))) == []


def collapsed(**options: Any) -> tuple[GroupedSphericalQuantizer, Tensor]:
    """A codebook of which one row takes all latents, and latents of four clusters."""
    torch.manual_seed(0)
    q = GroupedSphericalQuantizer(4, 1, 32, lookup_norm="none", init="uniform", **options)
    set_rows(q, torch.cat([torch.zeros(1, 4), 100 + torch.rand(31, 4)]))
    centres = torch.randn(4, 4) * 3
    return q, (centres.repeat_interleave(64, 0) + 0.1 * torch.randn(256, 4)).T.reshape(1, 4, 16, 16)


@pytest.mark.parametrize(
    "options",
    [
        {"restart_below": 1.0},
        {"restart_below": 1.0, "codebook_update": "ema", "codebook_decay": 0.9},
        {"kmeans_steps": 9},
    ],
)
def test_a_collapsed_codebook_comes_into_use(options: dict[str, Any]) -> None:
    q, z = collapsed(**options)
    plain, _ = collapsed(**{key: value for key, value in options.items() if key == "codebook_update"})
    for each in (q, plain):
        for _ in range(9):
            each(z)
            each.update_codebook()
    assert plain(z).indices.unique().numel() == 1
    assert q(z).indices.unique().numel() > 24
    assert F.mse_loss(q(z).latent, z) < F.mse_loss(plain(z).latent, z) / 100


def test_a_row_in_use_is_left_alone() -> None:
    q, z = collapsed(restart_below=1.0)
    q(z)
    q.update_codebook()
    assert q.codebook[0].detach().tolist() == [0.0] * 4 and q.codebook.abs().max() < 30
    start = q.codebook.detach().clone()
    for _ in range(3):
        q(z)
    q.discard_pending()
    q.update_codebook()
    assert torch.equal(start, q.codebook)


def test_k_means_ends() -> None:
    q, z = collapsed(kmeans_steps=2)
    for _ in range(2):
        q(z)
        q.update_codebook()
    start = q.codebook.detach().clone()
    q(z)
    q.update_codebook(lambda total: pytest.fail("nothing to sum"))
    assert torch.equal(start, q.codebook)


def test_soft_gradients_by_their_definition_at_each_temperature() -> None:
    q = GroupedSphericalQuantizer(4, 2, 8, lookup_norm="none", gradient="soft", soft_temperature=0.7, soft_decay=0.5)
    weight = latent(9)
    for step in range(3):
        z = latent(step).requires_grad_()
        out = q(z)
        found = torch.autograd.grad((out.latent * weight).sum(), [z, q.codebook])
        vectors, rows = z.detach().double().requires_grad_(), q.codebook.detach().double().requires_grad_()
        split = vectors.unflatten(1, (2, 2)).permute(0, 3, 4, 1, 2)
        distances = (split[..., None, :] - rows).square().sum(-1)
        soft = (-distances / (0.7 * 0.5**step)).softmax(-1) @ rows
        mean = soft.permute(0, 3, 4, 1, 2).flatten(1, 2)
        wanted = torch.autograd.grad((mean * weight).sum(), [vectors, rows])
        for one, other in zip(found, wanted, strict=True):
            close(one, other.float(), 1e-4)
        assert torch.equal(out.latent, q.decode_indices(out.indices))
        q.update_codebook()


def test_soft_gradients_become_hard() -> None:
    """At a low temperature a latent hardly moves its row's mean, so that only the commitment pulls it."""
    warm, cold = (
        GroupedSphericalQuantizer(4, 1, 8, lookup_norm="none", gradient="soft", soft_temperature=t) for t in (1.0, 1e-4)
    )
    set_rows(cold, warm.codebook.detach())
    sizes = []
    for q in (warm, cold):
        z = latent().requires_grad_()
        (gradient,) = torch.autograd.grad(q(z).latent.sum(), z)
        sizes.append(float(gradient.abs().max()))
    assert sizes[1] < sizes[0] / 100


def test_every_row_learns_from_every_latent_only_with_ibq() -> None:
    shares = {}
    for name in ("ibq", "diveq_per_group", "gsq_none", "simvq"):
        q = build(name)
        out = q(latent(batch=1)[..., :1, :1])
        (out.latent.sum() + out.loss).backward()
        parameter = next(q.parameters())
        assert parameter.grad is not None
        shares[name] = float((parameter.grad.flatten(0, -2).abs().sum(1) > 0).float().mean())
    assert shares["ibq"] == 1 and shares["simvq"] == 1
    assert shares["diveq_per_group"] == 2 / 64 and shares["gsq_none"] <= 2 / 32


def test_the_entropy_of_a_row_far_from_all_latents_has_a_gradient() -> None:
    q = GroupedSphericalQuantizer(4, 1, 8, lookup_norm="none", entropy_weight=0.1)
    set_rows(q, torch.cat([torch.zeros(7, 4), torch.full((1, 4), 9.0)]))
    z = latent().requires_grad_()
    loss = q(z).loss
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, [z, q.codebook]))


def test_the_decoder_moves_the_row_with_diveq_alone() -> None:
    for name, moves in (("diveq_per_group", True), ("ibq", True), ("gsq_none", False)):
        q = build(name)
        (to_rows,) = torch.autograd.grad(q(latent().requires_grad_()).latent.sum(), q.codebook, allow_unused=True)
        assert (to_rows is not None and bool(to_rows.any())) == moves


def test_noise_is_that_of_the_step() -> None:
    q = DirectionalQuantizer(4, 2, 8, direction_noise=0.1)
    z = latent(batch=2)
    first = q(z)
    assert torch.equal(first.latent, q(z).latent) and torch.equal(first.latent[:1], q(z[:1]).latent)
    q.update_codebook()
    assert not torch.equal(first.latent, q(z).latent)
    assert torch.equal(q.eval()(z).latent, q.decode_indices(first.indices))


def test_ibq_takes_the_largest_product_the_first_of_equals() -> None:
    q = IndexBackpropagationQuantizer(2, 1, 4)
    set_rows(q, torch.tensor([[0.5, 0.5], [3.0, 0.0], [3.0, 0.0], [0.0, 1.0]]))
    z = torch.tensor([0.6, 0.5]).view(1, 2, 1, 1)
    # The nearest row is the first.
    assert q(z).indices.item() == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantizer.soft_temperature": 0.5}, ["soft_temperature: 0.5", "'straight_through'", "only for soft"]),
        ({"quantizer.gradient": "soft", "quantizer.soft_temperature": 0.0}, ["soft_temperature: 0.0", "above 0"]),
        ({"quantizer.gradient": "soft", "quantizer.soft_decay": 1.5}, ["soft_decay: 1.5", "(0, 1]"]),
        ({"quantizer.gradient": "rotate"}, ["quantizer.gradient", "rotate", "rotation"]),
        ({"quantizer.restart_below": -1.0}, ["restart_below", "-1"]),
        ({"quantizer.codebooks": "per_group"}, ["codebooks: 'per_group'", "groups 1", "shared"]),
        (
            {"quantizer": "simvq", "quantizer.restart_below": 1.0},
            ["restart_below", "simvq", "gsq, vq, rvq, ibq, diveq"],
        ),
        ({"quantizer": "diveq", "groups": 16}, ["quantizer.groups: 16", "diveq needs 2", "8"]),
        ({"quantizer": "ibq", "quantizer.codebook_weight": -0.5}, ["codebook_weight: -0.5", "at least 0"]),
        ({"quantizer": "diveq", "quantizer.direction_noise": -1.0}, ["direction_noise: -1.0", "at least 0"]),
    ],
)
def test_what_is_refused(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        override(preset("cpu-tiny"), {"groups": 1, **changes})
    assert all(word in str(raised.value) for word in words), str(raised.value)


def test_defaults_leave_a_signature_as_it_was() -> None:
    config = preset("cpu-tiny")
    other = dataclasses.replace(config.quantizer, restart_below=1.0)
    assert signature(config, "f00d", {}) != signature(dataclasses.replace(config, quantizer=other), "f00d", {})
    kept = override(config, {"quantizer.restart_below": 0.0, "quantizer.gradient": "straight_through"})
    assert signature(kept, "f00d", {}) == signature(config, "f00d", {})


def test_each_can_be_swept() -> None:
    axes = {
        "quantizer": ["gsq", "simvq"],
        "quantizer.gradient": ["straight_through", "rotation"],
        "quantizer.codebooks": ["shared", "per_group"],
        "seed": [0, 1],
    }
    plan = make_plan(load_spec({"name": "s", "base": "cpu-tiny", "set": {"groups": 4}, "axes": axes}))
    assert len({cell.signature for cell in plan.cells}) == 16
    axes = {"quantizer": ["ibq", "diveq"], "quantizer.restart_below": [0.0, 1.0], "quantizer.kmeans_steps": [0, 5]}
    assert len(make_plan(load_spec({"name": "s", "base": "cpu-tiny", "axes": axes})).cells) == 8
