"""Runs of training programs of one's own: the run folder that they write, and what each mistake becomes."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

import gsq.runs.program as program
from gsq import fingerprint
from gsq.config.overrides import Overrides, differences, from_dict, to_dict
from gsq.config.program import ProgramConfig
from gsq.config.run import check_processes
from gsq.errors import Missing, UserError
from gsq.files import read_json
from gsq.records.folder import RunFolder
from gsq.records.read import read_metrics, read_results, read_run
from gsq.runs.identity import declared_data, identity, program_identity
from gsq.runs.program import execute_program
from gsq.runs.program_checks import check_program
from gsq.runs.stop import Stopped, StopRequest
from gsq.templates.write import write_part


def config(name: str = "train", **keys: Any) -> ProgramConfig:
    return ProgramConfig.of(f"own_programs:{name}", {"steps": 6, "scale": 2, **keys})


def run(folder: Path, name: str = "train", stop: StopRequest | None = None, **options: Any) -> RunFolder:
    made = config(name, **options.pop("keys", {}))
    return execute_program(made, folder, identity(made), stop=stop, announce=options.pop("announce", print), **options)


def metrics(folder: RunFolder) -> dict[int, dict[str, float]]:
    return {e["step"]: e["metrics"] for e in read_results(folder).evaluations.values()}


def test_a_run_folder_holds_what_the_program_did(tmp_path: Path) -> None:
    folder = run(tmp_path)
    record = read_run(folder)
    assert (record.state, record.step, record.steps, record.attempts) == ("done", 6, 6, 1)
    assert metrics(folder) == {4: {"total": 20.0}, 6: {"total": 42.0, "steps_made": 6}}
    assert read_metrics(folder)[2] == {"step": 3, "total": 12.0, "half": 1.5}
    attempt = folder.path / "attempts/1"
    assert (attempt / "notes.txt").read_text() == "done"
    assert not list(attempt.glob("checkpoint-*"))
    assert json.loads(read_json(attempt / "env.json")["parts"])["program"].startswith("own_programs:train@")
    assert from_dict(folder.read_config()) == config()
    # A finished run is not run again.
    run(tmp_path)
    assert read_run(folder).attempts == 1


@pytest.mark.parametrize("last", [1, 3, 5])
def test_a_stopped_run_resumes_with_the_same_result(tmp_path: Path, last: int) -> None:
    whole = run(tmp_path / "whole")
    stop = StopRequest()

    def ask(step: int) -> None:
        if step == last:
            stop.reason = "preempted"

    with pytest.raises(Stopped):
        run(tmp_path / "stopped", stop=stop, on_step=ask)
    folder = RunFolder.of(tmp_path / "stopped", whole.signature)
    record = read_run(folder)
    assert (record.state, record.failure, record.step) == ("failed", "preempted", last)
    run(tmp_path / "stopped")
    assert read_run(folder).attempts == 2
    assert metrics(folder) == metrics(whole)
    assert read_metrics(folder) == read_metrics(whole)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    stop = StopRequest()

    def ask(step: int) -> None:
        stop.reason = "preempted" if step == 5 else None

    with pytest.raises(Stopped):
        run(tmp_path, stop=stop, on_step=ask)
    (newest,) = tmp_path.glob("*/*/attempts/1/checkpoint-00000005.pt")
    newest.write_bytes(newest.read_bytes()[:-7])
    folder = run(tmp_path)
    assert metrics(folder)[6] == {"total": 42.0, "steps_made": 6}


def test_a_program_that_does_not_listen_is_stopped_when_it_logs(tmp_path: Path) -> None:
    stop = StopRequest()
    stop.reason = "cancelled"
    with pytest.raises(Stopped):
        run(tmp_path, "deaf", stop=stop)
    (status,) = tmp_path.glob("*/*/attempts/1/status.json")
    assert (read_json(status)["failure"], read_json(status)["step"]) == ("cancelled", 0)


def test_a_program_that_never_ends_is_ended_when_it_is_asked_to_stop(tmp_path: Path) -> None:
    script = f"""
        import sys, threading, time
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import gsq.runs.program as program
        from gsq.config.program import ProgramConfig
        from gsq.runs.stop import StopRequest
        program.END_SECONDS = 0.5
        stop, started = StopRequest(), Path({str(tmp_path / "started")!r})
        def ask():
            while not started.exists():
                time.sleep(0.05)
            stop.reason = "cancelled"
        threading.Thread(target=ask, daemon=True).start()
        made = ProgramConfig.of("own_programs:hangs", {{"started": str(started)}})
        program.execute_program(made, Path({str(tmp_path)!r}), "0123456789ab", stop=stop)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=60, check=False)
    assert done.returncode == program.STOPPED_CODE
    record = read_run(RunFolder.of(tmp_path, "0123456789ab"))
    assert (record.state, record.failure) == ("failed", "cancelled")
    assert record.message == f"{program.DEAF} (after step 0)"


def test_a_program_gives_signs_of_life_without_logging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "BEAT_SECONDS", 0.02)
    attempt = RunFolder(tmp_path / "run").new_attempt()
    mine = program.Run(attempt, config(), StopRequest(), [])
    with mine.alive():
        time.sleep(0.3)
    mine.status("done")
    assert read_json(attempt.path / "status.json")["state"] == "done"
    mine.status()
    assert read_json(attempt.path / "status.json")["state"] == "done"


@pytest.mark.parametrize(
    ("name", "failure", "words"),
    [
        ("nothing", "error", ["own_programs:nothing", "None", "dict"]),
        ("empty", "error", ["own_programs:empty", "run.evaluate"]),
        ("text_metric", "error", ["loss", "'low'", "str", "numbers"]),
        ("text_log", "error", ["run.log", "phase", "'warm-up'"]),
        ("named_as_a_key", "error", ["'scale'", "another name"]),
        ("backwards", "error", ["step 2", "step 3"]),
        ("endless", "error", ["step 7", "steps, which is 6"]),
        ("odd_state", "error", ["run.save", "tensors"]),
        ("diverges", "diverged", ["loss=nan", "step 1"]),
        ("memory", "out_of_memory", []),
    ],
)
def test_each_mistake_is_one_error_of_its_class(tmp_path: Path, name: str, failure: str, words: list[str]) -> None:
    with pytest.raises(UserError if failure == "error" else Exception) as error:
        run(tmp_path, name)
    assert all(word in str(error.value) for word in words), error.value
    (status,) = tmp_path.glob("*/*/attempts/1/status.json")
    assert (read_json(status)["state"], read_json(status)["failure"]) == ("failed", failure)
    assert all(word in read_json(status)["message"] for word in words)
    assert not list(tmp_path.glob("*/*/attempts/1/checkpoint-*"))


def test_a_program_that_neither_logs_nor_saves_is_named(tmp_path: Path) -> None:
    said: list[str] = []
    folder = run(tmp_path, "silent", announce=said.append)
    assert metrics(folder) == {6: {"loss": 1.0}}
    assert [call in line for call, line in zip(("run.log", "run.save"), said, strict=True)] == [True, True]
    assert all("own_programs:silent" in line for line in said)


def test_a_config_survives_plans_and_files() -> None:
    made = ProgramConfig.of("own_programs:train", {"layers": [1, 2], "name": "a", "steps": 3}, columns={"tokens": 7})
    assert made.train.steps == 3
    assert from_dict(json.loads(json.dumps(to_dict(made)))) == made
    assert hash(made) == hash(from_dict(to_dict(made)))
    base = ProgramConfig.of("own_programs:train", {})
    assert Overrides(base).restore(json.loads(json.dumps(differences(made, base)))) == made


def test_a_program_runs_in_one_process() -> None:
    check_processes(config(), 1)
    with pytest.raises(UserError, match=r"own_programs:train.*2.*processes: 1"):
        check_processes(config(), 2)


def test_identity_hashes_keys_source_and_declared_data(tmp_path: Path) -> None:
    assert identity(config(scale=2)) == identity(config(scale=2.0)) != identity(config(scale=3))
    assert identity(config()) != identity(config("deaf"))
    assert program_identity(config(), "") != program_identity(config(), "0123")
    text = tmp_path / "text.txt"
    text.write_text("abc")
    template = ProgramConfig.of("gsq.templates.program:train", {"text": str(text)})
    assert declared_data(template) == fingerprint(text)
    before = identity(template)
    text.write_text("abcd")
    assert identity(template) != before
    with pytest.raises(UserError, match="'text'"):
        declared_data(ProgramConfig.of("gsq.templates.program:train", {}))


def test_fingerprints_tell_names_and_contents_apart(tmp_path: Path) -> None:
    for folder, name, content in (("a", "x", "1"), ("b", "y", "1"), ("c", "x", "2"), ("d", "x", "1")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(content)
    a, b, c, d = (fingerprint(tmp_path / folder) for folder in "abcd")
    assert len({a, b, c}) == 3
    assert a == d
    with pytest.raises(Missing, match="nowhere"):
        fingerprint(tmp_path / "nowhere")


def test_check_tries_a_program_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(check.passed for check in check_program("own_programs:train", {"steps": 6, "scale": 1}))
    *_, last = check_program("own_programs:saves_first", {})
    assert not last.passed
    assert "run.evaluate before run.save" in last.message
    found = check_program("own_programs:nothing", {})
    assert [check.passed for check in found] == [True, False]
    monkeypatch.chdir(tmp_path)
    files, part, key = write_part("program", tmp_path / "my_train.py")
    assert [file.name for file in files] == ["my_train.py", "test_my_train.py"]
    assert (part, key) == ("my_train:train", 'program: "my_train:train"')
