"""The inception score against its definition and torchmetrics."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from gsq.metrics.inception_score import InceptionScore


def scored(logits: torch.Tensor, *parts: int, splits: int = 10) -> float:
    score, first = InceptionScore(len(logits), logits.shape[1], splits), 0
    for part in logits.split(list(parts) or len(logits)):
        score.update(part, first)
        first += len(part)
    return score.result()


def test_inception_score_of_known_classes() -> None:
    """Sure of one class each, 20 in turn: 20. Sure of nothing, or always of the same: 1."""
    sure = torch.eye(20).repeat(10, 1) * 1000
    assert scored(sure) == pytest.approx(20)
    assert scored(torch.zeros(40, 20)) == pytest.approx(1)
    assert scored(sure[:1].expand(40, -1)) == pytest.approx(1)


def test_inception_score_is_its_definition() -> None:
    logits = torch.randn(95, 7, generator=torch.Generator().manual_seed(0)).double() * 3
    p = logits.softmax(1)
    wanted = []
    for i in range(10):
        part = p[i * 95 // 10 : (i + 1) * 95 // 10]
        wanted.append(float((part * (part.log() - part.mean(0).log())).sum(1).mean().exp()))
    assert scored(logits) == pytest.approx(np.mean(wanted), rel=1e-12)
    assert scored(logits, 3, 50, 42) == pytest.approx(scored(logits), rel=1e-12)
    first, second = InceptionScore(95, 7), InceptionScore(95, 7)
    first.update(logits[:33], 0)
    second.update(logits[33:], 33)
    with pytest.raises(ValueError, match="33 images were given of 95"):
        first.result()
    first.merge(second)
    assert first.result() == pytest.approx(np.mean(wanted), rel=1e-12)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [10, 11, 23, 95, 99, 100])
def test_inception_score_is_that_of_torchmetrics_over_the_parts_of_torch_fidelity(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchmetrics.image.inception import InceptionScore as Reference

    class Same(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    logits = torch.randn(count, 7, generator=torch.Generator().manual_seed(1)) * 3

    def reference(part: torch.Tensor, splits: int) -> float:
        metric = Reference(feature=Same(), splits=splits)
        metric.features.append(part.double())
        return float(metric.compute()[0])

    # Images stay in their order.
    monkeypatch.setattr(torch, "randperm", torch.arange)
    bounds = [i * count // 10 for i in range(11)]
    parts = [reference(logits[a:b], 1) for a, b in pairwise(bounds)]
    assert scored(logits) == pytest.approx(np.mean(parts), rel=1e-12)
    # Where 10 divides the number of images, torchmetrics cuts them alike.
    if count % 10 == 0:
        assert scored(logits) == pytest.approx(reference(logits, 10), rel=1e-12)
