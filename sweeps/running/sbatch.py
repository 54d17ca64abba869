"""The job script for sbatch, its environment, and sbatch's answers."""

from __future__ import annotations

import os
import pickle
import re
import shlex
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from gsq.errors import UserError
from gsq.surroundings import alone
from gsq.sweeps.running.snapshot import environment
from gsq.sweeps.spec.cluster import Cluster
from gsq.sweeps.state import journal
from gsq.sweeps.state.commands import run
from gsq.sweeps.state.local import DRIVER_VARIABLE

# submitit treats any time-out of a short job as the last one, but reconcile decides how often a cell is tried.
MAX_TIMEOUTS = 1000

# Variables of the user (which cluster and account) whose names look like those that a job sets.
KEPT = (
    *("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_BITSTR_LEN", "SLURM_TIME_FORMAT"),
    *("SBATCH_ACCOUNT", "SBATCH_CLUSTERS", "SBATCH_QOS", "SBATCH_WCKEY"),
)
# Variables of a job's own GPUs and processes, which every job sets itself.
OF_A_JOB = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK")
OF_A_JOB_PREFIXES = ("SLURM_", "SLURMD_", "SBATCH_", "SUBMITIT_", "PMI_", "PMIX_")
# Variables of sbatch whose option has another name (man sbatch, input environment variables).
OPTION_OF = {"ARRAY_INX": "array", "MEM_PER_NODE": "mem", "TIMELIMIT": "time", "NO_REQUEUE": "requeue"}
MEMORY = ("mem", "mem-per-cpu", "mem-per-gpu")
# Variables of the user that a job needs even with --export=NONE.
HANDED_ON = ("GSQ_CACHE", "GSQ_WEIGHTS", "PYTHONHOME")
# Variables that modules set for their own Python, and that break or block the one of gsq.
OTHER_PYTHONS = ("PYTHONHOME", "PYTHONPLATLIBDIR", "PYTHONEXECUTABLE", "PYTHONINSPECT", "PYTHONSTARTUP")

# Refusals that a smaller array may avoid. SLURM gives the last two for every limit of an account or QOS.
_LIMIT = re.compile(
    r"Submit(?:Jobs?)?(?:PerUser|PerAccount)?Limit|MaxSubmit|submit(?:ted)? (?:job )?limit|MaxJobCount|array size"
    r"|Invalid job array|Job violates accounting/QOS policy|temporarily unable to accept",
    re.IGNORECASE,
)


class Refused(Exception):
    """sbatch took no job. ``words``: its whole output. ``limit``: whether it may take a smaller array."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.words = words
        self.limit = bool(_LIMIT.search(words))


def for_sbatch(variables: Mapping[str, str], script: str) -> dict[str, str]:
    """Return the environment of sbatch: the user's own, without what the surroundings set.

    Inside a job (SLURM_JOB_ID) it lacks that job's variables, which sbatch would pass on. It always lacks the SBATCH_*
    that would override an option of the script; the others are the user's defaults.
    """
    options = set(re.findall(r"^#SBATCH --([a-z0-9-]+)", script, re.MULTILINE))
    if options.intersection(MEMORY):
        options.update(MEMORY)
    # sbatch would wait until the jobs have ended.
    options.add("wait")

    def stays(name: str) -> bool:
        of_a_job = name in OF_A_JOB or name.startswith(OF_A_JOB_PREFIXES)
        if "SLURM_JOB_ID" in variables and of_a_job and name not in KEPT:
            return False
        kind, _, word = name.partition("_")
        option = OPTION_OF.get(word, word.lower().replace("_", "-"))
        return name != DRIVER_VARIABLE and not (kind == "SBATCH" and option in options)

    return {name: value for name, value in alone(variables).items() if stays(name)}


def said(output: str) -> str:
    """Return the output of a SLURM command in one line, without its name."""
    lines = (re.sub(r"^\w+: (?:error: |fatal: )?", "", line.strip()) for line in output.splitlines())
    return "; ".join(dict.fromkeys(line for line in lines if line)) or "no reason given"


def hand_over(entry: journal.Entry, known: Callable[[str], dict[str, str] | None]) -> str:
    """Submit an entry to SLURM. Returns the array's id.

    known: returns the ids of our jobs by name, if sbatch gives none; None if unknown. Raises Refused, Taken if another
    driver revoked the entry, and UserError if it is unknown whether there is a job.
    """
    script = entry.path / journal.SCRIPT
    clean = for_sbatch(os.environ, script.read_text())
    answer = run("sbatch", str(script), environment=clean)
    found = re.search(r"Submitted batch job (\d+)(?: on cluster (\S+))?", answer.output)
    # sbatch may fail after the controller has accepted the job, if its answer timed out.
    names = {} if found else known(entry.clusters)
    if names is None:
        words = answer.problem if answer.timed_out else f"sbatch: {said(answer.errors + answer.output)}"
        raise UserError(
            f"cluster '{entry.cluster}': {words}; and squeue does not answer, so it is not known whether SLURM has the "
            "jobs. Run gsq submit again later; it finds out, and submits no cell twice"
        )
    settled = entry.decide(found[1], found[2] or "") if found else entry.decide(names.get(entry.name))
    if settled.job is not None:
        return settled.job
    if found:
        raise journal.Taken
    raise Refused(answer.problem if answer.timed_out else said(answer.errors + "\n" + answer.output))


def pickled(job: Any, minutes: int) -> bytes:
    """Return the pickle that submitit loads on the node. job: a callable with submitit's ``checkpoint``."""
    from submitit.core.utils import DelayedSubmission

    delayed = DelayedSubmission(job)
    delayed.set_timeout(minutes, MAX_TIMEOUTS)
    return pickle.dumps(delayed)


def check_path(path: Path) -> None:
    """Raise UserError for a runs folder in which no job could start."""
    reasons = {
        os.pathsep: f"PYTHONPATH, by which workers find their source copy, separates folders by '{os.pathsep}'",
        "\n": "a job script needs a path on one line",
        **dict.fromkeys(("%j", "%t", "%A", "%a"), "submitit replaces it with a number of the job"),
        "\\": "SLURM gives a backslash in the path of an output file a special meaning",
    }
    for character, why in reasons.items():
        if character in str(path):
            raise UserError(f"$GSQ_RUNS: {str(path)!r} has a {character!r} in it: {why}; choose another folder")


def handed_on(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the user that the script sets."""
    return {name: variables[name] for name in HANDED_ON if name in variables}


def job_script(
    entry: journal.Entry,
    cluster: Cluster,
    parallel: int,
    python: str,
    variables: Mapping[str, str] | None = None,
    after: Collection[str] = (),
) -> str:
    """Return submitit's script for an array, as a pure function of these arguments.

    variables: from ``handed_on``. after: jobs that must have ended, whatever became of them, before it starts.
    """
    from submitit.slurm.slurm import _make_sbatch_string

    tasks = -(-len(entry.signatures) // entry.share)
    keys = ("partition", "account", "qos", "constraint", "dependency")
    options: dict[str, Any] = {key: getattr(cluster, key) or None for key in keys}
    if after and not entry.clusters and "?" not in cluster.dependency:
        # Jobs of another cluster cannot be waited for, nor beside alternatives (?).
        options["dependency"] = ",".join(filter(None, (cluster.dependency, ":".join(("afterany", *sorted(after))))))
    # Clusters that account by wckey refuse submitit's default.
    options |= {"wckey": None, **_memory(entry.memory_gb, cluster)}
    script: str = _make_sbatch_string(
        command=f"{shlex.quote(python)} -u -m submitit.core._submit {shlex.quote(str(entry.path))}",
        # SLURM replaces % in the names of output files.
        folder=str(entry.path).replace("%", "%%"),
        map_count=tasks,
        array_parallelism=parallel,
        job_name=entry.name,
        time=entry.minutes,
        nodes=cluster.nodes,
        ntasks_per_node=cluster.processes_per_node,
        cpus_per_task=max(1, cluster.cpus // cluster.processes_per_node),
        gpus_per_node=cluster.gpus or None,
        stderr_to_stdout=True,
        signal_delay_s=min(cluster.signal_seconds, entry.minutes * 30),
        setup=_setup(entry, cluster, variables or {}),
        # This also works if the job got no environment (--export=NONE). A failed process ends its peers.
        srun_args=[
            "--export=ALL",
            *(["--kill-on-bad-exit=1"] if cluster.nodes * cluster.processes_per_node > 1 else []),
        ],
        additional_parameters={name: value for name, value in cluster.sbatch.items() if value is not False},
        **options,
    )
    return script


def _memory(memory_gb: int, cluster: Cluster) -> dict[str, str]:
    if cluster.memory_per == "none" or set(MEMORY) & cluster.sbatch.keys():
        return {}
    if cluster.memory_per == "node":
        return {"mem": f"{memory_gb}GB"}
    share = max(1, cluster.cpus) if cluster.memory_per == "cpu" else cluster.gpus
    return {f"mem_per_{cluster.memory_per}": f"{-(-memory_gb * 1024 // share)}MB"}


def _setup(entry: journal.Entry, cluster: Cluster, variables: Mapping[str, str]) -> list[str]:
    threads = max(1, cluster.cpus // (cluster.processes_per_node * cluster.cells_per_job)) if cluster.gpus else 1
    exports = {"OMP_NUM_THREADS": str(threads), **cluster.environment}
    copy = environment(Path(entry.source), "")
    others = [name for name in OTHER_PYTHONS if name not in variables]
    in_turn = f"# Each task trains up to {entry.share} cells, {entry.cells_per_job} at a time."
    return [
        *([in_turn] if entry.cells_in_turn > 1 else []),
        # gsq logs separates the starts of a job by this line, even if the job ends before Python starts.
        'echo "--- gsq job started $(date "+%Y-%m-%d %H:%M:%S")"',
        *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
        *cluster.setup,
        f"unset {' '.join(others)}",
        *(f"export {name}={_in_double_quotes(value)}" for name, value in exports.items()),
        # This follows the setup commands, because module load may set PYTHONPATH too. An empty entry would mean the
        # folder in which the job starts.
        f'export PYTHONPATH={shlex.quote(copy.pop("PYTHONPATH"))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        *(f'export {name}="{value}"' for name, value in copy.items()),
        # submitit looks for a pickle by the job's id, which is unknown when the script is written. Requeueing replaces
        # the link; leftovers of a killed attempt at that would block the next one.
        f'task={shlex.quote(str(entry.path))}/"${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"',
        'rm -f "$task"*.save_tmp',
        f'[ -e "$task"_submitted.pkl ] || ln -s {journal.PICKLE} "$task"_submitted.pkl',
    ]


def _in_double_quotes(value: str) -> str:
    """Quote a value for the shell, which still expands variables such as $TMPDIR."""
    return '"' + re.sub(r'(["`\\])', r"\\\1", value) + '"'
