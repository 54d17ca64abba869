"""The method for few queries and rows: exact wherever it answers, and it answers where it is the fastest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_lookup import KINDS, assert_nearest, brute_force, first_equal, unit
from torch import Tensor

from gsq.quantizers import lookup, lookup_small
from gsq.quantizers.full_precision import full_precision, is_full
from gsq.quantizers.lookup import nearest_rows


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other method may answer."""

    def refuse(*_: Any) -> Tensor:
        raise AssertionError("another method was asked")

    monkeypatch.setattr(lookup, "_searched", refuse)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("dim", [2, 3, 8, 64, 512])
@pytest.mark.parametrize(("count", "size"), [(1, 2), (3, 3000), (65, 64), (5000, 2), (5000, 200)])
def test_answers_alone(alone: None, count: int, size: int, dim: int, normalise: bool) -> None:
    """By differences, by one product or tiles of it, whichever side is longer."""
    rows, queries = unit(size, dim, 1) * 2, unit(count, dim, 2) * 3
    found = nearest_rows(queries, rows, normalise=normalise)
    some = torch.linspace(0, count - 1, min(count, 40)).long()
    assert_nearest(found[some], queries[some], rows, normalise)
    assert found.dtype == torch.int64 and found.shape == (count,)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("dim", [2, 5, 16])
def test_ties_are_decided_by_differences(
    alone: None, dim: int, normalise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among equal rows the first; halfway between two rows whichever float64 says."""
    monkeypatch.setattr(lookup_small, "PAIRS", 10**6)
    rows = unit(40, dim, 3)[torch.randint(40, (90,), generator=torch.Generator().manual_seed(4))]
    pairs = torch.randint(90, (2, 30), generator=torch.Generator().manual_seed(5))
    queries = torch.cat([rows[pairs].mean(0), rows[:9], unit(300, dim, 6)])[:120]
    found = nearest_rows(queries, rows, normalise=normalise)
    assert_nearest(found, queries, rows, normalise)
    assert torch.equal(found, first_equal(rows)[found])


@pytest.mark.parametrize("size", [1, 2, 64, 5000])
@pytest.mark.parametrize("count", [1, 300])
def test_one_dimension(alone: None, size: int, count: int) -> None:
    whole = torch.randint(-3, 4, (size, 1), generator=torch.Generator().manual_seed(7)).float()
    for rows in (whole, torch.randn(size, 1, generator=torch.Generator().manual_seed(8))):
        queries = torch.cat([rows[:count] + 0.5, unit(count, 1, 9), rows[-1:], rows[:1] * 1e6])
        assert torch.equal(nearest_rows(queries, rows), brute_force(queries, rows))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_counts_as_it_is(alone: None, dtype: torch.dtype) -> None:
    rows, queries = unit(64, 8, 10).to(dtype), unit(200, 8, 11).to(dtype)
    assert torch.equal(nearest_rows(queries, rows), brute_force(queries, rows))


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="torch before 2.9")
def test_products_have_full_precision_whatever_is_set(alone: None) -> None:
    """Settings that are left alone are those that change nothing."""
    products: Any = torch.backends.mkldnn.matmul
    before, cpu, rows, queries = products.fp32_precision, torch.device("cpu"), unit(64, 64, 20), unit(1024, 64, 21)
    expected = nearest_rows(queries, rows, normalise=True)
    assert is_full(cpu)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_full(cpu)
        assert torch.equal(nearest_rows(queries, rows, normalise=True), expected)
    try:
        products.fp32_precision = "bf16"
        assert not is_full(cpu)
        assert torch.equal(nearest_rows(queries, rows, normalise=True), expected)
        with full_precision(cpu):
            assert is_full(cpu)
    finally:
        products.fp32_precision = before


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-10, 1e12, 1e30])
@pytest.mark.parametrize("kind", KINDS)
def test_every_scale_is_answered_or_left(kind: Any, scale: float) -> None:
    rows, queries = kind(64, 6, 12).float() * scale, kind(100, 6, 13).float() * scale
    for normalise in (False, True):
        for z, c in ((queries, rows), (queries, unit(64, 6, 14)), (unit(100, 6, 15), rows)):
            assert_nearest(nearest_rows(z, c, normalise=normalise), z, c, normalise)


@pytest.mark.filterwarnings("error")
def test_many_ties_and_other_kinds_are_left_to_others() -> None:
    rows, queries = unit(64, 8, 16), unit(300, 8, 17)
    assert lookup_small.nearest(queries, rows, False) is not None
    assert lookup_small.nearest(queries, rows[:1].expand(64, 8), False) is None
    assert lookup_small.nearest(queries.double(), rows, False) is None
    assert lookup_small.nearest(queries, unit(1 << 14, 8, 18), False) is None
    assert lookup_small.nearest(queries, torch.cat([rows, torch.zeros(1, 8)]), True) is None
    for bad in (torch.nan, torch.inf):
        spoiled = queries.clone()
        spoiled[7, 3] = bad
        assert lookup_small.nearest(spoiled, rows, False) is None
        assert lookup_small.nearest(rows, spoiled, False) is None
        for count in (8, 300):
            assert lookup_small.nearest(spoiled[:count], rows, True) is None
            with pytest.raises(ValueError, match="codebook"):
                nearest_rows(rows[:count], spoiled[:count], normalise=True)


@pytest.mark.parametrize(("count", "size", "dim"), [(1024, 3, 8), (200, 16, 8), (700, 17, 16), (64, 60, 3)])
def test_ties_of_directions_go_to_the_same_row_by_every_method(count: int, size: int, dim: int) -> None:
    """Small whole numbers have many equal angles, which roundings of unlike sums would tell apart."""
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        rows = (torch.randn(size, dim, generator=generator) * 4).round()
        queries = (torch.randn(count, dim, generator=generator) * 2).round()
        found = nearest_rows(queries, rows, normalise=True)
        assert torch.equal(found, lookup._searched(queries, rows, True))
