"""Evaluations of tokenizers that gsq did not train, as rows of a results table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gsq.config.axes import bits, levels_text
from gsq.config.parts import source_sha256
from gsq.config.run import DataConfig, EvaluationConfig, RunConfig
from gsq.config.signature import digest
from gsq.data.batches import ImageSource
from gsq.data.manifest import Manifest, build_manifest, held_out
from gsq.data.sources import folder_kind, manifest
from gsq.errors import UserError
from gsq.evaluation.evaluate import NonFiniteReconstruction, evaluate_all
from gsq.evaluation.foreign import Foreign
from gsq.evaluation.likeness import check_likeness
from gsq.evaluation.protocol import check
from gsq.pretrained.extractor import state_sha256
from gsq.runs.provenance import environment
from gsq.training.distributed import pick_device

# Images by which value range and order of channels are checked.
LOOKED_AT = 4


def folder_to_compare(folder: Path, image_size: int) -> tuple[DataConfig, Manifest]:
    """The images of a folder: its validation split if it has subfolders train and val, else every image.

    image_size: pixels. Raises UserError like ``gsq.data.sources.manifest``.
    """
    data = DataConfig(kind=folder_kind(folder), path=str(folder.absolute()), image_size=image_size)
    files = manifest(data)
    everything = sorted((*files.train, *files.validation), key=lambda file: file.name)
    if {f.name for f in held_out(everything, data.validation_share)[1]} == {f.name for f in files.validation}:
        files = build_manifest(files.name, [], everything, files.left_out)
    return data, files


def evaluate_foreign(
    model: Foreign,
    source: ImageSource,
    evaluation: EvaluationConfig,
    *,
    options: Mapping[str, Any] | None = None,
    title: str = "",
    runs: Path | None = None,
    **how: Any,
) -> list[dict[str, Any]]:
    """Evaluate a model at each of evaluation.resolutions: rows of a results table, without ``sweep`` and ``step``.

    options: those that it was loaded with. title: its name in the table (default: its import path). runs: folder of
    runs that share the features of the originals. how: options of ``gsq.evaluation.evaluate.evaluate``. Where
    ``metrics`` is a key, it holds a user's own metrics by column. Raises UserError where the model fails, takes another
    size or reads images otherwise than it declares.
    """
    sizes = evaluation.resolutions or (source.config.image_size,)
    fixed = getattr(model.model, "image_size", None)
    if isinstance(fixed, int) and (wrong := [size for size in sizes if size != fixed]):
        raise UserError(
            f"{model.name}: takes images of {fixed} pixels, but the protocol compares {wrong[0]}; use "
            f"--resolution {fixed}"
        )
    check(evaluation, source.config, source.manifest)
    model.to(device := pick_device("auto"))
    rows = []
    for size in sizes:
        sized = ImageSource(replace(source.config, image_size=size), source.manifest.below(evaluation.folder))
        images = sized.validation_batch(0, min(LOOKED_AT, sized.num_validation(evaluation.num_images)))
        check_likeness(model, images.to(device))
        try:
            (result,) = evaluate_all(model, source, replace(evaluation, resolutions=(size,)), runs=runs, **how)
        except NonFiniteReconstruction as error:
            raise UserError(f"{model.name}: {error}") from None
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        rows.append({**_identity(model, options or {}, title, name), **_axes(model, size), **result})
    return rows


def _identity(model: Foreign, options: Mapping[str, Any], title: str, device: str) -> dict[str, Any]:
    known = getattr(model.model, "weights_sha256", None)
    tensors = any(True for part in model.modules_of_model for _ in part.state_dict())
    weights = str(known) if known else state_sha256(model.modules_of_model) if tensors else "unknown"
    source = source_sha256(model.name)
    # Where a file lies makes no difference; what it holds is in the weights.
    meant = {k: v for k, v in options.items() if not (isinstance(v, str) and Path(v).exists())}
    word = getattr(model.model, "weights", None)
    made = environment(RunConfig(), device)
    return {
        "signature": digest([model.name, meant, source, weights, repr(model.convention)]),
        "other_axes": json.dumps(
            {"model": title or model.name, "weights": word if isinstance(word, str) else weights[:12]}, sort_keys=True
        ),
        "parts": json.dumps({"model": f"{model.name}@{source[:12]}", "weights": weights[:12]}, sort_keys=True),
        "parameters": sum(p.numel() for p in model.modules_of_model.parameters()) or None,
        "evaluated_by": json.dumps({k: made[k] for k in ("source", "versions", "device")}, sort_keys=True),
        "state": "done",
    }


def _axes(model: Foreign, size: int) -> dict[str, Any]:
    """What the model declares, and what follows from the shape of its indices at this size [pixels]."""
    kind = getattr(model.model, "quantizer", None)
    row: dict[str, Any] = {"quantizer": kind if isinstance(kind, str) else "foreign"}
    sizes, shape = model.quantizer.index_sizes, model.codes_shape
    if not sizes or not shape:
        return row
    places = shape[1:] if len(sizes) == 1 else shape[2:]
    positions, each = math.prod(places), bits(sizes)
    even = len(set(sizes)) == 1
    row |= {
        "groups": len(sizes),
        "codebook_size": max(sizes),
        "levels": None if even else levels_text(sizes),
        "depth": 1,
        "bits_per_token": each,
        "bits_per_pixel": positions * each / size**2,
        "tokens_per_image": positions * len(sizes),
    }
    height, width = (1, *places)[-2:]
    if height == width and height * width == positions and size % height == 0:
        row["downsample"] = size // height
    dim = getattr(model.model, "latent_dim", None)
    if isinstance(dim, int):
        row["latent_dim"] = dim
        row["group_dim"] = dim // len(sizes)
        if "downsample" in row:
            row["compression_ratio"] = 3 * row["downsample"] ** 2 / dim
    return row
