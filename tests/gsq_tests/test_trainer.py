"""The training step: it learns, and refuses steps that are not finite."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import status, tiny
from tiny_trainer import equal, parameters, trainer
from torch import Tensor, nn

import gsq.training.trainer
from gsq import RunFolder, train
from gsq.records.read import read_metrics
from gsq.training import checkpoint
from gsq.training.trainer import PATIENCE, Diverged, Trainer


def test_loss_falls() -> None:
    run = trainer(loss__perceptual="efficientnet_lite0", batch_size=4)
    losses = [run.step() for _ in range(60)]

    def mean(name: str, part: slice) -> float:
        values = [line[name] for line in losses[part]]
        return sum(values) / len(values)

    for name in ("loss", "mse", "perceptual"):
        assert mean(name, slice(-10, None)) < 0.75 * mean(name, slice(0, 10)), name
    assert all(math.isfinite(value) for line in losses for value in line.values())


def test_loss_is_the_weighted_sum() -> None:
    run = trainer(
        loss__perceptual="efficientnet_lite0",
        loss__mse_weight=2.0,
        loss__perceptual_weight=0.5,
        loss__adversarial_weight=0.3,
    )
    line = run.step()
    wanted = 2 * line["mse"] + 0.5 * line["perceptual"] + 0.3 * line["adversarial"] + line["quantizer"]
    assert line["loss"] == pytest.approx(wanted, rel=1e-5)
    assert line["loss_d"] == pytest.approx(line["discriminator"], rel=1e-5)
    assert {"real_logit", "fake_logit", "gradient_norm", "gradient_norm_d"} <= set(line)


def test_without_discriminator_and_perceptual_loss() -> None:
    line = trainer(discriminator__kind="none").step()
    assert set(line) == {"loss", "mse", "quantizer", "gradient_norm"}


def test_images_are_those_of_seed_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    run, asked = trainer(seed=5), []
    original = run.batches.source.train_batch
    monkeypatch.setattr(run.batches.source, "train_batch", lambda *a: asked.append(a) or original(*a))
    run.step()
    run.step()
    assert asked == [(5, 0, range(2)), (5, 1, range(2))]


def test_seeds_differ_and_repeat() -> None:
    a, b, c = trainer(seed=1), trainer(seed=1), trainer(seed=2)
    assert equal(parameters(a.model), parameters(b.model)) and not equal(parameters(a.model), parameters(c.model))
    assert a.step() == b.step() != c.step()
    assert a.step() == b.step()
    assert equal(parameters(a.ema), parameters(b.ema))


def test_bfloat16() -> None:
    run, exact = trainer(train__precision="bfloat16"), trainer()
    lines = [run.step() for _ in range(3)]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert all(p.dtype == torch.float32 for p in (*run.model.parameters(), *run.ema.parameters()))
    first = exact.step()
    assert lines[0]["mse"] == pytest.approx(first["mse"], rel=0.05) and lines[0] != first


def test_discriminator_start() -> None:
    run = trainer(loss__discriminator_start=2)
    assert run.discriminator is not None
    before = parameters(run.discriminator)
    lines = [run.step(), run.step()]
    assert equal(parameters(run.discriminator), before)
    assert all("adversarial" not in line and "discriminator" not in line for line in lines)
    late = run.step()
    assert "adversarial" in late and "discriminator" in late and not equal(parameters(run.discriminator), before)


def test_the_generators_step_leaves_the_discriminator_without_gradient_of_its_own() -> None:
    """The same discriminator step, whatever the weight of the generator's adversarial loss at step 0."""
    runs = [trainer(loss__adversarial_weight=weight) for weight in (0.0, 1.0)]
    for run in runs:
        run.step()
    assert equal(parameters(runs[0].discriminator), parameters(runs[1].discriminator))  # type: ignore[arg-type]
    assert not equal(parameters(runs[0].model), parameters(runs[1].model))


# Options.


@pytest.mark.parametrize("weight", ["lecam_weight", "gradient_penalty_weight"])
def test_regularisers_of_the_discriminator(weight: str) -> None:
    plain, run = trainer(), trainer(**{f"loss__{weight}": 10.0})
    name = weight.removesuffix("_weight")
    for _ in range(3):
        with_it, without = run.step(), plain.step()
    assert name in with_it and name not in without and with_it[name] >= 0
    assert with_it["loss_d"] == pytest.approx(with_it["discriminator"] + 10 * with_it[name], rel=1e-5)
    assert not equal(parameters(run.discriminator), parameters(plain.discriminator))  # type: ignore[arg-type]


def test_adaptive_weight_balances_the_gradients_at_the_last_layer() -> None:
    run = trainer(loss__adaptive_weight=True, loss__adversarial_weight=0.5, loss__mse_weight=1.0)
    line = run.step()
    assert line["adaptive_weight"] > 0
    wanted = line["mse"] + 0.5 * line["adaptive_weight"] * line["adversarial"] + line["quantizer"]
    assert line["loss"] == pytest.approx(wanted, rel=1e-5)
    # At the scale it finds, both losses pull equally hard.
    fresh = trainer(loss__adaptive_weight=True, loss__mse_weight=1.0)
    images = fresh.batches(0)
    fresh.discriminator.requires_grad_(False)  # type: ignore[union-attr]
    losses, _ = fresh._generator_losses(images, slice(0, len(images)), True)
    pulls = [
        torch.autograd.grad(losses[name], fresh.last_layer, retain_graph=True)[0].norm().item()
        for name in ("mse", "adversarial")
    ]
    assert line["adaptive_weight"] == pytest.approx(pulls[0] / pulls[1], rel=1e-2)


@pytest.mark.parametrize("kind", ["stylegan", "efficientnet_lite0"])
def test_other_discriminators_train_and_resume(kind: str) -> None:
    changes = {"discriminator__kind": kind, "discriminator__augment": ["color", "translation", "cutout"]}
    a, b = trainer(**changes), trainer(**changes)
    before = parameters(a.discriminator)  # type: ignore[arg-type]
    a.step()
    assert not equal(parameters(a.discriminator), before)  # type: ignore[arg-type]
    b.load_state(copy.deepcopy(a.state()))
    assert a.step() == b.step()


def test_batch_norm_discriminator() -> None:
    run = trainer(discriminator__norm="batch")
    assert any(isinstance(m, nn.BatchNorm2d) for m in run.discriminator.modules())  # type: ignore[union-attr]
    assert all(math.isfinite(value) for value in run.step().values())


def test_channels_last_and_threads_that_prepare_batches_change_no_loss() -> None:
    plain = trainer()
    wanted = [plain.step() for _ in range(3)]
    for changes in ({"execution__channels_last": True}, {"execution__data_workers": 2}):
        run = trainer(**changes)
        for line in wanted:
            assert run.step() == pytest.approx(line, rel=1e-3)
    assert run.model.decoder.layers[0].weight.is_contiguous()


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on a CPU needs a C++ compiler")
def test_compiled() -> None:
    changes = {"loss__adaptive_weight": True, "loss__lecam_weight": 0.1}
    plain, run = trainer(**changes), trainer(**changes, execution__compile=True)
    for _ in range(3):
        assert run.step() == pytest.approx(plain.step(), rel=1e-3, abs=1e-5)
    assert run.state()["model"].keys() == plain.state()["model"].keys()


# Steps that are not finite.


def test_a_latent_that_is_not_finite_fails_the_step_and_no_more() -> None:
    run = trainer(quantizer__codebook_update="ema")
    run.step()
    before = [value.clone() for value in run.model.state_dict().values()]
    with torch.no_grad():
        bias = list(run.model.encoder.parameters())[-1]
        kept = bias.clone()
        bias.fill_(float("nan"))
    assert math.isnan(run.step()["loss"])
    assert run.failed_steps == 1
    with torch.no_grad():
        bias.copy_(kept)
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.state_dict().values(), strict=True))
    assert math.isfinite(run.step()["loss"]) and run.failed_steps == 0


def broken(from_step: int, to_step: int, original: Callable[..., Tensor], run: Trainer) -> Callable[..., Tensor]:
    def loss(*arguments: Any) -> Tensor:
        bad = from_step <= run.step_count < to_step
        return original(*arguments) * (float("nan") if bad else 1.0)

    return loss


def test_a_step_that_is_not_finite_is_not_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer()
    monkeypatch.setattr(gsq.training.trainer, "generator_loss", broken(1, 2, gsq.training.trainer.generator_loss, run))
    run.step()
    before = [parameters(m) for m in (run.model, run.ema, run.discriminator)]  # type: ignore[arg-type]
    assert math.isnan(run.step()["loss"])
    after = [parameters(m) for m in (run.model, run.ema, run.discriminator)]  # type: ignore[arg-type]
    assert all(equal(a, b) for a, b in zip(before, after, strict=True))
    assert run.step_count == 2
    assert math.isfinite(run.step()["loss"])
    assert not equal(parameters(run.model), before[0])


def test_a_discriminator_that_is_not_finite_is_not_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer()
    monkeypatch.setattr(
        gsq.training.trainer, "discriminator_loss", broken(0, 9, gsq.training.trainer.discriminator_loss, run)
    )
    before = parameters(run.discriminator)  # type: ignore[arg-type]
    run.step()
    assert equal(parameters(run.discriminator), before)  # type: ignore[arg-type]


def test_patience_counts_steps_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer()
    original = gsq.training.trainer.generator_loss
    monkeypatch.setattr(gsq.training.trainer, "generator_loss", broken(0, PATIENCE - 1, original, run))
    for _ in range(PATIENCE):
        run.step()
    assert run.failed_steps == 0
    monkeypatch.setattr(gsq.training.trainer, "generator_loss", broken(0, 99, original, run))
    for _ in range(PATIENCE - 1):
        run.step()
    with pytest.raises(Diverged, match=f"{PATIENCE} steps in a row"):
        run.step()


def test_a_diverged_run_keeps_its_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(10**6))
    original = gsq.training.trainer.generator_loss
    monkeypatch.setattr(
        gsq.training.trainer, "generator_loss", lambda *a: original(*a) * (float("nan") if next(calls) >= 4 else 1.0)
    )
    with pytest.raises(Diverged):
        train(tiny(steps=20, loss__perceptual="none", execution__checkpoint_every=4), tmp_path)
    (path,) = tmp_path.glob("??/*")
    folder = RunFolder(path)
    found = status(folder)
    assert (found["state"], found["failure"]) == ("failed", "diverged") and "not finite" in found["message"]
    attempts = folder.attempt_folders()
    newest = next(checkpoint.newest(attempts))
    state = checkpoint.load(newest, torch.device("cpu"))
    assert state["step"] in (4, 8)
    assert all(value.isfinite().all() for value in state["model"].values())
    # The curve shows what happened.
    assert [math.isnan(line["loss"]) for line in read_metrics(folder)] == [False] * 4 + [True] * 4


def test_patience_survives_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted every few steps, a run that diverges still ends."""
    run = trainer()
    monkeypatch.setattr(gsq.training.trainer, "generator_loss", broken(0, 99, gsq.training.trainer.generator_loss, run))
    for _ in range(PATIENCE - 1):
        run.step()
        state = run.state()
        run.failed_steps = 0
        run.load_state(state)
    with pytest.raises(Diverged):
        run.step()
