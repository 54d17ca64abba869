"""``gsq schema``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gsq.cli.table_options import require_outputs, save_or_print
from gsq.errors import choose


def schema_command(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="sweep or cluster.")],
    output: Path | None = None,
) -> None:
    """Print the JSON schema of sweep or cluster files, with which an editor completes, explains and checks keys.

    Save it beside your files. An editor with the YAML language server then finds it by the first line of a file:
    # yaml-language-server: $schema=sweep.schema.json

    gsq init writes a sweep file with this line, and the schema.

    Example: gsq schema sweep --output sweep.schema.json

    Options:
        --output FILE  Write this file; default: print the schema.
    """
    from gsq.sweeps.spec.json_schema import SCHEMAS

    choose("KIND", kind, SCHEMAS)
    require_outputs({"--output": output})
    more = f" First line of a {kind} file: # yaml-language-server: $schema={output.name}" if output else ""
    save_or_print(json.dumps(SCHEMAS[kind](), indent=1) + "\n", output, more)
