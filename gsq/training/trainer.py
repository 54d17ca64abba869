"""One optimiser step of a GSQ-GAN at a time, resumable at any step with the same result.

Shapes: B images of S x S pixels, in [-1, 1].
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsq.config.run import RunConfig
from gsq.data.batches import Batches, ImageSource
from gsq.models.autoencoder import Autoencoder
from gsq.models.discriminators import build_discriminator
from gsq.quantizers import NonFiniteLatent, check_counted
from gsq.training import augment
from gsq.training.distributed import Group, pick_device
from gsq.training.losses import (
    LeCAM,
    adaptive_weight,
    build_perceptual_loss,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from gsq.training.optim import averaged_tensors, build_optimizer, clip_gradients, set_learning_rate, update_ema

# After so many steps in a row with a loss or gradient that is not finite, a run has diverged.
PATIENCE = 5
# Streams of random numbers for the augmentation of real and of generated images.
REAL_STREAM, FAKE_STREAM, GENERATOR_STREAM = 0, 1, 2
# Losses whose means LeCAM averages.
LOGITS = ("real_logit", "fake_logit")


class Diverged(Exception):
    """Loss or gradient were not finite in too many steps in a row."""


class Trainer:
    """Model, discriminator, optimisers and averaged weights. One call of ``step`` is one step of each optimiser.

    A step works through this process's share of the global batch in parts of execution.micro_batch images. Means are
    over the global batch, so the result does not depend on the split. With discriminator.batch ``new``, the
    discriminator's images of a step have the numbers after the generator's.
    """

    def __init__(self, config: RunConfig, source: ImageSource, group: Group | None = None) -> None:
        self.config, self.group = config, group or Group()
        self.device = self.group.device or pick_device(config.execution.device)
        self.images = self.group.images(config.train.batch_size)
        workers, size = config.execution.data_workers, config.train.batch_size
        self.batches = Batches(source, config.train.seed, self.images, workers, self.device)
        self.discriminator_batches = self.batches
        if config.discriminator.batch == "new":
            following = range(size + self.images.start, size + self.images.stop)
            self.discriminator_batches = Batches(source, config.train.seed, following, workers, self.device)
        torch.manual_seed(config.train.seed)
        self.model = Autoencoder(config).to(self.device)
        check_counted(self.model.quantizer, config)
        self.discriminator = build_discriminator(config.discriminator, config.data.image_size)
        if self.discriminator is not None:
            self.discriminator.to(self.device)
        self.ema = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.perceptual = build_perceptual_loss(
            config.loss.perceptual, config.loss.perceptual_range, config.loss.options
        )
        if self.perceptual is not None:
            # Depthwise convolutions run up to twice as fast in this layout.
            self.perceptual.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.lecam = LeCAM().to(self.device) if config.loss.lecam_weight else None
        self.optimizer = build_optimizer([self.model], config.optimizer)
        self.optimizer_d = None
        if self.discriminator is not None:
            self.optimizer_d = build_optimizer([self.discriminator], config.optimizer, discriminator=True)
        # The weights of the decoder's output layer, at which the adaptive weight compares gradients.
        self.last_layer = [p for p in self.model.decoder.parameters() if p.ndim > 1][-1]
        self.averaged, self.current = averaged_tensors(self.ema, self.model)
        self._prepare()
        self.step_count = 0
        self.failed_steps = 0

    def _prepare(self) -> None:
        """Apply the memory layout and compilation that ``execution`` asks for."""
        execution = self.config.execution
        if execution.channels_last:
            for module in (self.model, self.ema, self.discriminator):
                if module is not None:
                    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if not execution.compile:
            return
        if self.config.loss.adaptive_weight:
            from torch._functorch import config as compiler

            # Two gradients use one graph, so the first must not give away its buffers.
            compiler.donated_buffer = False
        # The quantizer is not compiled, since its look-up branches on the data.
        self.model.encoder.compile()
        self.model.decoder.compile()
        if self.discriminator is not None and not self.config.loss.gradient_penalty_weight:
            # A compiled graph has no second derivative.
            self.discriminator.compile()

    @property
    def waited(self) -> float:
        """Total time [s] for which steps have waited for their images."""
        return sum(batches.waited for batches in {self.batches, self.discriminator_batches})

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        parts = {
            "model": self.model,
            "ema": self.ema,
            "discriminator": self.discriminator,
            "optimizer": self.optimizer,
            "optimizer_d": self.optimizer_d,
            "lecam": self.lecam,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def state(self) -> dict[str, Any]:
        """Everything that later steps depend on; images and augmentation depend on (seed, step) alone."""
        counts = {"step": self.step_count, "failed_steps": self.failed_steps}
        return {**counts, **{name: part.state_dict() for name, part in self._parts().items()}}

    def load_state(self, state: dict[str, Any]) -> None:
        self.step_count, self.failed_steps = state["step"], state["failed_steps"]
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _autocast(self) -> torch.autocast:
        enabled = self.config.train.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _micro_batches(self, images: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Rows of this process's share, with their images."""
        size = self.config.execution.micro_batch or len(images)
        for first in range(0, len(images), size):
            rows = slice(first, first + size)
            part = images[rows]
            if self.config.execution.channels_last:
                part = part.contiguous(memory_format=torch.channels_last)
            yield rows, part

    def _in_range(self, images: Tensor) -> Tensor:
        """Convert images from [-1, 1] to the range of the discriminator."""
        return (images + 1) / 2 if self.config.discriminator.image_range == "unit" else images

    def _augmented(self, images: Tensor, rows: slice, stream: int) -> Tensor:
        policy = self.config.discriminator.augment
        if not policy:
            return images
        drawn = augment.draw(policy, self.config.train.seed, self.step_count, stream, self.config.train.batch_size)
        mine = drawn[self.images.start : self.images.stop][rows]
        return augment.augment(images, policy, mine.to(self.device))

    def _generator_losses(self, images: Tensor, rows: slice, adversarial: bool) -> tuple[dict[str, Tensor], Tensor]:
        """Unweighted losses by name, means over these images, and the reconstructions (float32)."""
        weights = self.config.loss
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
                logits = self.discriminator(self._augmented(self._in_range(found), rows, GENERATOR_STREAM)).float()
                losses["adversarial"] = generator_loss(weights.generator_loss, logits)
        return losses, found

    def _logits(self, real_images: Tensor, found: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """The discriminator's logits (float32) of real images (in its range) and of generated ones (in [-1, 1])."""
        assert self.discriminator is not None
        with self._autocast():
            real = self.discriminator(self._augmented(real_images, rows, REAL_STREAM)).float()
            fake = self.discriminator(self._augmented(self._in_range(found), rows, FAKE_STREAM)).float()
        return real, fake

    def _discriminator_losses(self, images: Tensor, found: Tensor, rows: slice) -> dict[str, Tensor]:
        weights = self.config.loss
        penalised = weights.gradient_penalty_weight > 0
        real_images = self._in_range(images.detach()).requires_grad_(penalised)
        real, fake = self._logits(real_images, found, rows)
        with self._autocast():
            losses = {"discriminator": discriminator_loss(weights.discriminator_loss, real, fake)}
            if self.lecam is not None:
                losses["lecam"] = self.lecam(real, fake)
        if penalised:
            losses["gradient_penalty"] = gradient_penalty(real_images, real)
        return {**losses, "real_logit": real.mean(), "fake_logit": fake.mean()}

    def step(self) -> dict[str, float]:
        """Make one step of generator and discriminator. Returns the losses, means over the global batch.

        A step whose loss or gradient is not finite is skipped. Raises Diverged after PATIENCE such steps in a row.
        """
        config, weights = self.config, self.config.loss
        images = self.batches(self.step_count)
        adversarial = self.discriminator is not None and self.step_count >= weights.discriminator_start
        scale: dict[str, Any] = {
            "mse": weights.mse_weight,
            "perceptual": weights.perceptual_weight,
            "adversarial": weights.adversarial_weight,
            "quantizer": 1.0,
            "discriminator": 1.0,
            "lecam": weights.lecam_weight,
            "gradient_penalty": weights.gradient_penalty_weight,
        }
        self.optimizer.zero_grad(set_to_none=True)
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
        reconstructions: dict[int, Tensor] = {}
        ratio = None
        if adversarial and weights.adaptive_weight:
            ratio = self._adaptive_weight(images, scale)
            if ratio is not None:
                scale["adversarial"] = scale["adversarial"] * ratio

        def generator(rows: slice, part: Tensor) -> dict[str, Tensor]:
            losses, found = self._generator_losses(part, rows, adversarial)
            reconstructions[rows.start] = found.detach()
            return losses

        losses = self._accumulate(images, generator, scale)
        norm = self._gradient_norm(self.model) if losses else None
        if self.discriminator is not None:
            self.discriminator.requires_grad_(True)
        applied = losses is not None and self._apply(losses, norm, self.optimizer, "gradient_norm")
        values = dict(losses or {"loss": float("nan")})
        if applied:
            self.model.quantizer.update_codebook(self.group.sum_)
        else:
            self.model.quantizer.discard_pending()
        if adversarial and applied:
            losses_d, applied = self._discriminator_step(images, reconstructions, scale)
            values |= losses_d or {}
        if ratio is not None:
            values["adaptive_weight"] = float(ratio)
        if applied:
            self.failed_steps = 0
            average = config.optimizer
            update_ema(self.averaged, self.current, average.ema_decay, self.step_count, warmup=average.ema_warmup)
        else:
            self.failed_steps += 1
            if self.failed_steps >= PATIENCE:
                raise Diverged(
                    f"loss or gradient not finite in {PATIENCE} steps in a row, up to step {self.step_count}"
                )
        self.step_count += 1
        return values

    def _discriminator_step(
        self, images: Tensor, reconstructions: dict[int, Tensor], scale: dict[str, Any]
    ) -> tuple[dict[str, float] | None, bool]:
        """The discriminator's losses, and whether its optimiser made a step.

        images, reconstructions: the generator's batch, and the reconstructions of its parts by first row.
        """
        assert self.discriminator is not None and self.optimizer_d is not None
        self.optimizer_d.zero_grad(set_to_none=True)
        if self.config.discriminator.batch == "new":
            images = self.discriminator_batches(self.step_count)
            made = self._reconstructions(images)
            if made is None:
                return None, False
            reconstructions = made
        averages = None
        if self.lecam is not None and self.config.loss.lecam_update == "before":
            averages = copy.deepcopy(self.lecam.state_dict())
            self.lecam.update(*self._mean_logits(images, reconstructions))

        def losses_of(rows: slice, part: Tensor) -> dict[str, Tensor]:
            return self._discriminator_losses(part, reconstructions[rows.start], rows)

        losses = self._accumulate(images, losses_of, scale)
        norm = self._gradient_norm(self.discriminator) if losses else None
        applied = losses is not None and self._apply(losses, norm, self.optimizer_d, "gradient_norm_d")
        if averages is not None and not applied:
            assert self.lecam is not None
            self.lecam.load_state_dict(averages)
        elif applied and self.lecam is not None and averages is None:
            assert losses is not None
            self.lecam.update(*(torch.tensor(losses[name], dtype=torch.float64) for name in LOGITS))
        return losses, applied

    @torch.no_grad()
    def _reconstructions(self, images: Tensor) -> dict[int, Tensor] | None:
        """Reconstructions of each part of a batch, by its first row, in [-1, 1] (float32).

        None if a process met a latent that is not finite. The batch leaves no trace in the codebook.
        """
        made: dict[int, Tensor] = {}
        broken = False
        try:
            for rows, part in self._micro_batches(images):
                with self._autocast():
                    made[rows.start] = self.model(part).images.float()
        except NonFiniteLatent:
            broken = True
        self.model.quantizer.discard_pending()
        return None if self._anywhere(broken) else made

    @torch.no_grad()
    def _mean_logits(self, images: Tensor, reconstructions: dict[int, Tensor]) -> Tensor:
        """(2,) float64: mean logits of real and generated images of the global batch, from a separate forward pass."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for rows, part in self._micro_batches(images):
            logits = self._logits(self._in_range(part), reconstructions[rows.start], rows)
            sums += torch.stack([x.mean() for x in logits]).double() * (len(part) / self.config.train.batch_size)
        self.group.sum_(sums)
        return sums

    def _anywhere(self, broken: bool) -> bool:
        """Whether ``broken`` is true in any of the processes."""
        if self.group.size == 1:
            return broken
        flag = torch.tensor(float(broken), device=self.device)
        self.group.sum_(flag)
        return bool(flag)

    def _accumulate(
        self,
        images: Tensor,
        losses_of: Callable[[slice, Tensor], dict[str, Tensor]],
        scale: dict[str, Any],
    ) -> dict[str, float] | None:
        """Run forward and backward passes over the parts of the batch. Returns the losses, means over the global batch,
        or None if a process met a latent that is not finite."""
        sums: Tensor | None = None
        names: list[str] = []
        broken = False
        try:
            for rows, part in self._micro_batches(images):
                losses = losses_of(rows, part)
                names = list(losses)
                share = len(part) / self.config.train.batch_size
                total = torch.stack([scale[n] * loss for n, loss in losses.items() if n in scale]).sum()
                (total * share).backward()
                found = torch.stack([total.detach(), *(loss.detach() for loss in losses.values())]).double() * share
                sums = found if sums is None else sums + found
        except NonFiniteLatent:
            broken = True
        if self._anywhere(broken) or sums is None:
            return None
        self.group.sum_(sums)
        values = sums.tolist()
        total_name = "loss" if "mse" in names else "loss_d"
        return {total_name: values[0], **dict(zip(names, values[1:], strict=True))}

    def _gradient_norm(self, module: nn.Module) -> Tensor:
        parameters = [p for p in module.parameters() if p.requires_grad]
        self.group.sum_gradients(parameters)
        return clip_gradients(parameters, self.config.optimizer.gradient_clip)

    def _apply(
        self, losses: dict[str, float], norm: Tensor | None, optimizer: torch.optim.Optimizer, norm_name: str
    ) -> bool:
        """Make the optimiser's step unless a loss or the gradient is not finite. Returns whether it was made."""
        losses[norm_name] = float("nan") if norm is None else float(norm)
        if not all(math.isfinite(value) for value in losses.values()):
            optimizer.zero_grad(set_to_none=True)
            return False
        trunk = self.config.trunk_steps
        cooldown = trunk, self.config.train.steps - trunk
        set_learning_rate(optimizer, self.config.optimizer, self.step_count, cooldown)
        optimizer.step()
        return True

    def _adaptive_weight(self, images: Tensor, scale: dict[str, Any]) -> Tensor | None:
        """Gradient norm of the reconstruction losses over that of the adversarial one, at the last layer and for the
        global batch. Takes a separate forward pass over all parts of the batch."""
        sums = torch.zeros(2, *self.last_layer.shape, device=self.device)
        broken = False
        try:
            for rows, part in self._micro_batches(images):
                losses, _ = self._generator_losses(part, rows, True)
                reconstruction = scale["mse"] * losses["mse"]
                if "perceptual" in losses:
                    reconstruction = reconstruction + scale["perceptual"] * losses["perceptual"]
                share = len(part) / self.config.train.batch_size
                for i, loss in enumerate((reconstruction, losses["adversarial"])):
                    (gradient,) = torch.autograd.grad(loss, self.last_layer, retain_graph=i == 0)
                    sums[i] += share * gradient
        except NonFiniteLatent:
            broken = True
        self.model.quantizer.discard_pending()
        if self._anywhere(broken):
            return None
        self.group.sum_(sums)
        return adaptive_weight(sums[0], sums[1])
