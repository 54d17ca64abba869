"""The sweep file that gsq init writes loads, fits its schema, and is never half-written."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import typer
import yaml
from PIL import Image
from typer.testing import CliRunner

from gsq.cli.init import init_command
from gsq.errors import UserError
from gsq.sweeps.planning.cells import plan
from gsq.sweeps.spec.starting import SCHEMA_FILE
from gsq.sweeps.spec.sweep import load_spec


@pytest.fixture
def init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs ``gsq init ARGS`` in a folder that has one image in images/, and a shard in shards/."""
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    Image.new("RGB", (16, 16)).save("images/a.png")
    Path("shards").mkdir()
    Path("shards/train-0.tar").write_bytes(b"")
    app = typer.Typer()
    app.command()(init_command)
    return lambda *args: CliRunner().invoke(app, list(args))


def test_the_file_loads_and_plans_and_fits_the_schema_of_its_first_line(init) -> None:
    done = init("a/mine.yaml", "--axis", "groups=1,2", "--axis", "codebook_size={log2: [6, 8]}", "--seeds", "3")
    assert done.exit_code == 0, done.output
    text = Path("a/mine.yaml").read_text()
    schema = Path("a", text.splitlines()[0].partition("$schema=")[2])
    assert schema.name == SCHEMA_FILE
    jsonschema.Draft7Validator(json.loads(schema.read_text())).validate(yaml.safe_load(text))
    spec = load_spec("a/mine.yaml")
    assert spec.name == "mine" and spec.axes == {"groups": [1, 2], "codebook_size": [64, 128, 256], "seed": [0, 1, 2]}
    assert len(plan(spec).cells) == 18
    assert all(f"gsq {verb} a/mine.yaml" in done.output for verb in ("data", "plan", "run"))


@pytest.mark.parametrize(("folder", "kind"), [("images", "image_folder"), ("shards", "webdataset")])
def test_a_folder_is_named_with_its_kind(init, folder: str, kind: str) -> None:
    assert init("mine.yaml", "--data", folder, "--steps", "20", "--preset", "cpu-small").exit_code == 0
    base = load_spec("mine.yaml").base
    assert (base.data.kind, base.data.path, base.train.steps) == (kind, str(Path(folder).resolve()), 20)
    assert base.data.image_size == 64


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x.yaml", "--data", "nowhere"], ("nowhere", "no such folder")),
        (["x.yaml", "--data", "."], ()),
        (["x.yaml", "--axis", "group=1"], ("group", "groups")),
        (["x.yaml", "--axis", "groups"], ("groups", "KEY=VALUES")),
        (["x.yaml", "--axis", "groups=1", "--axis", "groups=2"], ("groups", "twice")),
        (["x.yaml", "--axis", "codebook_size={log3: [1, 2]}"], ("log3", "log2")),
        (["x.yaml", "--preset", "cpu-tinny"], ("cpu-tinny", "cpu-tiny")),
        (["my sweep.yaml"], ("my sweep",)),
        (["x.txt"], ("x.txt", ".yaml")),
    ],
)
def test_wrong_answers_write_nothing(init, arguments: list[str], words: tuple[str, ...]) -> None:
    if arguments[-1] == ".":
        Path("empty").mkdir()
        arguments = [*arguments[:-1], "empty"]
    before = sorted(Path().rglob("*"))
    done = init(*arguments)
    assert isinstance(done.exception, UserError) and all(word in str(done.exception) for word in words), done.exception
    assert sorted(Path().rglob("*")) == before


def test_a_file_that_is_there_stays(init) -> None:
    Path("mine.yaml").write_text("base: cpu-tiny\n")
    done = init("mine.yaml")
    assert isinstance(done.exception, UserError) and Path("mine.yaml").read_text() == "base: cpu-tiny\n"
