"""The sweep YAML: what each form means, and what a user is told about each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import simpleeval  # noqa: F401  (imported here, so that evaluating an expression imports nothing)

from gsq.config.presets import preset
from gsq.errors import UserError
from gsq.sweeps.planning.cells import make_plan
from gsq.sweeps.spec.sweep import Budget, Spec, load_spec


def spec(text: str, name: str = "sweep.yaml") -> Spec:
    """Read a YAML file of this text, after a line with the base."""
    path = Path(name)
    path.write_text("base: cpu-tiny\n" + text)
    return load_spec(path)


def cells(text: str) -> list[dict[str, Any]]:
    return list(spec(text).candidates())


def values(text: str) -> list[Any]:
    return [next(iter(cell.values())) for cell in cells(f"axes: {{{text}}}")]


# What the forms mean


def test_a_budget_is_part_of_the_plan_and_of_each_part_of_it() -> None:
    read = spec("axes: {groups: [1, 2]}\nbudget: {device_hours: 40, disk_gb: 0.5}")
    assert read.budget == Budget(device_hours=40, disk_gb=0.5)
    assert make_plan(read).cut(1).budget == read.budget
    assert spec("axes: {groups: [1, 2]}").budget == Budget()


def test_axes_give_every_combination_in_the_order_of_the_file() -> None:
    assert cells("axes: {downsample: [8, 4], groups: [1, 2]}") == [
        {"downsample": 8, "groups": 1},
        {"downsample": 8, "groups": 2},
        {"downsample": 4, "groups": 1},
        {"downsample": 4, "groups": 2},
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("groups: 4", [4]),
        ("codebook_size: {log2: [6, 10]}", [64, 128, 256, 512, 1024]),
        ("codebook_size: {log2: [6, 10], step: 2}", [64, 256, 1024]),
        ("codebook_size: {log2: [6, 10], step: 4}", [64, 1024]),
        ("codebook_size: {log2: [6, 9], step: 2}", [64, 256]),
        ("codebook_size: {log2: [6, 6]}", [64]),
        ("seed: {range: [0, 2]}", [0, 1, 2]),
        ("width: {range: [8, 64], step: 8}", [8, 16, 24, 32, 40, 48, 56, 64]),
        ("width: {range: [8, 63], step: 8}", [8, 16, 24, 32, 40, 48, 56]),
        ("learning_rate: [1e-4, 2e-3]", [1e-4, 2e-3]),
        ("quantizer.init: [spherical, uniform]", ["spherical", "uniform"]),
        ("loss.adversarial_weight: 0.5", [0.5]),
    ],
)
def test_values_of_an_axis(text: str, expected: list[Any]) -> None:
    found = values(text)
    assert found == expected
    assert [type(v) for v in found] == [type(v) for v in expected]


def test_logspace_has_equal_ratios_and_both_ends() -> None:
    assert values("learning_rate: {logspace: [1e-4, 1e-2, 5]}") == pytest.approx(
        [1e-4, 10**-3.5, 1e-3, 10**-2.5, 1e-2], rel=1e-12
    )
    assert values("learning_rate: {logspace: [4, 1, 3]}") == pytest.approx([4, 2, 1])


def test_zip_moves_axes_together() -> None:
    text = "zip: {downsample: [4, 8], latent_dim: [8, 16]}"
    assert cells(text) == [{"downsample": 4, "latent_dim": 8}, {"downsample": 8, "latent_dim": 16}]
    assert cells(text + "\naxes: {seed: [0, 1]}") == [
        {"seed": 0, "downsample": 4, "latent_dim": 8},
        {"seed": 0, "downsample": 8, "latent_dim": 16},
        {"seed": 1, "downsample": 4, "latent_dim": 8},
        {"seed": 1, "downsample": 8, "latent_dim": 16},
    ]


def test_zips_in_a_list_are_combined_with_each_other() -> None:
    text = """
zip:
  - {downsample: [4, 8], latent_dim: [8, 16]}
  - {groups: [1, 2], codebook_size: {log2: [6, 7]}}
"""
    assert cells(text) == [
        {"downsample": f, "latent_dim": d, "groups": g, "codebook_size": v}
        for f, d in ((4, 8), (8, 16))
        for g, v in ((1, 64), (2, 128))
    ]


def test_an_empty_zip_changes_nothing() -> None:
    assert cells("axes: {groups: [1, 2]}\nzip: [{}]") == cells("axes: {groups: [1, 2]}")


def test_cases_alone_and_beside_axes() -> None:
    text = "cases: [{groups: 8, latent_dim: 16}, {seed: 3}]"
    assert cells(text) == [{"groups": 8, "latent_dim": 16}, {"seed": 3}]
    assert cells(text + "\naxes: {groups: [1, 2]}") == [
        {"groups": 1},
        {"groups": 2},
        {"groups": 8, "latent_dim": 16},
        {"seed": 3},
    ]


def test_without_axes_the_base_is_the_one_cell() -> None:
    assert cells("") == [{}]


def test_set_takes_short_names_dotted_keys_and_sections() -> None:
    text = """
set:
  steps: 300
  model.channels: 32
  learning_rate: 1
  optimizer: {betas: [0.5, 0.9], ema_decay: 0.9}
  train: {batch_size: 4}
"""
    base = spec(text).base
    assert base.train.steps == 300 and base.train.batch_size == 4
    assert base.model.channels == 32
    assert base.optimizer.betas == (0.5, 0.9) and base.optimizer.ema_decay == 0.9
    assert base.optimizer.learning_rate == 1.0 and isinstance(base.optimizer.learning_rate, float)
    assert base.model.latent_dim == preset("cpu-tiny").model.latent_dim


def test_base_is_a_preset_or_a_file_beside_the_sweep() -> None:
    assert spec("").base == preset("cpu-tiny")
    Path("deep").mkdir()
    Path("deep/own.yaml").write_text("model: {latent_dim: 32}\ntrain: {steps: 7}\n")
    Path("own.yaml").write_text("train: {steps: 9}\n")
    Path("deep/sweep.yaml").write_text("base: own.yaml\nset: {batch_size: 3}\n")
    base = load_spec("deep/sweep.yaml").base
    assert (base.model.latent_dim, base.train.steps, base.train.batch_size) == (32, 7, 3)


def test_name_is_given_or_that_of_the_file() -> None:
    assert spec("", "first.yaml").name == "first"
    assert spec("name: other-1.b_2", "first.yaml").name == "other-1.b_2"


def test_constraints_are_one_text_or_a_list() -> None:
    assert [c.text for c in spec("where: groups < 3").where] == ["groups < 3"]
    assert [c.text for c in spec("where: [groups < 3, seed == 0]").where] == ["groups < 3", "seed == 0"]


def test_sweeps_that_ship_are_found_by_name_and_by_path_from_anywhere() -> None:
    by_name = load_spec("quickstart")
    assert by_name.name == "quickstart" and load_spec("sweeps/configs/quickstart.yaml") == by_name
    Path("quickstart").write_text("name: mine\nbase: cpu-tiny\n")
    assert load_spec("quickstart").name == "mine"


# What a user is told

MISTAKES: list[tuple[str, str, tuple[str, ...]]] = [
    ("unknown key", "axis: {groups: [1]}", ("sweep.yaml", "'axis'", "did you mean 'axes'", "where")),
    ("unknown axis", "axes: {latent_dims: [8]}", ("axes", "'latent_dims'", "did you mean", "latent_dim", "groups")),
    ("unknown dotted axis", "axes: {model.latent_dims: [8]}", ("'model.latent_dims'", "model.latent_dim'")),
    ("key of another section", "axes: {train.groups: [1]}", ("'train.groups'", "did you mean 'quantizer.groups'")),
    ("unknown zip axis", "zip: {grups: [1]}", ("zip", "'grups'", "did you mean 'groups'")),
    ("unknown case key", "cases: [{grups: 1}]", ("cases", "'grups'", "did you mean 'groups'")),
    ("text for a number", "axes: {groups: [1, two]}", ("groups", "'two'", "int")),
    (
        "text for a number, constrained",
        "axes: {groups: [two]}\nwhere: latent_dim % groups == 0",
        ("groups=two", "int", "str"),
    ),
    ("fraction for a count", "axes: {groups: [1.5]}", ("groups", "1.5", "int")),
    ("yes for a count", "axes: {groups: [true]}", ("groups", "True", "int")),
    ("null for a count", "axes: {groups: [null]}", ("groups", "None", "int")),
    ("text for a rate", "axes: {learning_rate: [fast]}", ("learning_rate", "'fast'", "float")),
    ("list for a count", "axes: {groups: [[1, 2]]}", ("groups", "[1, 2]", "int")),
    ("value that is not allowed", "axes: {downsample: [3]}", ("downsample", "3", "2, 4, 8, 16, 32")),
    (
        "nearest choice",
        "axes: {quantizer.init: [spherica]}",
        ("quantizer.init", "'spherica'", "did you mean 'spherical"),
    ),
    ("codebook of one row", "axes: {codebook_size: [1]}", ("codebook_size", "1", "at least 2")),
    ("empty list", "axes: {groups: []}", ("axes", "groups", "empty")),
    ("axes as a list", "axes: [groups]", ("axes", "['groups']", "mapping")),
    ("unequal zip", "zip: {groups: [1, 2], seed: [0]}", ("zip", "'groups': 2", "'seed': 1")),
    ("zip as text", "zip: groups", ("zip", "'groups'", "mapping")),
    ("axis in axes and zip", "axes: {groups: [1]}\nzip: {groups: [2]}", ("'groups'", "twice")),
    ("axis in two zips", "zip: [{seed: [2]}, {seed: [1]}]", ("'seed'", "twice")),
    ("axis under two names", "axes: {groups: [1], quantizer.groups: [2]}", ("'quantizer.groups'", "twice")),
    ("axis twice in one mapping", "axes: {groups: [1], groups: [2]}", ("groups", "duplicate", "line 2")),
    ("key twice in a case", "cases: [{groups: 1, quantizer.groups: 2}]", ("cases", "'quantizer.groups'", "twice")),
    ("key twice in set", "set: {steps: 3, train: {steps: 4}}", ("set", "train.steps", "twice")),
    ("huge range", "axes: {seed: {range: [0, 1000000000]}}", ("seed", "1,000,000,001", "1,000,000")),
    ("huge powers", "axes: {codebook_size: {log2: [1, 1000000]}}", ("codebook_size", "2^1000000", "62")),
    ("huge logspace", "axes: {learning_rate: {logspace: [1, 2, 1000000000]}}", ("learning_rate", "1,000,000")),
    ("huge grid", "axes: {seed: {range: [1, 9999]}, steps: {range: [1, 9999]}}", ("9999 x 9999", "99,980,001")),
    ("huge number", f"axes: {{seed: [{'9' * 5000}]}}", ("sweep.yaml", "4300 digits")),
    ("deep list", f"axes: {{seed: {'[' * 900}1{']' * 900}}}", ("sweep.yaml", "nested too deeply")),
    ("huge name", f"name: {'n' * 300}", ("name", "300 bytes", "200")),
    ("short helper", "axes: {codebook_size: {log2: [6]}}", ("codebook_size", "[6]", "{log2: [a, b]}")),
    ("helper backwards", "axes: {codebook_size: {log2: [10, 6]}}", ("codebook_size", "[10, 6]", "above")),
    ("helper step 0", "axes: {codebook_size: {log2: [6, 10], step: 0}}", ("codebook_size", "'step': 0", "step: n")),
    ("helper of words", "axes: {codebook_size: {log2: [a, b]}}", ("codebook_size", "'a'", "{log2: [a, b]}")),
    ("negative exponent", "axes: {codebook_size: {log2: [-1, 2]}}", ("codebook_size", "-1", "negative")),
    ("helper of a scalar", "axes: {seed: {range: 3}}", ("seed", "3", "{range: [a, b]}")),
    ("fractions in a range", "axes: {seed: {range: [0.5, 3]}}", ("seed", "0.5", "{range: [a, b]}")),
    ("logspace of two", "axes: {learning_rate: {logspace: [1, 2]}}", ("learning_rate", "[1, 2]", "n values")),
    ("logspace from 0", "axes: {learning_rate: {logspace: [0, 1, 3]}}", ("learning_rate", "[0, 1, 3]", "positive")),
    ("logspace with step", "axes: {learning_rate: {logspace: [1, 2, 3], step: 2}}", ("learning_rate", "'step': 2")),
    ("unknown helper", "axes: {seed: {linspace: [0, 1, 3]}}", ("seed", "linspace", "log2", "range", "logspace")),
    ("helper and more", "axes: {seed: {range: [0, 1], by: 2}}", ("seed", "'by': 2", "range")),
    ("two helpers", "axes: {seed: {range: [0, 1], log2: [1, 2]}}", ("seed", "log2", "range")),
    ("set of a wrong type", "set: {steps: many}", ("set", "train.steps", "many")),
    ("set to nothing", "set: {steps: null}", ("set", "train.steps")),
    ("set of an unknown key", "set: {stepz: 3}", ("set", "'stepz'", "did you mean 'steps'")),
    ("unknown key in a section", "set: {model: {latent_dims: 8}}", ("set", "model.latent_dims", "'latent_dim'")),
    ("section as a value", "set: {model: 3}", ("set", "'model'")),
    ("set as a list", "set: [steps]", ("set", "['steps']", "mapping")),
    ("impossible set", "set: {groups: 3}", ("groups", "3", "latent_dim 16", "1, 2, 4, 8, 16")),
    ("image size", "set: {image_size: 36, downsample: 8}", ("image_size", "36", "downsample 8", "32")),
    ("cases as a mapping", "cases: {groups: 1}", ("cases", "list of mappings")),
    ("cases of numbers", "cases: [1]", ("cases", "list of mappings")),
    ("where as a number", "where: 3", ("where", "3", "expression")),
    ("where with numbers", "where: [1]", ("where", "[1]", "expression")),
    (
        "unknown name in where",
        "where: latent_dims == 8",
        ("where", "'latent_dims'", "did you mean 'latent_dim'", "groups"),
    ),
    ("call in where", "where: max(groups, 2) == 2", ("where", "'max(groups, 2)'", "call", "not allowed")),
    ("attribute in where", "where: groups.real == 1", ("where", "'groups.real'", "not allowed", "arithmetic")),
    ("dotted key in where", "where: quantizer.groups == 1", ("where", "'quantizer.groups'", "not allowed")),
    ("lambda in where", "where: 'lambda: groups'", ("where", "'lambda: groups'", "not allowed")),
    ("comprehension", "where: '[g for g in [1]]'", ("where", "'[g for g in [1]]'", "not allowed")),
    ("subscript", "where: '[1, 2][groups]'", ("where", "not allowed")),
    ("odd operator", "where: groups & 2", ("where", "groups & 2", "'BitAnd'", "not allowed")),
    ("assignment in where", "where: groups = 2", ("where", "groups = 2")),
    ("syntax of where", "where: groups ==", ("where", "groups ==", "column")),
    ("division by zero in where", "where: groups % 0 == 0", ("where", "groups % 0", "zero")),
    ("comparison of unlike things", "where: quantizer < 3", ("where", "quantizer < 3", "str")),
    ("name with a slash", "name: a/b", ("name", "'a/b'", "letters")),
    ("name of dots", "name: ..", ("name", "'..'", "letters")),
    ("name that is a number", "name: 3", ("name", "3", "letters")),
    ("name that is empty", "name: ''", ("name", "''", "letters")),
    ("unknown limits", "budget: {hour: 3, gpus: 1}", ("budget", "'hour' (did you mean 'hours'?)", "'gpus'", "disk_gb")),
    ("budget as a number", "budget: 3", ("budget", "3", "mapping", "device_hours, hours, disk_gb, cells")),
    ("limit that is no number", "budget: {hours: long}", ("budget: hours", "'long'", "a number above 0")),
    ("limit of nothing", "budget: {device_hours: 0}", ("budget: device_hours", "0 is not", "above 0")),
    ("part of a cell", "budget: {cells: 2.5}", ("budget: cells", "2.5", "a whole number")),
    ("limit that is a yes", "budget: {cells: yes}", ("budget: cells", "True")),
    ("no cells by where", "axes: {groups: [1, 2]}\nwhere: groups > 2", ("sweep", "empty", "2 by 'groups > 2'")),
]


@pytest.mark.parametrize(("text", "words"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_mistakes_are_named(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        make_plan(spec(text))
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: x", ("base", "missing", "cpu-tiny", "paper-f8")),
        ("base: cpu-tinny", ("base", "'cpu-tinny'", "did you mean 'cpu-tiny'", "paper-f8")),
        ("base: 3", ("base", "3", "preset")),
        ("base: mine.yaml", ("mine.yaml", "no such file")),
        ("base: bad-section.yaml", ("bad-section.yaml", "'modle'", "did you mean 'model'")),
        ("base: bad-key.yaml", ("bad-key.yaml", "model.latent", "'latent_dim'")),
        ("base: bad-type.yaml", ("bad-type.yaml", "model.latent_dim", "wide")),
        ("- base", ("sweep.yaml", "mapping", "list")),
        ("just text", ("sweep.yaml", "'just text'", "a sweep has name", "axes")),
        ("3", ("sweep.yaml", "int")),
        ("base: cpu-tiny\naxes: {groups: [1, 2}\n", ("sweep.yaml", "line 2, column 21", "YAML")),
        ("base: cpu-tiny\naxes:\n  groups: [1]\n seed: [2]\n", ("sweep.yaml", "line 4, column 2", "YAML")),
        ("base: 'cpu-tiny\n", ("sweep.yaml", "line 2", "YAML")),
        ("base: cpu-tiny\n\tset: 1\n", ("sweep.yaml", "line 2, column 1", "YAML")),
    ],
)
def test_mistakes_in_the_file_are_named(text: str, words: tuple[str, ...]) -> None:
    Path("bad-section.yaml").write_text("modle: {latent_dim: 8}")
    Path("bad-key.yaml").write_text("model: {latent: 8}")
    Path("bad-type.yaml").write_text("model: {latent_dim: wide}")
    Path("sweep.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_spec("sweep.yaml")
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message


def test_a_file_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(UserError, match=r"quickstrt: .*'quickstart'\?.*quickstart"):
        load_spec("quickstrt")
    with pytest.raises(UserError, match=r"nowhere/x\.yaml: no such sweep file"):
        load_spec("nowhere/x.yaml")


def test_a_folder_or_a_binary_file_is_no_sweep() -> None:
    Path("folder.yaml").mkdir()
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    for name in ("folder.yaml", "binary.yaml"):
        with pytest.raises(UserError, match=name):
            load_spec(name)


def test_the_file_name_must_do_as_a_name_unless_one_is_given() -> None:
    with pytest.raises(UserError, match="'my sweep' must be letters"):
        spec("", "my sweep.yaml")
    assert spec("name: mine", "my sweep.yaml").name == "mine"
