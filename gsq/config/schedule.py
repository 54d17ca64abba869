"""The optimizer and the length of the training in a config."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

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
    then constant); step (final_learning_rate after decay_steps steps); wsd (constant, then a cool-down to
    final_learning_rate over the last decay_share of train.steps)."""
    decay_steps: int = field(default=0, metadata={"legacy": 0})
    decay_share: float = field(default=0.0, metadata={"legacy": 0.0})
    """wsd: share of train.steps over which the learning rate decays, between 0 and 1 (0.1 to 0.2 is common; Haegele et
    al. 2024, arXiv:2405.18392)."""
    decay_shape: str = field(default="linear", metadata={"legacy": "linear"})
    """wsd: linear or one_minus_sqrt (1 - sqrt(share of the cool-down that is done), of the same paper)."""
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
        schedules, shapes = ("constant", "linear", "cosine", "step", "wsd"), ("linear", "one_minus_sqrt")
        choose_each("optimizer", self, schedule=schedules, decay_shape=shapes)
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
        if (self.schedule in ("constant", "wsd")) != (self.decay_steps == 0):
            raise UserError(
                f"optimizer.decay_steps: {self.decay_steps} does not go with optimizer.schedule '{self.schedule}'; "
                "linear, cosine and step need a number above 0, constant and wsd (which has decay_share) have 0"
            )
        if self.schedule == "wsd" and not 0 < self.decay_share < 1:
            raise UserError(
                f"optimizer.decay_share: {self.decay_share} must be above 0 and below 1 for optimizer.schedule 'wsd'; "
                "0.2 lets the learning rate decay over the last fifth of the steps (without a decay, use 'constant')"
            )
        if self.schedule != "wsd" and (self.decay_share, self.decay_shape) != (0, "linear"):
            key = "decay_share" if self.decay_share else "decay_shape"
            raise UserError(
                f"optimizer.{key}: {getattr(self, key)} does not go with optimizer.schedule '{self.schedule}', which "
                "ignores it; leave it out, or use the schedule 'wsd'"
            )
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"optimizer.ema_decay: {self.ema_decay} must be in [0, 1)")
        at_least("optimizer", self, 0, "weight_decay", "eps", "warmup_steps", "gradient_clip", "decay_steps")

    @property
    def trunk(self) -> OptimizerConfig:
        """The same before the decay of wsd, which is the constant schedule; itself for other schedules."""
        if self.schedule != "wsd":
            return self
        return replace(self, schedule="constant", decay_share=0.0, decay_shape="linear", final_learning_rate=0.0)


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
