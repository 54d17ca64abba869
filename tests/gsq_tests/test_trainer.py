"""The training loop: it learns, it resumes to the bit, it refuses steps that are not finite."""

from __future__ import annotations

import copy
import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import curve, evaluations, status, tiny
from torch import Tensor, nn

import gsq.training.trainer
from gsq import RunConfig, RunFolder, train
from gsq.config.schedule import OptimizerConfig
from gsq.data.batches import ImageSource
from gsq.records.read import newest_file, read_metrics
from gsq.runs.stop import Stopped, StopRequest
from gsq.training import checkpoint
from gsq.training.optim import build_optimizer, clip_gradients, learning_rate, set_learning_rate, update_ema
from gsq.training.trainer import PATIENCE, Diverged, Trainer


def trainer(**changes: Any) -> Trainer:
    config = tiny(**{"loss__perceptual": "none", **changes})
    return Trainer(config, ImageSource(config.data))


def parameters(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


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


# Optimiser, averaged weights, clipping.


def test_weight_decay_spares_codebook_norms_and_biases() -> None:
    run = trainer(model__attention=True, model__blocks=2)
    decayed, spared = run.optimizer.param_groups
    names = {id(p): name for name, p in run.model.named_parameters()}
    decayed_names = {names[id(p)] for p in decayed["params"]}
    spared_names = {names[id(p)] for p in spared["params"]}
    assert decayed["weight_decay"] == 0.05 and spared["weight_decay"] == 0
    assert decayed_names | spared_names == set(names.values())
    assert "quantizer.codebook" in spared_names
    assert all(name.endswith(".weight") for name in decayed_names)
    assert {name for name in names.values() if name.endswith(".bias")} <= spared_names
    sizes = {name: p.ndim for name, p in run.model.named_parameters()}
    assert {sizes[name] for name in decayed_names} == {2, 4}
    assert run.optimizer_d is not None and len(run.optimizer_d.param_groups) == 2


def test_decay_everything_is_the_papers() -> None:
    run = trainer(optimizer__decay_everything=True)
    (group,) = run.optimizer.param_groups
    assert group["weight_decay"] == 0.05 and len(group["params"]) == len(list(run.model.parameters()))


def test_optimizer_settings() -> None:
    config = OptimizerConfig(learning_rate=3e-4, betas=(0.5, 0.9), eps=1e-6, weight_decay=0.1, warmup_steps=4)
    optimizer = build_optimizer([nn.Linear(2, 2)], config)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (3e-4, (0.5, 0.9), 1e-6, 0.1)


def test_learning_rate() -> None:
    """Over 8 steps, the first 4 warming up."""
    shares = (0.25, 0.5, 0.75, 1, 1, 1, 1, 1)
    config = OptimizerConfig(learning_rate=3e-4, warmup_steps=4)
    optimizer = build_optimizer([nn.Linear(2, 2)], config)
    rates = []
    for step in range(8):
        set_learning_rate(optimizer, config, step)
        rates.append([group["lr"] / 3e-4 for group in optimizer.param_groups])
    assert rates == [[pytest.approx(share, abs=1e-3)] * 2 for share in shares]


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("linear", (0.5, 1, 1, 0.775, 0.55, 0.325, 0.1, 0.1)),
        ("cosine", (0.5, 1, 1, 0.8682, 0.55, 0.2318, 0.1, 0.1)),
        ("step", (0.5, 1, 1, 1, 1, 1, 0.1, 0.1)),
    ],
)
def test_a_schedule_falls_after_the_warm_up_and_stays(schedule: str, shares: tuple[float, ...]) -> None:
    config = OptimizerConfig(
        learning_rate=1e-3, warmup_steps=2, schedule=schedule, decay_steps=4, final_learning_rate=1e-4
    )
    assert [learning_rate(config, step) / 1e-3 for step in range(8)] == pytest.approx(shares, abs=1e-4)


def test_the_discriminator_may_have_its_own_betas() -> None:
    run = trainer(optimizer__betas=[0.9, 0.95], optimizer__discriminator_betas=[0.5, 0.9])
    assert run.optimizer_d is not None
    betas = [optimizer.param_groups[0]["betas"] for optimizer in (run.optimizer, run.optimizer_d)]
    assert betas == [(0.9, 0.95), (0.5, 0.9)]


def test_the_learning_rate_of_a_step_is_used() -> None:
    run = trainer(steps=4, optimizer__warmup_steps=4, optimizer__learning_rate=2e-3, loss__discriminator_start=0)
    rates = []
    for _ in range(4):
        run.step()
        assert run.optimizer_d is not None
        rates.append((run.optimizer.param_groups[0]["lr"], run.optimizer_d.param_groups[1]["lr"]))
    assert rates == [(pytest.approx(2e-3 * share),) * 2 for share in (0.25, 0.5, 0.75, 1)]


@pytest.mark.parametrize(
    ("step", "decay", "used"), [(0, 0.999, 0.1), (8, 0.999, 0.5), (10**6, 0.999, 0.999), (8, 0, 0)]
)
def test_averaging_formula(step: int, decay: float, used: float) -> None:
    averaged, model = nn.Linear(3, 2), nn.Linear(3, 2)
    wanted = [used * a + (1 - used) * b for a, b in zip(parameters(averaged), parameters(model), strict=True)]
    update_ema([p.detach() for p in averaged.parameters()], [p.detach() for p in model.parameters()], decay, step)
    torch.testing.assert_close(parameters(averaged), wanted)


def test_averaged_weights_follow_the_model_codebook_included() -> None:
    run = trainer(optimizer__ema_decay=0.5)
    before = parameters(run.ema)
    run.step()
    wanted = [0.1 * a + 0.9 * b for a, b in zip(before, parameters(run.model), strict=True)]
    torch.testing.assert_close(parameters(run.ema), wanted)
    assert not equal(before[-1:], parameters(run.ema)[-1:])
    assert not torch.equal(run.ema.quantizer.codebook, trainer().ema.quantizer.codebook)
    assert not any(p.requires_grad for p in run.ema.parameters())


def test_clipping() -> None:
    layer = nn.Linear(4, 4)
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert clip_gradients(layer.parameters(), 0).item() == pytest.approx(20**0.5)
    assert layer.weight.grad is not None and layer.weight.grad.eq(1).all()
    assert clip_gradients(layer.parameters(), 2).item() == pytest.approx(20**0.5)
    norm = torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(2, rel=1e-5)


def test_gradients_are_clipped_apart() -> None:
    run = trainer(optimizer__gradient_clip=1e-3)
    norms: list[float] = []

    def record(optimizer: torch.optim.Optimizer, *_: object) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.cat([g.flatten() for g in grads if g is not None]).norm().item())

    assert run.optimizer_d is not None
    run.optimizer.register_step_pre_hook(record)
    run.optimizer_d.register_step_pre_hook(record)
    line = run.step()
    assert line["gradient_norm"] > 1e-3 and line["gradient_norm_d"] > 1e-3
    assert norms == [pytest.approx(1e-3, rel=1e-2)] * 2


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


# Resuming.

RESUMED = {"steps": 8, "execution__checkpoint_every": 3, "evaluation__every": 4}


def resumed_config() -> RunConfig:
    return tiny(**RESUMED)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(resumed_config(), tmp_path_factory.mktemp("undisturbed"))


def interrupt(runs: Path, at: int, call: int = 1) -> RunFolder:
    """Ask the run to stop at the ``call``-th call of on_step at step ``at``; the second comes from an evaluation."""
    stop, seen = StopRequest(), []

    def on_step(step: int) -> None:
        seen.append(step)
        if seen.count(at) == call:
            stop.reason = "preempted"

    with pytest.raises(Stopped, match="preempted"):
        train(resumed_config(), runs, stop=stop, on_step=on_step)
    (path,) = runs.glob("??/*")
    folder = RunFolder(path)
    found = status(folder)
    assert (found["state"], found["failure"], found["step"]) == ("failed", "preempted", at)
    return folder


def same(found: RunFolder, wanted: RunFolder) -> None:
    weights = [newest_file(folder, "model.safetensors") for folder in (found, wanted)]
    assert weights[0] is not None and weights[1] is not None
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert [e["step"] for e in evaluations(found)] == [4, 8]
    assert evaluations(found) == evaluations(wanted)
    assert curve(found) == curve(wanted) and len(curve(found)) == 8


def test_undisturbed_runs_repeat_to_the_bit(undisturbed: RunFolder, tmp_path: Path) -> None:
    same(train(resumed_config(), tmp_path), undisturbed)


@pytest.mark.parametrize("steps", [(1,), (3,), (4,), (2, 3, 7), (8,)])
def test_resumed_runs_equal_undisturbed_ones(undisturbed: RunFolder, tmp_path: Path, steps: tuple[int, ...]) -> None:
    for step in steps:
        folder = interrupt(tmp_path, step)
        newest = next(checkpoint.newest(folder.attempt_folders()))
        assert newest.name == f"checkpoint-{step:08d}.pt"
    same(train(resumed_config(), tmp_path), undisturbed)
    assert len(folder.attempt_folders()) == len(steps) + 1


@pytest.mark.parametrize("step", [4, 8])
def test_interrupted_in_an_evaluation(undisturbed: RunFolder, tmp_path: Path, step: int) -> None:
    """Stopped promises a checkpoint of the finished step there, too, though none is due at step 4."""
    folder = interrupt(tmp_path, step, call=2)
    assert next(checkpoint.newest(folder.attempt_folders())).name == f"checkpoint-{step:08d}.pt"
    same(train(resumed_config(), tmp_path), undisturbed)


@pytest.mark.parametrize("left", ["older", "damaged", "none"])
def test_resumed_from_what_a_kill_left(undisturbed: RunFolder, tmp_path: Path, left: str) -> None:
    folder = interrupt(tmp_path, 5)
    (attempt,) = folder.attempt_folders()
    newest = attempt / "checkpoint-00000005.pt"
    if left == "damaged":
        newest.write_bytes(newest.read_bytes()[:-100])
    else:
        newest.unlink()
    if left == "none":
        checkpoint.remove_all(attempt)
    same(train(resumed_config(), tmp_path), undisturbed)


EVERYTHING = {
    "quantizer__codebook_update": "ema",
    "loss__adaptive_weight": True,
    "loss__lecam_weight": 0.1,
    "loss__gradient_penalty_weight": 0.1,
    "discriminator__augment": ["color", "translation", "cutout"],
    "execution__micro_batch": 1,
}


@pytest.mark.parametrize("changes", [{}, EVERYTHING, {"quantizer": "rvq", "groups": 1, "quantizer__depth": 2}])
def test_state_of_a_trainer_is_whole(changes: dict[str, Any]) -> None:
    """A trainer loaded from a state goes on as the one that it came from, in every module and optimiser."""
    a, b = trainer(**changes), trainer(**changes)
    for _ in range(2):
        a.step()
    # As through a file: what state() gives are the live tensors.
    b.load_state(copy.deepcopy(a.state()))
    assert a.step() == b.step() and a.step() == b.step()
    for name, part in a._parts().items():
        if isinstance(part, nn.Module):
            assert equal(parameters(part), parameters(b._parts()[name])), name  # type: ignore[arg-type]


def test_threads_and_logging_are_no_science(undisturbed: RunFolder, tmp_path: Path) -> None:
    config = resumed_config()
    execution = dataclasses.replace(config.execution, log_every=5, checkpoint_every=100)
    folder = train(dataclasses.replace(config, execution=execution), tmp_path)
    assert folder.signature == undisturbed.signature
    # The last step is always logged.
    assert [line["step"] for line in read_metrics(folder)] == [5, 8]
    assert evaluations(folder) == evaluations(undisturbed)
