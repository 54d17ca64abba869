"""Arguments and options that verbs share which read a table."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gsq import analysis
from gsq.analysis.errors import AnalysisError
from gsq.files import is_yaml, write_text
from gsq.outputs import output_problem

if TYPE_CHECKING:
    import pandas as pd

RESULTS = Path("results")

TablesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="TABLE...",
        help="Any tables (.parquet, .feather, .csv, .tsv, .txt, also .gz), or sweeps by name: results/NAME.parquet. "
        "Several count as one: the column sweep tells them apart, and a run that they share counts once.",
    ),
]
LawOption = Annotated[
    list[str] | None,
    typer.Option(
        "--law",
        metavar="LAW",
        help='A named law, or a formula over columns: "rfid = E + A / latent_dim^a". Put other names in backticks: '
        "'`val/loss` = E + A / N^a' (single quotes are for the shell). Repeatable. Default: power_law_bpp and "
        "paper_eq14, if the table has their columns. `gsq fit --laws` lists the names.",
    ),
]
ProtocolOption = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        metavar="HASH",
        help="Use the rows of this evaluation protocol, if the table has several; a unique prefix is enough.",
    ),
]
WhereOption = Annotated[
    str | None,
    typer.Option("--where", metavar="CONDITION", help='Use only these rows: "outlier == False", "step > 1000".'),
]
BoundOption = Annotated[
    list[str] | None,
    typer.Option(
        "--bound", metavar="NAME=LOW:HIGH", help="Bounds of a parameter; an empty end is open (E=0: for a floor)."
    ),
]


def require_outputs(
    files: Mapping[str, Path | None],
    figures: Mapping[str, Path | None] | None = None,
    reads: Sequence[str | Path] = (),
) -> None:
    """Raise AnalysisError naming the option of a file or a figure that cannot be written, or that would replace one of
    the files that the verb ``reads``, before anything is computed.

    A figure is what :func:`gsq.analysis.figures.style.saved_files` makes of its path."""
    wanted = [(option, path) for option, path in files.items() if path is not None]
    for option, path in (figures or {}).items():
        if path is not None:
            from gsq.analysis.figures.style import saved_files

            wanted += [(option, file) for file in ((path,) if os.path.isdir(path) else saved_files(path))]
    inputs = {path.resolve() for one in reads for path in (Path(one), *table_paths([one])) if path.is_file()}
    for option, path in wanted:
        if path.resolve() in inputs:
            raise AnalysisError(f"{option}: {path} is what is read, and would be replaced; name another file")
        if problem := output_problem(path):
            raise AnalysisError(f"{option}: {path} {problem}")


def saved(*files: Path) -> str:
    return f"Saved {' and '.join(map(str, files))}."


def drawn(draw: Callable[[Path], object], path: Path | None) -> list[str]:
    """Draw a figure, if one is wanted. Returns a line that names its files."""
    if path is None:
        return []
    from gsq.analysis.figures.style import saved_files

    draw(path)
    return [saved(*saved_files(path))]


def save_or_print(text: str, output: Path | None, more: str = "") -> None:
    """Write ``text`` to a file and say so, or print it if none is named. more: what to say besides."""
    if output is None:
        typer.echo(text, nl=False)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, text)
    typer.echo(f"Saved {output}.{more}")


def load(tables: str | Sequence[str | Path], protocol: str | None = None, where: str | None = None) -> pd.DataFrame:
    """The rows of some tables, by file or name, as one table: those of one protocol that meet the condition."""
    from gsq.analysis.tables.selecting import select

    return select(analysis.load_tables(table_paths(tables), protocol), where)


def table_path(table: str) -> Path:
    """The file that TABLE means: itself where it names a file, else results/TABLE.parquet. A sweep's YAML file means
    the table of its sweep."""
    path, of_name = Path(table), RESULTS / f"{table}.parquet"
    if is_yaml(path) and path.is_file():
        import yaml

        try:
            name = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("name")
        except (OSError, ValueError, AttributeError, yaml.YAMLError):
            name = None
        return RESULTS / f"{name or path.stem}.parquet"
    if path.is_file() or len(path.parts) > 1 or (path.suffix and not of_name.is_file()):
        return path
    return of_name


def table_paths(tables: str | Sequence[str | Path]) -> list[Path]:
    """``table_path`` of each."""
    return [
        table_path(one) if isinstance(one, str) else one for one in ([tables] if isinstance(tables, str) else tables)
    ]
