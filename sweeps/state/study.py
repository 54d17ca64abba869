"""The Optuna study of a search: its storage, and its state.

The study is a journal in the sweep folder, or is in a database under the sweep's name. ``search.json`` beside the plan
has the search as last submitted, and an id that is also in the study.
"""

from __future__ import annotations

import json
import os
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsq.config.run import RunConfig
from gsq.config.signature import digest
from gsq.errors import UserError
from gsq.files import is_yaml, read_json, write_json
from gsq.runs.identity import identity
from gsq.sweeps.planning.cells import Plan, title
from gsq.sweeps.planning.folder import SweepFolder, sweep_folder
from gsq.sweeps.spec.cluster import Cluster, local_workers
from gsq.sweeps.spec.search_space import Search
from gsq.sweeps.state.study_journal import open_journal
from gsq.words import counted as in_words

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

JOURNAL = "study.journal"
# Default number of parallel trials on SLURM; more of them would be drawn with little knowledge.
SLURM_PARALLEL = 8
# Our words for the states of Optuna's trials.
STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}


@dataclass(frozen=True)
class TrialStatus:
    """A trial with a run."""

    number: int
    state: str
    """complete, pruned, failed or running."""
    signature: str
    axes: dict[str, Any]
    values: tuple[float, ...]
    """Value of each objective; a pruned trial has the last measured one."""
    ended: str
    """Why it failed, or diverged."""


@dataclass(frozen=True)
class SearchStatus:
    """State of a study."""

    limit: int
    """Most trials of the search."""
    objectives: tuple[str, ...]
    trials: tuple[TrialStatus, ...]
    best: tuple[int, ...]
    """The best trial, or the Pareto front of several objectives."""
    left_out: dict[str, int]
    """Draws without a run, by reason."""

    @property
    def counts(self) -> dict[str, int]:
        """Trials by state, every state named."""
        counted = Counter(trial.state for trial in self.trials)
        return {state: counted[state] for state in STATES.values()}

    @property
    def numbers(self) -> dict[str, tuple[int, ...]]:
        """Trial numbers by the signature of their run."""
        found: dict[str, tuple[int, ...]] = {}
        for trial in self.trials:
            found[trial.signature] = (*found.get(trial.signature, ()), trial.number)
        return found

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "counts": self.counts}


def search(sweep: str | Path, *, runs: Path | None = None) -> optuna.Study:
    """Return the Optuna study of a search, for Optuna's plots, by the sweep's name, YAML file or journal file.

    Example: optuna.visualization.matplotlib.plot_slice(sweeps.search("search-optimizer"))
    Raises UserError if there is none.
    """
    import optuna

    path = Path(sweep)
    if path.is_file() and not is_yaml(path):
        with explained(str(path)):
            storage = open_journal(path)
            names = [study.study_name for study in storage.get_all_studies()]
            if len(names) != 1:
                raise UserError(f"{path}: not the journal of one study, but of {len(names)}")
            return optuna.load_study(study_name=names[0], storage=storage)
    folder = sweep_folder(str(sweep), runs)
    folder.read_plan()
    return _load(folder)


def search_status(folder: SweepFolder) -> SearchStatus | None:
    """Return the state of a sweep's study; None for a grid."""
    if folder.search_id is None:
        return None
    study, declared = _load(folder), _declared(folder)
    trials = study.get_trials(deepcopy=False)
    complete = any(trial.state.name == "COMPLETE" for trial in trials)
    best = (study.best_trials if len(declared.objectives) > 1 else [study.best_trial]) if complete else []
    return SearchStatus(
        limit=declared.trials,
        objectives=declared.objectives,
        trials=tuple(
            TrialStatus(
                number=trial.number,
                state=STATES[trial.state.name],
                signature=trial.user_attrs["cell"]["signature"],
                axes=trial.user_attrs["cell"]["axes"],
                values=tuple(trial.values or ()),
                ended=trial.user_attrs.get("ended", ""),
            )
            for trial in counted(trials)
        ),
        best=tuple(trial.number for trial in best),
        left_out=dict(Counter(t.user_attrs["left_out"] for t in trials if "left_out" in t.user_attrs)),
    )


def parallel_trials(plan: Plan, cluster: Cluster) -> int:
    """Return how many trials of a search run at the same time."""
    assert plan.search is not None and plan.search.search is not None
    wanted = plan.search.search.parallel
    if cluster.kind == "local":
        # Drawing a trial only when a worker is free lets it use more results.
        return min(wanted or local_workers(cluster), local_workers(cluster))
    return wanted or min(cluster.parallel, SLURM_PARALLEL)


def describe(found: SearchStatus) -> list[str]:
    """Return the lines of ``gsq status`` about a search: counts and the best trials."""
    counts = ", ".join(f"{count} {state}" for state, count in found.counts.items() if count)
    lines = [f"search: {len(found.trials)} of {in_words(found.limit, 'trial')} ({counts or 'none yet'})"]
    lines += [f"{in_words(count, 'draw')} left out: {why}" for why, count in found.left_out.items()]
    several = len(found.objectives) > 1
    for trial in sorted((t for t in found.trials if t.number in found.best), key=lambda t: t.values):
        values = ", ".join(f"{name} {value:.4g}" for name, value in zip(found.objectives, trial.values, strict=True))
        lines.append(f"{'front' if several else 'best'}: trial {trial.number}, {values}: {title(trial.axes)}")
    return lines


def pruner(folder: SweepFolder, signature: str) -> Callable[[dict[str, Any]], str | None]:
    """Return a function for a trial's worker, which reports an evaluation and returns the search's id to prune the run.

    Training continues if the storage does not answer.
    """
    declared = _declared(folder)
    if declared.pruner == "none":
        return lambda evaluation: None

    def ask(evaluation: dict[str, Any]) -> str | None:
        import optuna

        try:
            study = _load(folder)
            running = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING])
            mine = [t for t in running if t.user_attrs.get("cell", {}).get("signature") == signature]
            if not mine or study.user_attrs.get("protocol", evaluation["protocol"]) != evaluation["protocol"]:
                return None
            trial = optuna.trial.Trial(study, mine[0]._trial_id)
            trial.report(evaluation[declared.objectives[0]], evaluation["step"])
            return folder.search_id if trial.should_prune() else None
        except Exception as error:  # a database driver may raise anything
            print(f"search: not reported, training continues: {type(error).__name__}: {error}", flush=True)
            return None

    return ask


def counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials with a run, without those that another trial retries."""
    again = {trial.user_attrs["retries"] for trial in trials if "retries" in trial.user_attrs}
    return [trial for trial in trials if "cell" in trial.user_attrs and trial.number not in again]


def _declared(folder: SweepFolder) -> Search:
    """The search as last submitted, without its space."""
    values = read_json(folder.search)["search"]
    return Search(**{**values, "space": {}, "objectives": tuple(values["objectives"])})


def create_study(folder: SweepFolder, base: RunConfig, search: Search) -> optuna.Study:
    """Open or create the study of a search. Raises UserError if the study has another subject."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    known = read_json(folder.search)
    if known is None and folder.exists:
        raise UserError(f"sweep '{folder.name}' was submitted before without search; give the search another name")
    what = {
        "id": known["id"] if known else uuid.uuid4().hex,
        "objectives": list(search.objectives),
        "parameters": sorted(search.domains()),
        "base": digest([identity(base), base.evaluation.features, base.evaluation.num_images]),
    }
    declared = {k: v for k, v in asdict(search).items() if k != "space"}
    declared["storage"] = search_storage = _absolute(search.storage)
    document = {
        "id": what["id"],
        "steps": base.train.steps,
        "every": base.evaluation.every,
        "search": declared,
        "parameters": search.domains(),
    }
    folder.path.mkdir(parents=True, exist_ok=True)
    if known is None:
        # Write this first, because without it the study would seem to belong to another folder.
        write_json(folder.search, document)
    storage = _open_storage(folder, search_storage)
    study = optuna.create_study(
        study_name=folder.name, storage=storage, directions=search.directions, load_if_exists=True
    )
    there = study.user_attrs.get("search")
    if there is None and not study.get_trials(deepcopy=False):
        study.set_user_attr("search", what)
        there = what
    changed = {
        "id": "belongs to another sweep folder (search.storage holds studies by the sweep's name)",
        "objectives": "has other objectives",
        "parameters": "has other parameters in its space",
        "base": "began from another base, set or data, whose results do not compare",
    }
    for key, reason in changed.items():
        if (there or {}).get(key) != what[key]:
            raise UserError(f"sweep '{folder.name}': its study {reason}; give this search another name")
    # Trials, parallel, sampler, pruner and ranges may change.
    write_json(folder.search, document)
    return study


def _load(folder: SweepFolder) -> optuna.Study:
    """Open the study to read and to report, with a sampler that draws nothing."""
    import optuna

    declared, document = _declared(folder), read_json(folder.search)
    with explained(declared.storage or str(folder.path / JOURNAL)):
        if not declared.storage and not (folder.path / JOURNAL).is_file():
            raise UserError(f"sweep '{folder.name}': its journal {folder.path / JOURNAL} is missing")
        return optuna.load_study(
            study_name=folder.name,
            storage=_open_storage(folder, declared.storage),
            sampler=optuna.samplers.RandomSampler(),
            pruner=declared.make_pruner(document["steps"], document["every"]),
        )


def neutral(study: optuna.Study) -> optuna.Study:
    """Return the same study with a sampler that draws nothing."""
    import optuna

    return optuna.load_study(
        study_name=study.study_name, storage=study._storage, sampler=optuna.samplers.RandomSampler()
    )


def _absolute(url: str) -> str:
    """Make the path of an SQLite URL absolute, because jobs start in another folder."""
    scheme, _, path = url.partition(":///")
    if scheme.startswith("sqlite") and path and not path.startswith(("/", "$", "?")):
        return f"{scheme}:///{Path(path).absolute()}"
    return url


def _open_storage(folder: SweepFolder, url: str) -> optuna.storages.BaseStorage:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not url:
        return open_journal(folder.path / JOURNAL)
    # A variable may hold the password, so that no file has it.
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    return optuna.storages.RDBStorage(os.path.expandvars(url), engine_kwargs=options)


@contextmanager
def explained(storage: str, more: str = "") -> Iterator[None]:
    """Turn what a storage raises into one sentence."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            yield
        except Exception as error:
            of_database = type(error).__module__.partition(".")[0] in ("optuna", "sqlalchemy")
            # These come from a damaged journal, a missing database client, or a missing study.
            known = isinstance(error, json.JSONDecodeError | UnicodeDecodeError | ModuleNotFoundError)
            if not of_database and not known and "log format" not in str(error) and "Record does" not in str(error):
                raise
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"search.storage: {_shown(storage)}: {lines[0]}{more}") from None


def _shown(storage: str) -> str:
    """Hide the password of a storage."""
    scheme, found, rest = storage.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}@{host}" if found and at else storage
