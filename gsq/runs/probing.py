"""Probe the final weights of a run and keep what the probe found in the run's folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gsq.config.flops import probe_flops
from gsq.config.run import RunConfig
from gsq.records.folder import RunFolder, probe_files
from gsq.training.distributed import Group

if TYPE_CHECKING:
    from gsq.data.batches import ImageSource
    from gsq.models.autoencoder import Autoencoder


def probe_run(
    folder: RunFolder,
    config: RunConfig,
    model: Autoencoder,
    source: ImageSource,
    row: dict[str, Any],
    pixels: int,
    group: Group | None = None,
    **options: Callable[[BaseException | None], None],
) -> dict[str, Any]:
    """Run the probe of config.evaluation and write its result; see ``gsq.probe.measure.probe``.

    row: the evaluation that it is added to; needed on the first process only, which alone returns a result. pixels:
    size of the images. Where the probe made its own tokens and was not resumed, the file records its cost, too, from
    which plans estimate others. Raises what ``probe`` raises.
    """
    from gsq.probe.measure import probe

    group = group or Group()
    anew = group.first and probe_files(folder) == ([], [])
    found = probe(model, source, config.evaluation, row, runs=folder.runs, kept=folder.probes, group=group, **options)
    if not group.first:
        return {}
    cost: dict[str, Any] = {}
    if anew:
        alone = replace(config, evaluation=replace(config.evaluation, resolutions=(pixels,)))
        seconds = found["probe_seconds"] * group.size
        flops = probe_flops(alone, len(source.manifest.train))
        cost = {"cost": {"flops": flops, "device_seconds": seconds, "device": next(model.parameters()).device.type}}
    folder.write_probe(row["protocol"], config.train.steps, {**found, **cost})
    return found
