"""Features of originals are computed once for all runs."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import counting_features
import pytest
from cheap_evaluation import MEANS, setting
from tiny_run import files_below, tiny

import gsq.evaluation.evaluate
import gsq.evaluation.originals
from gsq import evaluate, train
from gsq.data.batches import ImageSource
from gsq.evaluation.evaluate import protocol
from gsq.evaluation.originals import Store


def test_a_second_run_computes_no_feature_of_an_original(tmp_path: Path) -> None:
    model, source, evaluation = setting()
    alone = evaluate(model, source, evaluation)
    # Two images find the number of features.
    assert counting_features.images_seen == 2 + 8 + 8
    counting_features.images_seen = 0
    first = evaluate(model, source, evaluation, runs=tmp_path)
    assert counting_features.images_seen == 2 + 8 + 8
    counting_features.images_seen = 0
    second = evaluate(model, source, evaluation, runs=tmp_path)
    assert counting_features.images_seen == 2 + 8
    assert alone == first == second
    assert files_below(tmp_path) == [f"originals/{first['protocol']}.npz"]
    # Another protocol has originals of its own.
    counting_features.images_seen = 0
    evaluate(model, source, setting(evaluation__num_images=9)[2], runs=tmp_path)
    assert counting_features.images_seen == 2 + 9 + 9 and len(files_below(tmp_path)) == 2


def test_runs_share_originals(tmp_path: Path) -> None:
    """Whole runs, of a sweep or not: the second one reads what the first one left beside the run folders."""
    config = {"steps": 2, "evaluation__features": MEANS, "loss__perceptual": "none", "discriminator__kind": "none"}
    counting_features.images_seen = 0
    train(tiny(**config), tmp_path)
    first, counting_features.images_seen = counting_features.images_seen, 0
    train(tiny(**config, seed=1), tmp_path)
    # Before training two more are looked at: can it be evaluated?
    assert (first, counting_features.images_seen) == (2 + 2 + 16, 2 + 2 + 8)


def test_damaged_originals_are_computed_again(tmp_path: Path) -> None:
    model, source, evaluation = setting()
    wanted = evaluate(model, source, evaluation, runs=tmp_path)
    (path,) = (tmp_path / "originals").iterdir()
    whole = path.read_bytes()
    for damage in (b"", b"PK\3\4 half", whole[: len(whole) // 2], whole[:200] + bytes(40) + whole[240:]):
        path.write_bytes(damage)
        assert evaluate(model, source, evaluation, runs=tmp_path) == wanted
        assert path.read_bytes() == whole


def rules_of(source: ImageSource, evaluation: Any) -> str:
    return protocol(evaluation, source.config, source.manifest).hash


def test_waits_for_a_run_that_computes_the_originals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks at its own reconstructions meanwhile."""
    monkeypatch.setattr(gsq.evaluation.evaluate, "PATIENCE", 0.01)
    model, source, evaluation = setting()
    other = Store(tmp_path, rules_of(source, evaluation))
    wanted = evaluate(model, source, evaluation, runs=tmp_path)
    done = other.load()
    other.path.unlink()
    assert done and other.claim() and not Store(tmp_path, rules_of(source, evaluation)).claim()
    waited: list[int] = []

    def tick(error: BaseException | None) -> None:
        assert error is None
        waited.append(counting_features.images_seen)
        # Three batches of its own, then it waits.
        if len(waited) == 6:
            other.save(done)
            other.release()

    counting_features.images_seen = 0
    assert evaluate(model, source, evaluation, runs=tmp_path, tick=tick) == wanted
    assert waited[3:] == [2 + 8] * 3
    assert files_below(tmp_path) == [f"originals/{wanted['protocol']}.npz"]


@pytest.mark.parametrize("death", ["let go", "killed here", "silent elsewhere"])
def test_goes_on_where_that_run_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: str) -> None:
    monkeypatch.setattr(gsq.evaluation.evaluate, "PATIENCE", 0.01)
    monkeypatch.setattr(gsq.evaluation.originals, "STALE_SECONDS", 0.2)
    model, source, evaluation = setting()
    wanted = evaluate(model, source, evaluation)
    other = Store(tmp_path, rules_of(source, evaluation))
    assert other.claim()
    if death == "killed here":
        holder = json.loads(other.lock.read_text())
        # The largest process number that Linux gives is 2^22.
        other.lock.write_text(json.dumps({**holder, "pid": 2**22 + 1}))
    elif death == "silent elsewhere":
        other.lock.write_text(json.dumps({"host": "another machine", "pid": os.getpid()}))

    def tick(error: BaseException | None) -> None:
        if death == "let go":
            other.release()

    assert evaluate(model, source, evaluation, runs=tmp_path, tick=tick) == wanted
    assert other.load() and not other.lock.exists()


def test_a_lock_is_kept_by_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gsq.evaluation.originals, "STALE_SECONDS", 0.5)
    holder, other = Store(tmp_path, "p"), Store(tmp_path, "p")
    assert holder.claim()
    holder.lock.write_text(json.dumps({"host": "another machine", "pid": 1}))
    for _ in range(12):
        time.sleep(0.1)
        holder.refresh()
        assert other.waiting() and not other.claim()


def test_a_failed_evaluation_lets_go_of_the_lock(tmp_path: Path) -> None:
    model, source, evaluation = setting()

    def tick(error: BaseException | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, source, evaluation, runs=tmp_path, tick=tick)
    assert files_below(tmp_path) == []


def test_many_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    """Writers do not take turns: the lock only saves work."""
    model, source, evaluation = setting()
    wanted = evaluate(model, source, evaluation, runs=tmp_path)
    store = Store(tmp_path, rules_of(source, evaluation))
    done = store.load()
    assert done
    torn: list[str] = []

    def read() -> None:
        for _ in range(100):
            if Store(tmp_path, store.path.stem).load() is None:
                torn.append("torn")

    reader = threading.Thread(target=read)
    reader.start()
    while reader.is_alive():
        store.save(done)
    reader.join()
    assert not torn and evaluate(model, source, evaluation, runs=tmp_path) == wanted
