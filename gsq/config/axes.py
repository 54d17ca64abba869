"""The axes of an experiment, each defined once: its name in tables and sweep files, the config key behind it, its
symbol and labels and, where it follows from other axes, its formula, which is right for every kind of quantizer.

Plans, the table's schema, laws and figures read them here. This module knows nothing of configs, runs or arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Type = Literal["string", "int64", "float64"]
Formula = Callable[..., float]


@dataclass(frozen=True)
class Axis:
    """One axis. An axis with a ``key`` can be set; one with a ``formula`` follows from others."""

    name: str
    role: Literal["axis", "derived"]
    type: Type
    unit: str
    description: str
    key: str = ""
    """The config key behind this short name."""
    symbol: str = ""
    """The paper's letter."""
    label: str = ""
    """Its name along the axis of a figure."""
    head: str = ""
    """Its head in a printed table, if not its name."""
    scale: Literal["linear", "powers of two"] = "linear"
    """How figures write its values: 1024 as a power of two, or in digits."""
    order: int = 0
    """Its place, from 1, in a description of a tokenizer ("f=8, D=16, G=1, V=1024"); 0: it is no part of one."""
    least: float = 0
    """Smallest meaningful value."""
    dearer: Literal[-1, 0, 1] = 0
    """1 if larger values cost more memory and time or fail more often, -1 if smaller ones do."""
    needs: tuple[str, ...] = ()
    """The axes that the formula takes, in its order; they may be derived themselves."""
    modifiers: tuple[str, ...] = ()
    """Axes that the formula takes after ``needs``; they matter to some quantizers only, and may be unknown
    (DEFAULTS)."""
    formula: Formula | None = None
    """Takes one value for each of ``needs`` and ``modifiers`` (numbers; levels as a tuple of numbers or None)."""
    stored: bool = True
    """Whether it is a column of the results table."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """All arguments of the formula, in its order."""
        return self.needs + self.modifiers


def bits(sizes: Iterable[float]) -> float:
    """Bits of one latent position from the sizes of its indices: the sum of their log2, rounded once."""
    return math.fsum(map(math.log2, sizes))


# A position has one index for each group and residual codebook; only rvq has a depth above 1. Levels are given for
# fsq, and wherever the indices of a position differ in size.
def _bits_per_token(groups: float, codebook_size: float, depth: float, levels: tuple[float, ...] | None) -> float:
    return bits(levels) if levels else groups * depth * math.log2(codebook_size)


def _tokens_per_image(
    groups: float, image_size: float, downsample: float, depth: float, levels: tuple[float, ...] | None
) -> float:
    side = image_size / downsample
    return (len(levels) if levels else groups * depth) * (side * side)


# The order is that of the table's columns.
AXES: tuple[Axis, ...] = (
    Axis("quantizer", "axis", "string", "", "kind of quantizer", "quantizer.kind"),
    Axis(
        "latent_dim", "axis", "int64", "channels", "latent channels D", "model.latent_dim",
        symbol="D", label="latent channels D", head="latent dim", order=2, least=1, dearer=1,
    ),
    Axis(
        "groups", "axis", "int64", "groups", "codebook groups G", "quantizer.groups",
        symbol="G", label="groups G", order=3, least=1, dearer=1,
    ),
    Axis(
        "group_dim", "axis", "int64", "channels", "channels a group, d = D / G",
        symbol="d", label="channels a group d", needs=("latent_dim", "groups"), formula=lambda d, g: d / g,
    ),
    Axis(
        "codebook_size", "axis", "int64", "rows", "codebook rows V (fsq: the most levels of a channel)",
        "quantizer.codebook_size", symbol="V", label="codebook size V", head="codebook", scale="powers of two",
        order=4, least=2, dearer=1,
    ),
    Axis("depth", "axis", "int64", "codebooks", "codebooks of a residual quantizer, else 1", "quantizer.depth"),
    Axis("levels", "axis", "string", "", "fsq: levels of each latent channel, such as 8x8x5, else null"),
    Axis(
        "downsample", "axis", "int64", "pixels", "image height over latent height, f", "model.downsample",
        symbol="f", label="downsampling f", order=1, least=1, dearer=-1,
    ),
    Axis(
        "width", "axis", "int64", "channels", "channels of the first level of the autoencoder", "model.channels",
        dearer=1,
    ),
    Axis(
        "image_size", "axis", "int64", "pixels", "height and width of a training image", "data.image_size", dearer=1
    ),
    Axis(
        "learning_rate", "axis", "float64", "", "learning rate of both optimisers", "optimizer.learning_rate", dearer=1
    ),
    Axis("batch_size", "axis", "int64", "images", "images a step, over all devices", "train.batch_size", dearer=1),
    Axis("steps", "axis", "int64", "steps", "planned optimiser steps", "train.steps"),
    Axis("seed", "axis", "int64", "", "random seed", "train.seed"),
    Axis(
        "repeat", "axis", "int64", "", "1, 2, ...: the run once more, to compare codes or devices; laws leave it out",
        "train.repeat",
    ),
    Axis("data", "axis", "string", "", "name and fingerprint of the training data"),
    Axis("other_axes", "axis", "string", "", "config keys without a column that the sweep set for this cell, as JSON"),
    Axis(
        "bits_per_token", "derived", "float64", "bits",
        "bits of one latent position: the sum of log2 over its indices, G log2 V",
        label="bits a token", needs=("groups", "codebook_size"), modifiers=("depth", "levels"),
        formula=_bits_per_token,
    ),
    Axis(
        "bits_per_pixel", "derived", "float64", "bits/pixel", "bits_per_token / f^2",
        label="bits per pixel", head="bits/pixel", dearer=1,
        needs=("bits_per_token", "downsample"), formula=lambda bits, f: bits / (f * f),
    ),
    Axis(
        "bits_per_dimension", "derived", "float64", "bits/channel", "bits_per_token / D", stored=False,
        label="bits a dimension", needs=("bits_per_token", "latent_dim"), formula=lambda bits, d: bits / d,
    ),
    Axis(
        "compression_ratio", "derived", "float64", "values/value", "3 f^2 / D: image values a latent value",
        label="compression ratio 3 f²/D", needs=("downsample", "latent_dim"), formula=lambda f, d: 3 * (f * f) / d,
    ),
    Axis(
        "tokens_per_image", "derived", "int64", "indices",
        "indices that one training image becomes, G (H / f)^2 (rvq: depth for G)",
        label="tokens an image", needs=("groups", "image_size", "downsample"), modifiers=("depth", "levels"),
        formula=_tokens_per_image,
    ),
)  # fmt: skip
BY_NAME: Mapping[str, Axis] = {axis.name: axis for axis in AXES}
SYMBOLS: Mapping[str, str] = {axis.name: axis.symbol for axis in AXES if axis.symbol}
LABELS: Mapping[str, str] = {axis.name: axis.label for axis in AXES if axis.label}
TOKENIZER: tuple[str, ...] = tuple(axis.name for axis in sorted(AXES, key=lambda axis: axis.order) if axis.order)
"""The axes that describe a tokenizer, in the order in which they are written: f, D, G, V."""
PANELS: tuple[str, ...] = ("codebook_size", "latent_dim", "groups", "downsample")
"""The same axes in the order in which figures show their effects."""
POWERS: tuple[str, ...] = tuple(axis.name for axis in AXES if axis.scale == "powers of two")
DERIVED: Mapping[str, Axis] = {axis.name: axis for axis in AXES if axis.formula}
"""Axes that follow from others, each after all that it needs."""
DEFAULTS: Mapping[str, Any] = {"depth": 1, "levels": None}
"""Values of modifiers that are not known."""
CONFIGURATION: tuple[str, ...] = tuple(
    axis.name for axis in AXES if axis.role == "axis" and not axis.formula and axis.name not in ("seed", "repeat")
)
"""The axes that define a configuration; seeds and repeats repeat it."""


def derive(name: str, value_of: Callable[[str], Any]) -> Any:
    """The value of the axis ``name``: from its formula if it has one, else from ``value_of``."""
    formula = BY_NAME[name].formula
    return formula(*(derive(one, value_of) for one in BY_NAME[name].inputs)) if formula else value_of(name)


def roots(name: str) -> tuple[str, ...]:
    """The axes, none of them derived, that a derived one follows from, in order and without modifiers."""
    found = [root for need in DERIVED[name].needs for root in (roots(need) if need in DERIVED else (need,))]
    return tuple(dict.fromkeys(found))


def ancestry(name: str) -> tuple[str, ...]:
    """An axis and all those that it follows from, derived ones and modifiers among them."""
    inputs = DERIVED[name].inputs if name in DERIVED else ()
    return tuple(dict.fromkeys([name, *(one for need in inputs for one in ancestry(need))]))


def modifiers(name: str, known: Container[object] = ()) -> tuple[str, ...]:
    """The modifiers that a column follows from, directly or through derived axes that are not ``known``."""
    if name not in DERIVED or name in known:
        return ()
    by_way = [one for need in DERIVED[name].needs for one in modifiers(need, known)]
    return tuple(dict.fromkeys([*DERIVED[name].modifiers, *by_way]))


def levels_text(sizes: Iterable[int]) -> str:
    """Levels as the column ``levels`` writes them: ``8x8x5``."""
    return "x".join(map(str, sizes))


def read_levels(text: object) -> tuple[int, ...] | None:
    """Levels from ``8x8x5``; None for anything else."""
    parts = str(text).split("x")
    return tuple(map(int, parts)) if all(part.isdecimal() and int(part) > 0 for part in parts) else None
