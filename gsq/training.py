"""The training loop of one GSQ-GAN, resumable at any step with the same result.

Shapes: B images of S x S pixels, in [-1, 1].
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsq import checkpoint
from gsq.autoencoder import Autoencoder
from gsq.config import RunConfig
from gsq.data import ImageSource
from gsq.discriminators import build_discriminator
from gsq.errors import UserError
from gsq.losses import build_perceptual_loss, discriminator_loss, generator_loss
from gsq.optim import build_optimizer, clip_gradients, set_learning_rate, update_ema
from gsq.record import Attempt

# Steps in a row whose loss or gradient is not finite, after which a run has diverged.
PATIENCE = 5


class Diverged(Exception):
    """The loss or its gradient stayed not finite."""


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("execution.device: 'cuda' is not available here; use auto or cpu, or a machine with a GPU")
    return torch.device(name)


class Trainer:
    """Model, discriminator, optimisers and averaged weights; one call of ``step`` is one optimiser step each."""

    def __init__(self, config: RunConfig, source: ImageSource) -> None:
        self.config, self.source = config, source
        self.device = pick_device(config.execution.device)
        torch.manual_seed(config.train.seed)
        self.model = Autoencoder(config).to(self.device)
        self.discriminator = build_discriminator(config.discriminator)
        if self.discriminator is not None:
            self.discriminator.to(self.device)
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self.perceptual = build_perceptual_loss(config.loss.perceptual)
        if self.perceptual is not None:
            # Depthwise convolutions run up to twice as fast in this layout.
            self.perceptual.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = build_optimizer([self.model], config.optimizer)
        self.optimizer_d = build_optimizer([self.discriminator], config.optimizer) if self.discriminator else None
        self.step_count = 0
        self.failed_steps = 0

    def _modules(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        parts = {
            "model": self.model,
            "ema": self.ema,
            "discriminator": self.discriminator,
            "optimizer": self.optimizer,
            "optimizer_d": self.optimizer_d,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def state(self) -> dict[str, Any]:
        """Everything that later steps depend on; batches depend on (seed, step) alone."""
        counts = {"step": self.step_count, "failed_steps": self.failed_steps}
        return {**counts, **{name: part.state_dict() for name, part in self._modules().items()}}

    def load_state(self, state: dict[str, Any]) -> None:
        self.step_count, self.failed_steps = state["step"], state["failed_steps"]
        for name, part in self._modules().items():
            part.load_state_dict(state[name])

    def _autocast(self) -> torch.autocast:
        enabled = self.config.train.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def step(self) -> dict[str, float]:
        """One step of generator and discriminator; returns its losses. A step that is not finite is not applied.

        Raises Diverged after PATIENCE such steps in a row.
        """
        config, weights = self.config, self.config.loss
        images = self.source.train_batch(config.train.seed, self.step_count, config.train.batch_size).to(self.device)
        adversarial = self.discriminator is not None and self.step_count >= weights.discriminator_start

        with self._autocast():
            output = self.model(images)
            found = output.images.float()
            losses = {"mse": F.mse_loss(found, images), "quantizer": output.quantizer_loss}
            if self.perceptual is not None:
                losses["perceptual"] = self.perceptual(
                    *(x.contiguous(memory_format=torch.channels_last) for x in (found, images))
                )
            if adversarial:
                assert self.discriminator is not None
                self.discriminator.requires_grad_(False)
                losses["adversarial"] = generator_loss(weights.generator_loss, self.discriminator(found).float())
                self.discriminator.requires_grad_(True)
        scale = {
            "mse": weights.mse_weight,
            "perceptual": weights.perceptual_weight,
            "adversarial": weights.adversarial_weight,
            "quantizer": 1.0,
        }
        total = torch.stack([scale[name] * loss for name, loss in losses.items()]).sum()
        applied = self._apply(total, self.model, self.optimizer, losses, "gradient_norm")
        if adversarial and applied:
            assert self.discriminator is not None and self.optimizer_d is not None
            with self._autocast():
                real, fake = self.discriminator(images).float(), self.discriminator(found.detach()).float()
                loss_d = discriminator_loss(weights.discriminator_loss, real, fake)
            losses["discriminator"] = loss_d
            losses["real_logit"], losses["fake_logit"] = real.mean(), fake.mean()
            applied = self._apply(loss_d, self.discriminator, self.optimizer_d, losses, "gradient_norm_d")
        if applied:
            self.failed_steps = 0
            update_ema(self.ema, self.model, config.optimizer.ema_decay, self.step_count)
        else:
            self.failed_steps += 1
            if self.failed_steps >= PATIENCE:
                raise Diverged(
                    f"loss or gradient not finite in {PATIENCE} steps in a row, up to step {self.step_count}"
                )
        self.step_count += 1
        return {"loss": float(total.detach()), **{name: float(loss.detach()) for name, loss in losses.items()}}

    def _apply(
        self,
        loss: Tensor,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        losses: dict[str, Tensor],
        norm_name: str,
    ) -> bool:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = clip_gradients(module.parameters(), self.config.optimizer.gradient_clip)
        losses[norm_name] = norm
        if not (math.isfinite(float(loss.detach())) and math.isfinite(float(norm))):
            optimizer.zero_grad(set_to_none=True)
            return False
        set_learning_rate(optimizer, self.config.optimizer, self.step_count)
        optimizer.step()
        return True


def train(
    trainer: Trainer,
    attempt: Attempt,
    previous: list[Any],
    *,
    tick: Callable[[Trainer], None],
    evaluate: Callable[[Trainer], None],
) -> None:
    """Train to config.train.steps, from the newest valid checkpoint in the folders ``previous``.

    tick is called after each step and may raise to stop; before it passes on what tick raises, a checkpoint of
    the finished step is written. evaluate is called every config.evaluation.every steps.
    """
    config = trainer.config
    for path in checkpoint.newest(previous):
        trainer.load_state(checkpoint.load(path, trainer.device))
        break
    steps, every = config.train.steps, config.evaluation.every

    def due(step: int) -> bool:
        return bool(every) and step % every == 0 and 0 < step < steps

    if due(trainer.step_count):
        # The attempt that left this checkpoint may have ended before, or in, the evaluation of its step.
        evaluate(trainer)
    images_since, since = 0, time.perf_counter()
    while trainer.step_count < steps:
        losses = trainer.step()
        step = trainer.step_count
        images_since += config.train.batch_size
        if step % config.execution.log_every == 0 or step == steps:
            now = time.perf_counter()
            attempt.log_metrics(step, {**losses, "images_per_second": images_since / (now - since)})
            images_since, since = 0, now
        try:
            tick(trainer)
            if due(step):
                evaluate(trainer)
        except BaseException:
            checkpoint.save(attempt.path, step, trainer.state())
            raise
        if step % config.execution.checkpoint_every == 0 or step == steps:
            checkpoint.save(attempt.path, step, trainer.state())
