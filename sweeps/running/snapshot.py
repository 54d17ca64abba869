"""The copy of the source that the jobs of a sweep run, so that later edits do not affect them.

``<sweep folder>/source/<hash>/`` has the package gsq with all three rooms, a user's own parts, and COMMIT if it came
from a git checkout. It also works from a wheel.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import gsq
from gsq.config.parts import source
from gsq.files import temporary
from gsq.runs.provenance import commit
from gsq.sweeps.planning.folder import SweepFolder


def imported_source() -> Path:
    """Return the folder of the package gsq that this process has imported."""
    return Path(gsq.__file__).resolve().parents[1]


def source_files(root: Path) -> list[Path]:
    """Return the files of the package gsq relative to ``root``, without the READMEs of rooms, like a wheel.

    In a checkout two of the rooms are links to folders.
    """
    return sorted(
        (Path(folder) / name).relative_to(root)
        for folder, _, names in os.walk(root / "gsq", followlinks=True)
        for name in names
        if name != "README.md" and "__pycache__" not in Path(folder).parts
    )


def _files(folder: SweepFolder) -> dict[Path, Path]:
    """Contents of the copy, by path in it: gsq, and the parts of a user's own that cells of the sweep name."""
    root = imported_source()
    found = {name: root / name for name in source_files(root)}
    for part in folder.parts():
        place, names = source(part)
        found |= {name: place / name for name in names}
    return found


def source_folder(folder: SweepFolder) -> Path:
    """Return the folder for a copy of the present source."""
    hashed = hashlib.sha256()
    for name, path in _files(folder).items():
        hashed.update(name.as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return folder.path / "source" / hashed.hexdigest()[:12]


def take(folder: SweepFolder) -> Path:
    """Copy the source, once for each state. Returns the folder. Raises OSError if that fails."""
    target = source_folder(folder)
    if target.is_dir():
        return target
    partial = temporary(target)
    try:
        for name, path in _files(folder).items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, partial / name)
        if known := commit():
            (partial / "COMMIT").write_text(known)
        partial.rename(target)
    except OSError:
        # Another submission may have been quicker.
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def environment(source: Path, python_path: str) -> dict[str, str]:
    """Return the variables that make Python import that copy. python_path: the earlier PYTHONPATH."""
    # Without PYTHONSAFEPATH, the folder in which a process starts would come first.
    return {"PYTHONPATH": f"{source}{os.pathsep}{python_path}".rstrip(os.pathsep), "PYTHONSAFEPATH": "1"}
