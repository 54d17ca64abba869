"""Usage and perplexity of codebooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_features import random

from gsq.metrics.codebook import CodebookUse, IndexHistogram


def use(*groups: list[int], size: int = 8, shared: bool = True) -> CodebookUse:
    """Each group's indices as one image of one row."""
    histogram = IndexHistogram((size,) * len(groups), shared)
    histogram.update(torch.tensor(groups)[None, :, None, :])
    return histogram.result()


@pytest.mark.parametrize("shared", [True, False])
def test_uniform_use(shared: bool) -> None:
    found = use(list(range(8)) * 5, shared=shared)
    assert found.usage == 1 and found.tokens == 40
    assert found.perplexity == pytest.approx(8) and found.effective_bits == pytest.approx(3)


@pytest.mark.parametrize("shared", [True, False])
def test_a_single_row(shared: bool) -> None:
    found = use([3] * 100, shared=shared)
    assert found.usage == 1 / 8
    assert found.perplexity == pytest.approx(1) and found.effective_bits == pytest.approx(0)


def test_groups_are_counted_apart_and_pooled() -> None:
    found = use([0, 1, 0, 1], [4, 4, 4, 4])
    assert found.usage_per_group == (2 / 8, 1 / 8) and found.usage == 3 / 8
    assert found.perplexity_per_group == pytest.approx((2, 1))
    assert found.effective_bits == pytest.approx(1)
    # Pooled shares 1/4, 1/4, 1/2: entropy 1.5 bits.
    assert found.perplexity == pytest.approx(2**1.5)
    assert found.tokens == 8


def test_indices_that_share_nothing_are_not_pooled() -> None:
    """The same value of two indices is two pairs; perplexity is the geometric mean of 4 and 1."""
    found = use([0, 1, 2, 3], [0, 0, 0, 0], shared=False)
    assert found.usage_per_group == (4 / 8, 1 / 8) and found.usage == 5 / 16
    assert found.perplexity_per_group == pytest.approx((4, 1)) and found.perplexity == pytest.approx(2)
    assert found.effective_bits == pytest.approx(2)
    # Each histogram has four indices behind it.
    assert found.tokens == 4 and found.uniform_usage == pytest.approx(1 - (7 / 8) ** 4)


def test_indices_of_different_sizes() -> None:
    histogram = IndexHistogram((2, 5, 3), shared=False)
    histogram.update(torch.tensor([[0, 1, 0, 1], [4, 3, 2, 1], [2, 2, 2, 2]])[None, :, None, :])
    found = histogram.result()
    assert [counts.tolist() for counts in histogram.per_index()] == [[2, 2], [0, 1, 1, 1, 1], [0, 0, 4]]
    assert found.usage_per_group == pytest.approx((1, 4 / 5, 1 / 3)) and found.usage == pytest.approx(7 / 10)
    assert found.perplexity_per_group == pytest.approx((2, 4, 1)) and found.perplexity == pytest.approx(2)
    assert found.effective_bits == pytest.approx(3) and found.tokens == 4
    # Draws of the whole: the mean share of the ten pairs that four uniform draws of each index use.
    hits = [
        sum(len(set(random(3 * i + k).integers(0, size, 4))) for k, size in enumerate((2, 5, 3))) / 10
        for i in range(2000)
    ]
    assert found.uniform_usage == pytest.approx(np.mean(hits), abs=0.01)


def test_effective_bits_sum_over_groups() -> None:
    assert use(list(range(8)), list(range(8)), [0, 0, 0, 0, 1, 1, 1, 1]).effective_bits == pytest.approx(7)


def test_uniform_usage_is_the_expectation() -> None:
    found = use(list(range(8)) * 2)
    assert found.uniform_usage == pytest.approx(1 - (1 - 1 / 8) ** 16)
    # Many rows: without cancellation, about tokens / V.
    assert use([0], size=10**7).uniform_usage == pytest.approx(1e-7, rel=1e-9)
    draws = np.mean([len(set(random(i).integers(0, 8, 16))) / 8 for i in range(2000)])
    assert found.uniform_usage == pytest.approx(draws, abs=0.01)


@pytest.mark.parametrize("shared", [True, False])
def test_updates_add_up(shared: bool) -> None:
    indices = torch.randint(0, 50, (6, 2, 4, 4), generator=torch.Generator().manual_seed(4))
    whole, parts = IndexHistogram((50, 50), shared), IndexHistogram((50, 50), shared)
    whole.update(indices)
    for part in indices.split(4):
        parts.update(part)
    assert torch.equal(whole.counts, parts.counts) and whole.result() == parts.result()
    assert [int(counts.sum()) for counts in whole.per_index()] == [96, 96]
    assert whole.per_index()[1][7] == (indices[:, 1] == 7).sum()


@pytest.mark.parametrize("shared", [True, False])
def test_dead_rows_and_few_tokens(shared: bool) -> None:
    found = use([0, 1, 0, 1], [4, 4, 4, 4], shared=shared)
    assert found.dead_rows == (8 - 3 if shared else 6 + 7)
    assert found.few_tokens is True
    assert use(list(range(8)) * 10, shared=shared).few_tokens is False
    assert use(list(range(8)) * 10, shared=shared).dead_rows == 0


def test_histograms_of_parts_merge() -> None:
    indices = torch.randint(0, 50, (6, 2, 4, 4), generator=torch.Generator().manual_seed(5))
    whole, first, second = (IndexHistogram((50, 50), shared=True) for _ in range(3))
    whole.update(indices)
    first.update(indices[:5])
    second.update(indices[5:])
    first.merge(second)
    assert torch.equal(first.counts, whole.counts)


@pytest.mark.parametrize("wrong", [-1, 4])
def test_an_index_out_of_range_is_refused(wrong: int) -> None:
    """It would be counted as a value of the next index otherwise."""
    with pytest.raises(IndexError):
        IndexHistogram((4, 4), shared=False).update(torch.full((1, 2, 1, 1), wrong))


def test_large_and_many_codebooks() -> None:
    """D = 64 indices of 2^18 values: one table of counts, and nothing else of that size."""
    histogram = IndexHistogram((2**18,) * 64, shared=False)
    assert histogram.counts.numel() * histogram.counts.element_size() == 2**27
    histogram.update(torch.arange(64).view(1, 64, 1, 1).expand(1, 64, 2, 2) * 4096)
    found = histogram.result()
    assert found.tokens == 4 and found.usage == pytest.approx(2**-18) and found.effective_bits == 0


def test_nothing_counted() -> None:
    with pytest.raises(ValueError, match="no indices"):
        IndexHistogram((4,), shared=True).result()
