"""``gsq data``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gsq import sweeps
from gsq.cli.options import JsonOption, print_json
from gsq.cli.table_options import require_outputs
from gsq.errors import UserError

if TYPE_CHECKING:
    from gsq.config.run import DataConfig


def data_command(
    source: Annotated[
        str, typer.Argument(metavar="SWEEP|FOLDER", help="A sweep YAML, or a folder of images or shards.")
    ],
    preset: str = "cpu-tiny",
    sheet: Path | None = None,
    most: Annotated[
        int,
        typer.Option("--most", metavar="N", min=2, help="Open and compare at most N images of a larger data set."),
    ] = 20_000,
    as_json: JsonOption = False,
) -> None:
    """Show the images before you train on them: counts, sizes, files left out, near-duplicates, a sheet of crops.

    Counts the images of each split, says which files are left out and why (formats that gsq does not read, broken or
    tiny images), and finds validation images that look like a training image. The contact sheet has four rows of
    training crops, then two of validation images, each as the model sees it.

    Example: gsq data ~/pictures

    Example: gsq data groups.yaml --sheet crops.png

    Options:
        --preset NAME  For a folder: the preset whose image size and crops to show.
        --sheet FILE  The contact sheet; default: results/NAME-data.png.
    """
    from gsq.data.preview import contact_sheet, preview

    name, configs = _configs(source, preset)
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise UserError(f"--sheet: {sheet} must end in .png")
    first = sheet or Path("results") / f"{name}-data.png"
    require_outputs({"--sheet": first})
    found = []
    for number, config in enumerate(configs, 1):
        seen = preview(config, most)
        path = first if number == 1 else first.with_name(f"{first.stem}-{number}.png")
        contact_sheet(config, path)
        found.append({**seen.to_dict(), "sheet": str(path)})
        if not as_json:
            title = [f"data {number} of {len(configs)}: {config.kind} {config.path}"] if len(configs) > 1 else []
            print("\n".join([*title, *seen.lines(), f"contact sheet: {path}"]))
    if as_json:
        print_json(found[0] if len(found) == 1 else found)


def _configs(source: str, preset: str) -> tuple[str, list[DataConfig]]:
    """A name, and the data of a folder or those of a sweep's cells, each once."""
    if Path(source).is_dir():
        from gsq.config.presets import preset as preset_named
        from gsq.data.sources import folder_kind

        folder = Path(source).resolve()
        return folder.name, [replace(preset_named(preset).data, kind=folder_kind(folder), path=str(folder))]
    from gsq.config.overrides import config_key, override

    spec = sweeps.load_spec(source)
    cells = ({k: v for k, v in one.items() if config_key(k, source).startswith("data.")} for one in spec.candidates())
    return spec.name, list(dict.fromkeys(override(spec.base, cell).data for cell in cells))
