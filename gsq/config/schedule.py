"""The optimizer and the length of the training in a config."""

from __future__ import annotations

from dataclasses import dataclass, field

from gsq.errors import UserError, at_least, choose_each


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW for generator and discriminator alike, except for discriminator_betas (paper tables 5-12)."""

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    discriminator_betas: tuple[float, ...] = field(default=(), metadata={"legacy": ()})
    """Betas of the discriminator's optimiser, if they differ (paper tables 7 to 9)."""
    weight_decay: float = 0.05
    decay_everything: bool = False
    """Decay codebook, norms and biases too, as the paper does."""
    eps: float = 1e-8
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly."""
    schedule: str = field(default="constant", metadata={"legacy": "constant"})
    """After the warm-up: constant; linear or cosine (from learning_rate to final_learning_rate over decay_steps steps,
    then constant); step (final_learning_rate after decay_steps steps)."""
    decay_steps: int = field(default=0, metadata={"legacy": 0})
    final_learning_rate: float = field(default=0.0, metadata={"legacy": 0.0})
    gradient_clip: float = 2.0
    """Largest gradient norm, generator and discriminator separately; 0 for none."""
    ema_decay: float = 0.999
    """Decay of the averaged weights used for evaluation."""
    ema_warmup: bool = field(default=True, metadata={"legacy": True})
    """Decay by min(ema_decay, (1 + t) / (10 + t)) at step t, which short runs need. false: by ema_decay at every step
    (the authors' code)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "discriminator_betas", tuple(self.discriminator_betas))
        choose_each("optimizer", self, schedule=("constant", "linear", "cosine", "step"))
        if not 0 < self.learning_rate <= 1:
            raise UserError(f"optimizer.learning_rate: {self.learning_rate} must be above 0 and at most 1")
        for key in ("betas", "discriminator_betas"):
            betas = getattr(self, key)
            if (betas or key == "betas") and (len(betas) != 2 or not all(0 <= beta < 1 for beta in betas)):
                raise UserError(f"optimizer.{key}: {list(betas)} must be two numbers in [0, 1)")
        if not 0 <= self.final_learning_rate <= self.learning_rate:
            raise UserError(
                f"optimizer.final_learning_rate: {self.final_learning_rate} must be from 0 to optimizer.learning_rate "
                f"{self.learning_rate}"
            )
        if (self.schedule == "constant") != (self.decay_steps == 0):
            raise UserError(
                f"optimizer.decay_steps: {self.decay_steps} does not go with optimizer.schedule '{self.schedule}'; "
                "linear, cosine and step need a number above 0, constant has 0"
            )
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"optimizer.ema_decay: {self.ema_decay} must be in [0, 1)")
        at_least("optimizer", self, 0, "weight_decay", "eps", "warmup_steps", "gradient_clip", "decay_steps")


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 50_000
    batch_size: int = 256
    """Images a step over all devices."""
    precision: str = "float32"
    """float32 or bfloat16 (autocast; the quantizer always runs in float32)."""
    seed: int = 0
    repeat: int = field(default=0, metadata={"legacy": 0})
    """Changes only the signature: 1, 2, ... train the same run again, to compare codes or devices."""

    def __post_init__(self) -> None:
        choose_each("train", self, precision=("float32", "bfloat16"))
        at_least("train", self, 1, "steps", "batch_size")
        at_least("train", self, 0, "seed", "repeat")
