"""``search:`` in a sweep YAML: the space, the objectives, and Optuna's sampler and pruner.

search:
  trials: 30                               # runs, including those that are pruned or fail
  objectives: [rfid]                       # or several: [rfid, bits_per_pixel]; each has its direction
  sampler: tpe                             # gp, cmaes, nsga2, qmc, random; with options: {tpe: {multivariate: true}}
  pruner: median                           # none, percentile, successive_halving, hyperband, threshold; likewise
  seed: 0
  parallel: 2                              # trials at the same time; 0: one a local worker, 8 on SLURM
  storage: ""                              # a journal in the sweep folder, or a database URL ($NAME is expanded)
  space:                                   # config keys, short or dotted as in axes
    learning_rate: {log_uniform: [1e-4, 1e-2]}
    optimizer.weight_decay: {uniform: [0, 0.1]}
    optimizer.betas: [{uniform: [0, 0.95]}, 0.99]    # a key of several numbers: one entry for each
    groups: {choice: [1, 2, 4]}
    latent_dim: {int: [8, 64], step: 8}              # or log: true

Optuna is imported only to check options and to open a study.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from gsq.config.overrides import config_key
from gsq.config.parts import option_value
from gsq.config.run import RunConfig
from gsq.config.signature import SCIENCE_SECTIONS
from gsq.config.types import check_type
from gsq.errors import UserError, nearest

if TYPE_CHECKING:
    import optuna

KEYS = {
    "trials": "Runs of the study, including those that are pruned or fail.",
    "objectives": "What to optimise; each has its direction.",
    "sampler": "Optuna's sampler by name, or with options: {tpe: {multivariate: true}}.",
    "pruner": "Optuna's pruner, which ends bad runs at an intermediate evaluation; by name, or with options.",
    "seed": "Seed of the sampler.",
    "parallel": "Trials at the same time; 0: one a local worker, 8 on SLURM.",
    "storage": "Empty for a journal in the sweep folder, or a database URL, in which $NAME is expanded.",
    "space": "The domain of each config key that is searched: {log_uniform: [1e-4, 1e-2]}.",
}
DOMAINS = {
    "uniform": "{uniform: [a, b]} is a number from a to b",
    "log_uniform": "{log_uniform: [a, b]} is one on a logarithmic scale, 0 < a",
    "int": "{int: [a, b]} is a whole number (step: n, or log: true)",
    "choice": "{choice: [x, y, ...]} is one of these",
}
SAMPLERS = {
    "tpe": "TPESampler",
    "gp": "GPSampler",
    "cmaes": "CmaEsSampler",
    "nsga2": "NSGAIISampler",
    "qmc": "QMCSampler",
    "random": "RandomSampler",
}
PRUNERS = {
    "none": "NopPruner",
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "successive_halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
    "threshold": "ThresholdPruner",
}
Direction = Literal["minimize", "maximize"]
# Possible objectives with their direction. Metrics are those of the last evaluation.
METRICS: dict[str, Direction] = {
    "rfid": "minimize",
    **dict.fromkeys(("psnr_db", "ssim", "usage", "perplexity"), "maximize"),
}
COSTS = ("device_seconds", "train_flops", "parameters", "bits_per_pixel", "bits_per_token")
# Those of a generation probe, which the base config must ask for.
PROBES = ("gfid", "gfid_minus_rfid", "prior_bits_per_pixel", "prior_bits_per_token")
OBJECTIVES: dict[str, Direction] = {**METRICS, **dict.fromkeys((*COSTS, *PROBES), "minimize")}


@dataclass(frozen=True)
class Domain:
    """Values of one parameter."""

    kind: str
    values: tuple[Any, ...]
    """Both ends, or the choices."""
    step: int = 1
    log: bool = False

    def __str__(self) -> str:
        if self.kind == "choice":
            return ", ".join(map(str, self.values))
        low, high = self.values
        if low == high:
            return f"{low:g}"
        scale = ", logarithmic" if self.log else f", step {self.step}" if self.step > 1 else ""
        return f"{low:g} to {high:g}{scale}" if self.kind != "int" else f"{low} to {high}, whole{scale}"

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """Return the value of a trial, drawing it if there is none yet."""
        if self.kind == "choice":
            # Optuna stores plain values only, so a list goes by its text.
            labels = {json.dumps(v) if isinstance(v, list) else v: v for v in self.values}
            return labels[trial.suggest_categorical(name, list(labels))]
        low, high = self.values
        if self.kind == "int":
            return trial.suggest_int(name, low, high, step=self.step, log=self.log)
        return trial.suggest_float(name, low, high, log=self.log)

    def at(self, share: float) -> Any:
        """Return the value at a share of the domain, 0 <= share < 1."""
        if self.kind == "choice":
            return self.values[int(share * len(self.values))]
        low, high = self.values
        if self.kind != "int":
            return low * (high / low) ** share if self.log else low + share * (high - low)
        if self.log:
            return min(high, max(low, round(low * (high / low) ** share)))
        return low + self.step * int(share * ((high - low) // self.step + 1))


Entry = Domain | tuple[Domain | float, ...]


@dataclass(frozen=True)
class Search:
    """A validated ``search:``."""

    space: dict[str, Entry]
    trials: int
    objectives: tuple[str, ...] = ("rfid",)
    sampler: str = "tpe"
    sampler_options: dict[str, Any] = field(default_factory=dict)
    pruner: str = "none"
    pruner_options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    parallel: int = 0
    storage: str = ""

    @property
    def directions(self) -> list[Direction]:
        """Direction of each objective."""
        return [OBJECTIVES[name] for name in self.objectives]

    def _values(self, value_of: Callable[[Domain, str], Any]) -> dict[str, Any]:
        def part(name: str, entry: Domain | float) -> Any:
            return value_of(entry, name) if isinstance(entry, Domain) else entry

        return {
            name: [part(f"{name}[{i}]", one) for i, one in enumerate(entry)]
            if isinstance(entry, tuple)
            else part(name, entry)
            for name, entry in self.space.items()
        }

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Return the axis values of a trial, whose parameters have the keys of the space, or ``key[0]`` for a part."""
        return self._values(lambda domain, name: domain.suggest(trial, name))

    def middle(self) -> dict[str, Any]:
        """Return the axis values in the middle of the space."""
        return self._values(lambda domain, name: domain.at(0.5))

    def draw(self, random: Random) -> dict[str, Any]:
        """Draw axis values at random, without a study."""
        return self._values(lambda domain, name: domain.at(random.random()))

    def domains(self) -> dict[str, str]:
        """Describe the domain of each parameter."""
        words: dict[str, str] = {}
        for name, entry in self.space.items():
            if isinstance(entry, Domain):
                words[name] = str(entry)
            else:
                words |= {f"{name}[{i}]": str(e) for i, e in enumerate(entry)}
        return words

    def make_sampler(self, trial: int) -> optuna.samplers.BaseSampler:
        """Return the sampler for a trial. Its random numbers depend only on seed and trial, so an interrupted search
        resumes as if nothing had happened."""
        import optuna

        of_trial = Random(f"{self.seed}/{trial}").randrange(2**31)
        options: dict[str, Any] = {"seed": of_trial, **self.sampler_options}
        if self.sampler == "tpe":
            # Without this, trials that run at the same time are drawn alike.
            options.setdefault("constant_liar", True)
        elif self.sampler == "qmc":
            # The study shares one sequence, in which Optuna keeps its place.
            options |= {"seed": self.seed, "independent_sampler": optuna.samplers.RandomSampler(seed=of_trial)}
        if self.sampler in ("gp", "cmaes", "qmc"):
            options.setdefault("warn_independent_sampling", False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = getattr(optuna.samplers, SAMPLERS[self.sampler])(**options)
        assert isinstance(sampler, optuna.samplers.BaseSampler)
        return sampler

    def make_pruner(self, steps: int, every: int) -> optuna.pruners.BasePruner:
        """Return the pruner. steps: length of a whole run; every: steps between evaluations."""
        import optuna

        options: dict[str, Any] = {}
        if self.pruner in ("hyperband", "successive_halving"):
            options["min_resource"] = max(1, every)
        if self.pruner == "hyperband":
            options["max_resource"] = steps
        if self.pruner == "percentile":
            options["percentile"] = 25.0
        pruner = getattr(optuna.pruners, PRUNERS[self.pruner])(**{**options, **self.pruner_options})
        assert isinstance(pruner, optuna.pruners.BasePruner)
        return pruner


def read_search(values: Any, base: RunConfig, where: str) -> Search:
    """Read ``search:``. Raises UserError for anything that differs from the module's docstring."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: {values!r} is not a mapping with trials and space; see {', '.join(KEYS)}")
    for key in values:
        if key not in KEYS:
            raise UserError(f"{where}: unknown key '{key}'{nearest(str(key), KEYS)}; a search has {', '.join(KEYS)}")
    if "trials" not in values:
        raise UserError(f"{where}.trials: missing; how many runs may it take?")
    sampler, sampler_options = _choice(values.get("sampler", "tpe"), SAMPLERS, f"{where}.sampler")
    pruner, pruner_options = _choice(values.get("pruner", "none"), PRUNERS, f"{where}.pruner")
    storage = values.get("storage") or ""
    if not isinstance(storage, str) or (storage and "://" not in storage and "$" not in storage):
        raise UserError(
            f"{where}.storage: {storage!r} is not a database URL such as sqlite:///search.db or "
            'postgresql://user@host/name; "" is a journal in the sweep folder'
        )
    search = Search(
        space=_space(values.get("space"), base, f"{where}.space"),
        trials=_number(values["trials"], f"{where}.trials", 1),
        objectives=_objectives(values.get("objectives", ["rfid"]), f"{where}.objectives"),
        sampler=sampler,
        sampler_options=sampler_options,
        pruner=pruner,
        pruner_options=pruner_options,
        seed=_number(values.get("seed", 0), f"{where}.seed", 0),
        parallel=_number(values.get("parallel", 0), f"{where}.parallel", 0),
        storage=storage,
    )
    _check(search, base, where)
    return search


def _number(value: Any, where: str, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{where}: {value!r} must be a whole number, {least} or more")
    return value


def _choice(value: Any, known: Mapping[str, str], where: str) -> tuple[str, dict[str, Any]]:
    """Read a name or {name: {option: value}}."""
    options: Any = {}
    if isinstance(value, Mapping) and len(value) == 1:
        value, options = next(iter(value.items()))
    if value is None:  # YAML's null, which "none" is not
        value = "none"
    if value not in known:
        hint = nearest(str(value), known)
        raise UserError(
            f"{where}: {value!r} is not one of {', '.join(known)}{hint}; options are written as {{NAME: {{a: 1}}}}"
        )
    if not isinstance(options or {}, Mapping):
        raise UserError(f"{where}: {value}: {options!r} is not a mapping of options")
    return str(value), dict(options or {})


def _objectives(value: Any, where: str) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names:
        raise UserError(f"{where}: {value!r} is not a list of names; they are {', '.join(OBJECTIVES)}")
    for name in names:
        if name not in OBJECTIVES:
            hint = nearest(str(name), OBJECTIVES)
            raise UserError(f"{where}: {name!r} is not one of {', '.join(OBJECTIVES)}{hint}")
    if len(set(names)) < len(names):
        raise UserError(f"{where}: {', '.join(names)}: one is given twice")
    return tuple(names)


def _space(values: Any, base: RunConfig, where: str) -> dict[str, Entry]:
    if not isinstance(values, Mapping) or not values:
        raise UserError(
            f"{where}: {values!r} is not a mapping of config keys to domains; domains are {'; '.join(DOMAINS.values())}"
        )
    space: dict[str, Entry] = {}
    seen: set[str] = set()
    for name, given in values.items():
        section, key = (full := config_key(str(name), where)).split(".", 1)
        if section not in SCIENCE_SECTIONS:
            raise UserError(f"{where}: '{name}' does not change what a run computes, so there is nothing to search")
        if full in seen:
            raise UserError(f"{where}: '{name}' is given twice, under two names")
        seen.add(full)
        current = option_value(base, full) if key.startswith("options.") else getattr(getattr(base, section), key)
        place = f"{where}: {name}"
        if isinstance(current, tuple) and isinstance(given, list):
            if not given:
                raise UserError(f"{place}: the list is empty")
            kind = type(current[0]) if current else int
            space[str(name)] = tuple(_domain(g, kind, place) if isinstance(g, Mapping) else g for g in given)
            if not any(isinstance(g, Mapping) for g in given):
                raise UserError(f"{place}: {given!r} has no domain; a fixed value belongs in set")
        else:
            space[str(name)] = _domain(given, type(current), place)
    return space


def _domain(value: Any, wanted: type, where: str) -> Domain:
    """Read one domain. wanted: the type of the config key."""
    kind = next((str(k) for k in value if k in DOMAINS), None) if isinstance(value, Mapping) else None
    allowed = {"int": {"int", "step", "log"}}.get(kind or "", {kind})
    if kind is None or set(value) - allowed:
        raise UserError(f"{where}: {value!r} is not one of the domains: {'; '.join(DOMAINS.values())}")
    arguments = value[kind]
    if not isinstance(arguments, list) or not arguments:
        raise UserError(f"{where}: {dict(value)}: {DOMAINS[kind]}")
    if kind == "choice":
        for choice in arguments:
            check_type(choice, wanted, where)
        if len({json.dumps(choice) for choice in arguments}) < len(arguments):
            raise UserError(f"{where}: {arguments}: a choice is given twice")
        return Domain(kind, tuple(arguments))
    number = int if kind == "int" else (int, float)
    if len(arguments) != 2 or not all(isinstance(a, number) and not isinstance(a, bool) for a in arguments):
        raise UserError(f"{where}: {dict(value)}: {DOMAINS[kind]}")
    if wanted not in (int, float) or (wanted is int and kind != "int"):
        fitting = "{int: [a, b]} or {choice: [...]}" if wanted is int else "{choice: [...]}"
        raise UserError(f"{where}: {kind} does not fit a key of type {wanted.__name__}; use {fitting}")
    low, high = arguments if kind == "int" else map(float, arguments)
    step, log = value.get("step", 1), value.get("log", kind == "log_uniform")
    if not (low < high and math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"{where}: {dict(value)}: the first number must be below the second")
    if log and low <= 0:
        raise UserError(f"{where}: {dict(value)}: a logarithmic scale needs a first number above 0")
    if not isinstance(log, bool) or not isinstance(step, int) or step < 1 or (log and step > 1):
        raise UserError(f"{where}: {dict(value)}: {DOMAINS['int']}, not both")
    if (high - low) % step and kind == "int":
        high -= (high - low) % step
    return Domain(kind, (low, high), step, log)


def _check(search: Search, base: RunConfig, where: str) -> None:
    """Raise UserError for parts that do not go together, and for options that Optuna refuses."""
    several = len(search.objectives) > 1
    if search.sampler == "cmaes" and several:
        raise UserError(f"{where}.sampler: cmaes has one objective, not {len(search.objectives)}; use tpe, gp or nsga2")
    if search.sampler == "cmaes" and importlib.util.find_spec("cmaes") is None:
        raise UserError(f"{where}.sampler: cmaes needs a package that is not installed: pip install cmaes")
    probed = [name for name in search.objectives if name in PROBES]
    if probed and base.evaluation.probe == "none":
        raise UserError(
            f"{where}.objectives: {probed[0]} is measured by a generation probe, and evaluation.probe is none; set "
            "evaluation.probe to tiny, small or base"
        )
    if search.pruner != "none":
        if several:
            raise UserError(f"{where}.pruner: {search.pruner} compares one objective, not {len(search.objectives)}")
        if search.objectives[0] not in METRICS:
            raise UserError(
                f"{where}.pruner: {search.objectives[0]} is not measured during training; use one of "
                f"{', '.join(METRICS)}"
            )
        if not 0 < base.evaluation.every < base.train.steps:
            raise UserError(
                f"{where}.pruner: {search.pruner} acts at intermediate evaluations, and there are none: set "
                f"evaluation.every to less than {base.train.steps} steps"
            )
    _check_options(SAMPLERS[search.sampler], "samplers", search.sampler_options, f"{where}.sampler")
    _check_options(PRUNERS[search.pruner], "pruners", search.pruner_options, f"{where}.pruner")
    try:
        if search.sampler_options:
            search.make_sampler(0)
        if search.pruner != "none":
            search.make_pruner(base.train.steps, base.evaluation.every)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from None


def _check_options(name: str, module: str, options: Mapping[str, Any], where: str) -> None:
    if not options:
        return
    import optuna

    known = inspect.signature(getattr(getattr(optuna, module), name)).parameters
    valid = [p for p in known if p not in ("seed", "args", "kwargs")]
    for option in options:
        if option not in valid:
            hint = nearest(str(option), valid)
            raise UserError(f"{where}: {name} has no option '{option}'{hint}; it has {', '.join(valid) or 'none'}")
