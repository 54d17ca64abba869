"""Cluster files: what loads, and what a user is told about each mistake."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import pytest

from gsq.errors import UserError
from gsq.sweeps.spec.cluster import Cluster, load_cluster, local_workers
from gsq.sweeps.spec.shipped import configs_folder


def cluster(text: str) -> Cluster:
    Path("mine.yaml").write_text(text)
    return load_cluster("mine.yaml")


def test_local_and_slurm_need_no_file() -> None:
    assert load_cluster("local") == Cluster() and Cluster().kind == "local"
    assert load_cluster("slurm").kind == "slurm" and load_cluster("slurm").device == "cpu"


@pytest.mark.parametrize("path", sorted((configs_folder() / "clusters").glob("*.yaml")), ids=lambda path: path.stem)
def test_files_that_ship_load_by_name_and_by_path(path: Path) -> None:
    found = load_cluster(path.stem)
    assert found == load_cluster(str(path)) and found.name == path.stem and found.kind == "slurm"


def test_the_example_asks_for_a_gpu() -> None:
    found = load_cluster("example-gpu")
    assert found.device == "gpu" and found.gpus == 1 and found.cpus == 8
    assert found.setup == ("module load CUDA",) and found.environment == {"OMP_NUM_THREADS": "8"}


def test_every_key_may_be_left_out_and_one_command_needs_no_list() -> None:
    assert cluster("kind: slurm") == Cluster(kind="slurm", name="mine")
    found = cluster("kind: slurm\nsetup: module load CUDA\nenvironment: {A: 1, B: x}\nname: other")
    assert found.setup == ("module load CUDA",) and found.environment == {"A": "1", "B": "x"}
    assert found.name == "other"


def test_an_unknown_key_is_answered_with_every_key_and_its_default() -> None:
    with pytest.raises(UserError) as caught:
        cluster("kind: slurm\npartitions: gpu")
    message = str(caught.value)
    assert "mine.yaml" in message and "'partitions' (did you mean 'partition'?)" in message
    for field in fields(Cluster):
        assert f"{field.name} (" in message
    for default in ("kind ('local')", "parallel (256)", "setup (())", "environment ({})", "cpus (1)"):
        assert default in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cpus: many", ("cpus", "'many'", "int")),
        ("cpus: 1.5", ("cpus", "1.5", "int")),
        ("gpus: true", ("gpus", "True", "int")),
        ("partition: 3", ("partition", "3", "str")),
        ("setup: 3", ("setup", "3", "list of commands")),
        ("setup: [1]", ("setup", "[1]", "list of commands")),
        ("environment: [A=1]", ("environment", "A=1", "mapping")),
        ("kind: slrum", ("kind", "'slrum'", "local, slurm", "did you mean 'slurm'")),
        ("cpus: 0", ("cpus", "0", "at least 1")),
        ("kind: slurm\nparallel: 0", ("parallel", "0", "at least 1")),
        ("workers: -1", ("workers", "-1", "at least 0")),
        ("kind: local\nparallel: 4", ("parallel", "4", "workers")),
        ("kind: slurm\nworkers: 4", ("workers", "4", "parallel")),
        ("minutes: null", ("minutes", "None", "int")),
        ("minutes: 3 * minute", ("minutes", "'minute'", "did you mean 'minutes'")),
        ("memory_gb: open('x')", ("memory_gb", "open")),
        ("cells_per_job: 2\nnodes: 2", ("cells_per_job", "on one node")),
        ("kind: slurm\ncells_per_job: 2\ngpus: 3", ("cells_per_job", "3 GPUs")),
        ("environment: {'A B': 1}", ("environment", "'A B'", "letters")),
        ("partition: gpu", ("partition", "'gpu'", "kind: slurm")),
        ("kind: local\nsetup: module load cuda", ("setup", "module load cuda", "kind: slurm")),
        ("kind: local\ncells_per_job: 2", ("cells_per_job", "torchrun")),
        ("kind: local\ncells_in_turn: 2", ("cells_in_turn", "torchrun")),
        ("kind: slurm\ncells_in_turn: 0", ("cells_in_turn", "0", "at least 1")),
        ("kind: slurm\ncells_in_turn: many", ("cells_in_turn", "many", "auto")),
        ("kind: slurm\ncells_in_turn: 1.5", ("cells_in_turn", "1.5", "int")),
        ("kind: slurm\ncells_in_turn: auto", ("cells_in_turn: auto", "minutes")),
        ("kind: slurm\ncells_in_turn: auto\nminutes: 3 * minutes", ("cells_in_turn: auto", "3 * minutes")),
        ("kind: slurm\ncells_in_turn: 2\nnodes: 2", ("cells_in_turn: 2", "nodes")),
        ("kind: slurm\ncells_in_turn: 2\nprocesses: 2", ("cells_in_turn: 2", "processes")),
        ("kind: slurm\ncells_in_turn: 2\ngpus: 4", ("cells_in_turn: 2", "gpus: 1", "cells_per_job: 4")),
        ("resume: {divergd: submit}", ("resume", "'divergd'", "did you mean 'diverged'")),
        ("resume: {diverged: always}", ("resume: diverged", "'always'", "itself, submit, request")),
        ("sbatch: {time: 3}", ("sbatch: time", "use the key minutes")),
        ("sbatch: {job-name: x}", ("sbatch: job-name is set by gsq",)),
        ("sbatch: {mail_type: END}", ("'mail_type'", "long name")),
        ("- kind", ("mapping",)),
        ("kind: [slurm", ("line", "column", "YAML")),
    ],
)
def test_mistakes_are_named(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        cluster(text)
    message = str(caught.value)
    assert [word for word in ("mine.yaml", *words) if word not in message] == [], message
    assert "\n" not in message


def test_a_file_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(UserError, match=r"gpu\.yaml: no such cluster file.*example-gpu"):
        load_cluster("gpu.yaml")


@pytest.mark.parametrize(("visible", "workers"), [("0", 1), ("0,1,2", 3), ("GPU-1a, GPU-2b", 2)])
def test_one_worker_a_visible_gpu(monkeypatch: pytest.MonkeyPatch, visible: str, workers: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local_workers(Cluster()) == workers
    assert local_workers(Cluster(workers=5)) == 5


def test_one_worker_a_core_where_no_gpu_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local_workers(Cluster()) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("true", True),
        ("false", False),
        ("", True),
        ("~", True),
        ('"true"', "true"),
        ("on", "on"),
        ("no", "no"),
        ("3.10", "3.10"),
        ("010", "010"),
        ("1_000", "1_000"),
        ("16:30:00", "16:30:00"),
        ("2026-01-01", "2026-01-01"),
        ("2026-01-01T16:30:00", "2026-01-01T16:30:00"),
        ("1e3", "1e3"),
        (".5", ".5"),
        ('""', ""),
        ("[n1, n2, 3.10]", "n1,n2,3.10"),
        ("it's ${MINE}", "it's ${MINE}"),
        ("${partition}-x", "gpu-x"),
        ("${gpus}", "4"),
    ],
)
def test_options_of_sbatch_are_read_as_they_are_written(written: str, value: str | bool) -> None:
    found = cluster(f"kind: slurm\npartition: gpu\ngpus: 4\nsbatch:\n  licenses: {written}\n")
    assert found.sbatch == {"licenses": value} and type(found.sbatch["licenses"]) is type(value)


@pytest.mark.parametrize(
    ("written", "value"),
    [("on", "on"), ("3.10", "3.10"), ("true", "true"), ("", ""), ("010", "010"), ("$A/${B:-c}", "$A/${B:-c}")],
)
def test_variables_are_read_as_they_are_written(written: str, value: str) -> None:
    assert cluster(f"environment:\n  A: {written}\n").environment == {"A": value}


def test_braces_in_commands_are_the_shells() -> None:
    command = "export X=${SLURM_JOB_ID:-0}/${USER}"
    assert cluster(f"kind: slurm\nsetup:\n  - {command}\n").setup == (command,)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1440", 1440),
        ("24:00:00", 1440),
        ('"24:00:00"', 1440),
        ("0:00:01", 1),
        ("1:30:30", 91),
        ("2-0", 2880),
        ("1-12", 2160),
        ("1-12:30", 2190),
        ("1-00:00:00", 1440),
        ("3 * minutes", "3 * minutes"),
    ],
)
def test_a_wall_time_is_minutes_or_what_sbatch_takes(written: str, value: int | str) -> None:
    assert cluster(f"kind: slurm\nminutes: {written}").minutes == value


def test_a_key_that_is_left_empty_is_that_of_no_options() -> None:
    assert cluster("kind: slurm\nsbatch:\nenvironment:\n") == Cluster(kind="slurm", name="mine")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("minutes: 24:00", ("minutes", "24:00", "24:00:00")),
        ("minutes: 1:75:00", ("minutes", "1:75:00")),
        ("minutes: 1-24:00", ("minutes", "1-24:00")),
        ("minutes: true", ("minutes", "True", "int")),
        ("cpus: 1:30", ("cpus", "1:30", "90")),
        ("cpus: 010", ("cpus", "010", "8")),
        ("kind: slurm\nsbatch: {a: {b: c}}", ("sbatch: a", "mapping")),
        ('kind: slurm\nsbatch: {comment: "a\\nb"}', ("sbatch: comment", "one line")),
        ("environment: {A: [1, 2]}", ("environment: A", "[1, 2]")),
        ("kind: slurm\nmemory_per: core", ("memory_per", "'core'", "node, cpu, gpu, none")),
        ("kind: slurm\nmemory_per: gpu", ("memory_per", "gpus")),
        ("kind: slurm\nsbatch: {mem-per-cpu: 1G, mem-per-gpu: 1G}", ("mem-per-cpu", "mem-per-gpu")),
        ("kind: slurm\nmemory_per: none\nsbatch: {mem-per-cpu: 1G}", ("mem-per-cpu", "memory_per: none")),
        ("kind: slurm\nsbatch: {mem: 1G}", ("sbatch: mem", "memory_gb")),
        ("kind: slurm\nsbatch: {signal: USR1}", ("sbatch: signal", "signal_seconds")),
        ("signal_seconds: 0", ("signal_seconds", "at least 1")),
        ("signal_seconds: 99999", ("signal_seconds", "65535")),
    ],
)
def test_more_mistakes_are_named(text: str, words: tuple[str, ...]) -> None:
    test_mistakes_are_named(text, words)


def test_the_example_names_every_key() -> None:
    text = (configs_folder() / "clusters" / "example-gpu.yaml").read_text()
    keys = {field.name for field in fields(Cluster)} - {"name"}
    assert {key for key in keys if f"\n{key}:" not in text and f"\n# {key}:" not in text} == set()
