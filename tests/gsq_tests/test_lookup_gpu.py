"""The fused kernel, on a GPU or in Triton's interpreter (which must be chosen before Triton is imported)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from extras import extra

from gsq.quantizers import lookup, lookup_gpu
from gsq.quantizers.lookup import nearest_rows

extra("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
runs = pytest.mark.skipif(
    DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1", reason="no GPU; run in the interpreter below"
)


@pytest.mark.skipif(DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1", reason="runs directly")
def test_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    # All but this test, which is skipped there.
    assert done.returncode == 0 and "11 passed, 1 skipped" in done.stdout, done.stdout + done.stderr


def vectors(count: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@runs
@pytest.mark.parametrize(("count", "size", "dim"), [(5, 3, 2), (70, 200, 9), (130, 1000, 70), (65, 129, 16), (2, 1, 1)])
def test_best_two(count: int, size: int, dim: int) -> None:
    w, rows = vectors(count, dim, 1), vectors(size, dim, 2)
    rows[size // 2 :][:3] = rows[:3][: size - size // 2].clone()
    scores = w.double() @ rows.double().T
    best, index, second = lookup_gpu.best_two(w, rows)
    torch.testing.assert_close(best.double(), scores.max(1)[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.gather(1, index[:, None])[:, 0], scores.max(1)[0], rtol=1e-5, atol=1e-5)
    expected = scores.topk(2, 1)[0][:, 1] if size > 1 else torch.full_like(best, -torch.inf).double()
    torch.testing.assert_close(second.double(), expected, rtol=1e-5, atol=1e-5)


@runs
@pytest.mark.parametrize("dim", [3, 8, 40])
@pytest.mark.parametrize("spread", [1.0, 1e-6])
def test_the_look_up_is_exact(dim: int, spread: float) -> None:
    rows = vectors(1, dim, 3) + spread * vectors(600, dim, 4)
    rows = rows[torch.arange(600) % 500].double()
    queries = torch.cat([vectors(90, dim, 5).double(), rows[:10], torch.zeros(1, dim, device=DEVICE)])
    search = lookup._chain(lookup._fused(rows, lookup_gpu.best_two), lambda: lookup._float64(rows))
    expected = torch.stack([(rows - query).square().sum(1).argmin() for query in queries])
    assert torch.equal(search(queries), expected)
    assert torch.equal(nearest_rows(queries, rows), expected)
