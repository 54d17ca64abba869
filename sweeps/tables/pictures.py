"""The pictures that runs leave: originals above reconstructions."""

from __future__ import annotations

from pathlib import Path

from gsq.records.folder import RunFolder
from gsq.records.read import newest_file
from gsq.sweeps.planning.folder import SweepFolder, sweep_folder


def sample_pictures(sweep: str | SweepFolder, runs: Path | None = None) -> dict[str, Path]:
    """Signature to ``samples.png`` of each cell of a sweep that has been evaluated, of its newest evaluation.

    It holds the first images of the evaluation, the same for all cells with the same data and image size, above what
    the cell made of them; ``analysis.compare_reconstructions`` puts those of several cells side by side. sweep: its
    name, its YAML file or its folder. Raises UserError for an unknown sweep.
    """
    folder = sweep_folder(sweep, runs)
    found = {
        signature: newest_file(RunFolder.of(folder.runs, signature), "samples.png") for signature in folder.signatures()
    }
    return {signature: path for signature, path in found.items() if path is not None}
