"""A copy of the source that a sweep is submitted with, which its jobs run: code that is edited later does not.

``<sweep folder>/source/<hash>/`` holds the package gsq with all three rooms, parts of a user's own, and COMMIT where it
came from a git checkout. Works from a wheel, too.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import gsq
from gsq.config.parts import source
from gsq.runs.provenance import commit
from gsq.sweeps.planning.folder import SweepFolder


def imported_source() -> Path:
    """The folder of the package gsq that this process has imported."""
    return Path(gsq.__file__).resolve().parents[1]


def source_files(root: Path) -> list[Path]:
    """The files of the package gsq below ``root``, relative to it, as a wheel has them: without the READMEs of rooms.
    In a checkout two of its rooms are links to folders."""
    return sorted(
        (Path(folder) / name).relative_to(root)
        for folder, _, names in os.walk(root / "gsq", followlinks=True)
        for name in names
        if name != "README.md" and "__pycache__" not in Path(folder).parts
    )


def _files(folder: SweepFolder) -> dict[Path, Path]:
    """What the copy holds, by path in it: gsq, and the parts of a user's own that cells of the sweep name."""
    root = imported_source()
    found = {name: root / name for name in source_files(root)}
    for part in folder.parts():
        place, names = source(part)
        found |= {name: place / name for name in names}
    return found


def source_folder(folder: SweepFolder) -> Path:
    """Where the copy of the source as it is now lies, or would lie."""
    hashed = hashlib.sha256()
    for name, path in _files(folder).items():
        hashed.update(name.as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return folder.path / "source" / hashed.hexdigest()[:12]


def take(folder: SweepFolder) -> Path:
    """The folder with the copy; it is made once for each state of the source. Raises OSError where it cannot be."""
    target = source_folder(folder)
    if target.is_dir():
        return target
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
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
    """What makes a Python process import that copy, wherever it starts. python_path: what PYTHONPATH was."""
    # Without the second, the folder that a process starts in would come first.
    return {"PYTHONPATH": f"{source}{os.pathsep}{python_path}".rstrip(os.pathsep), "PYTHONSAFEPATH": "1"}
