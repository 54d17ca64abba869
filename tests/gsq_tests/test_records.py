"""What a run leaves on disk, read back: torn, doubled, or half there."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from gsq import UserError
from gsq.files import read_json, write_json
from gsq.records.attempt import AHEAD_SECONDS, STALE_SECONDS, Attempt
from gsq.records.folder import RunFolder, runs_root
from gsq.records.read import (
    RunResults,
    newest_file,
    read_evaluations,
    read_metrics,
    read_results,
    read_run,
    read_runs,
    results_changed,
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.of(tmp_path, "abcdef012345")


def attempt(folder: RunFolder, state: str, step: int, started: float = 0.0, **more: Any) -> Attempt:
    made = folder.new_attempt()
    made = Attempt(made.path, made.number, clock=lambda: started + 10, started=started)
    made.write_status(state, step, 8, **more)
    return made


def test_place(folder: RunFolder, tmp_path: Path) -> None:
    assert folder.path == tmp_path / "ab" / "abcdef012345" and folder.signature == "abcdef012345"


def test_runs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSQ_RUNS", str(tmp_path / "x"))
    assert runs_root() == tmp_path / "x"
    monkeypatch.delenv("GSQ_RUNS")
    monkeypatch.chdir(tmp_path)
    assert runs_root() == tmp_path / "results" / "runs"


def test_no_attempt_yet(folder: RunFolder) -> None:
    record = read_run(folder)
    assert (record.signature, record.state, record.attempts, record.step) == ("abcdef012345", None, 0, 0)
    assert read_metrics(folder) == [] and list(read_evaluations(folder)) == []
    assert newest_file(folder, "model.safetensors") is None
    folder.new_attempt()
    assert read_run(folder).state is None and read_run(folder).attempts == 1


def test_the_newest_attempt_speaks(folder: RunFolder) -> None:
    attempt(folder, "failed", 5, failure="preempted", message="Stopped: preempted", peak_memory_bytes=300)
    attempt(folder, "running", 3, started=100.0, images_per_second=7.0, peak_memory_bytes=200)
    record = read_run(folder)
    assert (record.state, record.failure, record.attempts) == ("running", None, 2)
    # The furthest step, all seconds, the largest memory.
    assert (record.step, record.steps, record.seconds, record.peak_memory_bytes) == (5, 8, 20.0, 300)
    assert record.images_per_second == 7.0 and record.heartbeat == 110.0


def test_timings_are_means_over_all_attempts_in_device_seconds(folder: RunFolder) -> None:
    assert read_run(folder).step_seconds is None and read_run(folder).timed_steps == 0
    one = {"startup_seconds": 9.0, "training_seconds": 10.0, "trained_steps": 4}
    attempt(folder, "failed", 5, failure="preempted", **one)
    two = {"startup_seconds": 5.0, "training_seconds": 10.0, "trained_steps": 6, "processes": 2}
    attempt(folder, "done", 8, **two, evaluation_seconds=6.0, evaluations=3, device="cuda")
    record = read_run(folder)
    assert (record.step_seconds, record.timed_steps, record.startup_seconds) == (3.0, 10, 10.0)
    assert (record.evaluation_seconds, record.device) == (4.0, "cuda")


def test_done_wins_over_a_later_attempt(folder: RunFolder) -> None:
    attempt(folder, "done", 8)
    attempt(folder, "failed", 2, failure="cancelled")
    assert read_run(folder).state == "done" and read_run(folder).failure is None


def test_attempts_are_numbers_not_words(folder: RunFolder) -> None:
    for _ in range(11):
        folder.new_attempt()
    (folder.path / "attempts" / "old").mkdir()
    assert [path.name for path in folder.attempt_folders()] == [str(n) for n in range(1, 12)]


def test_stale(folder: RunFolder) -> None:
    attempt(folder, "running", 1, started=0.0)
    record = read_run(folder)
    assert not record.stale(10 + STALE_SECONDS) and record.stale(11 + STALE_SECONDS)
    # A clock that is ahead of this one, and one that was wrong.
    assert not record.stale(10 - AHEAD_SECONDS) and record.stale(9 - AHEAD_SECONDS)
    attempt(folder, "failed", 1, failure="error")
    assert not read_run(folder).stale(1e9)


def test_a_half_written_status_is_no_status(folder: RunFolder) -> None:
    attempt(folder, "failed", 4, failure="error")
    broken = folder.new_attempt()
    (broken.path / "status.json").write_text('{"state": "run')
    assert read_run(folder).state == "failed" and read_run(folder).attempts == 2


def test_two_attempts_at_once_never_share_a_folder(folder: RunFolder) -> None:
    barrier, made = threading.Barrier(8), []

    def make() -> None:
        barrier.wait()
        for _ in range(5):
            made.append(folder.new_attempt())

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(a.number for a in made) == list(range(1, 41))
    assert len({a.path for a in made}) == 40 and len(folder.attempt_folders()) == 40


def test_a_torn_last_line_is_left_out(folder: RunFolder) -> None:
    first = folder.new_attempt()
    first.log_metrics(1, {"loss": 0.5})
    first.log_metrics(2, {"loss": float("nan")})
    with (first.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 0.')
    lines = read_metrics(folder)
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0] == {"step": 1, "loss": 0.5} and lines[1]["loss"] != lines[1]["loss"]


def test_the_highest_attempt_has_each_step(folder: RunFolder) -> None:
    for number, steps in enumerate([(1, 2, 3, 4), (3, 4, 5), (4,)], 1):
        made = folder.new_attempt()
        for step in steps:
            made.log_metrics(step, {"attempt": number})
    folder.new_attempt()
    found = {line["step"]: line["attempt"] for line in read_metrics(folder)}
    assert found == {1: 1, 2: 1, 3: 2, 4: 3, 5: 2}


def test_evaluations_of_the_highest_attempt(folder: RunFolder) -> None:
    first, second = folder.new_attempt(), folder.new_attempt()
    for made, value in ((second, 2), (first, 1)):
        made.write_evaluation("p1", 8, {"value": value})
    first.write_evaluation("p1", 4, {"value": 3})
    first.write_evaluation("p2", 8, {"value": 4})
    (second.path / "evaluations" / ".p1-00000004.json.77.partial").write_text("{")
    assert [e["value"] for e in read_evaluations(folder)] == [3, 2, 4]


def test_newest_file(folder: RunFolder) -> None:
    first, _ = folder.new_attempt(), folder.new_attempt()
    (first.path / "samples.png").write_bytes(b"x")
    assert newest_file(folder, "samples.png") == first.path / "samples.png"


def test_config_is_written_once(folder: RunFolder) -> None:
    folder.write_config({"model": {"latent_dim": 8}, "list": [1, 2]})
    folder.write_config({"model": {"latent_dim": 16}})
    assert folder.read_config() == {"model": {"latent_dim": 8}, "list": [1, 2]}
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder(folder.path / "attempts").read_config()


@pytest.mark.parametrize("content", [b"", b"- a\n", b"a: [\n", b"\xff\xfe\x00"])
def test_a_damaged_config_is_named(folder: RunFolder, content: bytes) -> None:
    folder.path.mkdir(parents=True)
    (folder.path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.yaml: holds no config"):
        folder.read_config()


def test_status_is_replaced_at_once(folder: RunFolder) -> None:
    """A reader beside a busy writer sees one whole status or another, never a part or nothing."""
    made = folder.new_attempt()
    made.write_status("running", 0, 8)
    done = threading.Event()

    def write() -> None:
        for step in range(400):
            made.write_status("running", step, 8, message="x" * (step * 37 % 5000))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0
    while not done.is_set():
        value = read_json(made.path / "status.json")
        assert isinstance(value, dict) and {"state", "step", "heartbeat", "pid"} <= set(value)
        seen += 1
    writer.join()
    assert seen > 10 and [p.name for p in made.path.iterdir()] == ["status.json"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"state": "done"}', '{"state": "odd"}', '"text"', b"\xff\xfe", "{}"]
)
def test_a_status_that_is_none_is_named_and_left_out(folder: RunFolder, content: str | bytes) -> None:
    attempt(folder, "failed", 3, failure="lost")
    bad = folder.new_attempt().path / "status.json"
    bad.write_bytes(content if isinstance(content, bytes) else content.encode())
    folder.new_attempt()
    record = read_run(folder)
    assert (record.state, record.step, record.attempts) == ("failed", 3, 3)
    assert record.unreadable == ("attempts/2/status.json",)


def test_a_status_of_wrong_types_is_named_and_left_out(folder: RunFolder) -> None:
    made = attempt(folder, "done", 8)
    whole = json.loads((made.path / "status.json").read_text())
    for key in ("state", "step", "steps", "heartbeat", "seconds", "host", "pid"):
        for value in ({**whole, key: None}, {k: v for k, v in whole.items() if k != key}):
            (made.path / "status.json").write_text(json.dumps(value))
            assert read_run(folder).state is None and read_run(folder).unreadable == ("attempts/1/status.json",)


def test_many_runs_are_read_as_each(tmp_path: Path) -> None:
    signatures = ["abcdef012345", "abcdef012346", "0123456789ab"]
    attempt(RunFolder.of(tmp_path, signatures[0]), "done", 8)
    RunFolder.of(tmp_path, signatures[1]).new_attempt()
    found = read_runs(tmp_path, signatures)
    assert list(found) == signatures
    assert all(found[s] == read_run(RunFolder.of(tmp_path, s)) for s in signatures)


def test_results_are_of_the_highest_attempt_that_has_each(folder: RunFolder) -> None:
    assert read_results(folder) == RunResults({}, {}, ()) and results_changed(folder) == ()
    first, second = folder.new_attempt(), folder.new_attempt()
    first.write_evaluation("p", 4, {"value": 1})
    first.write_evaluation("p", 8, {"value": 2})
    second.write_evaluation("p", 8, {"value": 3})
    write_json(first.path / "env.json", {"device": "old"})
    folder.new_attempt()
    found = read_results(folder)
    assert found.environment == {"device": "old"} and found.unreadable == ()
    assert found.evaluations == {
        "attempts/1/evaluations/p-00000004.json": {"value": 1},
        "attempts/2/evaluations/p-00000008.json": {"value": 3},
    }
    folder.write_evaluation("p", 8, {"value": 4})
    folder.write_evaluation("q", 8, {"value": 5})
    later = {name: value for name, value in read_results(folder).evaluations.items() if name.startswith("evaluations/")}
    assert later == {"evaluations/p-00000008.json": {"value": 4}, "evaluations/q-00000008.json": {"value": 5}}
    (second.path / "env.json").write_text("{")
    (second.path / "evaluations" / "p-00000012.json").write_text("[1]")
    found = read_results(folder)
    assert found.environment == {} and len(found.evaluations) == 3
    assert found.unreadable == ("attempts/2/env.json", "attempts/2/evaluations/p-00000012.json")


def test_what_results_are_read_from_is_seen_to_change(folder: RunFolder) -> None:
    made = attempt(folder, "running", 4)
    seen = [results_changed(folder)]

    def changed() -> bool:
        # Not in one tick of the file system's clock.
        time.sleep(0.02)
        seen.append(results_changed(folder))
        return seen[-1] != seen[-2]

    assert not changed()
    write_json(made.path / "env.json", {})
    assert changed()
    made.write_evaluation("p", 4, {"value": 1})
    assert changed()
    made.write_evaluation("p", 4, {"value": 2})
    assert changed()
    folder.new_attempt()
    assert changed() and not changed()
    folder.write_evaluation("q", 4, {"value": 3})
    assert changed() and not changed()
