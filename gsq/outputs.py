"""A check, before long work begins, that its output can be written."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from gsq.files import temporary

_DEVICES = (Path("/dev"), Path("/dev/fd"))


def output_problem(path: Path) -> str:
    """Why ``path`` cannot be written, as words that follow its name; "" if it can.

    Makes the folders and a file beside ``path`` to find out, and removes them again. Existing files stay untouched.
    """
    made: list[Path] = []
    touched: tuple[Path, os.stat_result] | None = None
    try:
        if path.is_dir():
            return f"is a folder; name a file, such as {path / 'NAME'}"
        if (path.exists() and not path.is_file()) or path.absolute().parent in _DEVICES:
            return "is not a regular file, so gsq cannot replace it; name another"
        for folder in (*reversed(path.parent.parents), path.parent):
            if folder.exists():
                touched = folder, folder.stat()
            else:
                folder.mkdir()
                made.append(folder)
        probe = temporary(path)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        where = Path(str(error.filename)) if error.filename else path
        place = f" at {where}" if where != path and where.parent != path.parent else ""
        return f"cannot be written: {reason.lower()}{place}; name a file in a folder that you may write to"
    finally:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()
        if touched:
            with suppress(OSError):  # leave no trace
                os.utime(touched[0], ns=(touched[1].st_atime_ns, touched[1].st_mtime_ns))
    return ""
