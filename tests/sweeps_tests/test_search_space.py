"""``search:`` in a sweep YAML: what it accepts and what it says of what it does not."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsq.config.overrides import override
from gsq.errors import UserError
from gsq.sweeps.spec.search_space import OBJECTIVES, PRUNERS, SAMPLERS, Search
from gsq.sweeps.spec.sweep import load_spec

SPACE = {
    "learning_rate": {"log_uniform": [1e-4, 1e-2]},
    "optimizer.weight_decay": {"uniform": [0, 0.1]},
    "optimizer.betas": [{"uniform": [0, 0.95]}, 0.99],
    "groups": {"choice": [1, 2, 4]},
    "latent_dim": {"int": [8, 62], "step": 8},
    "optimizer.warmup_steps": {"int": [1, 100], "log": True},
    "discriminator.augment": {"choice": [[], ["color", "cutout"]]},
}


def search_of(values: dict[str, Any] | None = None, **more: Any) -> Search:
    """``search:`` of a sweep of cpu-tiny, five trials over the learning rate but for what is given."""
    search: Any = {"trials": 5, "space": {"learning_rate": SPACE["learning_rate"]}} | (values or {})
    spec = load_spec({"name": "s", "base": "cpu-tiny", "search": search, **more})
    assert spec.search is not None
    return spec.search


def test_what_is_left_out_has_a_value() -> None:
    search = search_of()
    assert (search.trials, search.objectives, search.directions) == (5, ("rfid",), ["minimize"])
    assert (search.sampler, search.pruner, search.seed, search.parallel, search.storage) == ("tpe", "none", 0, 0, "")


@settings(deadline=None)
@given(seed=st.integers(0, 2**32))
def test_what_is_drawn_lies_in_the_space_and_fits_the_config(seed: int) -> None:
    search = search_of({"space": SPACE})
    base = load_spec({"name": "s", "base": "cpu-tiny"}).base
    for axes in (search.draw(Random(seed)), search.middle()):
        assert list(axes) == list(SPACE)
        assert 1e-4 <= axes["learning_rate"] <= 1e-2 and 0 <= axes["optimizer.weight_decay"] <= 0.1
        assert 0 <= axes["optimizer.betas"][0] <= 0.95 and axes["optimizer.betas"][1] == 0.99
        assert axes["latent_dim"] in range(8, 57, 8) and axes["groups"] in (1, 2, 4)
        assert 1 <= axes["optimizer.warmup_steps"] <= 100
        config = override(base, axes)
        assert config.discriminator.augment in ((), ("color", "cutout"))


def test_the_study_draws_from_the_same_space() -> None:
    import optuna

    search = search_of({"space": SPACE})
    study = optuna.create_study(sampler=search.make_sampler(0))
    trial = study.ask()
    axes = search.suggest(trial)
    assert set(study.trials[0].params) == set(search.domains()) - {"optimizer.betas[1]"}
    assert axes["optimizer.betas"] == [trial.params["optimizer.betas[0]"], 0.99]
    assert axes["discriminator.augment"] in ([], ["color", "cutout"])
    # Said again, it is the same trial.
    assert search.suggest(trial) == axes


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_has_a_name(name: str) -> None:
    import optuna

    search = search_of({"sampler": name})
    assert type(search.make_sampler(3)).__name__ == SAMPLERS[name]
    study = optuna.create_study(sampler=search.make_sampler(0))
    assert 1e-4 <= search.suggest(study.ask())["learning_rate"] <= 1e-2


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_has_a_name(name: str) -> None:
    options = {"threshold": {"upper": 100.0}}.get(name)
    search = search_of({"pruner": {name: options} if options else name}, set={"evaluation.every": 100})
    assert type(search.make_pruner(300, 100)).__name__ == PRUNERS[name]


def test_options_reach_optuna() -> None:
    search = search_of(
        {"sampler": {"tpe": {"n_startup_trials": 3}}, "pruner": {"median": {"n_warmup_steps": 150}}},
        set={"evaluation.every": 100},
    )
    assert search.sampler_options == {"n_startup_trials": 3}
    pruner = search.make_pruner(300, 100)
    assert pruner._n_warmup_steps == 150  # type: ignore[attr-defined]


MISTAKES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"sampler": "tpa"}, ("search.sampler: 'tpa'", "tpe, gp, cmaes, nsga2, qmc, random", "did you mean 'tpe'")),
    ({"sampler": {"tpe": {"n_startup": 3}}}, ("no option 'n_startup'", "did you mean 'n_startup_trials'")),
    ({"sampler": {"tpe": {"n_ei_candidates": "x", "gama": 1}}}, ("no option 'gama'",)),
    ({"sampler": "cmaes", "objectives": ["rfid", "usage"]}, ("cmaes has one objective, not 2",)),
    ({"pruner": "medium"}, ("search.pruner: 'medium'", "did you mean 'median'")),
    ({"pruner": "median"}, ("there are none", "set evaluation.every to less than 300 steps")),
    ({"pruner": "median", "objectives": ["rfid", "bits_per_pixel"]}, ("compares one objective, not 2",)),
    ({"pruner": "median", "objectives": ["device_seconds"]}, ("device_seconds is not measured during training",)),
    ({"objectives": ["fid"]}, ("'fid' is not one of rfid", "did you mean 'rfid'")),
    ({"objectives": []}, ("search.objectives: []", ", ".join(OBJECTIVES))),
    ({"objectives": ["rfid", "rfid"]}, ("one is given twice",)),
    ({"trials": 0}, ("search.trials: 0 must be a whole number, 1 or more",)),
    ({"trials": None}, ("search.trials: None",)),
    ({"parallel": -1}, ("search.parallel: -1",)),
    ({"seed": 1.5}, ("search.seed: 1.5",)),
    (
        {"storage": "search.db"},
        (
            "'search.db'",
            "sqlite:///search.db",
        ),
    ),
    ({"samplr": "tpe"}, ("unknown key 'samplr' (did you mean 'sampler'?)", "a search has trials, objectives")),
    ({"space": {}}, ("search.space: {}", "{log_uniform: [a, b]}")),
    ({"space": {"learningrate": {"uniform": [0, 1]}}}, ("'learningrate' is not a config key",)),
    ({"space": {"execution.threads": {"int": [1, 4]}}}, ("'execution.threads'",)),
    ({"space": {"evaluation.every": {"int": [1, 4]}}}, ("'evaluation.every'",)),
    ({"space": {"groups": {"uniform": [1, 4]}}}, ("uniform", "of type int", "{int: [a, b]}")),
    ({"space": {"quantizer": {"int": [1, 4]}}}, ("int", "of type str", "{choice: [...]}")),
    ({"space": {"groups": {"choice": [1, "2"]}}}, ("'2' is not of type int",)),
    ({"space": {"groups": {"choice": [1, 1]}}}, ("a choice is given twice",)),
    ({"space": {"groups": [1, 2]}}, ("[1, 2]", "{choice: [x, y, ...]}")),
    ({"space": {"learning_rate": {"log_uniform": [0, 1]}}}, ("needs a first number above 0",)),
    ({"space": {"learning_rate": {"uniform": [1, 0.1]}}}, ("{'uniform': [1, 0.1]}",)),
    ({"space": {"learning_rate": {"uniform": [0.1]}}}, ("{uniform: [a, b]}",)),
    ({"space": {"learning_rate": {"uniform": [0.1, 1], "log": True}}}, ("'log': True",)),
    ({"space": {"latent_dim": {"int": [8, 64], "step": 8, "log": True}}}, ("not both",)),
    ({"space": {"optimizer.betas": [0.9, 0.99]}}, ("optimizer.betas", "belongs in set")),
    (
        {"space": {"learning_rate": {"uniform": [0.1, 1]}, "optimizer.learning_rate": {"uniform": [0.1, 1]}}},
        ("given twice, under two names",),
    ),
]


@pytest.mark.parametrize(("values", "words"), MISTAKES, ids=[str(values)[:60] for values, _ in MISTAKES])
def test_a_mistake_is_one_sentence_that_says_what_is_allowed(values: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        search_of(values)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_axes_beside_a_search_are_refused() -> None:
    with pytest.raises(UserError, match=r"search: .*axes and cases.*search\.space"):
        search_of(axes={"groups": [1, 2]}, cases=[{"groups": 4}])


def test_a_search_without_trials_or_that_is_no_mapping() -> None:
    base = {"name": "s", "base": "cpu-tiny"}
    with pytest.raises(UserError, match=r"search\.trials: missing"):
        load_spec({**base, "search": {"space": SPACE}})
    with pytest.raises(UserError, match=r"'tpe' .*trials and space"):
        load_spec({**base, "search": "tpe"})


def test_cmaes_says_which_package_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install cmaes"):
        search_of({"sampler": "cmaes"})


def test_options_of_a_part_of_ones_own_can_be_searched() -> None:
    values: dict[str, Any] = {
        "name": "own",
        "base": "cpu-tiny",
        "set": {"quantizer.kind": "gsq.templates.quantizer:Mine"},
    }
    space = {"quantizer.options.temperature": {"uniform": [0.1, 2]}}
    found = load_spec({**values, "search": {"trials": 2, "space": space}}).search
    assert found is not None
    assert set(found.space) == set(space)
    with pytest.raises(UserError, match=r"quantizer.options.heat"):
        load_spec({**values, "search": {"trials": 2, "space": {"quantizer.options.heat": {"uniform": [0, 1]}}}})
