"""The pictures of runs, with originals above reconstructions."""

from __future__ import annotations

from pathlib import Path

from gsq.records.folder import RunFolder
from gsq.records.read import newest_file
from gsq.sweeps.planning.folder import SweepFolder, sweep_folder


def sample_pictures(sweep: str | SweepFolder, runs: Path | None = None) -> dict[str, Path]:
    """Return the newest ``samples.png`` of each evaluated cell of a sweep, by signature.

    It has the first images of the evaluation above their reconstructions; cells with the same data and image size have
    the same images, and ``analysis.compare_reconstructions`` puts several cells side by side. sweep: its name, YAML
    file or folder. Raises UserError for an unknown sweep.
    """
    folder = sweep_folder(sweep, runs)
    found = {
        signature: newest_file(RunFolder.of(folder.runs, signature), "samples.png") for signature in folder.signatures()
    }
    return {signature: path for signature, path in found.items() if path is not None}
