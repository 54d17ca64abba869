"""Exact nearest-row look-up: the row of least Euclidean distance, whatever autocast is around it, flat in memory.

Shapes: N queries, V codebook rows, d channels. Distances count as float64 gives them from differences: the expansion
|z|^2 + |c|^2 - 2 z.c loses the small ones, even in float64. A method narrows the rows down within a bound on its own
rounding; differences decide among what is left. Methods, chosen from timings (tests/benchmarks/lookup.py):

* d = 1: sorted rows and binary search; d = 2 on the circle: the same by angle (``lookup_index``);
* few channels, many rows: a k-d tree (``lookup_index``);
* otherwise tiles of a float32 product, whose block maxima are kept; on CUDA a fused kernel (``lookup_gpu``).
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gsq.quantizers import lookup_index, lookup_range, lookup_small
from gsq.quantizers.full_precision import full_precision
from gsq.quantizers.lookup_index import Search

# Elements of one tile of scores (1 MiB of float32 stays in a core's cache), of the pairs of a query and a block of rows
# decided at once, and of the queries prepared at once; on CUDA that many times more.
TILE, MAXIMA, QUERIES = 1 << 18, 1 << 20, 1 << 18
CUDA = 64
# Codebook rows from which the tree is faster, by d, and the fewest queries that repay building it (timed on Zen 4).
TREE_ROWS = {2: 1, 3: 1, 4: 1 << 11, 5: 1 << 12, 6: 1 << 13, 7: 1 << 14, 8: 1 << 16}
TREE_QUERIES = 1024
# Seconds a query and row of the tiles: the tree's first queries are held against it.
TILE_SECONDS = 4e-10
# Lengths whose squares and products float32 holds, with room for entries far below.
SAFE = (1e-10, 1e10)
EPS32, EPS64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps


def nearest_rows(queries: Tensor, codebook: Tensor, *, normalise: bool = False) -> Tensor:
    """Index of the nearest codebook row (Euclidean) for each query, ties to the lowest index.

    queries (N, d) and codebook (V, d) floating point, on one device -> (N,) int64. ``normalise`` divides both sides by
    their l2 norms first, in float64 (a zero vector stays zero). The float64 squared distance of the answer is the least
    there is, also where squares of float64 vectors overflow or vanish; neither the tiles nor anything else grows as
    N x V. Speed on CUDA: not measured.
    """
    shape, rows = queries.shape, codebook.shape
    if len(shape) != 2 or len(rows) != 2 or shape[1] != rows[1] or not rows[0]:
        raise ValueError(f"queries (N, d) and codebook (V, d) expected, got {[*queries.shape]}, {[*codebook.shape]}")
    found = lookup_small.nearest(queries, codebook, normalise)
    return _searched(queries, codebook, normalise) if found is None else found


@torch.no_grad()
def _searched(queries: Tensor, codebook: Tensor, normalise: bool) -> Tensor:
    """``nearest_rows`` by the methods that prepare rows and queries."""
    count, dim = queries.shape
    out = torch.zeros(count, dtype=torch.int64, device=queries.device)
    with torch.autocast(queries.device.type, enabled=False), full_precision(queries.device):
        make = functools.partial(_method, count=count, normalise=normalise)
        # Only squares of float64 may over- or underflow; normalised vectors have length 1.
        wide = not normalise and torch.float64 in (queries.dtype, codebook.dtype)
        rows = lookup_range.prepared(codebook, normalise, "codebook")
        search = lookup_range.guarded(rows, make) if wide else make(rows)
        step = max(256, _larger(QUERIES, queries.device) // max(1, dim))
        for start in range(0, count, step):
            chunk = slice(start, start + step)
            out[chunk] = search(queries[chunk].detach())
    return out


@torch.no_grad()
def nearest_rows_expanded(
    queries: Tensor, codebook: Tensor, dtype: torch.dtype = torch.float32, *, normalise: bool = False
) -> Tensor:
    """What common implementations do, and inexact: argmin of |z|^2 + |c|^2 - 2 z.c, all of it in ``dtype``.

    queries (N, d), codebook (V, d) -> (N,) int64; vectors are l2-normalised in float32, then cast to ``dtype`` (float32
    or bfloat16). Tiled over queries; ties as argmin gives them. For studies of what an inexact look-up does.
    """
    with torch.autocast(queries.device.type, enabled=False):
        z, rows = queries.detach().float(), codebook.detach().float()
        if normalise:
            z, rows = F.normalize(z, dim=1), F.normalize(rows, dim=1)
        z, rows = z.to(dtype), rows.to(dtype)
        norms = rows.square().sum(1)
        out = torch.empty(len(z), dtype=torch.int64, device=z.device)
        step = max(1, 8 * _larger(TILE, z.device) // len(rows))
        for start in range(0, len(z), step):
            part = z[start : start + step]
            distances = part.square().sum(1, keepdim=True) + norms - 2 * (part @ rows.T)
            out[start : start + step] = distances.argmin(1)
    return out


def _larger(elements: int, device: torch.device) -> int:
    return elements * CUDA if device.type == "cuda" else elements


def _method(rows: Tensor, count: int, normalise: bool) -> Search:
    """A search that takes queries as they are given, among prepared rows."""
    size, dim = rows.shape
    if size == 1 or dim == 0:
        return _preparing(lambda z: torch.zeros(len(z), dtype=torch.int64, device=z.device), normalise)
    if dim == 1:
        return _preparing(lookup_index.line(rows), normalise)
    if dim == 2 and normalise and bool(rows.any(1).all()):
        return _preparing(_chain(lookup_index.circle(rows), functools.partial(_general, rows, count)), normalise)
    return _general(rows, count, normalise)


def _preparing(search: Search, normalise: bool) -> Search:
    return lambda z: search(lookup_range.prepared(z, normalise, "latent"))


def _general(rows: Tensor, count: int, normalise: bool = False) -> Search:
    size, dim = rows.shape
    if rows.device.type == "cpu" and size >= TREE_ROWS.get(dim, size + 1) and count >= TREE_QUERIES:
        return _preparing(_tree(rows), normalise)
    if rows.device.type == "cuda":
        # Imports Triton, which a CPU does without.
        from gsq.quantizers import lookup_gpu

        if lookup_gpu.available():
            fused = _fused(rows, lookup_gpu.best_two)
            return _preparing(_chain(fused, functools.partial(_float64, rows)), normalise)
    return _float32(rows, normalise)


def _chain(first: Callable[[Tensor], tuple[Tensor, Tensor]], make_next: Callable[[], Search]) -> Search:
    """``first`` gives indices and the positions that it leaves open; those go to the next method."""
    later = functools.cache(make_next)

    def search(z: Tensor) -> Tensor:
        index, left = first(z)
        if len(left):
            index[left] = later()(z[left])
        return index

    return search


def _tree(rows: Tensor) -> Search:
    """The k-d tree, unless its first queries are slow (rows on a sphere, say, and queries near its centre)."""
    tree = _chain(lookup_index.tree(rows), functools.partial(_float64, rows))

    chosen: Search | None = None

    def search(z: Tensor) -> Tensor:
        nonlocal chosen
        if chosen is not None:
            return chosen(z)
        # Both give the same rows, so that the clock may choose.
        begun = time.perf_counter()
        head = tree(z[:64])
        slow = time.perf_counter() - begun > 2 * 64 * TILE_SECONDS * len(rows) + 1e-3
        chosen = _float32(rows) if slow else tree
        return torch.cat([head, chosen(z[64:])]) if len(z) > 64 else head

    return search


def _float32(rows: Tensor, normalise: bool = False) -> Search:
    return _chain(_tiles(rows, torch.float32, normalise), lambda: _preparing(_float64(rows), normalise))


def _float64(rows: Tensor) -> Search:
    """A search for what float32 cannot tell apart: equal rows once, tiles in float64, then every difference."""
    kept = lookup_index.distinct(rows)
    rows = rows[kept]
    if len(rows) == 1:
        return lambda z: kept.expand(len(z))
    search = _chain(_tiles(rows, torch.float64), lambda: functools.partial(_differences, rows))
    return lambda z: kept[search(z)]


def _differences(rows: Tensor, z: Tensor) -> Tensor:
    """(N,): the definition itself, (z - c)^2 summed in float64; queries that are equal (often zero) once."""
    z, inverse = torch.unique(z, dim=0, return_inverse=True)
    out = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    width = max(1, _larger(TILE, z.device) // rows.shape[1])
    for i, query in enumerate(z):
        best = math.inf
        for first in range(0, len(rows), width):
            value, index = (rows[first : first + width] - query).square_().sum(1).min(0)
            if value.item() < best:
                best, out[i] = value.item(), index + first
    return out[inverse]


class _Scaled:
    """Queries and rows such that a product alone orders the rows: w.r = (z.c - |c|^2 / 2) / scale.

    Both sides are moved by the mean of the rows, which leaves distances as they are and makes a collapsed codebook
    wide; then divided by the largest row, and each query by its own length, so that nothing over- or underflows.
    """

    def __init__(self, rows: Tensor, dtype: torch.dtype) -> None:
        self.dtype, self.dim = dtype, rows.shape[1]
        norms, centre = torch.linalg.vector_norm(rows, dim=1), rows.mean(0)
        # Rows that lie about the origin stay where they are: that saves a pass over the queries.
        self.centre = centre if bool(torch.linalg.vector_norm(centre) > norms.max() / 3) else None
        if self.centre is not None:
            rows = rows - self.centre
            norms = torch.linalg.vector_norm(rows, dim=1)
        largest = norms.max()
        self.width = torch.where(largest > 0, largest, 1.0)
        self.rows = torch.empty(len(rows), self.dim + 1, dtype=dtype, device=rows.device)
        """r, of ``dtype``."""
        step = max(1, _larger(TILE, rows.device) // self.dim)
        for start in range(0, len(rows), step):
            self.rows[start : start + step, :-1] = rows[start : start + step] / self.width
        self.rows[:, -1] = (norms / self.width).square_().mul_(-0.5)

    def direct(self, x: Tensor, normalise: bool) -> tuple[Tensor, Tensor] | None:
        """Like ``queries``, but from (n, d) not yet prepared, of float32 or less, without a float64 copy of it.

        w is (x, width), or (x, |x| width) with ``normalise``: a query's scores may have any common factor. None if
        squares or products might over- or underflow, or x is not finite.
        """
        if self.dtype != torch.float32 or x.dtype == torch.float64 or self.centre is not None:
            return None
        width, (low, high) = self.width.item(), SAFE
        norms = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32)
        least, most = (value.item() for value in norms.aminmax())
        if not (low <= least and most <= high and low <= width <= high):
            return None
        w = torch.empty(len(x), self.dim + 1, dtype=torch.float32, device=x.device)
        w[:, :-1] = x
        w[:, -1] = norms * width if normalise else width
        # As in ``queries``, but w's last entry counts whole, not half: as part of it a length errs by (d / 2 + 3) u,
        # relatively. As a factor of the bound, where that hardly counts, the bracket covers it.
        last, terms = w[:, -1], (self.dim + 6) * (1 + self.dim * EPS32)
        bulk = norms.add_(last)
        return w, bulk * (bulk / last * (terms * EPS64) + terms * EPS32)

    def queries(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(n, d) float64 -> w (n, d + 1) and (n,) a bound on twice the error of w.r, both of ``dtype``."""
        moved = z if self.centre is None else z - self.centre
        norms = (moved.square() @ torch.ones_like(moved[0]))[:, None].sqrt_()
        scale = torch.maximum(norms, self.width).reciprocal_()
        w = torch.empty(len(z), self.dim + 1, dtype=self.dtype, device=z.device)
        w[:, :-1] = moved * scale
        w[:, -1:] = scale.mul_(self.width)
        norms /= self.width
        # A dot product of n terms errs by at most n u sum |w_i r_i|, u = eps / 2 (Higham, Accuracy and Stability of
        # Numerical Algorithms, eq. 3.5), in any order of summation; |r| <= (1, 1/2). Rounding w and r, and the
        # comparison, add less than 5 u. The float64 term covers the rounding of the differences that decide.
        terms = self.dim + 6
        error = terms * torch.finfo(self.dtype).eps * (norms + 0.5) * scale
        error += terms * EPS64 * (norms + 1).square() * scale
        return w, error[:, 0].to(self.dtype)


def _tiles(rows: Tensor, dtype: torch.dtype, normalise: bool = False) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Scores by tiles in ``dtype``; of each block of rows only the maximum is kept, and differences decide in the end.

    Blocks are strided along the first axis of a (rows, queries) tile, so that their maxima take vector instructions.
    """
    size, dim = rows.shape
    # Looking through V / block maxima costs 1/6 of rescoring block rows of d channels, which single rows do without.
    block = 1 if size < 48 * dim else 1 << min(7, round(math.log2(size / (6 * dim)) / 2))
    scaled = _Scaled(rows, dtype)
    products, padding = scaled.rows, -size % block
    if padding:
        # The last row repeated at the end is never the lowest index of its equals.
        rows, products = (torch.cat([x, x[-1:].expand(padding, -1)]) for x in (rows, products))
    # (V / block, d, block)
    blocks = rows.view(-1, block, dim).transpose(1, 2).contiguous()
    del rows, scaled.rows
    count = len(blocks)
    tall = min(count, max(1, 1024 // block)) * block
    wide = max(1, _larger(TILE, blocks.device) // tall)
    hold = max(1, _larger(MAXIMA, blocks.device) // count // wide) * wide
    # Reused: fresh memory costs more than what is written to it.
    held = torch.empty(count * wide, dtype=dtype, device=blocks.device)
    scores = torch.empty(tall * wide if block > 1 else 0, dtype=dtype, device=blocks.device)
    flags = torch.empty(count * wide, dtype=torch.bool, device=blocks.device)

    def prepared(z: Tensor) -> Tensor:
        return lookup_range.prepared(z, normalise, "latent")

    def search(z: Tensor) -> tuple[Tensor, Tensor]:
        parts = [part(z[start : start + hold]) for start in range(0, len(z), hold)]
        if len(parts) == 1:
            return parts[0]
        left = [positions + i * hold for i, (_, positions) in enumerate(parts)]
        return torch.cat([index for index, _ in parts]), torch.cat(left)

    def part(z: Tensor) -> tuple[Tensor, Tensor]:
        w, error = scaled.direct(z, normalise) or scaled.queries(prepared(z))
        found = [reaching(w[i : i + wide].T, error[i : i + wide]) for i in range(0, len(z), wide)]
        number, query = found[0]
        if len(found) > 1:
            number = torch.cat([part for part, _ in found])
            query = torch.cat([part.add_(i * wide) for i, (_, part) in enumerate(found)])
        left = torch.empty(0, dtype=torch.int64, device=z.device)
        if len(query) > 2 * len(z):
            # A query with so many blocks left is cheaper in the next method.
            crowded = query.bincount(minlength=len(z)) > max(8, count // 16)
            left, few = crowded.nonzero()[:, 0], ~crowded[query]
            number, query = number[few], query[few]
        return _decided(z, prepared, blocks, number, query, len(query) == len(z) - len(left)), left

    def reaching(columns: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """(block, column) of the blocks that may hold a column's nearest row."""
        width = columns.shape[1]
        maxima = held[: count * width].view(count, width)
        for first in range(0, len(products), tall):
            tile = products[first : first + tall]
            out = maxima[first // block : (first + len(tile)) // block]
            if block == 1:
                torch.mm(tile, columns, out=out)
                continue
            view = scores[: len(tile) * width].view(len(tile), width)
            torch.mm(tile, columns, out=view)
            torch.amax(view.view(-1, block, width), 1, out=out)
        limit = maxima.amax(0).sub_(error)
        if maxima.device.type != "cpu":
            number, column = (maxima >= limit).nonzero(as_tuple=True)
            return number, column
        # numpy compares and searches several times faster than torch does.
        reached = flags[: count * width].numpy()
        np.greater_equal(maxima.numpy(), limit.numpy(), out=reached.reshape(count, width))
        pairs = np.divmod(np.flatnonzero(reached), width)
        return torch.from_numpy(pairs[0]), torch.from_numpy(pairs[1])

    return search


def _decided(
    z: Tensor, prepared: Callable[[Tensor], Tensor], blocks: Tensor, number: Tensor, query: Tensor, single: bool
) -> Tensor:
    """(n,): for each query the row of least float64 distance, the lowest of such, among its blocks.

    z (n, d) is ``prepared`` only where distances are needed; blocks (V / block, d, block). The pairs (number, query)
    say which blocks, no query having several where ``single``. A query without any gets V or more.
    """
    n, (count, dim, block) = len(z), blocks.shape
    index = torch.full((n,), count * block, dtype=torch.int64, device=z.device)
    if block == 1:
        # A single row left needs no distance.
        index[query] = number
        if single:
            return index
        several = lookup_index.shared(query, n)
        number, query = number[several], query[several]
        # From here on, only the queries that several rows are left to.
        opened, place = torch.unique(query, return_inverse=True)
        z, n = z[opened], len(opened)
    else:
        place = query
    # Prepare each query once: beside other queries it might be rounded differently.
    z = prepared(z)
    distance = torch.empty(len(query), dtype=torch.float64, device=z.device)
    row = torch.empty(len(query), dtype=torch.int64, device=z.device)
    step = max(1, _larger(TILE, z.device) // (dim * block))
    for start in range(0, len(query), step):
        chunk = slice(start, start + step)
        gaps = blocks.view(count, -1).index_select(0, number[chunk]).view(-1, dim, block)
        gaps = gaps.sub_(z.index_select(0, place[chunk])[:, :, None]).square_().sum(1)
        distance[chunk], row[chunk] = gaps.min(1)
    row += number * block
    least = torch.full((n,), math.inf, dtype=torch.float64, device=z.device)
    least.scatter_reduce_(0, place, distance, "amin")
    first = distance == least[place]
    best = torch.full((n,), count * block, dtype=torch.int64, device=z.device)
    best.scatter_reduce_(0, place[first], row[first], "amin")
    if block > 1:
        return best
    index[opened] = best
    return index


def _fused(
    rows: Tensor, best_two: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The best two scores of each query from the kernel: where they differ by more than the error, the best is it."""
    scaled = _Scaled(rows, torch.float32)

    def search(z: Tensor) -> tuple[Tensor, Tensor]:
        w, error = scaled.queries(z)
        best, index, second = best_two(w, scaled.rows)
        return index, (best - error <= second).nonzero()[:, 0]

    return search
