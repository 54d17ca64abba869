"""The command of a job whose cluster file names a container image."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path

from gsq.sweeps.spec.cluster import Cluster
from gsq.sweeps.state import journal

# What starts a job inside, a file of the source copy: an image may lack all packages by which gsq could be imported.
INSIDE = "gsq/sweeps/running/inside.py"
# Variables of the job that go before those of an image.
KEPT = ("PYTHONPATH", "PYTHONSAFEPATH", "OMP_NUM_THREADS")


def in_double_quotes(value: str) -> str:
    """Quote a value for the shell, which still expands variables such as $TMPDIR."""
    return '"' + re.sub(r'(["`\\])', r"\\\1", value) + '"'


def _image(cluster: Cluster) -> str:
    """The image; a file by its absolute path, because jobs may start in another folder."""
    assert cluster.container is not None
    image = os.path.expanduser(cluster.container.image)
    if cluster.container.is_file and "$" not in image:
        image = os.path.abspath(image)
    return image


def in_container(entry: journal.Entry, cluster: Cluster, variables: Mapping[str, str], images: Collection[str]) -> str:
    """Return the command that starts a job's Python in the image of the cluster file, for srun.

    variables: of the user, among them the folders of weights and caches. images: folders of the sweep's images.
    """
    container = cluster.container
    assert container is not None
    inside = (container.python, "-u", str(Path(entry.source) / INSIDE), str(entry.path), container.image)
    python = " ".join(map(shlex.quote, inside))
    if container.runtime == "pyxis":
        return python
    gpus = ["--rocm" if cluster.gpu.startswith("mi") else "--nv"] if cluster.gpus else []
    binds = [f"--bind {in_double_quotes(bind)}" for bind in _binds(entry, cluster, variables, images)]
    return " ".join(["apptainer exec", *gpus, *binds, in_double_quotes(_image(cluster)), python])


def pyxis_options(
    entry: journal.Entry, cluster: Cluster, variables: Mapping[str, str], images: Collection[str]
) -> list[str]:
    """Return srun's options for the image; none where the job starts it itself (apptainer)."""
    container = cluster.container
    if container is None or container.runtime != "pyxis":
        return []
    mounts = (bind if ":" in bind else f"{bind}:{bind}" for bind in _binds(entry, cluster, variables, images))
    # No shell reads these, so variables are those of the submission.
    return [
        f"--container-image={os.path.expandvars(_image(cluster))}",
        f"--container-mounts={os.path.expandvars(','.join(mounts))}",
        f"--container-env={','.join([*KEPT, *variables, *cluster.environment])}",
    ]


def _binds(entry: journal.Entry, cluster: Cluster, variables: Mapping[str, str], images: Collection[str]) -> list[str]:
    """Folders of the node that the image sees: runs, images, weights, caches, and those that the cluster file names."""
    assert cluster.container is not None
    # <runs>/sweeps/<name>/submissions/<number>
    runs = str(entry.path.parents[3])
    caches = [value for name, value in variables.items() if name.startswith("GSQ_")]
    own = [os.path.expanduser(bind) for bind in cluster.container.binds]
    shown = {bind.split(":")[0] for bind in own}
    return [*(path for path in dict.fromkeys((runs, *images, *caches)) if path not in shown), *own]
