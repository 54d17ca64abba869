"""What the READMEs say is true: commands parse, snippets load, and links and paths lead somewhere."""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import os
import pkgutil
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main
import yaml
from rich.console import Console
from test_imports import WINGS
from typer._click.exceptions import MissingParameter, UsageError
from typer.core import TyperGroup
from typer.testing import CliRunner

from gsq.analysis.laws.named import get_law
from gsq.analysis.tables.table import as_asked, load_results, results_table
from gsq.cli.compose import _print_frame
from gsq.cli.main import app
from gsq.config.axes import CONFIGURATION
from gsq.config.overrides import config_key
from gsq.config.parts import is_path
from gsq.config.run import SECTIONS
from gsq.sweeps.running.snapshot import source_files
from gsq.sweeps.spec import search_space, sweep
from gsq.sweeps.spec.cluster import Cluster, load_cluster
from gsq.sweeps.spec.shipped import configs_folder, find_file
from gsq.sweeps.spec.sweep import load_spec
from gsq.templates.write import write_part

REPOSITORY = Path(__file__).resolve().parents[2]
READMES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for pattern in ("README.md", "*/README.md", "results/*/README.md")
    for path in REPOSITORY.glob(pattern)
)
LONGEST = 150
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Names that stand for the reader's own: a first sweep, what commands of the READMEs write, shards of a data set.
EXAMPLES = (
    "my",
    "my_vq",
    *("groups", "widths", "optimizer", "more", "again", "runs", "fit", "wandb", "my-cluster", "big", "abcdef123456"),
    *("train-00000-of-00010", "x-val-0001", "isoflop", "rates", "pictures", "peers"),
)
# Columns of the tables that laws of the READMEs are about.
LAW_COLUMNS = (*CONFIGURATION, "bits_per_token", "images_seen", "loss", "val/loss", "N", "D")
# Options of sbatch and keys of other people's programs, which no key of gsq's is compared with.
FOREIGN = ("exclusive",)


def text_of(readme: str) -> str:
    return (REPOSITORY / readme).read_text()


def blocks(text: str, language: str) -> list[str]:
    """Code blocks of a language."""
    return [body for found, body in FENCE.findall(text) if found == language]


def inline(text: str) -> list[str]:
    """Code between backticks outside of blocks, each on one line."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCE.sub("", text))]


def commands(text: str) -> list[str]:
    """The lines of shell blocks, without their comments, and commands between backticks."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines() if line.strip()]
    programs = ("gsq ", "make ", "torchrun ")
    return [*lines, *(code for code in inline(text) if code.startswith(programs))]


def words_of(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def parse(words: Sequence[str]) -> None:
    """Raise UsageError unless ``gsq WORDS`` is a command with options that it knows. Runs nothing."""
    command, rest = typer.main.get_command(app), list(words)
    name = "gsq"
    while isinstance(command, TyperGroup) and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name not in command.commands:
            raise UsageError(f"no command {name}")
        command = command.commands[name]
    # Options such as --help print something and leave.
    with contextlib.suppress(typer.Exit):
        command.make_context(name, rest)


def law_words(words: Sequence[str]) -> Iterator[str]:
    for option, value in itertools.pairwise(words):
        if option == "--law":
            yield value


def test_the_first_page_is_short_and_every_folder_that_one_browses_has_one() -> None:
    assert len(text_of("README.md").splitlines()) <= LONGEST
    assert {"README.md", *(f"{room}/README.md" for room in (*WINGS, "results", "notebooks"))} <= set(READMES)


@pytest.mark.parametrize("readme", READMES)
def test_every_command_parses(readme: str) -> None:
    text = text_of(readme)
    targets = re.findall(r"^(\w+):.*##", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    complete = {line for block in blocks(text, "sh") for line in block.splitlines()}
    for command in commands(text):
        words = words_of(command)
        if words[:1] == ["make"]:
            assert words[1] in targets, command
        if "gsq.cli" in words:
            words = ["gsq", *words[words.index("gsq.cli") + 1 :]]
        if words[:1] != ["gsq"]:
            continue
        words = ["plan" if word == "VERB" else word for word in words]
        try:
            parse(words[1:])
        except MissingParameter:
            # A sentence may speak of a verb without its arguments.
            assert command not in complete, command
        for law in law_words(words):
            outputs = ("train_loss", "val_loss") if "[out]" in law else None
            assert get_law(law, LAW_COLUMNS, target=outputs), command


@pytest.mark.parametrize(
    "words", [["planet"], ["plan", "--gpus", "h100"], ["run"], ["weights", "get"], ["fit", "--lawz"]]
)
def test_a_wrong_command_is_found(words: list[str]) -> None:
    with pytest.raises(UsageError):
        parse(words)


@pytest.mark.parametrize("readme", READMES)
def test_sweeps_and_tables_that_ship_are_there(readme: str) -> None:
    """Whatever a command names that is not a name of the reader's own."""
    for command in commands(text_of(readme)):
        words = words_of(command)
        if (
            words[:1] != ["gsq"]
            or len(words) < 3
            or words[1]
            in ("weights", "results", "sweeps", "train", "reconstruct", "tokenize", "publish", "new", "check", "schema")
        ):
            continue
        name = words[2]
        if name.startswith("-") or name == "SWEEP" or Path(name).stem in EXAMPLES or is_path(name):
            continue
        beside = (REPOSITORY / readme).parent / name
        if not any(path.is_file() for path in (REPOSITORY / name, beside, REPOSITORY / "results" / f"{name}.parquet")):
            find_file(name, configs_folder(), "sweep")


def attributes(tree: ast.AST, names: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """What the code takes from modules and classes that it imports: the object, and the attribute's name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
            yield names[node.value.id], node.attr


@pytest.mark.parametrize("readme", READMES)
def test_every_python_snippet_uses_what_is_there(readme: str) -> None:
    for block in blocks(text_of(readme), "python"):
        tree = ast.parse(block)
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert imports, "a snippet says what it imports"
        names: dict[str, Any] = {}
        exec(compile(ast.Module(imports, []), readme, "exec"), names)
        for owner, attribute in attributes(tree, names):
            assert hasattr(owner, attribute), f"{owner}.{attribute}"


@pytest.mark.parametrize("readme", READMES)
def test_every_name_of_python_in_a_sentence_is_there(readme: str) -> None:
    for code in inline(text_of(readme)):
        if found := re.fullmatch(r"((?:gsq|sweeps|analysis)(?:\.\w+)+)(\(.*\))?", code):
            pkgutil.resolve_name(found[1] if code.startswith("gsq") else f"gsq.{found[1]}")


@pytest.mark.parametrize("readme", READMES)
def test_every_yaml_snippet_loads(readme: str, tmp_path: Path) -> None:
    # What the pages tell the reader to write first.
    write_part("quantizer", tmp_path / "my_vq.py")
    write_part("program", tmp_path / "my_train.py")
    for number, block in enumerate(blocks(text_of(readme), "yaml")):
        file = tmp_path / f"snippet-{number}.yaml"
        file.write_text(block)
        (load_cluster if "kind" in yaml.safe_load(block) else load_spec)(str(file))


def known_key(key: str) -> None:
    """Raise UserError unless gsq has such a key, in sweeps, searches, cluster files or configs."""
    others = {*sweep.KEYS, *search_space.KEYS, *(one.name for one in fields(Cluster)), *FOREIGN}
    if key not in others:
        config_key(key, "README")


@pytest.mark.parametrize("readme", READMES)
def test_every_key_in_a_sentence_is_a_key(readme: str) -> None:
    for code in inline(text_of(readme)):
        section, _, rest = code.partition(".")
        if section in SECTIONS and re.fullmatch(r"[a-z_]+", rest):
            known_key(code)
        elif found := re.match(r"([a-z_.]+): ", code):
            known_key(found[1])


def anchors(file: Path) -> set[str]:
    """What links to headings of a page end with."""
    heads = re.findall(r"^#+ (.+)$", FENCE.sub("", file.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("readme", [*READMES, "CONTRIBUTING.md"])
def test_every_link_leads_somewhere(readme: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text_of(readme))):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (REPOSITORY / readme).parent / path if path else REPOSITORY / readme
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("readme", READMES)
def test_every_path_is_there(readme: str) -> None:
    """Files and folders of the repository that a sentence or a shell block names, from the page's folder or the top."""
    text = text_of(readme)
    shell = [word for block in blocks(text, "sh") for word in block.split()]
    for word in [*inline(text), *shell]:
        word = word.strip(",:")
        if Path(word).stem.removeprefix("test_") in EXAMPLES or word.endswith(("-curves.parquet", "results/runs")):
            continue
        inside = re.match(r"(?:gsq|sweeps|analysis|results|notebooks|tests)/[\w./-]*$", word)
        if inside or re.fullmatch(r"[\w-]+\.(?:py|csv|parquet|journal|ipynb|txt)", word):
            assert any((folder / word).exists() for folder in ((REPOSITORY / readme).parent, REPOSITORY)), word


@pytest.mark.parametrize("room", WINGS)
def test_a_room_names_its_wings_in_their_order(room: str) -> None:
    assert tuple(re.findall(r"^\| `(\w+)/` \|", text_of(f"{room}/README.md"), re.MULTILINE)) == WINGS[room]


def test_jobs_get_the_same_source_whatever_the_readmes_say() -> None:
    files = source_files(REPOSITORY)
    assert Path("gsq/sweeps/running/snapshot.py") in files
    assert not [file for file in files if file.suffix == ".md"]


def test_the_notebooks_are_all_named() -> None:
    links = re.findall(r"\]\((\w+\.ipynb)\)", text_of("notebooks/README.md"))
    assert sorted(links) == sorted(path.name for path in (REPOSITORY / "notebooks").glob("*.ipynb"))


def test_the_tables_are_all_named() -> None:
    text = text_of("results/README.md")
    for path in (REPOSITORY / "results").iterdir():
        if path.suffix in (".parquet", ".journal"):
            assert f"`{path.name}`" in text, path.name


def test_the_quickstart_ends_as_the_first_page_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The committed table, in a terminal of 80 columns, and the beginning of what is printed of its law."""
    (shown,) = [block for block in blocks(text_of("README.md"), "") if "rFID" in block]
    table, law = shown.rstrip("\n").split("\n\n")
    monkeypatch.chdir(REPOSITORY)
    frame = as_asked(load_results(Path("results/quickstart.parquet")))
    printed = io.StringIO()
    _print_frame(Console(file=printed, width=80), results_table(frame), frame)
    assert table.splitlines() == [line.rstrip() for line in printed.getvalue().splitlines()]
    done = CliRunner().invoke(app, ["fit", "quickstart"], env={**os.environ, "COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    assert law.splitlines() == [line.rstrip() for line in done.output.splitlines()][: len(law.splitlines())]
