"""Parts of a user's own by import path: found, checked, and in signatures and protocols by their source."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gsq.config.flops import cost
from gsq.config.overrides import Overrides, differences, from_dict, load_config, override, to_dict
from gsq.config.parts import changed_options, is_path, option_value, options_of, source, source_sha256, sources_text
from gsq.config.presets import preset
from gsq.config.run import RunConfig
from gsq.config.signature import signature
from gsq.data.sources import manifest
from gsq.errors import UserError
from gsq.evaluation.protocol import protocol
from gsq.files import write_json
from gsq.records.folder import RunFolder
from gsq.runs.provenance import environment
from gsq.runs.reevaluate import DamagedRun, read_finished
from gsq.sweeps.spec.sweep import load_spec

BASE = preset("cpu-tiny")
QUANTIZER, MODEL, LOSS = (f"gsq.templates.{name}:Mine" for name in ("quantizer", "model", "loss"))
ALL = {
    "quantizer.kind": QUANTIZER,
    "model.kind": MODEL,
    "discriminator.kind": "gsq.templates.discriminator:Mine",
    "loss.perceptual": LOSS,
    "data.kind": "gsq.templates.data:mine",
    "evaluation.features": "gsq.templates.features:mine",
    "evaluation.metrics": ["gsq.templates.metric:Mine"],
}

Module = Callable[..., str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """module(name, text) writes a module that can be imported, as new each time; returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, text: str) -> str:
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for known in [one for one in sys.modules if one.partition(".")[0] == name.partition(".")[0]]:
            monkeypatch.delitem(sys.modules, known)
        importlib.invalidate_caches()
        return name

    return write


def sign(config: RunConfig) -> str:
    return signature(config, "f00d", {})


@pytest.mark.parametrize(
    ("text", "truth"),
    [("a:B", True), ("a.b:C", True), ("gsq", False), ("a.b", False), (":B", False), ("a:", False), ("a-b:C", False)],
)
def test_what_names_a_part(text: str, truth: bool) -> None:
    assert is_path(text) is truth


def test_each_part_is_taken_and_the_run_can_be_read_back() -> None:
    config = override(BASE, ALL)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert Overrides(BASE).restore(json.loads(json.dumps(differences(config, BASE)))) == config
    assert set(json.loads(sources_text(config) or "")) == set(ALL)
    assert sources_text(BASE) is None


def test_options_are_keys_of_their_own_and_can_be_axes() -> None:
    set_at_once = override(BASE, {"quantizer.kind": QUANTIZER, "quantizer.options.temperature": 2})
    from_a_file = load_config({"quantizer": {"kind": QUANTIZER, "options": {"temperature": 2.0}}}, BASE)
    assert set_at_once.quantizer.options == from_a_file.quantizer.options == {"temperature": 2}
    assert sign(set_at_once) == sign(from_a_file)
    default = override(BASE, {"quantizer.kind": QUANTIZER})
    assert sign(override(default, {"quantizer.options.temperature": 1})) == sign(default) != sign(set_at_once)


@pytest.mark.parametrize("last", [False, True])
def test_options_in_a_sweep_add_up_however_they_are_written(last: bool) -> None:
    one, two = {"model.options.rate": 2}, {"model": {"kind": "own_parts:WithOptions", "options": {"width": 3}}}
    given = two | one if last else one | two
    assert load_spec({"name": "s", "base": "cpu-tiny", "set": given}).base.model.options == {"width": 3, "rate": 2}


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"quantizer.kind": QUANTIZER, "quantizer.options.temprature": 1}, ("temprature", "'temperature'")),
        ({"quantizer.kind": QUANTIZER, "quantizer.options.temperature": "hot"}, ("options.temperature", "'hot'")),
        ({"quantizer.kind": QUANTIZER, "quantizer.options.temperature": -1}, ("temperature", "-1", "above 0")),
        ({"quantizer.options.temperature": 1}, ("quantizer.options", "'gsq'")),
        ({"quantizer.kind": "gsq.templates.quantizer:Mein"}, ("quantizer.kind", "Mein", "'Mine'")),
        ({"quantizer.kind": "no_such_module:Mine"}, ("quantizer.kind", "no_such_module")),
        ({"quantizer.kind": QUANTIZER, "quantizer.lookup_norm": "l2"}, ("quantizer.lookup_norm", "'l2'")),
        ({"model.kind": "unet"}, ("model.kind", "'unet'", "autoencoder")),
        ({"evaluation.metrics": ["sharpness"]}, ("evaluation.metrics", "'sharpness'")),
        ({"quantizer.kind": "tests.gsq_tests.own_parts:Nothing"}, ("quantizer.kind", "Nothing")),
    ],
)
def test_what_is_refused(values: dict[str, Any], names: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as refused:
        override(BASE, values)
    assert all(name in str(refused.value) for name in names), refused.value


BROKEN = """
from gsq.data.manifest import build_manifest
from gsq.templates.quantizer import Mine

class NoQuantizer: pass
class Unfinished(Mine):
    def __init__(self, latent_dim): raise RuntimeError("no luck")
def empty(config): return build_manifest("mine", [], [])
def absent(config): return open("/no/such/list.txt")
def ends(config): raise SystemExit(0)
"""


@pytest.mark.parametrize(
    ("key", "name", "names"),
    [
        ("quantizer.kind", "NoQuantizer", ("gsq.quantizers.Quantizer",)),
        ("quantizer.kind", "Unfinished", ("no luck", "broken_parts.py, line 7")),
        ("model.kind", "NoQuantizer", ("'encoder'",)),
        ("data.kind", "empty", ("0 training", "at least 1 and 2")),
        ("data.kind", "absent", ("/no/such/list.txt", "broken_parts.py, line 9")),
        ("data.kind", "ends", ("SystemExit", "broken_parts.py, line 10")),
    ],
)
def test_a_part_that_fails_is_named_with_its_line(key: str, name: str, names: tuple[str, ...], module: Module) -> None:
    path = f"{module('broken_parts', BROKEN)}:{name}"
    config = override(BASE, {key: path})
    with pytest.raises(UserError) as refused:
        manifest(config.data) if key == "data.kind" else cost(config)
    assert all(one in str(refused.value) for one in (key, path, *names)), refused.value


def test_a_module_that_ends_the_program_is_refused(module: Module) -> None:
    path = f"{module('a_script', 'import sys; sys.exit(2)')}:Mine"
    with pytest.raises(UserError, match=r"quantizer\.kind: 'a_script:Mine'.*__main__"):
        override(BASE, {"quantizer.kind": path})


def test_options_of_every_type_are_checked() -> None:
    part = ("own_parts:WithOptions", "model.kind")
    assert options_of(*part, {}) == {"width": 8, "rate": 0.5, "name": "plain", "sharp": False, "levels": (1, 2)}
    assert changed_options(*part, {"rate": 1, "width": 8}) == {"rate": 1.0}
    for wrong in ({"width": 1.5}, {"rate": "1"}, {"name": 3}, {"sharp": 1}, {"levels": 2}):
        with pytest.raises(UserError, match=rf"model.options.{next(iter(wrong))}"):
            options_of(*part, wrong)


def test_the_source_of_what_trains_is_signed_and_that_of_a_metric_is_not(module: Module) -> None:
    text = "from gsq.templates.{0} import *\nfrom gsq.templates.{0} import Mine\n"

    def configs(comment: str) -> tuple[RunConfig, RunConfig]:
        quantizer = module("own_vq", text.format("quantizer") + comment)
        metric = module("own_metric", text.format("metric") + comment)
        return (
            override(BASE, {"quantizer.kind": f"{quantizer}:Mine"}),
            override(BASE, {"evaluation.metrics": [f"{metric}:Mine"]}),
        )

    def identities() -> tuple[str, ...]:
        files = manifest(BASE.data)
        return (*map(sign, found), *(protocol(one.evaluation, one.data, files).hash for one in found))

    found = configs("")
    before = identities()
    assert before == identities()
    found = configs("# changed\n")
    after = identities()
    assert [one != other for one, other in zip(before, after, strict=True)] == [True, False, False, True]
    assert after[1] == sign(BASE)


def test_weights_are_not_used_with_other_code_than_trained_them(module: Module, tmp_path: Path) -> None:
    text = "from gsq.templates.quantizer import Mine\n"
    path = f"{module('own_codes', text)}:Mine"
    config, run = override(BASE, {"quantizer.kind": path}), RunFolder.of(tmp_path, "abcdef123456")
    run.write_config(to_dict(config))
    attempt = run.new_attempt().path
    (attempt / "model.safetensors").touch()
    write_json(attempt / "env.json", environment(config, "cpu"))
    assert read_finished(run.path)[0] == config
    before = source_sha256(path)[:12]
    module("own_codes", text + "Mine.scale = 2\n")
    with pytest.raises(DamagedRun, match=rf"quantizer\.kind: was trained with {path}@{before}.*{path}@.*PYTHONPATH"):
        read_finished(run.path)


def test_features_of_before_their_source_was_hashed_still_count(module: Module) -> None:
    name = module("own_features", "from gsq.templates.features import mine\n")
    files, config = manifest(BASE.data), override(BASE, {"evaluation.features": f"{name}:mine"})
    rules = protocol(config.evaluation, config.data, files)
    assert rules.features_source == source_sha256(f"{name}:mine")[:12]
    assert rules.earlier != rules.hash


def test_the_source_is_the_package_or_the_file_with_what_it_imports_beside_it(module: Module, tmp_path: Path) -> None:
    module("alone_helper", "scale = 1.0\n")
    module("not_imported", "")
    module("alone", "import torch\nimport gsq\nfrom alone_helper import scale\nclass Mine: ...\n")
    assert source("alone:Mine") == (tmp_path, (Path("alone.py"), Path("alone_helper.py")))
    module("pack.helper", "")
    module("pack.deep.part", "class Mine: ...\n")
    module("pack.__init__", "")
    root, files = source("pack.deep.part:Mine")
    assert root == tmp_path
    assert {file.as_posix() for file in files} == {"pack/__init__.py", "pack/helper.py", "pack/deep/part.py"}
    assert source(QUANTIZER)[1] == (Path("gsq/templates/quantizer.py"),)


def test_costs_are_those_of_the_part() -> None:
    from gsq.models.autoencoder import Autoencoder
    from gsq.models.discriminators import build_discriminator

    config = override(BASE, ALL)
    found, discriminator = cost(config), build_discriminator(config.discriminator, config.data.image_size)
    assert discriminator is not None
    assert found.parameters == sum(p.numel() for p in Autoencoder(config).parameters())
    assert found.discriminator_parameters == sum(p.numel() for p in discriminator.parameters())
    wider = cost(override(config, {"model.options.width": 64}))
    assert wider.generator_flops > 1.5 * found.generator_flops
    with pytest.raises(UserError, match=r"model.kind.*own_parts:WithOptions.encoder.*NotImplementedError"):
        cost(override(BASE, {"model.kind": "own_parts:WithOptions"}))


def test_an_option_by_its_dotted_key() -> None:
    config = override(BASE, {"quantizer.kind": QUANTIZER})
    assert option_value(config, "quantizer.options.temperature") == 1.0
    with pytest.raises(UserError, match=r"quantizer.options.heat.*temperature"):
        option_value(config, "quantizer.options.heat")
    with pytest.raises(UserError, match=r"quantizer.kind is 'gsq'.*package.module:Name"):
        option_value(BASE, "quantizer.options.temperature")
