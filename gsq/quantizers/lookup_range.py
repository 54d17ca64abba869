"""Exact look-up of float64 vectors whose squared distances overflow or vanish, around any ``lookup`` method.

A power of two scales vectors without rounding them, and leaves the order of distances as it is. One such factor brings
the largest row to about 1, for the quick methods; what is still too long or too close for these is decided by
differences, each query with a factor of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gsq.quantizers.lookup_index import Search

# Squares of float64 between these neither overflow nor lose what counts beside the largest.
SMALL, LARGE = 2.0**-400, 2.0**400
# Twice a length above this may overflow.
HUGE = 2.0**1000
# Differences of one channel that are held at a time.
DIFFERENCES = 1 << 18


def prepared(vectors: Tensor, normalise: bool, name: str) -> Tensor:
    """(n, d), any floating dtype -> float64, contiguous, checked to be finite."""
    x = vectors.detach().to(torch.float64, memory_format=torch.contiguous_format)
    # A sum is the quickest look at every value; that of finite ones may still overflow.
    if not math.isfinite(vectors.detach().sum().item()) and not x.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinite values, so no row is nearest")
    if not normalise:
        return x
    if vectors.dtype == torch.float64:
        # Scaling by a power of two is exact; the squares then neither overflow nor vanish.
        x = times_power(x, -torch.frexp(x.abs().amax(1, keepdim=True)).exponent)
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x.div_(torch.where(norms == 0, 1.0, norms))


def guarded(rows: Tensor, make: Callable[[Tensor], Search]) -> Search:
    """A search among rows (V, d), float64 and finite, that is exact for queries of every length.

    make: from rows to a search that is exact where squares of distances are, and refuses queries that are not finite.
    """
    if not rows.numel():
        return make(rows)
    largest = rows.abs().max()
    within = bool((largest == 0) | ((largest >= SMALL) & (largest <= LARGE)))
    shift = -torch.frexp(largest).exponent
    moved = rows if within else times_power(rows, shift)
    search = make(moved)

    def checked(z: Tensor) -> Tensor:
        z = z.double()
        scaled = z if within else times_power(z, shift)
        # Values that are not finite stay, for the search to refuse them.
        far = (scaled.abs().amax(1) > LARGE) & z.isfinite().all(1)
        scaled = scaled.masked_fill(far[:, None], 0)
        index = search(scaled)
        close = ((scaled - moved[index]).abs().amax(1) < SMALL) & (z != rows[index]).any(1)
        left = (far | close).nonzero()[:, 0]
        if len(left):
            index[left] = by_differences(rows, z[left])
        return index

    return checked


def by_differences(rows: Tensor, z: Tensor) -> Tensor:
    """(V, d) and (n, d), float64 and finite, of any length -> (n,) int64 nearest rows, ties to the lowest index."""
    tall = max(1, DIFFERENCES // rows.shape[1])
    wide = max(1, DIFFERENCES // (min(tall, len(rows)) * rows.shape[1]))
    return torch.cat([_nearest(rows, part, tall) for part in z.split(wide)])


def _nearest(rows: Tensor, z: Tensor, tall: int) -> Tensor:
    """``tall``: rows whose differences from all queries are held at a time."""
    factor = torch.ones(len(z), 1, 1, dtype=torch.float64, device=z.device)
    least = _least(rows, z, factor, tall)
    far = least > HUGE
    if far.any():
        # Halves do not overflow. The digits that the smallest lose do not count at such a distance.
        factor[far] = 0.5
        least = _least(rows, z, factor, tall)
    # The nearest row's largest difference becomes about 1. Farther rows may overflow to infinity, which is no less.
    shift = -torch.frexp(torch.where(least == 0, torch.finfo(torch.float64).smallest_normal, least)).exponent
    best, index = torch.full_like(least, torch.inf), torch.zeros_like(least, dtype=torch.int64)
    for start in range(0, len(rows), tall):
        gaps = z[:, None] * factor - rows[start : start + tall] * factor
        distance, row = times_power(gaps, shift[:, None, None]).square().sum(2).min(1)
        nearer = distance < best
        best, index = torch.where(nearer, distance, best), torch.where(nearer, row + start, index)
    return index


def _least(rows: Tensor, z: Tensor, factor: Tensor, tall: int) -> Tensor:
    """(n,): the least over the rows of the largest difference of a channel."""
    parts = (rows[start : start + tall] for start in range(0, len(rows), tall))
    return torch.stack([(z[:, None] * factor - part * factor).abs().amax(2).amin(1) for part in parts]).amin(0)


def times_power(x: Tensor, exponent: Tensor) -> Tensor:
    """x * 2 ** exponent, exact unless the result is too small; x float64, exponent whole, in [-2044, 2046]."""
    half = exponent.long() >> 1
    for part in (half, exponent - half):
        # The bits of the power itself, since torch.ldexp of older versions makes it in float32.
        x = x * ((part + 1023) << 52).view(torch.float64)
    return x
