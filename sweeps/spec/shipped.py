"""The sweep and cluster files that ship with gsq, found by name from a checkout and from a wheel alike."""

from __future__ import annotations

import re
from pathlib import Path

from gsq.errors import UserError, nearest
from gsq.files import is_yaml


def configs_folder() -> Path:
    """Folder of the sweep and cluster files that ship with gsq."""
    return Path(__file__).parents[1] / "configs"


def shipped_files(folder: Path) -> dict[str, Path]:
    """Return the YAML files of ``folder`` by name: ``quickstart``, ``paper/fig4``."""
    files = (p for pattern in ("*.yaml", "paper/*.yaml") for p in sorted(folder.glob(pattern), key=_by_number))
    return {p.relative_to(folder).with_suffix("").as_posix(): p for p in files}


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Sort key that puts table2 before table10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.stem)]


def find_file(name: str, folder: Path, what: str) -> Path:
    """Find a file by its path or by the name of a YAML file in ``folder``. Raises UserError, listing those files."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_files(folder)
    if name in shipped:
        return shipped[name]
    # Without a checkout, sweeps/configs/quickstart.yaml still means the shipped file.
    below = path.with_suffix("").as_posix().rpartition(f"{folder.name}/")[2]
    if is_yaml(path) and below in shipped and folder.name in path.parts:
        return shipped[below]
    raise UserError(
        f"{name}: no such {what} file{nearest(name, shipped)}; give a path or the name of one that ships with gsq: "
        f"{', '.join(shipped) or 'none'}"
    )
