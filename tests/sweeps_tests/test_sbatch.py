"""What sbatch is given, in which environment, and what becomes of its refusals."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from preamble import PlanOf

from gsq.errors import UserError
from gsq.records.folder import runs_root
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running.sbatch import Refused, for_sbatch, job_script, said
from gsq.sweeps.running.slurm_arrays import NotTaken
from gsq.sweeps.running.submit import submit
from gsq.sweeps.spec.cluster import Cluster
from gsq.sweeps.state import journal

SLURM = Cluster(kind="slurm", name="c")


def script_of(cluster: Cluster, folder: str = "/runs/sweeps/s", **more: Any) -> str:
    entry = journal.Entry(
        path=Path(folder) / "submissions" / "000001",
        name="gsq-s-1-0a",
        cluster="c",
        source=f"{folder}/source/01",
        minutes=90,
        memory_gb=3,
        time=0.0,
        host="head",
        pid=1,
        signatures=("a", "b"),
    )
    return job_script(entry, cluster, 2, "/usr/bin/python3", **more)


def options(script: str) -> dict[str, str | None]:
    found = (re.fullmatch(r"#SBATCH --([a-z0-9-]+)(?:=(.*))?", line) for line in script.splitlines())
    return {match[1]: match[2] for match in found if match}


@pytest.mark.parametrize(
    ("cluster", "asked"),
    [
        (Cluster(kind="slurm", cpus=4), {"mem": "3GB"}),
        (Cluster(kind="slurm", cpus=4, memory_per="cpu"), {"mem-per-cpu": "768MB"}),
        (Cluster(kind="slurm", cpus=7, memory_per="cpu"), {"mem-per-cpu": "439MB"}),
        (Cluster(kind="slurm", gpus=2, memory_per="gpu"), {"mem-per-gpu": "1536MB"}),
        (Cluster(kind="slurm", memory_per="none"), {}),
        (Cluster(kind="slurm", sbatch={"mem-per-cpu": "4G"}), {"mem-per-cpu": "4G"}),
        (Cluster(kind="slurm", sbatch={"mem-per-gpu": "4G"}), {"mem-per-gpu": "4G"}),
    ],
)
def test_memory_is_asked_for_once(cluster: Cluster, asked: dict[str, str]) -> None:
    assert {k: v for k, v in options(script_of(cluster)).items() if k.startswith("mem")} == asked


def test_options_reach_sbatch_as_they_are_given() -> None:
    given = {"exclusive": True, "requeue": False, "wckey": "mine", "comment": "it's 3.10", "mail-user": ""}
    found = options(script_of(Cluster(kind="slurm", signal_seconds=300, sbatch=given)))
    assert "requeue" not in found and found["exclusive"] is None
    assert (found["wckey"], found["mail-user"], found["signal"]) == ("mine", "''", "USR2@300")
    assert found["comment"] == """'it'"'"'s 3.10'"""
    assert "wckey" not in options(script_of(SLURM))
    # Not before a job of 90 minutes could do anything.
    assert options(script_of(Cluster(kind="slurm", signal_seconds=7200)))["signal"] == "USR2@2700"


def test_what_the_script_exports_reaches_python_whatever_sbatch_was_told() -> None:
    for cluster in (SLURM, Cluster(kind="slurm", sbatch={"export": "NONE"})):
        (srun,) = (line for line in script_of(cluster).splitlines() if line.startswith("srun "))
        assert "--export=ALL" in srun and "--kill-on-bad-exit" not in srun
    shared = script_of(Cluster(kind="slurm", cpus=2, processes=2))
    assert "--kill-on-bad-exit=1" in shared


def test_a_module_of_another_python_is_undone_and_the_users_own_is_kept() -> None:
    lines = script_of(Cluster(kind="slurm", setup=("module load python",))).splitlines()
    (undone,) = (i for i, line in enumerate(lines) if re.match("unset .*PYTHONHOME", line))
    assert lines.index("module load python") < undone
    kept = script_of(SLURM, variables={"PYTHONHOME": "/my own", "GSQ_CACHE": "/cache"})
    assert "export PYTHONHOME='/my own'" in kept and "export GSQ_CACHE=/cache" in kept
    assert not re.search("unset .*PYTHONHOME", kept)
    explicit = script_of(Cluster(kind="slurm", environment={"PYTHONHOME": "/x"})).splitlines()
    assert explicit.index('export PYTHONHOME="/x"') > explicit.index(lines[undone])


def test_a_percent_sign_in_the_path_is_none_of_slurms() -> None:
    script = script_of(SLURM, folder="/runs/100%N it's $HOME/s")
    assert options(script)["output"].count("100%%N") == 1  # type: ignore[union-attr]
    (srun,) = (line for line in script.splitlines() if line.startswith("srun "))
    assert srun.count("100%%N") == 1 and srun.count("100%N") == 1
    assert """export PYTHONPATH='/runs/100%N it'"'"'s $HOME/s/source/01'""" in script


OUTSIDE = {
    **{"SBATCH_ACCOUNT": "proj", "SLURM_CLUSTERS": "big", "SLURM_CONF": "/c", "SBATCH_RESERVATION": "mine"},
    **{"SBATCH_TIMELIMIT": "5", "SBATCH_MEM_PER_CPU": "1", "SBATCH_ARRAY_INX": "1-9", "SBATCH_WAIT": "1"},
    **{"WORLD_SIZE": "2", "RANK": "1", "HOME": "/root", "CUDA_VISIBLE_DEVICES": "0", "SLURM_CPU_BIND": "none"},
}


def test_outside_a_job_the_users_own_variables_reach_sbatch() -> None:
    """But for those that sbatch would prefer to what the script sets."""
    found = for_sbatch(OUTSIDE, script_of(SLURM))
    assert OUTSIDE.keys() - found.keys() == {
        *("SBATCH_TIMELIMIT", "SBATCH_MEM_PER_CPU", "SBATCH_ARRAY_INX", "SBATCH_WAIT", "WORLD_SIZE", "RANK")
    }
    assert "SBATCH_ACCOUNT" not in for_sbatch(OUTSIDE, script_of(Cluster(kind="slurm", account="other")))
    assert "SBATCH_MEM_PER_CPU" in for_sbatch(OUTSIDE, script_of(Cluster(kind="slurm", memory_per="none")))


def test_inside_a_job_its_own_variables_are_taken_away() -> None:
    job = {
        **{"SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "1", "SLURMD_NODENAME": "n1", "SLURM_EXPORT_ENV": "NONE"},
        **{"SBATCH_MEM_BIND": "x", "SUBMITIT_EXECUTOR": "slurm", "GSQ_QUEUE_PID": "3", "PMI_RANK": "0"},
    }
    found = for_sbatch({**OUTSIDE, **job}, script_of(SLURM))
    assert found == {"SBATCH_ACCOUNT": "proj", "SLURM_CLUSTERS": "big", "SLURM_CONF": "/c", "HOME": "/root"}


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("sbatch: error: Welcome.\nsbatch: error: No --comment\n", "Welcome.; No --comment"),
        ("sbatch: error: x\nsbatch: error: x\n\n", "x"),
        ("sbatch: option '--r' doesn't allow\nTry more", "option '--r' doesn't allow; Try more"),
        ("\n", "no reason given"),
    ],
)
def test_all_words_are_passed_on(output: str, words: str) -> None:
    assert said(output) == words


@pytest.mark.parametrize(
    ("words", "limit"),
    [
        ("QOSMaxSubmitJobPerUserLimit", True),
        ("AssocMaxSubmitJobLimit; Batch job submission failed", True),
        ("Job violates accounting/QOS policy (job submit limit, user size and/or time limits)", True),
        ("Invalid job array specification", True),
        ("Slurm temporarily unable to accept job, sleeping and retrying", True),
        ("Requested time limit is invalid (missing or exceeds some limit)", False),
        ("Invalid account or account/partition combination specified", False),
        ("no --comment: name your project there", False),
    ],
)
def test_a_limit_on_jobs_is_told_from_other_refusals(words: str, limit: bool) -> None:
    assert Refused(words).limit == limit


class Sbatch:
    """Takes what a condition in shell lets through; $script, $tasks and $used (tasks taken so far) are set in it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "fake"
        self.folder.mkdir()
        for name in ("squeue", "sacct", "scontrol"):
            self._write(name, "exit 0")
        monkeypatch.setenv("PATH", f"{self.folder}:/usr/bin:/bin")

    def _write(self, name: str, body: str) -> None:
        (self.folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.folder / name).chmod(0o755)

    def refuse(self, condition: str, *words: str) -> None:
        said = "; ".join(f"echo 'sbatch: error: {line}' >&2" for line in words)
        self._write(
            "sbatch",
            f"""script="$1"; echo . >>{self.folder}/calls
            tasks=$(( $(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$script") + 1 ))
            used=$(cat {self.folder}/used 2>/dev/null || echo 0)
            if {condition}; then {said}; exit 1; fi
            echo $((used + tasks)) >{self.folder}/used; echo "Submitted batch job $((used + tasks))" """,
        )

    @property
    def calls(self) -> int:
        return len((self.folder / "calls").read_text())  # a dot and a line end each


@pytest.fixture
def sbatch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Sbatch:
    return Sbatch(folder, monkeypatch)


def test_a_class_that_is_refused_does_not_keep_back_the_others(sbatch: Sbatch, plan_of: PlanOf) -> None:
    plan = plan_of(cases=[*({"seed": seed} for seed in range(3)), {"seed": 4, "steps": 100000}])
    sbatch.refuse('grep -q "^#SBATCH --time=15$" "$script"', "Welcome to big.", "Requested time limit is invalid")
    with pytest.raises(NotTaken) as caught:
        submit(plan, SLURM)
    ((_, taken),) = caught.value.arrays.items()
    assert taken == [plan.cells[3].signature] and not caught.value.limit
    message = str(caught.value)
    for word in ("'c'", "refused 3 of 4 cells", "took 1", "15 minutes", "Welcome to big.; Requested time limit"):
        assert word in message
    revoked = [entry.revoked for entry in journal.entries(SweepFolder(runs_root(), plan.name))]
    assert sorted(revoked) == [False, True], "it is not tried in parts, which would be refused alike"


@pytest.mark.parametrize("limit", [1, 3, 5, 12])
def test_an_array_above_the_limit_is_handed_over_in_parts(sbatch: Sbatch, plan_of: PlanOf, limit: int) -> None:
    plan = plan_of(axes={"seed": list(range(12))})
    sbatch.refuse(f"[ $tasks -gt {limit} ]", "QOSMaxSubmitJobPerUserLimit")
    arrays = submit(plan, SLURM).arrays
    handed = [signature for members in arrays.values() for signature in members]
    assert sorted(handed) == sorted(cell.signature for cell in plan.cells)
    assert all(len(members) <= limit for members in arrays.values())


def test_a_limit_on_all_jobs_is_filled_and_the_rest_is_promised(sbatch: Sbatch, plan_of: PlanOf) -> None:
    plan = plan_of(axes={"seed": list(range(12))})
    sbatch.refuse("[ $((used + tasks)) -gt 7 ]", "AssocMaxSubmitJobLimit", "Batch job submission failed")
    with pytest.raises(NotTaken) as caught:
        submit(plan, SLURM)
    assert sum(map(len, caught.value.arrays.values())) == 7 and caught.value.limit
    assert "refused 5 of 12 cells, and took 7" in str(caught.value) and "AssocMaxSubmitJobLimit" in str(caught.value)
    assert sbatch.calls < 20


def test_cells_that_share_a_job_stay_together_below_a_limit(sbatch: Sbatch, plan_of: PlanOf) -> None:
    plan = plan_of(axes={"seed": list(range(8))})
    sbatch.refuse("[ $tasks -gt 2 ]", "QOSMaxSubmitJobPerUserLimit")
    arrays = submit(plan, Cluster(kind="slurm", name="c", cells_per_job=2, gpus=2)).arrays
    assert sorted(map(len, arrays.values())) == [4, 4]


@pytest.mark.parametrize("cluster", [SLURM, Cluster(workers=1)])
def test_a_runs_folder_in_which_no_worker_could_start_is_refused_first(
    sbatch: Sbatch, plan_of: PlanOf, folder: Path, cluster: Cluster
) -> None:
    for name, words in (
        ("12:30", "PYTHONPATH"),
        ("a\nb", "one line"),
        ("a\\b", "backslash"),
        ("5%j", "'%j'"),
        ("5%A", "'%A'"),
    ):
        with pytest.raises(UserError) as caught:
            submit(plan_of(), cluster, runs=folder / name)
        assert "$GSQ_RUNS" in str(caught.value) and words in str(caught.value)
        assert not (folder / name).exists()


def test_the_cluster_that_took_the_job_is_asked_about_it(
    sbatch: Sbatch, plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of()
    sbatch._write("sbatch", 'echo "Submitted batch job 5 on cluster big"')
    submit(plan, Cluster(kind="slurm", name="c", sbatch={"clusters": "small,big"}))
    (entry,) = journal.entries(SweepFolder(runs_root(), plan.name))
    assert (entry.job, entry.clusters) == ("5", "big")
    asked: list[tuple[str, ...]] = []
    from gsq.sweeps.state.commands import Answer
    from gsq.sweeps.state.slurm import slurm_jobs

    def run(*words: str) -> Answer:
        asked.append(words)
        return Answer(words[0], code=0)

    monkeypatch.setattr("gsq.sweeps.state.slurm.run", run)
    slurm_jobs(SweepFolder(runs_root(), plan.name))
    assert {words[0] for words in asked} == {"squeue", "sacct"} and all(w[1:3] == ("-M", "big") for w in asked)
