"""The look-up is exact: against brute force in float64, with ties to the lowest index, whatever is around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gsq.quantizers import lookup
from gsq.quantizers.lookup import nearest_rows

quick = settings(max_examples=150, deadline=None, database=None)


def brute_force(queries: Tensor, rows: Tensor) -> Tensor:
    """Index of the smallest |z - c|^2, from the differences, in float64; numpy's argmin takes the first."""
    z, c = queries.double().numpy(), rows.double().numpy()
    out = [((part[:, None] - c[None]) ** 2).sum(-1).argmin(1) for part in np.array_split(z, max(1, len(z) // 16))]
    return torch.from_numpy(np.concatenate(out))


def unit(count: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, dim, generator=generator)
    return F.normalize(vectors, dim=1) if dim > 1 else vectors


def first_equal(rows: Tensor) -> Tensor:
    """For each row the index of the first row equal to it."""
    found: dict[tuple[float, ...], int] = {}
    return torch.tensor([found.setdefault(tuple(row), i) for i, row in enumerate(rows.tolist())])


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 8, 16, 64])
@pytest.mark.parametrize("size", [2, 17, 300, 4096])
def test_equals_brute_force(dim: int, size: int) -> None:
    rows, queries = unit(size, dim, 1), unit(48, dim, 2)
    assert torch.equal(nearest_rows(queries, rows), brute_force(queries, rows))


@pytest.mark.parametrize("dim", [2, 8])
def test_equals_brute_force_off_the_sphere(dim: int) -> None:
    generator = torch.Generator().manual_seed(3)
    rows, queries = torch.randn(200, dim, generator=generator) * 3, torch.randn(100, dim, generator=generator)
    assert torch.equal(nearest_rows(queries, rows), brute_force(queries, rows))


@pytest.mark.parametrize("dim", [1, 2, 3, 16])
def test_a_row_finds_itself(dim: int) -> None:
    rows = unit(5000, dim, 4)
    assert torch.equal(nearest_rows(rows, rows), first_equal(rows))


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 8, 16, 64])
@pytest.mark.parametrize("size", [31, 64, 129, 1000, 4103])
def test_ties_of_equal_rows_go_to_the_lowest_index(dim: int, size: int) -> None:
    # BLAS rounds the same dot product differently in the body and at the edge of a matrix.
    once = unit((size + 1) // 2, dim, 5)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(6))
    rows = torch.cat([once, once])[:size][order]
    first = first_equal(rows)
    for count in (1, 5, 257):
        found = nearest_rows(unit(count, dim, 7), rows)
        assert torch.equal(found, first[found])


@pytest.mark.parametrize("dim", [1, 4])
def test_all_rows_equal(dim: int) -> None:
    assert nearest_rows(unit(20, dim, 8), unit(1, dim, 9).expand(6000, dim)).eq(0).all()


grid = st.integers(-3, 3).map(float)


@quick
@given(st.lists(grid, min_size=1, max_size=12), st.lists(st.integers(-14, 14).map(lambda i: i / 4), min_size=1))
def test_ties_at_one_dimension(rows: list[float], queries: list[float]) -> None:
    """Between two neighbours, among equals, beyond both ends."""
    z, c = torch.tensor(queries)[:, None], torch.tensor(rows)[:, None]
    assert torch.equal(nearest_rows(z, c), brute_force(z, c))


@quick
@given(st.integers(2, 4), st.data())
def test_ties_on_a_grid(dim: int, data: st.DataObject) -> None:
    """Small whole numbers are exact in any order of summation: rows equally far tie exactly."""
    vectors = st.lists(st.lists(grid, min_size=dim, max_size=dim), min_size=1, max_size=12)
    z, c = torch.tensor(data.draw(vectors)), torch.tensor(data.draw(vectors))
    assert torch.equal(nearest_rows(z, c), brute_force(z, c))


def test_autocast_changes_nothing() -> None:
    rows, queries = unit(4096, 4, 10), unit(200, 4, 11)
    with torch.autocast("cpu", torch.bfloat16):
        found = nearest_rows(queries, rows)
    assert torch.equal(found, brute_force(queries, rows))


def test_why_float64() -> None:
    """At d = 2, V = 65536 the usual float32 expansion is wrong most of the time, and the look-up is not."""
    rows, queries = unit(65536, 2, 12), unit(300, 2, 13)
    truth = brute_force(queries, rows)
    usual = (queries.square().sum(1, keepdim=True) + rows.square().sum(1) - 2 * queries @ rows.T).argmin(1)
    assert (usual != truth).double().mean() > 0.5
    assert torch.equal(nearest_rows(queries, rows), truth)


def test_tiles_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = unit(5000, 3, 14), unit(700, 3, 15)
    whole = nearest_rows(queries, rows)
    for tile in (1, 4096 * 3, 1 << 22):
        monkeypatch.setattr(lookup, "TILE", tile)
        assert torch.equal(nearest_rows(queries[:200], rows), whole[:200])


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return out


@pytest.mark.parametrize("dim", [1, 4])
def test_memory_is_a_tile(monkeypatch: pytest.MonkeyPatch, dim: int) -> None:
    monkeypatch.setattr(lookup, "TILE", 1 << 16)
    rows, queries = unit(5000, dim, 16), unit(2000, dim, 17)
    with _Largest() as largest:
        nearest_rows(queries, rows)
    assert 0 < largest.elements <= max(1 << 16, rows.numel(), queries.numel()) < 2000 * 5000 / 100


def test_no_gradient_is_recorded() -> None:
    found = nearest_rows(unit(4, 3, 18).requires_grad_(), unit(8, 3, 19).requires_grad_())
    assert found.dtype == torch.int64 and not found.requires_grad


@pytest.mark.parametrize("dim", [1, 3])
def test_no_queries(dim: int) -> None:
    assert nearest_rows(torch.empty(0, dim), unit(8, dim, 20)).shape == (0,)
