"""The ``gsq`` command: every verb, in the order of ``gsq --help``."""

from __future__ import annotations

import gc
import os
import re
import sys
import warnings
from typing import Annotated

import typer

from gsq.analysis.fitting.progress import show_stages
from gsq.cli.allocate import allocate_command
from gsq.cli.cancel_retry import cancel_command, retry_command
from gsq.cli.check import check_command, new_command
from gsq.cli.clean import clean_command
from gsq.cli.data import data_command
from gsq.cli.design import design_command
from gsq.cli.doctor import doctor_command
from gsq.cli.evaluate import evaluate_command
from gsq.cli.export import export_command
from gsq.cli.fit import fit_command
from gsq.cli.init import init_command
from gsq.cli.logs import logs_command
from gsq.cli.options import line
from gsq.cli.plan import plan_command
from gsq.cli.plot import plot_command
from gsq.cli.publish import publish_command
from gsq.cli.report import report_command
from gsq.cli.results import gather_command, results_app
from gsq.cli.run import run_command
from gsq.cli.schema import schema_command
from gsq.cli.status import status_command
from gsq.cli.submit import submit_command
from gsq.cli.sweeps import sweeps_app
from gsq.cli.taking import declare
from gsq.cli.tokenizer import reconstruct_command, tokenize_command
from gsq.cli.track import track_command
from gsq.cli.train import train_command
from gsq.cli.weights import weights_app
from gsq.data.progress import Shown
from gsq.ending import end_without_threads

app = typer.Typer(
    name="gsq",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Scaling-law experiments for discrete image tokenizers.\n\n"
    "From one sweep YAML: plan the cells, train and evaluate them here or on SLURM, gather rFID and codebook use into "
    "Parquet, fit a scaling law, draw it. Start with [bold]gsq run quickstart[/bold], then write a YAML of your own.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import gsq

        typer.echo(f"gsq {gsq.__version__}")
        raise typer.Exit


@app.callback()
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


# In the order of --help.
app.command("init")(init_command)
app.command("run")(run_command)
app.command("data")(data_command)
app.command("plan")(plan_command)
app.command("submit")(submit_command)
app.command("status")(status_command)
app.command("logs")(logs_command)
app.command("cancel")(cancel_command)
app.command("retry")(retry_command)
app.command("gather")(gather_command)
app.command("track")(track_command)
app.command("clean")(clean_command)
app.command("fit")(fit_command)
app.command("allocate")(allocate_command)
app.command("plot")(plot_command)
app.command("report")(report_command)
app.command("export")(export_command)
app.command("design")(design_command)
app.command("train")(train_command)
app.command("evaluate")(evaluate_command)
app.command("reconstruct")(reconstruct_command)
app.command("tokenize")(tokenize_command)
app.command("publish")(publish_command)
app.command("new")(new_command)
app.command("check")(check_command)
app.command("doctor")(doctor_command)
app.command("schema")(schema_command)
app.add_typer(sweeps_app, name="sweeps")
app.add_typer(results_app, name="results")
app.add_typer(weights_app, name="weights")
_finish(app)


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
        app()
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
