"""Probabilities of failure tests agree with those of scipy.stats."""

from __future__ import annotations

import pytest
from scipy import stats

from gsq.sweeps.schema import failure_tests
from gsq.sweeps.schema.failure_tests import goes_with


@pytest.mark.parametrize(("held", "size", "total", "drawn"), [(3, 4, 20, 5), (1, 7, 9, 3), (40, 60, 1000, 500)])
def test_fisher_and_tails(held: int, size: int, total: int, drawn: int) -> None:
    table = [[held, drawn - held], [size - held, total - drawn - size + held]]
    assert failure_tests._fisher(held, size, total, drawn) == pytest.approx(stats.fisher_exact(table).pvalue, rel=1e-9)
    tail = stats.hypergeom.sf(held - 1, total, drawn, size)
    assert failure_tests._at_least(held, size, total, drawn) == pytest.approx(tail, rel=1e-9)


@pytest.mark.parametrize("lost", [[9, 0, 1], [4, 3, 3], [0, 0, 10]])
def test_drawn_tables(lost: list[int]) -> None:
    """Against every table with the same margins."""
    sizes = [12, 15, 10]
    margins = stats.multivariate_hypergeom(sizes, sum(lost))
    every = [[i, j, 10 - i - j] for i in range(11) for j in range(11 - i) if 10 - i - j <= 10]
    chances = [float(margins.pmf(table)) for table in every]
    exact = sum(chance for chance in chances if chance <= float(margins.pmf(lost)) * (1 + 1e-9))
    p_value = failure_tests._drawn(lost, sizes)
    assert p_value == pytest.approx(exact, abs=6 * (exact / failure_tests.RESAMPLES) ** 0.5 + 2e-5)
    assert failure_tests._drawn(lost, sizes) == p_value


def test_failures_that_go_with_an_axis() -> None:
    values = [4] * 20 + [8] * 20 + [16] * 20
    failed = [False] * 40 + [True] * 12 + [False] * 8
    (test,) = goes_with("groups", values, failed)
    assert test.p_value == pytest.approx(1e-5) and test.group == "groups=16"
    assert (test.group_failed, test.group_done) == (12, 8) and test.failed["16"] == 12
