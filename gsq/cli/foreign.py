"""``gsq evaluate`` of models that gsq did not train: one by its import path, or several in a YAML file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gsq import sweeps
from gsq.cli.options import print_json
from gsq.errors import UserError, nearest
from gsq.files import is_yaml
from gsq.outputs import output_problem
from gsq.records.folder import RunFolder, runs_root
from gsq.sweeps.spec.shipped import configs_folder, shipped_files
from gsq.words import counted

if TYPE_CHECKING:
    from gsq.config.run import DataConfig, EvaluationConfig
    from gsq.data.batches import ImageSource

FILE_KEYS = ("models", "protocol", "data")
MODEL_KEYS = ("model", "options", "name", "range", "output_range", "channels")
RUN_KEYS = ("run", "name")
MAPPINGS, TEXTS = ("options",), ("model", "run", "name", "protocol", "data")
Rows = list[dict[str, Any]]


def is_models_file(name: str) -> bool:
    """Whether a YAML file lists models to evaluate."""
    from gsq.config.overrides import read_yaml

    return is_yaml(name) and Path(name).is_file() and "models" in read_yaml(Path(name))


def evaluate_models(
    name: str,
    changes: Mapping[str, Any],
    *,
    protocol: str | None,
    data: Path | None,
    options: Mapping[str, Any],
    convention: Mapping[str, Any],
    output: Path | None,
    as_json: bool,
) -> None:
    """Evaluate the model ``package.module:load``, or those of a YAML file, and add their rows to a table."""
    from gsq.config.parts import search_also
    from gsq.sweeps.tables.peers import add_rows, check_table

    entries, table = [{"model": name, "options": dict(options), **convention}], "foreign"
    if is_yaml(name):
        if options or convention:
            raise UserError(f"{name}: give options, range and channels of each model in the file")
        search_also(Path(name).parent)
        table, entries, values = Path(name).stem, *_read_models(Path(name))
        beside = partial(_beside, Path(name).parent)
        protocol, folder = protocol or beside(values.get("protocol")), beside(values.get("data"))
        data = data or (Path(folder) if folder else None)
        entries = [{**entry, "run": beside(entry["run"])} if "run" in entry else entry for entry in entries]
    output = output or Path("results") / f"{table}.parquet"
    if problem := output_problem(output):
        raise UserError(f"--output: {output} {problem}")
    check_table(output)
    source, evaluation = _measure(protocol, data, changes)
    rows: Rows = []
    total = 0
    # Load every model before the first is measured, so that a wrong line costs nothing.
    for title, measure in [_prepared(entry, source, evaluation) for entry in entries]:
        found = [{"sweep": output.stem, **row} for row in measure()]
        total = add_rows(output, found)
        rows += found
        if not as_json:
            for row in found:
                _show(title, row)
    if as_json:
        print_json([{k: v for k, v in row.items() if k != "protocol_fields"} for row in rows])
    else:
        typer.echo(f"{output}: {counted(total, 'row')}; gsq plot and gsq report read it beside other tables")


def _show(title: str, row: Mapping[str, Any]) -> None:
    typer.echo(
        f"{title}: rFID {row['rfid']:.4g} in {row['features']}, PSNR {row['psnr_db']:.2f} dB, {row['num_images']} "
        f"images of {row['resolution']} pixels, protocol {row['protocol']}"
    )
    if row.get("usage") is None:
        typer.echo(f"warning: {title}: no usage, since it declares no codebook_size or returns no indices", err=True)

    if '"weights": "unknown"' in row.get("parts", ""):
        typer.echo(
            f"warning: {title}: no torch module in its attributes, so its signature does not hold its weights; give it "
            "an attribute weights_sha256",
            err=True,
        )


def _read_models(file: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    from gsq.config.overrides import read_yaml

    values = read_yaml(file)
    for key in values:
        if key not in FILE_KEYS:
            raise UserError(f"{file}: '{key}' is not a key{nearest(key, FILE_KEYS)}; keys are {', '.join(FILE_KEYS)}")
    entries = values["models"]
    if not isinstance(entries, list) or not entries or not all(isinstance(one, dict) for one in entries):
        raise UserError(f"{file}: models: must be a list such as - {{model: package.module:load}}")
    for entry in entries:
        kind = "model" if "model" in entry else "run"
        allowed = MODEL_KEYS if kind == "model" else RUN_KEYS
        if kind not in entry or (unknown := [key for key in entry if key not in allowed]):
            wrong = f"'{unknown[0]}' is not a key" if kind in entry else "neither model nor run"
            raise UserError(f"{file}: models: {dict(entry)}: {wrong}; there are {', '.join(allowed)}")
    for part in (values, *entries):
        for key, value in part.items():
            if key in MAPPINGS and not isinstance(value, dict | None):
                raise UserError(f"{file}: {key}: {value!r}: must be a mapping, such as {{checkpoint: FILE}}")
            if key in TEXTS and not (isinstance(value, str) and value):
                raise UserError(f"{file}: {key}: {value!r}: must be text, in quotes if it looks like a number")
    return entries, values


def _beside(folder: Path, named: str | None) -> str | None:
    """A path that a YAML file names, relative to the file's folder; anything else as it is."""
    return str(folder / named) if named and (folder / named).exists() else named


def _measure(
    protocol: str | None, folder: Path | None, changes: Mapping[str, Any]
) -> tuple[ImageSource, EvaluationConfig]:
    """The images and the evaluation that a protocol names, with the command line's changes."""
    from gsq.config.run import EvaluationConfig
    from gsq.data.batches import ImageSource
    from gsq.runs.foreign import folder_to_compare

    if not protocol and not folder:
        raise UserError(
            "--protocol: missing; name a sweep, a run folder or a config whose images and evaluation to use, such as "
            "--protocol quickstart, or give a folder of images: --data FOLDER --resolution 256"
        )
    data, evaluation = _of_protocol(protocol) if protocol else (None, EvaluationConfig())
    evaluation = dataclasses.replace(evaluation, **changes)
    if folder is None:
        assert data is not None
        return ImageSource(data), evaluation
    size = data.image_size if data else (evaluation.resolutions or (256,))[0]
    return ImageSource(*folder_to_compare(folder, size)), evaluation


def _of_protocol(name: str) -> tuple[DataConfig, EvaluationConfig]:
    """The sections data and evaluation of a run folder, a preset, a YAML file of config sections, or a sweep."""
    from gsq.config.overrides import config_key, load_config, read_yaml
    from gsq.config.presets import PRESETS
    from gsq.config.run import SECTIONS
    from gsq.sweeps.planning.folder import SweepFolder, sweep_names

    path = Path(name)
    if path.is_dir():
        values = RunFolder(path).read_config()
        values.pop("data_label", None)
        config = load_config(values, where=str(path / "config.yaml"), finished=True)
        return config.data, config.evaluation
    sections = is_yaml(path) and path.is_file() and {*read_yaml(path)} & {*SECTIONS}
    if name not in (*PRESETS, *shipped_files(configs_folder())) and name in sweep_names(runs_root()):
        each = [cell.config for cell in SweepFolder(runs_root(), name).read_plan().cells]
        if any((one.data, one.evaluation) != (each[0].data, each[0].evaluation) for one in each):
            raise UserError(f"--protocol: the cells of sweep {name} have several; name a run folder of one cell")
        return each[0].data, each[0].evaluation
    spec = sweeps.load_spec({"name": "protocol", "base": name} if name in PRESETS or sections else name)
    if spec.program:
        raise UserError(f"--protocol: {name} trains a program, which evaluates itself")
    axes = {*spec.axes, *(n for z in spec.zipped for n in z), *(n for case in spec.cases for n in case)}
    for axis in sorted(axes - set(spec.recorded)):
        if config_key(axis, "--protocol").startswith(("data.", "evaluation.")):
            raise UserError(
                f"--protocol: {name} sweeps {axis}, so its cells have several; name a run folder of one cell"
            )
    return spec.base.data, spec.base.evaluation


def _prepared(entry: Mapping[str, Any], source: ImageSource, evaluation: EvaluationConfig) -> tuple[str, Any]:
    """A model's title, and the call that measures it."""
    from gsq.evaluation.foreign import load_foreign
    from gsq.runs.foreign import evaluate_foreign

    if "run" in entry:
        return _trained(Path(entry["run"]), entry.get("name", ""), source, evaluation)
    convention = {key: entry[key] for key in ("range", "output_range", "channels") if key in entry}
    model = load_foreign(entry["model"], entry.get("options"), convention)
    title, options = entry.get("name") or entry["model"], entry.get("options")
    return title, lambda: evaluate_foreign(model, source, evaluation, options=options, title=title, runs=runs_root())


def _trained(path: Path, title: str, source: ImageSource, evaluation: EvaluationConfig) -> tuple[str, Any]:
    from gsq.evaluation.evaluate import evaluate_all
    from gsq.runs.reevaluate import load_finished
    from gsq.sweeps.tables.peers import trained_columns

    config, own, model = load_finished(path)
    dataclasses.replace(config, evaluation=evaluation, data=source.config)
    title = title or path.name
    columns = trained_columns(config, own.manifest.label, path.name, title)
    return title, lambda: [{**columns, **one} for one in evaluate_all(model, source, evaluation, runs=runs_root())]
