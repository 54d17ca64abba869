"""The quantizer's part of a config: kinds, options, and the combinations that are refused."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from gsq.config.kinds import Kind, kind_named, kinds, users_of
from gsq.config.parts import Options, choose_or_own, is_path
from gsq.errors import UserError, at_least, choose_each

T = TypeVar("T")
# Options that earlier versions ignored for kinds that do not use them. Finished runs have them in their configs, so gsq
# refuses them only where a user writes them (``refuse_ignored``).
ONCE_IGNORED = ("decoder_input", "loss_row", "commitment_weight", "codebook_decay")


def _with_own_options(cls: type[T]) -> type[T]:
    """Add the options that single kinds declare. Signatures leave them out at their defaults, like every later
    field."""
    for kind in kinds().values():
        for option in kind.own:
            if option.name in cls.__annotations__:
                raise ValueError(f"quantizer {kind.name} adds the option {option.name}, which there is already")
            cls.__annotations__[option.name] = type(option.default)
            setattr(cls, option.name, field(default=option.default, metadata={"legacy": option.default}))
    return cls


@dataclass(frozen=True)
@_with_own_options
class QuantizerConfig:
    """The quantizer: grouped spherical (paper eq. 3-5) or one of those that the paper compares it with (table 15). A
    kind can declare options of its own (``gsq.config.kinds``)."""

    kind: str = "gsq"
    """gsq; vq (one group, no normalisation); rvq (residual VQ); fsq (finite scalar); lfq (look-up free); bsq (binary
    spherical); simvq (frozen rows, seen through a learned map); ibq (gradients to all rows through their indices);
    diveq (gradients through the distance to the row). fsq, lfq and bsq quantize each channel: groups = latent_dim, and
    codebook_size 2 for lfq and bsq. Or one of your own, package.module:Name (``gsq new quantizer``)."""
    groups: int = 1
    """G; the latent's channels are split into G groups of d = D / G, which share one codebook."""
    codebook_size: int = 8192
    """V, rows of the codebook (fsq: levels of each channel)."""
    depth: int = 1
    """rvq: number of codebooks of V rows; each quantizes the residual of those before it."""
    levels: tuple[int, ...] = ()
    """fsq: levels of each latent channel, the largest of them codebook_size; empty takes codebook_size for all."""
    init: str = "auto"
    """spherical (uniform on the unit sphere; uniform in [-1, 1] at d = 1), uniform (in [-1/V, 1/V]; in [-1, 1] at
    d = 1) or auto: spherical for gsq, uniform for the others."""
    lookup_norm: str = "auto"
    """l2 or l1 (both sides normalised), clip (both clamped to [-1, 1]), none, or auto: l2 for gsq, but none at d = 1,
    where the sphere is two points, and none for the others."""
    lookup_precision: str = "exact"
    """exact; or, to study its errors, float32 or bfloat16: |z|^2 + |c|^2 - 2 z.c in that type returns wrong rows."""
    decoder_input: str = "normalised"
    """gsq: what the decoder receives: the row as the look-up compared it (normalised), or raw (the authors' code)."""
    loss_row: str = "normalised"
    """gsq: the row in the quantizer loss: as the look-up compared it, or raw (the authors' code)."""
    commitment_weight: float = 0.25
    """Weight of the latent's distance to its row in the loss; fsq has none."""
    codebook_update: str = "gradient"
    """gradient (through the quantizer loss) or ema (each row an average of the latents that chose it)."""
    codebook_decay: float = 0.99
    """Decay of the moving averages of ema, and of the usage of rows for restart_below."""
    entropy_weight: float = 0.0
    """gsq, vq, lfq, bsq, ibq: weight of (entropy of an index - entropy of the batch's mean), which spreads use of
    codes."""
    gradient: str = field(default="straight_through", metadata={"legacy": "straight_through"})
    """gsq, vq, rvq, simvq: the gradient to the latent: straight_through; rotation (the rotation trick); or soft (of a
    softmax over the rows; the decoder still receives the nearest row)."""
    soft_temperature: float = field(default=1.0, metadata={"legacy": 1.0})
    """gradient soft: temperature of the softmax over negative squared distances, at the first step."""
    soft_decay: float = field(default=1.0, metadata={"legacy": 1.0})
    """gradient soft: factor of the temperature from one step to the next."""
    codebooks: str = field(default="shared", metadata={"legacy": "shared"})
    """gsq, simvq, ibq, diveq: shared by all groups, or per_group: one of V rows for each."""
    restart_below: float = field(default=0.0, metadata={"legacy": 0.0})
    """Replace a row that on average (codebook_decay) fewer latents a step choose, by one near a busy row; 0 never does.
    Rows that are used alike are chosen by batch x positions x groups / V latents a step, which it must not exceed."""
    kmeans_steps: int = field(default=0, metadata={"legacy": 0})
    """First steps, after each of which every row becomes the mean of the batch's latents that chose it."""
    options: dict[str, Any] = field(default_factory=Options, metadata={"legacy": Options()})
    """Keys of a quantizer of your own (`kind: package.module:Name`), as it declares them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        object.__setattr__(self, "options", Options(self.options))
        choose_or_own("quantizer", self, kind=kinds())
        choose_each("quantizer", self, init=("auto", "spherical", "uniform"))
        choose_each("quantizer", self, lookup_norm=("auto", "l2", "l1", "clip", "none"))
        choose_each("quantizer", self, lookup_precision=("exact", "float32", "bfloat16"))
        choose_each("quantizer", self, decoder_input=("normalised", "raw"), loss_row=("normalised", "raw"))
        choose_each("quantizer", self, codebook_update=("gradient", "ema"), codebooks=("shared", "per_group"))
        choose_each("quantizer", self, gradient=("straight_through", "rotation", "soft"))
        at_least("quantizer", self, 1, "groups", "depth")
        for key, size in (("codebook_size", self.codebook_size), *(("levels", level) for level in self.levels)):
            if size < 2:
                raise UserError(f"quantizer.{key}: {size} carries no information; it must be at least 2")
        at_least("quantizer", self, 0, "commitment_weight", "entropy_weight", "restart_below", "kmeans_steps")
        if not self.soft_temperature > 0:
            raise UserError(f"quantizer.soft_temperature: {self.soft_temperature} must be above 0, such as 1")
        if not 0 < self.soft_decay <= 1:
            raise UserError(f"quantizer.soft_decay: {self.soft_decay} must be in (0, 1]; 1 keeps it")
        if not 0 <= self.codebook_decay < 1:
            raise UserError(f"quantizer.codebook_decay: {self.codebook_decay} must be in [0, 1)")
        if not is_path(self.kind):
            self.check_kind()

    def check_kind(self) -> None:
        """Raise UserError for what the kind refuses. A user's own kind is imported for this."""
        for key in _ignored(self):
            if key not in ONCE_IGNORED:
                raise _meaningless(self, key)
        for option in self.declared.own:
            if wrong := option.check(getattr(self, option.name)):
                raise UserError(f"quantizer.{option.name}: {getattr(self, option.name)!r} {wrong}")
        if wrong := self.declared.check(self):
            raise UserError(wrong)
        if self.levels and max(self.levels) != self.codebook_size:
            raise UserError(
                f"quantizer.codebook_size: {self.codebook_size}, but the largest of quantizer.levels is "
                f"{max(self.levels)}; they must be equal"
            )

    @property
    def declared(self) -> Kind:
        """The kind's entry in the registry; for one of a user's own, what its module declares."""
        return kind_named(self.kind)

    def option(self, name: str) -> Any:
        """The value of an option that a kind adds."""
        return getattr(self, name)


_DEFAULTS = {f.name: f.default for f in fields(QuantizerConfig) if f.name != "options"}


def _ignored(quantizer: QuantizerConfig) -> list[str]:
    """Options that the kind does not use, but that differ from their defaults."""
    changed = [key for key, default in _DEFAULTS.items() if getattr(quantizer, key) != default]
    found = [key for key in changed if not quantizer.declared.uses(key)]
    unused = [key for key, (used, _) in _SWITCHES.items() if key in changed and not used(quantizer)]
    return [*found, *(key for key in unused if key not in found)]


# Options that others switch on: whether they do, and why not.
_SWITCHES: dict[str, tuple[Callable[[QuantizerConfig], bool], str]] = {
    "codebook_decay": (
        lambda q: q.codebook_update == "ema" or q.restart_below > 0,
        "quantizer.codebook_update 'gradient' with quantizer.restart_below 0, only for ema",
    ),
    **{
        key: (lambda q: q.gradient == "soft", "quantizer.gradient {gradient!r}, only for soft")
        for key in ("soft_temperature", "soft_decay")
    },
}


def _meaningless(quantizer: QuantizerConfig, key: str) -> UserError:
    default, users = _DEFAULTS[key], users_of(key)
    fix = f"leave it out, or set it to its default {_written(default)}"
    if quantizer.declared.uses(key):
        why = _SWITCHES[key][1].format(gradient=quantizer.gradient)
        return UserError(f"quantizer.{key}: {getattr(quantizer, key)!r} has no meaning for {why}; {fix}")
    return UserError(
        f"quantizer.{key}: {_written(getattr(quantizer, key))} has no meaning for quantizer.kind {quantizer.kind}, "
        f"only for {', '.join(users)}; {fix}"
    )


def _written(value: Any) -> str:
    return repr(list(value) if isinstance(value, tuple) else value)


def refuse_ignored(quantizer: QuantizerConfig, written: Collection[str], inherited: QuantizerConfig) -> None:
    """Raise UserError for an option that a user set and the kind ignores.

    written: keys of the section that the user wrote; inherited: the section of the preset that the config began with,
    whose values may stay where another kind is chosen.
    """
    if is_path(quantizer.kind):
        quantizer.check_kind()
    for key in _ignored(quantizer):
        if key in written or getattr(quantizer, key) != getattr(inherited, key):
            raise _meaningless(quantizer, key)
