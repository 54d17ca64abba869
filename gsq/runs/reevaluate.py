"""Weights of finished runs, and their evaluation by further protocols."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsq.config.overrides import load_config
from gsq.config.parts import load, named_parts, source_sha256
from gsq.config.run import DataConfig, RunConfig
from gsq.data.sources import manifest
from gsq.errors import UserError
from gsq.files import read_json
from gsq.records.folder import RunFolder, probed
from gsq.records.read import newest_file, read_evaluations

if TYPE_CHECKING:
    from gsq.data.batches import ImageSource
    from gsq.models.autoencoder import Autoencoder


class DamagedRun(UserError):
    """A run folder without config or weights, or with weights of code that is no longer there."""


def read_finished(path: Path) -> tuple[RunConfig, Path]:
    """Config of a finished run, and the file of its averaged weights.

    Raises DamagedRun if this is no run folder, the run is not finished, or the source of a quantizer or model of a
    user's own has changed since, because other code would make something else of the weights.
    """
    folder = RunFolder(path)
    try:
        values = folder.read_config()
    except UserError as error:
        raise DamagedRun(str(error)) from None
    if values.get("program"):
        raise UserError(f"{path}: is a run of {values['program']}, which evaluates itself (run.evaluate)")
    values.pop("data_label", None)
    weights = newest_file(folder, "model.safetensors")
    if weights is None:
        raise DamagedRun(f"{path}: has no model.safetensors; the run has not finished training")
    config = load_config(values, where=str(path / "config.yaml"), finished=True)
    _require_source(config, path, read_json(weights.parent / "env.json"))
    return config, weights


def _require_source(config: RunConfig, path: Path, environment: Any) -> None:
    trained = json.loads((environment or {}).get("parts") or "{}")
    for key, names in named_parts(config).items():
        if key in ("model.kind", "quantizer.kind") and key in trained:
            load(names[0], key)
            now = f"{names[0]}@{source_sha256(names[0])[:12]}"
            if trained[key] != now:
                raise DamagedRun(
                    f"{path}: {key}: was trained with {trained[key]}, and the source here is {now}, which may compute "
                    "something else from its weights; restore that source, or put the copy that the sweep's jobs ran "
                    f"on PYTHONPATH ({RunFolder(path).runs / 'sweeps' / 'NAME' / 'source' / 'HASH'})"
                )


def load_finished(path: Path, data: DataConfig | None = None) -> tuple[RunConfig, ImageSource, Autoencoder]:
    """Config, images and averaged weights (in evaluation mode, float32) of a finished run.

    data: where the images lie now (default: the place recorded in the config). Raises UserError like ``read_finished``.
    """
    from gsq.data.batches import ImageSource
    from gsq.data.decoded import kept_on_disk
    from gsq.models.autoencoder import Autoencoder
    from gsq.pretrained.state import load_exactly, read_tensors

    config, weights = read_finished(path)
    model = Autoencoder(config)
    try:
        load_exactly(model, read_tensors(weights), str(weights))
    except UserError as error:
        raise DamagedRun(str(error)) from None
    where = data or config.data
    source = ImageSource(where, kept_on_disk(manifest(where), config.execution))
    return config, source, model.eval().requires_grad_(False)


def unevaluated(path: Path, changes: dict[str, Any], data: DataConfig | None = None) -> tuple[int, ...]:
    """Image sizes [pixels] at which ``evaluate_finished`` would evaluate or probe the run.

    Raises UserError like ``read_finished``, ``gsq.evaluation.protocol.check`` and
    ``gsq.probe.protocol.probe_protocol``.
    """
    _, sizes, probes = _evaluation(path, changes, data)
    return (*sizes, *(size for size in probes.values() if size not in sizes))


def _evaluation(
    path: Path, changes: dict[str, Any], data: DataConfig | None
) -> tuple[RunConfig, tuple[int, ...], dict[str, int]]:
    """The changed config, the image sizes to evaluate at, and those to probe at by the protocol of the evaluation."""
    from gsq.evaluation.protocol import check, protocol
    from gsq.probe.protocol import probe_protocol

    config, _ = read_finished(path)
    # The whole config refuses a resolution that the model's downsampling does not divide.
    config = replace(config, evaluation=replace(config.evaluation, **changes), data=data or config.data)
    files, step = manifest(config.data), config.train.steps
    check(config.evaluation, config.data, files)
    known = {(found.get("protocol"), found.get("step")) for found in read_evaluations(RunFolder(path))}
    probes, done = {}, probed(RunFolder(path))
    missing = []
    for size in config.evaluation.resolutions or (config.data.image_size,):
        rules = protocol(config.evaluation, replace(config.data, image_size=size), files).hash
        probe = probe_protocol(config.evaluation, config.data, files, size)
        if (rules, step) not in known:
            missing.append(size)
        if probe and (rules, step, probe.hash) not in done:
            probes[rules] = size
    return config, tuple(missing), probes


def evaluate_finished(path: Path, changes: dict[str, Any], data: DataConfig | None = None) -> list[dict[str, Any]]:
    """Evaluate the final weights of a finished run by further protocols, on a GPU if there is one.

    changes: fields of EvaluationConfig that replace the run's. data: where the images lie now (default: the place
    recorded in the config). Skips protocols that have already evaluated the final weights. Returns the new results, by
    the results table's column names, which are also saved in ``evaluations/`` and ``probes/`` of the run folder; a new
    probe of an earlier evaluation is returned with that evaluation. The features of the originals are shared with other
    runs (gsq.evaluation.originals).

    Raises UserError like ``unevaluated``, and NonFiniteReconstruction.
    """
    import torch

    from gsq.config.flops import cost
    from gsq.evaluation.evaluate import evaluate_all
    from gsq.runs.provenance import environment
    from gsq.training.distributed import pick_device

    config, sizes, probes = _evaluation(path, changes, data)
    if not sizes and not probes:
        return []
    _, source, model = load_finished(path, data)
    device, step, runs = pick_device("auto"), config.train.steps, path.absolute().parent.parent
    model.to(device)
    results: list[dict[str, Any]] = []
    if sizes:
        results = evaluate_all(model, source, replace(config.evaluation, resolutions=sizes), runs=runs, step=step)
    made = environment(config, torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu")
    for result in results:
        result["step"] = step
        result["images_seen"] = step * config.train.batch_size
        result["train_flops"] = cost(config).train_flops
        # env.json describes the training, so the evaluation's code, versions and device go here.
        result["evaluated_by"] = json.dumps({k: made[k] for k in ("source", "versions", "device")}, sort_keys=True)
        RunFolder(path).write_evaluation(result["protocol"], step, result)
    return _with_probes(path, config, results, probes, model, source)


def _with_probes(
    path: Path,
    config: RunConfig,
    results: list[dict[str, Any]],
    probes: dict[str, int],
    model: Autoencoder,
    source: ImageSource,
) -> list[dict[str, Any]]:
    """The new evaluations with the probes that they lack, and earlier ones that get a probe now."""
    if not probes:
        return results
    from gsq.runs.probing import probe_run

    folder, step = RunFolder(path), config.train.steps
    rows = {row["protocol"]: row for row in read_evaluations(folder) if row.get("step") == step}
    rows |= {row["protocol"]: row for row in results}
    for rules, size in probes.items():
        rows[rules] = {**rows[rules], **probe_run(folder, config, model, source, rows[rules], size)}
    return [rows[rules] for rules in dict.fromkeys([*(row["protocol"] for row in results), *probes])]
