"""The options with which a training follows the authors' code: against numbers that it computed, and their arithmetic.

fixtures/authors_training.json: see fixtures/discriminators.md.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_discriminators import fill
from tiny_run import tiny
from torch import Tensor, nn

from gsq import RunConfig, UserError, override, preset
from gsq.config.flops import cost
from gsq.config.objective import DiscriminatorConfig
from gsq.config.overrides import to_dict
from gsq.config.presets import AUTHORS, PRESETS
from gsq.data.batches import ImageSource
from gsq.models.discriminators import PatchDiscriminator, build_discriminator
from gsq.training import augment
from gsq.training.losses import LeCAM, UnitRange, build_perceptual_loss, generator_loss, gradient_penalty
from gsq.training.optim import update_ema
from gsq.training.trainer import Trainer

FIXTURES = Path(__file__).parent / "fixtures"
REFERENCE = json.loads((FIXTURES / "authors_training.json").read_text())
# All at once; LeCAM and R1 so that each option has something to do.
ALL: dict[str, Any] = {
    "loss__perceptual": "none",
    "loss__lecam_weight": 0.1,
    "loss__lecam_update": "before",
    "loss__gradient_penalty_weight": 0.1,
    "discriminator__augment": ["color", "translation", "cutout"],
    "discriminator__image_range": "unit",
    "discriminator__batch": "new",
    "discriminator__init": "kaiming",
    "optimizer__ema_warmup": False,
}


def trainer(**changes: Any) -> Trainer:
    config = tiny(**{"loss__perceptual": "none", **changes})
    return Trainer(config, ImageSource(config.data))


def images() -> Tensor:
    with np.load(FIXTURES / "discriminators.npz") as file:
        return torch.from_numpy(file["images"])


# Images in [0, 1].


def authors_patchgan(model: nn.Module) -> nn.Module:
    """With the fixture's weights; theirs has no bias in its last convolution."""
    fill(model, 2)
    nn.init.zeros_(list(model.parameters())[-1])
    return model


def penalty(model: nn.Module, x: Tensor) -> float:
    x = x.clone().requires_grad_()
    return gradient_penalty(x, model(x)).item()


def test_patchgan_and_r1_of_images_in_0_1_as_the_authors_code() -> None:
    model = authors_patchgan(PatchDiscriminator(DiscriminatorConfig(channels=8, norm_groups=8, norm="batch")))
    unit = (images() + 1) / 2
    torch.testing.assert_close(model(unit).flatten(), torch.tensor(REFERENCE["patchgan_unit_logits"]))
    assert penalty(model, unit) == pytest.approx(REFERENCE["r1_unit"], rel=1e-4)
    assert penalty(model, images()) == pytest.approx(REFERENCE["r1_signed"], rel=1e-4)


@pytest.mark.parametrize("image_range", ["signed", "unit"])
def test_the_trainer_takes_r1_in_the_range_that_the_discriminator_sees(image_range: str) -> None:
    run = trainer(
        discriminator__layers=3,
        discriminator__norm="batch",
        discriminator__image_range=image_range,
        loss__gradient_penalty_weight=1.0,
    )
    assert run.discriminator is not None
    authors_patchgan(run.discriminator)
    found = run._discriminator_losses(images(), images(), slice(0, 2))
    assert found["gradient_penalty"].item() == pytest.approx(REFERENCE[f"r1_{image_range}"], rel=1e-4)


@pytest.mark.parametrize("image_range", ["signed", "unit"])
def test_both_steps_show_the_discriminator_the_same_range(image_range: str) -> None:
    run, shown = trainer(discriminator__image_range=image_range), []
    assert run.discriminator is not None
    run.discriminator.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0].detach().clone()))
    batch = run.batches(0)
    found = run.model(batch).images.detach()
    run.step()
    of_generator, real, fake = shown
    if image_range == "unit":
        batch, found = (batch + 1) / 2, (found + 1) / 2
    torch.testing.assert_close(real, batch)
    torch.testing.assert_close(of_generator, found)
    torch.testing.assert_close(fake, found)


def augmented(image_range: str, policy: list[str], numbers: list[float], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """A mid-grey image as the discriminator sees it, brought back to [-1, 1]."""
    run = trainer(discriminator__image_range=image_range, discriminator__augment=policy)
    monkeypatch.setattr(augment, "draw", lambda *_: torch.tensor([numbers, numbers]))
    grey = torch.zeros(2, 3, 32, 32)
    seen = run._augmented(run._in_range(grey), slice(0, 2), 0)
    return seen if image_range == "signed" else 2 * seen - 1


@pytest.mark.parametrize(("image_range", "brightest", "filled"), [("signed", 0.5, 0.0), ("unit", 1.0, -1.0)])
def test_augmentation_in_0_1_is_twice_as_bright_and_fills_with_black(
    image_range: str, brightest: float, filled: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, sign in ((0.0, -1), (1 - 2**-24, 1)):
        seen = augmented(image_range, ["color"], [number, 0.5, 0.5], monkeypatch)
        torch.testing.assert_close(seen, torch.full_like(seen, sign * brightest))
    seen = augmented(image_range, ["color", "translation"], [1 - 2**-24, 0.5, 0.5, 0.0, 0.5], monkeypatch)
    # An eighth of the rows comes from outside.
    assert seen[:, :, :4].eq(filled).all() and seen[:, :, 4:].ne(filled).all()
    seen = augmented(image_range, ["color", "cutout"], [1 - 2**-24, 0.5, 0.5, 0.5, 0.5], monkeypatch)
    assert seen[0, 0].eq(filled).sum() == 6 * 6


def test_a_frozen_network_gets_the_same_images_in_either_range() -> None:
    signed, unit = (
        build_discriminator(DiscriminatorConfig(kind="efficientnet_lite0", norm_groups=8, image_range=r), 32)
        for r in ("signed", "unit")
    )
    assert signed is not None and unit is not None
    unit.load_state_dict(signed.state_dict())
    torch.testing.assert_close(unit((images() + 1) / 2), signed(images()), rtol=1e-4, atol=1e-5)
    # Half a step in [0, 1] is a whole one in [-1, 1].
    ratio = penalty(unit, (images() + 1) / 2) / penalty(signed, images())
    assert ratio == pytest.approx(4, rel=1e-3)


def test_perceptual_loss_of_images_in_0_1() -> None:
    class Recorded(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.stack([a.mean(), b.max()])

    found = UnitRange(Recorded())(torch.full((1, 3, 4, 4), -1.0), torch.full((1, 3, 4, 4), 1.0))
    assert found.tolist() == [0, 1]
    assert build_perceptual_loss("none", "unit") is None


# The discriminator's own batch.


def test_the_discriminators_batch_follows_the_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    run, asked = trainer(seed=5, discriminator__batch="new"), []
    original = run.batches.source.train_batch
    monkeypatch.setattr(run.batches.source, "train_batch", lambda *a: asked.append(a) or original(*a))
    run.step()
    run.step()
    assert asked == [(5, 0, range(2)), (5, 0, range(2, 4)), (5, 1, range(2)), (5, 1, range(2, 4))]
    assert not torch.equal(original(5, 0, range(2)), original(5, 0, range(2, 4)))


@pytest.mark.parametrize("codebook_update", ["gradient", "ema"])
def test_its_images_are_those_of_the_updated_generator(codebook_update: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"quantizer__codebook_update": codebook_update}
    run, plain, seen = trainer(**changes, discriminator__batch="new"), trainer(**changes), []
    original = run._discriminator_losses
    monkeypatch.setattr(run, "_discriminator_losses", lambda *a: seen.append(a) or original(*a))
    line, other = run.step(), plain.step()
    ((real, found, _),) = seen
    following = run.batches.source.train_batch(0, 0, range(2, 4))
    assert torch.equal(real, following) and torch.equal(found, run.model.eval()(following).images)
    assert not found.requires_grad
    # The generator's step, its codebook's averages included, is that of any other run.
    assert all(torch.equal(a, b) for a, b in zip(*(r.model.state_dict().values() for r in (run, plain)), strict=True))
    assert line["loss"] == other["loss"] and line["loss_d"] != other["loss_d"]


def test_it_is_not_drawn_before_the_discriminator_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    run, asked = trainer(discriminator__batch="new", loss__discriminator_start=1), []
    original = run.batches.source.train_batch
    monkeypatch.setattr(run.batches.source, "train_batch", lambda *a: asked.append(a[2]) or original(*a))
    run.step()
    assert asked == [range(2)]
    run.step()
    assert asked[1:] == [range(2), range(2, 4)]


def test_a_latent_that_is_not_finite_after_the_update_fails_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(**ALL)
    run.step()
    before = copy.deepcopy(run.discriminator.state_dict())  # type: ignore[union-attr]
    bias, original = list(run.model.encoder.parameters())[-1], run.discriminator_batches

    def spoil(step: int) -> Tensor:
        with torch.no_grad():
            bias.fill_(float("nan"))
        return original(step)

    monkeypatch.setattr(run, "discriminator_batches", spoil)
    line = run.step()
    assert run.failed_steps == 1 and "loss_d" not in line
    after = run.discriminator.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("changes", [{}, {"quantizer__codebook_update": "ema", "execution__data_workers": 2}])
def test_all_of_it_resumes_bit_for_bit(changes: dict[str, Any]) -> None:
    a, b = trainer(**ALL, **changes), trainer(**ALL, **changes)
    a.step()
    a.step()
    b.load_state(copy.deepcopy(a.state()))
    assert [a.step() for _ in range(2)] == [b.step() for _ in range(2)]
    assert all(torch.equal(x, y) for x, y in zip(a.ema.state_dict().values(), b.ema.state_dict().values(), strict=True))


def test_threads_that_prepare_batches_forget_those_of_skipped_steps() -> None:
    run = trainer(discriminator__batch="new", execution__data_workers=2)
    first = run.discriminator_batches(0)
    later = run.discriminator_batches(7)
    assert set(run.discriminator_batches.ready) <= {8, 9}
    assert not torch.equal(first, later)
    assert torch.equal(later, run.batches.source.train_batch(0, 7, range(2, 4)))


# PatchGAN at the start.


def test_patchgan_starts_as_the_authors() -> None:
    """Means over eight seeds, of images that are noise in [0, 1]."""
    noise = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    spreads, gradients, deviations = [], [], []
    for seed in range(8):
        torch.manual_seed(seed)
        model = PatchDiscriminator(DiscriminatorConfig(norm="batch", init="kaiming"))
        x = noise.clone().requires_grad_()
        logits = model(x)
        generator_loss("non_saturating", logits).backward()
        assert x.grad is not None
        spreads.append(logits.std().item())
        gradients.append(x.grad.norm().item())
        deviations.append([m.weight.std().item() for m in model if isinstance(m, nn.Conv2d)])
    wanted = REFERENCE["start"]
    assert np.mean(spreads) == pytest.approx(wanted["spread"], rel=0.1)
    assert np.mean(gradients) == pytest.approx(wanted["adversarial_gradient"], rel=0.1)
    assert np.mean(deviations, 0) == pytest.approx(wanted["weight_deviation"], rel=0.05)
    assert PatchDiscriminator(DiscriminatorConfig(norm="batch"))(2 * noise - 1).std() > 3 * wanted["spread"]


def test_without_the_last_bias_there_is_a_parameter_less() -> None:
    plain, kaiming = (tiny(discriminator__init=init) for init in ("default", "kaiming"))
    model = build_discriminator(kaiming.discriminator, 32)
    assert model is not None
    assert sum(p.numel() for p in model.parameters()) == cost(kaiming).discriminator_parameters
    assert cost(plain).discriminator_parameters == cost(kaiming).discriminator_parameters + 1


# Averages.


def test_averaged_weights_without_warm_up_as_the_authors_code() -> None:
    averaged, found = [torch.ones(1)], []
    for step in range(4):
        update_ema(averaged, [torch.full((1,), 2.0 + step)], 0.999, step, warmup=False)
        found.append(averaged[0].item())
    assert found == pytest.approx(REFERENCE["ema"], rel=1e-6)


def test_a_run_averages_without_warm_up() -> None:
    run = trainer(optimizer__ema_warmup=False, optimizer__ema_decay=0.75)
    before = [p.clone() for p in run.ema.parameters()]
    run.step()
    wanted = [0.75 * a + 0.25 * b for a, b in zip(before, run.model.parameters(), strict=True)]
    torch.testing.assert_close(list(run.ema.parameters()), wanted)


def test_lecam_whose_averages_come_first_as_the_authors_code() -> None:
    lecam, found = LeCAM(), []
    real, fake = torch.linspace(-1, 2, 12).view(3, 4), torch.linspace(-2, 0.5, 12).view(3, 4)
    for step in range(4):
        logits = real + 0.5 * step, fake - 0.25 * step
        lecam.update(*(x.mean() for x in logits))
        found.append(lecam(*logits).item())
    assert found == pytest.approx(REFERENCE["lecam"]["regularisers"], rel=1e-5)
    assert lecam.real.item() == pytest.approx(REFERENCE["lecam"]["real"], rel=1e-5)
    assert lecam.fake.item() == pytest.approx(REFERENCE["lecam"]["fake"], rel=1e-5)


@pytest.mark.parametrize("update", ["after", "before"])
def test_the_trainer_updates_lecam_in_the_order_asked_for(update: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = trainer(loss__lecam_weight=0.1, loss__lecam_update=update), []
    assert run.lecam is not None
    original, forward = run.lecam.update, run.lecam.forward
    monkeypatch.setattr(run.lecam, "update", lambda *a: calls.append("update") or original(*a))
    monkeypatch.setattr(run.lecam, "forward", lambda *a: calls.append("regulariser") or forward(*a))
    line = run.step()
    assert calls == (["regulariser", "update"] if update == "after" else ["update", "regulariser"])
    assert run.lecam.real.item() == pytest.approx(0.001 * line["real_logit"], rel=1e-4)
    assert run.lecam.fake.item() == pytest.approx(0.001 * line["fake_logit"], rel=1e-4)


def test_averages_of_a_step_that_is_not_applied_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(**ALL)
    run.step()
    assert run.lecam is not None
    before = copy.deepcopy(run.lecam.state_dict())
    monkeypatch.setattr(
        "gsq.training.trainer.discriminator_loss", lambda *_: torch.tensor(float("nan"), requires_grad=True)
    )
    run.step()
    assert run.failed_steps == 1 and run.lecam.state_dict() == before


# What is refused, the presets, and the cost.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"discriminator__kind": "none", "discriminator__image_range": "unit"}, ["image_range", "'unit'", "signed"]),
        ({"discriminator__kind": "none", "discriminator__batch": "new"}, ["discriminator.batch", "'new'", "same"]),
        ({"discriminator__kind": "stylegan", "discriminator__init": "kaiming"}, ["init", "stylegan", "patchgan"]),
        ({"loss__perceptual_range": "unit"}, ["perceptual_range", "efficientnet_lite0", "lpips_vgg", "signed"]),
        ({"loss__lecam_update": "before"}, ["lecam_update", "'before'", "lecam_weight", "after"]),
        ({"discriminator__image_range": "0-1"}, ["image_range", "'0-1'", "signed, unit"]),
        ({"discriminator__batch": "other"}, ["discriminator.batch", "'other'", "same, new"]),
        ({"discriminator__init": "xavier"}, ["discriminator.init", "'xavier'", "default, kaiming"]),
    ],
)
def test_options_without_a_meaning_are_refused(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        tiny(**changes)
    assert all(word in str(raised.value) for word in words)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("authors-")])
def test_authors_presets_are_the_papers_but_for_their_recipe(name: str) -> None:
    ours, theirs = to_dict(preset(name.replace("authors-", "paper-"))), to_dict(preset(name))
    changed = {
        f"{section}.{key}": value
        for section, values in theirs.items()
        for key, value in values.items()
        if value != ours[section][key]
    }
    wanted = {f"{section}.{key}": value for section, values in AUTHORS.items() for key, value in values.items()}
    kind = theirs["discriminator"]["kind"]
    if kind == "none":
        wanted = {key: value for key, value in wanted.items() if not key.startswith("discriminator.")}
    if kind == "patchgan":
        wanted["discriminator.init"] = "kaiming"
    assert changed == wanted and theirs["optimizer"]["decay_everything"]


def test_costs_of_a_batch_of_its_own_and_of_averages_first() -> None:
    def found(**changes: Any) -> dict[str, float]:
        config: RunConfig = override(tiny(loss__lecam_weight=0.1, loss__discriminator_start=2, steps=6), changes)
        return {key: getattr(cost(config), f"{key}_flops") for key in ("generator", "discriminator", "lookup")}

    plain, new = found(), found(**{"discriminator.batch": "new"})
    # Forward and backward of six steps, and a forward pass of each of the four with a discriminator.
    assert new["generator"] == pytest.approx(plain["generator"] * (18 + 4) / 18)
    assert new["lookup"] == pytest.approx(plain["lookup"] * (6 + 4) / 6)
    assert new["discriminator"] == plain["discriminator"]
    before = found(**{"loss.lecam_update": "before"})
    assert before["discriminator"] == pytest.approx(plain["discriminator"] * 10 / 8)
