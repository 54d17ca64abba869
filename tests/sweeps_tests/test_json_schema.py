"""The schemas take every file that ships and refuse wrong ones, as gsq does."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gsq.config.overrides import KEYS, SHORT_NAMES, read_yaml
from gsq.errors import UserError
from gsq.sweeps.planning.cells import plan
from gsq.sweeps.spec import search_space, sweep
from gsq.sweeps.spec.cluster import Cluster, load_cluster
from gsq.sweeps.spec.json_schema import cluster_schema, sweep_schema
from gsq.sweeps.spec.programs import PROGRAM_KEYS
from gsq.sweeps.spec.shipped import configs_folder
from gsq.sweeps.spec.sweep import load_spec

SWEEP, CLUSTER = sweep_schema(), cluster_schema()
SHIPPED = sorted(configs_folder().rglob("*.yaml"))
GOOD: dict[str, Any] = {
    "name": "good",
    "base": "cpu-tiny",
    "set": {"steps": 300, "optimizer.betas": [0.5, 0.9], "data": {"kind": "photos", "flip": False}},
    "axes": {"codebook_size": {"log2": [6, 10], "step": 2}, "seed": {"range": [0, 2]}, "width": 16},
    "zip": [{"latent_dim": [8, 16], "downsample": [2, 4]}],
    "cases": [{"groups": 2, "model.channel_multipliers": [1, 2, 2]}],
    "where": "latent_dim % groups == 0",
    "budget": {"hours": 2.5, "cells": 100},
}
SEARCH: dict[str, Any] = {
    "base": "cpu-tiny",
    "search": {
        "trials": 4,
        "objectives": ["rfid", "bits_per_pixel"],
        "sampler": {"tpe": {"multivariate": True}},
        "space": {"learning_rate": {"log_uniform": [1e-4, 1e-2]}, "optimizer.betas": [{"uniform": [0, 0.9]}, 0.99]},
    },
}


def errors(schema: dict[str, Any], document: Any) -> list[str]:
    return [one.message for one in jsonschema.Draft7Validator(schema).iter_errors(document)]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_file_that_ships_fits(path: Path) -> None:
    assert not errors(CLUSTER if path.parent.name == "clusters" else SWEEP, read_yaml(path))


def test_the_schemas_are_valid_and_describe_every_key() -> None:
    for schema in (SWEEP, CLUSTER):
        jsonschema.Draft7Validator.check_schema(schema)
        json.dumps(schema)
    own, program = SWEEP["else"]["properties"], SWEEP["then"]["properties"]
    assert {*own, *program} == {*sweep.KEYS} and {*PROGRAM_KEYS}.isdisjoint(own)
    assert all(one["description"] for one in (*own.values(), *(program[key] for key in PROGRAM_KEYS)))
    assert own["search"]["properties"].keys() == {*search_space.KEYS}
    assert {*KEYS, *SHORT_NAMES} <= own["set"]["properties"].keys()
    assert CLUSTER["properties"].keys() == {one.name for one in fields(Cluster)}
    assert all(len(one["description"]) > 9 for one in CLUSTER["properties"].values())
    assert all(SWEEP["definitions"][key]["description"] for key in KEYS)
    assert "shell" in SWEEP["definitions"]["set data.path"]["description"]


def test_a_sweep_of_a_program_has_keys_of_its_own() -> None:
    document = {"program": "my_train:train", "set": {"anything": 1}, "axes": {"width": [1, 2]}, "flops": "width * 2"}
    assert not errors(SWEEP, document)
    assert errors(SWEEP, document | {"program": "my_train"})
    assert errors(SWEEP, document | {"derive": {}, "nonsense": 1})


@pytest.mark.parametrize("document", [GOOD, SEARCH], ids=("grid", "search"))
def test_what_gsq_loads_fits(document: dict[str, Any]) -> None:
    assert not errors(SWEEP, document)
    spec = load_spec(document | {"name": "good"})
    assert spec.search or plan(spec).cells


@pytest.mark.parametrize(
    ("start", "path", "value"),
    [
        (GOOD, "base", None),
        (GOOD, "base", "cpu-tinny"),
        (GOOD, "name", "a/b"),
        (GOOD, "axis", {"groups": [1]}),
        (GOOD, "set steps", "300"),
        (GOOD, "set stepps", 300),
        (GOOD, "set steps", 0),
        (GOOD, "set data image_sise", 32),
        (GOOD, "set data kind", "folder"),
        (GOOD, "axes groups", []),
        (GOOD, "axes groups", [1, "2"]),
        (GOOD, "axes quantizer", ["gsq", "vqq"]),
        (GOOD, "axes codebook_size", {"log3": [6, 10]}),
        (GOOD, "axes codebook_size", {"log2": [6]}),
        (GOOD, "axes seed", {"range": [0, 2], "steps": 2}),
        (GOOD, "cases", {"groups": 2}),
        (GOOD, "where", [4]),
        (GOOD, "budget hours", -1),
        (GOOD, "budget hour", 1),
        (SEARCH, "search trials", 0),
        (SEARCH, "search objectives", ["fid"]),
        (SEARCH, "search space learning_rate", {"loguniform": [1, 2]}),
        (SEARCH, "search sampler", "bayes"),
    ],
)
def test_a_wrong_sweep_is_refused_by_the_schema_as_by_gsq(start: dict[str, Any], path: str, value: Any) -> None:
    wrong = copy.deepcopy(start) | {"name": "wrong"}
    *way, last = path.split(" ")
    inner = wrong
    for key in way:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    assert errors(SWEEP, wrong)
    with pytest.raises(UserError):
        plan(load_spec(wrong))


@pytest.mark.parametrize(
    "text",
    [
        "kind: pbs",
        "partitoin: gpu",
        "gpus: '2'",
        "gpus: -1",
        "gpu: a1000",
        "memory_per: core",
        "nodes: 0",
        "setup: {a: 1}",
        "environment: [A]",
        "resume: {error: never}",
        "resume: {errors: submit}",
        "sbatch: {time: 10}",
        "sbatch: {N: 1}",
        "parallel: 2.5",
    ],
)
def test_a_wrong_cluster_file_is_refused_by_the_schema_as_by_gsq(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text + "\n")
    assert errors(CLUSTER, read_yaml(file))
    with pytest.raises(UserError):
        load_cluster(str(file))


def test_the_command_prints_a_schema_without_torch() -> None:
    code = "import sys; from gsq.cli.main import app; app(['schema', 'cluster'], standalone_mode=False); "
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == json.loads(json.dumps(CLUSTER))
