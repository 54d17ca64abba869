"""The local queue with real worker processes that really train, and that are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from preamble import wait_for

from gsq.records.attempt import TIMINGS, process_start
from gsq.records.folder import RunFolder
from gsq.records.read import RunRecord, read_metrics, read_run
from gsq.sweeps.planning.cells import Plan, make_plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running.submit import submit
from gsq.sweeps.schema.columns import SCIENCE_COLUMNS, read_table
from gsq.sweeps.spec.cluster import Cluster
from gsq.sweeps.spec.sweep import load_spec
from gsq.sweeps.state.local import Worker, local_jobs, with_local_jobs, workers
from gsq.sweeps.state.reconcile import Job
from gsq.sweeps.state.status import status
from gsq.sweeps.tables.gather import gather

STEPS = 30
TINY = {
    "model.channels": 8,
    "model.norm_groups": 4,
    "steps": STEPS,
    "batch_size": 2,
    "loss.discriminator_start": 0,
    "evaluation.num_images": 8,
    "data.max_crop": 2.0,
    "execution.checkpoint_every": 2,
    "execution.log_every": 1,
}


def document(name: str, **parts: Any) -> dict[str, Any]:
    return {"name": name, "base": "cpu-tiny", "set": TINY, **parts}


def plan_of(name: str, **parts: Any) -> Plan:
    return make_plan(load_spec(document(name, **parts)))


def science(runs: Path, name: str, signature: str, where: Path) -> pd.DataFrame:
    frame = read_table(gather(SweepFolder(runs, name), where / f"{name}.parquet"))
    return frame.loc[frame["signature"] == signature, list(SCIENCE_COLUMNS)].reset_index(drop=True)


def curve(run: RunFolder) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_metrics(run)]


def steps_of(run: RunFolder, attempt: int) -> list[int]:
    lines = (run.path / "attempts" / str(attempt) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def has_checkpoint(run: RunFolder, attempt: int = 1) -> bool:
    return any((run.path / "attempts" / str(attempt)).glob("checkpoint-*.json"))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    """A sweep of two cells that nobody interrupted: its runs folder and plan."""
    runs = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        plan = plan_of("pair", axes={"groups": [1, 4]})
        submission = submit(plan, cluster="local", runs=runs)
    assert [action.kind for action in submission.actions] == ["finished", "finished"]
    return runs, plan


pytestmark = pytest.mark.usefixtures("cpu")


@pytest.fixture
def driver(folder: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts ``gsq VERB sweep.yaml``; whatever still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        program = Path(sys.executable).with_name("gsq")
        process = subprocess.Popen(
            [str(program), *words],
            env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_sweep_runs_and_every_cell_has_a_result(undisturbed: tuple[Path, Plan], folder: Path) -> None:
    runs, plan = undisturbed
    sweep = SweepFolder(runs, plan.name)
    assert status(sweep).counts["done"] == 2
    frame = read_table(gather(sweep, folder / "t.parquet"))
    assert list(frame["signature"]) == [cell.signature for cell in plan.cells]
    assert set(frame["state"]) == {"done"} and set(frame["step"]) == {STEPS} and set(frame["attempts"]) == {1}
    assert set(frame["images_seen"]) == {2 * STEPS} and set(frame["num_images"]) == {8}
    for name in ("rfid", "psnr_db", "ssim", "usage", "perplexity", "effective_bits", "device_seconds", "train_flops"):
        assert (frame[name] > 0).all(), name
    assert (frame["effective_bits"] <= frame["bits_per_token"]).all()
    for cell in plan.cells:
        run = RunFolder.of(runs, cell.signature)
        assert steps_of(run, 1) == list(range(1, STEPS + 1))
        kept = {p.name for p in (run.path / "attempts" / "1").iterdir()}
        assert {"model.safetensors", "samples.png", "metrics.jsonl", "status.json", "env.json"} <= kept
        assert not [name for name in kept if name.startswith("checkpoint")]


def test_a_second_submission_starts_nothing(undisturbed: tuple[Path, Plan]) -> None:
    runs, plan = undisturbed
    before = sorted((p, p.stat().st_mtime_ns) for p in runs.rglob("attempts/*") if p.is_dir())
    submission = submit(plan, cluster="local", runs=runs)
    assert [action.kind for action in submission.actions] == ["finished", "finished"]
    assert sorted((p, p.stat().st_mtime_ns) for p in runs.rglob("attempts/*") if p.is_dir()) == before


def test_a_cell_that_two_sweeps_share_is_trained_once(undisturbed: tuple[Path, Plan], folder: Path) -> None:
    runs, plan = undisturbed
    other = plan_of("other", cases=[{"quantizer.groups": 4, "model.latent_dim": 16, "evaluation.batch_size": 4}])
    assert other.cells[0].signature == plan.cells[1].signature
    submission = submit(other, cluster="local", runs=runs)
    assert [action.kind for action in submission.actions] == ["finished"]
    run = RunFolder.of(runs, other.cells[0].signature)
    assert read_run(run).attempts == 1
    mine, first = (science(runs, name, run.signature, folder) for name in ("other", "pair"))
    pd.testing.assert_frame_equal(mine, first, check_exact=True)


def test_a_killed_worker_is_restarted_and_nothing_is_lost(undisturbed: tuple[Path, Plan], folder: Path) -> None:
    runs = folder / "runs"
    plan = plan_of("killed", axes={"groups": [1]})
    (cell,) = plan.cells
    run = RunFolder.of(runs, cell.signature)

    def kill() -> None:
        wait_for(lambda: has_checkpoint(run) and read_run(run).step >= 1)
        os.kill(read_run(run).pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    submission = submit(plan, Cluster(workers=1), runs=runs)
    killer.join()
    assert [action.kind for action in submission.actions] == ["finished"]
    record = read_run(run)
    assert (record.state, record.attempts) == ("done", 2)
    first, second = steps_of(run, 1), steps_of(run, 2)
    # It went on from the newest checkpoint, at most one short of what had been done.
    assert second[-1] == STEPS and 3 <= second[0] <= len(first) + 1 < STEPS
    assert len(first) - second[0] < TINY["execution.checkpoint_every"]
    reference, name = undisturbed[0], undisturbed[1].name
    assert curve(run) == curve(RunFolder.of(reference, cell.signature))
    found, expected = science(runs, "killed", cell.signature, folder), science(reference, name, cell.signature, folder)
    assert len(found) == 1
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


def test_a_killed_driver_and_an_interrupted_one(
    undisturbed: tuple[Path, Plan], folder: Path, driver: Callable[..., subprocess.Popen[str]]
) -> None:
    """The driver is killed: its worker goes on. The next driver adopts it, starts no other, and when it is told Ctrl-C
    stops it and says how to go on. The one after has its terminal closed. The last one finishes. No step was trained
    twice, and the numbers are those of an undisturbed run."""
    source = "sweeps/of-a-name-too-long-for-the-line.yaml"
    Path("sweeps").mkdir()
    Path(source).write_text(yaml.safe_dump(document("driven", axes={"groups": [4]})))
    (cell,) = make_plan(load_spec(source)).cells
    run = RunFolder.of(folder / "runs", cell.signature)

    def running() -> dict[str, Worker]:
        return workers(folder / "runs")

    def tell(driver: subprocess.Popen[str], number: int, worker: Worker) -> None:
        # The worker would be done before the driver has told it, where other work shares the cores.
        os.kill(worker.pid, signal.SIGSTOP)
        driver.send_signal(number)
        wait_for(lambda: list((folder / "runs/sweeps/driven/cancelled").glob(f"*.{worker.pid}")))
        os.kill(worker.pid, signal.SIGCONT)

    first = driver("submit", source)
    wait_for(running)
    # Before the worker has written anything.
    first.kill()
    first.wait()
    (worker,) = running().values()
    # It has imported torch before it was forked, and would be done before the next driver is at work.
    os.kill(worker.pid, signal.SIGSTOP)
    lock = folder / "runs/sweeps/driven/queue.lock"
    before = lock.stat().st_mtime_ns
    second = driver("run", source)
    wait_for(lambda: lock.stat().st_mtime_ns > before)
    os.kill(worker.pid, signal.SIGCONT)
    wait_for(lambda: has_checkpoint(run) and read_run(run).step >= 1)
    assert read_run(run).pid == worker.pid and running()[cell.signature].driver == 0
    tell(second, signal.SIGINT, worker)
    told, _ = second.communicate(timeout=60)
    assert second.returncode == 130, told
    assert "Traceback" not in told and "stopped" in told and f"gsq run {source}" in told.replace("\n", "")
    assert not alive(worker.pid)
    record = read_run(run)
    assert (record.state, record.failure, record.attempts) == ("failed", "cancelled", 1)
    assert 2 <= record.step < STEPS and steps_of(run, 1) == list(range(1, record.step + 1))

    closed = driver("submit", source)
    wait_for(lambda: len(steps_of(run, 2)) >= 2 if (run.path / "attempts/2/metrics.jsonl").exists() else False)
    worker = running()[cell.signature]
    assert worker.driver == closed.pid
    tell(closed, signal.SIGHUP, worker)
    assert closed.wait(30) == 130
    assert not alive(worker.pid)
    record = read_run(run)
    assert (record.state, record.failure, record.attempts) == ("failed", "cancelled", 2)

    third = driver("run", source)
    output, _ = third.communicate(timeout=150)
    assert third.returncode == 0, output
    assert read_run(run).state == "done" and read_run(run).attempts == 3
    parts = [steps_of(run, n) for n in (1, 2, 3)]
    assert [step for part in parts for step in part] == list(range(1, STEPS + 1))
    reference, name = undisturbed[0], undisturbed[1].name
    assert curve(run) == curve(RunFolder.of(reference, cell.signature))
    found = science(folder / "runs", "driven", cell.signature, folder)
    pd.testing.assert_frame_equal(found, science(reference, name, cell.signature, folder), check_exact=True)
    # The command is on one line, to be copied.
    assert [line for line in told.splitlines() if line.endswith(f"gsq run {source}")], told


def test_two_drivers_at_once_start_each_cell_once(folder: Path, driver: Callable[..., subprocess.Popen[str]]) -> None:
    Path("sweep.yaml").write_text(yaml.safe_dump(document("shared", axes={"groups": [1, 2, 4]})))
    Path("two.yaml").write_text("workers: 2\n")
    both = [driver("submit", "sweep.yaml", "--cluster", "two.yaml") for _ in range(2)]
    for process in both:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
    found = status("shared")
    assert [(cell.state, cell.attempts) for cell in found.cells] == [("done", 1)] * 3


def test_a_cell_that_fails_is_reported_and_stops_no_other(
    undisturbed: tuple[Path, Plan], folder: Path, driver: Callable[..., subprocess.Popen[str]]
) -> None:
    """One cell asks for a GPU that is not there. The other one is done already in this runs folder."""
    cases = [{"groups": 1}, {"groups": 2, "execution.device": "cuda"}]
    Path("sweep.yaml").write_text(yaml.safe_dump(document("half", cases=cases), sort_keys=False))
    plan = make_plan(load_spec("sweep.yaml"))
    good = plan.cells[0].signature
    shutil.copytree(RunFolder.of(undisturbed[0], good).path, RunFolder.of(folder / "runs", good).path)
    process = driver("submit", "sweep.yaml", "--cluster", "local")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert "Traceback" not in output
    found = status("half")
    assert (found.counts["done"], found.counts["failed"]) == (1, 1)
    failed = next(cell for cell in found.cells if cell.state == "failed")
    assert failed.failure == "error" and "cuda" in str(failed.message).lower()
    line = next(line for line in output.splitlines() if "failed" in line)
    assert (
        failed.title == "groups=2 execution.device=cuda"
        and "G=2 execution.device=cuda" in line
        and str(failed.message) in line
    )
    # Said again it does not try again, until it is asked to.
    assert submit(plan, "local").actions[1].kind == "leave" and read_run(_run(folder, plan, 1)).attempts == 1


def _run(folder: Path, plan: Plan, index: int) -> RunFolder:
    return RunFolder.of(folder / "runs", plan.cells[index].signature)


def test_images_that_are_gone_after_planning_are_reported(folder: Path) -> None:
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        Path("images", part).mkdir(parents=True)
        for i in range(3):
            image = Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8))
            image.save(Path("images", part, f"{i}.png"))
    plan = plan_of("gone", set={**TINY, "data": {"kind": "image_folder", "path": "images"}}, axes={"groups": [1]})
    shutil.rmtree("images")
    submission = submit(plan, Cluster(workers=1))
    (action,) = submission.actions
    assert (action.kind, action.cell.failure) == ("leave", "error")
    log = submission.folder.log(plan.cells[0].signature)
    assert str(log) in str(action.cell.message)
    text = log.read_text()
    assert "error: data.path" in text and "images is not a folder" in text and "Traceback" not in text


def test_a_worker_that_dies_before_python_is_a_failed_cell_everywhere(folder: Path) -> None:
    plan = plan_of("early", axes={"groups": [1]})
    broken = Cluster(workers=1, environment={"PYTHONHOME": "/nowhere"})
    (action,) = submit(plan, broken).actions
    assert (action.kind, action.cell.failure) == ("leave", "error")
    # The driver is gone, and it is known still.
    (cell,) = status("early").cells
    assert (cell.state, cell.failure, cell.attempts) == ("failed", "error", 1)
    assert "exit code 1" in str(cell.message) and "encodings" in str(cell.message)
    (row,) = read_table(gather("early", folder / "early.parquet")).to_dict("records")
    assert (row["state"], row["failure"], row["message"]) == ("failed", "error", cell.message)
    # Said again it does not try again, until it is asked to; then it goes well where the fault is mended.
    assert submit(plan, broken).actions[0].kind == "leave" and status("early").cells[0].attempts == 1
    assert submit(plan, Cluster(workers=1), retry=True).actions[0].kind == "finished"


def test_a_dead_worker_is_seen_at_once_and_a_live_one_is_left_alone() -> None:
    """Not after the minute that a heartbeat may be old; and a process that took over the number is not the worker."""
    now, host = time.time(), os.uname().nodename
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        time.sleep(0.1)
        live = RunRecord("a", "running", step=1, steps=9, attempts=1, heartbeat=now, host=host, pid=sleeper.pid)
        reused = replace(live, signature="b", heartbeat=now - 30)
        elsewhere = replace(live, signature="c", host="elsewhere", pid=1)
        on_slurm = replace(live, signature="d", node="n1")
        jobs = local_jobs({record.signature: record for record in (live, reused, elsewhere, on_slurm)})
        assert {name: job.state for name, job in jobs.items()} == {"a": "running", "b": "gone"}
    finally:
        sleeper.kill()
    # What the kernel says of a process counts for more than a clock that was set back.
    early = replace(live, heartbeat=now - 9999, pid=os.getpid(), pid_start=process_start(os.getpid()))
    assert local_jobs({"a": early})["a"].state == "running"
    assert local_jobs({"a": replace(early, heartbeat=now, pid_start=f"{early.pid_start}0")})["a"].state == "gone"
    # An attempt here and a job on SLURM: the live one counts.
    both = {"a": early, "b": replace(early, pid_start="gone")}
    merged = with_local_jobs({"a": Job("gone", name="7_0"), "b": Job("running", name="7_1")}, both)
    assert {name: job.state for name, job in merged.items()} == {"a": "running", "b": "running"}
    # A zombie, until it is waited for.
    time.sleep(0.1)
    assert local_jobs({"a": live})["a"].state == "gone"
    sleeper.wait()
    assert local_jobs({"a": live})["a"].state == "gone"
