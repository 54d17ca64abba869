"""Indices over the rows of a codebook for ``lookup.nearest_rows``: sorted rows, sorted angles, a k-d tree.

Rows (V, d) and queries (N, d) are float64 and finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Search = Callable[[Tensor], Tensor]
"""(N, d) queries -> (N,) int64."""
# Distances closer than this, relatively, may be ordered wrongly by rounding; so may angles closer than ANGLE.
CLOSE = 1e-12
ANGLE = 1e-14


def _argsort(values: Tensor) -> Tensor:
    # numpy sorts with vector instructions; the order of equals does not matter here.
    return torch.from_numpy(np.argsort(values.numpy())) if values.device.type == "cpu" else values.argsort()


def _merged(order: Tensor, differs: Tensor) -> tuple[Tensor, Tensor]:
    """(positions, index) of the runs of equals in a sorted order: where each starts and its lowest index.

    order (V,): indices of the sorted rows; differs (V - 1,): whether a row differs from the one before it.
    """
    if bool(differs.all()):
        return torch.arange(len(order), device=order.device), order
    run = torch.zeros_like(order)
    torch.cumsum(differs, 0, out=run[1:])
    starts = torch.cat([differs.new_ones(1), differs]).nonzero()[:, 0]
    return starts, torch.full_like(starts, len(order)).scatter_reduce_(0, run, order, "amin")


def distinct(rows: Tensor) -> Tensor:
    """Ascending indices of the rows that equal no row before them."""
    # The hash of bits: sums of floats would depend on where in a vector register a row falls.
    generator = torch.Generator().manual_seed(0)
    odd = torch.randint(-(1 << 62), 1 << 62, (rows.shape[1],), generator=generator).mul_(2).add_(1).to(rows.device)
    hashes = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    step = max(1, (1 << 17) // rows.shape[1])
    for start in range(0, len(rows), step):
        # Adding 0.0 turns -0.0 into 0.0. The low half of what was float32 or bfloat16 is zero: fold the high half in.
        bits = (rows[start : start + step] + 0.0).view(torch.int64)
        hashes[start : start + step] = ((bits ^ (bits >> 32)) * odd).sum(1)
    everything = torch.arange(len(rows), device=rows.device)
    ordered = torch.from_numpy(np.sort(hashes.numpy())) if rows.device.type == "cpu" else hashes.sort()[0]
    if bool((ordered[1:] != ordered[:-1]).all()):
        return everything
    ordered, order = hashes.sort()
    starts, lowest = _merged(order, ordered[1:] != ordered[:-1])
    first = torch.empty_like(everything)
    first[order] = lowest.repeat_interleave(torch.diff(starts, append=starts.new_tensor([len(rows)])))
    if not all(torch.equal(rows[first[i : i + step]], rows[i : i + step]) for i in range(0, len(rows), step)):
        # Two rows share a hash, which chance does once in 2^40 codebooks.
        group = torch.unique(rows, dim=0, return_inverse=True)[1]
        first = torch.full_like(everything, len(rows)).scatter_reduce_(0, group, everything, "amin")[group]
    return (first == everything).nonzero()[:, 0]


def line(rows: Tensor) -> Search:
    """d = 1: the neighbours on either side."""
    order = _argsort(rows[:, 0].contiguous())
    ordered = rows[order, 0]
    starts, index = _merged(order, ordered[1:] != ordered[:-1])
    ordered = ordered[starts]

    def search(z: Tensor) -> Tensor:
        value = z[:, 0].contiguous()
        right = torch.searchsorted(ordered, value).clamp_(max=len(ordered) - 1)
        left = (right - 1).clamp_(min=0)
        return _nearer((ordered[left] - value).abs(), index[left], (ordered[right] - value).abs(), index[right])

    return search


def _nearer(distance: Tensor, index: Tensor, other_distance: Tensor, other: Tensor) -> Tensor:
    wins = (distance < other_distance) | ((distance == other_distance) & (index < other))
    return torch.where(wins, index, other)


def _turn(vectors: Tensor) -> Tensor:
    """(n, 2) -> (n,) in [0, 4]: grows with the angle at 1/2 to 1 a radian, and costs no arc tangent."""
    x, y = vectors[:, 0], vectors[:, 1]
    length = x.abs() + y.abs()
    quarter = y / torch.where(length == 0, 1.0, length)
    return torch.where(x < 0, 2 - quarter, torch.where(y < 0, 4 + quarter, quarter))


def circle(rows: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """d = 2, unit rows: the neighbours by angle. Indices, and the positions of queries that angles do not settle.

    Left open: the zero query, a nearest row more than a right angle away (there distances hardly change with the
    angle), and a neighbour so close to another row that rounding may have swapped their angles.
    """
    turns = _turn(rows)
    order = _argsort(turns)
    ordered = rows[order]
    starts, index = _merged(order, (ordered[1:] != ordered[:-1]).any(1))
    ordered, turns = ordered[starts], turns[order][starts]
    gaps = torch.diff(turns, append=turns[:1] + 4) < ANGLE
    crowded = (gaps | gaps.roll(1)) if bool(gaps.any()) else None

    def search(z: Tensor) -> tuple[Tensor, Tensor]:
        right = torch.searchsorted(turns, _turn(z))
        right = torch.where(right == len(turns), 0, right)
        left = torch.where(right == 0, len(turns), right) - 1
        to_left, to_right = (ordered[left] - z).square_().sum(1), (ordered[right] - z).square_().sum(1)
        unsettled = (torch.minimum(to_left, to_right) > 2) | ~z.any(1)
        if crowded is not None:
            unsettled |= crowded[left] | crowded[right]
        return _nearer(to_left, index[left], to_right, index[right]), unsettled.nonzero()[:, 0]

    return search


def tree(rows: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """k-d tree over the distinct rows (on the CPU). Indices, and the positions of queries with too many rows as near.

    The tree prunes by distances rounded relatively, within far less than CLOSE; a query is settled when the last row
    it was given is farther than that from the first.
    """
    # Takes a quarter of a second, which most processes do without.
    from scipy.spatial import cKDTree

    kept = distinct(rows)
    points = (rows if len(kept) == len(rows) else rows[kept]).numpy()
    # Unbalanced nodes build twice as fast and answer as fast.
    index = cKDTree(points, leafsize=32, compact_nodes=False, balanced_tree=False)

    def search(z: Tensor) -> tuple[Tensor, Tensor]:
        queries = z.numpy()
        out = np.zeros(len(z), dtype=np.int64)
        todo, neighbours = np.arange(len(z)), min(2, len(points))
        while len(todo) and neighbours <= 64:
            unsettled = []
            for part in np.array_split(todo, math.ceil(len(todo) * neighbours / (1 << 18))):
                given = queries[part]
                distance, row = index.query(given, [*range(1, neighbours + 1)], workers=torch.get_num_threads())
                limit = distance[:, 0] * (1 + CLOSE)
                settled = (distance[:, -1] > limit) | (neighbours == len(points))
                out[part] = row[:, 0]
                # Among several as near, differences decide, and then the lowest index.
                tied = (settled & (distance[:, min(1, neighbours - 1)] <= limit)).nonzero()[0]
                if len(tied):
                    rivals = np.sort(np.where(distance[tied] <= limit[tied, None], row[tied], len(points)), axis=1)
                    gaps = points[np.minimum(rivals, len(points) - 1)] - given[tied, None]
                    exact = np.where(rivals < len(points), np.square(gaps).sum(2), np.inf)
                    out[part[tied]] = rivals[np.arange(len(tied)), exact.argmin(1)]
                unsettled.append(part[~settled])
            todo, neighbours = np.concatenate(unsettled), min(8 * neighbours, len(points))
        return kept[torch.from_numpy(out)], torch.from_numpy(todo)

    return search
