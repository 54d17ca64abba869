"""Whether a file can be written, asked before the long work that makes it. Knows nothing of runs or tables."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from gsq.files import temporary

_DEVICES = (Path("/dev"), Path("/dev/fd"))


def output_problem(path: Path) -> str:
    """What keeps a file from being written at ``path``, in words that follow its name; "" where nothing does.

    Makes the folders and a file beside it to find out, and removes them again; what is there already stays as it is.
    """
    made: list[Path] = []
    touched: tuple[Path, os.stat_result] | None = None
    try:
        if path.is_dir():
            return f"is a folder; name a file, such as {path / 'NAME'}"
        if (path.exists() and not path.is_file()) or path.absolute().parent in _DEVICES:
            return "is no regular file, which gsq could replace; name another"
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
            with suppress(OSError):  # as if nobody had asked
                os.utime(touched[0], ns=(touched[1].st_atime_ns, touched[1].st_mtime_ns))
    return ""
