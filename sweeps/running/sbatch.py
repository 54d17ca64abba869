"""What sbatch is given and what it answers: the job script, its environment, and the words of a refusal."""

from __future__ import annotations

import os
import pickle
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gsq.errors import UserError
from gsq.surroundings import alone
from gsq.sweeps.running.snapshot import environment
from gsq.sweeps.spec.cluster import Cluster
from gsq.sweeps.state import journal
from gsq.sweeps.state.commands import run
from gsq.sweeps.state.local import DRIVER_VARIABLE

# submitit takes any time-out of a short job for the last; how often a cell is tried is reconcile's decision.
MAX_TIMEOUTS = 1000

# Which cluster, and on whose account: a user's own, although their names look like those that a job sets.
KEPT = (
    *("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_BITSTR_LEN", "SLURM_TIME_FORMAT"),
    *("SBATCH_ACCOUNT", "SBATCH_CLUSTERS", "SBATCH_QOS", "SBATCH_WCKEY"),
)
# Of a job's own GPUs and of its processes; every new job sets its own.
OF_A_JOB = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK")
OF_A_JOB_PREFIXES = ("SLURM_", "SLURMD_", "SBATCH_", "SUBMITIT_", "PMI_", "PMIX_")
# sbatch's variables whose option has another name (man sbatch, input environment variables).
OPTION_OF = {"ARRAY_INX": "array", "MEM_PER_NODE": "mem", "TIMELIMIT": "time", "NO_REQUEUE": "requeue"}
MEMORY = ("mem", "mem-per-cpu", "mem-per-gpu")
# Variables of the user that a job needs where sbatch hands on none (--export=NONE).
HANDED_ON = ("GSQ_CACHE", "GSQ_WEIGHTS", "PYTHONHOME")
# What a module may set for its own Python, and what breaks the one that gsq is installed for or makes it wait.
OTHER_PYTHONS = ("PYTHONHOME", "PYTHONPLATLIBDIR", "PYTHONEXECUTABLE", "PYTHONINSPECT", "PYTHONSTARTUP")

# Refusals that fewer tasks may not meet. The last is said of every limit of an account or a QOS.
_LIMIT = re.compile(
    r"Submit(?:Jobs?)?(?:PerUser|PerAccount)?Limit|MaxSubmit|submit(?:ted)? (?:job )?limit|MaxJobCount|array size"
    r"|Invalid job array|Job violates accounting/QOS policy|temporarily unable to accept",
    re.IGNORECASE,
)


class Refused(Exception):
    """sbatch took no job. ``words``: all that it said; ``limit``: whether it may take a smaller array."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.words = words
        self.limit = bool(_LIMIT.search(words))


def for_sbatch(variables: Mapping[str, str], script: str) -> dict[str, str]:
    """The environment in which sbatch is run: the user's own, without what the surroundings set.

    Inside a job (SLURM_JOB_ID) it is without that job's variables, which sbatch would hand on. Everywhere it is without
    those SBATCH_* that sbatch would prefer to an option that the script sets; the others are the user's defaults.
    """
    options = set(re.findall(r"^#SBATCH --([a-z0-9-]+)", script, re.MULTILINE))
    if options.intersection(MEMORY):
        options.update(MEMORY)
    # Until the jobs have ended.
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
    """All that a SLURM command printed, in one line, without its own name before each."""
    lines = (re.sub(r"^\w+: (?:error: |fatal: )?", "", line.strip()) for line in output.splitlines())
    return "; ".join(dict.fromkeys(line for line in lines if line)) or "no reason given"


def hand_over(entry: journal.Entry, known: Callable[[str], dict[str, str] | None]) -> str:
    """Hand an entry to SLURM; returns the array's id.

    known: asked for the ids of our jobs by their names, where sbatch gives none; None where nobody knows. Raises
    Refused, Taken where another driver took the entry back, and UserError where it is not known whether there is a job.
    """
    script = entry.path / journal.SCRIPT
    clean = for_sbatch(os.environ, script.read_text())
    answer = run("sbatch", str(script), environment=clean)
    found = re.search(r"Submitted batch job (\d+)(?: on cluster (\S+))?", answer.output)
    # An error may come after the controller has taken the job (its answer timed out).
    names = {} if found else known(entry.clusters)
    if names is None:
        words = answer.problem if answer.timed_out else f"sbatch: {said(answer.errors + answer.output)}"
        raise UserError(
            f"cluster '{entry.cluster}': {words}; and squeue does not answer, so it is not known whether SLURM has the "
            "jobs. Run gsq submit again later: it finds out, and submits no cell twice"
        )
    settled = entry.decide(found[1], found[2] or "") if found else entry.decide(names.get(entry.name))
    if settled.job is not None:
        return settled.job
    if found:
        raise journal.Taken
    raise Refused(answer.problem if answer.timed_out else said(answer.errors + "\n" + answer.output))


def pickled(job: Any, minutes: int) -> bytes:
    """What submitit loads on the node. job: called without arguments, and has submitit's ``checkpoint``."""
    from submitit.core.utils import DelayedSubmission

    delayed = DelayedSubmission(job)
    delayed.set_timeout(minutes, MAX_TIMEOUTS)
    return pickle.dumps(delayed)


def check_path(path: Path) -> None:
    """Raise UserError for a runs folder in which no job could start."""
    for character, why in (
        (
            os.pathsep,
            f"PYTHONPATH, by which workers find their copy of the source, separates folders by '{os.pathsep}'",
        ),
        ("\n", "a job script has a path on one line"),
        *((pattern, "submitit writes a number of the job in its place") for pattern in ("%j", "%t", "%A", "%a")),
        ("\\", "SLURM gives a backslash in the path of an output file a meaning of its own"),
    ):
        if character in str(path):
            raise UserError(f"$GSQ_RUNS: {str(path)!r} has a {character!r} in it: {why}; choose another folder")


def handed_on(variables: Mapping[str, str]) -> dict[str, str]:
    """Variables of the user that the script sets by itself."""
    return {name: variables[name] for name in HANDED_ON if name in variables}


def job_script(
    entry: journal.Entry, cluster: Cluster, parallel: int, python: str, variables: Mapping[str, str] | None = None
) -> str:
    """What sbatch is given: submitit's script for an array, as a pure function of these arguments.

    variables: from ``handed_on``.
    """
    from submitit.slurm.slurm import _make_sbatch_string

    tasks = -(-len(entry.signatures) // entry.cells_per_job)
    options: dict[str, Any] = {key: getattr(cluster, key) or None for key in ("partition", "account", "qos")}
    options |= {key: getattr(cluster, key) or None for key in ("constraint", "dependency")}
    # submitit's own is refused where work is accounted by such keys.
    options |= {"wckey": None, **_memory(entry.memory_gb, cluster)}
    script: str = _make_sbatch_string(
        command=f"{shlex.quote(python)} -u -m submitit.core._submit {shlex.quote(str(entry.path))}",
        # Of the output files, in whose names SLURM replaces %.
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
        # Also where the job was given no environment (--export=NONE). A process that fails takes its peers with it.
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
    return [
        # gsq logs tells the starts of a job apart by this line, also of one that ends before Python starts.
        'echo "--- gsq job started $(date "+%Y-%m-%d %H:%M:%S")"',
        *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
        *cluster.setup,
        f"unset {' '.join(others)}",
        *(f"export {name}={_in_double_quotes(value)}" for name, value in exports.items()),
        # After the commands, since one of them (module load) may set PYTHONPATH, too. An empty entry would be the
        # folder that the job starts in.
        f'export PYTHONPATH={shlex.quote(copy.pop("PYTHONPATH"))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        *(f'export {name}="{value}"' for name, value in copy.items()),
        # submitit looks for a pickle by the job's id, which nobody knew when this was written. It replaces the link
        # when it requeues the job; what a kill left of that would stop it the next time.
        f'task={shlex.quote(str(entry.path))}/"${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"',
        'rm -f "$task"*.save_tmp',
        f'[ -e "$task"_submitted.pkl ] || ln -s {journal.PICKLE} "$task"_submitted.pkl',
    ]


def _in_double_quotes(value: str) -> str:
    """For the shell; variables of the job, such as $TMPDIR, are replaced."""
    return '"' + re.sub(r'(["`\\])', r"\\\1", value) + '"'
