"""Types of config values: the same check, whoever gives them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gsq.cli.main import app
from gsq.config.overrides import KEYS, load_config, override, read_value, to_dict
from gsq.config.presets import preset
from gsq.config.values import checked, key_types
from gsq.errors import UserError
from gsq.sweeps.planning.cells import make_plan
from gsq.sweeps.spec.sweep import load_spec

# Key, value, and what the message names as the fix.
WRONG: list[tuple[str, Any, str]] = [
    ("quantizer.groups", "4", "4 without quotes"),
    ("quantizer.groups", 4.0, "write 4"),
    ("quantizer.groups", 4.5, "whole number"),
    ("quantizer.groups", True, "whole number"),
    ("quantizer.groups", None, "leave the key out"),
    ("quantizer.groups", "many", "whole number"),
    ("optimizer.learning_rate", "1e-3", "1e-3 without quotes"),
    ("optimizer.learning_rate", True, "a number"),
    ("model.attention", "true", "true without quotes"),
    ("model.attention", 1, "true or false"),
    ("train.precision", 16, "in quotes: '16'"),
    ("discriminator.kind", False, "in quotes"),
    ("evaluation.features", None, "leave the key out"),
    ("model.channel_multipliers", 4, "[4]"),
    ("model.channel_multipliers", [1, "2", 4], "2 without quotes"),
    ("model.channel_multipliers", [1, 2.0, 4], "write 2"),
    ("optimizer.betas", [0.5, "0.9"], "0.9 without quotes"),
    ("discriminator.augment", [1], "in quotes: '1'"),
]


def of_set(key: str, value: Any, folder: Path) -> object:
    return load_spec({"name": "s", "base": "cpu-tiny", "set": {key: value}})


def of_a_section_in_set(key: str, value: Any, folder: Path) -> object:
    section, name = key.split(".")
    return load_spec({"name": "s", "base": "cpu-tiny", "set": {section: {name: value}}})


def of_axes(key: str, value: Any, folder: Path) -> object:
    return make_plan(load_spec({"name": "s", "base": "cpu-tiny", "axes": {key: [value]}}))


def of_cases(key: str, value: Any, folder: Path) -> object:
    return make_plan(load_spec({"name": "s", "base": "cpu-tiny", "cases": [{key: value}]}))


def of_a_file(key: str, value: Any, folder: Path) -> object:
    section, name = key.split(".")
    (folder / "base.yaml").write_text(json.dumps({section: {name: value}}))
    return load_spec({"name": "s", "base": str(folder / "base.yaml")})


def of_the_command_line(key: str, value: Any, folder: Path) -> object:
    done = CliRunner().invoke(app, ["train", "cpu-tiny", "--dry-run", "-s", f"{key}={json.dumps(value)}"])
    if isinstance(done.exception, UserError):
        raise done.exception
    if done.exit_code:
        raise UserError(done.output)
    return done


SOURCES = [of_set, of_a_section_in_set, of_axes, of_cases, of_a_file, of_the_command_line]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("key", "value", "fix"), WRONG)
def test_a_value_of_another_type_is_refused_alike(
    source: Callable[[str, Any, Path], object], key: str, value: Any, fix: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as raised:
        source(key, value, tmp_path)
    if source is of_the_command_line and key_types()[key][0] is str and value is not None:
        # A text there, whatever it looks like, and none of those that are allowed.
        assert key in str(raised.value) and repr(json.dumps(value)).strip("'") in str(raised.value)
        return
    words = " ".join(str(raised.value).split())
    wrong = value[1 if len(value) > 1 else 0] if isinstance(value, list) else value
    assert key.split(".")[1] in words and repr(wrong) in words and fix in words, words


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optimizer.learning_rate", "1e-3", 1e-3),
        ("optimizer.learning_rate", "1", 1.0),
        ("model.channel_multipliers", "[1, 2, 4]", (1, 2, 4)),
        ("model.attention", "true", True),
        ("evaluation.features", "inception", "inception"),
        ("data.path", "'2024'", "2024"),
        ("data.path", "2024", "2024"),
        ("data.path", "1e3", "1e3"),
        ("data.path", "no", "no"),
        ("data.path", "a=b", "a=b"),
    ],
)
def test_the_command_line_reads_values_as_a_file_does(key: str, text: str, value: Any) -> None:
    found = checked(key, read_value(key, text), key)
    assert found == value and type(found) is type(value)


def test_a_value_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(UserError, match=r"--set: groups=\[1, 2"):
        read_value("groups", "[1, 2")


def test_every_key_has_a_type_that_its_value_passes() -> None:
    assert set(key_types()) == set(KEYS)
    for name in ("cpu-tiny", "authors-gan-128"):
        for section, values in to_dict(preset(name)).items():
            for key, value in values.items():
                checked(f"{section}.{key}", value, name)


def test_whole_numbers_serve_for_floats() -> None:
    rate: Any = 1
    for config in (load_config({"optimizer": {"eps": rate}}), override(preset("cpu-tiny"), {"optimizer.eps": rate})):
        assert config.optimizer.eps == 1.0 and type(config.optimizer.eps) is float


def test_a_finished_run_is_read_as_it_was_written() -> None:
    values = to_dict(preset("cpu-tiny"))
    values["quantizer"]["groups"] = "4"
    assert load_config(values, finished=True).quantizer.groups == 4
    with pytest.raises(UserError, match="4 without quotes"):
        load_config(values)


def test_what_refers_to_another_key_is_left_to_be_resolved() -> None:
    assert load_config({"model": {"channels": 64, "latent_dim": "${channels}"}}).model.latent_dim == 64


@pytest.mark.parametrize("value", [False, 3, ["patchgan"]])
def test_a_word_of_a_few_is_refused_with_all_of_them(value: Any) -> None:
    with pytest.raises(UserError) as caught:
        override(preset("cpu-tiny"), {"discriminator.kind": value}, "set")
    assert all(word in str(caught.value) for word in ("discriminator.kind", repr(value), "patchgan, stylegan, dino"))
