"""Jobs in a container image: what the script says, and runs of it with an apptainer and an srun of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from gsq.errors import UserError
from gsq.records.folder import RunFolder
from gsq.records.read import read_run
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running.array_job import ArrayJob
from gsq.sweeps.running.sbatch import job_script, pickled
from gsq.sweeps.running.slurm_arrays import dry_run
from gsq.sweeps.running.snapshot import take
from gsq.sweeps.spec.cluster import Cluster, load_cluster
from gsq.sweeps.spec.container import Container
from gsq.sweeps.state import journal
from gsq.sweeps.state.deaths import LINE_LENGTH, last_line

TINY = {
    **{"model.channels": 8, "model.norm_groups": 4, "latent_dim": 4, "codebook_size": 32, "train.batch_size": 2},
    **{"discriminator.channels": 8, "discriminator.norm_groups": 4, "loss.discriminator_start": 0, "steps": 2},
    **{"evaluation.num_images": 8, "evaluation.allow_small": True},
}
# apptainer exec [OPTION...] [--bind X]... IMAGE COMMAND...: notes its words, and runs the command with the Python of
# the "image", a folder with python3 in it. srun does as much for --container-image.
FAKES = {
    "apptainer": """#!/bin/sh
echo "$0 $*" >>"$CALLS"; shift
while :; do case $1 in --bind) shift 2;; --*) shift;; *) break;; esac; done
image=$1; shift
PATH=$image:$PATH exec "$@"
""",
    "srun": """#!/bin/sh
echo "$0 $*" >>"$CALLS"
while :; do case $1 in
--container-image=*) PATH=${1#*=}:$PATH; shift;;
--output|--error) shift 2;;
-*) shift;;
*) break;; esac; done
exec "$@"
""",
}


@pytest.fixture
def image(folder: Path) -> Path:
    """An image in which gsq can run: it has this Python."""
    there = folder / "good.sif"
    there.mkdir()
    (there / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (there / "python3").chmod(0o755)
    return there


def run_job(plan: Plan, cluster: Cluster, folder: Path) -> tuple[int, str, str]:
    """Run the first job of a plan as a node would. Returns exit code, log, and the calls of apptainer and srun."""
    sweep = SweepFolder(folder / "runs", plan.name)
    sweep.write_plan(plan)
    entry = journal.Entry(
        path=journal.path_of(sweep, 1),
        name=f"gsq-{plan.name}-1",
        cluster="c",
        source=str(take(sweep)),
        minutes=15,
        memory_gb=2,
        time=1.0,
        host="head",
        pid=1,
        signatures=tuple(cell.signature for cell in plan.cells),
    )
    job = pickled(ArrayJob(str(entry.path)), 15)
    journal.add(entry, {journal.PICKLE: job})
    entry.decide("7")
    programs = folder / "programs"
    programs.mkdir()
    for name, text in FAKES.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    script = folder / "job.sh"
    script.write_text(job_script(entry, cluster, 1, "/not/in/the/image/python", {"GSQ_CACHE": os.environ["GSQ_CACHE"]}))
    slurm = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}
    more = {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}
    variables = {**os.environ, **slurm, **more, "SLURM_JOB_NODELIST": "n1", "CALLS": str(folder / "calls")}
    variables |= {"PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    log = folder / "log"
    with log.open("w") as output:
        done = subprocess.run(["bash", str(script)], stdout=output, stderr=output, env=variables, timeout=120)
    return done.returncode, log.read_text(), (folder / "calls").read_text()


@pytest.mark.parametrize("runtime", ["apptainer", "pyxis"])
def test_a_job_trains_in_the_image(runtime: str, image: Path, plan_of: Callable[..., Plan], folder: Path) -> None:
    plan = plan_of(set=TINY)
    extra = folder / "extra"
    container = Container(str(image), runtime, (f"{extra}:/inside",))
    code, log, calls = run_job(plan, Cluster(kind="slurm", name="c", container=container), folder)
    assert code == 0, log
    assert read_run(RunFolder.of(folder / "runs", plan.cells[0].signature)).state == "done", log
    runs = str(folder / "runs")
    if runtime == "apptainer":
        (call,) = (line for line in calls.splitlines() if "/apptainer exec " in line)
        assert f"exec --bind {runs} --bind {folder / 'cache'} --bind {extra}:/inside {image} python3" in call
        assert "--nv" not in call and "--container-image" not in calls
    else:
        (call,) = calls.splitlines()
        assert f"--container-image={image}" in call and "--container-env=PYTHONPATH,PYTHONSAFEPATH" in call
        assert f"--container-mounts={runs}:{runs},{folder / 'cache'}:{folder / 'cache'},{extra}:/inside" in call


def test_an_image_that_lacks_gsq_is_named_on_the_last_line(plan_of: Callable[..., Plan], folder: Path) -> None:
    bare = folder / "bare.sif"
    venv.create(folder / "bare", with_pip=False)
    (folder / "bare" / "bin").rename(bare)
    plan = plan_of(set=TINY)
    code, _, _ = run_job(plan, Cluster(kind="slurm", name="c", container=Container(str(bare))), folder)
    line = last_line(folder / "log")
    assert code == 1 and len(line) <= LINE_LENGTH
    assert str(bare) in line and "it lacks torch, submitit" in line and "pip install gsq" in line


def test_the_script_is_shown_and_gpus_are_passed_on(
    plan_of: Callable[..., Plan], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsq.sweeps.running.slurm_arrays.require_slurm", lambda: None)
    monkeypatch.setattr("gsq.sweeps.running.slurm_arrays.largest_array", lambda: 1000)
    (folder / "mine.yaml").write_text("kind: slurm\ngpus: 1\ncontainer: docker://me/gsq:1\n")
    (script,) = dry_run(plan_of(set=TINY), load_cluster("mine.yaml"))
    (line,) = (line for line in script.splitlines() if line.startswith("srun "))
    assert 'apptainer exec --nv --bind "' in line and '"docker://me/gsq:1" python3 -u ' in line
    amd = Cluster(kind="slurm", gpus=1, gpu="mi300x", container=Container("docker://me/gsq:1"))
    assert " --rocm " in dry_run(plan_of(set=TINY), amd)[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("container: nowhere.sif", ("container.image", "nowhere.sif", "docker://")),
        ("container: {runtime: pyxis}", ("container", "image is missing")),
        ("container: {image: docker://a, runtime: docker}", ("container.runtime", "'docker'", "apptainer, pyxis")),
        ("container: {image: docker://a, binds: [data]}", ("container.binds", "'data'", "/data")),
        ("container: {image: docker://a, binds: {a: b}}", ("container.binds", "list of folders")),
        ("container: {image: docker://a, bind: [/data]}", ("container", "'bind' (did you mean 'binds'?)")),
        ("container: [a]", ("container", "mapping of image, runtime")),
        ("tracker: tensorbord", ("tracker.to", "tensorboard")),
        ("tracker: {at: /x}", ("tracker", "to is missing")),
        ("tracker: {to: wandb, project: 3}", ("tracker.project", "3 is not a text")),
    ],
)
def test_a_wrong_section_is_named(text: str, words: tuple[str, ...], folder: Path) -> None:
    (folder / "mine.yaml").write_text(f"kind: slurm\n{text}\n")
    with pytest.raises(UserError) as caught:
        load_cluster("mine.yaml")
    assert all(word in str(caught.value) for word in words), caught.value


def test_this_machine_runs_no_containers(folder: Path) -> None:
    (folder / "mine.yaml").write_text("container: docker://a\n")
    with pytest.raises(UserError, match="kind: slurm"):
        load_cluster("mine.yaml")
