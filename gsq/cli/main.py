"""The ``gsq`` command: every verb, in the order of ``gsq --help``."""

from __future__ import annotations

import gc
import os
import re
import sys
import warnings
from functools import lru_cache
from importlib import import_module
from typing import Annotated

import typer

from gsq.analysis.fitting.progress import show_stages
from gsq.cli.options import line
from gsq.cli.taking import declare
from gsq.data.progress import Shown
from gsq.ending import end_without_threads

# In the order of --help: where each verb is. The others are not imported for one of them.
COMMANDS = {
    "init": "init:init_command",
    "run": "run:run_command",
    "data": "data:data_command",
    "plan": "plan:plan_command",
    "submit": "submit:submit_command",
    "status": "status:status_command",
    "logs": "logs:logs_command",
    "cancel": "cancel_retry:cancel_command",
    "retry": "cancel_retry:retry_command",
    "gather": "results:gather_command",
    "track": "track:track_command",
    "clean": "clean:clean_command",
    "fit": "fit:fit_command",
    "allocate": "allocate:allocate_command",
    "plot": "plot:plot_command",
    "report": "report:report_command",
    "export": "export:export_command",
    "design": "design:design_command",
    "train": "train:train_command",
    "evaluate": "evaluate:evaluate_command",
    "reconstruct": "tokenizer:reconstruct_command",
    "tokenize": "tokenizer:tokenize_command",
    "publish": "publish:publish_command",
    "new": "check:new_command",
    "check": "check:check_command",
    "doctor": "doctor:doctor_command",
    "schema": "schema:schema_command",
    "sweeps": "sweeps:sweeps_app",
    "results": "results:results_app",
    "weights": "weights:weights_app",
}
app: typer.Typer
"""Every command, made when it is asked for."""


def __getattr__(name: str) -> typer.Typer:
    if name == "app":
        return application(tuple(COMMANDS))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@lru_cache(maxsize=1)
def application(verbs: tuple[str, ...]) -> typer.Typer:
    """The ``gsq`` command with these verbs."""
    made = typer.Typer(
        name="gsq",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Scaling-law experiments for discrete image tokenizers.\n\n"
        "From one sweep YAML: plan the cells, train and evaluate them here or on SLURM, gather rFID and codebook use "
        "into Parquet, fit a scaling law, draw it. Start with [bold]gsq run quickstart[/bold], then write a YAML of "
        "your own.",
    )
    made.callback()(options)
    for verb in verbs:
        module, _, name = COMMANDS[verb].partition(":")
        found = getattr(import_module(f"gsq.cli.{module}"), name)
        if isinstance(found, typer.Typer):
            made.add_typer(found, name=verb)
        else:
            made.command(verb)(found)
    _finish(made)
    return made


def _print_version(wanted: bool) -> None:
    if wanted:
        import gsq

        typer.echo(f"gsq {gsq.__version__}")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _finish(commands: typer.Typer) -> None:
    """Give each command the options of its docstring, and as help its text, with the lines of a paragraph joined,
    because --help keeps line breaks; examples keep theirs."""
    for command in commands.registered_commands:
        if command.callback is not None:
            paragraphs = declare(command.callback).split("\n\n")
            command.help = "\n\n".join(re.sub(r"\n(?!Example:)\s*", " ", paragraph) for paragraph in paragraphs)
    for group in commands.registered_groups:
        if group.typer_instance:
            _finish(group.typer_instance)


def _warning_text(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of gsq's own without its place in the source, which is none of the user's."""
    own = category.__module__.split(".")[0] == "gsq"
    return f"warning: {message}\n" if own else _WITH_PLACE(message, category, filename, lineno, line)


_WITH_PLACE = warnings.formatwarning


def main() -> None:
    """Run the command line. A user's mistake prints one message and exits with code 2, without a traceback."""
    # A user's own parts (my_vq:MyVQ) may be here; last, so that the folder hides nothing.
    sys.path.append(os.getcwd())
    # By default the collector walks everything that imports make, every 700 objects: a tenth of a short verb's time.
    gc.set_threshold(200_000, 20, 20)
    warnings.formatwarning = _warning_text
    # A log needs no line of a fit that takes seconds.
    show_stages(lambda what, total: Shown(f"fit: {what}", total, patience=1.0 if sys.stderr.isatty() else 10.0))
    code: object = 1
    try:
        verb = next((one for one in sys.argv[1:] if not one.startswith("-")), "")
        application((verb,) if verb in COMMANDS else tuple(COMMANDS))()
    except SystemExit as end:
        code = end.code
        raise
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if not isinstance(code, int):
            raise
        from rich.console import Console
        from rich.markup import escape

        line(Console(stderr=True, emoji=False), f"[bold red]error:[/bold red] {escape(str(error))}")
        sys.exit(code)
    finally:
        end_without_threads(code)


if __name__ == "__main__":
    main()
