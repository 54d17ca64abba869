"""``gsq publish``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gsq.cli.options import JsonOption, print_json
from gsq.cli.tokenizer import TokenizerArgument
from gsq.errors import UserError


def publish_command(
    run: TokenizerArgument,
    repository: Annotated[
        str | None, typer.Argument(metavar="[OWNER/NAME]", help="Hugging Face model id; created if it does not exist.")
    ] = None,
    output: Path | None = None,
    license: str | None = None,
    license_link: str | None = None,
    private: bool = False,
    message: str | None = None,
    as_json: JsonOption = False,
) -> None:
    """Publish a trained tokenizer on the Hugging Face hub, with a model card.

    Uploads config.json, model.safetensors and README.md: architecture, how it was trained, its numbers with their
    protocol, the data set's label, the licence, and how to load it. No path of this machine is in them. Needs
    huggingface_hub, and the token of hf auth login or HF_TOKEN.

    Example: gsq publish results/runs/ab/abcdef123456 --output tokenizer --license apache-2.0

    Example: gsq publish results/runs/ab/abcdef123456 ada/gsq-f8 --license apache-2.0 --private

    Options:
        --output DIR  Write the same files into this folder instead, to look at first.
        --license ID  Licence of the weights: apache-2.0, mit, other, ... Default: unknown.
        --license-link URL  Where the licence can be read.
        --private  Create the repository for you alone.
        --message TEXT  Message of the commit.
    """
    if (repository is None) == (output is None):
        raise UserError("name one place: a Hugging Face model id (owner/name), or --output DIR for a folder")
    if output is not None and (private or message):
        raise UserError(f"--output: a folder has no {'--private' if private else '--message'}; leave it out")
    from gsq.tokenizer.hub import require_repository
    from gsq.tokenizer.tokenizer import Tokenizer

    if repository is not None:
        require_repository(repository)
    tokenizer = Tokenizer.from_pretrained(run, "cpu")
    if repository is None:
        assert output is not None
        place = str(tokenizer.save_pretrained(output, license=license, license_link=license_link))
    else:
        place = tokenizer.push_to_hub(
            repository, private=private, license=license, license_link=license_link, message=message
        )
    if as_json:
        print_json({"tokenizer": run, "fingerprint": tokenizer.fingerprint(), "published": place})
        return
    typer.echo(
        f"{'Wrote' if repository is None else 'Published'} {place}. Load it with Tokenizer.from_pretrained"
        f"({repository if repository else str(output)!r})."
    )
