"""Look-ups of float64 vectors so long that their squares overflow, or so short that they vanish."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from test_lookup import METHODS, first_equal, unit
from torch import Tensor

from gsq.quantizers import lookup_range
from gsq.quantizers.lookup import nearest_rows
from gsq.quantizers.lookup_range import by_differences, guarded, times_power

SCALES = [5e-324, 1e-310, 1e-200, 1e-160, 1.0, 1e154, 1e200, 1e307, 1.7e308]


def assert_nearest(found: Tensor, queries: Tensor, rows: Tensor) -> None:
    """The row of least distance by exact fractions, but for float64's rounding; the first of the rows equal to it."""
    exact = [[Fraction(value) for value in row] for row in rows.tolist()]
    first = first_equal(rows)
    for query, index in zip(queries.tolist(), found.tolist(), strict=True):
        z = [Fraction(value) for value in query]
        distances = [sum((a - b) ** 2 for a, b in zip(z, row, strict=True)) for row in exact]
        assert distances[index] <= min(distances) * (1 + Fraction(1, 10**14))
        assert first[index] == index


def scaled(size: int, dim: int, seed: int, scale: float) -> Tensor:
    """Vectors with entries in [-scale, scale], some rows twice."""
    rows = unit(size, dim, seed).double()
    rows = (rows / rows.abs().max()) * scale
    return torch.cat([rows, rows[: size // 4]])


@pytest.mark.parametrize("dim", [1, 2, 3, 16])
@pytest.mark.parametrize("scale", SCALES)
def test_every_method_is_exact_at_every_scale(scale: float, dim: int) -> None:
    rows = scaled(60, dim, 60, scale)
    queries = torch.cat([scaled(8, dim, 61, scale), -rows[:2], rows[-2:], rows[2:4] * 0.75, rows[:1] * 0])
    assert_nearest(nearest_rows(queries, rows), queries, rows)
    for name in ["tree", "float32", "float64", "differences"] + ["line"] * (dim == 1):
        search = guarded(rows, lambda moved, name=name: METHODS[name](moved, len(queries)))  # type: ignore[misc]
        assert_nearest(search(queries), queries, rows)
    assert_nearest(by_differences(rows, queries), queries, rows)


@pytest.mark.parametrize("dim", [1, 2, 16])
def test_rows_and_queries_of_all_scales_at_once(dim: int) -> None:
    """Near the tiny queries the tiny rows decide, whatever lies far away."""
    rows = torch.cat([scaled(12, dim, 62 + i, scale) for i, scale in enumerate(SCALES)])
    queries = torch.cat([scaled(4, dim, 82 + i, scale) for i, scale in enumerate(SCALES)])
    assert_nearest(nearest_rows(queries, rows), queries, rows)


@pytest.mark.parametrize("scale", [1e-200, 1e155, 1e200])
@pytest.mark.parametrize(("dim", "size"), [(1, 3000), (2, 3000), (4, 3000), (16, 3000)])
def test_methods_chosen_for_many_rows(dim: int, size: int, scale: float) -> None:
    """More queries than the tree asks for: as at scale 1, since a power of two changes no distance's order."""
    rows, queries = unit(size, dim, 70).double(), unit(1100, dim, 71).double()
    power = times_power(
        torch.ones(1, dtype=torch.float64), torch.frexp(torch.tensor(scale, dtype=torch.float64)).exponent
    )
    assert torch.equal(nearest_rows(queries * power, rows * power), nearest_rows(queries, rows))


@pytest.mark.parametrize("queries_scale", [3e38, 1.4e-45])
def test_float32_beside_float64(queries_scale: float) -> None:
    for scale in SCALES:
        rows, queries = scaled(40, 3, 72, scale), (unit(10, 3, 73) * queries_scale)
        assert_nearest(nearest_rows(queries, rows), queries, rows)
        assert_nearest(nearest_rows(rows, queries), rows, queries)


def test_float32_takes_no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its squares neither overflow nor vanish in float64."""
    monkeypatch.setattr(lookup_range, "guarded", None)
    for scale in (1e-45, 1.0, 3e38):
        rows, queries = unit(40, 3, 74) * scale, unit(10, 3, 75) * scale
        assert_nearest(nearest_rows(queries, rows), queries, rows)


@pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e307])
def test_all_lengths_are_normalised(scale: float) -> None:
    rows, queries = torch.tensor([[-1.0, 0], [0, 1], [1, 0]]).double(), torch.tensor([[2.0, 0], [0, 3]]).double()
    assert nearest_rows(queries * scale, rows * scale, normalise=True).tolist() == [2, 1]


def test_few_differences_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = scaled(60, 3, 76, 1e200), scaled(9, 3, 77, 1e200)
    found = by_differences(rows, queries)
    monkeypatch.setattr(lookup_range, "DIFFERENCES", 7)
    assert torch.equal(by_differences(rows, queries), found)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_refuses_what_is_not_finite_at_every_scale(bad: float) -> None:
    rows = scaled(20, 3, 78, 1e200)
    spoiled = rows.clone()
    spoiled[3, 1] = bad
    with pytest.raises(ValueError, match="latent holds NaN or infinite values"):
        nearest_rows(spoiled, rows)
    with pytest.raises(ValueError, match="codebook holds NaN or infinite values"):
        nearest_rows(rows, spoiled)


def test_powers_of_two_are_exact() -> None:
    ones, exponents = torch.ones(5, dtype=torch.float64), torch.tensor([-1074, -1022, 0, 300, 1023])
    assert times_power(ones, exponents).tolist() == [2.0**e for e in exponents.tolist()]
    assert times_power(torch.tensor([5e-324], dtype=torch.float64), torch.tensor([1073])).item() == 0.5
