"""The look-up is exact: against brute force in float64, with ties to the lowest index, by every method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gsq.quantizers import lookup, lookup_index, lookup_range, lookup_small
from gsq.quantizers.lookup import nearest_rows, nearest_rows_expanded
from gsq.quantizers.lookup_index import Search


@pytest.fixture(autouse=True, params=["chosen", "general"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs with and without the method for few queries and rows, which would take most of them."""
    if request.param == "general":
        monkeypatch.setattr(lookup_small, "nearest", lambda *_: None)
    return request.param


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
    rows, queries = unit(5000, 9, 14), unit(700, 9, 15)
    whole = nearest_rows(queries, rows)
    for name, value in (("TILE", 1), ("TILE", 1 << 22), ("MAXIMA", 1), ("MAXIMA", 1 << 24), ("QUERIES", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(lookup, name, value)
            assert torch.equal(nearest_rows(queries[:300], rows), whole[:300])


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return out


@pytest.mark.parametrize("spread", [1.0, 1e-9])
@pytest.mark.parametrize("dim", [1, 2, 4, 9])
def test_memory_is_a_tile(monkeypatch: pytest.MonkeyPatch, dim: int, spread: float) -> None:
    """This holds for rows in one spot too, where every row is as near."""
    monkeypatch.setattr(lookup, "TILE", 1 << 16)
    monkeypatch.setattr(lookup, "MAXIMA", 1 << 16)
    rows, queries = unit(1, dim, 27).double() + spread * unit(5000, dim, 16).double(), unit(2000, dim, 17)
    with _Largest() as largest:
        nearest_rows(queries, rows)
    assert 0 < largest.elements <= max(1 << 17, rows.numel() * 2, queries.numel()) < 2000 * 5000 / 50


def test_no_gradient_is_recorded() -> None:
    found = nearest_rows(unit(4, 3, 18).requires_grad_(), unit(8, 3, 19).requires_grad_())
    assert found.dtype == torch.int64 and not found.requires_grad


@pytest.mark.parametrize("dim", [1, 3])
def test_no_queries(dim: int) -> None:
    assert nearest_rows(torch.empty(0, dim), unit(8, dim, 20)).shape == (0,)


Method = Callable[[Tensor, int], Search]


def _forced_circle(rows: Tensor, count: int) -> Search:
    return lookup._chain(lookup_index.circle(rows), lambda: lookup._general(rows, count))


METHODS: dict[str, Method] = {
    "line": lambda rows, count: lookup_index.line(rows),
    "circle": _forced_circle,
    "tree": lambda rows, count: lookup._chain(lookup_index.tree(rows), lambda: lookup._float64(rows)),
    "float32": lambda rows, count: lookup._float32(rows),
    "float64": lambda rows, count: lookup._float64(rows),
    "differences": lambda rows, count: lambda z: lookup._differences(rows, z),
}


def applicable(dim: int, normalise: bool) -> list[str]:
    """Methods that can serve at all, whatever the sizes for which they are chosen."""
    names = ["tree", "float32", "float64", "differences"]
    return names + ["line"] * (dim == 1) + ["circle"] * (dim == 2 and normalise)


def assert_nearest(found: Tensor, queries: Tensor, rows: Tensor, normalise: bool = False) -> None:
    """Least float64 distance within 1e-6, exactly where it is 0 or d <= 2; first of the rows equal to it."""
    z, c = lookup_range.prepared(queries, normalise, "latent"), lookup_range.prepared(rows, normalise, "codebook")
    for query, index in zip(z, found.tolist(), strict=True):
        distances = (c - query).square().sum(1)
        least = distances.min()
        assert distances[index] <= least * (1 + (0 if z.shape[1] <= 2 else 1e-6))
        assert (c == c[index]).all(1).nonzero()[0, 0] == index


def collapsed(size: int, dim: int, seed: int) -> Tensor:
    """Three tight clusters of several widths, some rows of them equal."""
    generator = torch.Generator().manual_seed(seed)
    centres = unit(3, dim, seed + 1).double()[torch.randint(3, (size,), generator=generator)]
    width = 10.0 ** torch.randint(-12, -2, (size, 1), generator=generator)
    rows = centres + width * torch.randn(size, dim, generator=generator, dtype=torch.float64)
    return rows[torch.randint(size, (size,), generator=generator)]


def norms_apart(size: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, dim, generator=generator) * 10.0 ** torch.randint(-6, 6, (size, 1), generator=generator)


def tiny(size: int, dim: int, seed: int) -> Tensor:
    """float32 denormals."""
    return unit(size, dim, seed) * 1e-40


def whole(size: int, dim: int, seed: int) -> Tensor:
    """Small whole numbers: many ties, zeros and equal rows."""
    return torch.randint(-2, 3, (size, dim), generator=torch.Generator().manual_seed(seed)).float()


KINDS = [unit, collapsed, norms_apart, tiny, whole]


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 8, 17, 64, 512])
@pytest.mark.parametrize("kind", KINDS)
def test_every_method_is_exact(kind: Callable[[int, int, int], Tensor], dim: int, normalise: bool) -> None:
    for size in (1, 2, 37, 700):
        rows, near = kind(size, dim, 30), kind(size, dim, 30)[torch.arange(24) % size].double()
        # Far, coincident, and all but coincident queries.
        queries = torch.cat([kind(12, dim, 31).double(), unit(12, dim, 32).double(), near[:12]])
        queries = torch.cat([queries, near[12:] + 1e-7 * unit(12, dim, 33), torch.zeros(1, dim)])
        z, c = lookup_range.prepared(queries, normalise, "latent"), lookup_range.prepared(rows, normalise, "codebook")
        for name in applicable(dim, normalise):
            if name == "circle" and not c.any(1).all():
                continue
            assert_nearest(METHODS[name](c, len(z))(z), queries, rows, normalise)
        assert_nearest(nearest_rows(queries, rows, normalise=normalise), queries, rows, normalise)


@pytest.mark.parametrize(("dim", "size"), [(1, 1 << 20), (2, 1 << 17), (4, 1 << 18), (8, 1 << 17), (32, 1 << 16)])
def test_exact_among_many_rows(dim: int, size: int) -> None:
    rows = unit(size, dim, 40)
    queries = torch.cat([unit(4, dim, 41), rows[-2:], rows[:2] + 1e-7 * unit(2, dim, 42)])
    for normalise in (False, True):
        z, c = lookup_range.prepared(queries, normalise, "latent"), lookup_range.prepared(rows, normalise, "codebook")
        for name in {*applicable(dim, normalise)} - {"differences"}:
            assert_nearest(METHODS[name](c, len(z))(z), queries, rows, normalise)


@pytest.mark.parametrize("dim", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_in_chosen_methods(dim: int, dtype: torch.dtype) -> None:
    """More queries than the tree asks for, under autocast."""
    rows, queries = unit(3000, dim, 43).to(dtype), unit(1200, dim, 44).to(dtype)
    for normalise in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            found = nearest_rows(queries, rows, normalise=normalise)
        assert_nearest(found[::24], queries[::24], rows, normalise)


@quick
@given(st.integers(1, 4), st.booleans(), st.data())
def test_every_method_on_a_grid(dim: int, normalise: bool, data: st.DataObject) -> None:
    """Exact ties, between different rows too: all methods agree with brute force where nothing is rounded."""
    vectors = st.lists(st.lists(grid, min_size=dim, max_size=dim), min_size=1, max_size=20)
    z, c = torch.tensor(data.draw(vectors)), torch.tensor(data.draw(vectors))
    if normalise:
        assert_nearest(nearest_rows(z, c, normalise=True), z, c, True)
        return
    for name in applicable(dim, normalise):
        assert torch.equal(METHODS[name](c.double(), len(z))(z.double()), brute_force(z, c)), name


def test_slow_trees_give_way_to_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup.time, "perf_counter", iter(range(0, 1000, 100)).__next__)
    rows, queries = unit(5000, 4, 45), unit(1100, 4, 46) * 1e-3
    assert_nearest(nearest_rows(queries, rows)[::20], queries[::20], rows)


def test_low_precision_products_are_kept_out() -> None:
    rows, queries = unit(4096, 16, 47), unit(64, 16, 48)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(nearest_rows(queries, rows), brute_force(queries, rows))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9")
def test_the_newer_precision_setting_is_respected() -> None:
    products: Any = torch.backends.mkldnn.matmul
    before, rows, queries = products.fp32_precision, unit(4096, 16, 47), unit(64, 16, 48)
    try:
        products.fp32_precision = "bf16"
        assert torch.equal(nearest_rows(queries, rows), brute_force(queries, rows))
        assert products.fp32_precision == "bf16"
    finally:
        products.fp32_precision = before


@pytest.mark.parametrize("scale", [1e-200, 1e200, 1e-300])
def test_lengths_beyond_squares_are_normalised(scale: float) -> None:
    rows, queries = unit(50, 3, 49).double(), unit(20, 3, 50).double()
    found = nearest_rows(queries * scale, rows * scale, normalise=True)
    assert torch.equal(found, nearest_rows(queries, rows, normalise=True))


@pytest.mark.parametrize("dim", [1, 2, 16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_refuses_what_is_not_finite(dim: int, bad: float) -> None:
    rows, queries = unit(40, dim, 51), unit(30, dim, 52)
    spoiled = queries.clone()
    spoiled[7, 0] = bad
    with pytest.raises(ValueError, match="latent holds NaN or infinite values"):
        nearest_rows(spoiled, rows)
    with pytest.raises(ValueError, match="codebook holds NaN or infinite values"):
        nearest_rows(rows, spoiled)
    # Large but finite: the sum overflows and nothing is refused.
    nearest_rows(torch.full((8, dim), 3e38), rows)


@pytest.mark.parametrize("shapes", [((3, 2), (4, 3)), ((3,), (4, 3)), ((3, 2), (0, 2))])
def test_refuses_shapes(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="expected"):
        nearest_rows(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(("dim", "size"), [(3, 40), (16, 300), (16, 3000), (64, 300)])
def test_queries_taken_directly_are_exact_at_any_scale(
    dim: int, size: int, normalise: bool, dtype: torch.dtype, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32 products of queries never copied to float64: from denormals to the largest, and all but ties."""
    taken: list[bool] = []
    direct = lookup._Scaled.direct

    def watched(*given: Any) -> tuple[Tensor, Tensor] | None:
        out = direct(*given)
        taken.append(out is not None)
        return out

    monkeypatch.setattr(lookup._Scaled, "direct", watched)
    monkeypatch.setattr(lookup, "TREE_ROWS", {})
    generator = torch.Generator().manual_seed(57)
    limits, large = torch.finfo(dtype), torch.finfo(dtype).max / 8
    scales = [4 * limits.smallest_normal * limits.eps, limits.tiny, 1e-20, 1e-11, 1e-9, 1e-4, 1, 100, 1e9, 1e20, large]
    for row_scale in (1e-30, 1e-5, 1.0, 1e4, 1e30):
        rows = unit(size, dim, 58)[torch.randint(size, (size,), generator=generator)]
        pairs = torch.randint(size, (2, 40), generator=generator)
        # Halfway between two rows, on one, anywhere, along an axis.
        shapes = torch.cat([rows[pairs].mean(0), rows[:9], unit(30, dim, 59), torch.eye(dim)[:3]])
        rows = (rows * row_scale).to(torch.float32)
        rows[7] = 0
        c, first = lookup_range.prepared(rows, normalise, "codebook"), first_equal(rows)
        chunks = [(shapes * scale).to(dtype) for scale in (*scales, row_scale) if scale <= large]
        for queries in [*chunks, torch.cat(chunks)[::9], torch.zeros(5, dim, dtype=dtype)]:
            found = nearest_rows(queries, rows, normalise=normalise)
            z = lookup_range.prepared(queries, normalise, "latent")
            least = torch.stack([(c - query).square().sum(1).amin() for query in z])
            assert ((z - c[found]).square().sum(1) <= least * (1 + 1e-13 * dim)).all()
            assert torch.equal(found, first[found])
    assert way == "chosen" or (any(taken) and not all(taken))


def test_queries_taken_directly_are_checked_too() -> None:
    rows, queries = unit(300, 16, 60), unit(50, 16, 61)
    for bad in (float("nan"), float("inf")):
        queries[17, 3] = bad
        for normalise in (False, True):
            with pytest.raises(ValueError, match="latent holds NaN or infinite values"):
                nearest_rows(queries, rows, normalise=normalise)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("normalise", [False, True])
def test_expanded_is_the_usual_code(dtype: torch.dtype, normalise: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = unit(500, 8, 54) * 2, unit(200, 8, 55) * 3
    z, c = (F.normalize(queries, dim=1), F.normalize(rows, dim=1)) if normalise else (queries, rows)
    z, c = z.to(dtype), c.to(dtype)
    usual = (z.square().sum(1, keepdim=True) + c.square().sum(1) - 2 * z @ c.T).argmin(1)
    monkeypatch.setattr(lookup, "TILE", 500 * 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = nearest_rows_expanded(queries, rows, dtype, normalise=normalise)
    # Products of a tile and of the whole may round differently, in a last place.
    assert (found == usual).double().mean() > 0.98
