"""Synthetic token fields whose entropy is known: what a probe should measure, and never less than."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Source(NamedTuple):
    draw: Callable[[int, torch.Generator], Tensor]
    """Images and random numbers -> codes (N, P, G)."""
    bits: float
    """Entropy of an image over its positions: bits a position."""


def independent(values: int, groups: int, positions: int) -> Source:
    """Each code on its own, with probability proportional to 1 / (rank + 8)."""
    weights = 1 / (torch.arange(values, dtype=torch.float64) + 8)
    share = weights / weights.sum()

    def draw(count: int, random: torch.Generator) -> Tensor:
        drawn = torch.multinomial(share, count * positions * groups, True, generator=random)
        return drawn.view(count, positions, groups)

    return Source(draw, -groups * float((share * share.log2()).sum()))


def _maps(values: int, groups: int) -> Tensor:
    """A permutation for each group, (V, G)."""
    random = torch.Generator().manual_seed(7)
    return torch.stack([torch.randperm(values, generator=random) for _ in range(groups)], 1)


def _shown(maps: Tensor, hidden: Tensor) -> Tensor:
    """Hidden values (N, P, 1) -> what each group shows of them, (N, P, G)."""
    return maps[hidden[..., 0]]


def coupled(values: int, groups: int, positions: int) -> Source:
    """One hidden value a position, of which every group shows another permutation."""
    maps = _maps(values, groups)

    def draw(count: int, random: torch.Generator) -> Tensor:
        return maps[torch.randint(values, (count, positions), generator=random)]

    return Source(draw, math.log2(values))


def markov(values: int, groups: int, positions: int, stay: float = 0.8) -> Source:
    """Each group stays as it was at the position before with probability ``stay``, else it is drawn anew."""

    def draw(count: int, random: torch.Generator) -> Tensor:
        codes = torch.randint(values, (count, positions, groups), generator=random)
        kept = torch.rand(count, positions, groups, generator=random) < stay
        for p in range(1, positions):
            codes[:, p] = torch.where(kept[:, p], codes[:, p - 1], codes[:, p])
        return codes

    same, other = stay + (1 - stay) / values, (1 - stay) / values
    step = -same * math.log2(same) - (values - 1) * other * math.log2(other)
    return Source(draw, groups * (math.log2(values) + (positions - 1) * step) / positions)


def blocks(values: int, groups: int, positions: int, on: float = 0.8) -> Source:
    """A hidden block a position, of which every group shows one of the values, drawn on its own. Blocks follow each
    other in a circle of 32: with probability ``on`` the next one comes, else the same again.

    A Markov source whose table of transitions has rank 32. That of ``markov``, one likely value and all others equally
    likely, has full rank: a softmax over d numbers misses its entropy by about (1 - stay) ln(values)^2 / (2 d) nats.
    """
    count = min(32, values)
    within = values // count
    maps = _maps(values, groups)

    def draw(number: int, random: torch.Generator) -> Tensor:
        block = (torch.rand(number, positions, generator=random) < on).long()
        block[:, 0] = torch.randint(count, (number,), generator=random)
        inside = torch.randint(within, (number, positions, groups), generator=random)
        shown = (block.cumsum(1) % count * within)[..., None] + inside
        return maps[shown, torch.arange(groups)]

    step = -on * math.log2(on) - (1 - on) * math.log2(1 - on)
    return Source(draw, groups * math.log2(within) + (math.log2(count) + (positions - 1) * step) / positions)


def repeated(values: int, groups: int, positions: int) -> Source:
    """Like ``coupled``, but the second half of the positions repeats the first."""
    one, maps = copied(values, 1, positions), _maps(values, groups)
    return Source(lambda count, random: _shown(maps, one.draw(count, random)), one.bits)


def copied(values: int, groups: int, positions: int) -> Source:
    """The second half of the positions repeats the first."""

    def draw(count: int, random: torch.Generator) -> Tensor:
        half = torch.randint(values, (count, positions // 2, groups), generator=random)
        return torch.cat([half, half], 1)

    return Source(draw, groups * math.log2(values) / 2)


SOURCES = {
    "independent": independent,
    "coupled": coupled,
    "blocks": blocks,
    "repeated": repeated,
    "markov": markov,
    "copied": copied,
}
