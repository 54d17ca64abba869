"""Exact look-up where N x V is small, on the CPU: what a call costs counts here, not what a distance costs.

The general methods prepare rows and queries one by one. Here the longest query and the longest row bound every
rounding of a product at once, and float64 differences decide among the few rows that are left. Calls are numpy's, which
cost half of torch's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsq.quantizers.full_precision import full_precision, is_full

Array = np.ndarray[Any, Any]
# Scores of one tile, by the bytes of each (1 and 0.5 MiB).
TILE = {4: 1 << 18, 8: 1 << 16}
# Differences (N x V x d) that cost less than a product and what it needs, the same at d = 1 of a sort, and queries that
# never repay one.
DIFFERENCES, OF_A_LINE, FEW = 1 << 10, 1 << 12, 8
# Codebook rows up to which a product is fastest for any number of queries, by d; the fewer queries, the more rows
# (timed on Zen 4).
ROWS, MORE_ROWS, QUERIES = {2: 128}, 256, 1 << 13
# Multiplications (N x V x d) up to which a product in float64 costs less than deciding among several rows; pairs of a
# query and a row at d = 2, where more rows are left; and pairs that a tile may leave for that.
WIDE, WIDE_PLANE, PAIRS = 1 << 15, 1 << 19, 64
# Multiplications (N x V x d) up to which numpy's product stays on one thread, and parts of such a size that cost less
# than what torch needs beside its product, whose number of threads a user sets.
ONE_THREAD, PARTS = 1 << 18, 4
# Scores up to which normalised queries take one tile, and values (N x d) of queries whose joint length bounds a
# rounding well enough.
DIRECTIONS, TOGETHER = 1 << 17, 1 << 11
# Longest rows and queries between these neither overflow nor vanish in squares and products.
LOW, HIGH = 1e-10, 1e10
EPS32, EPS64 = float(np.finfo(np.float32).eps), float(np.finfo(np.float64).eps)
CPU = torch.device("cpu")
TYPES = {torch.float32, torch.bfloat16, torch.float16}
_most, _least, _sum = np.maximum.reduce, np.minimum.reduce, np.add.reduce


def nearest(queries: Tensor, codebook: Tensor, normalise: bool) -> Tensor | None:
    """(N,) int64 nearest rows; None where another method is faster, or lengths might over- or underflow.

    queries (N, d), codebook (V, d), floating point. Also None where a value is not finite, a normalised row is zero,
    or float32 leaves several rows to many queries.
    """
    if not (queries.is_cpu and queries.dtype in TYPES and codebook.dtype in TYPES):
        return None
    z, rows = _array(queries), _array(codebook)
    (count, dim), size = z.shape, len(rows)
    if not count or not dim:
        return None
    few = DIFFERENCES if dim > 1 else OF_A_LINE if count > FEW else math.inf
    if not normalise and count * size * dim <= few:
        return _differences(z, rows)
    if dim == 1:
        return None if normalise else _line(z, rows)
    if normalise and count * size <= DIRECTIONS:
        return _directions(z, rows)
    limit = ROWS.get(dim, MORE_ROWS)
    if size > limit and count * size > limit * QUERIES:
        return None
    index = np.empty(count, dtype=np.int64)
    left = _product(z, rows, normalise, index)
    return None if left is None else _decided(index, left, z, rows, normalise)


def _array(vectors: Tensor) -> Array:
    if vectors.requires_grad:
        vectors = vectors.detach()
    return (vectors if vectors.dtype is torch.float32 else vectors.float()).numpy()


def _differences(z: Array, rows: Array) -> Tensor | None:
    """The definition."""
    gaps = z[:, None].astype(np.float64) - rows
    gaps *= gaps
    distance = _sum(gaps, axis=2)
    return torch.from_numpy(distance.argmin(1)) if math.isfinite(_most(distance, axis=None)) else None


def _line(z: Array, rows: Array) -> Tensor | None:
    """d = 1: the neighbours on either side among the sorted rows."""
    values, line = z[:, 0], rows[:, 0]
    if not (math.isfinite(_sum(line)) and math.isfinite(_sum(values))):
        return None
    order = line.argsort(kind="stable")
    line = line[order]
    right = np.minimum(line.searchsorted(values), len(line) - 1)
    # The first of the rows that equal the neighbour on the left has the lowest index.
    left = line.searchsorted(line[np.maximum(right - 1, 0)])
    exact = values.astype(np.float64)
    to_left, to_right = np.abs(exact - line[left]), np.abs(exact - line[right])
    left, right = order[left], order[right]
    return torch.from_numpy(np.where((to_left < to_right) | ((to_left == to_right) & (left < right)), left, right))


def _directions(z: Array, rows: Array) -> Tensor | None:
    """What ``_product`` finds of normalised vectors in one tile, with no call that it can do without: each costs as
    much as the distances of 64 queries."""
    (count, dim), size = z.shape, len(rows)
    queries, units, eps, axis = z, rows, EPS32, int(size > count)
    if dim == 2 or count * size * dim <= WIDE:
        queries, units, eps = z.astype(np.float64), rows.astype(np.float64), EPS64
        longest, squares = np.vdot(queries, queries), np.vecdot(units, units)
    else:
        # Few queries together do for the longest. Neither call warns of an overflow, as vecdot would in float32.
        longest = np.vdot(z, z) if z.size <= TOGETHER else _most(np.einsum("ij,ij->i", z, z))
        # The norms of few rows are cheap in float64, and spare the bound their error.
        units = rows.astype(np.float64) if 8 * size <= count else rows
        squares = np.einsum("ij,ij->i", units, units)
    # NaN is within no limits.
    if not (_least(squares) >= LOW**2 and _most(squares) <= HIGH**2 and LOW**2 < longest < HIGH**2):
        return None
    error = ((1.5 if units.dtype == queries.dtype else 1.0) * dim + 4) * eps * math.sqrt(longest)
    units = (units / np.sqrt(squares)[:, None]).astype(queries.dtype, copy=False)
    scores = _matmul(queries, units.T) if axis else _matmul(units, queries.T)
    limit = _most(scores, axis, keepdims=True)
    limit -= error
    index = np.empty(count, dtype=np.int64)
    left: dict[int, list[int]] = {}
    return _decided(index, left, z, rows, True) if _sorted(scores >= limit, axis, 0, index, left) else None


def _product(z: Array, rows: Array, normalise: bool, index: Array) -> dict[int, list[int]] | None:
    """Set ``index`` where a single row is left; the rows, ascending, of the others. None where that does not work."""
    (count, dim), size = z.shape, len(rows)
    eps = EPS32
    if count * size <= (WIDE_PLANE if dim == 2 else WIDE // dim):
        z, rows, eps = z.astype(np.float64), rows.astype(np.float64), EPS64
    squares = np.einsum("ij,ij->i", rows, rows)
    # In float64 the bound is far below any gap, so that the length of all queries together does for the longest.
    longest = np.vdot(z, z) if eps == EPS64 else _most(np.einsum("ij,ij->i", z, z))
    width, reach = math.sqrt(_most(squares)), math.sqrt(longest)
    if not (LOW < width < HIGH and LOW < reach < HIGH):
        return None
    # Twice the error of a score, u = eps / 2 (Higham, Accuracy and Stability of Numerical Algorithms, eq. 3.5): d u
    # |z||c| of a product, d u |c|^2 / 2 of its offset and u of their sum, or (d / 2 + 2) u |z| where rows are
    # normalised; u of the limit; and what float64 differences may round away.
    if normalise:
        if _least(squares) < LOW**2:
            return None
        rows = rows / np.sqrt(squares)[:, None]
        error = (1.5 * dim + 4) * eps * reach
    else:
        error = (dim + 3) * (eps * width * (reach + width / 2) + EPS64 * (reach + width) ** 2)
        squares *= -0.5
    left: dict[int, list[int]] = {}
    # The longer side lies along memory.
    axis, wide = int(size > count), max(64, TILE[z.itemsize] // size)
    offset = squares if axis else squares[:, None]
    for start in range(0, count, wide):
        part = z[start : start + wide] if count > wide else z
        scores = _matmul(part, rows.T) if axis else _matmul(rows, part.T)
        if not normalise:
            scores += offset
        limit = _most(scores, axis=axis, keepdims=True)
        limit -= error
        if not _sorted(scores >= limit, axis, start, index, left):
            return None
    return left


def _sorted(near: Array, axis: int, start: int, index: Array, left: dict[int, list[int]]) -> bool:
    """Set ``index`` of a tile's queries, from ``start``, and the rows in ``left`` of those that several are ``near``;
    whether there are few of these. ``axis``: along which its rows lie."""
    inner = near.ravel().nonzero()[0]
    outer = inner // near.shape[1]
    inner -= outer * near.shape[1]
    query, row = (outer, inner) if axis else (inner, outer)
    if start:
        query += start
    index[query] = row
    if len(query) > near.shape[1 - axis]:
        shared = (np.bincount(query)[query] > 1).nonzero()[0]
        if len(shared) > PAIRS:
            return False
        for one, its in zip(query[shared].tolist(), row[shared].tolist(), strict=True):
            left.setdefault(one, []).append(its)
    return True


def _matmul(a: Array, b: Array) -> Array:
    """Of a (m, d) and b (d, n), mostly m <= n."""
    cost = a.size * b.shape[1]
    if cost <= ONE_THREAD:
        return np.dot(a, b)
    if cost <= PARTS * ONE_THREAD:
        product, step = np.empty((len(a), b.shape[1]), a.dtype), max(1, ONE_THREAD // a.size)
        for start in range(0, b.shape[1], step):
            product[:, start : start + step] = np.dot(a, b[:, start : start + step])
        return product
    left, right = torch.from_numpy(a), torch.from_numpy(b)
    if a.dtype == np.float64 or is_full(CPU):
        return torch.mm(left, right).numpy()
    with torch.autocast("cpu", enabled=False), full_precision(CPU):
        return torch.mm(left, right).numpy()


def _decided(index: Array, left: dict[int, list[int]], z: Array, rows: Array, normalise: bool) -> Tensor:
    """``index`` with that of queries that several rows are left to: the first row of least float64 distance."""
    for query, found in left.items():
        near, one = rows[found].astype(np.float64), z[query].astype(np.float64)
        # Mostly a float64 score tells them apart; what it leaves is a tie, or as good as one.
        scores, squares = near @ one, np.vecdot(near, near)
        reach = math.sqrt(one @ one)
        if normalise:
            scores /= np.sqrt(squares)
            error = (1.5 * len(one) + 4) * EPS64 * reach
        else:
            scores -= 0.5 * squares
            error = (len(one) + 3) * EPS64 * (reach + math.sqrt(_most(squares))) ** 2 * 2
        least = scores.argmax()
        if np.count_nonzero(scores >= scores[least] - error) > 1:
            least = _equal(near, one, normalise)
        index[query] = found[least]
    return torch.from_numpy(index)


def _equal(near: Array, one: Array, normalise: bool) -> int:
    """The place in ``near`` (n, d) of the first row of least distance to ``one`` (d,), float64, as the other methods
    round it."""
    vectors = np.concatenate([near, one[None]])
    if normalise:
        # As ``lookup_range.prepared`` does it.
        norms = torch.linalg.vector_norm(torch.from_numpy(vectors), dim=1, keepdim=True).numpy()
        vectors /= np.where(norms == 0, 1.0, norms)
    # Torch's sum, which the other methods take: numpy's may break a tie in another way.
    return int(torch.from_numpy(vectors[:-1] - vectors[-1]).square_().sum(1).argmin())
