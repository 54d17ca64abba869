"""Train a probe. Batch i of a step depends on (seed, i) alone, so that a resumed probe computes the same bits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gsq.config.probe import CURVE, SELECTION, ProbeSize
from gsq.evaluation.evaluate import NonFiniteReconstruction
from gsq.files import whole
from gsq.probe.model import Prior
from gsq.training.distributed import Group
from gsq.training.optim import AdamW

# Images of one forward pass without gradients, and of the held-out and training images behind the curves.
PASS, WATCHED = 32, 32
# A curve has levelled off if its last quarter gains less than this share of it, or so many bits a position.
LEVEL_SHARE, LEVEL_BITS = 0.01, 0.001

Tick = Callable[[BaseException | None], None]


class ProbeDiverged(NonFiniteReconstruction):
    """The loss of a probe is NaN or infinite; the message names the step."""


@dataclass
class Fitted:
    """The record of a probe's training; the weights are those of ``kept``."""

    selection: list[float] = field(default_factory=list)
    """Bits a position of the training images that choose the step, at CURVE steps."""
    held_out: list[float] = field(default_factory=list)
    """The same over the first WATCHED held-out images."""
    kept: int = 0
    """The step whose weights are kept."""
    seconds: float = 0.0

    @property
    def converged(self) -> bool:
        """Whether the training has levelled off, so that its last quarter gained next to nothing."""
        start = min(self.selection[: CURVE * 3 // 4])
        return start - min(self.selection) < max(LEVEL_SHARE * start, LEVEL_BITS)

    @property
    def overfits(self) -> bool:
        """Whether held-out images got longer codes again during the training."""
        best = min(self.held_out)
        return self.held_out[-1] - best > max(LEVEL_SHARE * best, LEVEL_BITS)


def bits_each(prior: Prior, codes: Tensor) -> Tensor:
    """Codes (N, P, C) -> exact code length of each image [bits], (N,) float64 on the CPU."""
    device = prior.weight.device
    return torch.cat([prior.bits(part.to(device)).cpu() for part in codes.split(PASS)])


def bits_a_position(prior: Prior, codes: Tensor) -> float:
    return float(bits_each(prior, codes).mean()) / codes.shape[1]


def optimiser(prior: nn.Module, size: ProbeSize) -> AdamW:
    matrices = [p for n, p in prior.named_parameters() if "blocks" in n and p.ndim == 2]
    others = [p for n, p in prior.named_parameters() if not ("blocks" in n and p.ndim == 2)]
    groups = [{"params": matrices, "weight_decay": size.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return AdamW(groups, lr=size.learning_rate, betas=(0.9, 0.95), fused=True)


def rate(size: ProbeSize, step: int) -> float:
    """Learning rate of a step, which counts from 0: a linear rise, then a cosine to a tenth."""
    rise = max(1, round(size.warmup * size.steps))
    share = max(0, step - rise) / max(1, size.steps - rise)
    return size.learning_rate * min(1.0, (step + 1) / rise) * (0.55 + 0.45 * math.cos(math.pi * min(1.0, share)))


def curve_steps(steps: int) -> list[int]:
    """The CURVE steps after which a probe is measured; the last one is the end."""
    return [max(1, round(steps * (i + 1) / CURVE)) for i in range(CURVE)]


class _Order:
    """The images of each batch: one random order after the other."""

    def __init__(self, count: int, batch: int, seed: int) -> None:
        self.count, self.batch, self.seed = count, batch, seed
        self.epoch, self.order = -1, torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> Tensor:
        found = []
        for i in range(step * self.batch, (step + 1) * self.batch):
            epoch, place = divmod(i, self.count)
            if epoch != self.epoch:
                made = torch.Generator().manual_seed((self.seed << 20) + epoch)
                self.epoch, self.order = epoch, torch.randperm(self.count, generator=made)
            found.append(int(self.order[place]))
        return torch.tensor(found)


def split(train: Tensor, mirrored: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Codes of the training images, (N, P, C) -> those that are trained on, and those that choose the step."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    chosen, rest = order.split(
        [max(1, round(SELECTION * len(train))), len(train) - max(1, round(SELECTION * len(train)))]
    )
    parts = [train[rest], *([mirrored[rest]] if len(mirrored) else [])]
    return torch.cat(parts), train[chosen]


def fit(
    prior: Prior,
    train: Tensor,
    selection: Tensor,
    held_out: Tensor,
    seed: int,
    *,
    checkpoint: Path | None = None,
    group: Group | None = None,
    tick: Tick = lambda error: None,
) -> Fitted:
    """Train the probe on codes (N, P, C), and leave it with the weights that code ``selection`` shortest.

    checkpoint: file that an interrupted training goes on from, with the same result. group: the processes that share
    each batch. tick is called after each step, equally often on every process; it raises to stop. Raises ProbeDiverged.
    """
    group, size = group or Group(), prior.size
    device, result = prior.weight.device, Fitted()
    optimizer = optimiser(prior, size)
    order = _Order(len(train), size.batch(train.shape[1]), seed)
    best: dict[str, Tensor] = {}
    known = group.from_first(_load(checkpoint) if checkpoint and group.first else None)
    step = 0
    if known is not None:
        prior.load_state_dict(known["model"])
        optimizer.load_state_dict(known["optimizer"])
        result, best, step = Fitted(**known["result"]), known["best"], known["step"]
    due = curve_steps(size.steps)
    begun = time.monotonic() - result.seconds
    selection, held_out = selection[:WATCHED], held_out[:WATCHED]
    while step < size.steps:
        images = order(step)
        loss = _step(prior, optimizer, train, images, rate(size, step), group, device)
        step += 1
        tick(None if math.isfinite(loss) else ProbeDiverged(f"the probe's loss is {loss} at its step {step}"))
        if not math.isfinite(loss):
            raise ProbeDiverged(f"the probe's loss is {loss} at its step {step}")
        for _ in range(due.count(step)):
            found = bits_a_position(prior, selection)
            if not result.selection or found < min(result.selection):
                best = {name: value.detach().clone() for name, value in prior.state_dict().items()}
                result.kept = step
            result.selection.append(found)
            result.held_out.append(bits_a_position(prior, held_out))
        result.seconds = time.monotonic() - begun
        if step in due and checkpoint and group.first:
            state = {"model": prior.state_dict(), "optimizer": optimizer.state_dict(), "best": best, "step": step}
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            with whole(checkpoint) as partial:
                torch.save({**state, "result": vars(result)}, partial)
    prior.load_state_dict(best)
    return result


def _step(
    prior: Prior,
    optimizer: torch.optim.Optimizer,
    train: Tensor,
    images: Tensor,
    learning_rate: float,
    group: Group,
    device: torch.device,
) -> float:
    """One step over the images of a batch, of which each process takes a share; returns nats a code."""
    optimizer.zero_grad(set_to_none=True)
    mine = train[images[group.rank :: group.size]].to(device)
    total = torch.zeros(1, dtype=torch.float64, device=device)
    if len(mine):
        loss = prior(mine) / (len(images) * mine.shape[1] * mine.shape[2])
        loss.backward()
        total += loss.detach()
    group.sum_(total)
    group.sum_gradients(prior.parameters())
    nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
    for options in optimizer.param_groups:
        options["lr"] = learning_rate
    optimizer.step()
    return float(total)


def _load(path: Path) -> dict[str, Any] | None:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # without one, or with a damaged one, the training starts anew
        return None
    return found if isinstance(found, dict) else None
