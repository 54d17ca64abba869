from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from gsq.analysis.designing.options import DesignOptions
from gsq.analysis.fitting.options import Options
from gsq.cli.main import app
from gsq.cli.taking import declare, takes


@dataclass(frozen=True, kw_only=True)
class Paint:
    """What to paint with.

    Options:
        --red N  How red.
        --dark-blue NAME  How
            blue.
    """

    red: int = field(default=3, metadata={"min": 0})
    dark_blue: str | None = None


def painting(*names: str) -> tuple[typer.Typer, list[object]]:
    made, seen = typer.Typer(), []

    @made.command()
    @takes(Paint, *names)
    def paint(wall: str, coats: Annotated[int, typer.Option("--coats")] = 1, *, paint: Paint, dry: bool = True) -> None:
        seen.append((wall, coats, paint, dry))

    return made, seen


def test_a_command_takes_the_fields_of_a_dataclass() -> None:
    made, seen = painting()
    runner = CliRunner()
    assert runner.invoke(made, ["north", "--dark-blue", "navy", "--coats", "2"]).exit_code == 0
    assert runner.invoke(made, ["south"]).exit_code == 0
    assert seen == [("north", 2, Paint(dark_blue="navy"), True), ("south", 1, Paint(), True)]
    assert runner.invoke(made, ["north", "--red", "-1"]).exit_code == 2
    shown = runner.invoke(made, ["--help"]).output
    assert "How blue." in shown and shown.index("--coats") < shown.index("--red") < shown.index("--no-dry")


def test_a_command_may_take_some_of_the_fields() -> None:
    made, seen = painting("red")
    assert CliRunner().invoke(made, ["north", "--red", "5"]).exit_code == 0
    assert seen == [("north", 1, Paint(red=5), True)]
    assert CliRunner().invoke(made, ["north", "--dark-blue", "navy"]).exit_code == 2


@pytest.mark.parametrize(
    ("verb", "kind", "names"),
    [
        ("fit", Options, [one.name for one in fields(Options)]),
        ("plot", Options, ["residuals", "bootstrap", "seed"]),
        ("design", DesignOptions, ["until", "noise", "seeds", "cost"]),
    ],
)
def test_verbs_have_the_defaults_of_their_dataclass(verb: str, kind: type, names: list[str]) -> None:
    shown = {one.name: one.default for one in get_command(app).commands[verb].params}  # type: ignore[attr-defined]
    assert {name: shown[name] for name in names} == {name: getattr(kind(), name) for name in names}


def test_a_command_declares_options_in_its_docstring() -> None:
    def paint(wall: str, coats: list[int] | None = None, is_dry: bool = False) -> None:
        """Paint a wall.

        Options:
            --coats N=N ...  How many coats.
            --is-dry  Do not
                wait.
        """
        seen.append((wall, coats, is_dry))

    seen: list[object] = []
    assert declare(paint) == "Paint a wall."
    made = typer.Typer()
    made.command()(paint)
    assert CliRunner().invoke(made, ["north", "--coats", "1", "--coats", "2", "--is-dry"]).exit_code == 0
    assert CliRunner().invoke(made, ["north", "--no-is-dry"]).exit_code == 2
    assert seen == [("north", [1, 2], True)]
    options = {one.name: (one.metavar, one.help) for one in get_command(made).params}  # type: ignore[attr-defined]
    assert options["coats"] == ("N=N ...", "How many coats.") and options["is_dry"] == (None, "Do not wait.")


def test_an_option_without_a_parameter_is_refused() -> None:
    def paint(wall: str) -> None:
        """Paint.

        Options:
            --coats N  How many coats.
        """

    with pytest.raises(TypeError, match="coats"):
        declare(paint)
