"""The originals' maps for LPIPS are computed once for all runs, where they are small."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cheap_evaluation import setting
from torch import Tensor
from torch.nn import functional

import gsq.evaluation.evaluate
import gsq.evaluation.lpips_maps
from gsq import evaluate
from gsq.evaluation.lpips_maps import KeptMaps
from gsq.training.losses import LPIPS


class FewMaps(LPIPS):
    """LPIPS on two maps without weights, which counts the images that it sees."""

    seen = 0

    def __init__(self, net: str = "vgg") -> None:
        torch.nn.Module.__init__(self)
        self.register_buffer("weight0", torch.ones(1, 3, 1, 1))
        self.register_buffer("weight1", torch.full((1, 3, 1, 1), 0.5))

    def maps(self, images: Tensor) -> list[Tensor]:
        FewMaps.seen += len(images)
        return [functional.normalize(images, dim=1), functional.avg_pool2d(images, 2)]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(gsq.evaluation.evaluate, "LPIPS", FewMaps)
    FewMaps.seen = 0
    return setting(evaluation__lpips="vgg")


def seen(few: Any, runs: Path | None) -> tuple[int, dict[str, Any]]:
    FewMaps.seen = 0
    row = evaluate(*few, runs=runs)
    return FewMaps.seen, row


def test_a_second_run_computes_no_map_of_an_original(few: Any, tmp_path: Path) -> None:
    count, alone = seen(few, None)
    assert count == 16
    # One image finds the shapes.
    assert seen(few, tmp_path) == (1 + 16, alone)
    (kept,) = (tmp_path / "originals").glob("*.lpips")
    assert kept.stat().st_size == 8 * 4 * (3 * 32 * 32 + 3 * 16 * 16)
    assert seen(few, tmp_path) == (1 + 8, alone)
    # Maps that are gone, or a part of a file, are computed and kept again.
    kept.write_bytes(kept.read_bytes()[:100])
    assert seen(few, tmp_path) == (1 + 16, alone)
    assert seen(few, tmp_path) == (1 + 8, alone)
    assert len(list((tmp_path / "originals").iterdir())) == 2


def test_many_maps_are_not_kept(few: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gsq.evaluation.lpips_maps, "LIMIT", 1000)
    assert seen(few, tmp_path)[0] == seen(few, tmp_path)[0] == 1 + 16
    assert not list(tmp_path.rglob("*.lpips"))


def test_a_full_disk_and_a_failed_evaluation_leave_nothing(
    few: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    assert seen(few, tmp_path)[0] == 1 + 16
    monkeypatch.undo()
    monkeypatch.setattr(gsq.evaluation.evaluate, "LPIPS", FewMaps)

    def stop(error: BaseException | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(*few, runs=tmp_path, tick=stop)
    assert [path.suffix for path in (tmp_path / "originals").iterdir()] == [".npz"]


def test_maps_come_back_as_they_were(tmp_path: Path) -> None:
    images = torch.rand(5, 3, 32, 32)
    kept = KeptMaps(tmp_path / "originals" / "a.lpips", FewMaps(), 5, 32)
    assert kept.load(0, 2) is None and not kept.known
    kept.begin()
    kept.add(FewMaps().maps(images[:3]))
    kept.add(FewMaps().maps(images[3:]))
    kept.end(True)
    assert kept.known
    found = kept.load(2, 5)
    assert found is not None
    assert all(torch.equal(a, b) for a, b in zip(found, FewMaps().maps(images[2:]), strict=True))
