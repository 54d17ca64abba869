"""What the trainer adds to the bare forward, backward and optimiser steps of the same networks.

    python tests/benchmarks/trainer.py [--preset cpu-tiny] [--set KEY=VALUE ...] [--steps 60] [--output FILE.json]

The bare loop has the images at hand and does nothing but what the losses need; the trainer also draws and crops its
images, watches for losses that are not finite, clips gradients, keeps averaged weights and reports losses. Both take
turns step by step in one process with one thread, after a warm-up; times are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml

from gsq import override, preset
from gsq.data.batches import ImageSource
from gsq.models.autoencoder import Autoencoder
from gsq.models.discriminators import build_discriminator
from gsq.runs.provenance import environment
from gsq.training.losses import build_perceptual_loss, discriminator_loss, generator_loss
from gsq.training.optim import build_optimizer
from gsq.training.trainer import Trainer, pick_device

WARM_UP = 5


class Bare:
    """The same modules and losses in the shortest loop."""

    def __init__(self, trainer: Trainer) -> None:
        config, device = trainer.config, trainer.device
        self.weights = config.loss
        self.images = trainer.batches(0)
        torch.manual_seed(config.train.seed)
        self.model = Autoencoder(config).to(device)
        discriminator = build_discriminator(config.discriminator, config.data.image_size)
        perceptual = build_perceptual_loss(config.loss.perceptual)
        assert discriminator is not None and perceptual is not None
        self.discriminator = discriminator.to(device)
        self.perceptual = perceptual.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = build_optimizer([self.model], config.optimizer)
        self.optimizer_d = build_optimizer([self.discriminator], config.optimizer)
        self.autocast = trainer._autocast
        if config.execution.channels_last:
            for module in (self.model, self.discriminator):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.images = self.images.contiguous(memory_format=torch.channels_last)

    def step(self) -> None:
        images, weights = self.images, self.weights
        self.optimizer.zero_grad()
        self.discriminator.requires_grad_(False)
        with self.autocast():
            output = self.model(images)
            found = output.images.float()
            loss = weights.mse_weight * F.mse_loss(found, images) + output.quantizer_loss
            loss = loss + weights.perceptual_weight * self.perceptual(
                *(x.contiguous(memory_format=torch.channels_last) for x in (found, images))
            )
            logits = self.discriminator(found).float()
            loss = loss + weights.adversarial_weight * generator_loss(weights.generator_loss, logits)
        loss.backward()
        self.optimizer.step()
        self.discriminator.requires_grad_(True)
        self.optimizer_d.zero_grad()
        with self.autocast():
            real, fake = self.discriminator(images).float(), self.discriminator(found.detach()).float()
            loss_d = discriminator_loss(weights.discriminator_loss, real, fake)
        loss_d.backward()
        self.optimizer_d.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cpu-tiny")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="such as execution.compile=true"
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    changes: dict[str, Any] = {"loss.discriminator_start": 0, "loss.perceptual": "efficientnet_lite0"}
    for setting in arguments.set:
        key, _, value = setting.partition("=")
        changes[key] = yaml.safe_load(value)
    config = override(preset(arguments.preset), changes)
    device = pick_device(config.execution.device)
    trainer = Trainer(config, ImageSource(config.data))
    bare = Bare(trainer)

    def timed(step: object) -> float:
        start = time.perf_counter()
        step()  # type: ignore[operator]
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    times: dict[str, list[float]] = {"bare": [], "trainer": []}
    for i in range(WARM_UP + arguments.steps):
        pair = {"bare": timed(bare.step), "trainer": timed(trainer.step)}
        if i >= WARM_UP:
            for name, seconds in pair.items():
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    found = environment(config, torch.cuda.get_device_name() if device.type == "cuda" else "cpu")
    result = {
        "preset": arguments.preset,
        "set": arguments.set,
        "batch_size": config.train.batch_size,
        "steps": arguments.steps,
        "bare_ms": round(1e3 * medians["bare"], 2),
        "trainer_ms": round(1e3 * medians["trainer"], 2),
        "images_per_second": round(config.train.batch_size / medians["trainer"], 1),
        "ratio": round(medians["trainer"] / medians["bare"], 4),
        "device": found["device"],
        "threads": 1,
        "torch": found["versions"]["torch"],
    }
    print(json.dumps(result, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
