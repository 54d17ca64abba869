"""``gsq schema``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def schema_command(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="sweep or cluster.")],
    output: Path | None = None,
) -> None:
    """Print the JSON schema of sweep or cluster files, by which an editor completes, explains and checks their keys.

    Save it beside your files. An editor with the YAML language server then finds it by the first line of a file:
    # yaml-language-server: $schema=sweep.schema.json

    gsq init writes a sweep file with this line, and the schema.

    Example: gsq schema sweep --output sweep.schema.json

    Options:
        --output FILE  Write this file; default: print the schema.
    """
    from gsq.cli.table_options import require_outputs
    from gsq.errors import choose
    from gsq.files import write_text
    from gsq.sweeps.spec.json_schema import SCHEMAS

    choose("KIND", kind, SCHEMAS)
    require_outputs({"--output": output}, {})
    text = json.dumps(SCHEMAS[kind](), indent=1) + "\n"
    if output is None:
        typer.echo(text, nl=False)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, text)
    typer.echo(f"Saved {output}. First line of a {kind} file: # yaml-language-server: $schema={output.name}")
