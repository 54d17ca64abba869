"""SimVQ, IBQ, DiVeQ and the options of codebooks against the published implementations (fixtures/quantizers.md)."""

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
    DirectionalQuantizer,
    GroupedSphericalQuantizer,
    IndexBackpropagationQuantizer,
    MappedQuantizer,
    Quantizer,
)

Published = Callable[[str], dict[str, Tensor]]


@pytest.fixture(scope="module")
def published() -> Published:
    stored = np.load(Path(__file__).parent / "fixtures" / "baselines.npz")

    def case(name: str) -> dict[str, Tensor]:
        found = {key.split("/")[1]: torch.from_numpy(stored[key]) for key in stored if key.split("/")[0] == name}
        assert found, name
        return {key: value.long() if value.dtype == torch.int16 else value for key, value in found.items()}

    return case


def agree(q: Quantizer, want: dict[str, Tensor]) -> tuple[Any, Tensor]:
    """Check indices, latent and the latent's gradient. Returns the output and the input that it came from."""
    z = want["input"].clone().requires_grad_()
    out = q(z)
    assert torch.equal(out.indices, want["indices"])
    close(out.latent, want["latent"])
    (straight,) = torch.autograd.grad((out.latent * want["weight"]).sum(), z, retain_graph=True)
    close(straight, want["latent_gradient"])
    return out, z


@pytest.mark.parametrize(("name", "gradient"), [("simvq", "straight_through"), ("simvq_rotation", "rotation")])
def test_simvq(published: Published, name: str, gradient: str) -> None:
    want = published(name)
    q = MappedQuantizer(4, 1, 16, gradient=gradient)
    q.codebook.copy_(want["rows"])
    with torch.no_grad():
        q.map.copy_(want["map"])
    out, z = agree(q, want)
    close(out.loss, want["loss"])
    to_latent, to_map = torch.autograd.grad(out.loss, [z, q.map])
    close(to_latent, want["loss_gradient"])
    close(to_map, want["map_gradient"])


def test_the_rotation_trick(published: Published) -> None:
    """The reference has one mean square for both sides: half of ours at commitment weight 1."""
    want = published("rotation")
    q = GroupedSphericalQuantizer(4, 1, 16, lookup_norm="none", commitment_weight=1.0, gradient="rotation")
    set_rows(q, want["codebook"])
    out, z = agree(q, want)
    close(out.loss, 2 * want["loss"])
    to_latent, to_codebook = torch.autograd.grad(out.loss, [z, q.codebook])
    close(to_latent, want["loss_gradient"])
    close(to_codebook, want["codebook_gradient"])


@pytest.mark.parametrize(("name", "norm"), [("per_group", "none"), ("per_group_cosine", "l2")])
def test_a_codebook_for_each_group(published: Published, name: str, norm: str) -> None:
    """The reference adds up the losses of its heads' positions as one mean, like ours."""
    want = published(name)
    q = GroupedSphericalQuantizer(
        6, 2, 8, lookup_norm=norm, codebook_update="ema", codebook_decay=0.8, codebooks="per_group"
    )
    set_rows(q, want["codebook"])
    for step in range(3):
        out, _ = agree(
            q, {**want, **{key: want[key][step] for key in ("input", "indices", "latent", "latent_gradient")}}
        )
        q.update_codebook()
        close(out.loss, want["loss"][step])
        close(q.codebook, want["codebooks"][step])
    assert q.average is not None
    close(q.average.counts, want["counts"])


def test_dead_rows_are_those_that_the_reference_replaces(published: Published) -> None:
    """It replaces them by latents of the batch; ours come from the cells. What stays, and the averages, are equal."""
    want = published("dead")
    q = GroupedSphericalQuantizer(
        4, 1, 12, lookup_norm="none", codebook_update="ema", codebook_decay=0.8, restart_below=1.0
    )
    set_rows(q, want["codebook"])
    out = q(want["input"])
    assert torch.equal(out.indices, want["indices"])
    assert q.average is not None
    before = q.codebook.clone()
    q.update_codebook()
    replaced = want["replaced"].bool()
    assert 0 < replaced.sum() < 12
    close(q.codebook[~replaced], want["after"][~replaced])
    assert ((q.codebook - before).abs().amax(1) > 0.1)[replaced].all()
    close(q.average.counts, want["counts"])
    close(q.average.sums[~replaced], want["sums"][~replaced])
    close(q.average.sums[replaced], q.codebook[replaced])


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_k_means(published: Published, update: str) -> None:
    """One iteration of the reference's k-means a step, over the same latents."""
    want = published("kmeans")
    q = GroupedSphericalQuantizer(4, 1, 8, lookup_norm="none", codebook_update=update, kmeans_steps=4)
    set_rows(q, want["codebook"])
    for _ in range(4):
        q(want["input"])
        q.update_codebook()
    close(q.codebook.detach(), want["means"])
    assert q.cells is not None and q.cells.usage.tolist() == want["bins"].tolist()
    if q.average is not None:
        assert q.average.counts.tolist() == want["bins"].tolist()
        close(q.average.sums, want["means"] * want["bins"][:, None])


@pytest.mark.parametrize("name", ["ibq", "ibq_entropy"])
def test_ibq(published: Published, name: str) -> None:
    want = published(name)
    q = IndexBackpropagationQuantizer(4, 1, 16)
    set_rows(q, want["codebook"])
    out, z = agree(q, want)
    (to_rows,) = torch.autograd.grad((out.latent * want["weight"]).sum(), q.codebook, retain_graph=True)
    close(to_rows, want["codebook_latent_gradient"])
    close(out.loss, want["loss"])
    to_latent, to_codebook = torch.autograd.grad(out.loss, [z, q.codebook])
    close(to_latent, want["loss_gradient"])
    close(to_codebook, want["codebook_gradient"])


def test_the_entropy_term_of_ibq(published: Published) -> None:
    """The reference adds 1e-5 to logits and to a logarithm's argument."""
    want = published("ibq_entropy")
    q = IndexBackpropagationQuantizer(4, 1, 16, entropy_weight=1.0)
    set_rows(q, want["codebook"])
    z = want["input"].clone().requires_grad_()
    entropy = q(z).loss - want["loss"]
    close(entropy.detach(), want["entropy"], 1e-3)
    (to_latent,) = torch.autograd.grad(entropy, z)
    close(to_latent, want["entropy_gradient"] + want["loss_gradient"], 2e-3)


@pytest.mark.parametrize(("name", "noise"), [("diveq", 0.05), ("diveq_detach", 0.0)])
def test_diveq(published: Published, name: str, noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    want = published(name)
    q = DirectionalQuantizer(4, 1, 16, direction_noise=noise)
    set_rows(q, want["codebook"])
    monkeypatch.setattr(q, "_noise", lambda shape: want["noise"].view(shape))
    out, _ = agree(q, want)
    assert out.loss == 0
    (to_rows,) = torch.autograd.grad((out.latent * want["weight"]).sum(), q.codebook)
    close(to_rows, want["codebook_gradient"])
    # In evaluation the latent is the row, which is what the noise lies beside.
    rows = q.decode_indices(out.indices)
    assert torch.equal(q.eval()(want["input"]).latent, rows)
    assert torch.equal(out.latent.detach(), rows) == (noise == 0)
