"""Memory: what is still free, and what is kept of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gsq.data.kept import Kept
from gsq.tokenizer.memory import _control_groups, available_bytes


def test_what_is_free_is_below_the_limit_of_the_process() -> None:
    assert 1 << 20 < available_bytes() < 1 << 45
    code = "from gsq.tokenizer.memory import available_bytes; print(available_bytes())"
    limited = f"ulimit -v 1000000; exec {sys.executable} -c '{code}'"
    ran = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, check=True)
    assert 100_000_000 < int(ran.stdout) < 1_024_000_000


@pytest.mark.parametrize(
    ("own", "files", "free"),
    [
        (
            "0::/job/step\n",
            {"job/step/memory.max": "max", "job/memory.max": "1000", "job/memory.current": "300"},
            [700],
        ),
        (
            "0::/job\n",
            {
                "job/memory.max": "1000",
                "job/memory.current": "900",
                "job/memory.stat": "anon 5\ninactive_file 300\nactive_file 100\n",
            },
            [500],
        ),
        # In a container its own group is the top one.
        ("0::/host/only\n", {"memory.max": "1000", "memory.current": "1"}, [999]),
        (
            "4:memory:/job\n3:cpuset:/\n",
            {"memory/job/memory.limit_in_bytes": "1000", "memory/job/memory.usage_in_bytes": "1400"},
            [0],
        ),
        ("", {}, []),
    ],
)
def test_limits_of_jobs_are_read(tmp_path: Path, own: str, files: dict[str, str], free: list[int]) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert list(_control_groups(own, tmp_path)) == free


def test_values_are_kept_up_to_a_number_of_bytes() -> None:
    made: list[str] = []

    def make(name: str) -> Callable[[], bytes]:
        return lambda: made.append(name) or bytes(10)  # type: ignore[func-returns-value]

    kept = Kept[bytes](30, len)
    for name in "abcab":
        assert kept(name, make(name)) == bytes(10)
    assert made == ["a", "b", "c"] and kept.bytes == 30
    # The one that was used longest ago goes.
    kept("d", make("d"))
    kept("a", make("a"))
    kept("c", make("c"))
    assert made == ["a", "b", "c", "d", "c"] and kept.bytes == 30
    # One that is larger than all is kept alone.
    kept("large", lambda: bytes(100))
    assert list(kept.kept) == ["large"] and kept.bytes == 100
    kept.clear()
    assert kept.bytes == 0 and not kept.kept
