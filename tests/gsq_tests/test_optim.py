"""Weight decay, learning rates, averaged weights and clipped gradients."""

from __future__ import annotations

import pytest
import torch
from tiny_trainer import equal, parameters, trainer
from torch import nn

from gsq.config.schedule import OptimizerConfig
from gsq.training.optim import AdamW, build_optimizer, clip_gradients, learning_rate, set_learning_rate, update_ema


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


def test_steps_are_those_of_torch_bit_for_bit() -> None:
    """Also from a state of one in the other, with groups that differ, hooks, and gradients that are not set."""
    states: list[list[torch.Tensor]] = []
    for one, other in ((AdamW, torch.optim.AdamW), (torch.optim.AdamW, AdamW), (torch.optim.AdamW, torch.optim.AdamW)):
        torch.manual_seed(0)
        model, called = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(3, 3)), []

        def made(kind: type[torch.optim.AdamW], model: nn.Sequential = model) -> torch.optim.AdamW:
            made = kind(model[0].parameters(), lr=1e-2, betas=(0.5, 0.9), fused=True)
            made.add_param_group({"params": list(model[1:].parameters()), "weight_decay": 0.1})
            return made

        optimizer = made(one)
        for step in range(6):
            if step == 3:
                state = optimizer.state_dict()
                optimizer = made(other)
                optimizer.load_state_dict(state)
                optimizer.register_step_post_hook(lambda *_, called=called: called.append(1))
            loss = model[:2](torch.randn(5, 4)).square().sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        assert len(called) == 3 and torch.is_grad_enabled()
        states.append([*model.parameters(), *(v["exp_avg_sq"] for v in optimizer.state.values())])
    for found in states[:2]:
        assert len(found) == len(states[2]) and all(torch.equal(a, b) for a, b in zip(found, states[2], strict=True))


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
