"""A commented sweep file to start from, made from a few answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gsq.config.presets import PRESETS
from gsq.errors import UserError, choose
from gsq.files import is_yaml, write_text
from gsq.sweeps.spec.json_schema import sweep_schema
from gsq.sweeps.spec.sweep import KEYS, build_spec

SCHEMA_FILE = "sweep.schema.json"
DEFAULT_AXES: Mapping[str, Any] = {"groups": [1, 2, 4], "codebook_size": {"log2": [6, 10], "step": 2}}


def read_axes(texts: list[str]) -> dict[str, Any]:
    """Axes from ``groups=1,2,4`` or ``codebook_size={log2: [6, 10]}``. Raises UserError for another text, or an axis
    that is given twice."""
    axes: dict[str, Any] = {}
    for text in texts:
        name, found, values = text.partition("=")
        try:
            read = yaml.safe_load(values if values.lstrip()[:1] in ("{", "[") else f"[{values}]")
        except yaml.YAMLError:
            read = None
        if not found or not name or not read:
            raise UserError(
                f"--axis {text!r}: write KEY=VALUES, such as groups=1,2,4 or 'codebook_size={{log2: [6, 10]}}'"
            )
        if name in axes:
            raise UserError(f"--axis {name}: is given twice; write all of its values at once: {name}=1,2,4")
        axes[name] = read
    return axes


def sweep_text(
    name: str,
    base: str = "cpu-tiny",
    data: tuple[str, str] | None = None,
    axes: Mapping[str, Any] | None = None,
    steps: int | None = None,
    seeds: int = 2,
) -> str:
    """The text of a commented sweep file, checked by reading it.

    data: data.kind and data.path; None keeps the images of the preset. axes: as in a sweep file (default:
    DEFAULT_AXES). seeds: runs of each configuration, unless ``axes`` has seed. Raises UserError as ``load_spec`` does.
    """
    choose("--preset", base, PRESETS)
    if seeds < 1:
        raise UserError(f"--seeds: {seeds} must be at least 1")
    chosen = dict(axes or DEFAULT_AXES)
    if not {"seed", "train.seed"} & chosen.keys():
        chosen["seed"] = {"range": [0, seeds - 1]}
    fixed: dict[str, Any] = {} if data is None else {"data.kind": data[0], "data.path": data[1]}
    fixed |= {} if steps is None else {"steps": steps}
    lines = [
        f"# yaml-language-server: $schema={SCHEMA_FILE}",
        f"# gsq plan {name}.yaml shows the cells and their cost; gsq run {name}.yaml trains, gathers, fits and plots.",
        f"name: {name}",
        f"base: {base}{_comment('base')}",
        f"set:{_comment('set')}",
        *(f"  {key}: {_written(value)}" for key, value in fixed.items()),
        *([] if steps else ["  # steps: 1000                # gsq train " + base + " --dry-run prints every key"]),
        f"axes:{_comment('axes')}",
        *(f"  {key}: {_written(value)}" for key, value in chosen.items()),
        f"where:{_comment('where')}",
        "  - latent_dim % groups == 0",
        f"# budget: {{device_hours: 10, disk_gb: 20}}{_comment('budget')}",
        "",
    ]
    text = "\n".join(lines)
    build_spec(yaml.safe_load(text), Path(), name)
    return text


def write_sweep(file: Path, text: str) -> Path:
    """Write a sweep file, and beside it the schema that its first line names; returns the schema's path.

    Raises UserError if ``file`` exists, does not end in .yaml, or cannot be written."""
    if not is_yaml(file):
        raise UserError(f"{file}: a sweep file ends in .yaml; write {file}.yaml")
    if file.exists():
        raise UserError(f"{file}: is there already; give another name, or remove it")
    schema = file.with_name(SCHEMA_FILE)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(schema, json.dumps(sweep_schema()) + "\n")
        write_text(file, text)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from None
    return schema


def _comment(key: str) -> str:
    return f"  # {KEYS[key]}"


def _written(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
