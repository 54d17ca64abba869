"""Fused kernel (Triton) for ``lookup.nearest_rows`` on CUDA: scores are reduced where they are made, never stored.

Checked in Triton's interpreter; its speed on a GPU is not measured.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    import triton  # type: ignore
    import triton.language as tl  # type: ignore
except ImportError:
    triton = None

# Queries and rows of a tile, and the most channels of one product.
TILE_QUERIES, TILE_ROWS, TILE_CHANNELS = 64, 64, 32
# Programs that fill a GPU: with fewer queries than that, the rows are split among several.
PROGRAMS = 512


def available() -> bool:
    """Whether Triton can be imported."""
    return triton is not None


def best_two(w: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """w (N, k) and rows (V, k), float32, contiguous -> best score w.r, its row, second best score, each (N,).

    Products are of float32 (no TF32). A second row with the best score makes the second best equal to it.
    """
    count, channels = w.shape
    tiles = triton.cdiv(len(rows), TILE_ROWS)
    programs = triton.cdiv(count, TILE_QUERIES)
    splits = max(1, min(tiles, PROGRAMS // max(1, programs)))
    best = torch.empty(splits, count, dtype=torch.float32, device=w.device)
    second, index = torch.empty_like(best), torch.empty_like(best, dtype=torch.int64)
    if count:
        width = max(16, min(TILE_CHANNELS, triton.next_power_of_2(channels)))
        sizes = {"tile_queries": TILE_QUERIES, "tile_rows": TILE_ROWS, "tile_channels": width}
        per_split = triton.cdiv(tiles, splits)
        arguments = (w, rows, best, index, second, count, len(rows), channels, per_split)
        _kernel[programs, splits](*arguments, passes=triton.cdiv(channels, width), **sizes)
    top, part = best.max(0)
    beaten = best.scatter(0, part[None], -torch.inf).amax(0)
    part = part[None]
    return top, index.gather(0, part)[0], torch.maximum(second.gather(0, part)[0], beaten)


def _best_two(  # type: ignore
    w,
    rows,
    best_out,
    index_out,
    second_out,
    count,
    size,
    channels,
    per_split,
    passes: tl.constexpr,
    tile_queries: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_channels: tl.constexpr,
):
    query = tl.program_id(0).to(tl.int64) * tile_queries + tl.arange(0, tile_queries)
    split = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, tile_channels)
    infinity = float("inf")
    best = tl.full((tile_queries,), -infinity, tl.float32)
    second = tl.full((tile_queries,), -infinity, tl.float32)
    index = tl.zeros((tile_queries,), tl.int64)
    for tile in range(split * per_split, (split + 1) * per_split):
        row = tile * tile_rows + tl.arange(0, tile_rows)
        scores = tl.zeros((tile_queries, tile_rows), tl.float32)
        for number in range(passes):
            at = number * tile_channels + channel
            left = tl.load(
                w + query[:, None] * channels + at[None, :],
                mask=(query[:, None] < count) & (at[None, :] < channels),
                other=0.0,
            )
            right = tl.load(
                rows + row[None, :] * channels + at[:, None],
                mask=(row[None, :] < size) & (at[:, None] < channels),
                other=0.0,
            )
            scores += tl.dot(left, right, input_precision="ieee")
        scores = tl.where(row[None, :] < size, scores, -infinity)
        value, where = tl.max(scores, axis=1, return_indices=True)
        others = tl.where(tl.arange(0, tile_rows)[None, :] == where[:, None], -infinity, scores)
        # The larger of two best scores stays; the smaller is a candidate for second best.
        second = tl.maximum(tl.maximum(second, tl.max(others, axis=1)), tl.minimum(best, value))
        index = tl.where(value > best, tile * tile_rows + where, index)
        best = tl.maximum(best, value)
    out = split * count + query
    tl.store(best_out + out, best, mask=query < count)
    tl.store(index_out + out, index, mask=query < count)
    tl.store(second_out + out, second, mask=query < count)


_kernel: Any = triton.jit(_best_two) if triton is not None else None
