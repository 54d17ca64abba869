"""Results that several parts of one report need are computed once."""

from __future__ import annotations

import pytest

from gsq.analysis.tables.remembering import remembered, remembering

CALLS: list[object] = []


@remembered
def total(values: list[int], factor: int = 1, other: object = None) -> int:
    CALLS.append(values)
    if factor < 0:
        raise ValueError("below 0")
    return sum(values) * factor


def test_once_within_a_report_and_always_outside() -> None:
    CALLS.clear()
    assert total([1, 2]) == total([1, 2]) == 3 and len(CALLS) == 2
    with remembering():
        # However the arguments are given.
        assert total([1, 2]) == total([1, 2], factor=1) == total(values=[1, 2], other=None) == 3
        assert len(CALLS) == 3
        assert total([1, 2], 2) == 6 and total([1, 3]) == 4 and len(CALLS) == 5
        # Objects that are equal but not the same may differ in what they hold.
        first, second = {"a": 1}, {"a": 1}
        total([1], other=first), total([1], other=first), total([1], other=second)
        assert len(CALLS) == 7
        for _ in range(2):
            with pytest.raises(ValueError, match="below 0"):
                total([1], -1)
        assert len(CALLS) == 9
    assert total([1, 2]) == 3 and len(CALLS) == 10


def test_nested_parts_share_what_is_remembered() -> None:
    calls = []

    @remembered
    def once(value: int) -> int:
        calls.append(value)
        return value

    with remembering():
        with remembering():
            once(1)
        once(1)
    once(1)
    assert calls == [1, 1]
